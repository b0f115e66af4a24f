"""Merging, looking into files, and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import polylora
import pytest
from gguf.quants import dequantize as reference_dequantize
from tiny_model import CHAT_TEMPLATE, HIDDEN, TOKENS


def go_on(path: Path, prompt: str) -> str:
    return polylora.Model(path).generate(prompt, raw=True, temperature=0, max_tokens=6).text


def test_a_merged_model_does_what_its_adapter_does(
    base: Path, back: Path, loud: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    report = polylora.merge(base, back, out)
    assert go_on(base, "xyz") == "abcdef"
    assert go_on(out, "xyz") == "yxwvut"

    assert report.files == [out]
    assert report.verdict is not None and report.verdict.startswith("The adapter is in the file")
    (tensor,) = report.tensors
    assert (tensor.name, tensor.from_type, tensor.to_type) == ("output.weight", "Q8_0", "Q8_0")
    assert tensor.shape == (len(TOKENS), HIDDEN)
    assert tensor.rank == 26
    assert tensor.survival is not None and report.adapter is not None
    assert tensor.survival.survived == pytest.approx(1.0, abs=0.01)
    assert report.adapter.relative_error < 0.01 < 0.99 < report.adapter.correlation
    assert report.copied == len(polylora.Gguf(base).tensors) - 1
    assert report.mismatches == []

    as_dict = report.to_dict()
    assert as_dict["verdict"] == report.verdict
    assert as_dict["tensors"][0]["survival"]["survived"] == tensor.survival.survived

    report = polylora.merge(
        str(base),
        [(back, 0.0), f"{loud}@1"],
        out,
        overwrite=True,
        threads=1,
        type=["keep", "output=f16"],
    )
    assert report.tensors[0].to_type == "F16"
    assert go_on(out, "fg") == "hIJKLM"


def test_what_a_merge_refuses(base: Path, back: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    polylora.merge(base, back, out)
    with pytest.raises(FileExistsError, match="out.gguf"):
        polylora.merge(base, back, out)
    with pytest.raises(ValueError, match="the output is the input"):
        polylora.merge(base, back, base, overwrite=True)
    with pytest.raises(ValueError, match="q9"):
        polylora.merge(base, back, out, type="q9", overwrite=True)
    with pytest.raises(ValueError, match="no adapters"):
        polylora.merge(base, [], out, overwrite=True)
    with pytest.raises(ValueError, match="'fail' or 'skip'"):
        polylora.merge(base, back, out, on_mismatch="guess")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        polylora.merge(tmp_path / "missing.gguf", back, out, overwrite=True)
    with pytest.raises(polylora.Error, match="not a model"):
        polylora.merge(
            Path(__file__).parents[3] / "crates/polylora-engine/tests/data"
            "/architectures/llama.linear.lora.gguf",
            back,
            out,
            overwrite=True,
        )
    config = json.loads((back / "adapter_config.json").read_text())
    other = tmp_path / "ia3"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    (other / "adapter_model.safetensors").write_bytes(
        (back / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(polylora.Error, match="IA3"):
        polylora.merge(base, other, out, overwrite=True)


def test_inspect(base: Path, back: Path) -> None:
    found = polylora.inspect(base)
    assert found["architecture"] == "llama"
    assert ["general.name", "alphabet"] in found["metadata"]
    assert {
        "name": "output.weight",
        "type": "Q8_0",
        "shape": [len(TOKENS), HIDDEN],
    }.items() <= next(
        tensor for tensor in found["tensors"] if tensor["name"] == "output.weight"
    ).items()
    found = polylora.inspect(back)
    assert found["format"] == "PEFT folder"
    assert found["ranks"] == {"26": 1}


def test_a_file_is_what_the_package_gguf_says_it_is(base: Path) -> None:
    ours, theirs = polylora.Gguf(base), gguf.GGUFReader(base)
    assert ours.architecture == "llama"
    assert ours.files == [base]
    assert ours.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert ours.metadata["tokenizer.ggml.tokens"] == TOKENS
    assert ours.metadata["llama.block_count"] == 1
    assert ours.metadata["tokenizer.ggml.add_bos_token"] is False
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for our, their in zip(ours.tensors, theirs.tensors):
        assert our.type == their.tensor_type.name
        assert our.shape == tuple(int(size) for size in reversed(their.shape))
        assert our.nbytes == their.n_bytes
        raw = ours.raw(our.name)
        assert raw.tobytes() == their.data.tobytes()
        weights = ours.tensor(our.name)
        expected = reference_dequantize(their.data, their.tensor_type)
        np.testing.assert_array_equal(weights, expected.reshape(our.shape))
        np.testing.assert_array_equal(polylora.dequantize(our.type, raw), weights)
        np.testing.assert_array_equal(
            polylora.dequantize(our.type, raw.tobytes(), our.shape), weights
        )
    with pytest.raises(KeyError, match="output.weights"):
        ours.tensor("output.weights")


def test_weights_to_bytes_and_back() -> None:
    weights = np.random.default_rng(1).normal(size=(3, 512))
    for name, error in {"F16": 1e-3, "Q8_0": 0.02, "q6_k": 0.1, "Q4_K": 0.3}.items():
        data = polylora.quantize(name, weights)
        assert data.dtype == np.uint8 and data.shape[0] == 3
        back = polylora.dequantize(name, data)
        assert back.shape == weights.shape
        assert np.abs(back - weights).max() < error
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.quantize(weights.astype(np.float32), kind)
    np.testing.assert_array_equal(polylora.quantize("Q8_0", weights), expected)
    importance = np.linspace(0.1, 10.0, 512)
    weighed = polylora.quantize("Q4_K", weights, importance)
    assert (weighed != polylora.quantize("Q4_K", weights)).any()
    # Neither the order in memory nor the type matters.
    for same in [np.asfortranarray(weights), weights.astype(np.float32), weights.tolist()]:
        np.testing.assert_array_equal(
            polylora.quantize("Q4_K", same), polylora.quantize("Q4_K", weights)
        )


def test_apply_is_the_formula() -> None:
    random = np.random.default_rng(2)
    weights, down, up = (random.normal(size=shape) for shape in [(4, 64), (2, 64), (4, 2)])
    data = polylora.quantize("Q8_0", weights)
    base = polylora.dequantize("Q8_0", data)
    merged = polylora.apply("Q8_0", data, down, up, scale=0.5)
    np.testing.assert_allclose(merged, base + 0.5 * up @ down, rtol=1e-5, atol=1e-5)
    magnitude = random.uniform(1, 2, size=4)
    merged = polylora.apply("Q8_0", data, down, up, 0.5, magnitude)
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), magnitude, rtol=1e-5)


def test_arrays_that_do_not_fit() -> None:
    wrong: Any = polylora
    data = polylora.quantize("Q8_0", np.zeros((2, 64)))
    with pytest.raises(ValueError, match="q4_k"):
        wrong.quantize("Q4_Z", np.zeros(32))
    with pytest.raises(ValueError, match="no whole blocks of Q8_0, which have 32 each"):
        wrong.quantize("Q8_0", np.zeros((2, 33)))
    with pytest.raises(ValueError, match="the weight 5, .* is NaN"):
        wrong.quantize("Q8_0", [0.0] * 5 + [float("nan")] * 27)
    with pytest.raises(ValueError, match="31 "):
        wrong.quantize("Q8_0", np.zeros(32), np.zeros(31))
    with pytest.raises(ValueError, match="136 bytes of Q8_0 .* \\[3, 64\\]"):
        wrong.dequantize("Q8_0", data, (3, 64))
    with pytest.raises(ValueError, match="rows of 67 bytes"):
        wrong.dequantize("Q8_0", data[:, 1:])
    with pytest.raises(TypeError):
        wrong.dequantize("Q8_0", "text")
    with pytest.raises(ValueError, match="do not fit each other"):
        wrong.apply("Q8_0", data, np.zeros((2, 64)), np.zeros((2, 3)))
