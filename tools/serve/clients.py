"""Do the official `openai` client and `litellm` work, unchanged, against a running server?

From: the URL of a `polylora serve` of the embedded model with its three adapters. It prints each
check; the exit status is 1 where one fails. `cargo xtask serve-clients` does all of this.

    pip install -r requirements.txt
    polylora demo --write valley
    polylora serve valley/*.gguf --adapter valley/shout --adapter valley/pirate --adapter valley/json
    python clients.py http://127.0.0.1:8080
"""

import argparse
import json
import math
import os
import sys
import traceback
import urllib.request

# Prices are of no use here, and there may be no network to fetch them from.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import jsonschema
import litellm
import openai

from traffic import check_manner

ADAPTERS = ("shout", "pirate", "json")
QUESTION = "Tell me a story about a fox and a lantern."
CHECKS = []


def check(function):
    """Adds a check to those that are run, in the order in which they stand."""
    CHECKS.append(function)
    return function


def user(text):
    return [{"role": "user", "content": text}]


def refused(kind, request, *, code=None, param=None, says=()):
    """The error that a request is answered with, which must be of this kind."""
    try:
        answer = request()
    except kind as error:
        body = error.body
        assert isinstance(body, dict), f"no error in OpenAI's form: {body!r}"
        assert set(body) == {"message", "type", "param", "code"}, f"its fields are {sorted(body)}"
        assert code is None or body["code"] == code, f"its code is {body['code']!r}, not {code!r}"
        assert param is None or body["param"] == param, f"its param is {body['param']!r}, not {param!r}"
        for word in says:
            assert word in body["message"].lower(), f"says nothing of {word!r}: {body['message']}"
        return error
    raise AssertionError(f"answered: {answer}")


class Tried:
    """What all checks work with."""

    def __init__(self, url):
        self.url = url
        self.client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)
        cards = self.client.models.list().data
        bases = [card.id for card in cards if getattr(card, "parent", None) is None]
        assert len(bases) == 1, f"cards without a parent: {bases}"
        self.base = bases[0]

    def chat(self, **more):
        request = {"model": self.base, "messages": user(QUESTION), "max_tokens": 40, "temperature": 0}
        return self.client.chat.completions.create(**{**request, **more})

    def complete(self, **more):
        request = {"model": self.base, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        return self.client.completions.create(**{**request, **more})

    def text(self, **more):
        return self.chat(**more).choices[0].message.content


@check
def lists_models(t):
    cards = {card.id: card for card in t.client.models.list().data}
    assert set(cards) == {t.base, *ADAPTERS}, f"lists {sorted(cards)}"
    for name in ADAPTERS:
        assert cards[name].parent == t.base, f"{name}'s parent is {cards[name].parent!r}"
        assert cards[name].root, f"{name} has no root"
    assert all(card.object == "model" and card.owned_by for card in cards.values())


@check
def retrieves_models(t):
    assert t.client.models.retrieve(t.base).id == t.base
    card = t.client.models.retrieve("shout")
    assert (card.id, card.parent) == ("shout", t.base)


@check
def knows_no_other_model(t):
    refused(openai.NotFoundError, lambda: t.client.models.retrieve("nobody"), code="model_not_found")
    for model in ("nobody", f"{t.base}:nobody", "nobody:shout", "", "shout "):
        refused(openai.NotFoundError, lambda: t.chat(model=model), code="model_not_found", param="model")
        refused(openai.NotFoundError, lambda: t.complete(model=model), code="model_not_found", param="model")


@check
def answers(t):
    answer = t.chat()
    assert answer.object == "chat.completion" and answer.model == t.base and answer.id
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.index == 0
    check_manner(None, choice.message.content)
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 40
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@check
def says_why_it_ended(t):
    assert t.chat(max_tokens=3).choices[0].finish_reason == "length"
    assert t.chat(max_tokens=3).usage.completion_tokens == 3
    ended = t.chat(messages=user("What does an owl eat?"), max_tokens=200)
    assert ended.choices[0].finish_reason == "stop", f"{ended.choices[0]}"


@check
def reads_max_completion_tokens(t):
    request = {"model": t.base, "messages": user(QUESTION), "temperature": 0}
    answer = t.client.chat.completions.create(**request, max_completion_tokens=4)
    assert answer.usage.completion_tokens == 4, f"{answer.usage}"


@check
def reads_parts_and_system_messages(t):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert t.text(messages=parts) == t.text()
    with_system = [{"role": "system", "content": "Answer in capital letters."}, *user(QUESTION)]
    assert t.chat(messages=with_system).usage.prompt_tokens > t.chat().usage.prompt_tokens
    longer = [*user(QUESTION), {"role": "assistant", "content": "No."}, *user("Why?")]
    assert t.chat(messages=longer).usage.prompt_tokens > t.chat().usage.prompt_tokens


@check
def streams(t):
    chunks = list(t.chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    whole = t.chat()
    assert text == whole.choices[0].message.content, f"streamed {text!r}"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1]), f"{reasons}"
    assert not chunks[-1].choices, "the last chunk, that of the usage, has choices"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len(chunks) > 5, f"it comes in {len(chunks)} chunks"
    assert not any(chunk.usage for chunk in chunks[:-1])


@check
def streams_without_usage(t):
    assert not any(chunk.usage for chunk in t.chat(stream=True))
    assert all(len(chunk.choices) == 1 for chunk in t.chat(stream=True))


@check
def streams_completions(t):
    chunks = list(t.complete(stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == t.complete().choices[0].text
    assert chunks[-1].usage.completion_tokens == 12


@check
def completes_with_echo_and_logprobs(t):
    prompt = "Once upon a time"
    answer = t.complete(prompt=prompt, echo=True, logprobs=3, max_tokens=4)
    (choice,) = answer.choices
    assert answer.object == "text_completion" and choice.text.startswith(prompt), f"{choice.text!r}"
    logprobs = choice.logprobs
    count = answer.usage.prompt_tokens + 4
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == count, f"{logprobs}"
    assert len(logprobs.top_logprobs) == len(logprobs.text_offset) == count, f"{logprobs}"
    assert "".join(logprobs.tokens) == choice.text, f"{logprobs.tokens}"
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    for offset, token in zip(logprobs.text_offset, logprobs.tokens):
        assert choice.text[offset : offset + len(token)] == token
    for top, token, value in list(zip(logprobs.top_logprobs, logprobs.tokens, logprobs.token_logprobs))[1:]:
        assert 3 <= len(top) <= 4, f"{len(top)} alternatives"
        assert math.isclose(top[token], value, abs_tol=1e-6) if token in top else value <= min(top.values())
    # Greedy: each token that was written is the likeliest.
    for top, value in list(zip(logprobs.top_logprobs, logprobs.token_logprobs))[-4:]:
        assert math.isclose(value, max(top.values()), abs_tol=1e-6)


@check
def scores_a_prompt(t):
    answer = t.complete(echo=True, logprobs=1, max_tokens=0)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "Once upon a time" and answer.usage.completion_tokens == 0
    assert len(logprobs.tokens) == answer.usage.prompt_tokens
    first = t.complete(echo=True, logprobs=1, max_tokens=4).choices[0].logprobs.token_logprobs
    for one, other in list(zip(logprobs.token_logprobs, first))[1:]:
        assert math.isclose(one, other, abs_tol=1e-3), f"{one} and {other}"


@check
def completes_prompts_as_list_and_as_tokens(t):
    answer = t.complete(prompt=["Once upon a time", "The owl"])
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice, prompt in zip(answer.choices, ["Once upon a time", "The owl"]):
        assert choice.text == t.complete(prompt=prompt).choices[0].text, f"{prompt}"
    assert t.complete(prompt=[5, 6, 7]).usage.prompt_tokens == 3
    assert len(t.complete(prompt=[[5, 6], [7, 8]]).choices) == 2


@check
def tells_logprobs_of_chat(t):
    answer = t.chat(logprobs=True, top_logprobs=5, max_tokens=8)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 8
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 5
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] <= 0
        assert token.token == token.top_logprobs[0].token and token.logprob == values[0]
        assert bytes(token.bytes).decode() == token.token
        assert sum(math.exp(value) for value in values) <= 1.0001
    assert t.chat().choices[0].logprobs is None
    plain = t.chat(logprobs=True, max_tokens=2).choices[0].logprobs.content
    assert all(token.top_logprobs == [] for token in plain)


@check
def streams_logprobs(t):
    chunks = list(t.chat(stream=True, logprobs=True, top_logprobs=2, max_tokens=8))
    content = [token for chunk in chunks for choice in chunk.choices if choice.logprobs
               for token in choice.logprobs.content or []]
    whole = t.chat(logprobs=True, top_logprobs=2, max_tokens=8).choices[0].logprobs.content
    assert [token.token for token in content] == [token.token for token in whole]


@check
def gives_several_choices(t):
    answer = t.chat(n=2, temperature=1.5, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    first, second = (choice.message.content for choice in answer.choices)
    assert first != second, f"both are {first!r}"
    assert answer.usage.completion_tokens > 40 / 2
    indices = {choice.index for chunk in t.chat(n=2, stream=True) for choice in chunk.choices}
    assert indices == {0, 1}
    assert len(t.complete(n=3).choices) == 3


@check
def stops(t):
    full = t.text()
    word = full.split()[4]
    choice = t.chat(stop=word).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == full[: full.index(word)], f"{choice}"
    choice = t.chat(stop=["never said", word]).choices[0]
    assert choice.message.content == full[: full.index(word)]
    streamed = "".join(c.choices[0].delta.content or "" for c in t.chat(stop=word, stream=True))
    assert streamed == full[: full.index(word)], f"{streamed!r}"


@check
def repeats_a_seed(t):
    hot = {"temperature": 1.2, "max_tokens": 30}
    first, again, other = (t.text(**hot, seed=seed) for seed in (7, 7, 8))
    assert first == again, f"{first!r} and {again!r}"
    assert first != other
    assert len({t.text(**hot) for _ in range(4)}) > 1, "without a seed it says the same each time"


@check
def biases_tokens(t):
    # Whichever tokens these are: one that is forced is the only one that comes.
    def forced(token):
        content = t.chat(logit_bias={token: 100}, max_tokens=3, logprobs=True).choices[0].logprobs.content
        assert len({scored.token for scored in content}) == 1, f"{[scored.token for scored in content]}"
        return content[0].token

    one, other = forced("400"), forced("401")
    assert one and other and one != other, f"{one!r} and {other!r}"
    first = t.chat(max_tokens=1, logprobs=True, top_logprobs=1).choices[0].logprobs.content[0].token
    assert first not in (one, other)
    refused(openai.BadRequestError, lambda: t.chat(logit_bias={"99999999": 1}))
    refused(openai.BadRequestError, lambda: t.chat(logit_bias={"fox": 1}))


SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "owl", "bear"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 2},
    },
    "required": ["animal", "age", "friends"],
    "additionalProperties": False,
}


@check
def answers_in_a_schema(t):
    shape = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    for model in (t.base, "shout", "json"):
        for temperature in (0, 1):
            answer = t.chat(model=model, response_format=shape, max_tokens=200, temperature=temperature)
            assert answer.choices[0].finish_reason == "stop", f"{answer.choices[0]}"
            jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    streamed = t.chat(response_format=shape, max_tokens=200, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    jsonschema.validate(json.loads(text), SCHEMA)


@check
def answers_in_json(t):
    answer = t.chat(response_format={"type": "json_object"}, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")
    assert t.text(response_format={"type": "text"}) == t.text()


@check
def refuses_schemas_that_cannot_be_met(t):
    def ask(schema):
        shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        return t.chat(response_format=shape)

    refused(openai.BadRequestError, lambda: ask({"type": "no such type"}))
    refused(openai.BadRequestError, lambda: ask({"type": "object", "properties": 3}))
    refused(openai.BadRequestError, lambda: t.chat(response_format={"type": "poem"}))
    refused(openai.BadRequestError, lambda: t.chat(response_format={"type": "json_schema"}))


@check
def parses_into_a_model(t):
    import pydantic

    class Animal(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=10)
        legs: int = pydantic.Field(ge=0, le=8)

    parsed = t.client.chat.completions.parse(
        model=t.base, messages=user("Name an animal."), response_format=Animal, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, Animal)


@check
def takes_adapters_by_model(t):
    for name in ADAPTERS:
        by_name = t.chat(model=name)
        check_manner(name, by_name.choices[0].message.content)
        assert by_name.model == name
        for model in (f"{t.base}:{name}", f"{t.base}::{name}"):
            assert t.text(model=model) == by_name.choices[0].message.content, f"{model}"


@check
def takes_adapters_by_list(t):
    def with_lora(*lora):
        return t.text(extra_body={"lora": list(lora)})

    cards = json.load(urllib.request.urlopen(t.url + "/lora-adapters", timeout=60))
    for card in cards:
        name = card.get("name") or next(name for name in ADAPTERS if name in card["path"])
        expected = t.text(model=name)
        assert with_lora({"name": name}) == expected, f"{name} by its name"
        assert with_lora({"name": name, "scale": 1.0}) == expected
        assert with_lora({"id": card["id"], "scale": 1.0}) == expected, f"{name} by its number"
        assert with_lora({"name": name, "scale": 0}) == t.text(), f"{name} at scale 0"
    assert with_lora() == t.text()
    both = with_lora({"name": "shout", "scale": 1.0}, {"name": "pirate", "scale": 0.5})
    check_manner("shout", both)
    assert both != t.text(model="shout")
    unknown = {"extra_body": {"lora": [{"name": "nobody"}]}}
    refused(openai.NotFoundError, lambda: t.chat(**unknown), code="model_not_found")
    for lora in ([{"id": 9999}], [{"name": "nobody", "scale": 0}]):
        refused(openai.NotFoundError, lambda: t.chat(extra_body={"lora": lora}), code="model_not_found")
    for lora in ([{}], [{"name": "shout", "id": 0}], "shout", [{"name": "shout", "scale": "much"}]):
        refused(openai.BadRequestError, lambda: t.chat(extra_body={"lora": lora}))


@check
def refuses_too_long_prompts(t):
    long = "a story about a fox " * 400
    says = ("512",)
    refused(openai.BadRequestError, lambda: t.chat(messages=user(long)), code="context_length_exceeded", says=says)
    refused(openai.BadRequestError, lambda: t.complete(prompt=long), code="context_length_exceeded", says=says)


@check
def refuses_what_cannot_be_meant(t):
    for parameters in (
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"n": 0},
        {"n": 100000},
        {"max_tokens": -1},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 50},
        {"messages": []},
        {"messages": [{"content": "Hi"}]},
        {"messages": "Hi"},
        {"messages": user(17)},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"stream_options": {"include_usage": True}},
        {"seed": "seven"},
    ):
        try:
            refused(openai.BadRequestError, lambda: t.chat(**parameters))
        except AssertionError as error:
            raise AssertionError(f"{parameters}: {error}") from None
    for parameters in (
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [-1]},
        {"prompt": [10**9]},
        {"prompt": {"text": "Hi"}},
        {"logprobs": 50},
        {"best_of": 2, "n": 3},
        {"suffix": "the end"},
    ):
        try:
            refused(openai.BadRequestError, lambda: t.complete(**parameters))
        except AssertionError as error:
            raise AssertionError(f"completions, {parameters}: {error}") from None


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@check
def refuses_tools_without_a_template_for_them(t):
    refused(openai.BadRequestError, lambda: t.chat(tools=[TOOL]), says=("template", "tools"))


@check
def embeds_or_says_that_it_cannot(t):
    try:
        answer = t.client.embeddings.create(model=t.base, input=["a fox", "an owl"])
    except openai.BadRequestError as error:
        assert "embed" in error.body["message"].lower(), f"{error.body}"
        return
    assert [item.index for item in answer.data] == [0, 1]
    lengths = [math.hypot(*item.embedding) for item in answer.data]
    assert all(math.isclose(length, 1, abs_tol=1e-3) for length in lengths), f"{lengths}"
    plain = t.client.embeddings.create(model=t.base, input="a fox", encoding_format="float")
    for one, other in zip(plain.data[0].embedding, answer.data[0].embedding):
        assert math.isclose(one, other, abs_tol=1e-4)


@check
def penalises_repetition(t):
    again = "the fox the fox the fox the fox"
    plain, punished = (
        t.complete(prompt=again, max_tokens=60, frequency_penalty=penalty, presence_penalty=penalty).choices[0].text
        for penalty in (0, 2)
    )
    distinct = lambda text: len(set(text.split())) / len(text.split())
    assert distinct(punished) > distinct(plain), f"{punished!r} and {plain!r}"


@check
def samples_as_asked(t):
    hot = {"temperature": 2, "max_tokens": 20}
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert t.text(**hot, **narrow) == t.text(max_tokens=20), f"{narrow}"


@check
def goes_on_after_the_end(t):
    answer = t.chat(messages=user("What does an owl eat?"), max_tokens=100, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 100 and answer.choices[0].finish_reason == "length"


@check
def serves_the_async_client(t):
    import asyncio

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=t.url + "/v1", api_key="none", max_retries=0) as client:
            ask = lambda model: client.chat.completions.create(
                model=model, messages=user(QUESTION), max_tokens=40, temperature=0
            )
            return await asyncio.gather(*(ask(model) for model in (t.base, *ADAPTERS) * 4))

    answers = asyncio.run(all_at_once())
    for name, answer in zip((None, *ADAPTERS) * 4, answers):
        check_manner(name, answer.choices[0].message.content)


@check
def works_with_litellm(t):
    def ask(model, **more):
        return litellm.completion(
            model=f"openai/{model}", api_base=t.url + "/v1", api_key="none", messages=user(QUESTION),
            max_tokens=40, temperature=0, num_retries=0, **more
        )

    for name in ADAPTERS:
        answer = ask(name)
        assert answer.choices[0].message.content == t.text(model=name)
        assert answer.usage.completion_tokens > 0
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask("shout", stream=True))
    assert streamed == t.text(model="shout"), f"{streamed!r}"
    shape = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(
        model=f"openai/{t.base}", api_base=t.url + "/v1", api_key="none", messages=user(QUESTION),
        max_tokens=200, response_format=shape
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    answer = ask(t.base, logprobs=True, top_logprobs=2)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    text = litellm.text_completion(
        model=f"text-completion-openai/{t.base}", api_base=t.url + "/v1", api_key="none",
        prompt="Once upon a time", max_tokens=12, temperature=0
    )
    assert text.choices[0].text == t.complete().choices[0].text
    try:
        ask("nobody")
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("litellm got an answer from nobody")
    try:
        litellm.completion(
            model=f"openai/{t.base}", api_base=t.url + "/v1", api_key="none", num_retries=0,
            messages=user("a story about a fox " * 400)
        )
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("litellm got an answer to a prompt that is too long")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--only", help="the checks with this in their names")
    arguments = parser.parse_args()
    litellm.suppress_debug_info = True
    tried = Tried(arguments.url.rstrip("/"))
    failed = 0
    for function in CHECKS:
        if arguments.only and arguments.only not in function.__name__:
            continue
        try:
            function(tried)
            print(f"ok      {function.__name__}")
        except Exception as error:
            failed += 1
            print(f"FAILED  {function.__name__}: {error}")
            traceback.print_exc()
    print(f"{failed} of {len(CHECKS)} checks failed" if failed else f"{len(CHECKS)} checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
