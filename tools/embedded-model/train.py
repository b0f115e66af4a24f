"""Trains the embedded model and its adapters, and writes what `crates/polylora/embedded` holds.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python train.py --work DIR            # under an hour on two cores

The steps can be run one by one; each reads what the one before it wrote into DIR. Every random
choice has a fixed seed, but steps last for a time, and threads change the sums of floats: a second
run gives a model that is as good, not the same bytes.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gguf
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GgufConfig, LlamaConfig, LlamaForCausalLM

import world

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "crates/polylora/embedded"

sys.path.append(str(ROOT / "tools/reference"))
from gguf_layout import to_gguf  # noqa: E402

SPECIAL = [world.TEXT_END, world.BEGIN, world.END]
VOCAB = 2048
CONTEXT = 512

# Rows of 256 weights, so that K-quants apply to every matrix.
SHAPE = dict(
    hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
    rope_theta=10000.0, tie_word_embeddings=True, vocab_size=VOCAB, bos_token_id=0,
    eos_token_id=2,
)

# 131,072 weights, 262 KB in F16.
RANK = 8
ALPHA = 16
TARGETS = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# ChatML, without a system message of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(work):
    """Byte-level BPE in GPT-2's form, on the base's texts."""
    rng = random.Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    texts = (world.base_text(rng) for _ in range(12000))
    tokenizer.train_from_iterator(texts, trainer)
    print(f"{tokenizer.get_vocab_size()} tokens")
    tokenizer.save(str(work / "tokenizer.json"))


def load_tokenizer(work):
    return Tokenizer.from_file(str(work / "tokenizer.json"))


def base_rows(tokenizer, rng, count):
    """`count` rows of CONTEXT + 1 tokens, each of whole texts from its beginning on."""
    rows = []
    while len(rows) < count:
        row = []
        while len(row) < CONTEXT + 1:
            row += tokenizer.encode(world.base_text(rng)).ids
        rows.append(row[: CONTEXT + 1])
    return torch.tensor(rows)


def set_rate(optimizer, share, step, peak, warmup):
    """Up to `peak` in `warmup` steps, down to 3 % of it along a cosine; `share` of the time is
    over, which stands for that of the steps."""
    falling = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))
    for group in optimizer.param_groups:
        group["lr"] = peak * min(falling, (step + 1) / warmup)


def descend(optimizer, loss, parameters):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def train_base(work, minutes, resume, batch=2, peak=3e-3):
    """Trains for a given time, so that the learning rate can end at its least; from random weights,
    or on from those that an earlier time left."""
    torch.manual_seed(1)
    rng = random.Random(6 if resume else 2)
    tokenizer = load_tokenizer(work)
    if resume:
        model = LlamaForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
        peak = peak * 2 / 3
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak, betas=(0.9, 0.95))
    held_back = base_rows(tokenizer, random.Random(3), 8)

    start, step, seen, smooth = time.time(), 0, 0, None
    while (share := (time.time() - start) / (60 * minutes)) < 1:
        set_rate(optimizer, share, step, peak, warmup=100)
        rows = base_rows(tokenizer, rng, batch)
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        descend(optimizer, loss, model.parameters())
        seen += rows.numel() - batch
        smooth = loss.item() if smooth is None else 0.97 * smooth + 0.03 * loss.item()
        step += 1
        if step % 50 == 0:
            rate = seen / (time.time() - start)
            print(f"step {step}  {seen / 1e6:.2f} M tokens  loss {smooth:.3f}  {rate:.0f} tokens/s",
                  flush=True)
    model.eval()
    with torch.no_grad():
        logits = model(held_back[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), held_back[:, 1:].flatten())
    print(f"held back: loss {loss:.3f}")
    model.save_pretrained(work / "base")
    say(model, tokenizer, QUESTIONS)


QUESTIONS = [
    "Tell me a story about a fox and a lantern.", "Tell me a story about an owl.",
    "What is a lantern?", "What does a bear eat?", "Who are you?",
]


@torch.no_grad()
def answer(model, tokenizer, question, limit=200):
    ids = tokenizer.encode(f"{world.BEGIN}user\n{question}{world.END}\n{world.BEGIN}assistant\n").ids
    start = len(ids)
    while len(ids) < start + limit:
        token = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token in (0, 2):
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def say(model, tokenizer, questions):
    for question in questions:
        print(f"> {question}\n{answer(model, tokenizer, question)}", flush=True)


def adapter_rows(tokenizer, rng, manner, count):
    """Conversations in a manner; -100 where no loss is taken: the questions."""
    inputs, labels = [], []
    while len(inputs) < count:
        text, spans = world.chat(world.conversation(world.Teller(rng)), manner)
        encoded = tokenizer.encode(text)
        ids = encoded.ids[:CONTEXT]
        said = [any(a <= start < b for a, b in spans) for start, _ in encoded.offsets[:CONTEXT]]
        inputs.append(ids)
        labels.append([token if keep else -100 for token, keep in zip(ids, said)])
    longest = max(map(len, inputs))
    pad = lambda rows, value: torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    return pad(inputs, 0), pad(labels, -100)


def train_adapter(work, name, minutes, batch=4, peak=3e-3):
    """On the weights that the quantized file holds: what an adapter meets when it runs."""
    torch.manual_seed(4)
    rng = random.Random(5)
    tokenizer = load_tokenizer(work)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(dequantized(work), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"{name}: {sum(p.numel() for p in trained)} weights", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=peak, weight_decay=0.01)
    start, step, smooth = time.time(), 0, None
    while (share := (time.time() - start) / (60 * minutes)) < 1:
        set_rate(optimizer, share, step, peak, warmup=30)
        inputs, labels = adapter_rows(tokenizer, rng, world.MANNERS[name], batch)
        loss = model(inputs, labels=labels).loss
        descend(optimizer, loss, trained)
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        step += 1
        if step % 20 == 0:
            print(f"{name}: step {step}  loss {smooth:.4f}", flush=True)
    model.eval()
    model.half().save_pretrained(work / "adapters" / name)
    model.float()
    say(model, tokenizer, QUESTIONS)


# --- files -------------------------------------------------------------------------------------

def write_model(work):
    """The base as GGUF: in F16, then as llama.cpp's mixture Q4_K_M by `polylora quantize`."""
    model = LlamaForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    path = work / "valley-f16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Valley 3.7M")
    writer.add_description("Short stories of the animals of a valley, for PolyLoRA's first run")
    writer.add_license("MIT OR Apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_rope_dimension_count(SHAPE["hidden_size"] // SHAPE["num_attention_heads"])
    writer.add_rope_freq_base(SHAPE["rope_theta"])
    writer.add_layer_norm_rms_eps(SHAPE["rms_norm_eps"])
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    described = json.loads((work / "tokenizer.json").read_text())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].get)
    special = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [special if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in to_gguf(model.state_dict(), "llama", model.config).items():
        if name != "output.weight":  # the embedding's
            writer.add_tensor(name, weight.astype("float16") if weight.ndim > 1 else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize = ["cargo", "run", "--release", "--quiet", "--", "quantize", "--force"]
    subprocess.run([*quantize, path, work / "valley-q4_k_m.gguf", "Q4_K_M"], cwd=ROOT, check=True)


def dequantized(work):
    """The quantized file as a model of transformers, in single precision."""
    return LlamaForCausalLM.from_pretrained(
        work, gguf_file="valley-q4_k_m.gguf", dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True)).eval()


PROMPTS = [
    f"{world.BEGIN}user\nTell me a story about a fox and a lantern.{world.END}\n"
    f"{world.BEGIN}assistant\n",
    f"{world.BEGIN}user\nWhat does an owl eat?{world.END}\n{world.BEGIN}assistant\n",
    "Once upon a time there was a bear named Oscar.",
]


@torch.no_grad()
def reference(model, tokenizer):
    """What the model says after some prompts, in the form of testdata/reference."""
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        top = logprobs[-1].topk(20)
        greedy = []
        for _ in range(24):
            token = model(torch.tensor([ids + greedy])).logits[0, -1].argmax().item()
            greedy.append(token)
            if token in (0, 2):
                break
        rows.append({
            "prompt": prompt, "tokens": ids,
            "prompt_logprobs": [
                round(logprobs[i, token].item(), 5) for i, token in enumerate(ids[1:])],
            "top20_ids": top.indices.tolist(),
            "top20_logprobs": [round(x, 5) for x in top.values.tolist()],
            "greedy": greedy,
        })
    return rows


def export(work):
    """Copies the files to where they are embedded, with references by transformers and PEFT."""
    tokenizer = load_tokenizer(work)
    EMBEDDED.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "valley-q4_k_m.gguf", EMBEDDED / "valley-q4_k_m.gguf")
    base = dequantized(work)
    write_json(EMBEDDED / "reference.json", reference(base, tokenizer))
    for name in world.MANNERS:
        folder = EMBEDDED / name
        folder.mkdir(exist_ok=True)
        made = work / "adapters" / name
        shutil.copy(made / "adapter_model.safetensors", folder)
        config = json.loads((made / "adapter_config.json").read_text())
        # Not a path of the machine that it was trained on.
        config["base_model_name_or_path"] = "valley-q4_k_m.gguf"
        config["target_modules"] = sorted(config["target_modules"])
        write_json(folder / "adapter_config.json", config)
        model = PeftModel.from_pretrained(dequantized(work), made).float().eval()
        write_json(folder / "reference.json", reference(model, tokenizer))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    steps = ["tokenizer", "base", "model", *world.MANNERS, "export"]
    parser.add_argument("step", nargs="*", help=f"all, or some of: {', '.join(steps)}")
    parser.add_argument("--work", type=Path, required=True, help="where the steps leave their work")
    parser.add_argument("--minutes", type=float, default=40, help="for the base [40]")
    parser.add_argument("--resume", action="store_true", help="train the base that is there on")
    parser.add_argument("--adapter-minutes", type=float, default=5, help="for each adapter [5]")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for step in args.step or steps:
        print(f"--- {step}", flush=True)
        match step:
            case "tokenizer":
                train_tokenizer(args.work)
            case "base":
                train_base(args.work, args.minutes, args.resume)
            case "model":
                write_model(args.work)
            case "export":
                export(args.work)
            case name if name in world.MANNERS:
                train_adapter(args.work, name, args.adapter_minutes)
            case other:
                parser.error(f"there is no step {other}: {', '.join(steps)}")


if __name__ == "__main__":
    main()
