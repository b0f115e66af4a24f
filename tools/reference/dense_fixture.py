"""Tiny dense models with PEFT adapters, each for a trap in names, layout or arithmetic.

From nothing but fixed random seeds; what a case folder holds is told in tiny_model.py.
    python dense_fixture.py OUT
makes
    OUT/gpt2            Conv1D weights, fan_in_fan_out, a fused qkv
    OUT/gpt2_dora       the same with DoRA, and with trained biases (bias="all")
    OUT/phi3            fused qkv_proj and gate_up_proj
    OUT/qwen2           biases of q, k and v; all biases trained (bias="all")
    OUT/qwen2_lora_only only the biases of the targeted layers trained (bias="lora_only")
    OUT/qwen2_lora_bias a bias in the adapter on top of the base's bias (lora_bias)
    OUT/qwen2_tokens    trainable_token_indices with tied embeddings
    OUT/qwen2_embedding DoRA on embed_tokens, and lm_head in modules_to_save
    OUT/llama_bias      biases of q and k under the rotary permutation (bias="all")
"""

import argparse
from pathlib import Path

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tiny_model import SHAPE, build, make_case


def gpt2():
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return build(GPT2LMHeadModel, config)


def phi3():
    return build(Phi3ForCausalLM, Phi3Config(**SHAPE, tie_word_embeddings=False))


def qwen2():
    return build(Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=False))


def qwen2_tied():
    return build(Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True))


def llama():
    return build(LlamaForCausalLM, LlamaConfig(**SHAPE, attention_bias=True, tie_word_embeddings=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    attention = ["q_proj", "k_proj", "o_proj"]

    make_case(out / "gpt2", "gpt2", gpt2, r=3, lora_alpha=6, fan_in_fan_out=True,
              target_modules=["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"])
    make_case(out / "gpt2_dora", "gpt2", gpt2, r=2, lora_alpha=4, fan_in_fan_out=True, use_dora=True,
              bias="all", target_modules=["c_attn", "c_fc"])
    make_case(out / "phi3", "phi3", phi3, r=3, lora_alpha=6,
              target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])
    make_case(out / "qwen2", "qwen2", qwen2, r=3, lora_alpha=6, bias="all", target_modules=attention)
    make_case(out / "qwen2_lora_only", "qwen2", qwen2, r=3, lora_alpha=6, bias="lora_only",
              target_modules=attention)
    make_case(out / "qwen2_lora_bias", "qwen2", qwen2, r=3, lora_alpha=6, lora_bias=True,
              target_modules=["q_proj", "k_proj", "v_proj"])
    make_case(out / "qwen2_tokens", "qwen2", qwen2_tied, r=3, lora_alpha=6, target_modules=["v_proj"],
              trainable_token_indices=[3, 9, 60])
    make_case(out / "qwen2_embedding", "qwen2", qwen2, r=3, lora_alpha=6, use_dora=True,
              target_modules=["embed_tokens", "v_proj"], modules_to_save=["lm_head"])
    make_case(out / "llama_bias", "llama", llama, r=3, lora_alpha=6, bias="all", target_modules=attention)


if __name__ == "__main__":
    main()
