"""Does llama.cpp load a GGUF model, what does it answer, and how far is it from a reference?

From: a GGUF model, optionally a GGUF LoRA file, and a reference.json (a list of prompts,
each with `tokens`, `prompt_logprobs` of tokens 2..n, `top20_ids`, `top20_logprobs` and
`greedy`, computed in float32 by transformers). It makes nothing but its output; the exit
status is 1 where a check fails.

    python llama_cpp_check.py load model.gguf
    python llama_cpp_check.py answer model.gguf --lora adapter.gguf --prompt "Who are you?"
    python llama_cpp_check.py logprobs model.gguf --reference reference.json --tolerance 0.15
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama


def open_model(arguments, context=512):
    """The model, keeping the logits of every position; raises ValueError where it cannot be loaded."""
    return Llama(
        str(arguments.model),
        lora_path=str(arguments.lora) if arguments.lora else None,
        lora_scale=arguments.scale,
        n_ctx=context,
        n_batch=context,
        n_threads=arguments.threads,
        logits_all=True,
        verbose=arguments.verbose,
    )


def logprobs_of(model, tokens):
    """[len(tokens), n_vocab]: log-probabilities of what follows each token."""
    model.reset()
    model.eval(tokens)
    logits = np.asarray(model.scores[: len(tokens)], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def load(arguments):
    """Load the model and compute one token."""
    model = open_model(arguments)
    token = max(model.token_bos(), 0)
    following = int(logprobs_of(model, [token])[0].argmax())
    print(f"loaded; after token {token} comes {following} ({model.detokenize([following])!r})")
    return True


def answer(arguments):
    """Print the model's greedy answer to a prompt in its own chat template (or ChatML)."""
    model = open_model(arguments, context=2048)
    if arguments.chatml:
        # The template of SmolLM2 adds a system message, which its reference data does not have.
        text = f"<|im_start|>user\n{arguments.prompt}<|im_end|>\n<|im_start|>assistant\n"
        tokens = model.tokenize(text.encode(), add_bos=False, special=True)
        reply = model.create_completion(
            tokens, max_tokens=arguments.max_tokens, temperature=0.0, repeat_penalty=1.0
        )
        print(reply["choices"][0]["text"])
        return True
    reply = model.create_chat_completion(
        [{"role": "user", "content": arguments.prompt}],
        max_tokens=arguments.max_tokens,
        temperature=0.0,
        repeat_penalty=1.0,
    )
    print(reply["choices"][0]["message"]["content"])
    return True


def logprobs(arguments):
    """Print the difference from a reference; True if its mean over all prompts is small enough."""
    model = open_model(arguments)
    top, prompts, agreeing, drawn = [], [], 0, 0
    for entry in json.loads(arguments.reference.read_text()):
        tokens = entry["tokens"]
        computed = logprobs_of(model, tokens)
        top.append(np.abs(computed[-1, entry["top20_ids"]] - entry["top20_logprobs"]))
        prompts.append(np.abs(computed[np.arange(len(tokens) - 1), tokens[1:]] - entry["prompt_logprobs"]))
        # The reference's own tokens are fed, so that one other choice does not change all that follow.
        computed = logprobs_of(model, tokens + entry["greedy"])[len(tokens) - 1 : -1]
        same = int((computed.argmax(axis=1) == entry["greedy"]).sum())
        agreeing, drawn = agreeing + same, drawn + len(entry["greedy"])
        print(
            f"top 20: mean {top[-1].mean():.4f} worst {top[-1].max():.4f} | "
            f"prompt: mean {prompts[-1].mean():.4f} worst {prompts[-1].max():.4f} | "
            f"greedy: {same} of {len(entry['greedy'])} | {entry['prompt'][:40]!r}"
        )
    top, prompts = np.concatenate(top), np.concatenate(prompts)
    print(f"top 20: mean {top.mean():.4f} worst {top.max():.4f} (tolerance of the mean: {arguments.tolerance})")
    print(f"prompt: mean {prompts.mean():.4f} worst {prompts.max():.4f}")
    print(f"greedy: {agreeing} of {drawn}")
    return top.mean() <= arguments.tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for run in (load, answer, logprobs):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("model", type=Path)
        command.add_argument("--lora", type=Path, help="a GGUF LoRA file")
        command.add_argument("--scale", type=float, default=1.0, help="of the LoRA")
        command.add_argument("--threads", type=int)
        command.add_argument("--verbose", action="store_true", help="llama.cpp's own log")
    commands.choices["answer"].add_argument("--prompt", required=True)
    commands.choices["answer"].add_argument("--max-tokens", type=int, default=64)
    commands.choices["answer"].add_argument(
        "--chatml", action="store_true", help="ChatML without a system message, whatever the model's template says"
    )
    commands.choices["logprobs"].add_argument("--reference", type=Path, required=True)
    commands.choices["logprobs"].add_argument("--tolerance", type=float, default=0.15)
    arguments = parser.parse_args()
    sys.exit(0 if arguments.run(arguments) else 1)


if __name__ == "__main__":
    main()
