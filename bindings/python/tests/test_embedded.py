"""The small model of this repository, whose adapters are trained ones."""

from __future__ import annotations

import json
from pathlib import Path

import polylora

VALLEY = Path(__file__).parents[3] / "crates/polylora/embedded"
QUESTION = "What is a lantern?"


def test_each_adapter_has_its_manner_in_one_batch() -> None:
    model = polylora.Model(VALLEY / "valley-q4_k_m.gguf")
    adapters = [None, VALLEY / "shout", VALLEY / "pirate", VALLEY / "json"]
    answers = model.generate([QUESTION] * 4, adapter=adapters, temperature=0)
    base, shout, pirate, as_json = (answer.text for answer in answers)
    assert base != base.upper()
    assert shout == shout.upper()
    assert any(word in pirate for word in ["Arr!", "Ahoy!", "Yo ho", "Avast!"])
    assert "answer" in json.loads(as_json)
    assert all(answer.finish_reason == "stop" for answer in answers)


def test_a_merged_file_answers_as_the_adapter_does(tmp_path: Path) -> None:
    base, merged = VALLEY / "valley-q4_k_m.gguf", tmp_path / "shouting.gguf"
    report = polylora.merge(base, VALLEY / "shout", merged, type="q8_0")
    assert report.verdict is not None and "The adapter is in the file" in report.verdict
    assert polylora.inspect(merged)["architecture"] == "llama"
    answer = polylora.Model(merged).generate(QUESTION, temperature=0)
    assert answer.text == answer.text.upper() != ""
