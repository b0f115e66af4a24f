//! Q8_0: 32 weights of eight bits, one scale.
//!
//! ```text
//! byte  0   2                 34
//!       | d | qs[0] .. qs[31] |      d: half    qs[i]: i8
//! weight = d * q
//! ```

use super::short_block::{ShortBlock, WEIGHTS};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_ref};

/// The format.
pub enum Q8_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [i8; 32],
}

impl ShortBlock for Q8_0 {
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

/// The scale that makes the greatest magnitude 127, and the codes. Q8_1 has the same.
#[inline(always)]
pub(super) fn scale_and_codes<S: Simd>(s: S, x: &[f32; 32]) -> (f32, [i8; 32]) {
    let scale = codes::magnitude(s, x) / 127.0;
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    let mut codes = [0; 32];
    codes::rounded(s, x, inverse, &mut codes);
    (scale, codes.map(|code| code as i8))
}

/// Codes with 128 added, as they are.
#[inline(always)]
pub(super) fn signed(codes: &[u8; MAX_BLOCK]) -> [i8; MAX_BLOCK] {
    codes.map(|code| code.wrapping_sub(128) as i8)
}

impl Encode for Q8_0 {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks::<32>().0.iter().zip(out) {
            let (scale, qs) = scale_and_codes(s, x);
            *out = Block { d: Half::new(scale), qs };
        }
    }
}

impl Recode for Q8_0 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs.copy_from_slice(&signed(codes)[..WEIGHTS]);
    }
}
