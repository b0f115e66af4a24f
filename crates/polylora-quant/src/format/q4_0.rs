//! Q4_0: 32 weights of four bits around zero, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weight i low, weight i + 16 high
//! weight = d * (q - 8)
//! ```

use super::short_block::{FewBits, ShortBlock, WEIGHTS, encode_signed, low_bits};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q4_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl ShortBlock for Q4_0 {
    type Block = Block;
    const MIN_CODE: i8 = -8;
    const MAX_CODE: i8 = 7;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &Block) -> f32 {
        block.d.widen(s)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        s.nibbles(&block.qs).less(8)
    }
}

impl FewBits for Q4_0 {
    const TOP: u8 = 15;

    #[inline(always)]
    fn block(scale: f32, _: f32, codes: &[u8; WEIGHTS]) -> Block {
        Block { d: Half::new(scale), qs: low_bits(codes) }
    }
}

impl Encode for Q4_0 {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        encode_signed::<S, Q4_0>(s, weights, importance, out);
    }
}

impl Recode for Q4_0 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = low_bits(&codes.as_chunks().0[0]);
    }
}
