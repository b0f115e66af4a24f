//! Blocks of 32 weights with one scale; and the encoders that Q4_0 and Q5_0, and Q4_1 and Q5_1,
//! share.
//!
//! Codes are packed alike in these four: the low four bits of weights i and i + 16 share byte i, and
//! a fifth bit goes to bit i of a word of 32.

use super::columns::columns;
use super::search::{Groups, Tries, scale_and_min, signed_scale, temper};
use super::{Codes, Format, MAX_BLOCK, codes};
use crate::isa::{Bytes, LANES, Lanes, Simd};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Weights in a block.
pub(super) const WEIGHTS: usize = 32;
/// Blocks in a slab.
const BLOCKS: usize = MAX_BLOCK / WEIGHTS;

/// A [`Format`] of such blocks, by its parts.
pub trait ShortBlock: 'static {
    /// See [`Format::Block`].
    type Block: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned;
    /// See [`Format::MIN_CODE`].
    const MIN_CODE: i8;
    /// See [`Format::MAX_CODE`].
    const MAX_CODE: i8;

    /// The block's scale.
    fn scale<S: Simd>(s: S, block: &Self::Block) -> f32;
    /// The block's minimum.
    #[inline(always)]
    fn min<S: Simd>(_: S, _: &Self::Block) -> f32 {
        0.0
    }
    /// The block's codes.
    fn codes<S: Simd>(s: S, block: &Self::Block) -> S::Bytes;
}

impl<F: ShortBlock> Format for F {
    type Block = F::Block;
    const WEIGHTS: usize = WEIGHTS;
    const GROUP: usize = WEIGHTS;
    const MIN_CODE: i8 = F::MIN_CODE;
    const MAX_CODE: i8 = F::MAX_CODE;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &F::Block, out: &mut Codes) {
        out.scales[0] = F::scale(s, block);
        out.mins[0] = F::min(s, block);
        F::codes(s, block).store(&mut out.codes.as_chunks_mut().0[0]);
    }

    /// All eight blocks at once: scales and minima become vectors, codes are shifted before they
    /// are stored.
    #[inline(always)]
    fn decode_slab<S: Simd>(s: S, blocks: &[F::Block], shift: u8, out: &mut Codes) {
        let mut padded: [F::Block; BLOCKS] = FromZeros::new_zeroed();
        let blocks = match blocks.as_array::<BLOCKS>() {
            Some(blocks) => blocks,
            None => {
                let bytes = blocks.as_bytes();
                padded.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
                &padded
            }
        };
        let (mut scales, mut mins) = ([0.0; BLOCKS], [0.0; BLOCKS]);
        for (b, codes) in out.codes.as_chunks_mut().0.iter_mut().enumerate() {
            scales[b] = F::scale(s, &blocks[b]);
            mins[b] = F::min(s, &blocks[b]);
            F::codes(s, &blocks[b]).less(shift.wrapping_neg()).store(codes);
        }
        // scale * code - min == scale * (code + shift) - (min + scale * shift)
        let (scales, mins) = (s.by_two(&scales), s.by_two(&mins));
        out.scales = scales.to_array();
        out.mins = (mins + scales * s.splat(f32::from(shift))).to_array();
    }
}

/// A format whose codes have four or five bits.
pub(super) trait FewBits: ShortBlock {
    /// The highest code.
    const TOP: u8;

    /// A block: its scale, the weight of code 0 where the format keeps one, its codes.
    fn block(scale: f32, low: f32, codes: &[u8; WEIGHTS]) -> <Self as ShortBlock>::Block;
}

/// The low four bits of the codes.
#[inline(always)]
pub(super) fn low_bits(codes: &[u8; WEIGHTS]) -> [u8; 16] {
    let mut qs = [0; 16];
    for (i, byte) in qs.iter_mut().enumerate() {
        *byte = codes[i] & 15 | codes[i + 16] << 4;
    }
    qs
}

/// The fifth bit of each code.
#[inline(always)]
pub(super) fn fifth_bits(codes: &[u8; WEIGHTS]) -> [u8; 4] {
    let mut qh = [0; 4];
    for (byte, codes) in qh.iter_mut().zip(codes.as_chunks::<8>().0) {
        let bits = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
        // The product's high byte collects bit 0 of byte i at bit i.
        *byte = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    qh
}

/// Codes of five bits out of [`low_bits`] and [`fifth_bits`].
#[inline(always)]
pub(super) fn five_bits<S: Simd>(s: S, qs: &[u8; 16], qh: [u8; 4]) -> S::Bytes {
    s.nibbles(qs) | s.one_bit_each(u32::from_le_bytes(qh)).up(4)
}

/// ggml's cast of a code to `int8_t`, and the bound after it.
#[inline(always)]
fn at_most(top: u8, codes: &mut [u8; WEIGHTS]) {
    for code in codes {
        *code = (*code as i8).min(top as i8) as u8;
    }
}

/// The mean square of a row, taken in order.
#[inline(always)]
fn mean_square(row: &[f32]) -> f32 {
    let mut sum = 0.0;
    for x in row {
        sum += x * x;
    }
    sum / row.len() as f32
}

/// Encodes blocks without a minimum; see [`Encode::encode`](super::Encode::encode).
#[inline(always)]
pub(super) fn encode_signed<S: Simd, F: FewBits>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [<F as ShortBlock>::Block],
) {
    let half = f32::from(F::TOP / 2 + 1);
    let Some(importance) = importance else {
        for (x, out) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out) {
            let scale = codes::farthest(s, x) / -half;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            let mut codes = [0; WEIGHTS];
            codes::shifted(s, x, 0.0, inverse, half + 0.5, &mut codes);
            at_most(F::TOP, &mut codes);
            *out = F::block(scale, 0.0, &codes);
        }
        return;
    };

    let mean_square = s.splat(mean_square(weights));
    const STEP: usize = LANES * WEIGHTS;
    let steps = weights.chunks(STEP).zip(importance.chunks(STEP)).zip(out.chunks_mut(LANES));
    for ((weights, importance), out) in steps {
        let x = columns::<S, WEIGHTS>(s, weights);
        let mut w = columns(s, importance);
        temper(&mut w, &x, mean_square);
        let found = signed_scale(s, &x, &w, half);
        let (scale, inverse) = (found.scale.to_array(), found.inverse.to_array());
        for (b, (x, out)) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out).enumerate() {
            let mut codes = [0; WEIGHTS];
            codes::around(s, x, inverse[b], half, &mut codes);
            *out = F::block(scale[b], 0.0, &codes);
        }
    }
}

/// Encodes blocks with a minimum; see [`Encode::encode`](super::Encode::encode).
#[inline(always)]
pub(super) fn encode_affine<S: Simd, F: FewBits>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [<F as ShortBlock>::Block],
) {
    let top = f32::from(F::TOP);
    let Some(importance) = importance else {
        for (x, out) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out) {
            let (low, high) = codes::range(s, x);
            let scale = (high - low) / top;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            let mut codes = [0; WEIGHTS];
            codes::shifted(s, x, low, inverse, 0.5, &mut codes);
            at_most(F::TOP, &mut codes);
            *out = F::block(scale, low, &codes);
        }
        return;
    };

    if S::ROOMY {
        weighted_affine::<S, F, 2>(s, weights, importance, out);
    } else {
        weighted_affine::<S, F, 1>(s, weights, importance, out);
    }
}

/// The part of [`encode_affine`] that takes importance: `SETS` times sixteen blocks at a time.
#[inline(always)]
fn weighted_affine<S: Simd, F: FewBits, const SETS: usize>(
    s: S,
    weights: &[f32],
    importance: &[f32],
    out: &mut [<F as ShortBlock>::Block],
) {
    let top = f32::from(F::TOP);
    const STEP: usize = LANES * WEIGHTS;
    let mean_square = s.splat(mean_square(weights));
    let steps = weights.chunks(SETS * STEP).zip(importance.chunks(SETS * STEP));
    for ((weights, importance), out) in steps.zip(out.chunks_mut(SETS * LANES)) {
        let mut groups = Groups::<S::F32, WEIGHTS, SETS>::filled(s.splat(0.0));
        for (k, (weights, importance)) in
            weights.chunks(STEP).zip(importance.chunks(STEP)).enumerate()
        {
            let (x, w) = (&mut groups.x[k], &mut groups.w[k]);
            *x = columns(s, weights);
            *w = columns(s, importance);
            temper(w, x, mean_square);
        }
        let found = scale_and_min(s, &groups, &Tries::weighted(top));
        let sets = weights.chunks(STEP).zip(out.chunks_mut(LANES));
        for ((weights, out), found) in sets.zip(&found) {
            let (scale, low) = (found.scale.to_array(), found.low.to_array());
            let (base, inverse) = (found.base.to_array(), found.inverse.to_array());
            for (b, (x, out)) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out).enumerate() {
                let mut codes = [0; WEIGHTS];
                codes::above(s, x, base[b], inverse[b], top, &mut codes);
                *out = F::block(scale[b], low[b], &codes);
            }
        }
    }
}
