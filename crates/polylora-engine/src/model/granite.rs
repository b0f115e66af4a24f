//! Granite: Llama with a scale at every joint.

use super::description::Description;
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    if keys.switch("rope.scaling.finetuned") == Some(false) {
        // As the converter marks the hybrid models, whose attention has no positions.
        return Err(keys.error("rope.scaling.finetuned", "is false: that form is not known here"));
    }
    let mut description = Description::read(keys, Pairs::Neighbours)?;
    description.attention_scale = keys.float_or("attention.scale", description.attention_scale)?;
    description.embedding_scale = keys.float_or("embedding_scale", 1.0)?;
    description.residual_scale = keys.float_or("residual_scale", 1.0)?;
    // The key holds what logits are divided by.
    description.logit_scale = keys.float_or("logit_scale", 1.0)?.recip();
    Ok(description)
}
