"""The GGUF names and layout of a transformers model's weights, and the files they go to.

A module for the scripts beside it: it makes nothing by itself. `to_gguf` takes what
`model.state_dict()` returns and gives numpy float32 arrays keyed by GGUF tensor name,
in the order of elements in which a GGUF file stores them.
"""

import json
import struct

import gguf
import numpy as np
import torch

# The converter of llama.cpp interleaves the rows of q and k for these architectures.
PERMUTED_ARCHITECTURES = {"llama"}
# transformers keeps these weights as [in, out] (its class Conv1D).
CONV1D_SUFFIXES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def permute_rows(rows, heads):
    """[heads * d, ...] with each head's two halves side by side -> interleaved, as GGUF has them."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


def to_gguf(state, architecture, config):
    """{transformers name: tensor} -> {GGUF name: float32 array}."""
    model_arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(model_arch, config.num_hidden_layers)
    out = {}
    for name, tensor in state.items():
        array = tensor.detach().to(torch.float32).cpu().numpy()
        layer = name.split(".layers.")[1].split(".")[0] if ".layers." in name else None
        if name.endswith(".mlp.experts.gate_up_proj"):  # [E, 2 * ffn, hidden]
            gate, up = np.split(array, 2, axis=1)
            out[f"blk.{layer}.ffn_gate_exps.weight"] = gate
            out[f"blk.{layer}.ffn_up_exps.weight"] = up
            continue
        if name.endswith(".mlp.experts.down_proj"):  # [E, hidden, ffn]
            out[f"blk.{layer}.ffn_down_exps.weight"] = array
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise SystemExit(f"no GGUF name for {name} of architecture {architecture}")
        if name.endswith(CONV1D_SUFFIXES):
            array = array.T
        if architecture in PERMUTED_ARCHITECTURES:
            if ".attn_q." in gguf_name:
                array = permute_rows(array, config.num_attention_heads)
            elif ".attn_k." in gguf_name:
                array = permute_rows(array, config.num_key_value_heads)
        out[gguf_name] = array
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def read_gguf(path):
    """Path -> (architecture, {name: float32 array}), quantized tensors dequantized."""
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = values.reshape([int(n) for n in reversed(tensor.shape)])
    return architecture, tensors


def write_safetensors(path, tensors, metadata):
    """{name: float32 array} -> a file, the same bytes each time (the package orders metadata at random)."""
    header, end = {"__metadata__": metadata}, 0
    for name in sorted(tensors):
        start, end = end, end + 4 * tensors[name].size
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in sorted(tensors):
            file.write(tensors[name].astype("<f4").tobytes())
