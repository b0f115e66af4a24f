//! Hugging Face's names and layouts in terms of GGUF's.
//!
//! A converter renames each module, and for some architectures also moves values: the heads of q
//! and k ([`Rotary`]), a norm's weight (stored as `w` by Hugging Face and used as `1 + w`), the two
//! halves of a fused gate and up projection. Source of the facts: llama.cpp's converter and
//! `gguf/tensor_mapping.py`. Another architecture is another row of [`ARCHITECTURES`].

use crate::error::Fault;
use crate::factor::Rotary;
use polylora_file::{Gguf, Tensor};

/// What a converter does to the models of one architecture.
pub(crate) struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    heads: Heads,
    /// What the converter adds to the weights of norms.
    pub(crate) norm_plus: f32,
    /// How a fused `gate_up_proj` of experts holds its two halves.
    pub(crate) gate_up: GateUp,
    /// Names that differ from [`LAYER`], or that it lacks.
    names: &'static [(&'static str, &'static str)],
    /// Layers that Hugging Face's model keeps as `(in, out)`: what was saved of them whole has to
    /// be turned.
    turned: &'static [&'static str],
    /// The biases that llama.cpp reads where they are there but does not ask for: those that an
    /// adapter may add.
    new_biases: &'static [&'static str],
}

/// The order of the values in each head of q and k.
#[derive(Clone, Copy, PartialEq)]
enum Heads {
    /// As Hugging Face has it.
    Kept,
    /// See [`Rotary`].
    Interleaved,
}

/// The rows of one expert's fused gate and up projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum GateUp {
    /// All of gate, then all of up.
    Stacked,
    /// Gate and up in turn.
    Alternating,
}

const QKV: &[&str] = &["attn_q", "attn_k", "attn_v"];
const QKVO: &[&str] = &["attn_q", "attn_k", "attn_v", "attn_output"];
const LINEAR: &[&str] =
    &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

const PLAIN: Architecture = Architecture {
    name: "",
    heads: Heads::Kept,
    norm_plus: 0.0,
    gate_up: GateUp::Stacked,
    names: &[],
    turned: &[],
    new_biases: QKV,
};
const ROTATED: Architecture = Architecture { heads: Heads::Interleaved, ..PLAIN };

/// Norms before and after each half of a layer.
const GEMMA_NORMS: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
/// Norms after attention, or after each half.
const POST_NORMS: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", new_biases: LINEAR, ..ROTATED },
    Architecture { name: "mistral3", new_biases: LINEAR, ..ROTATED },
    Architecture { name: "granite", new_biases: LINEAR, ..ROTATED },
    Architecture { name: "granitemoe", new_biases: LINEAR, ..ROTATED },
    Architecture { name: "minicpm", new_biases: LINEAR, ..ROTATED },
    Architecture { name: "smollm3", ..ROTATED },
    Architecture { name: "arcee", ..ROTATED },
    Architecture { name: "olmo", ..ROTATED },
    Architecture { name: "llama4", names: FEED_FORWARD, ..PLAIN },
    Architecture { name: "qwen2", ..PLAIN },
    Architecture { name: "qwen2moe", ..PLAIN },
    Architecture { name: "qwen2vl", ..PLAIN },
    Architecture { name: "qwen3", ..PLAIN },
    Architecture { name: "qwen3moe", ..PLAIN },
    Architecture { name: "qwen3vl", ..PLAIN },
    Architecture { name: "qwen3vlmoe", ..PLAIN },
    Architecture { name: "gemma", norm_plus: 1.0, ..PLAIN },
    Architecture { name: "gemma2", norm_plus: 1.0, names: GEMMA_NORMS, ..PLAIN },
    Architecture { name: "gemma3", norm_plus: 1.0, names: GEMMA_NORMS, ..PLAIN },
    Architecture {
        name: "phi2",
        names: &[("self_attn.dense", "attn_output"), ("final_layernorm", "output_norm")],
        ..PLAIN
    },
    Architecture { name: "phi3", ..PLAIN },
    Architecture { name: "phimoe", ..PLAIN },
    Architecture { name: "olmo2", names: POST_NORMS, ..PLAIN },
    Architecture { name: "olmoe", ..PLAIN },
    Architecture { name: "command-r", ..PLAIN },
    Architecture { name: "cohere2", ..PLAIN },
    Architecture { name: "stablelm", ..PLAIN },
    Architecture { name: "starcoder2", ..PLAIN },
    Architecture { name: "gpt-oss", gate_up: GateUp::Alternating, names: POST_NORMS, ..PLAIN },
    Architecture {
        name: "glm4",
        names: &[
            ("post_self_attn_layernorm", "post_attention_norm"),
            ("post_mlp_layernorm", "post_ffw_norm"),
        ],
        ..PLAIN
    },
    Architecture { name: "glm4moe", names: POST_NORMS, ..PLAIN },
    Architecture { name: "exaone4", names: POST_NORMS, ..PLAIN },
    Architecture { name: "seed_oss", names: POST_NORMS, ..PLAIN },
    Architecture { name: "ernie4_5", new_biases: QKVO, ..PLAIN },
    Architecture { name: "apertus", new_biases: QKVO, names: APERTUS, ..PLAIN },
    Architecture { name: "dots1", ..PLAIN },
    Architecture { name: "gpt2", names: GPT2, turned: GPT2_TURNED, new_biases: &[], ..PLAIN },
    Architecture { name: "deepseek2", names: LATENT, new_biases: &[], ..PLAIN },
];

const FEED_FORWARD: &[(&str, &str)] = &[
    ("feed_forward.gate_proj", "ffn_gate"),
    ("feed_forward.up_proj", "ffn_up"),
    ("feed_forward.down_proj", "ffn_down"),
    ("feed_forward.router", "ffn_gate_inp"),
];

const APERTUS: &[(&str, &str)] =
    &[("attention_layernorm", "attn_norm"), ("feedforward_layernorm", "ffn_norm")];

const GPT2: &[(&str, &str)] = &[
    ("wte", "token_embd"),
    ("wpe", "position_embd"),
    ("ln_f", "output_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
];
const GPT2_TURNED: &[&str] = &["attn_qkv", "attn_output", "ffn_up", "ffn_down"];

/// Attention through a compressed key and value.
const LATENT: &[(&str, &str)] = &[
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
];

/// Modules outside the layers.
const MODEL: &[(&str, &str)] =
    &[("embed_tokens", "token_embd"), ("norm", "output_norm"), ("lm_head", "output")];

/// Modules of a layer, as most architectures name them.
const LAYER: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    // Both halves in one, which llama.cpp keeps as `ffn_up`.
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.router", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
];

/// The modules that hold a layer's experts, numbered or fused.
const EXPERTS: &[&str] = &["mlp.experts", "block_sparse_moe.experts", "feed_forward.experts"];
/// The experts that every token passes.
const SHARED: &[&str] = &["mlp.shared_expert", "mlp.shared_experts", "feed_forward.shared_expert"];
/// What an expert consists of, as a stem to which `_exps` or `_shexp` is added.
const EXPERT: &[(&str, &str)] = &[
    ("gate_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("down_proj", "ffn_down"),
    ("w1", "ffn_gate"),
    ("w3", "ffn_up"),
    ("w2", "ffn_down"),
];

/// Modules that a converter takes apart in ways that are not followed here.
const REARRANGED: &[(&str, &str)] = &[
    ("self_attn.W_pack", "is split into q, k and v"),
    ("self_attn.kv_b_proj", "is split into attn_k_b and attn_v_b, one of them transposed"),
    ("self_attn.query_key_value", "is split or reordered"),
    ("block_sparse_moe.input_linear", "is split into gate and up"),
    ("block_sparse_moe.output_linear", "is renamed"),
];

/// What may stand before `layers`, `embed_tokens`, `norm` or `lm_head`, in any combination.
const PREFIXES: &[&str] =
    &["base_model.model.", "model.", "language_model.", "text_model.", "transformer."];

/// What a layer's number stands behind.
const LAYERS: &[&str] = &["layers.", "h."];

/// A name without what stands before it in this or that wrapper.
pub(crate) fn without_prefixes(mut module: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)) {
        module = rest;
    }
    module
}

/// The names of one base.
pub(crate) struct Names<'a> {
    base: &'a Gguf,
    pub(crate) architecture: &'static Architecture,
    layers: usize,
}

/// Where a module's weight lies in the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// The tensor's name without `.weight` or `.bias`.
    pub(crate) stem: String,
    /// One of a stack of experts.
    pub(crate) expert: Option<usize>,
}

impl<'a> Names<'a> {
    pub(crate) fn of(base: &'a Gguf) -> Result<Names<'a>, Fault> {
        let name = base.architecture().unwrap_or_default();
        let row = ARCHITECTURES.iter().find(|architecture| architecture.name == name);
        let architecture = row.ok_or_else(|| Fault::Architecture {
            found: name.to_owned(),
            known: ARCHITECTURES.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
        })?;
        let numbers = base.tensors().iter().filter_map(|tensor| {
            let (number, _) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
            number.parse::<usize>().ok()?.checked_add(1)
        });
        let layers = numbers.max().unwrap_or(0);
        Ok(Names { base, architecture, layers })
    }

    /// Finds the place of `module`, its prefixes removed; `tensor` is the adapter's, for messages.
    pub(crate) fn site(&self, module: &str, tensor: &str) -> Result<Site, Fault> {
        let fault = |why: String| Fault::Module { tensor: tensor.to_owned(), why };
        let Some((layer, module)) = self.layer(module, tensor)? else {
            let stem = self.lookup(MODEL, module).ok_or_else(|| {
                fault(format!("has no name in a GGUF of architecture {}", self.architecture.name))
            })?;
            return Ok(Site { stem: stem.to_owned(), expert: None });
        };
        let at = |stem: &str| format!("blk.{layer}.{stem}");
        if let Some(stem) = self.lookup(LAYER, module) {
            let stem = at(stem);
            return match lookup(REARRANGED, module) {
                Some(how) if self.base.tensor(&format!("{stem}.weight")).is_none() => {
                    Err(fault(rearranged(how)))
                }
                _ => Ok(Site { stem, expert: None }),
            };
        }
        if let Some((expert, part)) = EXPERTS.iter().find_map(|stack| {
            let (number, part) = module.strip_prefix(stack)?.strip_prefix('.')?.split_once('.')?;
            Some((number.parse().ok()?, lookup(EXPERT, part)?))
        }) {
            return Ok(Site { stem: at(part) + "_exps", expert: Some(expert) });
        }
        if let Some(part) = SHARED
            .iter()
            .find_map(|shared| lookup(EXPERT, module.strip_prefix(shared)?.strip_prefix('.')?))
        {
            return Ok(Site { stem: at(part) + "_shexp", expert: None });
        }
        Err(fault(match lookup(REARRANGED, module) {
            Some(how) => rearranged(how),
            None => format!("has no name in a GGUF of architecture {}", self.architecture.name),
        }))
    }

    /// The layer of a module that holds a fused stack of experts.
    pub(crate) fn experts(&self, module: &str, tensor: &str) -> Result<Option<usize>, Fault> {
        let layer = self.layer(module, tensor)?;
        Ok(layer.filter(|(_, module)| EXPERTS.contains(module)).map(|(layer, _)| layer))
    }

    /// Splits `layers.7.mlp.up_proj`, and looks whether there is such a layer.
    fn layer<'m>(&self, module: &'m str, tensor: &str) -> Result<Option<(usize, &'m str)>, Fault> {
        let numbered = LAYERS.iter().find_map(|layers| module.strip_prefix(layers));
        let parts = numbered.and_then(|rest| rest.split_once('.'));
        let Some((number, module)) = parts else { return Ok(None) };
        let Ok(layer) = number.parse() else { return Ok(None) };
        if layer >= self.layers {
            let tensor = tensor.to_owned();
            return Err(Fault::Layer { tensor, layer, layers: self.layers });
        }
        Ok(Some((layer, module)))
    }

    fn lookup(
        &self,
        common: &[(&'static str, &'static str)],
        module: &str,
    ) -> Option<&'static str> {
        lookup(self.architecture.names, module).or_else(|| lookup(common, module))
    }

    /// How the values of each head are moved in `rows` rows of `stem`.
    pub(crate) fn rotary(
        &self,
        stem: &str,
        rows: usize,
        tensor: &str,
    ) -> Result<Option<Rotary>, Fault> {
        if self.architecture.heads == Heads::Kept {
            return Ok(None);
        }
        let count = match stem.rsplit('.').next() {
            Some("attn_q") => "head_count",
            Some("attn_k") => "head_count_kv",
            _ => return Ok(None),
        };
        let key = |count: &str| format!("{}.attention.{count}", self.architecture.name);
        let metadata = self.base.metadata();
        // Without a count of their own the keys have as many heads as the queries.
        let heads = metadata.u64(&key(count)).or_else(|| metadata.u64(&key("head_count")));
        let heads = heads.and_then(|heads| usize::try_from(heads).ok()).filter(|&heads| heads > 0);
        match heads.and_then(|heads| rows.checked_div(heads).filter(|head| head * heads == rows)) {
            Some(head) if head.is_multiple_of(2) => Ok(Some(Rotary { head })),
            _ => Err(Fault::BaseMetadata { key: key(count), tensor: tensor.to_owned() }),
        }
    }

    /// See [`target`].
    pub(crate) fn target(&self, name: &str) -> Option<&'a Tensor> {
        target(self.base, name)
    }

    /// Whether the base uses its embedding as the head too.
    pub(crate) fn is_tied(&self) -> bool {
        self.base.tensor("output.weight").is_none()
    }

    /// Whether what was saved whole of this layer is turned.
    pub(crate) fn is_turned(&self, stem: &str) -> bool {
        stem.rsplit('.').next().is_some_and(|stem| self.architecture.turned.contains(&stem))
    }

    /// Whether a bias that the base lacks would be read.
    pub(crate) fn takes_bias(&self, stem: &str) -> bool {
        stem.rsplit('.').next().is_some_and(|stem| self.architecture.new_biases.contains(&stem))
    }
}

/// The base's tensor of this name; its embedding stands in for a head that it lacks.
pub(crate) fn target<'a>(base: &'a Gguf, name: &str) -> Option<&'a Tensor> {
    let tied = || base.tensor("token_embd.weight").filter(|_| name == "output.weight");
    base.tensor(name).or_else(tied)
}

fn lookup(rows: &[(&'static str, &'static str)], name: &str) -> Option<&'static str> {
    rows.iter().find(|(from, _)| *from == name).map(|&(_, to)| to)
}

fn rearranged(how: &str) -> String {
    format!("{how} in a GGUF, which is not supported")
}
