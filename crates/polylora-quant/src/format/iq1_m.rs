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

use super::codebook::ternary::{self, Best, Group, Groups, Split, Ternary};
use super::codebook::{IQ1, scale_code};
use super::{Codes, Encode, Format, Half, Importance};
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

/// The highest code shifted up, and shifted down.
const HIGH: [f32; 2] = [1.125, 0.875];
/// By how much the squares of neighbouring codes differ, the two lowest and the two highest; of
/// those shifted up, and of those shifted down.
const STEPS: [[f32; 2]; 2] = [[0.75, -1.25], [1.25, -0.75]];

impl Ternary<16> for IQ1M {
    const TINY: f32 = 1e-7;

    /// As neighbouring codes are one apart, a sum of products with them is what it would be with
    /// the highest code for all, less the sums below each border.
    #[inline(always)]
    fn split<S: Simd>(s: S, groups: &Groups<16>) -> Best<S::F32> {
        let zero = s.splat(0.0);
        // Of each run, sums over those of its weights that are among the lowest 0 to 16.
        let (mut sum_x, mut sum_w) = ([[zero; 17]; 2], [[zero; 17]; 2]);
        for (run, from) in [0, 8].into_iter().enumerate() {
            let (wx, w) = groups.sorted(s, from, from + 8);
            for j in 0..16 {
                sum_x[run][j + 1] = sum_x[run][j] + wx[j];
                sum_w[run][j + 1] = sum_w[run][j] + w[j];
            }
        }
        let mut best = Best::none(s);
        for low in 0..=16 {
            for high in low..=16 {
                // By run, then by shift.
                let (mut xq, mut q2) = ([[zero; 2]; 2], [[zero; 2]; 2]);
                for run in 0..2 {
                    for down in 0..2 {
                        let (code, [lower, upper]) = (s.splat(HIGH[down]), STEPS[down]);
                        xq[run][down] =
                            sum_x[run][16] * code - (sum_x[run][low] + sum_x[run][high]);
                        q2[run][down] = sum_w[run][16] * code * code
                            + sum_w[run][low] * s.splat(lower)
                            + sum_w[run][high] * s.splat(upper);
                    }
                }
                for way in 0..4 {
                    let (first, second) = (way / 2, way % 2);
                    let sum_xq = xq[0][first] + xq[1][second];
                    let sum_q2 = q2[0][first] + q2[1][second];
                    best.consider(s, Split { low, high, way }, sum_xq, sum_q2);
                }
            }
        }
        best
    }

    #[inline(always)]
    fn down(way: usize) -> u8 {
        [0b00, 0b10, 0b01, 0b11][way]
    }

    fn block(groups: &[Group], x: &[f32; 256], w: &[f32; 256]) -> Block {
        let mut block = Block { qs: [0; 32], qh: [0; 16], scales: [U16::ZERO; 4] };
        let (qs, _) = block.qs.as_chunks_mut::<2>();
        for ((qs, qh), group) in qs.iter_mut().zip(&mut block.qh).zip(groups) {
            let [first, second, ..] = group.index;
            *qs = [first as u8, second as u8];
            *qh = (first >> 8 | second >> 8 << 4) as u8;
        }
        let largest = ternary::largest_scale(groups);
        if largest == 0.0 {
            return block;
        }
        // With the rounded scales, what is best for the superblock as a whole?
        let mut d = largest / 15.0; // The highest scale: 2 * 7 + 1.
        let mut scales = [0; 4];
        let (mut sum_xq, mut sum_q2) = (0.0, 0.0);
        for (g, group) in groups.iter().enumerate() {
            let scale = scale_code(group.scale, d, 7);
            scales[g / 4] |= u16::from(scale) << (3 * (g % 4));
            block.qh[g] |= (group.down & 1) << 3 | (group.down >> 1 & 1) << 7;
            for i in 0..16 {
                let (x, w) = (x[16 * g + i], w[16 * g + i]);
                let code = group.code(i) * f32::from(2 * scale + 1);
                sum_xq += w * code * x;
                sum_q2 += w * code * code;
            }
        }
        if sum_q2 > 0.0 {
            d = sum_xq / sum_q2;
        }
        let d = Half::new(d * 1.1125).0.get(); // ggml found this factor to be better.
        for (k, (out, scales)) in block.scales.iter_mut().zip(scales).enumerate() {
            out.set(scales | (d >> (4 * k) & 15) << 12);
        }
        block
    }
}

impl Encode for IQ1M {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        ternary::encode::<S, IQ1M, 16>(s, weights, importance, out);
    }
}
