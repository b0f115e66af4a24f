"""Answers, adapters and logits."""

from __future__ import annotations

import json
import signal
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polylora
import pytest
from numpy.typing import NDArray
from tiny_model import CONTEXT, TOKENS

ARCHITECTURES = Path(__file__).parents[3] / "crates/polylora-engine/tests/data/architectures"


def go_on(model: polylora.Model, prompt: str, **options: Any) -> str:
    completion = model.generate(prompt, raw=True, temperature=0, max_tokens=6, **options)
    return completion.text


def test_a_model_says_what_it_is(model: polylora.Model) -> None:
    assert model.architecture == "llama"
    assert model.vocab_size == len(TOKENS)
    assert model.context_length == CONTEXT
    assert "alphabet.gguf" in repr(model)


def test_text_is_continued(model: polylora.Model) -> None:
    completion = model.generate("abc", raw=True, temperature=0, max_tokens=5)
    assert completion.text == str(completion) == "defgh"
    assert completion.finish_reason == "length"
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 5)


def test_a_chat_ends_where_the_model_ends_it(model: polylora.Model) -> None:
    by_text = model.generate("Hi", temperature=0, max_tokens=3)
    assert by_text.text == "hij"
    by_messages = model.generate([{"role": "user", "content": "Hi"}], temperature=0, max_tokens=3)
    assert by_messages.prompt_tokens == by_text.prompt_tokens
    with_system = model.generate("Hi", system="Be brief.", temperature=0, max_tokens=3)
    assert with_system.prompt_tokens > by_text.prompt_tokens

    completion = model.generate(" ", raw=True, temperature=0)
    assert (completion.text, completion.finish_reason) == ("!", "stop")


def test_stop_strings_and_limits(model: polylora.Model) -> None:
    completion = model.generate("abc", raw=True, temperature=0, stop=["hi", "xyz"])
    assert (completion.text, completion.finish_reason) == ("defg", "stop")
    assert model.generate("abc", raw=True, temperature=0, stop="e").text == "d"
    assert model.generate("abc", raw=True, max_tokens=0).text == ""
    # The alphabet goes on until the context is full.
    completion = model.generate("abc", raw=True, temperature=0)
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens + completion.completion_tokens == CONTEXT + 1


def test_answers_of_a_shape(model: polylora.Model) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [7]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for given in [schema, json.dumps(schema)]:
        completion = model.generate("abc", temperature=0, json_schema=given)
        assert json.loads(completion.text) == {"n": 7}
        assert completion.finish_reason == "stop"
    assert model.generate("abc", temperature=0, grammar='start: "hello"').text == "hello"


def test_the_same_seed_gives_the_same_answer(model: polylora.Model) -> None:
    def answer(seed: int) -> str:
        return model.generate(
            "abc", raw=True, temperature=50, top_k=0, top_p=1, min_p=0, max_tokens=20, seed=seed
        ).text

    assert answer(1) == answer(1) != answer(2)


def test_other_ways_to_choose(model: polylora.Model) -> None:
    assert go_on(model, "abc", logit_bias={ord("e"): -1000.0, ord("x"): 500.0})[1] == "x"
    assert go_on(model, "abca", frequency_penalty=1000.0, presence_penalty=1000.0)[0] != "b"
    slightly: dict[str, Any] = dict(logit_bias={ord("x"): 1.0}, repeat_last_n=-1)
    assert go_on(model, "abca", **slightly)[0] == "b"
    assert go_on(model, "abca", repeat_penalty=1000.0, **slightly)[0] == "x"
    assert go_on(model, "abc", top_k=1, top_p=None, min_p=0.5) == "defghi"


def test_adapters_by_any_name(model: polylora.Model, back: Path, loud: Path) -> None:
    assert go_on(model, "xyz") == "abcdef"
    for adapter in [back, str(back), (back, 1.0), f"{back}@1", f"b={back}", [back]]:
        assert go_on(model, "xyz", adapter=adapter) == "yxwvut"
    # With three quarters the way back is likelier; none of it is none.
    assert go_on(model, "xyz", adapter=(back, 0.0)) == "abcdef"
    assert go_on(model, "xyz", adapter=(str(back), 0.75)) == "yxwvut"

    adapter = model.load_adapter(f"reverse={back}@2")
    assert (adapter.name, adapter.scale, adapter.path) == ("reverse", 2.0, back)
    assert len(adapter.hash) == 64
    assert go_on(model, "xyz", adapter=adapter) == "yxwvut"
    # Forwards from g by one, backwards by the other: stacked, they add up.
    assert go_on(model, "fg", adapter=loud) == "hIJKLM"
    assert go_on(model, "jih", adapter=[back, (loud, 3.0)]) == "IJKLMN"


def test_a_batch_gives_what_its_rows_give_alone(
    model: polylora.Model, back: Path, loud: Path
) -> None:
    prompts = ["xyz", "xyz", "fg", "abc" * 40]
    adapters = [None, back, loud, [back, loud]]
    options: dict[str, Any] = dict(raw=True, temperature=0, max_tokens=6)
    batch = model.generate(prompts, adapter=adapters, **options)
    alone = [model.generate(p, adapter=a, **options) for p, a in zip(prompts, adapters)]
    assert [row.text for row in batch] == [row.text for row in alone]
    assert [row.text for row in batch][:3] == ["abcdef", "yxwvut", "hIJKLM"]
    assert [row.prompt_tokens for row in batch] == [3, 3, 2, 120]

    same = model.generate(["xyz", "cba"], adapter=back, **options)
    assert [row.text for row in same] == ["yxwvut", "zyxwvu"]
    chats = model.generate([[{"role": "user", "content": "Hi"}], "Hi"], temperature=0, max_tokens=1)
    assert [row.text for row in chats] == ["h", "h"]
    assert model.generate([]) == []


def test_a_stream_is_the_answer_in_pieces(model: polylora.Model, back: Path) -> None:
    stream = model.stream("xyz", raw=True, adapter=back, temperature=0, max_tokens=4)
    assert stream.finish_reason is None
    assert list(stream) == ["y", "x", "w", "v"]
    assert (stream.finish_reason, stream.prompt_tokens, stream.completion_tokens) == (
        "length",
        3,
        4,
    )
    assert list(stream) == []


def test_threads_share_a_model(model: polylora.Model, back: Path) -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        adapter = back if number % 2 else None
        found[number] = "".join(
            model.stream("xyz", raw=True, adapter=adapter, temperature=0, max_tokens=6)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == {n: "yxwvut" if n % 2 else "abcdef" for n in range(8)}


def test_an_answer_can_be_interrupted(base: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="was made for 512 tokens"):
        model = polylora.Model(base, context=10_000_000)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate("abc", raw=True, temperature=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert go_on(model, "abc") == "defghi"


def test_tokens_and_text(model: polylora.Model) -> None:
    ids = model.tokenize("the<|im_end|>")
    assert [TOKENS[id] for id in ids] == ["th", "e", "<|im_end|>"]
    assert model.detokenize(ids) == "the"
    assert model.detokenize(np.array(ids), render_special=True) == "the<|im_end|>"
    assert len(model.tokenize("<|im_end|>", parse_special=False)) > 1


def reference(path: Path) -> dict[str, NDArray[np.float32]]:
    """A safetensors file of singles, read by hand."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[8 + length :][slice(*entry["data_offsets"])], np.float32).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def test_logits_are_llama_cpp_s() -> None:
    cases = json.loads((ARCHITECTURES / "cases.json").read_text())
    cases = [case for case in cases if case["model"] in ("llama.gguf", "qwen2.gguf")]
    assert {case["adapter"] is None for case in cases} == {True, False}
    for case in cases:
        model = polylora.Model(ARCHITECTURES / case["model"], exact=True, kv_type="f32")
        adapter = case["adapter"] and (ARCHITECTURES / case["adapter"], case["scale"])
        logits = model.logits(case["tokens"], adapter=adapter)
        expected = reference(ARCHITECTURES / case["reference"])[case["logits_f32"]]
        assert logits.dtype == np.float32
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() <= case["tolerance_f32"], case["name"]


def test_wrong_arguments_are_told(model: polylora.Model, base: Path, back: Path) -> None:
    wrong: Any = model
    with pytest.raises(TypeError, match="temprature.*temperature"):
        wrong.generate("a", temprature=1)
    with pytest.raises(TypeError, match="max_tokens"):
        wrong.generate("a", max_tokens="many")
    with pytest.raises(ValueError, match="max_tokens"):
        wrong.generate("a", max_tokens=-1)
    with pytest.raises(ValueError, match="top_p is 2"):
        wrong.generate("a", top_p=2)
    with pytest.raises(ValueError, match="exclude each other"):
        wrong.generate("a", json_schema={}, grammar="start: /a/")
    with pytest.raises(ValueError, match="JSON schema cannot be followed"):
        wrong.generate("a", json_schema={"type": "nothing"})
    with pytest.raises(ValueError, match="the prompt is empty"):
        wrong.generate("", raw=True)
    with pytest.raises(ValueError, match="no place for system"):
        wrong.generate("a", raw=True, system="b")
    with pytest.raises(TypeError, match="a prompt is a text"):
        wrong.generate(7)
    with pytest.raises(TypeError, match="an adapter is a text"):
        wrong.generate("a", adapter=7)
    with pytest.raises(ValueError, match="a list of 1 for 2 prompts"):
        wrong.generate(["a", "b"], adapter=[back])
    with pytest.raises(ValueError, match="one prompt"):
        wrong.stream(["a"])
    with pytest.raises(ValueError, match="token 9999 is not one of the model's"):
        wrong.logits([9999])
    with pytest.raises(ValueError, match="kv_type|nothing"):
        polylora.Model(base, kv_type="nothing")
    with pytest.raises(ValueError):
        polylora.Model(base, threads=0)


def test_errors_say_which_file(model: polylora.Model, base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        polylora.Model(tmp_path / "missing.gguf")
    assert missing.value.filename == str(tmp_path / "missing.gguf")
    with pytest.raises(FileNotFoundError, match="nothing exists at this path"):
        model.generate("a", adapter=tmp_path / "missing")
    (tmp_path / "damaged.gguf").write_bytes(base.read_bytes()[:1000])
    with pytest.raises(polylora.Error, match="damaged.gguf: .*Is the download complete"):
        polylora.Model(tmp_path / "damaged.gguf")
    adapter = ARCHITECTURES / "qwen2.linear.lora.gguf"
    with pytest.raises(polylora.Error, match="qwen2.linear.lora.gguf"):
        model.load_adapter(adapter)
    with pytest.raises(polylora.Error, match="the context is full"):
        model.generate("a" * 600, raw=True)
    with pytest.raises(ValueError, match="messages: .*role"):
        model.generate([{"content": "a"}])
    other = polylora.Model(ARCHITECTURES / "llama.gguf")
    with pytest.raises(polylora.Error, match="llama.gguf: the vocabulary"):
        other.generate("a")
