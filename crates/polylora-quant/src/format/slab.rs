//! Up to 256 weights of any format, as the products read them.

use super::{Codes, Format, MAX_BLOCK, MIN_GROUP};
use crate::isa::{Bytes, Lanes, Simd};
use zerocopy::transmute_ref;

const GROUPS: usize = MAX_BLOCK / MIN_GROUP;

/// See [`Format::decode_slab`]: out of [`Format::decode`].
#[inline(always)]
pub(super) fn decode<S: Simd, F: Format>(s: S, blocks: &[F::Block], shift: u8, out: &mut Codes) {
    if F::WEIGHTS == MAX_BLOCK {
        let Some(block) = blocks.first() else { return };
        out.mins = [0.0; GROUPS]; // Not every format has them.
        F::decode(s, block, out);
        // Each scale to as many groups as it spans.
        if F::GROUP == 2 * MIN_GROUP {
            for values in [&mut out.scales, &mut out.mins] {
                *values = s.by_two(&values.as_chunks().0[0]).to_array();
            }
        } else {
            // From the end, for they lie in one place.
            for g in (0..GROUPS).rev() {
                out.scales[g] = out.scales[g * MIN_GROUP / F::GROUP];
                out.mins[g] = out.mins[g * MIN_GROUP / F::GROUP];
            }
        }
    } else {
        (out.scales, out.mins) = ([0.0; GROUPS], [0.0; GROUPS]);
        let mut one = Codes::ZERO;
        for (b, block) in blocks.iter().enumerate() {
            F::decode(s, block, &mut one);
            out.codes[b * F::WEIGHTS..][..F::WEIGHTS].copy_from_slice(&one.codes[..F::WEIGHTS]);
            for g in 0..F::WEIGHTS / MIN_GROUP {
                out.scales[b * (F::WEIGHTS / MIN_GROUP) + g] = one.scales[g * MIN_GROUP / F::GROUP];
                out.mins[b * (F::WEIGHTS / MIN_GROUP) + g] = one.mins[g * MIN_GROUP / F::GROUP];
            }
        }
    }
    // scale * code - min == scale * (code + shift) - (min + scale * shift)
    if shift != 0 {
        // In the pieces in which they were written just now: others would be waited for.
        for codes in out.codes.as_chunks_mut::<32>().0 {
            s.bytes(transmute_ref!(codes)).less(shift.wrapping_neg()).store(codes);
        }
        let scales = s.load(&out.scales);
        out.mins = (s.load(&out.mins) + scales * s.splat(f32::from(shift))).to_array();
    }
}
