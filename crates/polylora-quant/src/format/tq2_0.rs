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
