//! IQ1_S: runs of eight weights from a grid of -1, 0 and 1; each group of 32 has a scale and is
//! shifted by an eighth.
//!
//! ```text
//! byte  0   2                 34               50
//!       | d | qs[0] .. qs[31] | qh[0] .. qh[7] |      d: half    qs: u8    qh: u16
//!
//! qh[g], for the four runs of group g:
//! bit   0             12      15
//!       | index, high | scale | down |
//!
//! run r of group g = r / 4: index = qs[r], above it 3 bits of qh[g], from bit 3 * (r % 4) on
//! weight = d * (2 * scale + 1) * (grid[index] + 1/8), or - 1/8 where `down` is set
//!        = d * (2 * scale + 1) / 8 * (8 * grid[index] + 1)
//! ```

use super::codebook::IQ1;
use super::{Codes, Format, Half};
use crate::isa::Simd;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ1S {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 32],
    qh: [U16; 8],
}

impl Format for IQ1S {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = -9;
    const MAX_CODE: i8 = 9;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        let (qs, _) = block.qs.as_chunks::<4>();
        let (groups, _) = out.codes.as_chunks_mut::<32>();
        for (g, (codes, qs)) in groups.iter_mut().zip(qs).enumerate() {
            let qh = block.qh[g].get();
            out.scales[g] = d * f32::from(2 * (qh >> 12 & 7) + 1) * 0.125;
            let shift = if qh >> 15 == 0 { 1 } else { -1 };
            let (runs, _) = codes.as_chunks_mut::<8>();
            for (r, (run, &low)) in runs.iter_mut().zip(qs).enumerate() {
                let index = usize::from(low) | usize::from(qh >> (3 * r) & 7) << 8;
                *run = IQ1[index].map(|code| code + shift);
            }
        }
    }
}
