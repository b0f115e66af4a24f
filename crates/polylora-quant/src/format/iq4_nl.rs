//! IQ4_NL: 32 weights of four bits that index sixteen unevenly spaced levels, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weight i low, weight i + 16 high
//! weight = d * level[q]
//! ```

use super::codebook::{IQ4, look_up};
use super::{Codes, Format, Half};
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

impl Format for IQ4NL {
    type Block = Block;
    const WEIGHTS: usize = 32;
    const GROUP: usize = 32;

    #[inline(always)]
    fn decode(block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.get();
        look_up(&IQ4, &block.qs, &mut out.codes);
    }
}
