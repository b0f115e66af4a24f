//! MXFP4: 32 weights of four bits, E2M1, with a power of two as their scale (OCP Microscaling
//! Formats 1.0).
//!
//! ```text
//! byte  0   1                 17
//!       | e | qs[0] .. qs[15] |      qs[i]: weight i low, weight i + 16 high
//! weight = 2^(e - 128) * code[q]     the codes are E2M1 doubled: hence 128, not E8M0's 127
//! ```

use super::codebook::{FP4, FP4_LEVELS, fp4_numbers};
use super::short_block::{ShortBlock, WEIGHTS, low_bits};
use super::{Encode, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::{Bytes, Simd};
use std::f64::consts::LOG2_E;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum MXFP4 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    e: u8,
    qs: [u8; 16],
}

impl ShortBlock for MXFP4 {
    type Block = Block;
    const MIN_CODE: i8 = -12;
    const MAX_CODE: i8 = 12;

    #[inline(always)]
    fn scale<S: Simd>(_: S, block: &Block) -> f32 {
        power_of_two(block.e)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        s.nibbles(&block.qs).look_up(&FP4)
    }
}

/// `2^(e - 128)`. E8M0 keeps 255 for NaN; ggml reads it as the next power, and so does this.
#[inline(always)]
fn power_of_two(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e), // 2^-128 and 2^-127 are subnormal.
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

impl Encode for MXFP4 {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out) {
            let e = exponent(codes::magnitude(s, x));
            let mut codes = [0; WEIGHTS];
            codes::nearest_fp4(s, x, power_of_two(e), &mut codes);
            *out = Block { e, qs: low_bits(&codes) };
        }
    }
}

impl Recode for MXFP4 {
    const LEVELS: &'static [i8] = &FP4_LEVELS;

    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        let codes = codes.first_chunk().expect("a block has fewer");
        block.qs = low_bits(&fp4_numbers(codes));
    }
}

/// The `e` that gives the greatest magnitude a code of 8 or 12: two less than its exponent.
///
/// ggml's exponent is the whole part of a logarithm in single precision. Just below a power of two
/// that is rounded up to the power's own; so it is here, whatever a platform's logarithms are.
#[inline(always)]
fn exponent(magnitude: f32) -> u8 {
    if magnitude == 0.0 || magnitude == f32::INFINITY {
        return 0;
    }
    let bits = f64::from(magnitude).to_bits(); // In double precision no single is subnormal.
    let exponent = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(bits << 12 >> 12 | 1.0_f64.to_bits());
    // The slope of the logarithm at the next power: the further below, the more this is too high,
    // but it is exact enough where it matters.
    let next = f64::from(exponent + 1);
    let log2 = next + (mantissa / 2.0 - 1.0) * LOG2_E;
    let exponent = exponent + i32::from(log2 as f32 == next as f32);
    // The smallest magnitudes have it below zero: then it wraps around, as in ggml.
    (exponent - 2 + 127) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_those_of_rounded_logarithms() {
        for power in -149..=127 {
            let power = 2.0_f64.powi(power) as f32;
            for steps in 0..100 {
                let magnitude = f32::from_bits(power.to_bits().saturating_sub(steps).max(1));
                for magnitude in [magnitude, 1.5 * magnitude] {
                    // None of these is about the middle of two singles: an error in the last
                    // digit of a double makes no difference.
                    let log2 = f64::from(magnitude).log2() as f32;
                    let want = (log2.floor() as i32 + 125) as u8;
                    assert_eq!(exponent(magnitude), want, "{magnitude:e}");
                }
            }
        }
        assert_eq!(exponent(f32::MAX), 253);
        assert_eq!((exponent(0.0), exponent(f32::INFINITY)), (0, 0));
    }
}
