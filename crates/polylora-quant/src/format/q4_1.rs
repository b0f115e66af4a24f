//! Q4_1: 32 weights of four bits, one scale and the weight of code 0.
//!
//! ```text
//! byte  0   2   4                 20
//!       | d | m | qs[0] .. qs[15] |      d, m: half    qs[i]: weight i low, weight i + 16 high
//! weight = d * q + m
//! ```

use super::short_block::{FewBits, ShortBlock, WEIGHTS, encode_affine, low_bits};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q4_1 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    m: Half,
    qs: [u8; 16],
}

impl ShortBlock for Q4_1 {
    type Block = Block;
    const MIN_CODE: i8 = 0;
    const MAX_CODE: i8 = 15;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &Block) -> f32 {
        block.d.widen(s)
    }

    #[inline(always)]
    fn min<S: Simd>(s: S, block: &Block) -> f32 {
        -block.m.widen(s)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        s.nibbles(&block.qs)
    }
}

impl FewBits for Q4_1 {
    const TOP: u8 = 15;

    #[inline(always)]
    fn block(scale: f32, low: f32, codes: &[u8; WEIGHTS]) -> Block {
        Block { d: Half::new(scale), m: Half::new(low), qs: low_bits(codes) }
    }
}

impl Encode for Q4_1 {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        encode_affine::<S, Q4_1>(s, weights, importance, out);
    }
}

impl Recode for Q4_1 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = low_bits(&codes.as_chunks().0[0]);
    }
}
