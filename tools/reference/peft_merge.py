"""What PEFT's merge_and_unload makes of a base GGUF and an adapter, in float32.

From: a GGUF model (architecture llama, qwen2, qwen3, phi3, ...; quantized tensors are
dequantized) and a PEFT adapter folder. The merge itself is PEFT's. Two cases that it
does not cover follow what PEFT computes at run time:
- tied embeddings: an adapter on embed_tokens changes the lookup, one on lm_head changes
  the head, so the two are untied before the merge, and the result has an `output.weight`
  where they differ.
- lora_bias on a layer without a bias: the layer gets a bias of zeros first.

Compare a merged model with it (exit status 1 if a tensor is worse than the tolerance):
    python peft_merge.py base.gguf adapter/ --compare merged.gguf
Or sample it: of each tensor that the adapter changes or adds, up to 128 values, where
sample k is the element (k * 2654435761) mod n of the tensor in GGUF order:
    python peft_merge.py base.gguf adapter/ --fixture name.safetensors
Or run the base with the adapter, then merged, in float32, against a reference.json
(exit status 1 if a log-probability is further off than the tolerance):
    python peft_merge.py base.gguf adapter/ --reference adapter/reference.json
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

# Before the imports below, which read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, GgufConfig  # noqa: E402
from transformers.utils import logging  # noqa: E402

from gguf_layout import read_gguf, to_gguf, write_safetensors  # noqa: E402

FIXTURE_VERSION = "1"
SAMPLES = 128
STRIDE = 2654435761
TOLERANCE_MERGED = 1e-6  # relative, of a tensor
TOLERANCE_REFERENCE = 2e-3  # absolute, of a log-probability

logging.disable_progress_bar()


def load_base(path):
    """The GGUF as a transformers model with float32 weights."""
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    return model.eval()


def untie_head(model):
    """Give the head a copy of the embedding that it shares, so that a merge can change one of them."""
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and any(module.weight is weight for weight in embeddings):
            module.weight = torch.nn.Parameter(module.weight.detach().clone())
    model.config.tie_word_embeddings = False


def add_missing_biases(model, adapter):
    """Zero biases where the adapter has a bias of its own and the base has none."""
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():
            if name.endswith(".lora_B.bias"):
                path = name.removeprefix("base_model.model.").removesuffix(".lora_B.bias")
                layer = model.get_submodule(path)
                if layer.bias is None:
                    layer.bias = torch.nn.Parameter(torch.zeros(layer.out_features))


def apply_adapter(model, adapter):
    """The model with the adapter on it, not merged."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    if settings.get("lora_bias"):
        add_missing_biases(model, adapter)
    model = PeftModel.from_pretrained(model, adapter).eval()
    # Only now: PEFT itself ties what it puts on a tied model (trainable_token_indices, ensure_weight_tying).
    untie_head(model)
    return model


def merge(base_path, adapter):
    """-> (base tensors, merged tensors), both {GGUF name: float32 array}."""
    architecture, base = read_gguf(base_path)
    model = load_base(base_path)
    for name, array in to_gguf(model.state_dict(), architecture, model.config).items():
        if name == "output.weight" and name not in base:
            name = "token_embd.weight"
        if not np.array_equal(base[name], array):
            raise SystemExit(f"transformers and gguf read {name} differently")
    model = apply_adapter(model, adapter).merge_and_unload()
    merged = dict(base)
    merged.update(to_gguf(model.state_dict(), architecture, model.config))
    if "output.weight" not in base and np.array_equal(merged["output.weight"], merged["token_embd.weight"]):
        del merged["output.weight"]  # still tied
    return base, merged


def compare(merged, path, tolerance):
    """Print the error of every tensor in the file; True if all are within the tolerance."""
    _, found = read_gguf(path)
    worst, worst_name = 0.0, "none"
    print(f"{'||a-b||/||b||':>14} {'max|a-b|/max|b|':>16}  tensor")
    for name, values in found.items():
        if name not in merged or merged[name].shape != values.shape:
            print(f"{'not in the reference with this shape':>31}  {name} {list(values.shape)}")
            worst, worst_name = np.inf, name
            continue
        wanted = merged[name].astype(np.float64)
        difference = values.astype(np.float64) - wanted
        relative = np.linalg.norm(difference) / max(np.linalg.norm(wanted), np.finfo(np.float32).tiny)
        largest = np.abs(difference).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny)
        print(f"{relative:14.3e} {largest:16.3e}  {name}")
        if not max(relative, largest) <= worst:
            worst, worst_name = max(relative, largest), name
    for name in sorted(merged.keys() - found.keys()):
        print(f"{'missing from the file':>31}  {name}")
        worst, worst_name = np.inf, name
    print(f"worst: {worst:.3e} ({worst_name}), {len(found)} tensors, tolerance {tolerance:.0e}")
    return worst <= tolerance


def write_fixture(base_path, base, merged, adapter, path):
    """Sample every tensor that the merge changed or added."""
    samples = {}
    for name, values in merged.items():
        if name not in base or not np.array_equal(base[name], values):
            flat = values.reshape(-1)
            indices = [(k * STRIDE) % flat.size for k in range(min(SAMPLES, flat.size))]
            samples[name] = flat[indices]
    metadata = {
        "format": FIXTURE_VERSION,
        "base_sha256": hashlib.sha256(base_path.read_bytes()).hexdigest(),
        "adapter": adapter.resolve().name,
    }
    write_safetensors(path, samples, metadata)
    print(f"{path}: {len(samples)} tensors, {path.stat().st_size} bytes")


@torch.no_grad()
def check_reference(model, path, tolerance):
    """Print how far a model is from a reference.json; True if within the tolerance."""
    worst = 0.0
    for entry in json.loads(path.read_text()):
        tokens = torch.tensor([entry["tokens"]])
        logprobs = torch.log_softmax(model(tokens).logits[0], dim=-1)
        following = logprobs[-1, entry["top20_ids"]].numpy()
        prompt = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0].numpy()
        worst = max(
            worst,
            np.abs(following - np.array(entry["top20_logprobs"])).max(),
            np.abs(prompt - np.array(entry["prompt_logprobs"])).max(),
        )
    print(f"worst difference of a log-probability: {worst:.2e}")
    return worst <= tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--compare", type=Path, metavar="MERGED.gguf")
    action.add_argument("--fixture", type=Path, metavar="OUT.safetensors")
    action.add_argument("--reference", type=Path, metavar="REFERENCE.json")
    parser.add_argument("--tolerance", type=float, help="default: 1e-6 relative with --compare, 2e-3 with --reference")
    arguments = parser.parse_args()

    if arguments.reference:
        # Both ways must agree with the reference: the adapter at run time, and merged.
        model = apply_adapter(load_base(arguments.base), arguments.adapter)
        tolerance = arguments.tolerance or TOLERANCE_REFERENCE
        passed = check_reference(model, arguments.reference, tolerance)
        passed &= check_reference(model.merge_and_unload(), arguments.reference, tolerance)
        sys.exit(0 if passed else 1)
    base, merged = merge(arguments.base, arguments.adapter)
    if arguments.fixture:
        write_fixture(arguments.base, base, merged, arguments.adapter, arguments.fixture)
    elif not compare(merged, arguments.compare, arguments.tolerance or TOLERANCE_MERGED):
        sys.exit(1)


if __name__ == "__main__":
    main()
