//! IQ2_S: runs of eight weights from a grid of 1024 magnitudes, with all their signs; each group of
//! 16 has a scale.
//!
//! ```text
//! byte  0   2                 34                      66               74                       82
//!       | d | qs[0] .. qs[31] | signs[0] .. signs[31] | qh[0] .. qh[7] | scales[0] .. scales[7] |
//!
//! d: half    qs, signs: a byte a run
//! qh: 2 bits a run, four runs a byte       scales: 4 bits a group, two groups a byte; low first
//!
//! run r: index = qs[r], above it 2 bits of qh
//! weight = d * (0.5 + scale) * 0.25 * ±grid[index]
//! ```

use super::codebook::{IQ2_S, signed};
use super::{Codes, Format, Half};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ2S {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 32],
    signs: [u8; 32],
    qh: [u8; 8],
    scales: [u8; 8],
}

impl Format for IQ2S {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 16;
    const MIN_CODE: i8 = -43;
    const MAX_CODE: i8 = 43;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        for (g, out) in out.scales.iter_mut().enumerate() {
            let scale = block.scales[g / 2] >> (4 * (g % 2)) & 15;
            *out = d * (0.5 + f32::from(scale)) * 0.25;
        }
        let (runs, _) = out.codes.as_chunks_mut::<8>();
        for (r, run) in runs.iter_mut().enumerate() {
            let high = block.qh[r / 4] >> (2 * (r % 4)) & 3;
            let index = usize::from(block.qs[r]) | usize::from(high) << 8;
            *run = signed(IQ2_S[index], block.signs[r]);
        }
    }
}
