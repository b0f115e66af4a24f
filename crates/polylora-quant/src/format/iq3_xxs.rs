//! IQ3_XXS: runs of four weights from a grid of 256 magnitudes, with 7 bits of signs for two runs;
//! each group of 32 has a scale.
//!
//! ```text
//! byte  0   2                 66                                         98
//!       | d | qs[0] .. qs[63] | signs_and_scale[0] .. signs_and_scale[7] |
//!
//! d: half    qs: u8, the index of a run    signs_and_scale: u32, one a group
//! signs_and_scale, bit  0       7       14      21      28
//!                       | signs | signs | signs | signs | scale |
//!
//! the eighth sign of eight weights makes the negative codes even in number
//! weight = d * (0.5 + scale) * 0.5 * ±grid[index]
//! ```

use super::codebook::magnitudes::{self, Fit, Magnitudes};
use super::codebook::neighbours::{self, Grid};
use super::codebook::{IQ3_XXS, even_signs, four_times_seven, signed};
use super::{Codes, Encode, Format, Half, Importance};
use crate::isa::Simd;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ3XXS {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 64],
    signs_and_scale: [U32; 8],
}

impl Format for IQ3XXS {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = -62;
    const MAX_CODE: i8 = 62;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        let (qs, _) = block.qs.as_chunks::<8>();
        let (groups, _) = out.codes.as_chunks_mut::<32>();
        for (g, (codes, qs)) in groups.iter_mut().zip(qs).enumerate() {
            let signs = block.signs_and_scale[g].get();
            out.scales[g] = d * (0.5 + (signs >> 28) as f32) * 0.5;
            let (runs, _) = codes.as_chunks_mut::<4>();
            for (r, (run, &index)) in runs.iter_mut().zip(qs).enumerate() {
                let signs = even_signs(signs >> (7 * (r / 2)));
                *run = signed(IQ3_XXS[usize::from(index)], signs >> (4 * (r % 2)));
            }
        }
    }
}

impl Magnitudes<4, 32> for IQ3XXS {
    const LEVELS: u8 = 8;
    const STEPS: i8 = 15;
    const STEP: f32 = 0.2;
    const TEMPER: f32 = 2.0;
    const TINY: f32 = 1e-8;
    const EVEN_SIGNS: bool = true;
    const CORRECTION: f32 = 1.0125;
    const CLEARS: bool = true;

    #[inline(always)]
    fn grid() -> &'static Grid<4> {
        &neighbours::IQ3_XXS
    }

    fn block(fit: &Fit) -> Block {
        let mut signs_and_scale = [U32::ZERO; 8];
        for (g, (word, signs)) in
            signs_and_scale.iter_mut().zip(fit.signs.as_chunks().0).enumerate()
        {
            word.set(four_times_seven(signs) | u32::from(fit.scales[g]) << 28);
        }
        Block { d: fit.d, qs: fit.runs.map(|index| index as u8), signs_and_scale }
    }
}

impl Encode for IQ3XXS {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        magnitudes::encode::<S, IQ3XXS, 4, 32>(s, weights, importance, out);
    }
}
