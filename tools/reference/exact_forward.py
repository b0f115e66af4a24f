"""The forward pass of every architecture of tiny_architectures.py in float64, by numpy.

A module for tiny_architectures.py: it makes nothing by itself. It is a second opinion on
what llama.cpp computes with F32 weights, so that a reference that is off is found before it
is committed, and that the tolerances are measured. Names and keys are GGUF's.
"""

import numpy as np

# The two halves of a head are rotated against each other; elsewhere, neighbouring pairs.
HALVES = {"qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3"}
GEMMA = {"gemma2", "gemma3"}
# Window patterns: every n-th layer sees everything.
GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * x * (1 + 0.044715 * x * x)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Forward:
    """A model: metadata without the architecture's prefix, float tensors, an optional adapter.

    `adapter` is {tensor name: (A, B)} in numpy's order of axes and `scale` what the product
    is multiplied by, alpha / rank included. After `logits`, `router_gap` is the smallest
    distance between the last expert chosen and the first one not chosen.
    """

    def __init__(self, architecture, metadata, tensors, n_ctx, adapter=None, scale=1.0):
        self.architecture = architecture
        self.metadata = metadata
        self.tensors = {name: np.asarray(values, np.float64) for name, values in tensors.items()}
        self.n_ctx = n_ctx
        self.adapter = adapter or {}
        self.scale = scale
        self.heads = metadata["attention.head_count"]
        self.kv_heads = metadata["attention.head_count_kv"]
        self.head_dim = metadata.get("attention.key_length", metadata["embedding_length"] // self.heads)
        self.epsilon = metadata["attention.layer_norm_rms_epsilon"]
        self.router_gap = np.inf

    def get(self, key, default):
        return self.metadata.get(key, default)

    def linear(self, name, x, expert=None):
        """[n, in] -> [n, out]; `expert` selects the matrix of a stack."""
        pick = (lambda stack: stack) if expert is None else (lambda stack: stack[expert])
        y = x @ pick(self.tensors[f"{name}.weight"]).T
        if f"{name}.scale" in self.tensors:
            y = y * self.tensors[f"{name}.scale"][expert or 0]
        if f"{name}.weight" in self.adapter:
            a, b = self.adapter[f"{name}.weight"]
            y = y + self.scale * (x @ pick(a).T @ pick(b).T)
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def frequencies(self, windowed):
        """The angle per position of each pair, and the factor of rotated vectors."""
        n_rot = self.get("rope.dimension_count", self.head_dim)
        base = self.get("rope.freq_base", 10000.0)
        kind = self.get("rope.scaling.type", "linear")
        factor = 1.0 if kind == "none" else self.get("rope.scaling.factor", 1.0)
        if windowed:
            # gemma3 has a base of its own in windows, and no scaling; gemma2 has neither.
            base = self.get("rope.freq_base_swa", base if self.architecture == "gemma2" else 10000.0)
            factor = factor if self.architecture == "gemma2" else 1.0
        pairs = np.arange(n_rot // 2)
        angle = base ** (-2.0 * pairs / n_rot)
        original = self.get("rope.scaling.original_context_length", self.metadata["context_length"])
        if "rope_freqs.weight" in self.tensors:
            angle = angle / self.tensors["rope_freqs.weight"]
        elif "rope_factors_long.weight" in self.tensors:
            which = "long" if self.n_ctx > original else "short"
            angle = angle / self.tensors[f"rope_factors_{which}.weight"]
        magnitude = self.get("rope.scaling.attn_factor", 1.0)
        if kind == "yarn":
            def pair_that_turns(times):
                return n_rot * np.log(original / (times * 2 * np.pi)) / (2 * np.log(base))

            low = max(0.0, np.floor(pair_that_turns(32.0)))
            high = min(n_rot - 1.0, np.ceil(pair_that_turns(1.0)))
            kept = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
            angle = angle / factor * (1 - kept) + angle * kept
            magnitude *= 1 + 0.1 * np.log(factor)
        else:
            angle = angle / factor
        return angle, magnitude

    def rotate(self, x, windowed):
        """[n, heads, head_dim] with the position of each row in the angle."""
        angle, magnitude = self.frequencies(windowed)
        theta = np.arange(len(x))[:, None, None] * angle
        cos, sin = np.cos(theta) * magnitude, np.sin(theta) * magnitude
        out, pairs = x.copy(), len(angle)
        if self.architecture in HALVES:
            first, second = slice(0, pairs), slice(pairs, 2 * pairs)
        else:
            first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def attention(self, block, layer, x):
        n = len(x)
        q_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if f"{block}.attn_qkv.weight" in self.tensors:
            q, k, v = np.split(self.linear(f"{block}.attn_qkv", x), [q_size, q_size + kv_size], axis=1)
        else:
            q, k, v = (self.linear(f"{block}.attn_{part}", x) for part in "qkv")
        q, k, v = (part.reshape(n, -1, self.head_dim) for part in (q, k, v))
        if f"{block}.attn_q_norm.weight" in self.tensors:
            q = rms_norm(q, self.tensors[f"{block}.attn_q_norm.weight"], self.epsilon)
            k = rms_norm(k, self.tensors[f"{block}.attn_k_norm.weight"], self.epsilon)
        every = GLOBAL_EVERY.get(self.architecture)
        windowed = every is not None and layer % every < every - 1
        q, k = self.rotate(q, windowed), self.rotate(k, windowed)
        shared = self.heads // self.kv_heads
        k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k)
        own_scale = self.get("attention.scale", 0.0) if self.architecture == "granite" else 0.0
        scores *= own_scale or self.head_dim**-0.5
        if self.architecture == "gemma2":
            cap = self.get("attn_logit_softcapping", 50.0)
            scores = cap * np.tanh(scores / cap)
        distance = np.arange(n)[:, None] - np.arange(n)
        seen = distance >= 0
        if windowed:
            seen &= distance < self.metadata["attention.sliding_window"]
        weights = softmax(np.where(seen, scores, -np.inf))
        y = np.einsum("hqk,khd->qhd", weights, v).reshape(n, q_size)
        return self.linear(f"{block}.attn_output", y)

    def feed_forward(self, block, x):
        activation = gelu if self.architecture in GEMMA else silu
        if f"{block}.ffn_gate_inp.weight" in self.tensors:
            return self.experts(block, x)
        if f"{block}.ffn_gate.weight" in self.tensors:
            gate, up = self.linear(f"{block}.ffn_gate", x), self.linear(f"{block}.ffn_up", x)
        else:
            gate, up = np.split(self.linear(f"{block}.ffn_up", x), 2, axis=1)
        return self.linear(f"{block}.ffn_down", activation(gate) * up)

    def experts(self, block, x):
        router = self.linear(f"{block}.ffn_gate_inp", x)
        used = self.metadata["expert_used_count"]
        order = np.argsort(-router, axis=1)
        ranked = np.take_along_axis(router, order, axis=1)
        self.router_gap = min(self.router_gap, (ranked[:, used - 1] - ranked[:, used]).min())
        y = np.zeros_like(x)
        for row in range(len(x)):
            one = x[row : row + 1]
            for weight, expert in zip(softmax(ranked[row, :used]), order[row, :used]):
                gate = self.linear(f"{block}.ffn_gate_exps", one, expert)
                up = self.linear(f"{block}.ffn_up_exps", one, expert)
                y[row] += weight * self.linear(f"{block}.ffn_down_exps", silu(gate) * up, expert)[0]
        return y

    def embeddings(self, tokens):
        x = self.tensors["token_embd.weight"][tokens]
        if "token_embd.weight" in self.adapter:
            a, b = self.adapter["token_embd.weight"]  # A is stored [vocabulary, rank]
            x = x + self.scale * a[tokens] @ b.T
        if self.architecture in GEMMA:
            return x * np.sqrt(self.metadata["embedding_length"])
        return x * self.get("embedding_scale", 1.0)

    def logits(self, tokens):
        """[n, vocabulary] after each token."""
        x = self.embeddings(tokens)
        residual_scale = self.get("residual_scale", 1.0)

        def normed(values, name):
            return rms_norm(values, self.tensors[f"{name}.weight"], self.epsilon)

        for layer in range(self.metadata["block_count"]):
            block = f"blk.{layer}"
            y = self.attention(block, layer, normed(x, f"{block}.attn_norm"))
            if self.architecture in GEMMA:
                y = normed(y, f"{block}.post_attention_norm")
            x = x + residual_scale * y
            y = self.feed_forward(block, normed(x, f"{block}.ffn_norm"))
            if self.architecture in GEMMA:
                y = normed(y, f"{block}.post_ffw_norm")
            x = x + residual_scale * y
        x = normed(x, "output_norm")
        output = "output" if "output.weight" in self.tensors else "token_embd"
        if output == "token_embd":
            y = x @ self.tensors["token_embd.weight"].T
        else:
            y = self.linear("output", x)
        if self.architecture == "gemma2":
            cap = self.get("final_logit_softcapping", 30.0)
            y = cap * np.tanh(y / cap)
        return y / self.get("logit_scale", 1.0)
