"""LoRA adapters on quantized GGUF models: merged into them, or applied as they run, on the CPU.

``merge`` makes one GGUF of a model and adapters and tells what survived; ``Model`` runs a model
with adapters inside its quantized products, each row of a batch with its own; ``Gguf``,
``dequantize``, ``quantize`` and ``apply`` reach the tensors.
"""

from ._polylora import (
    Adapter,
    Completion,
    Error,
    Gguf,
    MergeReport,
    Mismatch,
    Model,
    Stream,
    Survival,
    TensorInfo,
    TensorReport,
    __version__,
    apply,
    dequantize,
    inspect,
    merge,
    quantize,
)

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
