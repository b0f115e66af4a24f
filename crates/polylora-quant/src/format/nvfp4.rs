//! NVFP4: 64 weights of four bits, E2M1; each group of 16 has a scale of eight bits, UE4M3.
//!
//! ```text
//! byte  0              4                 36
//!       | d[0] .. d[3] | qs[0] .. qs[31] |      d: a byte a group
//!
//! qs: 8 bytes a group, byte i: weight i low, weight i + 8 high
//! weight = d / 2 * code[q]      the codes are E2M1 doubled: hence the half
//! ```

use super::codebook::{FP4, look_up};
use super::{Codes, Format};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum NVFP4 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: [u8; 4],
    qs: [u8; 32],
}

impl Format for NVFP4 {
    type Block = Block;
    const WEIGHTS: usize = 64;
    const GROUP: usize = 16;
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
