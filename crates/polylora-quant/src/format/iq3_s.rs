//! IQ3_S: runs of four weights from a grid of 512 magnitudes, with all their signs; each group
//! of 32 has a scale.
//!
//! ```text
//! byte  0   2                 66               74                 106                110
//!       | d | qs[0] .. qs[63] | qh[0] .. qh[7] | signs[0] .. [31] | scales[0] .. [3] |
//!
//! d: half    qs: a byte a run    qh, signs: a bit a run, a bit a weight
//! scales: 4 bits a group, two groups a byte; low first
//!
//! run r: index = qs[r], above it bit r of qh
//! weight = d * (1 + 2 * scale) * ±grid[index]
//! ```

use super::codebook::{IQ3_S, signed};
use super::{Codes, Format, Half};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ3S {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 64],
    qh: [u8; 8],
    signs: [u8; 32],
    scales: [u8; 4],
}

impl Format for IQ3S {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = -15;
    const MAX_CODE: i8 = 15;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        for (g, out) in out.scales[..8].iter_mut().enumerate() {
            let scale = block.scales[g / 2] >> (4 * (g % 2)) & 15;
            *out = d * f32::from(1 + 2 * scale);
        }
        let (runs, _) = out.codes.as_chunks_mut::<4>();
        for (r, run) in runs.iter_mut().enumerate() {
            let high = block.qh[r / 8] >> (r % 8) & 1;
            let index = usize::from(block.qs[r]) | usize::from(high) << 8;
            *run = signed(IQ3_S[index], block.signs[r / 2] >> (4 * (r % 2)));
        }
    }
}
