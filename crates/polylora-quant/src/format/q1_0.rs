//! Q1_0: 128 weights of one bit, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weights 8i to 8i + 7, low first
//! weight = d where the bit is set, else -d
//! ```

use super::columns::columns;
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, LANES, Lanes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q1_0 {}

const WEIGHTS: usize = 128;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl Format for Q1_0 {
    type Block = Block;
    const WEIGHTS: usize = WEIGHTS;
    const GROUP: usize = WEIGHTS;
    const MIN_CODE: i8 = -1;
    const MAX_CODE: i8 = 1;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.widen(s);
        let (runs, _) = out.codes.as_chunks_mut::<32>();
        for (run, bits) in runs.iter_mut().zip(block.qs.as_chunks::<4>().0) {
            s.one_bit_each(u32::from_le_bytes(*bits)).up(1).less(1).store(run);
        }
    }
}

impl Encode for Q1_0 {
    const IMPORTANCE: Importance = Importance::Ignored;

    /// The scale is the mean magnitude; a bit says that its weight is not below zero.
    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        let zero = s.splat(0.0);
        for (weights, out) in weights.chunks(LANES * WEIGHTS).zip(out.chunks_mut(LANES)) {
            let mut sum = zero;
            for x in columns::<S, WEIGHTS>(s, weights) {
                sum = sum + x.abs();
            }
            let d = (sum / s.splat(WEIGHTS as f32)).to_array();
            for (b, (x, out)) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out).enumerate() {
                out.d = Half::new(d[b]);
                let (x, _) = x.as_chunks::<LANES>();
                for (x, bits) in x.iter().zip(out.qs.as_chunks_mut::<2>().0) {
                    *bits = S::F32::bits(zero.le(s.load(x))).to_le_bytes();
                }
            }
        }
    }
}

impl Recode for Q1_0 {
    const LEVELS: &'static [i8] = &[-1, 1];

    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        for (byte, codes) in block.qs.iter_mut().zip(codes.as_chunks::<8>().0) {
            *byte = codes.iter().rev().fold(0, |bits, &code| bits << 1 | code >> 1);
        }
    }
}
