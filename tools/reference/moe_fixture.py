"""Tiny mixture-of-experts models with PEFT adapters in every form that PEFT has given them.

From nothing but fixed random seeds; what a case folder holds is told in tiny_model.py.
Mixtral has architecture llama in GGUF, Qwen3-MoE qwen3moe. Run
    python moe_fixture.py OUT
which makes
    OUT/mixtral_modules      one LoRA an expert and projection (w1 gate, w2 down, w3 up), the
                             router and attention, under the names of transformers 4
    OUT/qwen3moe_modules     the same under Qwen's names, for some experts of one layer only
    OUT/mixtral_parameters   target_parameters: gate_up_proj and down_proj of one module
    OUT/qwen3moe_parameters  target_parameters: down_proj alone, the router, rsLoRA
    OUT/qwen3moe_gate_up     target_parameters: gate_up_proj alone
    OUT/mixtral_converted    target_modules w1, w2, w3 as PEFT translates them on transformers 5,
                             with twice the rank and alpha for the fused gate_up_proj
The adapters under old names are written here by hand, as transformers 4 is needed to train
one, and merged in numpy; PEFT's own translation of the first is compared with that.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from gguf_layout import permute_rows
from tiny_model import (
    SHAPE,
    build,
    empty_folder,
    make_case,
    merged_by_peft,
    sort_settings,
    tensors_of,
    write_base,
    write_expected,
)

EXPERTS = 4
HIDDEN = SHAPE["hidden_size"]
FFN = SHAPE["intermediate_size"]
HEADS = SHAPE["num_attention_heads"]
RANK = 2
ALPHA = 6


def mixtral():
    config = MixtralConfig(
        **SHAPE, num_local_experts=EXPERTS, num_experts_per_tok=2, head_dim=8, tie_word_embeddings=False
    )
    return build(MixtralForCausalLM, config)


def qwen3moe():
    # Heads of 16: q has more rows than the hidden size.
    config = Qwen3MoeConfig(
        **SHAPE, num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=FFN, head_dim=16,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], tie_word_embeddings=False,
    )
    return build(Qwen3MoeForCausalLM, config)


def make_old_names_case(folder, architecture, make_model, target_modules, modules):
    """A case with the given (module name, GGUF name, expert or None, inputs, outputs)."""
    empty_folder(folder)
    model = make_model()
    base = tensors_of(model, architecture)
    write_base(folder / "base.gguf", architecture, model)
    merged = {name: array.copy() for name, array in base.items()}
    torch.manual_seed(2)
    saved = {}
    for module, name, expert, inputs, outputs in modules:
        a = torch.randn(RANK, inputs) * 0.15
        b = torch.randn(outputs, RANK) * 0.15
        saved[f"base_model.model.{module}.lora_A.weight"] = a
        saved[f"base_model.model.{module}.lora_B.weight"] = b
        delta = ALPHA / RANK * b.double().numpy() @ a.double().numpy()
        if architecture == "llama" and ".attn_q." in name:
            delta = permute_rows(delta, HEADS)
        target = merged[name] if expert is None else merged[name][expert]
        target[:] = (target + delta).astype(np.float32)
    LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=target_modules, inference_mode=True
    ).save_pretrained(folder / "adapter")
    save_file(saved, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    sort_settings(folder / "adapter")
    write_expected(folder, base, merged)
    return merged


def mixtral_modules(folder):
    modules = []
    for layer in range(SHAPE["num_hidden_layers"]):
        block, moe = f"blk.{layer}", f"model.layers.{layer}.block_sparse_moe"
        modules.append((f"model.layers.{layer}.self_attn.q_proj", f"{block}.attn_q.weight", None, HIDDEN, HIDDEN))
        modules.append((f"{moe}.gate", f"{block}.ffn_gate_inp.weight", None, HIDDEN, EXPERTS))
        for expert in range(EXPERTS):
            name = f"{moe}.experts.{expert}"
            modules.append((f"{name}.w1", f"{block}.ffn_gate_exps.weight", expert, HIDDEN, FFN))
            modules.append((f"{name}.w2", f"{block}.ffn_down_exps.weight", expert, FFN, HIDDEN))
            modules.append((f"{name}.w3", f"{block}.ffn_up_exps.weight", expert, HIDDEN, FFN))
    merged = make_old_names_case(folder, "llama", mixtral, ["w1", "w2", "w3", "gate", "q_proj"], modules)
    by_peft = tensors_of(merged_by_peft(mixtral(), folder / "adapter"), "llama")
    worst = max(np.abs(by_peft[name] - merged[name]).max() for name in merged)
    if worst > 1e-6:
        raise SystemExit(f"{folder}: PEFT's translation of the old names differs by {worst}")


def qwen3moe_modules(folder):
    modules = []
    for expert in (0, 2):
        name = f"model.layers.1.mlp.experts.{expert}"
        modules.append((f"{name}.gate_proj", "blk.1.ffn_gate_exps.weight", expert, HIDDEN, FFN))
        modules.append((f"{name}.down_proj", "blk.1.ffn_down_exps.weight", expert, FFN, HIDDEN))
    pattern = r".*layers\.1\.mlp\.experts\.(0|2)\.(gate_proj|down_proj)"
    make_old_names_case(folder, "qwen3moe", qwen3moe, pattern, modules)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out

    mixtral_modules(out / "mixtral_modules")
    qwen3moe_modules(out / "qwen3moe_modules")
    make_case(out / "mixtral_parameters", "llama", mixtral, r=3, lora_alpha=6, target_modules=["q_proj"],
              target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    make_case(out / "qwen3moe_parameters", "qwen3moe", qwen3moe, r=3, lora_alpha=3, use_rslora=True,
              target_modules=["v_proj"], target_parameters=["mlp.experts.down_proj", "mlp.gate.weight"])
    make_case(out / "qwen3moe_gate_up", "qwen3moe", qwen3moe, r=2, lora_alpha=4, target_modules=[],
              target_parameters=["mlp.experts.gate_up_proj"])
    make_case(out / "mixtral_converted", "llama", mixtral, r=2, lora_alpha=4, target_modules=["w1", "w2", "w3"])


if __name__ == "__main__":
    main()
