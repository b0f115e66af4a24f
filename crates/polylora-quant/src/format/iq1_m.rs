//! IQ1_M: runs of eight weights from a grid of -1, 0 and 1, each shifted by an eighth; each group
//! of 16 has a scale.
//!
//! ```text
//! byte  0                 32                48                       56
//!       | qs[0] .. qs[31] | qh[0] .. qh[15] | scales[0] .. scales[3] |
//!
//! qs, qh: u8    scales: u16
//! qh: 4 bits a run, two runs a byte, low first:     bits 0-2: index, high    bit 3: down
//! scales: 3 bits a group, four groups a number; the upper 4 bits of each are a quarter of
//!         d, a half; low first
//!
//! run r: index = qs[r], above it 3 bits of qh
//! weight = d * (2 * scale + 1) * (grid[index] + 1/8), or - 1/8 where `down` is set
//!        = d * (2 * scale + 1) / 8 * (8 * grid[index] + 1)
//! ```

use super::codebook::IQ1;
use super::{Codes, Format, Half};
use crate::isa::Simd;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ1M {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    qs: [u8; 32],
    qh: [u8; 16],
    scales: [U16; 4],
}

impl Format for IQ1M {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 16;
    const MIN_CODE: i8 = -9;
    const MAX_CODE: i8 = 9;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let scales = block.scales.map(U16::get);
        let d = scales.iter().rev().fold(0, |bits, scale| bits << 4 | scale >> 12);
        let d = Half(U16::new(d)).widen(s);
        for (g, out) in out.scales.iter_mut().enumerate() {
            let scale = scales[g / 4] >> (3 * (g % 4)) & 7;
            *out = d * f32::from(2 * scale + 1) * 0.125;
        }
        let (runs, _) = out.codes.as_chunks_mut::<8>();
        for (r, (run, &low)) in runs.iter_mut().zip(&block.qs).enumerate() {
            let high = block.qh[r / 2] >> (4 * (r % 2));
            let index = usize::from(low) | usize::from(high & 7) << 8;
            let shift = if high & 8 == 0 { 1 } else { -1 };
            *run = IQ1[index].map(|code| code + shift);
        }
    }
}
