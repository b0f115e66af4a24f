//! Qwen 2 and 2.5: biases on q, k and v, which are found by their presence.

use super::description::Description;
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    Description::read(keys, Pairs::Halves)
}
