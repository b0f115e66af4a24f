//! Phi 3 and 4: q, k and v in one matrix, gate and up in another; which is found by presence.
//!
//! The metadata may name a sliding window. It is not applied, as in llama.cpp: converters did not
//! write which layers have it.

use super::description::Description;
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    Description::read(keys, Pairs::Halves)
}
