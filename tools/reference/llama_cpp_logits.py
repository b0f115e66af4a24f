"""llama.cpp's logits of a model, and ggml's quantization, through the low-level API.

A module for tiny_architectures.py: it makes nothing by itself. The functions of ggml are
called in the library that llama-cpp-python loads, so that every type that llama.cpp knows
can be made, also those that the Python package gguf cannot encode or does not know.
"""

import ctypes

import llama_cpp
import numpy as np

GGML = llama_cpp.llama_cpp._lib

# ggml's number of each type that a weight can have and llama.cpp can multiply on a CPU.
# Q8_1 and Q8_K are not among them: they are for activations only.
TYPES = {
    "F32": 0, "F16": 1, "BF16": 30,
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "IQ4_NL": 20, "MXFP4": 39,
    "NVFP4": 40, "Q1_0": 41, "Q2_0": 42,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ1_S": 19, "IQ1_M": 29, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ2_S": 22, "IQ3_XXS": 18, "IQ3_S": 21,
    "IQ4_XS": 23, "TQ1_0": 34, "TQ2_0": 35,
}  # fmt: skip


class Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    ]


GGML.ggml_get_type_traits.argtypes = [ctypes.c_int]
GGML.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
GGML.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [
    ctypes.c_void_p
]
GGML.ggml_quantize_chunk.restype = ctypes.c_size_t


def quantize(values, type_name):
    """float32 [..., columns] -> uint8 [bytes], the blocks of ggml's own encoder.

    The importance is one everywhere: the types that cannot do without get one.
    """
    if type_name == "F32":
        return np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    traits = GGML.ggml_get_type_traits(TYPES[type_name]).contents
    values = np.ascontiguousarray(values, np.float32)
    columns = values.shape[-1]
    if traits.name.decode().upper() != type_name or columns % traits.block_size:
        raise SystemExit(f"rows of {columns} cannot be {type_name}")
    out = np.zeros(values.size // traits.block_size * traits.type_size, np.uint8)
    importance = np.ones(columns, np.float32)
    written = GGML.ggml_quantize_chunk(
        TYPES[type_name], values.ctypes.data, out.ctypes.data, 0, values.size // columns, columns,
        importance.ctypes.data,
    )
    if written != out.nbytes:
        raise SystemExit(f"{type_name}: {written} bytes instead of {out.nbytes}")
    return out


def dequantize(blocks, type_name, shape):
    """uint8 [bytes] -> float32 [shape], by ggml's own decoder."""
    if type_name == "F32":
        return blocks.view("<f4").reshape(shape)
    out = np.zeros(shape, np.float32)
    blocks = np.ascontiguousarray(blocks)
    GGML.ggml_get_type_traits(TYPES[type_name]).contents.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


_messages = []


@llama_cpp.llama_log_callback
def _keep_message(_level, text, _data):
    _messages.append(text.decode(errors="replace"))


llama_cpp.llama_log_set(_keep_message, ctypes.c_void_p(0))


def logits(model_path, tokens, n_ctx, adapter_path=None, scale=1.0):
    """float32 [tokens, vocabulary]: the logits after each token, in one batch on one thread.

    Cache in F32, no flash attention, no repacked weights: the path with the least rounding.
    Raises SystemExit with llama.cpp's log where it refuses a file.
    """
    _messages.clear()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    settings.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(model_path).encode(), settings)
    if not model:
        raise SystemExit(f"{model_path}: llama.cpp does not load it\n{''.join(_messages)}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = n_ctx
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = TYPES["F32"]
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit(f"{model_path}: llama.cpp makes no context\n{''.join(_messages)}")
    if adapter_path:
        adapter = llama_cpp.llama_adapter_lora_init(model, str(adapter_path).encode())
        if not adapter:
            raise SystemExit(f"{adapter_path}: llama.cpp does not load it\n{''.join(_messages)}")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(scale)):
            raise SystemExit(f"{adapter_path}: llama.cpp does not apply it")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for position, token in enumerate(tokens):
        batch.token[position] = token
        batch.pos[position] = position
        batch.n_seq_id[position] = 1
        batch.seq_id[position][0] = 0
        batch.logits[position] = 1
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit(f"{model_path}: llama.cpp does not compute it\n{''.join(_messages)}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    out = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(tokens), vocabulary)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    if not np.isfinite(out).all():
        raise SystemExit(f"{model_path}: logits that are not finite")
    return out
