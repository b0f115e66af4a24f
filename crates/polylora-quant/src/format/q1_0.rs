//! Q1_0: 128 weights of one bit, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weights 8i to 8i + 7, low first
//! weight = d where the bit is set, else -d
//! ```

use super::{Codes, Format, Half};
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q1_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl Format for Q1_0 {
    type Block = Block;
    const WEIGHTS: usize = 128;
    const GROUP: usize = 128;
    const MIN_CODE: i8 = -1;
    const MAX_CODE: i8 = 1;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.widen(s);
        let (runs, _) = out.codes.as_chunks_mut::<32>();
        for (run, bits) in runs.iter_mut().zip(block.qs.as_chunks::<4>().0) {
            s.one_bit_each(u32::from_le_bytes(*bits)).up(1).less(1).store(run);
        }
    }
}
