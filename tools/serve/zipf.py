"""A thousand registered adapters and a cache for fifty of them: is it right, bounded, and fast?

From: the program and, optionally, a model with PEFT adapters. It makes the thousand from copies
that each differ in a value's low bits, so that each has a hash and a place in the cache of its own,
and starts two servers over them: one whose cache has room for `--cached` of them, one with room for
all. Clients send both the same traffic, in turn: adapters drawn by Zipf's law, short answers. It
checks that no request fails, that with the embedded model each answer is in its adapter's manner,
that the cache never holds more than its cap and the process not more than the cap and a constant;
it prints the rates of each round and their medians. The exit status is 1 where a check fails.

    python zipf.py --polylora target/release/polylora --seconds 120
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from server import Ours, marked_copy, valley
from traffic import Broken, Client, Rejected, check_manner, message, numbers_of, question, zipf

TOKENS = 24
# What a process may hold beyond its first memory and the cache's cap: buffers of adapters that are
# being read, which the allocator keeps, and requests.
SLACK = 96 << 20
# How often memory is looked at.
WATCH_SECONDS = 0.05


class Watched:
    """The most that a server's cache and process were seen to hold."""

    def __init__(self, server):
        self.server = server
        self.cache = self.process = 0

    async def watch(self, client):
        while True:
            async with client.session.get(self.server.url + "/adapters") as answer:
                state = await answer.json()
            self.cache = max(self.cache, state["cache"]["bytes"])
            self.process = max(self.process, self.server.resident_bytes())
            await asyncio.sleep(WATCH_SECONDS)


async def ask(client, adapter, manner, numbers):
    """One answer; the tokens that it has."""
    body = {"model": adapter, "messages": message(question(numbers)), "temperature": 0}
    text, tokens = await client.chat({**body, "max_tokens": TOKENS})
    if manner:
        check_manner(manner, text)
    return tokens


async def traffic(client, names, manners, seconds, clients, seed):
    """Tokens a second that `clients` get at once, each asking one after the other."""

    async def one(at):
        numbers, tokens, answers = numbers_of(seed, at), 0, 0
        for adapter in zipf(len(names), numbers):
            if time.monotonic() > deadline:
                return tokens, answers
            tokens += await ask(client, names[adapter], manners[adapter], numbers)
            answers += 1

    begin = time.monotonic()
    deadline = begin + seconds
    counts = await asyncio.gather(*(one(at) for at in range(clients)))
    took = time.monotonic() - begin
    tokens, answers = (sum(count) for count in zip(*counts))
    return tokens / took, answers


async def measure(capped, roomy, names, manners, arguments, cap):
    """Whether all held."""
    rates, watched, answered = {capped: [], roomy: []}, Watched(capped), 0
    async with Client(capped.url) as to_capped, Client(roomy.url) as to_roomy:
        base = capped.get("/adapters")["model"]["id"]
        await traffic(to_capped, [base], [None], 3, arguments.clients, "first")
        first = capped.resident_bytes()
        # All are in the roomy one's memory before anything is timed, and the other's cache is full.
        for name, manner in zip(names, manners):
            await ask(to_roomy, name, manner, numbers_of("warm", name))
        for name, manner in list(zip(names, manners))[: 2 * arguments.cached]:
            await ask(to_capped, name, manner, numbers_of("warm", name))
        watching = asyncio.create_task(watched.watch(to_capped))
        print("| round | cached, tokens/s | all resident, tokens/s | share | process, MiB |")
        print("|---|---|---|---|---|")
        for number in range(1, arguments.rounds + 1):
            for server, client in ((capped, to_capped), (roomy, to_roomy)):
                seconds = arguments.seconds / arguments.rounds
                rate, answers = await traffic(client, names, manners, seconds, arguments.clients, number)
                rates[server].append(rate)
                answered += answers
            mine, theirs = rates[capped][-1], rates[roomy][-1]
            process = capped.resident_bytes() / 2**20
            print(f"| {number} | {mine:.0f} | {theirs:.0f} | {mine / theirs:.2f} | {process:.0f} |", flush=True)
        if watching.done():
            watching.result()
        watching.cancel()
    state = capped.get("/adapters")
    mine, theirs = (statistics.median(rates[server]) for server in (capped, roomy))
    share = statistics.median(a / b for a, b in zip(rates[capped], rates[roomy]))
    print(f"| median | {mine:.0f} | {theirs:.0f} | {share:.2f} | |")
    resident = sum(adapter["state"] == "resident" for adapter in state["adapters"])
    bound = first + cap + SLACK
    print(f"{answered} answers; {len(state['adapters'])} adapters, {resident} in memory at the end")
    print(f"the cache held at most {watched.cache} of {cap} bytes")
    print(f"the process held {first >> 20} MiB at first and at most {watched.process >> 20} of {bound >> 20}")
    return watched.cache <= cap and watched.process <= bound


def resident_bytes_of(polylora, model, adapter, threads):
    """What one adapter takes in memory, as the server tells it."""
    with Ours(polylora, model, "--adapter", f"one={adapter}", "--threads", threads) as server:

        async def load():
            async with Client(server.url) as client:
                await ask(client, "one", None, numbers_of("size"))

        asyncio.run(load())
        (state,) = server.get("/adapters")["adapters"]
        return state["bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polylora", default="target/release/polylora")
    parser.add_argument("--model", help="the embedded one by default")
    parser.add_argument("--adapter", action="append", default=[], help="PEFT folders, for another model")
    parser.add_argument("--registered", type=int, default=1000)
    parser.add_argument("--cached", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120, help="of traffic to each server")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", help="where the copies are made, and removed from again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        model, sources = arguments.model, {Path(path).name: path for path in arguments.adapter}
        if model is None:
            model, sources = valley(arguments.polylora, Path(folder) / "valley")
        manners = list(sources) if arguments.model is None else [None] * len(sources)
        adapters, names = Path(folder) / "adapters", []
        for at in range(arguments.registered):
            name = list(sources)[at % len(sources)]
            names.append(f"{name}-{at:04}")
            marked_copy(sources[name], adapters / names[-1], at)
        of_name = [manners[at % len(manners)] for at in range(len(names))]

        sizes = [resident_bytes_of(arguments.polylora, model, path, arguments.threads) for path in sources.values()]
        # Of the largest, so that there is room for so many of any kind.
        cap = arguments.cached * max(sizes)
        room = 2 * arguments.registered * max(sizes)
        print(f"adapters of {sizes} bytes in memory; a cache of {cap}", flush=True)
        shared = ["--adapter-dir", adapters, "--threads", arguments.threads]
        with (
            Ours(arguments.polylora, model, *shared, "--adapter-memory", cap, name="capped") as capped,
            Ours(arguments.polylora, model, *shared, "--adapter-memory", room, name="roomy") as roomy,
        ):
            try:
                held = asyncio.run(measure(capped, roomy, names, of_name, arguments, cap))
            except (Broken, Rejected) as broken:
                print(f"FAILED: {broken}")
                held = False
            stopped = capped.stop(), roomy.stop()
    if stopped != (0, 0):
        print(f"FAILED: the servers ended with {stopped}")
    sys.exit(0 if held and stopped == (0, 0) else 1)


if __name__ == "__main__":
    main()
