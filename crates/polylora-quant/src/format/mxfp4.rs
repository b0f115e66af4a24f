//! MXFP4: 32 weights of four bits, E2M1, with a power of two as their scale (OCP Microscaling
//! Formats 1.0).
//!
//! ```text
//! byte  0   1                 17
//!       | e | qs[0] .. qs[15] |      qs[i]: weight i low, weight i + 16 high
//! weight = 2^(e - 128) * code[q]     the codes are E2M1 doubled: hence 128, not E8M0's 127
//! ```

use super::codebook::FP4;
use super::short_block::ShortBlock;
use crate::isa::{Bytes, Simd};
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
