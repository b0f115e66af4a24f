//! NVFP4: 64 weights of four bits, E2M1; each group of 16 has a scale of eight bits, UE4M3.
//!
//! ```text
//! byte  0              4                 36
//!       | d[0] .. d[3] | qs[0] .. qs[31] |      d: a byte a group
//!
//! qs: 8 bytes a group, byte i: weight i low, weight i + 8 high
//! weight = d / 2 * code[q]      the codes are E2M1 doubled: hence the half
//! ```

use super::codebook::{FP4, FP4_LEVELS, fp4_numbers, look_up};
use super::{Codes, Encode, Format, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum NVFP4 {}

const WEIGHTS: usize = 64;
const GROUP: usize = 16;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: [u8; 4],
    qs: [u8; 32],
}

impl Format for NVFP4 {
    type Block = Block;
    const WEIGHTS: usize = WEIGHTS;
    const GROUP: usize = GROUP;
    const MIN_CODE: i8 = -12;
    const MAX_CODE: i8 = 12;

    #[inline(always)]
    fn decode<S: Simd>(_: S, block: &Block, out: &mut Codes) {
        let (qs, _) = block.qs.as_chunks::<8>();
        let (groups, _) = out.codes.as_chunks_mut::<16>();
        for (g, (codes, qs)) in groups.iter_mut().zip(qs).enumerate() {
            out.scales[g] = half_of_ue4m3(block.d[g]);
            look_up(&FP4, qs, codes);
        }
    }
}

/// Half the value of four bits of exponent (bias 7) and three of mantissa. As in ggml the top bit
/// is not looked at, but that 0x7f (E4M3's NaN) is zero and 0xff is not.
#[inline(always)]
fn half_of_ue4m3(bits: u8) -> f32 {
    if bits == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), bits & 7);
    let (exponent, mantissa) = match exponent {
        0 => (1, mantissa), // Subnormal.
        _ => (exponent, 8 + mantissa),
    };
    // mantissa / 8 * 2^(exponent - 7) / 2
    f32::from(mantissa) * f32::from_bits((exponent + 127 - 11) << 23)
}

impl Encode for NVFP4 {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out) {
            let groups = x.as_chunks::<GROUP>().0.iter().zip(out.qs.as_chunks_mut::<8>().0);
            for ((x, qs), d) in groups.zip(&mut out.d) {
                // The greatest magnitude becomes 6, the highest that E2M1 has.
                *d = ue4m3(codes::magnitude(s, x) / 6.0);
                let mut codes = [0; GROUP];
                codes::nearest_fp4(s, x, half_of_ue4m3(*d), &mut codes);
                *qs = pack(&codes);
            }
        }
    }
}

impl Recode for NVFP4 {
    const LEVELS: &'static [i8] = &FP4_LEVELS;

    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        for (codes, qs) in codes.as_chunks().0.iter().zip(block.qs.as_chunks_mut().0) {
            *qs = pack(&fp4_numbers(codes));
        }
    }
}

/// The first eight codes in the low bits, the others in the high ones.
#[inline(always)]
fn pack(codes: &[u8; GROUP]) -> [u8; GROUP / 2] {
    let mut qs = [0; GROUP / 2];
    for (i, byte) in qs.iter_mut().enumerate() {
        *byte = codes[i] | codes[i + GROUP / 2] << 4;
    }
    qs
}

/// The nearest UE4M3 of what is not below zero, halves up. But in ggml, and so here, whatever has
/// the highest exponent becomes the highest number, 448; and no subnormal is rounded up to 2^-6.
#[inline(always)]
fn ue4m3(x: f32) -> u8 {
    const HIGHEST: u8 = 0x7e;
    if x < 1.0 / 64.0 {
        return ((x * 512.0 + 0.5) as u8).min(7); // Subnormal: in 512ths.
    }
    // The bits of a single without the 20 that are too many, and with 7 as bias in place of 127.
    let bits = ((x.to_bits() + (1 << 19)) >> 20) - ((127 - 7) << 3);
    if bits < 15 << 3 { bits as u8 } else { HIGHEST }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_come_back() {
        // All but those of the highest exponent, of which only one is ever written.
        for bits in (0..15 << 3).chain([0x7e]) {
            let x = 2.0 * half_of_ue4m3(bits);
            assert_eq!(ue4m3(x), bits, "{x}");
            assert_eq!(ue4m3(x.next_up()), bits, "just above {x}");
        }
        // Halves: of normal numbers, of subnormal ones, and at either end of these.
        assert_eq!([1.0625, 1.1875].map(ue4m3), [0x39, 0x3a]);
        assert_eq!([1.5, 2.5, 0.5, 7.9].map(|x| ue4m3(x / 512.0)), [2, 3, 1, 7]);
        assert_eq!(
            [247.9, 248.0, 256.0, 1e9, f32::INFINITY].map(ue4m3),
            [0x77, 0x7e, 0x7e, 0x7e, 0x7e]
        );
    }
}
