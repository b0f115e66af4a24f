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

use super::codebook::magnitudes::{self, Fit, Magnitudes, nibbles};
use super::codebook::neighbours::{self, Grid};
use super::codebook::{IQ2_S, signed};
use super::{Codes, Encode, Format, Half, Importance};
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

impl Magnitudes<8, 16> for IQ2S {
    const LEVELS: u8 = 3;
    const STEPS: i8 = 9;
    const STEP: f32 = 0.1;
    const TEMPER: f32 = 2.0;
    const TINY: f32 = 1e-8;
    const EVEN_SIGNS: bool = false;
    const CORRECTION: f32 = 0.9875;
    const CLEARS: bool = false;

    #[inline(always)]
    fn grid() -> &'static Grid<8> {
        &neighbours::IQ2_S
    }

    #[inline(always)]
    fn plain_importance<S: Simd>(s: S, x: S::F32, mean_square: S::F32) -> S::F32 {
        s.splat(0.25) * mean_square + x * x
    }

    fn block(fit: &Fit) -> Block {
        let mut block = Block {
            d: fit.d,
            qs: [0; 32],
            signs: fit.signs,
            qh: [0; 8],
            scales: nibbles(&fit.scales),
        };
        for (r, (q, index)) in block.qs.iter_mut().zip(fit.runs).enumerate() {
            *q = index as u8;
            block.qh[r / 4] |= (index >> 8 << (2 * (r % 4))) as u8;
        }
        block
    }
}

impl Encode for IQ2S {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        magnitudes::encode::<S, IQ2S, 8, 16>(s, weights, importance, out);
    }
}
