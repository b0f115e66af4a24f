"""Minutes of mixed load and faults: is anything lost, stuck, mixed up or leaked?

From: the program. It starts `polylora serve` on the embedded model with keys, a folder of adapters
and a cache for some of them, and lets all of this happen at once: plain and streamed answers
through many adapters, clients that leave midway, bodies that are no JSON or far too long, clients
that send a byte a second or never read, bursts of idle connections, adapters that are loaded,
exchanged and unloaded under traffic, SIGHUP, keys that are wrong or may not.

It checks that each request that was accepted, and not left by its client, ends with a
finish_reason (and [DONE]), in its adapter's manner; that each other is refused with an error in
OpenAI's form and the status that is due; that /health answers throughout; that memory at the end is
not far from what it was after the first part; and that the server ends with 0 when asked to. It
prints counts of what was tried, and each failure; the exit status is 1 where there was one.

    python soak.py --polylora target/release/polylora --minutes 10
"""

import argparse
import asyncio
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import aiohttp

from server import Ours, marked_copy, valley
from traffic import Broken, Client, Rejected, check_error, check_manner, message, numbers_of, question

MANNERS = ("shout", "pirate", "json")
# Adapters in the folder, of each manner; the cache has room for a third of all.
OF_EACH = 6
KEYS = {name: f"sk-{name}" for name in ("admin", "user", "rated", "other")}
MAX_QUEUE = 64
MAX_CONNECTIONS = 12_000
# Open at once, beside the traffic, without saying anything.
IDLE = 10_000
HEALTH_SECONDS = 5
# A client that says nothing, or too slowly, is not waited for longer.
SLOW_SECONDS = 180
# Memory of its own that the server may have gained since the first part.
GROWTH = 48 << 20


class Soak:
    def __init__(self, server, arguments, folder, adapters):
        self.server, self.arguments, self.folder, self.adapters = server, arguments, folder, adapters
        self.counts, self.failures = Counter(), []
        self.slowest_health = 0.0
        self.deadline = time.monotonic() + 60 * arguments.minutes
        address = server.url.removeprefix("http://").split(":")
        self.address = (address[0], int(address[1]))

    def over(self):
        return time.monotonic() > self.deadline

    def fail(self, what, error):
        self.counts[f"FAILED {what}"] += 1
        self.failures.append(f"{what}: {error}")
        print(f"FAILED {what}: {error}", flush=True)

    async def forever(self, actor, *arguments):
        """Does something again and again, and counts what came of it."""
        numbers, what = numbers_of(actor.__name__, *arguments), actor.__name__
        while not self.over():
            try:
                outcome = await actor(numbers, *arguments)
                self.counts[f"{what}: {outcome or 'done'}"] += 1
            except Rejected as rejection:
                self.fail(what, f"refused: {rejection}")
            except (Broken, AssertionError) as broken:
                self.fail(what, broken)
            except (aiohttp.ClientError, OSError) as error:
                self.fail(what, f"{type(error).__name__}: {error}")
            except Exception:
                self.fail(what, traceback.format_exc())

    # What ordinary clients do.

    def body(self, numbers, name, tokens=40):
        body = {"model": name, "messages": message(question(numbers)), "max_tokens": tokens}
        return {**body, "temperature": 0}

    async def answered(self, request, *may):
        """An answer; or None where it was refused with a status that may be, which the client then
        waits for a moment after."""
        try:
            return await request
        except Rejected as rejection:
            if rejection.status not in may:
                raise
            self.counts[f"refused with {rejection.status}"] += 1
            await asyncio.sleep(0.2)
            return None

    async def plain(self, numbers, _at):
        name = numbers.choice(list(self.adapters))
        answer = await self.answered(self.user.chat(self.body(numbers, name)), 429)
        if answer:
            check_manner(self.adapters[name], answer[0])

    async def streamed(self, numbers, _at):
        name = numbers.choice(list(self.adapters))
        text = await self.answered(self.user.stream_chat(self.body(numbers, name)), 429)
        if text is not None:
            check_manner(self.adapters[name], text)

    async def several(self, numbers, _at):
        name = numbers.choice(list(self.adapters))
        body = {**self.body(numbers, name), "n": 3, "temperature": 1}
        answer = await self.answered(self.user.post("/v1/chat/completions", body), 429)
        if answer:
            texts = [choice["message"]["content"] for choice in answer["choices"]]
            assert len(texts) == 3 and all(choice["finish_reason"] for choice in answer["choices"])

    async def shaped(self, numbers, _at):
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
                  "required": ["n"], "additionalProperties": False}
        shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
        body = {**self.body(numbers, numbers.choice(list(self.adapters))), "response_format": shape}
        answer = await self.answered(self.user.chat(body), 429)
        # Unless it was cut off: up to forty blanks may stand between two parts.
        if answer and answer[1] < body["max_tokens"]:
            assert set(json.loads(answer[0])) == {"n"}, answer

    # Clients that leave.

    async def leaves_a_stream(self, numbers, _at):
        body = {**self.body(numbers, numbers.choice(list(self.adapters)), 400), "ignore_eos": True}
        left = self.user.stream_chat(body, leave_after=numbers.randrange(1, 20))
        await self.answered(left, 429)

    async def leaves_before_the_answer(self, numbers, _at):
        body = {**self.body(numbers, numbers.choice(list(self.adapters)), 400), "ignore_eos": True}
        try:
            async with asyncio.timeout(numbers.random()):
                await self.answered(self.user.chat(body), 429)
            return "answered at once"
        except TimeoutError:
            return "left"

    # Requests that cannot be meant.

    async def raw(self, data, seconds=60):
        """Everything that a connection answers to these bytes until it is closed, or the answer is
        whole."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            async with asyncio.timeout(seconds):
                try:
                    writer.write(data)
                    await writer.drain()
                except OSError:
                    pass  # It may have answered, and closed, before all was sent.
                return await read_response(reader)
        finally:
            writer.close()

    async def malformed(self, numbers, _at):
        good = json.dumps(self.body(numbers, "shout-0")).encode()
        bodies = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"model": 3}', good[:-5], good + b"}", b"\0" * 100,
                  b"[" * 20000, b'{"messages": ' * 5000, b'{"model": "shout-0", "messages": "Hi"}',
                  good.replace(b'"max_tokens": 40', b'"max_tokens": 1e99'),
                  good.replace(b'"user"', b'"\\ud800"')]
        body = numbers.choice(bodies)
        path = numbers.choice(["/v1/chat/completions", "/v1/completions"])
        status, headers, text = await self.raw(post(path, body, KEYS["user"]))
        assert status == 400, f"{status} for {body[:60]!r} to {path}: {text[:200]!r}"
        check_error(status, headers, text)

    async def no_http(self, numbers, _at):
        data = numbers.choice([b"\0" * 64 + b"\r\n\r\n", b"HELO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                               b"GET " + b"/" * 200000 + b" HTTP/1.1\r\n\r\n",
                               b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
                               b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
        try:
            status, _, _ = await self.raw(data, SLOW_SECONDS)
        except (asyncio.IncompleteReadError, ConnectionError):
            return "closed"
        assert 400 <= status < 500 or status == 505, f"{status} for {data[:40]!r}"
        return str(status)

    async def oversized(self, numbers, _at):
        size = numbers.choice([40, 200]) << 20
        if numbers.random() < 0.5:
            # It asks first, so that nothing of it need be read.
            data = post("/v1/chat/completions", b"", KEYS["user"], size, "Expect: 100-continue")
        else:
            data = post("/v1/chat/completions", b'{"model": "' + b"a" * size, KEYS["user"])
        try:
            status, headers, text = await self.raw(data)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            # Closed while there was still something to be read, which can lose the answer.
            return f"closed ({type(error).__name__})"
        assert status == 413, f"{status} for {size} bytes: {text[:200]!r}"
        check_error(status, headers, text)
        return "413"

    async def elsewhere(self, numbers, _at):
        """Paths and methods that are not there."""
        method, path, due = numbers.choice([("GET", "/nothing", 404), ("POST", "/v1/nothing", 404),
                                            ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405),
                                            ("GET", "/v1/models/nobody", 404)])
        async with self.user.session.request(method, self.server.url + path) as answer:
            assert answer.status == due, f"{answer.status} for {method} {path}"
            check_error(answer.status, answer.headers, await answer.read())

    # Slow clients.

    async def slow(self, data, numbers, is_whole):
        """Sends bytes singly until it is answered, or cut off."""
        reader, writer = await asyncio.open_connection(*self.address)
        answer = asyncio.create_task(read_response(reader))
        pause, begin, sent = numbers.choice((0.0, 0.5, 5.0)), time.monotonic(), 0
        try:
            while sent < len(data) and not answer.done():
                if self.over():
                    return "not ended"
                assert time.monotonic() - begin < SLOW_SECONDS, f"takes longer than {SLOW_SECONDS} s to be cut off"
                try:
                    writer.write(data[sent : sent + 1])
                    await writer.drain()
                except OSError:
                    break
                sent += 1
                await asyncio.sleep(pause)
            whole = is_whole and sent == len(data)
            try:
                async with asyncio.timeout(SLOW_SECONDS):
                    status, headers, text = await answer
            except (asyncio.IncompleteReadError, ConnectionError):
                assert not whole, "closed without an answer, after all was sent"
                return "cut off"
            if status == 200:
                assert whole, "answered before all was sent"
            else:
                assert status == 408 or whole and status == 429, f"{status}: {text[:200]!r}"
                check_error(status, headers, text)
            return str(status)
        finally:
            answer.cancel()
            writer.close()

    async def slow_headers(self, numbers, _at):
        # The empty line after the headers never comes.
        return await self.slow(post("/v1/chat/completions", b"", KEYS["user"])[:-2], numbers, False)

    async def slow_body(self, numbers, _at):
        body = json.dumps(self.body(numbers, "json-1", 8)).encode()
        return await self.slow(post("/v1/chat/completions", body, KEYS["user"]), numbers, True)

    async def silent(self, numbers, _at):
        """Begins a request, or not even that, and says no more."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(numbers.choice([b"", b"P", b"PRI * HTTP/2.0\r\n", b"GET /health", b"GET /health HTTP/1.1\r\n"]))
            begin = time.monotonic()
            while not self.over():
                assert time.monotonic() - begin < SLOW_SECONDS, f"still open after {SLOW_SECONDS} s of silence"
                try:
                    async with asyncio.timeout(5):
                        if not await reader.read(4096):
                            return "cut off"
                except ConnectionError:
                    return "cut off"
                except TimeoutError:
                    continue
            return "not ended"
        finally:
            writer.close()

    async def never_reads(self, numbers, _at):
        body = {**self.body(numbers, numbers.choice(list(self.adapters)), 450), "stream": True, "ignore_eos": True}
        body["logprobs"], body["top_logprobs"] = True, 20
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        plug.setblocking(False)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(plug, self.address)
            await loop.sock_sendall(plug, post("/v1/chat/completions", json.dumps(body).encode(), KEYS["user"]))
            await asyncio.sleep(min(numbers.choice((1, 20, 60)), max(self.deadline - time.monotonic(), 0)))
        finally:
            plug.close()

    async def idle_burst(self, numbers, _at):
        """Connections that say nothing."""
        opened, gate = [], asyncio.Semaphore(200)

        async def open_one():
            async with gate:
                opened.append(await asyncio.open_connection(*self.address))

        try:
            results = await asyncio.gather(*(open_one() for _ in range(IDLE)), return_exceptions=True)
            failed = [result for result in results if isinstance(result, Exception)]
            assert not failed, f"{len(failed)} of {IDLE} connections were refused: {failed[0]!r}"
            await asyncio.sleep(numbers.choice((0, 3)))
        finally:
            for _, writer in opened:
                writer.close()
        await asyncio.sleep(min(10, max(self.deadline - time.monotonic(), 0)))

    # Adapters that come and go.

    async def exchanges(self, numbers, at):
        """Loads, exchanges and unloads an adapter, while it is asked for."""
        name = f"guest-{at}"
        load = lambda manner, **more: self.load(name, f"guests/{manner}", **more)
        asking = lambda: asyncio.create_task(self.user.stream_chat(self.body(numbers, name, 200)))
        # A failure before may have left it there.
        await self.admin_post("/v1/unload_lora_adapter", {"lora_name": name})
        assert (await self.user_status(name)) == 404, f"{name} is there before it was loaded"
        assert await load("shout") == 200
        assert await load("pirate") == 400, "loaded twice under one name"
        first = asking()
        await asyncio.sleep(numbers.random() * 0.05)
        assert await load("json", load_inplace=True) == 200
        second = await self.answered(self.user.stream_chat(self.body(numbers, name, 60)), 429)
        if second is not None:
            check_manner("json", second)
        first = await self.answered(first, 429)
        if first is not None:
            # It began on either, and stayed with it.
            manner = "json" if first.lstrip().startswith("{") else "shout"
            check_manner(manner, first)
        third = asking()
        await asyncio.sleep(numbers.random() * 0.05)
        status, _ = await self.admin_post("/v1/unload_lora_adapter", {"lora_name": name})
        assert status == 200, f"unloading {name}: {status}"
        third = await self.answered(third, 404, 429)
        if third is not None:
            check_manner("json", third)
        assert (await self.user_status(name)) == 404, f"{name} is there after it was unloaded"
        status, _ = await self.admin_post("/v1/unload_lora_adapter", {"lora_name": name})
        assert status == 404, f"unloading what is not there: {status}"

    async def load(self, name, path, **more):
        status, _ = await self.admin_post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **more})
        return status

    async def admin_post(self, path, body, client=None):
        client = client or self.admin
        async with client.session.post(self.server.url + path, json=body) as answer:
            text = await answer.read()
            if answer.status != 200:
                check_error(answer.status, answer.headers, text)
            return answer.status, text

    async def user_status(self, model):
        """What a short question to a model is answered with, when there is room for it."""
        while True:
            try:
                await self.user.chat({"model": model, "messages": message("Hi"), "max_tokens": 1})
                return 200
            except Rejected as rejection:
                if rejection.status != 429:
                    return rejection.status
                await asyncio.sleep(0.2)

    async def climbs(self, numbers, _at):
        """Loads from where it must not."""
        path = numbers.choice(["../valley/shout", "/etc/passwd", "guests/../../valley/shout", "way-out", "guests/way-out",
                               str(self.folder / "valley/shout"), "", ".", "guests/nothing"])
        status, text = await self.admin_post("/v1/load_lora_adapter", {"lora_name": "climber", "lora_path": path})
        assert status in (400, 403, 404), f"{status} for loading {path!r}: {text[:200]!r}"

    async def changes_the_folder(self, numbers, _at):
        """An adapter comes into the folder and goes again."""
        name = "visitor"
        target = self.folder / "adapters" / name
        hidden = target.with_name(f".{name}")
        shutil.copytree(self.folder / "valley" / numbers.choice(MANNERS), hidden)
        hidden.rename(target)
        await self.until(name, 200)
        shutil.rmtree(target)
        await self.until(name, 404)

    async def until(self, model, status):
        begin = time.monotonic()
        while (found := await self.user_status(model)) != status and not self.over():
            # Looked through every few seconds; a file that is gone may be found out by a load of it.
            assert time.monotonic() - begin < 60, f"{model} answers {found} after a minute, not {status}"
            await asyncio.sleep(0.5)

    async def hangs_up(self, numbers, _at):
        """SIGHUP, with a file of keys that is new each time, or (once in four) broken: then the old
        ones stay."""
        keys = self.folder / "keys.toml"
        text = "[[key]\nname = " if numbers.random() < 0.25 else key_file(numbers.randrange(10**6))
        keys.with_suffix(".new").write_text(text)
        os.replace(keys.with_suffix(".new"), keys)
        self.server.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(min(3, max(self.deadline - time.monotonic(), 0)))

    # Who may not.

    async def wrong_keys(self, numbers, _at):
        async def refused(key, path, body, due):
            headers = {} if key is None else {"Authorization": key}
            async with self.nobody.session.post(self.server.url + path, json=body, headers=headers) as answer:
                assert answer.status == due, f"{answer.status} with {key!r}, not {due}: {path} {body}"
                return check_error(answer.status, answer.headers, await answer.read())

        chat, load = "/v1/chat/completions", "/v1/load_lora_adapter"
        body = self.body(numbers, "shout-0")
        key = numbers.choice([None, "Bearer", "Bearer ", "Bearer wrong", "Basic c2s6", "Bearer sk-user-", "bearer\tx"])
        await refused(key, chat, body, 401)
        # Another's adapter is as unknown as one that is not there.
        theirs = await refused("Bearer sk-other", chat, {**body, "model": "json-0"}, 404)
        unknown = await refused("Bearer sk-other", chat, {**body, "model": "nobody"}, 404)
        assert theirs["message"].replace("json-0", "nobody") == unknown["message"], f"{theirs} and {unknown}"
        await refused("Bearer sk-user", load, {"lora_name": "x", "lora_path": "guests/shout"}, 403)
        await asyncio.sleep(0.5)

    async def rated(self, numbers, _at):
        """A key with sixty requests a minute."""
        try:
            await self.rated_client.chat(self.body(numbers, "shout-0", 4))
            return "answered"
        except Rejected as rejection:
            assert rejection.status == 429, rejection
            await asyncio.sleep(0.5)
            return "429"

    # Who watches.

    async def health(self, numbers):
        begin = time.monotonic()
        status, _, text = await self.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 60)
        took = time.monotonic() - begin
        self.slowest_health = max(self.slowest_health, took)
        assert status == 200 and json.loads(text)["status"] == "ok", f"{status} {text!r}"
        assert took < HEALTH_SECONDS, f"/health took {took:.1f} s"
        await asyncio.sleep(0.25)

    async def operator(self, numbers, _at):
        """Looks at what an operator looks at."""
        for path in ("/metrics", "/adapters", "/v1/models", "/lora-adapters", "/", "/openapi.json", "/version"):
            async with self.admin.session.get(self.server.url + path) as answer:
                assert answer.status == 200, f"{answer.status} for {path}"
                await answer.read()
        await asyncio.sleep(1)

    async def run(self):
        async with (
            Client(self.server.url, KEYS["user"]) as self.user,
            Client(self.server.url, KEYS["admin"]) as self.admin,
            Client(self.server.url, KEYS["rated"]) as self.rated_client,
            Client(self.server.url) as self.nobody,
        ):
            actors = [(actor, at) for actor, count in (
                (self.plain, 8), (self.streamed, 8), (self.several, 2), (self.shaped, 2), (self.leaves_a_stream, 4),
                (self.leaves_before_the_answer, 4), (self.malformed, 2), (self.no_http, 1), (self.oversized, 1),
                (self.elsewhere, 1), (self.slow_headers, 3), (self.slow_body, 3), (self.silent, 3), (self.never_reads, 4),
                (self.idle_burst, 1), (self.exchanges, 2), (self.climbs, 1), (self.changes_the_folder, 1),
                (self.hangs_up, 1), (self.wrong_keys, 1), (self.rated, 1), (self.operator, 1),
            ) for at in range(count)]
            tasks = [asyncio.create_task(self.forever(actor, at)) for actor, at in actors]
            tasks.append(asyncio.create_task(self.forever(self.health)))
            first = await self.memory()
            await asyncio.gather(*tasks)
            last = self.server.resident_bytes()
            print(f"memory: {first >> 20} MiB after the first part, {last >> 20} at the end")
            if last > first + GROWTH:
                self.fail("memory", f"grew by {(last - first) >> 20} MiB")
            await self.comes_to_rest()

    async def memory(self):
        """The most of the first fifth."""
        most, until = 0, time.monotonic() + 60 * self.arguments.minutes / 5
        while time.monotonic() < until:
            most = max(most, self.server.resident_bytes())
            await asyncio.sleep(0.5)
        return most

    async def comes_to_rest(self):
        """When all clients are gone, nothing runs or waits, and no adapter is held."""
        begin = time.monotonic()
        while time.monotonic() - begin < 30:
            state = self.server.get("/adapters", KEYS["admin"])
            if state["requests"] == {"running": 0, "waiting": 0}:
                break
            await asyncio.sleep(0.5)
        else:
            self.fail("rest", f"still {state['requests']} half a minute after the last client left")
        if state["cache"]["bytes"] > state["cache"]["capacity_bytes"]:
            self.fail("rest", f"the cache holds more than its cap: {state['cache']}")


def post(path, body, key, length=None, *headers):
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Authorization: Bearer {key}",
             f"Content-Length: {len(body) if length is None else length}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def read_response(reader):
    """(status, headers, body) of an answer on a connection that is closed after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.title(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if "Content-Length" in headers:
        return int(first.split()[1]), headers, await reader.readexactly(int(headers["Content-Length"]))
    return int(first.split()[1]), headers, await reader.read()


def key_file(number):
    """Keys of an admin, of a user of all adapters, of two of some; and one that is another each
    time."""
    entries = [
        ("admin", KEYS["admin"], '["*"]', "admin = true"),
        ("user", KEYS["user"], '["*"]', ""),
        ("rated", KEYS["rated"], '["shout-*"]', "requests_per_minute = 60"),
        ("other", KEYS["other"], '["pirate-*"]', ""),
        ("changing", f"sk-{number}", '["pirate-0"]', ""),
    ]
    return "\n".join(
        f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\nadapters = {allowed}\n{more}\n'
        for name, key, allowed, more in entries
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polylora", default="target/release/polylora")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # For the idle connections, on both sides: the server inherits it.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model, sources = valley(arguments.polylora, folder / "valley")
        adapters = {}
        for at in range(OF_EACH):
            for manner in MANNERS:
                adapters[f"{manner}-{at}"] = manner
                marked_copy(sources[manner], folder / "adapters" / f"{manner}-{at}", at)
        for manner in MANNERS:
            # Not directly in the folder: no adapters until they are loaded by request.
            marked_copy(sources[manner], folder / "adapters/guests" / manner, 1000)
        for link in ("adapters/way-out", "adapters/guests/way-out"):
            (folder / link).symlink_to(sources["shout"])
        (folder / "keys.toml").write_text(key_file(0))
        size = (sources["shout"] / "adapter_model.safetensors").stat().st_size
        options = [
            "--adapter-dir", folder / "adapters", "--allow-adapter-loading", "--adapter-memory", 2 * OF_EACH * size,
            "--api-keys", folder / "keys.toml", "--max-queue", MAX_QUEUE, "--max-connections", MAX_CONNECTIONS,
            "--parallel", 8, "--threads", arguments.threads,
        ]  # fmt: skip
        with Ours(arguments.polylora, model, *options) as server:
            soak = Soak(server, arguments, folder, adapters)
            asyncio.run(soak.run())
            status = server.stop()
            if status != 0:
                soak.fail("end", f"exit status {status}")
            log = server.text()
        for secret in KEYS.values():
            if secret in log:
                soak.fail("log", "a key stands in the log")
        if "panicked" in log:
            soak.fail("log", next(line for line in log.splitlines() if "panicked" in line))
    for what, count in sorted(soak.counts.items()):
        print(f"{count:7} {what}")
    print(f"/health took at most {soak.slowest_health:.2f} s; {len(soak.failures)} failures")
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()
