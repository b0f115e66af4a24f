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

use super::codebook::ternary::{self, Best, Group, Groups, Split, Ternary};
use super::codebook::{IQ1, scale_code};
use super::{Codes, Encode, Format, Half, Importance};
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

/// The codes, shifted up and shifted down.
const CODES: [[f32; 3]; 2] = [[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]];

impl Ternary<32> for IQ1S {
    const TINY: f32 = 1e-12;

    #[inline(always)]
    fn split<S: Simd>(s: S, groups: &Groups<32>) -> Best<S::F32> {
        // Sums over the lowest 0 to 32 weights.
        let (wx, w) = groups.sorted(s, 0, 32);
        let (mut sum_x, mut sum_w) = ([s.splat(0.0); 33], [s.splat(0.0); 33]);
        for j in 0..32 {
            sum_x[j + 1] = sum_x[j] + wx[j];
            sum_w[j + 1] = sum_w[j] + w[j];
        }
        // What the weights above a border come to, for each shift.
        let mut above = [[(s.splat(0.0), s.splat(0.0)); 2]; 33];
        for (j, above) in above.iter_mut().enumerate() {
            for (way, above) in above.iter_mut().enumerate() {
                let code = s.splat(CODES[way][2]);
                *above = ((sum_x[32] - sum_x[j]) * code, (sum_w[32] - sum_w[j]) * code * code);
            }
        }
        let mut best = Best::none(s);
        for low in 0..=32 {
            let mut below = [(s.splat(0.0), s.splat(0.0)); 2];
            for (way, below) in below.iter_mut().enumerate() {
                let code = s.splat(CODES[way][0]);
                *below = (sum_x[low] * code, sum_w[low] * code * code);
            }
            for high in low..=32 {
                for way in 0..2 {
                    let code = s.splat(CODES[way][1]);
                    let (below, above) = (below[way], above[high][way]);
                    let sum_xq = below.0 + (sum_x[high] - sum_x[low]) * code + above.0;
                    let sum_q2 = below.1 + (sum_w[high] - sum_w[low]) * code * code + above.1;
                    best.consider(s, Split { low, high, way }, sum_xq, sum_q2);
                }
            }
        }
        best
    }

    #[inline(always)]
    fn down(way: usize) -> u8 {
        if way == 0 { 0 } else { u8::MAX }
    }

    fn block(groups: &[Group], _: &[f32; 256], _: &[f32; 256]) -> Block {
        let mut block = Block { d: Half::new(0.0), qs: [0; 32], qh: [U16::ZERO; 8] };
        let largest = ternary::largest_scale(groups);
        let d = largest / 15.0; // The highest scale: 2 * 7 + 1.
        let (qs, _) = block.qs.as_chunks_mut::<4>();
        for ((qs, qh), group) in qs.iter_mut().zip(&mut block.qh).zip(groups) {
            *qs = group.index.map(|index| index as u8);
            let mut bits = group.index.iter().rev().fold(0, |bits, index| bits << 3 | index >> 8);
            if largest != 0.0 {
                bits |= u16::from(scale_code(group.scale, d, 7)) << 12;
                bits |= u16::from(group.down & 1) << 15;
            }
            qh.set(bits);
        }
        if largest != 0.0 {
            block.d = Half::new(d * 1.125); // ggml found this factor to be better.
        }
        block
    }
}

impl Encode for IQ1S {
    const IMPORTANCE: Importance = Importance::Required;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        ternary::encode::<S, IQ1S, 32>(s, weights, importance, out);
    }
}
