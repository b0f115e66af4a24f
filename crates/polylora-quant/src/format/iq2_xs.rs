//! IQ2_XS: runs of eight weights from a grid of 512 magnitudes, with 7 bits of signs; each group of
//! 16 has a scale.
//!
//! ```text
//! byte  0   2                 66                       74
//!       | d | qs[0] .. qs[31] | scales[0] .. scales[7] |      d: half    qs: u16    scales: u8
//!
//! qs[r], for run r: bits 0-8: index    bits 9-15: signs
//! scales: 4 bits a group, two groups a byte, low first
//!
//! the eighth sign of a run makes its negative codes even in number
//! weight = d * (0.5 + scale) * 0.25 * ±grid[index]
//! ```

use super::codebook::magnitudes::{self, Fit, Magnitudes, nibbles};
use super::codebook::neighbours::{self, Grid};
use super::codebook::{IQ2_XS, even_signs, signed};
use super::search::TINY;
use super::{Codes, Encode, Format, Half, Importance};
use crate::isa::Simd;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ2XS {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [U16; 32],
    scales: [u8; 8],
}

impl Format for IQ2XS {
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
        for (run, q) in runs.iter_mut().zip(&block.qs) {
            let q = q.get();
            *run = signed(IQ2_XS[usize::from(q & 511)], even_signs(u32::from(q >> 9)));
        }
    }
}

impl Magnitudes<8, 16> for IQ2XS {
    const LEVELS: u8 = 3;
    const STEPS: i8 = 9;
    const STEP: f32 = 0.1;
    const TEMPER: f32 = 1.0;
    const TINY: f32 = TINY;
    const EVEN_SIGNS: bool = true;
    const CORRECTION: f32 = 1.0;
    const CLEARS: bool = true;

    #[inline(always)]
    fn grid() -> &'static Grid<8> {
        &neighbours::IQ2_XS
    }

    fn block(fit: &Fit) -> Block {
        let mut qs = [U16::ZERO; 32];
        for (q, (index, signs)) in qs.iter_mut().zip(fit.runs.iter().zip(&fit.signs)) {
            q.set(index | u16::from(*signs) << 9);
        }
        Block { d: fit.d, qs, scales: nibbles(&fit.scales) }
    }
}

impl Encode for IQ2XS {
    const IMPORTANCE: Importance = Importance::Required;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        magnitudes::encode::<S, IQ2XS, 8, 16>(s, weights, importance, out);
    }
}
