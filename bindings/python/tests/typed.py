"""What users write, for a type checker alone: `mypy --strict` reads it, nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np
import polylora
from numpy.typing import NDArray


def merge(base: str, adapter: Path) -> Optional[str]:
    report = polylora.merge(
        base, [adapter, (adapter, 0.5), "b=c@2"], "out.gguf", type=["keep", "attn_v=q8_0"]
    )
    worst: float = max(t.survival.relative_error for t in report.tensors if t.survival is not None)
    print(worst, report.to_dict()["copied"])
    return report.verdict


def generate(path: Path) -> list[str]:
    model = polylora.Model(path, threads=2, kv_type="q8_0", context=4096)
    shout = model.load_adapter("shout@0.5")
    one: polylora.Completion = model.generate("Hi", adapter=shout, temperature=0, stop=["."])
    chat = [{"role": "user", "content": "Hi"}]
    again: polylora.Completion = model.generate(chat, adapter=["a", shout], json_schema={})
    batch: list[polylora.Completion] = model.generate(
        ["Hi", "Ho"], adapter=[None, [shout, "b@2"]], max_tokens=5
    )
    for piece in model.stream("Hi", adapter=("a", 2.0), seed=1):
        print(piece.upper())
    logits: NDArray[np.float32] = model.logits(model.tokenize("Hi"))
    print(logits[-1].argmax(), model.detokenize(np.arange(3)))
    return [one.text, again.finish_reason, *(completion.text for completion in batch)]


def tensors(path: Path) -> NDArray[np.uint8]:
    gguf = polylora.Gguf(path)
    first = gguf.tensors[0]
    weights: NDArray[np.float32] = polylora.dequantize(first.type, gguf.raw(first.name))
    merged = polylora.apply(first.type, gguf.raw(first.name), [[1.0]], [[2.0]], scale=0.5)
    return polylora.quantize("q8_0", weights + merged)


try:
    polylora.inspect("missing")
except (polylora.Error, OSError) as error:
    print(error)
