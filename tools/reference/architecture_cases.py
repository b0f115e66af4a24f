"""The models of tiny_architectures.py: every architecture, every variant, every weight type.

A module for tiny_architectures.py: it makes nothing by itself.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

TOKENS = 40
GEMMA = {"gemma2", "gemma3"}
EXPERTS = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
LINEAR = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
# The gains of random matrices: attention that is not uniform, logits that spread over a few units.
GAINS = {"attn_q": 1.4, "attn_k": 1.4, "attn_qkv": 1.3, "ffn_gate": 1.3, "ffn_gate_exps": 1.3}


@dataclass
class Adapter:
    """A LoRA adapter for the tensors of these kinds; without alpha its scale is the user's alone."""

    name: str
    kinds: list
    alpha: float | None
    rank: int = 4


@dataclass
class Case:
    """A model, what it is for, and what is run with it.

    `types`: type by tensor name (`blk.0.attn_q`) or kind (`attn_q`), else under "*".
    `features`: what must matter: a name and the changes that switch it off or alter it, as
    metadata keys with new values (None: left out) or kinds of tensors with a factor (None: left out).
    `ignored`: the same for what llama.cpp must be seen to ignore.
    `biases`, `scales`: kinds of matrices that have one beside them.
    `contexts`: a name for each context size that the case is run with.
    """

    name: str
    architecture: str
    purpose: str
    types: dict
    metadata: dict = field(default_factory=dict)
    features: dict = field(default_factory=dict)
    ignored: dict = field(default_factory=dict)
    hidden: int = 64
    ffn: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocabulary: int = 64
    experts: int = 0
    biases: list = field(default_factory=list)
    scales: list = field(default_factory=list)
    tied: bool = False
    embedding_spread: float = 1.0
    output_gain: float = 2.5
    vectors: dict = field(default_factory=dict)
    adapters: list = field(default_factory=list)
    contexts: dict = field(default_factory=lambda: {"": 256})

    def keys(self):
        """The metadata without the architecture's prefix."""
        keys = {
            "vocab_size": self.vocabulary,
            "context_length": 256,
            "embedding_length": self.hidden,
            "block_count": self.layers,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.head_dim,
            "rope.freq_base": 10000.0,
        }
        if self.head_dim * self.heads != self.hidden:
            keys |= {"attention.key_length": self.head_dim, "attention.value_length": self.head_dim}
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": 2}
        return keys | self.metadata

    def type_of(self, name):
        """Norms, biases, vectors and routers are F32, as converters leave them."""
        stem = name.removesuffix(".weight")
        is_beside = name.endswith((".bias", ".scale"))
        if "norm" in name or is_beside or name in self.vectors or stem.endswith("ffn_gate_inp"):
            return "F32"
        return self.types.get(stem) or self.types.get(kind_of(name)) or self.types["*"]

    def random(self, purpose):
        """A generator that depends on nothing but the case's name and what it is for."""
        return np.random.default_rng(zlib.crc32(f"{self.name}/{purpose}".encode()))

    def tokens(self):
        return self.random("tokens").integers(0, self.vocabulary, TOKENS).tolist()

    def shapes(self):
        """{kind: numpy shape} of a layer's matrices."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {}
        if self.architecture == "phi3":
            shapes["attn_qkv"] = (q + 2 * kv, self.hidden)
        else:
            shapes |= {"attn_q": (q, self.hidden), "attn_k": (kv, self.hidden), "attn_v": (kv, self.hidden)}
        shapes["attn_output"] = (self.hidden, q)
        if self.experts:
            shapes["ffn_gate_inp"] = (self.experts, self.hidden)
            for part in ("gate", "up"):
                shapes[f"ffn_{part}_exps"] = (self.experts, self.ffn, self.hidden)
            shapes["ffn_down_exps"] = (self.experts, self.hidden, self.ffn)
        elif self.architecture == "phi3":
            shapes |= {"ffn_up": (2 * self.ffn, self.hidden), "ffn_down": (self.hidden, self.ffn)}
        else:
            shapes |= {"ffn_gate": (self.ffn, self.hidden), "ffn_up": (self.ffn, self.hidden)}
            shapes["ffn_down"] = (self.hidden, self.ffn)
        return shapes

    def tensors(self):
        """{name: float32 array} before quantization."""
        rng = self.random("weights")
        embeddings = rng.standard_normal((self.vocabulary, self.hidden)) * self.embedding_spread
        out = {"token_embd.weight": embeddings}
        for layer in range(self.layers):
            block = f"blk.{layer}"
            for kind, shape in self.shapes().items():
                gain = GAINS.get(kind, 1.0) / shape[-1] ** 0.5
                out[f"{block}.{kind}.weight"] = rng.standard_normal(shape) * gain
                if kind in self.biases:
                    out[f"{block}.{kind}.bias"] = rng.standard_normal(shape[0]) * 0.5
            norms = {"attn_norm": self.hidden, "ffn_norm": self.hidden}
            if self.architecture in GEMMA:
                norms |= {"post_attention_norm": self.hidden, "post_ffw_norm": self.hidden}
            if self.architecture in ("qwen3", "qwen3moe", "gemma3"):
                norms |= {"attn_q_norm": self.head_dim, "attn_k_norm": self.head_dim}
            for norm, size in norms.items():
                middle = 1.4 if norm in ("attn_q_norm", "attn_k_norm") else 1.0
                out[f"{block}.{norm}.weight"] = middle + 0.2 * rng.standard_normal(size)
        out["output_norm.weight"] = 1 + 0.2 * rng.standard_normal(self.hidden)
        if not self.tied:
            gain = self.output_gain / self.hidden**0.5
            out["output.weight"] = rng.standard_normal((self.vocabulary, self.hidden)) * gain
        if self.experts:
            self.separate_experts(out, rng)
        self.take_scales_out(out)
        out |= {name: np.array(values) for name, values in self.vectors.items()}
        return {name: values.astype(np.float32) for name, values in out.items()}

    def take_scales_out(self, tensors):
        """One for each expert, or for a whole matrix."""
        rng = self.random("scales")
        for name in [name for name in tensors if kind_of(name) in self.scales and name.endswith(".weight")]:
            experts = tensors[name].shape[:-2]
            scale = rng.uniform(0.1, 0.6, experts or (1,))
            tensors[name] = tensors[name] / scale.reshape(*experts, 1, 1)
            tensors[name.removesuffix("weight") + "scale"] = scale

    def separate_experts(self, tensors, rng):
        """Let the first numbers of an embedding choose the experts, with clear distances.

        Random routers have near ties, where any rounding would choose other experts.
        """
        choice = 2.0 * np.arange(self.experts) - (self.experts - 1)
        for token in range(self.vocabulary):
            tensors["token_embd.weight"][token, : self.experts] = rng.permutation(choice)
        for layer in range(self.layers):
            router = tensors[f"blk.{layer}.ffn_gate_inp.weight"]
            router[:] = 0.02 * rng.standard_normal(router.shape) + np.eye(*router.shape)
            tensors[f"blk.{layer}.ffn_norm.weight"][: self.experts] = 1
            tensors[f"blk.{layer}.attn_output.weight"][: self.experts] *= 0.1
            tensors[f"blk.{layer}.ffn_down_exps.weight"][:, : self.experts] *= 0.1


def kind_of(name):
    """`blk.0.attn_q.weight` -> `attn_q`."""
    return name.rsplit(".", 1)[0].split(".")[-1]


NO_ROPE_SCALING = {"rope.scaling.type": "none"}
OTHER_BASE = {"rope.freq_base": 500.0}

CASES = [
    Case(
        "llama", "llama", "grouped-query attention; adapters on every linear layer, and on the embeddings",
        types={"*": "F32"}, vocabulary=67,
        features={"rope base": OTHER_BASE},
        adapters=[Adapter("linear", LINEAR + ["output"], alpha=8.0), Adapter("embeddings", ["token_embd"], alpha=2.0)],
    ),
    Case(
        "llama_rope_freqs", "llama", "Llama 3's rope_freqs.weight",
        types={"*": "Q8_0", "output": "F16"},
        vectors={"rope_freqs.weight": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 8.0]},
        features={"rope_freqs": {"rope_freqs.weight": None}},
    ),
    Case(
        "llama_rope_linear", "llama", "linear rope scaling",
        types={"*": "Q4_0", "output": "Q8_0"},
        metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        features={"scaling": {"rope.scaling.factor": 1.0}},
    ),
    Case(
        "llama_rope_yarn", "llama", "yarn rope scaling, rotating neighbours",
        types={"*": "Q4_1", "output": "Q8_0"},
        metadata={
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512,
            "context_length": 2048,
        },
        features={
            "yarn": NO_ROPE_SCALING,
            "yarn against linear": {"rope.scaling.type": "linear"},
            "original length": {"rope.scaling.original_context_length": 64},
        },
    ),
    Case(
        "llama_tied", "llama", "no output.weight: the embeddings serve twice",
        types={"*": "Q5_0"}, hidden=96, heads=6, tied=True, embedding_spread=0.3,
    ),
    Case(
        "llama_bias", "llama", "biases of q, k, v and the attention's output",
        types={"*": "Q5_1", "output": "Q8_0"}, biases=["attn_q", "attn_k", "attn_v", "attn_output"],
        features={"biases": {f"blk.{layer}.attn_{part}.bias": None for layer in (0, 1) for part in "qkv"}},
    ),
    Case(
        "llama_head_dim", "llama", "heads of another size than hidden / heads; one k/v head; a window that is ignored",
        types={"*": "IQ4_NL", "token_embd": "Q8_0"}, head_dim=32, kv_heads=1,
        metadata={"attention.sliding_window": 8},
        ignored={"sliding window": {"attention.sliding_window": None}},
    ),
    Case(
        "granite", "granite", "scales of embeddings, residuals, attention and logits",
        types={"*": "MXFP4", "token_embd": "Q8_0", "output": "BF16"},
        embedding_spread=0.2, output_gain=10.0,
        metadata={"embedding_scale": 6.0, "residual_scale": 0.6, "attention.scale": 0.1, "logit_scale": 4.0},
        features={
            "embedding scale": {"embedding_scale": None},
            "residual scale": {"residual_scale": None},
            "attention scale": {"attention.scale": None},
            "logit scale": {"logit_scale": 1.0},
        },
    ),
    Case(
        "llama_moe", "llama", "experts as in Mixtral; an adapter on experts, router and attention",
        types={"*": "F32"}, ffn=32, experts=4,
        features={"experts used": {"expert_used_count": 3}},
        adapters=[
            Adapter(
                "experts",
                [*EXPERTS, "ffn_gate_inp", "attn_q", "attn_v", "attn_output"],
                alpha=4.0, rank=2,
            )
        ],
    ),
    Case(
        "llama_moe_quantized", "llama", "quantized experts",
        types={"*": "Q8_0", "ffn_gate_exps": "Q4_0", "ffn_up_exps": "NVFP4", "ffn_down_exps": "Q5_0"},
        ffn=64, experts=4,
    ),
    Case(
        "llama_scales", "llama", "scales beside weights; an adapter, which they are not for",
        types={"*": "NVFP4", "attn_k": "Q8_0", "token_embd": "Q8_0", "output": "Q8_0"}, ffn=64, scales=LINEAR,
        features={kind: {f"blk.0.{kind}.scale": 2.0} for kind in LINEAR},
        # With one on the feed-forward layers llama.cpp aborts.
        adapters=[Adapter("attention", ["attn_q", "attn_k", "attn_v", "attn_output"], alpha=8.0)],
    ),
    Case(
        "llama_moe_scales", "llama", "a scale for each expert; an adapter, which they are not for",
        types={"*": "NVFP4", "token_embd": "Q8_0", "output": "Q8_0"}, ffn=64, experts=4,
        scales=["attn_v", "attn_output", *EXPERTS],
        features={kind: {f"blk.0.{kind}.scale": 2.0} for kind in EXPERTS},
        adapters=[Adapter("experts", [*EXPERTS, "ffn_gate_inp", "attn_v", "attn_output"], alpha=4.0, rank=2)],
    ),
    Case(
        "qwen2", "qwen2", "biases of q, k and v; an adapter on a quantized base; a window that is ignored",
        types={"*": "BF16", "attn_output": "Q8_0", "ffn_down": "Q5_0"}, vocabulary=71,
        biases=["attn_q", "attn_k", "attn_v"],
        metadata={"attention.sliding_window": 8},
        features={
            "rope base": OTHER_BASE,
            "biases": {f"blk.{layer}.attn_{part}.bias": None for layer in (0, 1) for part in "qkv"},
        },
        ignored={"sliding window": {"attention.sliding_window": None}},
        adapters=[Adapter("linear", LINEAR, alpha=8.0)],
    ),
    Case(
        "qwen2_rope_yarn", "qwen2", "yarn rope scaling, rotating halves, with an attention factor",
        types={"*": "F16", "ffn_down": "Q4_1"}, biases=["attn_q", "attn_k", "attn_v"],
        metadata={
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512,
            "rope.scaling.attn_factor": 1.2, "context_length": 2048,
        },
        features={
            "yarn": NO_ROPE_SCALING,
            "yarn against linear": {"rope.scaling.type": "linear"},
            "attention factor": {"rope.scaling.attn_factor": None},
        },
    ),
    Case(
        "qwen3", "qwen3", "norms of q and k; heads of another size than hidden / heads",
        types={"*": "Q8_0", "attn_k": "F16", "output": "Q5_1"}, head_dim=32,
        features={"rope base": OTHER_BASE, "norm of q": {"attn_q_norm": 1.5}, "norm of k": {"attn_k_norm": 1.5}},
    ),
    Case(
        "qwen3moe", "qwen3moe", "experts with norms of q and k; K-quants beside what short rows need",
        types={
            "*": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q8_0", "ffn_up_exps": "Q3_K", "ffn_down_exps": "Q5_0",
            "token_embd": "Q5_K", "output": "Q6_K",
        },
        hidden=256, ffn=32, experts=6, kv_heads=1, head_dim=32,
        metadata={"expert_feed_forward_length": 32},
        features={"experts used": {"expert_used_count": 3}, "norm of k": {"attn_k_norm": 1.5}},
    ),
    Case(
        "gemma2", "gemma2", "soft caps, every other layer windowed, norms after attention and ffn",
        types={
            "*": "Q4_K", "attn_v": "Q5_K", "attn_output": "Q4_0", "ffn_gate": "Q2_K", "ffn_up": "Q3_K",
            "ffn_down": "Q5_K", "token_embd": "Q6_K",
        },
        hidden=256, ffn=256, layers=3, head_dim=32, tied=True, embedding_spread=2 / 16,
        metadata={
            "attention.sliding_window": 8, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0,
        },
        features={
            "attention's soft cap": {"attn_logit_softcapping": 50.0},
            "final soft cap": {"final_logit_softcapping": 30.0},
            "window": {"attention.sliding_window": 64},
            "window by one": {"attention.sliding_window": 9},
            "rope base": OTHER_BASE,
        },
    ),
    Case(
        "gemma3", "gemma3", "five windowed layers to a global one; norms of q and k; the default base in windows",
        types={"*": "Q4_0", "token_embd": "Q8_0"},
        layers=7, head_dim=32, kv_heads=1, tied=True, embedding_spread=2 / 8,
        metadata={"attention.sliding_window": 8, "rope.freq_base": 1000000.0},
        features={
            "window": {"attention.sliding_window": 64},
            "window by one": {"attention.sliding_window": 9},
            "base in windows": {"rope.freq_base_swa": 500.0},
            "global base": {"rope.freq_base": 10000.0},
            "norm of q": {"attn_q_norm": 1.5},
        },
    ),
    Case(
        "gemma3_rope_linear", "gemma3", "linear rope scaling of the global layer alone; a base of its own in windows",
        types={"*": "IQ4_NL", "attn_v": "Q5_1", "token_embd": "Q8_0"},
        layers=7, tied=True, embedding_spread=2 / 8,
        metadata={
            "attention.sliding_window": 8, "rope.freq_base": 100000.0, "rope.freq_base_swa": 1000.0,
            "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
        },
        features={
            "scaling": {"rope.scaling.factor": 1.0},
            "base in windows": {"rope.freq_base_swa": None},
            "window": {"attention.sliding_window": 64},
        },
    ),
    Case(
        "phi3", "phi3", "fused q, k, v and fused gate and up; an adapter on both, without alpha",
        types={"*": "F32"},
        features={"rope base": OTHER_BASE},
        adapters=[Adapter("linear", ["attn_qkv", "attn_output", "ffn_up", "ffn_down"], alpha=None)],
    ),
    Case(
        "phi3_longrope", "phi3", "long and short rope factors, chosen by the context's size, and an attention factor",
        types={"*": "Q5_0", "output": "Q8_0"},
        vectors={
            "rope_factors_long.weight": [1.0, 2.0, 4.0, 6.0, 10.0, 16.0, 24.0, 32.0],
            "rope_factors_short.weight": [1.0, 1.1, 1.2, 1.4, 1.6, 2.0, 2.5, 3.0],
        },
        metadata={
            "rope.scaling.type": "longrope", "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": 1.19, "context_length": 1024,
        },
        features={
            "attention factor": {"rope.scaling.attn_factor": None},
            "short factors": {"rope_factors_short.weight": 2.0},
        },
        contexts={"short": 256, "long": 512},
    ),
    Case(
        "phi3_partial_rotary", "phi3", "rotation of a part of each head; a window that is ignored",
        types={"*": "Q5_1", "ffn_down": "Q4_1", "output": "Q8_0"},
        metadata={"rope.dimension_count": 12, "attention.sliding_window": 8},
        features={"rotated part": {"rope.dimension_count": 16}},
        ignored={"sliding window": {"attention.sliding_window": None}},
    ),
    Case(
        "llama_codebooks", "llama", "the types of less than four bits, and those of one value in three",
        types={
            "token_embd": "IQ4_XS", "output": "Q2_0",
            "blk.0.attn_q": "IQ1_S", "blk.0.attn_k": "IQ1_M", "blk.0.attn_v": "IQ2_XXS", "blk.0.attn_output": "IQ2_XS",
            "blk.0.ffn_gate": "IQ2_S", "blk.0.ffn_up": "IQ3_XXS", "blk.0.ffn_down": "IQ3_S",
            "blk.1.attn_q": "TQ1_0", "blk.1.attn_k": "TQ2_0", "blk.1.attn_v": "Q1_0", "blk.1.attn_output": "IQ4_XS",
            "blk.1.ffn_gate": "Q2_0", "blk.1.ffn_up": "TQ1_0", "blk.1.ffn_down": "TQ2_0",
        },
        hidden=256, ffn=256, head_dim=64,
    ),
]  # fmt: skip
