//! TQ2_0: 256 weights of two bits, -1 to 1 (2 decodes too), one scale.
//!
//! ```text
//! byte  0                 64  66
//!       | qs[0] .. qs[63] | d |      d: half
//!
//! qs[i]: weights i, i + 32, i + 64, i + 96, low first, of 128; then qs[32 + i] of 128 more
//! weight = d * (q - 1)
//! ```

use super::{Codes, Format, Half};
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

    #[inline(always)]
    fn decode(block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.get();
        let (halves, _) = block.qs.as_chunks::<32>();
        for (codes, qs) in out.codes.chunks_exact_mut(128).zip(halves) {
            for (k, codes) in codes.chunks_exact_mut(32).enumerate() {
                for (code, &byte) in codes.iter_mut().zip(qs) {
                    *code = (byte >> (2 * k) & 3) as i8 - 1;
                }
            }
        }
    }
}
