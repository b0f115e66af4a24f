"""The types that llama-quantize gives the tensors of small models, for each of its mixtures.

From: a built llama-quantize, whose `--dry-run` names the type of every tensor. Makes one JSON
file for each model of MODELS:

    {"metadata": {key: value}, "tensors": [[name, [columns, rows, ..]], ..],
     "letters": {"a": "Q4_K", ..}, "types": {"Q4_K_M": "aab..", "Q4_K_M imatrix": .., ..},
     "needs": ["IQ1_S", ..]}

One letter a tensor, and null where llama-quantize has no type for one of them. A run with --imatrix
or --pure that chooses the same types as the one without is left out. "needs" are the mixtures that
need an importance matrix. The models hold no weights worth the name: only names, shapes and
metadata decide, and the tensors are in no particular order, as that must not decide.

    python mixtures.py path/to/llama-quantize crates/polylora-adapter/tests/data/mixtures
"""

import argparse
import json
import random
import re
import string
import struct
import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np

LETTERS = string.ascii_lowercase + string.ascii_uppercase
LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\w+), size = .*?(?:\((\w+)\))?$", re.M)


def llama(layers, columns=256, hidden=512, heads=(8, 2), vocabulary=8, output=True, architecture="llama", **more):
    """A model of the usual shape -> (metadata, [(name, (columns, rows, ..))])."""
    query_rows, value_rows = 8 * heads[0], 8 * heads[1]
    metadata = general(architecture, layers, columns, hidden, heads) | more
    tensors = [("token_embd.weight", (columns, vocabulary)), ("output_norm.weight", (columns,))]
    if output:
        tensors.append(("output.weight", (columns, vocabulary)))
    for i in range(layers):
        tensors += [
            (f"blk.{i}.attn_norm.weight", (columns,)),
            (f"blk.{i}.attn_q.weight", (columns, query_rows)),
            (f"blk.{i}.attn_k.weight", (columns, value_rows)),
            (f"blk.{i}.attn_v.weight", (columns, value_rows)),
            (f"blk.{i}.attn_output.weight", (columns, 4)),
            (f"blk.{i}.ffn_gate.weight", (columns, 6)),
            (f"blk.{i}.ffn_up.weight", (columns, 6)),
            (f"blk.{i}.ffn_down.weight", (hidden, 4)),
        ]
    return metadata, tensors


def general(architecture, layers, columns, hidden, heads):
    """The metadata that llama.cpp asks of every model."""
    return {
        "general.architecture": architecture,
        f"{architecture}.block_count": layers,
        f"{architecture}.context_length": 64,
        f"{architecture}.embedding_length": columns,
        f"{architecture}.feed_forward_length": hidden,
        f"{architecture}.attention.head_count": heads[0],
        f"{architecture}.attention.head_count_kv": heads[1],
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.attention.layer_norm_epsilon": 1e-5,
    }


def without(model, *endings):
    metadata, tensors = model
    return metadata, [tensor for tensor in tensors if not tensor[0].endswith(endings)]


def keeping(model, *parts):
    metadata, tensors = model
    return metadata, [tensor for tensor in tensors if any(part in tensor[0] for part in parts)]


def experts(count, layers, architecture="llama", heads=(8, 2), **more):
    """Mixtral: routers and stacks of experts in place of the hidden layers; one shared expert."""
    more = {f"{architecture}.expert_count": count, f"{architecture}.expert_used_count": 2} | more
    metadata, tensors = without(
        llama(layers, architecture=architecture, heads=heads, **more),
        "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight",
    )
    for i in range(layers):
        tensors += [
            (f"blk.{i}.ffn_gate_inp.weight", (256, count)),
            (f"blk.{i}.ffn_gate_exps.weight", (256, 2, count)),
            (f"blk.{i}.ffn_up_exps.weight", (256, 2, count)),
            (f"blk.{i}.ffn_down_exps.weight", (256, 2, count)),
            (f"blk.{i}.ffn_down_shexp.weight", (512, 2)),
        ]
    return metadata, tensors


def qwen2():
    metadata, tensors = llama(9, architecture="qwen2", heads=(4, 4), hidden=768)
    for i in range(9):
        tensors += [(f"blk.{i}.attn_q.bias", (32,)), (f"blk.{i}.attn_v.bias", (32,))]
    return metadata, tensors


def gemma2():
    metadata, tensors = llama(8, architecture="gemma2", output=False, heads=(8, 4), hidden=576)
    metadata["gemma2.attention.sliding_window"] = 32
    for i in range(8):
        tensors += [(f"blk.{i}.post_attention_norm.weight", (256,)), (f"blk.{i}.post_ffw_norm.weight", (256,))]
    return metadata, tensors


def phi3():
    metadata, tensors = without(
        llama(16, architecture="phi3", hidden=256), "attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight"
    )
    metadata["phi3.rope.dimension_count"] = 32
    tensors += [(f"blk.{i}.attn_qkv.weight", (256, 24)) for i in range(16)]
    return metadata, tensors


def falcon():
    metadata, tensors = without(
        llama(32, architecture="falcon", heads=(8, 1)),
        "attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight",
    )
    tensors += [(f"blk.{i}.attn_qkv.weight", (256, 10)) for i in range(32)]
    return metadata, tensors


def latent(architecture, layers, **more):
    """What these two ask for besides."""
    metadata, tensors = experts(4, layers, architecture=architecture)
    values = {
        "attention.key_length_mla": 32,
        "attention.value_length_mla": 32,
        "attention.q_lora_rank": 64,
        "attention.kv_lora_rank": 64,
        "ssm.conv_kernel": 4,
        "kda.head_dim": 32,
        "kda.gate_lower_bound": -5.0,
        "expert_feed_forward_length": 256,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "leading_dense_block_count": 1,
    } | more
    metadata |= {f"{architecture}.{key}": value for key, value in values.items()}
    tensors += [(f"blk.{i}.attn_k_b.weight", (256, 2, 2)) for i in range(layers)]
    return metadata, tensors


def glm5_next():
    metadata, tensors = latent("glm5-next", 2)
    values = {
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": 32,
        "attention.indexer.top_k": 2,
        "attention.indexer.kpool": 2,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-5,
    }
    metadata |= {f"glm5-next.{key}": value for key, value in values.items()}
    names = """hc_attn indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate indexer_compressor_ape
        ssm_f_a ssm_f_b ssm_g_a ssm_g_b ssm_beta attn_kv_a_mqa attn_v_b attn_q_a attn_q_b nextn.eh_proj ssm_in""".split()
    return metadata, tensors + [(f"blk.1.{name}.weight", (256, 2)) for name in names]


def granite_switch():
    metadata, tensors = llama(7, architecture="graniteswitch")
    values = {
        "logit_scale": 1.0,
        "adapters.count": 1,
        "adapters.lora_rank": 4,
        "adapters.token_ids_activate": [1],
        "adapters.token_ids_substitute": [2],
    }
    return metadata | {f"graniteswitch.{key}": value for key, value in values.items()}, tensors


def deci():
    """Heads that differ by layer: the first layer's decide. Of 80 layers two are kept."""
    metadata, tensors = keeping(llama(80, architecture="deci"), "blk.3.", "blk.40.")
    metadata["deci.attention.head_count"] = [8] * 80
    metadata["deci.attention.head_count_kv"] = [1] + [8] * 79
    return metadata, tensors


def llama_65b():
    """As many heads of keys as of queries, which is not said."""
    metadata, tensors = keeping(llama(80), "blk.30.")
    del metadata["llama.attention.head_count_kv"]
    return metadata, tensors


def deepseek2():
    """Latent attention: keys and values in one, with stacks that are no experts."""
    metadata, tensors = without(
        experts(4, 3, architecture="deepseek2"), "attn_k.weight", "attn_v.weight", "attn_q.weight"
    )
    metadata |= {
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.attention.q_lora_rank": 64,
        "deepseek2.attention.kv_lora_rank": 64,
        "deepseek2.expert_feed_forward_length": 256,
        "deepseek2.expert_shared_count": 1,
        "deepseek2.expert_weights_scale": 1.0,
        "deepseek2.rope.dimension_count": 32,
        "deepseek2.rope.scaling.yarn_log_multiplier": 0.1,
    }
    for i in range(3):
        tensors += [
            (f"blk.{i}.attn_q_a.weight", (256, 8)),
            (f"blk.{i}.attn_q_b.weight", (64, 8)),
            (f"blk.{i}.attn_kv_b.weight", (64, 8)),
            (f"blk.{i}.attn_k_b.weight", (64, 8, 2)),
        ]
    return metadata, tensors


def kept():
    """What keeps its type, by name or by shape."""
    metadata, tensors = llama(1)
    names = """position_embd token_types blk.0.altup_router blk.0.laurel_l per_layer_model_proj
        blk.0.ssm_conv1d blk.0.shortconv.conv blk.0.indexer.k_proj blk.0.indexer.q_proj blk.0.time_mix_first
        blk.0.time_mix_w0 blk.0.time_mix_w1 blk.0.time_mix_w2 blk.0.time_mix_v0 blk.0.time_mix_v1 blk.0.time_mix_v2
        blk.0.time_mix_a0 blk.0.time_mix_a1 blk.0.time_mix_a2 blk.0.time_mix_g1 blk.0.time_mix_g2
        blk.0.time_mix_decay_w1 blk.0.time_mix_decay_w2 blk.0.time_mix_lerp_fused enc.blk.0.attn_rel_b
        v.position_embd v.sam.pos_embd v.sam.neck.0 v.sam.net_2 blk.0.attn.rel_pos v.patch_embd v.patch_merger
        a.rvq.codebook mm.a.code_embd blk.0.ffn_gate_tid2eid blk.0.ffn_gate_inp blk.0.attn_q_norm blk.0.hc_attn
        blk.0.attn_k_b blk.0.ssm_in blk.0.time_mix_key per_layer_token_embd blk.0.ffn_gate_inp_shexp cls
        enc.blk.0.attn_v enc.blk.0.ffn_down""".split()
    tensors += [(f"{name}.weight", (256, 2)) for name in names]
    tensors += [("blk.0.one_row.weight", (256, 1)), ("blk.0.one_column.weight", (1, 256)), ("blk.0.scales", (256, 2))]
    return metadata, tensors


# Made so that every rule of llama-quant.cpp applies in one of them and fails in another.
MODELS = {
    "llama": lambda: llama(18),
    "llama-tied": lambda: llama(4, output=False),
    "llama-same-heads": lambda: llama(17, heads=(4, 4)),
    # Rows that are whole blocks of 64, of 32 and of neither.
    "llama-576": lambda: llama(3, columns=576, hidden=1536, heads=(9, 3)),
    "llama-96": lambda: llama(3, columns=96, hidden=100, output=False),
    # 80 layers: counted, but most tensors would only repeat the others.
    "llama-70b": lambda: keeping(llama(80, heads=(8, 4)), "attn_v", "attn_q.weight"),
    "mixtral-8": lambda: experts(8, 9),
    "mixtral-4": lambda: experts(4, 3, heads=(8, 4)),
    "qwen2": qwen2,
    "qwen2-70b": lambda: keeping(llama(80, architecture="qwen2", heads=(4, 4)), "attn_v"),
    "gemma2": gemma2,
    "phi3": phi3,
    "falcon": falcon,
    "deepseek2": deepseek2,
    # Architectures with a word of their own in llama-quant.cpp, or another count of layers.
    "deci": deci,
    "jais2": lambda: keeping(llama(68, architecture="jais2"), "blk.30."),
    "olmo": lambda: keeping(llama(80, architecture="olmo"), "blk.30."),
    "llama-embed": lambda: keeping(llama(80, architecture="llama-embed", heads=(8, 4)), "blk.30."),
    # Almost a 70B: a layer less, a layer that only looks ahead, heads that share nothing.
    "llama-79": lambda: keeping(llama(79, heads=(8, 4)), "blk.30."),
    "llama-65b": llama_65b,
    "llama-81": lambda: keeping(llama(81, heads=(8, 4), **{"llama.nextn_predict_layers": 1}), "blk.30."),
    "bailingmoe3": lambda: latent("bailingmoe3", 3, **{"kda.safe_gate": True}),
    "glm5-next": glm5_next,
    "graniteswitch": granite_switch,
    "nanbeige": lambda: llama(8, architecture="nanbeige", **{"nanbeige.num_loops": 2}),
    "kept": kept,
}


def write_model(path, metadata, tensors):
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, shape in tensors:
        writer.add_tensor(name, np.zeros(shape[::-1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_imatrix(path):
    """A file of one entry: that there is one decides, not what it says."""
    name, dataset = b"none", b"none"
    path.write_bytes(
        struct.pack("<ii", 1, len(name)) + name + struct.pack("<iif", 1, 1, 1.0)
        + struct.pack("<ii", 1, len(dataset)) + dataset
    )  # fmt: skip


def mixtures(program):
    """The names in the program's own help, but for second names of the same."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    return re.findall(r"^ +\d+ +or +(\w+) *: (?!alias)", text, re.M)


def chosen(program, model, mixture, *options):
    """({tensor: type}, needs an imatrix?), or None where llama-quantize has no type for one."""
    run = subprocess.run(
        [program, "--dry-run", *options, model, mixture], capture_output=True, text=True
    )
    text = run.stdout + run.stderr
    if run.returncode != 0:
        if "no tensor type fallback" in text:
            return None
        raise SystemExit(f"{model} {mixture} {options}: {text[-2000:]}")
    types = {name: (to or own).upper() for name, own, to in LINE.findall(text)}
    return types, "will require an imatrix" in text


def table(program, folder, name, metadata, tensors):
    model, imatrix = folder / f"{name}.gguf", folder / "imatrix.dat"
    write_model(model, metadata, tensors)
    write_imatrix(imatrix)
    letters, types, needs = {}, {}, []

    def spell(mixture, *options):
        choice = chosen(program, model, mixture, *options)
        if choice is None:
            return None
        choice, needs_imatrix = choice
        if len(choice) != len(tensors):
            raise SystemExit(f"{name}: {len(tensors)} tensors, {len(choice)} in the output")
        if needs_imatrix and not options:
            needs.append(mixture)
        return "".join(letters.setdefault(choice[tensor], LETTERS[len(letters)]) for tensor, _ in tensors)

    for mixture in mixtures(program):
        types[mixture] = spell(mixture)
        for option, arguments in {"imatrix": ["--imatrix", imatrix], "pure": ["--pure"]}.items():
            other = spell(mixture, *arguments)
            if other != types[mixture]:
                types[f"{mixture} {option}"] = other
    return {
        "metadata": metadata,
        "tensors": tensors,
        "letters": {letter: ty for ty, letter in letters.items()},
        "types": types,
        "needs": needs,
    }


def dump(data):
    """JSON with a line for each tensor and each mixture."""
    def lines(items):
        return ",\n".join(f"  {item}" for item in items)

    def entries(of):
        return lines(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in of.items())

    return (
        f'{{\n"metadata": {{\n{entries(data["metadata"])}\n}},\n'
        f'"tensors": [\n{lines(map(json.dumps, data["tensors"]))}\n],\n'
        f'"letters": {json.dumps(data["letters"])},\n'
        f'"types": {{\n{entries(data["types"])}\n}},\n'
        f'"needs": {json.dumps(data["needs"])}\n}}\n'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="llama-quantize")
    parser.add_argument("out", type=Path, help="folder for the JSON files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            metadata, tensors = make()
            random.Random(name).shuffle(tensors)
            data = table(arguments.program, Path(folder), name, metadata, tensors)
            (arguments.out / f"{name}.json").write_text(dump(data))
            print(name, len(tensors), "tensors,", len(data["types"]), "choices")


if __name__ == "__main__":
    main()
