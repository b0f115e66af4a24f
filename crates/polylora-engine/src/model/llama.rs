//! Llama 1 to 3, Mistral, SmolLM, Mixtral and all that were converted under this name.

use super::description::Description;
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    let mut description = Description::read(keys, Pairs::Neighbours)?;
    description.attention_scale = keys.float_or("attention.scale", description.attention_scale)?;
    Ok(description)
}
