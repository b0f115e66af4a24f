//! Qwen 3, dense: queries and keys are normed by head.

use super::description::Description;
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    let description = Description::read(keys, Pairs::Halves)?;
    Ok(Description { has_head_norms: true, ..description })
}
