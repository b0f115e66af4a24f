//! IQ4_NL: 32 weights of four bits that index sixteen unevenly spaced levels, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weight i low, weight i + 16 high
//! weight = d * level[q]
//! ```

use super::codebook::IQ4;
use super::Half;
use super::short_block::ShortBlock;
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ4NL {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl ShortBlock for IQ4NL {
    type Block = Block;
    const MIN_CODE: i8 = -127;
    const MAX_CODE: i8 = 113;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &Block) -> f32 {
        block.d.widen(s)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        s.nibbles(&block.qs).look_up(&IQ4)
    }
}
