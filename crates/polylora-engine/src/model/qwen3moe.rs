//! Qwen 3 as a mixture of experts.

use super::description::Description;
use super::keys::Keys;
use super::qwen3;
use crate::Error;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    let description = qwen3::describe(keys)?;
    if description.experts.is_none() {
        return Err(keys.error("expert_count", "is missing or zero"));
    }
    Ok(description)
}
