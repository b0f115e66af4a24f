//! Q8_1: 32 weights of eight bits, one scale, and their sum. ggml keeps activations in it.
//!
//! ```text
//! byte  0   2   4                 36
//!       | d | s | qs[0] .. qs[31] |      d, s: half    qs[i]: i8
//! weight = d * q      s = d * (qs[0] + .. + qs[31]), for products with a minimum
//! ```

use super::q8_0::{self, signed};
use super::short_block::{ShortBlock, WEIGHTS};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_ref};

/// The format.
pub enum Q8_1 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    s: Half,
    qs: [i8; 32],
}

impl ShortBlock for Q8_1 {
    type Block = Block;
    const MIN_CODE: i8 = i8::MIN;
    const MAX_CODE: i8 = i8::MAX;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &Block) -> f32 {
        block.d.widen(s)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        s.bytes(transmute_ref!(&block.qs))
    }
}

#[inline(always)]
fn sum(codes: &[i8]) -> i32 {
    codes.iter().map(|&code| i32::from(code)).sum()
}

impl Encode for Q8_1 {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks::<32>().0.iter().zip(out) {
            let (scale, qs) = q8_0::scale_and_codes(s, x);
            *out = Block { d: Half::new(scale), s: Half::new(sum(&qs) as f32 * scale), qs };
        }
    }
}

impl Recode for Q8_1 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        let qs = &signed(codes)[..WEIGHTS];
        block.qs.copy_from_slice(qs);
        block.s = Half::new(sum(qs) as f32 * block.d.get());
    }
}
