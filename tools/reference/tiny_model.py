"""Tiny random models and PEFT adapters for them, as the folders that tests read.

A module for dense_fixture.py and moe_fixture.py: it makes nothing by itself. A case is
a folder with
- base.gguf: the model, F32, without a vocabulary;
- adapter/: a PEFT adapter folder;
- expected.safetensors: every tensor that the merge changes or adds, whole, F32, with
  GGUF's names and layout; metadata: format version, sha256 of base.gguf, the case's name;
- logits.safetensors: what PEFT gives for TOKENS at run time, before any merge, F32,
  [tokens, vocabulary]; the same metadata.
"""

import hashlib
import json
import os
import shutil

# Before the imports below, which read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402

from gguf_layout import to_gguf, write_safetensors  # noqa: E402

FORMAT_VERSION = "1"
TOKENS = [3, 17, 5, 60, 22, 9, 9, 41, 0, 33, 7, 58]  # as in the tests that read logits.safetensors
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(model_class, config):
    """The same random model each time, norms and biases included."""
    torch.manual_seed(1)
    model = model_class(config).eval()
    randomize(model.named_parameters())
    return model


def randomize(parameters):
    """Random values of a size that leaves every part of a model with some influence."""
    for name, parameter in parameters:
        spread = torch.randn_like(parameter) * 0.15
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + spread if is_norm else spread


def tensors_of(model, architecture):
    """The model's tensors as GGUF has them, without an output.weight where it is the embedding."""
    tensors = to_gguf(model.state_dict(), architecture, model.config)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied:
        del tensors["output.weight"]
    return tensors


def write_base(path, architecture, model):
    """base.gguf with what a runtime needs to compute with it."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
        writer.add_rope_dimension_count(head_size)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    for name, array in tensors_of(model, architecture).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_adapter(model, config, folder):
    """A PEFT adapter for the model with random values, saved by PEFT. The model is used up."""
    torch.manual_seed(2)
    model = get_peft_model(model, config)
    randomize((name, value) for name, value in model.named_parameters() if value.requires_grad)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    sort_settings(folder)


def sort_settings(folder):
    """PEFT writes its sets of names in a random order."""
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    for name in ("target_modules", "target_parameters", "modules_to_save", "exclude_modules"):
        if isinstance(settings.get(name), list):
            settings[name].sort()
    path.write_text(json.dumps(settings, indent=2) + "\n")


def merged_by_peft(model, folder):
    """The model with the adapter of a case merged by PEFT; the model is used up. Writes logits.safetensors."""
    peft_model = PeftModel.from_pretrained(model, folder / "adapter").eval()
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        at_run_time = peft_model(tokens).logits
        merged = peft_model.merge_and_unload()
        error = (merged(tokens).logits - at_run_time).abs().max().item()
    if error > 1e-4:
        raise SystemExit(f"{folder}: the merge differs from run time by {error}")
    write_safetensors(folder / "logits.safetensors", {"logits": at_run_time[0].numpy()}, metadata_of(folder))
    return merged


def metadata_of(folder):
    """What a case's files say of it."""
    return {
        "format": FORMAT_VERSION,
        "base_sha256": hashlib.sha256((folder / "base.gguf").read_bytes()).hexdigest(),
        "case": folder.name,
    }


def write_expected(folder, base, merged):
    """expected.safetensors: what of `merged` differs from `base`, both {GGUF name: array}."""
    changed = {
        name: array for name, array in merged.items() if name not in base or not np.array_equal(base[name], array)
    }
    write_safetensors(folder / "expected.safetensors", changed, metadata_of(folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {len(changed)} tensors change, {size // 1000} kB")


def empty_folder(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def make_case(folder, architecture, make_model, **settings):
    """A case whose adapter PEFT makes from a LoraConfig, and whose merge is PEFT's."""
    empty_folder(folder)
    model = make_model()
    base = tensors_of(model, architecture)
    write_base(folder / "base.gguf", architecture, model)
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    save_adapter(model, config, folder / "adapter")
    merged = merged_by_peft(make_model(), folder)
    write_expected(folder, base, tensors_of(merged, architecture))
