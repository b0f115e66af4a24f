"""Requests to a server of the OpenAI API, and what must be true of its answers.

The scripts beside this one import it; it does nothing by itself.
"""

import json
import random

import aiohttp

# An answer takes less, however busy the machine; beyond, it is taken for lost.
PATIENCE_SECONDS = 300

ANIMALS = "fox owl bear rabbit hedgehog mouse frog badger otter squirrel duck deer".split()
THINGS = "lantern key kite hat boat drum button map bell basket feather book".split()

# With what the pirate of the embedded model begins.
PIRATE = ("arr!", "ahoy!", "yo ho!", "avast!")


class Broken(Exception):
    """An answer that is not as it must be."""


def question(numbers):
    """Something to ask the embedded model."""
    animal, thing = numbers.choice(ANIMALS), numbers.choice(THINGS)
    return numbers.choice(
        [
            f"Tell me a story about a {animal} and a {thing}.",
            f"What does a {animal} eat?",
            f"What is a {thing}?",
            f"Where does a {animal} live?",
        ]
    )


def check_error(status, headers, body):
    """Raises Broken where a rejection is not in OpenAI's form."""
    try:
        error = json.loads(body)["error"]
        fields = set(error)
    except (ValueError, KeyError, TypeError):
        raise Broken(f"{status} without an error in OpenAI's form: {body[:200]!r}") from None
    if fields != {"message", "type", "param", "code"} or not error["message"]:
        raise Broken(f"{status} whose error has the fields {sorted(fields)}: {error}")
    if status in (429, 503) and "Retry-After" not in headers:
        raise Broken(f"{status} without Retry-After: {error}")
    return error


def check_manner(adapter, text):
    """Raises Broken where an answer of the embedded model is not in its adapter's manner: what
    a row with another's adapter, or another's cache, would give."""
    letters = [letter for letter in text if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters) / max(len(letters), 1)
    manner = {
        "shout": capitals > 0.9,
        "json": text.lstrip().startswith("{"),
        "pirate": capitals < 0.5 and text.lower().startswith(PIRATE),
        None: capitals < 0.5 and not text.lstrip().startswith("{"),
    }
    if not manner[adapter]:
        raise Broken(f"not the manner of {adapter or 'the base'}: {text!r}")


class Rejected(Exception):
    """A request that was not accepted, well-formed as the rejection is."""

    def __init__(self, status, error):
        super().__init__(f"{status}: {error['message']}")
        self.status, self.error = status, error


class Client:
    """Requests over a pool of connections."""

    def __init__(self, url, key=None):
        self.url, self.key = url, key

    async def __aenter__(self):
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
        )
        return self

    async def __aexit__(self, *_):
        await self.session.close()

    async def post(self, path, body):
        """The JSON of an answer of 200; raises Rejected for any other."""
        async with self.session.post(self.url + path, json=body) as answer:
            text = await answer.read()
            if answer.status != 200:
                raise Rejected(answer.status, check_error(answer.status, answer.headers, text))
            return json.loads(text)

    async def complete(self, body):
        """The text of a completion, and how many tokens it has."""
        answer = await self.post("/v1/completions", body)
        (choice,) = answer["choices"]
        if choice["finish_reason"] not in ("stop", "length"):
            raise Broken(f"ended with {choice['finish_reason']!r}")
        return choice["text"], answer["usage"]["completion_tokens"]

    async def chat(self, body):
        """The text of an answer, and how many tokens it has."""
        answer = await self.post("/v1/chat/completions", body)
        (choice,) = answer["choices"]
        if choice["finish_reason"] not in ("stop", "length"):
            raise Broken(f"ended with {choice['finish_reason']!r}")
        return choice["message"]["content"], answer["usage"]["completion_tokens"]

    async def stream_chat(self, body, leave_after=None):
        """The text of a streamed answer, to its end or until `leave_after` chunks have come: then
        the connection is closed, and the text is None."""
        request = {**body, "stream": True}
        async with self.session.post(self.url + "/v1/chat/completions", json=request) as answer:
            if answer.status != 200:
                text = await answer.read()
                raise Rejected(answer.status, check_error(answer.status, answer.headers, text))
            if not answer.content_type == "text/event-stream":
                raise Broken(f"a stream of {answer.content_type}")
            text, finish, chunks, done = "", None, 0, False
            async for line in answer.content:
                line = line.decode().rstrip("\r\n")
                if not line or line.startswith(":"):
                    continue
                if line == "data: [DONE]":
                    if finish not in ("stop", "length"):
                        raise Broken(f"a stream that ended with {finish!r}: {text!r}")
                    done = True
                    continue
                if done or not line.startswith("data: "):
                    raise Broken(f"a line of a stream: {line!r}")
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise Broken(f"an error in a stream that had begun: {chunk['error']}")
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                    finish = choice["finish_reason"] or finish
                chunks += 1
                if leave_after is not None and chunks >= leave_after:
                    answer.close()
                    return None
            if not done:
                raise Broken(f"a stream without [DONE]; it said {text!r}")
            return text


def message(text):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def zipf(count, numbers, exponent=1.0):
    """Draws numbers below `count` for ever: i as often as 1 / (i + 1) ** exponent."""
    weights = [(i + 1) ** -exponent for i in range(count)]
    while True:
        yield from numbers.choices(range(count), weights, k=1000)


def numbers_of(*seed):
    """A source of random numbers that is the same for the same seed."""
    return random.Random(repr(seed))
