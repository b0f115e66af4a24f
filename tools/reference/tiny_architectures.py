"""Tiny random models of every architecture that the engine runs, with llama.cpp's logits.

From nothing but fixed random seeds and llama.cpp. Run
    python tiny_architectures.py ../../crates/polylora-engine/tests/data/architectures
with the packages numpy, gguf, safetensors and llama-cpp-python of requirements.txt. It makes
    OUT/<case>.gguf                  the model; random, without a vocabulary of text
    OUT/<case>.<adapter>.lora.gguf   GGUF LoRA adapters for some of them
    OUT/<case>.safetensors           the logits of every run of the case, F32 [tokens, vocabulary]
    OUT/cases.json                   every run: files, tokens, keys of its logits, tolerances
For each run there are two sets of logits from llama.cpp: of the file itself, where llama.cpp
rounds activations for every type but F32, and of the same model with each tensor dequantized to
F32. The latter is compared with exact_forward.py before anything is written: its distance
from it gives the tolerances. Each feature that a case is there for is changed once, and the
case is refused unless that moves its logits far beyond the tolerance.

What llama.cpp (of llama-cpp-python 0.3.36) does not honour, so that references do not either:
`attention.sliding_window` of llama, qwen2 and phi3 (the loader of phi3 says so in a
warning, the others do not read it). It is in the cases llama_head_dim, qwen2 and phi3_partial_rotary.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from safetensors.numpy import save_file

from architecture_cases import CASES, kind_of
from exact_forward import Forward
from llama_cpp_logits import TYPES, dequantize, logits, quantize


def add_key(writer, key, value):
    """The types that converters write these keys with."""
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](key, value)


def write_gguf(path, architecture, keys, tensors):
    """`tensors`: {name: (blocks as uint8, type, numpy shape)}."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add_key(writer, key, value)
    for name, (blocks, type_name, shape) in tensors.items():
        # The type's number, as the package does not know every type.
        writer.add_tensor_info(name, shape, np.dtype(np.float32), blocks.nbytes, TYPES[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for blocks, _, _ in tensors.values():
        writer.write_tensor_data(blocks)
    writer.close()


def write_model(path, case, keys, tensors):
    keys = {f"{case.architecture}.{key}": value for key, value in keys.items()}
    keys = {"general.name": case.name, "tokenizer.ggml.model": "none"} | keys
    write_gguf(path, case.architecture, keys, tensors)


def as_f32(tensors):
    """What a model means: {name: float32 array}."""
    return {name: dequantize(blocks, kind, shape) for name, (blocks, kind, shape) in tensors.items()}


def stored_f32(values):
    return {name: (quantize(array, "F32"), "F32", array.shape) for name, array in values.items()}


def make_adapter(case, adapter, values):
    """{tensor name: (A, B)} in numpy's order of axes; a stack of experts has one pair each."""
    rng, pairs = case.random(adapter.name), {}
    for name, array in values.items():
        if kind_of(name) not in adapter.kinds or not name.endswith(".weight"):
            continue
        *experts, rows, columns = array.shape
        # The router, and what it reads, get little, so that its choices stay clear.
        strength = 0.05 if kind_of(name) == "ffn_gate_inp" else 0.5
        if name == "token_embd.weight":
            a = rng.standard_normal((rows, adapter.rank))
            b = rng.standard_normal((columns, adapter.rank)) * strength / adapter.rank**0.5
        else:
            a = rng.standard_normal((*experts, adapter.rank, columns)) / columns**0.5
            b = rng.standard_normal((*experts, rows, adapter.rank)) * strength / adapter.rank**0.5
        if kind_of(name) in ("attn_output", "ffn_down_exps"):
            b[..., : case.experts, :] *= 0.1
        pairs[name] = a.astype(np.float32), b.astype(np.float32)
    return pairs


def write_adapter(path, case, adapter, pairs):
    keys = {"general.type": "adapter", "general.name": f"{case.name} {adapter.name}", "adapter.type": "lora"}
    if adapter.alpha is not None:
        keys["adapter.lora.alpha"] = adapter.alpha
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    write_gguf(path, case.architecture, keys, stored_f32(tensors))


def changed(keys, values, changes):
    """The model with the changes of a feature (see Case)."""
    keys, values = dict(keys), dict(values)
    for what, change in changes.items():
        names = [name for name in values if kind_of(name) == what or name == what]
        for name in names:
            if change is None:
                del values[name]
            else:
                values[name] = (values[name] * change).astype(np.float32)
        if not names and change is None:
            del keys[what]
        elif not names:
            keys[what] = change
    return keys, values


def round_up(value):
    """To two digits, so that the committed tolerances do not look more exact than they are."""
    return float(f"{value * 1.05:.1e}")


def make_case(case, out, scratch):
    """Write the case's files; returns its entries of cases.json."""
    tokens, keys = case.tokens(), case.keys()
    tensors = {
        name: (quantize(array, case.type_of(name)), case.type_of(name), array.shape)
        for name, array in case.tensors().items()
    }
    values = as_f32(tensors)
    model = out / f"{case.name}.gguf"
    write_model(model, case, keys, tensors)
    plain = scratch / "f32.gguf"
    write_model(plain, case, keys, stored_f32(values))
    all_f32 = all(kind == "F32" for _, kind, _ in tensors.values())

    # Name of the run, context size, adapter, the user's scale.
    runs = [(name or "base", n_ctx, None, 1.0) for name, n_ctx in case.contexts.items()]
    for adapter in case.adapters:
        runs += [(f"{adapter.name}_{scale:g}", 256, adapter, scale) for scale in (1.0, 0.5)]
    entries, references, seen = [], {}, {}
    for name, n_ctx, adapter, scale in runs:
        path, pairs, product_scale = None, {}, 1.0
        if adapter:
            path = out / f"{case.name}.{adapter.name}.lora.gguf"
            pairs = make_adapter(case, adapter, values)
            write_adapter(path, case, adapter, pairs)
            product_scale = scale * (adapter.alpha / adapter.rank if adapter.alpha else 1.0)
        forward = Forward(case.architecture, keys, values, n_ctx, pairs, product_scale)
        exact = forward.logits(tokens)
        tight = logits(plain, tokens, n_ctx, path, scale)
        loose = tight if all_f32 else logits(model, tokens, n_ctx, path, scale)
        error, rounding = np.abs(tight - exact).max(), np.abs(loose - tight).max()
        rounding_rms = float(np.sqrt(np.square(loose - tight).mean()))
        # Of the same order as the spread: then the two computed different things.
        if error > 0.01 or rounding > 0.5 * tight.std():
            raise SystemExit(f"{case.name} {name}: off by {error:.2g} in F32, {rounding:.2g} as stored")
        if forward.router_gap < 0.15:
            raise SystemExit(f"{case.name} {name}: experts chosen by {forward.router_gap:.2g} only")
        for other, array in seen.items():
            if np.abs(array - tight).max() < 0.1:
                raise SystemExit(f"{case.name}: the runs {name} and {other} are the same")
        seen[name] = tight
        tolerance_f32 = max(1e-3, round_up(1.5 * error))
        key, key_f32 = (f"{name}.f32",) * 2 if all_f32 else (name, f"{name}.f32")
        references |= {key: loose, key_f32: tight}
        entries.append({
            "name": case.name if name == "base" else f"{case.name}/{name}",
            "architecture": case.architecture,
            "purpose": case.purpose,
            "model": model.name,
            "types": sorted({kind for _, kind, _ in tensors.values()}),
            "adapter": path and path.name,
            "scale": scale,
            "context": n_ctx,
            "tokens": tokens,
            "reference": f"{case.name}.safetensors",
            "logits": key,
            "logits_f32": key_f32,
            "tolerance": tolerance_f32 if all_f32 else round_up(2 * rounding),
            "tolerance_rms": tolerance_f32 if all_f32 else round_up(2 * rounding_rms),
            "tolerance_f32": tolerance_f32,
        })  # fmt: skip
        print(
            f"{entries[-1]['name']:32} spread {tight.std():5.2f}  largest {np.abs(tight).max():5.1f}  "
            f"from float64 {error:.1e}  as stored {rounding:.1e} (rms {rounding_rms:.1e})"
        )
    n_ctx = runs[0][1]
    for feature, changes in (case.features | case.ignored).items():
        other_keys, other_values = changed(keys, values, changes)
        write_model(plain, case, other_keys, stored_f32(other_values))
        difference = np.abs(logits(plain, tokens, n_ctx) - seen[runs[0][0]]).max()
        print(f"    {feature}: changes logits by {difference:.2g}")
        if feature in case.ignored and difference > 0:
            raise SystemExit(f"{case.name}: llama.cpp does not ignore {feature}")
        if feature in case.features and difference < 0.05:
            raise SystemExit(f"{case.name}: {feature} does not matter")
    path = out / f"{case.name}.safetensors"
    save_file(references, path)
    path.chmod(model.stat().st_mode)  # the package lets its owner alone read it
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", help="make these cases alone, and no cases.json")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    entries = []
    with TemporaryDirectory() as scratch:
        for case in CASES:
            if not arguments.only or case.name in arguments.only:
                entries += make_case(case, arguments.out, Path(scratch))
    if arguments.only:
        return
    unused = TYPES.keys() - {kind for entry in entries for kind in entry["types"]}
    if unused:
        raise SystemExit(f"no case has {sorted(unused)}")
    # An entry a line, so that a change can be read.
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (arguments.out / "cases.json").write_text(f"[\n{lines}\n]\n")
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{len(entries)} runs, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
