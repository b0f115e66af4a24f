//! Gemma 2: norms around each half of a layer, soft caps, a window in every other layer.

use super::description::{Activation, Description};
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

/// The window where the metadata has none.
const WINDOW: usize = 4096;
/// The number of layers of the 27B, whose queries are scaled by another width.
const LAYERS_27B: usize = 46;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    let mut description = Description::read(keys, Pairs::Halves)?;
    let window = keys.size("attention.sliding_window")?.unwrap_or(WINDOW);
    let rope = description.rope.with_base(keys.float("rope.freq_base_swa")?);
    description.set_window(keys, window, 2, rope)?;
    // Both are 50 and 30 in every Gemma 2; llama.cpp has these defaults too.
    description.attention_cap = Some(keys.float_or("attn_logit_softcapping", 50.0)?);
    description.logit_cap = Some(keys.float_or("final_logit_softcapping", 30.0)?);
    set_gemma(&mut description, LAYERS_27B);
    Ok(description)
}

/// What Gemma 2 and 3 share.
pub(super) fn set_gemma(description: &mut Description, layers_27b: usize) {
    description.embedding_scale = (description.hidden as f32).sqrt();
    description.activation = Activation::Gelu;
    description.has_post_norms = true;
    if description.layers == layers_27b {
        let width = description.hidden / description.heads;
        description.attention_scale = (width as f32).sqrt().recip();
    }
}
