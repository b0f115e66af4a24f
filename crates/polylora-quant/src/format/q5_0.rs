//! Q5_0: 32 weights of five bits around zero, one scale.
//!
//! ```text
//! byte  0   2               6                 22
//!       | d | qh[0] .. qh[3] | qs[0] .. qs[15] |      d: half
//!
//! qs[i]: low 4 bits of weight i low, of weight i + 16 high
//! qh: bit i of the 32 is the high bit of weight i
//! weight = d * (q - 16)
//! ```

use super::short_block::{
    FewBits, ShortBlock, WEIGHTS, encode_signed, fifth_bits, five_bits, low_bits,
};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q5_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qh: [u8; 4],
    qs: [u8; 16],
}

impl ShortBlock for Q5_0 {
    type Block = Block;
    const MIN_CODE: i8 = -16;
    const MAX_CODE: i8 = 15;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &Block) -> f32 {
        block.d.widen(s)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        five_bits(s, &block.qs, block.qh).less(16)
    }
}

impl FewBits for Q5_0 {
    const TOP: u8 = 31;

    #[inline(always)]
    fn block(scale: f32, _: f32, codes: &[u8; WEIGHTS]) -> Block {
        Block { d: Half::new(scale), qh: fifth_bits(codes), qs: low_bits(codes) }
    }
}

impl Encode for Q5_0 {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        encode_signed::<S, Q5_0>(s, weights, importance, out);
    }
}

impl Recode for Q5_0 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        let codes = &codes.as_chunks().0[0];
        (block.qh, block.qs) = (fifth_bits(codes), low_bits(codes));
    }
}
