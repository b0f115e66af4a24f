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

use super::codebook::magnitudes::{self, Fit, Magnitudes};
use super::codebook::neighbours::{self, Grid};
use super::codebook::{IQ2_XXS, even_signs, four_times_seven, signed};
use super::search::{TINY, positive_scale};
use super::{Codes, Encode, Format, Half, Importance};
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

impl Magnitudes<8, 32> for IQ2XXS {
    const LEVELS: u8 = 3;
    const STEPS: i8 = 6;
    const STEP: f32 = 0.1;
    const TEMPER: f32 = 1.0;
    const TINY: f32 = TINY;
    const EVEN_SIGNS: bool = true;
    const CORRECTION: f32 = 1.0;
    const CLEARS: bool = true;

    #[inline(always)]
    fn grid() -> &'static Grid<8> {
        &neighbours::IQ2_XXS
    }

    /// From the scale that is best without a grid, for codes up to 4: an outlier is not to stretch
    /// all others.
    #[inline(always)]
    fn start<S: Simd>(s: S, x: &[S::F32; 32], w: &[S::F32; 32], _: S::F32) -> (S::F32, S::F32) {
        let (scale, _) = positive_scale(s, x, w, 4.0);
        (scale, scale * s.splat(3.0))
    }

    /// All.
    #[inline(always)]
    fn again(_: Option<u8>) -> u8 {
        u8::MAX
    }

    fn block(fit: &Fit) -> Block {
        let (runs, signs) = (fit.runs.as_chunks::<4>().0, fit.signs.as_chunks().0);
        let group = |g: usize| {
            let scale = u32::from(fit.scales[g]) << 28;
            Group {
                grid: runs[g].map(|index| index as u8),
                signs_and_scale: U32::new(four_times_seven(&signs[g]) | scale),
            }
        };
        Block { d: fit.d, groups: std::array::from_fn(group) }
    }
}

impl Encode for IQ2XXS {
    const IMPORTANCE: Importance = Importance::Required;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        magnitudes::encode::<S, IQ2XXS, 8, 32>(s, weights, importance, out);
    }
}
