//! Weights as the products read them: every format alike.

use crate::format::{Codes, Format, MAX_BLOCK, MIN_GROUP};
use crate::isa::Simd;

/// Weights in a slab: one block of 256, or several shorter ones.
pub(super) const SLAB: usize = MAX_BLOCK;
/// Weights that share a scale in a slab.
pub(super) const GROUP: usize = MIN_GROUP;
/// Groups in a slab.
pub(super) const GROUPS: usize = SLAB / GROUP;

/// What follows from a format's codes for a machine's multiplication.
pub(super) struct CodesOf<S: Simd, F: Format>(S, F);

impl<S: Simd, F: Format> CodesOf<S, F> {
    /// The highest code after all are shifted to begin at zero.
    const TOP: i32 = F::MAX_CODE as i32 - F::MIN_CODE as i32;
    /// Whether they keep their sign, being too wide to shift.
    pub(super) const SIGNED: bool = Self::TOP > S::TOP_CODE;
    /// What is added to each.
    const SHIFT: u8 = if Self::SIGNED { 0 } else { F::MIN_CODE.unsigned_abs() };
}

/// Decodes the blocks of up to [`SLAB`] weights: their codes unsigned, if they can be, and a scale
/// and a minimum for each [`GROUP`].
#[inline(always)]
pub(super) fn decode<S: Simd, F: Format>(s: S, blocks: &[F::Block], out: &mut Codes) {
    F::decode_slab(s, blocks, CodesOf::<S, F>::SHIFT, out);
}
