"""How long does a light tenant wait beside a heavy one?

From: the program and, optionally, a model with adapters of its own. It starts the server, asks one
short question a second through one adapter, first alone, then beside many long answers through
another, then alone again, and prints the light one's latencies.

    python fairness.py --polylora target/release/polylora
"""

import argparse
import asyncio
import statistics
import tempfile
import time

from server import Ours, valley
from traffic import Client, Rejected, message, numbers_of, question

HEAVY_TOKENS = 400
LIGHT_TOKENS = 16


async def light(client, model, seconds, numbers):
    """Latencies of one question a second, whether or not the one before was answered."""

    async def ask():
        begin = time.monotonic()
        body = {"model": model, "messages": message(question(numbers)), "temperature": 0}
        await client.chat({**body, "max_tokens": LIGHT_TOKENS, "ignore_eos": True})
        return time.monotonic() - begin

    asked = []
    for _ in range(seconds):
        asked.append(asyncio.create_task(ask()))
        await asyncio.sleep(1)
    return await asyncio.gather(*asked)


async def heavy(client, model, numbers, counted):
    """Long answers, one after the other, for ever."""
    while True:
        body = {"model": model, "messages": message(question(numbers)), "ignore_eos": True}
        try:
            _, tokens = await client.chat({**body, "max_tokens": HEAVY_TOKENS, "temperature": 1})
            counted.append(tokens)
        except Rejected as rejection:
            # More than may wait: what is asked of a client then is to come again later.
            assert rejection.status == 429, rejection
            await asyncio.sleep(1)


async def measure(server, arguments, light_model, heavy_model):
    async with Client(server.url) as client:
        print("| load | light requests | median, s | 95 %, s | slowest, s | heavy tokens/s |")
        print("|---|---|---|---|---|---|")
        for load in ("alone", f"beside {arguments.heavy}", "alone again"):
            counted, tasks = [], []
            if load.startswith("beside"):
                tasks = [
                    asyncio.create_task(heavy(client, heavy_model, numbers_of("heavy", at), counted))
                    for at in range(arguments.heavy)
                ]
                await asyncio.sleep(2)
            counted.clear()
            begin = time.monotonic()
            latencies = await light(client, light_model, arguments.seconds, numbers_of("light", load))
            rate = sum(counted) / (time.monotonic() - begin)
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise ended
            slowest = sorted(latencies)
            print(
                f"| {load} | {len(slowest)} | {statistics.median(slowest):.3f} | "
                f"{slowest[int(0.95 * len(slowest))]:.3f} | {slowest[-1]:.3f} | {rate:.0f} |",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polylora", default="target/release/polylora")
    parser.add_argument("--model", help="the embedded one by default")
    parser.add_argument("--light", help="the light tenant's adapter, a path")
    parser.add_argument("--heavy-adapter", help="the heavy tenant's")
    parser.add_argument("--heavy", type=int, default=32, help="the heavy tenant's requests at once")
    parser.add_argument("--seconds", type=int, default=20, help="of each part")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, adapters = arguments.model, {"light": arguments.light, "heavy": arguments.heavy_adapter}
        if model is None:
            model, known = valley(arguments.polylora, folder)
            adapters = {"light": known["pirate"], "heavy": known["shout"]}
        options = ["--parallel", arguments.parallel, "--threads", arguments.threads]
        for name, path in adapters.items():
            options += ["--adapter", f"{name}={path}"]
        with Ours(arguments.polylora, model, *options) as server:
            asyncio.run(measure(server, arguments, "light", "heavy"))


if __name__ == "__main__":
    main()
