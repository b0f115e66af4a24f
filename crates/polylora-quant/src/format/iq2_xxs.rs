//! IQ2_XXS: runs of eight weights from a grid of 256 magnitudes, with 7 bits of signs; each group
//! of 32 has a scale.
//!
//! ```text
//! byte  0   2                      66
//!       | d | group[0] .. group[7] |      d: half
//!
//! group, byte  0                    4                 8
//!              | grid[0] .. grid[3] | signs_and_scale |      grid: u8    signs_and_scale: u32
//! signs_and_scale, bit  0       7       14      21      28
//!                       | signs | signs | signs | signs | scale |
//!
//! run r of a group: index = grid[r]; the eighth sign makes the negative codes even in number
//! weight = d * (0.5 + scale) * 0.25 * ±grid[index]
//! ```

use super::codebook::{IQ2_XXS, even_signs, signed};
use super::{Codes, Format, Half};
use crate::isa::Simd;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ2XXS {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    groups: [Group; 8],
}

/// 32 weights.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Group {
    grid: [u8; 4],
    signs_and_scale: U32,
}

impl Format for IQ2XXS {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = -43;
    const MAX_CODE: i8 = 43;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        let (groups, _) = out.codes.as_chunks_mut::<32>();
        for (g, (codes, group)) in groups.iter_mut().zip(&block.groups).enumerate() {
            let signs = group.signs_and_scale.get();
            out.scales[g] = d * (0.5 + (signs >> 28) as f32) * 0.25;
            let (runs, _) = codes.as_chunks_mut::<8>();
            for (r, (run, &index)) in runs.iter_mut().zip(&group.grid).enumerate() {
                *run = signed(IQ2_XXS[usize::from(index)], even_signs(signs >> (7 * r)));
            }
        }
    }
}
