//! Q2_0: 64 weights of two bits, -1 to 2, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weights 4i to 4i + 3, low first
//! weight = d * (q - 1)
//! ```

use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::{LANES, Lanes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q2_0 {}

const WEIGHTS: usize = 64;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl Format for Q2_0 {
    type Block = Block;
    const WEIGHTS: usize = WEIGHTS;
    const GROUP: usize = WEIGHTS;
    const MIN_CODE: i8 = -1;
    const MAX_CODE: i8 = 2;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.widen(s);
        let (runs, _) = out.codes.as_chunks_mut::<4>();
        for (run, &byte) in runs.iter_mut().zip(&block.qs) {
            *run = std::array::from_fn(|i| (byte >> (2 * i) & 3) as i8 - 1);
        }
    }
}

impl Encode for Q2_0 {
    const IMPORTANCE: Importance = Importance::Ignored;

    /// The scale is the greatest magnitude: so no weight gets the highest code.
    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out) {
            let d = codes::magnitude(s, x);
            let mut codes = [0; WEIGHTS];
            round(s, x, d, &mut codes);
            out.d = Half::new(d);
            out.qs = pack(&codes);
        }
    }
}

impl Recode for Q2_0 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = pack(codes.first_chunk().expect("a block has fewer"));
    }
}

/// Four codes a byte.
#[inline(always)]
fn pack(codes: &[u8; WEIGHTS]) -> [u8; WEIGHTS / 4] {
    let mut qs = [0; WEIGHTS / 4];
    for (byte, codes) in qs.iter_mut().zip(codes.as_chunks::<4>().0) {
        *byte = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
    }
    qs
}

/// `round(x / d) + 1`, where no magnitude is above `d`: halves go away from zero, as in C's
/// `roundf`. What is no number gets code 0, for C casts it to the lowest integer.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32; WEIGHTS], d: f32, out: &mut [u8; WEIGHTS]) {
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    // With an infinite one no quotient is a number: infinities go the way of NaN.
    let inverse = if inverse.is_finite() { inverse } else { f32::NAN };
    let (inverse, low, high) = (s.splat(inverse), s.splat(-0.5), s.splat(0.5));
    let (zero, one, two) = (s.splat(0.0), s.splat(1.0), s.splat(2.0));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        let x = s.load(x) * inverse;
        let above_low = S::F32::select(x.lt(high), one, two);
        *out = S::F32::select(low.lt(x), above_low, zero).to_bytes();
    }
}
