//! What the rules of the mixtures are made of: a tensor's role, its place, conditions on both.

use super::kept::GLM5_NEXT;
use super::table::{FIRST_RULES, Family, LAST_RULES, Mixture};
use polylora_file::{Gguf, Tensor, Value};
use polylora_quant::GgmlType;
use std::collections::HashMap;

/// What a tensor is for, as far as rules tell tensors apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// `output.weight`; the embeddings too, where a model has no such tensor and uses them as one.
    Head,
    /// Embeddings of tokens.
    Embedding,
    AttentionQ,
    AttentionK,
    /// The values, and the fused forms that hold them: q, k, v in one, or DeepSeek's `attn_kv_b`.
    AttentionV,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    /// GLM 5 Next: narrow projections, of queries and into the prediction head.
    GlmNarrow,
    Other,
}

/// Roles by part of the name, the first that fits: llama.cpp takes them in this order. The names
/// of experts' and shared experts' tensors begin as those of ordinary ones do.
const ROLES: &[(&str, Role)] = &[
    ("attn_qkv.weight", Role::AttentionV),
    ("attn_kv_b.weight", Role::AttentionV),
    ("attn_v.weight", Role::AttentionV),
    ("attn_k.weight", Role::AttentionK),
    ("attn_q.weight", Role::AttentionQ),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::FfnUp),
    ("ffn_gate", Role::FfnGate),
    ("ffn_down", Role::FfnDown),
];

const GLM_NARROW: &[&str] = &["attn_q_a", "attn_q_b", "nextn.eh_proj"];

pub(super) fn is_head(name: &str) -> bool {
    name == "output.weight"
}

pub(super) fn is_embedding(name: &str) -> bool {
    name == "token_embd.weight" || name == "per_layer_token_embd.weight"
}

impl Role {
    pub(super) fn of(tensor: &Tensor, model: &Model<'_>) -> Role {
        let name = tensor.name.as_str();
        if model.architecture == GLM5_NEXT && GLM_NARROW.iter().any(|part| name.contains(part)) {
            return Role::GlmNarrow;
        }
        if is_head(name) || (is_embedding(name) && model.tied) {
            return Role::Head;
        }
        if is_embedding(name) {
            return Role::Embedding;
        }
        Role::by_part(name).unwrap_or(Role::Other)
    }

    fn by_part(name: &str) -> Option<Role> {
        ROLES.iter().find(|(part, _)| name.contains(part)).map(|&(_, role)| role)
    }
}

/// What conditions ask of a model.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) architecture: &'a str,
    /// It has no `output.weight`.
    tied: bool,
    layers: u64,
    /// Tensors of role [`Role::AttentionV`].
    attention_v: u64,
    experts: u64,
    /// Query heads for each head of keys and values, in the first layer.
    sharing: u64,
    is_70b: bool,
    imatrix: bool,
}

impl<'a> Model<'a> {
    pub(super) fn of(base: &'a Gguf, imatrix: bool) -> Model<'a> {
        let architecture = base.architecture().unwrap_or_default();
        let number = |key: &str| {
            let key = format!("{architecture}.{key}");
            let first = || base.metadata().array(&key)?.first().and_then(Value::as_u64);
            base.metadata().u64(&key).or_else(first)
        };
        let heads = number("attention.head_count").unwrap_or(0);
        let key_heads = number("attention.head_count_kv").unwrap_or(heads);
        let is_attention_v = |t: &&Tensor| Role::by_part(&t.name) == Some(Role::AttentionV);
        // No model has more layers than this many; the arithmetic on them stays exact.
        let blocks = number("block_count").unwrap_or(0).min(u64::from(u32::MAX));
        let layers = match architecture {
            "graniteswitch" => blocks + 1, // The layer that switches.
            "nanbeige" => blocks.saturating_mul(number("num_loops").unwrap_or(1)),
            _ => blocks,
        };
        // The sizes to which llama.cpp gives this name. Llama 1 has one of 65B, where no heads
        // are shared.
        let predicting = number("nextn_predict_layers").unwrap_or(0);
        let is_70b = match (architecture, blocks.saturating_sub(predicting)) {
            ("llama" | "llama-embed", 80) => heads != key_heads,
            ("qwen2" | "deci" | "olmo", 80) | ("jais2", 68) => true,
            _ => false,
        };
        Model {
            architecture,
            tied: !base.tensors().iter().any(|tensor| is_head(&tensor.name)),
            layers: layers.min(u64::from(u32::MAX)),
            attention_v: base.tensors().iter().filter(is_attention_v).count() as u64,
            experts: number("expert_count").unwrap_or(0),
            sharing: heads.checked_div(key_heads).unwrap_or(0),
            is_70b,
            imatrix,
        }
    }

    fn is_falcon(&self) -> bool {
        self.architecture == "falcon"
    }
}

/// Where a tensor stands among those of its role: the `index`th, from 0, `of` so many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    index: u64,
    of: u64,
}

impl Place {
    /// In the first of `parts` equal parts of the layers.
    fn is_in_first(self, parts: u64) -> bool {
        self.index < self.of / parts
    }

    /// Neither in the first nor in the last eighth.
    fn is_in_middle(self) -> bool {
        !self.is_in_first(8) && self.index < 7 * self.of / 8
    }

    /// Layers where errors cost most, by llama.cpp: the outer eighths, and every third between.
    fn deserves_more_bits(self) -> bool {
        !self.is_in_middle() || (self.index - self.of / 8) % 3 == 2
    }
}

/// How many tensors of each role have had their turn.
#[derive(Default)]
pub(super) struct Counters(HashMap<Role, u64>);

impl Counters {
    /// The place of the next tensor of this role.
    pub(super) fn next(
        &mut self,
        role: Role,
        tensor: &Tensor,
        model: &Model<'_>,
        family: Family,
    ) -> Place {
        let count = self.0.entry(role).or_default();
        let index = *count;
        *count += 1;
        match role {
            Role::FfnUp | Role::FfnGate | Role::FfnDown => {
                // Where there are experts a layer has several tensors of the role, so the place is
                // the layer's. llama.cpp overlooks that for its smallest mixtures.
                let layer = layer(&tensor.name).filter(|_| model.experts > 1);
                let layer = layer.filter(|_| family != Family::TwoBit);
                Place { index: layer.unwrap_or(index), of: model.layers }
            }
            _ => Place { index, of: model.attention_v },
        }
    }
}

/// The indices of the tensors in the order in which llama.cpp counts them.
pub(super) fn counting_order(base: &Gguf) -> Vec<usize> {
    let tensors = base.tensors();
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (layer(&tensors[i].name), &tensors[i].name)); // `None` comes first.
    order
}

/// The layer in a name like `blk.12.attn_v.weight`.
fn layer(name: &str) -> Option<u64> {
    let rest = name.strip_prefix("blk.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Among the first so many tensors of the role.
    FirstTensors(u64),
    /// In the first of so many equal parts of the layers.
    FirstPart(u64),
    /// Neither in the first nor in the last eighth of the layers.
    Middle,
    /// In the outer eighths of the layers, or every third between.
    MoreBits,
    /// At least four heads of queries use the same keys and values, whose tensors are so small
    /// that more bits cost little.
    SharedHeads,
    /// The model has exactly so many experts.
    Experts(u64),
    /// Not exactly so many.
    NotExperts(u64),
    /// So many experts, or more.
    ExpertsFrom(u64),
    /// There is an importance matrix.
    Imatrix,
    /// There is none.
    NoImatrix,
    /// The architecture is falcon.
    Falcon,
    /// It is not.
    NotFalcon,
    /// The architecture is bailingmoe3, which has stacked tensors that are no experts.
    BailingMoe3,
    /// A matrix, not a stack of them.
    Flat,
    /// The row is not whole blocks of the main type.
    PartialBlock,
}

/// A type for tensors of a role where all conditions hold.
#[derive(Debug)]
pub(super) struct Rule {
    /// `None`: any.
    pub(super) role: Option<Role>,
    pub(super) when: &'static [When],
    pub(super) ty: GgmlType,
}

impl When {
    fn holds(self, place: Place, tensor: &Tensor, model: &Model<'_>, main: GgmlType) -> bool {
        match self {
            When::FirstTensors(count) => place.index < count,
            When::FirstPart(parts) => place.is_in_first(parts),
            When::Middle => place.is_in_middle(),
            When::MoreBits => place.deserves_more_bits(),
            When::SharedHeads => model.sharing >= 4,
            When::Experts(count) => model.experts == count,
            When::NotExperts(count) => model.experts != count,
            When::ExpertsFrom(count) => model.experts >= count,
            When::Imatrix => model.imatrix,
            When::NoImatrix => !model.imatrix,
            When::Falcon => model.is_falcon(),
            When::NotFalcon => !model.is_falcon(),
            When::BailingMoe3 => model.architecture == "bailingmoe3",
            When::Flat => tensor.shape.iter().rev().nth(2).is_none_or(|&size| size == 1),
            When::PartialBlock => !tensor.columns().is_multiple_of(main.block_weights()),
        }
    }
}

impl Mixture {
    /// The type that the first rule gives which applies, else the main one.
    pub(super) fn choose(
        &self,
        role: Role,
        place: Place,
        tensor: &Tensor,
        model: &Model<'_>,
    ) -> GgmlType {
        if self.family == Family::Pure {
            return self.ty;
        }
        let applies = |rule: &&Rule| {
            rule.role.is_none_or(|of| of == role)
                && rule.when.iter().all(|when| when.holds(place, tensor, model, self.ty))
        };
        let lists = [FIRST_RULES, self.family.rules(), self.rules, LAST_RULES];
        let rule = lists.into_iter().flatten().find(applies);
        let ty = rule.map_or(self.ty, |rule| rule.ty);
        // With eight query heads to each head of values these are an eighth of the usual size:
        // a better type for them is almost free.
        let lifts = self.family == Family::Usual && role == Role::AttentionV && model.is_70b;
        match ty {
            GgmlType::Q3_K | GgmlType::Q4_K if lifts => GgmlType::Q5_K,
            ty => ty,
        }
    }
}
