"""Eight requests at once through eight adapters: our rate beside llama-server's, and beside ours
without adapters.

From: the program, llama.cpp's llama-server, a GGUF model and PEFT adapters for it; what is missing
of eight adapters is made from the last of them, its values moved by a few places. It converts them
for llama-server with `polylora convert`, starts both servers with the same threads and the same
context in all, and sends each the same eight greedy requests at once, in turn, new prompts in each
run. It prints a table in Markdown, then whether our answers, and how likely their tokens are held
for, were those that each request gets alone; the exit status is 1 where they were not.

    python compare.py MODEL.gguf --adapter A --adapter B --llama-bin llama.cpp/build/bin
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from server import Ours, Theirs, turned_copy
from traffic import Client, numbers_of, question

# The prefix of all prompts differs from the first token on, so that nothing is known from before.
PROMPT = "{number}. A question for {number}: {question} Answer in many words."


def adapters_of(arguments, folder):
    """Eight (or as many as asked for) PEFT folders."""
    found = [Path(path) for path in arguments.adapter][: arguments.rows]
    for at in range(len(found), arguments.rows):
        found.append(Path(folder) / f"turned-{at}")
        turned_copy(arguments.adapter[-1], found[-1], 7 * at)
    return found


def converted(arguments, adapters, folder):
    """The same as GGUF files."""
    made = []
    for at, adapter in enumerate(adapters):
        made.append(Path(folder) / f"{at}.gguf")
        command = [arguments.polylora, "convert", adapter, "--base", arguments.model, "-o", made[-1]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made


def requests(arguments, run, with_adapters):
    """The bodies of the requests of a run."""
    numbers = numbers_of("compare", run, with_adapters)
    for at in range(arguments.rows):
        # A field for each server; the other one ignores it.
        body = {
            "prompt": PROMPT.format(number=numbers.randrange(1000, 10000), question=question(numbers)),
            "max_tokens": arguments.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        # llama-server applies all adapters where the list is empty.
        yield {**body, "lora": [{"id": at, "scale": 1.0 if with_adapters else 0.0}]}


async def rate(client, bodies):
    """Tokens a second of requests sent at once, the time of their prompts included; and their
    texts."""
    begin = time.monotonic()
    answers = await asyncio.gather(*(client.complete(body) for body in bodies))
    took = time.monotonic() - begin
    for (_, tokens), body in zip(answers, bodies):
        assert tokens == body["max_tokens"], f"{tokens} tokens of {body['max_tokens']}"
    return sum(tokens for _, tokens in answers) / took, [text for text, _ in answers]


def base_of(server):
    cards = server.get("/v1/models")["data"]
    return next(card["id"] for card in cards if card.get("parent") is None)


async def measure(arguments, ours, theirs):
    """Prints the rates; the requests that went to ours, with their texts."""
    base, together = base_of(ours), []
    async with Client(ours.url) as to_ours, Client(theirs.url) as to_theirs:
        ways = {
            "ours": (to_ours, True),
            "llama-server": (to_theirs, True),
            "ours without adapters": (to_ours, False),
            "llama-server without": (to_theirs, False),
        }
        rates = {way: [] for way in ways}
        print(f"| run | {' | '.join(ways)} | times llama-server | share of without |")
        print("|---" * (len(ways) + 3) + "|")
        for run in range(arguments.runs + 1):
            for way, (client, with_adapters) in ways.items():
                # Other prompts for each way: what one has left in a cache helps no other.
                bodies = [{**body, "model": base} for body in requests(arguments, f"{run} {way}", with_adapters)]
                measured, texts = await rate(client, bodies)
                if run > 0:
                    rates[way].append(measured)
                if way == "ours":
                    together += zip(bodies, texts)
            if run > 0:  # The first one warms both up.
                print(row(run, [rates[way][-1] for way in ways]), flush=True)
        print(row("median", [statistics.median(rates[way]) for way in ways]))
    return together


async def compare_with_alone(arguments, server, together):
    """Whether a server that has not seen them before answers the same requests one by one as they
    were answered beside each other, and holds the tokens for as likely."""
    differing = 0
    async with Client(server.url) as client:
        for body, text in together:
            (alone,) = (await rate(client, [body]))[1]
            if alone != text:
                differing += 1
                print(f"with {body['lora']}, {body['prompt']!r} is answered\n  {text!r} beside others\n  {alone!r} alone")
        print(f"{len(together) - differing} of {len(together)} answers are those that the request gets alone")

        async def scores(body):
            answer = await client.post("/v1/completions", {**body, "logprobs": 1})
            return answer["choices"][0]["logprobs"]["token_logprobs"]

        # A model of random weights may write tokens without a text: how likely they are tells more.
        base = base_of(server)
        bodies = [{**body, "model": base} for body in requests(arguments, "scores", True)]
        beside = await asyncio.gather(*(scores(body) for body in bodies))
        difference, others = 0.0, []
        for at, body in enumerate(bodies):
            difference = max(difference, distance(await scores(body), beside[at]))
            other = {**body, "lora": bodies[at - 1]["lora"]}
            others.append(distance(await scores(other), beside[at]))
    print(
        f"log-probabilities beside others and alone differ by at most {difference:.4f}; "
        f"with another's adapter they would by at least {min(others):.4f}"
    )
    return differing == 0 and difference < min(others) / 4


def distance(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def row(run, rates):
    ours, theirs, without, _ = rates
    return f"| {run} | {' | '.join(f'{rate:.1f}' for rate in rates)} | {ours / theirs:.2f} | {ours / without:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", action="append", required=True, help="a PEFT folder")
    parser.add_argument("--polylora", default="target/release/polylora")
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=512, help="of each request")
    parser.add_argument("--port", type=int, default=18080, help="llama-server's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapters = adapters_of(arguments, folder)
        options = ["--ctx", arguments.context, "--parallel", arguments.rows, "--threads", arguments.threads]
        for at, adapter in enumerate(adapters):
            options += ["--adapter", f"adapter-{at}={adapter}"]
        theirs = ["-c", arguments.context * arguments.rows, "-np", arguments.rows, "-t", arguments.threads]
        # What it keeps of earlier requests would cost it time here, and is of no use.
        theirs += ["--cache-ram", 0, "--lora-init-without-apply", "--cont-batching"]
        theirs += ["--lora", ",".join(map(str, converted(arguments, adapters, folder)))]
        with (
            Ours(arguments.polylora, arguments.model, *options) as ours,
            Theirs(arguments.llama_bin / "llama-server", arguments.model, arguments.port, *theirs) as theirs,
        ):
            together = asyncio.run(measure(arguments, ours, theirs))
        with Ours(arguments.polylora, arguments.model, *options) as alone:
            same = asyncio.run(compare_with_alone(arguments, alone, together))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
