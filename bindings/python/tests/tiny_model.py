"""A model whose answers are known: every letter is followed by the next one of the alphabet.

Its only layer adds nothing. The embedding of token i is the i-th unit vector, and the head gives
unit vector i to the token that follows i, so that the likeliest token is always that one. An
adapter on the head is another alphabet. The file is written by the package gguf, not by us.
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

HIDDEN = 320
FFN = 64
HEADS = 5
CONTEXT = 512

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(hidden)) for byte in range(256)]


TOKENS = [*letters(), "th", *SPECIAL]
END = TOKENS.index("<|im_end|>")


def followers() -> dict[int, int]:
    """z is followed by a, ! by the end, and the line break that ends a chat's prompt by h."""
    after = {byte: byte + 1 for byte in range(32, 127)}
    after[ord("z")] = ord("a")
    after[ord("!")] = END
    after[ord("\n")] = ord("h")
    return after


def head(after: dict[int, int]) -> NDArray[np.float32]:
    weights = np.zeros((len(TOKENS), HIDDEN), np.float32)
    for token, follower in after.items():
        weights[follower, token] = 1.0
    return weights


def write_model(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_name("alphabet")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types(
        [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in TOKENS]
    )
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    q8_0 = GGMLQuantizationType.Q8_0

    def add(name: str, weights: NDArray[np.float32]) -> None:
        writer.add_tensor(name, quantize(weights, q8_0), raw_dtype=q8_0)

    add("token_embd.weight", np.eye(len(TOKENS), HIDDEN, dtype=np.float32))
    add("output.weight", head(followers()))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, shape in {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN, HIDDEN),
        "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }.items():
        add(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    for name in ["attn_norm", "ffn_norm"]:
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(folder: Path, after: dict[int, int]) -> Path:
    """A PEFT folder: each token in `after` is followed by another one, at rank len(after)."""
    rank = len(after)
    down = np.zeros((rank, HIDDEN), np.float32)
    up = np.zeros((len(TOKENS), rank), np.float32)
    for r, (token, follower) in enumerate(after.items()):
        down[r, token] = 1.0
        up[followers()[token], r] -= 1.0
        up[follower, r] += 1.0
    folder.mkdir()
    save_file(
        {
            "base_model.model.lm_head.lora_A.weight": down,
            "base_model.model.lm_head.lora_B.weight": up,
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["lm_head"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
