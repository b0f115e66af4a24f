//! Weights as the products read them: every format alike.

use crate::format::{Codes, Format, MAX_BLOCK};
use crate::isa::{Bytes, Simd};
use zerocopy::transmute_ref;

/// Weights in a slab: one block of 256, or several shorter ones.
pub(super) const SLAB: usize = MAX_BLOCK;
/// Weights that share a scale in a slab.
pub(super) const GROUP: usize = 16;
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
    const SHIFT: i32 = if Self::SIGNED { 0 } else { -(F::MIN_CODE as i32) };
}

/// Decodes the blocks of up to [`SLAB`] weights: their codes unsigned, if they can be, and a scale
/// and a minimum for each [`GROUP`], of which those beyond the blocks are zero.
#[inline(always)]
pub(super) fn decode<S: Simd, F: Format>(s: S, blocks: &[F::Block], out: &mut Codes) {
    if F::WEIGHTS == SLAB {
        let Some(block) = blocks.first() else { return };
        out.mins = [0.0; GROUPS]; // Not every format has them.
        F::decode(s, block, out);
        // Each scale to as many groups as it spans; from the end, for they lie in one place.
        for g in (0..GROUPS).rev() {
            out.scales[g] = out.scales[g * GROUP / F::GROUP];
            out.mins[g] = out.mins[g * GROUP / F::GROUP];
        }
    } else {
        (out.scales, out.mins) = ([0.0; GROUPS], [0.0; GROUPS]);
        let mut one = Codes::ZERO;
        for (b, block) in blocks.iter().enumerate() {
            F::decode(s, block, &mut one);
            out.codes[b * F::WEIGHTS..][..F::WEIGHTS].copy_from_slice(&one.codes[..F::WEIGHTS]);
            for g in 0..F::WEIGHTS / GROUP {
                out.scales[b * (F::WEIGHTS / GROUP) + g] = one.scales[g * GROUP / F::GROUP];
                out.mins[b * (F::WEIGHTS / GROUP) + g] = one.mins[g * GROUP / F::GROUP];
            }
        }
    }
    // scale * code - min == scale * (code + shift) - (min + scale * shift)
    if CodesOf::<S, F>::SHIFT != 0 {
        // In the pieces in which they were written just now: others would be waited for.
        for codes in out.codes.as_chunks_mut::<32>().0 {
            let shifted = s.bytes(transmute_ref!(codes)).less(-CodesOf::<S, F>::SHIFT as u8);
            shifted.store(codes); // Read as unsigned.
        }
        for (min, scale) in out.mins.iter_mut().zip(&out.scales) {
            *min += scale * CodesOf::<S, F>::SHIFT as f32;
        }
    }
}
