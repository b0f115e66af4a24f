import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Union, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self, TypeAlias, Unpack

__all__ = [
    "Adapter",
    "Completion",
    "Error",
    "Gguf",
    "MergeReport",
    "Mismatch",
    "Model",
    "Stream",
    "Survival",
    "TensorInfo",
    "TensorReport",
    "__version__",
    "apply",
    "dequantize",
    "inspect",
    "merge",
    "quantize",
]

__version__: str

_Path: TypeAlias = Union[str, os.PathLike[str]]
# A text is read as on the command line: [NAME=]PATH[@SCALE].
_Spec: TypeAlias = Union[str, os.PathLike[str], tuple[_Path, float]]
_Adapter: TypeAlias = Union[Adapter, _Spec]
# Several, in a list, are stacked. A tuple is a path with its scale.
_Adapters: TypeAlias = Union[_Adapter, Sequence[_Adapter], None]
_Chat: TypeAlias = Sequence[dict[str, Any]]
_Bytes: TypeAlias = Union[bytes, NDArray[np.uint8]]

class _Options(TypedDict, total=False):
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    json_schema: str | Mapping[str, Any] | None
    grammar: str | None
    raw: bool | None
    system: str | None

class Error(Exception): ...

def merge(
    base: _Path,
    adapters: _Spec | Sequence[_Spec],
    out: _Path,
    *,
    type: str | Sequence[str] = "keep",
    imatrix: _Path | None = None,
    on_mismatch: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    threads: int | None = None,
    max_shard: int | None = None,
) -> MergeReport: ...
def inspect(path: _Path) -> dict[str, Any]: ...
def dequantize(
    type: str, data: _Bytes, shape: Iterable[int] | None = None
) -> NDArray[np.float32]: ...
def quantize(
    type: str, weights: ArrayLike, importance: ArrayLike | None = None
) -> NDArray[np.uint8]: ...
def apply(
    type: str,
    data: _Bytes,
    down: ArrayLike,
    up: ArrayLike,
    scale: float = 1.0,
    magnitude: ArrayLike | None = None,
) -> NDArray[np.float32]: ...

@final
class Model:
    def __new__(
        cls,
        path: _Path,
        *,
        threads: int | None = None,
        exact: bool = False,
        kv_type: str = "f16",
        context: int | None = None,
    ) -> Self: ...
    @property
    def architecture(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    def load_adapter(self, adapter: _Spec) -> Adapter: ...
    # A text is a sequence of texts, too: the first that fits is meant.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str | _Chat, *, adapter: _Adapters = None, **options: Unpack[_Options]
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str | _Chat],
        *,
        adapter: _Adapter | Sequence[_Adapters] | None = None,
        **options: Unpack[_Options],
    ) -> list[Completion]: ...
    def stream(
        self, prompt: str | _Chat, *, adapter: _Adapters = None, **options: Unpack[_Options]
    ) -> Stream: ...
    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]: ...
    def detokenize(self, tokens: Iterable[int], *, render_special: bool = False) -> str: ...
    def logits(
        self, tokens: Iterable[int], *, adapter: _Adapters = None
    ) -> NDArray[np.float32]: ...

@final
class Adapter:
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def scale(self) -> float: ...
    @property
    def hash(self) -> str: ...

@final
class Completion:
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> Literal["stop", "length"]: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...

@final
class Stream:
    def __iter__(self) -> Self: ...
    def __next__(self) -> str: ...
    @property
    def finish_reason(self) -> Literal["stop", "length"] | None: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...

@final
class Gguf:
    def __new__(cls, path: _Path) -> Self: ...
    @property
    def architecture(self) -> str | None: ...
    @property
    def files(self) -> list[Path]: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def tensors(self) -> list[TensorInfo]: ...
    def tensor(self, name: str) -> NDArray[np.float32]: ...
    def raw(self, name: str) -> NDArray[np.uint8]: ...

@final
class TensorInfo:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...

@final
class MergeReport:
    @property
    def verdict(self) -> str | None: ...
    @property
    def files(self) -> list[Path]: ...
    @property
    def tensor_bytes(self) -> int: ...
    @property
    def copied(self) -> int: ...
    @property
    def tensors(self) -> list[TensorReport]: ...
    @property
    def adapter(self) -> Survival | None: ...
    @property
    def mismatches(self) -> list[Mismatch]: ...
    @property
    def notes(self) -> list[str]: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class TensorReport:
    @property
    def name(self) -> str: ...
    @property
    def from_type(self) -> str | None: ...
    @property
    def to_type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def rank(self) -> int: ...
    @property
    def change(self) -> float: ...
    @property
    def survival(self) -> Survival | None: ...
    @property
    def rounding(self) -> float: ...
    @property
    def codes_changed(self) -> float | None: ...

@final
class Survival:
    @property
    def survived(self) -> float: ...
    @property
    def relative_error(self) -> float: ...
    @property
    def correlation(self) -> float: ...

@final
class Mismatch:
    @property
    def tensor(self) -> str: ...
    @property
    def why(self) -> str: ...
