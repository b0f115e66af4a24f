//! Q2_0: 64 weights of two bits, -1 to 2, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weights 4i to 4i + 3, low first
//! weight = d * (q - 1)
//! ```

use super::{Codes, Format, Half};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q2_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl Format for Q2_0 {
    type Block = Block;
    const WEIGHTS: usize = 64;
    const GROUP: usize = 64;
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
