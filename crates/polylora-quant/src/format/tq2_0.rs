//! TQ2_0: 256 weights of two bits, -1 to 1 (2 decodes too), one scale.
//!
//! ```text
//! byte  0                 64  66
//!       | qs[0] .. qs[63] | d |      d: half
//!
//! qs[i]: weights i, i + 32, i + 64, i + 96, low first, of 128; then qs[32 + i] of 128 more
//! weight = d * (q - 1)
//! ```

use super::q2_k::two_bits;
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum TQ2_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    qs: [u8; 64],
    d: Half,
}

impl Format for TQ2_0 {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 256;
    const MIN_CODE: i8 = -1;
    const MAX_CODE: i8 = 2;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.widen(s);
        let (halves, _) = block.qs.as_chunks::<32>();
        for (codes, qs) in out.codes.chunks_exact_mut(128).zip(halves) {
            let qs = s.bytes(qs);
            for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                qs.bits(2 * k as u32, 2).less(1).store(codes);
            }
        }
    }
}

/// The scale, which is the greatest magnitude, and the codes with one added: 0, 1 and 2. TQ1_0 has
/// the same.
///
/// NaN does not count. In ggml the search for the greatest magnitude starts anew after each: there,
/// and nowhere else, the bytes are others.
#[inline(always)]
pub(super) fn scale_and_codes<S: Simd>(s: S, x: &[f32; MAX_BLOCK]) -> (f32, [u8; MAX_BLOCK]) {
    let scale = codes::magnitude(s, x);
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    let mut codes = [0; MAX_BLOCK];
    codes::rounded(s, x, inverse, &mut codes);
    for code in &mut codes {
        *code = code.wrapping_add(1);
    }
    (scale, codes)
}

impl Encode for TQ2_0 {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks().0.iter().zip(out) {
            let (scale, codes) = scale_and_codes(s, x);
            *out = Block { qs: two_bits(&codes), d: Half::new(scale) };
        }
    }
}

impl Recode for TQ2_0 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = two_bits(codes);
    }
}
