//! What the models known here have in common, and the numbers in which they differ.

use super::keys::Keys;
use crate::Error;
use crate::rope::{Pairs, Rope};

/// A decoder of this shape:
///
/// ```text
/// x = embedding[token] * embedding_scale
/// for each layer:
///     x += residual_scale * post_norm(attention(norm(x)))
///     x += residual_scale * post_norm(feed_forward(norm(x)))
/// logits = soft_cap(head(norm(x)) * logit_scale)
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) layers: usize,
    /// Values of a token between layers.
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) heads_kv: usize,
    /// Values of a head: of queries, keys and values alike.
    pub(crate) head: usize,
    pub(crate) context_length: usize,
    pub(crate) norm_eps: f32,
    /// Of the layers that see everything.
    pub(crate) rope: Rope,
    /// What the other layers see, where there are such.
    pub(crate) window: Option<Window>,
    /// Queries times keys are multiplied with this.
    pub(crate) attention_scale: f32,
    /// Bounds of the scaled product, softly.
    pub(crate) attention_cap: Option<f32>,
    /// Bounds of the logits, softly.
    pub(crate) logit_cap: Option<f32>,
    pub(crate) embedding_scale: f32,
    pub(crate) residual_scale: f32,
    pub(crate) logit_scale: f32,
    pub(crate) activation: Activation,
    pub(crate) experts: Option<Experts>,
    /// Queries and keys are normed by head.
    pub(crate) has_head_norms: bool,
    /// What attention and the feed-forward part give is normed before it is added.
    pub(crate) has_post_norms: bool,
}

/// Layers that see only what is near.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// A token sees itself and the `tokens - 1` before it.
    pub(crate) tokens: usize,
    /// Of each layer, whether it has the window.
    pub(crate) layers: Vec<bool>,
    /// Of these layers.
    pub(crate) rope: Rope,
}

/// What stands between the two products of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// By its approximation with tanh.
    Gelu,
}

/// Of a mixture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    pub(crate) count: usize,
    /// How many a token passes.
    pub(crate) used: usize,
    /// What their weights, which sum to one, are multiplied with.
    pub(crate) scale: f32,
}

impl Description {
    /// What the keys say that mean the same in every architecture; an architecture's file then
    /// sets what is its own.
    pub(super) fn read(keys: &Keys<'_>, pairs: Pairs) -> Result<Description, Error> {
        let hidden = keys.required("embedding_length")?;
        let heads = keys.required("attention.head_count")?;
        let heads_kv = keys.size("attention.head_count_kv")?.unwrap_or(heads);
        if heads_kv == 0 || !heads.is_multiple_of(heads_kv) {
            let why = format!("is {heads_kv}, and {heads} heads cannot share so many");
            return Err(keys.error("attention.head_count_kv", why));
        }
        let head = keys.size("attention.key_length")?.unwrap_or(hidden / heads);
        let value = keys.size("attention.value_length")?.unwrap_or(hidden / heads);
        if head != value || head == 0 {
            let why = format!("is {value}, and keys have {head}: they must have as many");
            return Err(keys.error("attention.value_length", why));
        }
        let experts = match keys.size("expert_count")?.unwrap_or(0) {
            0 => None,
            count => {
                let used = keys.required("expert_used_count")?;
                if used > count {
                    let why = format!("is {used}, of {count} experts");
                    return Err(keys.error("expert_used_count", why));
                }
                let scale = keys.float_or("expert_weights_scale", 1.0)?;
                Some(Experts { count, used, scale })
            }
        };
        let context_length = keys.required("context_length")?;
        let norm_eps = keys.float("attention.layer_norm_rms_epsilon")?;
        let norm_eps =
            norm_eps.ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", "is missing"))?;
        Ok(Description {
            layers: keys.required("block_count")?,
            hidden,
            heads,
            heads_kv,
            head,
            context_length,
            norm_eps,
            rope: Rope::read(keys, pairs, head, context_length)?,
            window: None,
            attention_scale: (head as f32).sqrt().recip(),
            attention_cap: None,
            logit_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            activation: Activation::Silu,
            experts,
            has_head_norms: false,
            has_post_norms: false,
        })
    }

    /// A window in all layers but every `period`th, unless the metadata lists them.
    pub(super) fn set_window(
        &mut self,
        keys: &Keys<'_>,
        tokens: usize,
        period: usize,
        rope: Rope,
    ) -> Result<(), Error> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let layers = match keys.switches(PATTERN, self.layers)? {
            Some(layers) => layers,
            None => {
                let period = keys.size(PATTERN)?.unwrap_or(period);
                let sees_all = |layer: usize| period > 0 && layer % period == period - 1;
                (0..self.layers).map(|layer| !sees_all(layer)).collect()
            }
        };
        if tokens == 0 {
            return Err(keys.error("attention.sliding_window", "is zero"));
        }
        self.window = Some(Window { tokens, layers, rope });
        Ok(())
    }

    /// The width of all queries.
    pub(crate) fn queries(&self) -> usize {
        self.heads * self.head
    }

    /// The width of all keys, and of all values.
    pub(crate) fn keys(&self) -> usize {
        self.heads_kv * self.head
    }

    /// The window of a layer, where it has one.
    pub(crate) fn window(&self, layer: usize) -> Option<&Window> {
        self.window.as_ref().filter(|window| window.layers[layer])
    }
}
