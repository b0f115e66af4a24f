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
one, and merged in numpy; PEFT's own translation of the first is compared with that. The second,
a pattern of names, PEFT does not translate: it runs on experts taken apart again. With peft
0.19.0 in place of the one in requirements.txt,
    python moe_fixture.py OUT --swapped
makes
    OUT/mixtral_swapped      mixtral_parameters as PEFT before 0.19.1 has it: inputs for outputs
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


def not_translated(model):
    """The model as one of whose modules PEFT knows no other names."""
    model.config.model_type = "tiny"
    return model


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


class SeparateExperts(torch.nn.ModuleList):
    """Experts as transformers 4 had them: a module each, of three linear layers."""

    def __init__(self, fused):
        super().__init__()
        for gate_up, down in zip(fused.gate_up_proj.detach(), fused.down_proj.detach()):
            gate, up = gate_up.chunk(2)
            expert = torch.nn.Module()
            for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight.clone()
                setattr(expert, name, linear)
            self.append(expert)

    def forward(self, hidden, chosen, weights):
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            rows, places = torch.where(chosen == number)
            inner = torch.nn.functional.silu(expert.gate_proj(hidden[rows])) * expert.up_proj(hidden[rows])
            out.index_add_(0, rows, expert.down_proj(inner) * weights[rows, places, None])
        return out


def run_old_names(model, folder):
    """Writes the logits of PEFT on a model whose modules have the old names."""
    tokens = torch.tensor([[7, 11, 13]])
    with torch.no_grad():
        fused = model(tokens).logits
        for layer in model.model.layers:
            layer.mlp.experts = SeparateExperts(layer.mlp.experts)
        error = (model(tokens).logits - fused).abs().max().item()
    if error > 1e-5:
        raise SystemExit(f"{folder}: experts taken apart differ by {error}")
    merged_by_peft(not_translated(model), folder)


def compare_with_peft(folder, architecture, make_model, merged):
    """Whether PEFT's translation of the old names is merged into the same; and its logits."""
    by_peft = tensors_of(merged_by_peft(make_model(), folder), architecture)
    worst = max(np.abs(by_peft[name] - merged[name]).max() for name in merged)
    if worst > 1e-6:
        raise SystemExit(f"{folder}: PEFT's translation of the old names differs by {worst}")


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
    compare_with_peft(folder, "llama", mixtral, merged)


def qwen3moe_modules(folder):
    modules = []
    for expert in (0, 2):
        name = f"model.layers.1.mlp.experts.{expert}"
        modules.append((f"{name}.gate_proj", "blk.1.ffn_gate_exps.weight", expert, HIDDEN, FFN))
        modules.append((f"{name}.down_proj", "blk.1.ffn_down_exps.weight", expert, FFN, HIDDEN))
    pattern = r".*layers\.1\.mlp\.experts\.(0|2)\.(gate_proj|down_proj)"
    make_old_names_case(folder, "qwen3moe", qwen3moe, pattern, modules)
    run_old_names(qwen3moe(), folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--swapped", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out

    both = dict(r=3, lora_alpha=6, target_modules=["q_proj"],
                target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    if arguments.swapped:
        make_case(out / "mixtral_swapped", "llama", lambda: not_translated(mixtral()), **both)
        return
    mixtral_modules(out / "mixtral_modules")
    qwen3moe_modules(out / "qwen3moe_modules")
    make_case(out / "mixtral_parameters", "llama", mixtral, **both)
    make_case(out / "qwen3moe_parameters", "qwen3moe", qwen3moe, r=3, lora_alpha=3, use_rslora=True,
              target_modules=["v_proj"], target_parameters=["mlp.experts.down_proj", "mlp.gate.weight"])
    make_case(out / "qwen3moe_gate_up", "qwen3moe", qwen3moe, r=2, lora_alpha=4, target_modules=[],
              target_parameters=["mlp.experts.gate_up_proj"])
    make_case(out / "mixtral_converted", "llama", mixtral, r=2, lora_alpha=4, target_modules=["w1", "w2", "w3"])


if __name__ == "__main__":
    main()
