//! Q5_1: 32 weights of five bits, one scale and the weight of code 0.
//!
//! ```text
//! byte  0   2   4                8                 24
//!       | d | m | qh[0] .. qh[3] | qs[0] .. qs[15] |      d, m: half
//!
//! qs[i]: low 4 bits of weight i low, of weight i + 16 high
//! qh: bit i of the 32 is the high bit of weight i
//! weight = d * q + m
//! ```

use super::short_block::{
    FewBits, ShortBlock, WEIGHTS, encode_affine, fifth_bits, five_bits, low_bits,
};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q5_1 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    m: Half,
    qh: [u8; 4],
    qs: [u8; 16],
}

impl ShortBlock for Q5_1 {
    type Block = Block;
    const MIN_CODE: i8 = 0;
    const MAX_CODE: i8 = 31;

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
        five_bits(s, &block.qs, block.qh)
    }
}

impl FewBits for Q5_1 {
    const TOP: u8 = 31;

    #[inline(always)]
    fn block(scale: f32, low: f32, codes: &[u8; WEIGHTS]) -> Block {
        Block { d: Half::new(scale), m: Half::new(low), qh: fifth_bits(codes), qs: low_bits(codes) }
    }
}

impl Encode for Q5_1 {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        encode_affine::<S, Q5_1>(s, weights, importance, out);
    }
}

impl Recode for Q5_1 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        let codes = &codes.as_chunks().0[0];
        (block.qh, block.qs) = (fifth_bits(codes), low_bits(codes));
    }
}
