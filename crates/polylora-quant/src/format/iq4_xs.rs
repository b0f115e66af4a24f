//! IQ4_XS: the sixteen levels of IQ4_NL; each group of 32 has a scale of six bits.
//!
//! ```text
//! byte  0   2          4                            8                  136
//!       | d | scales_h | scales_l[0] .. scales_l[3] | qs[0] .. qs[127] |
//!
//! d: half    scales_h: u16, 2 bits a group    scales_l: 4 bits a group; low first
//! qs: 16 bytes a group, byte i: weight i low, weight i + 16 high
//!
//! group g: scale = 4 bits of scales_l, above them 2 bits of scales_h
//! weight = d * (scale - 32) * level[q]
//! ```

use super::codebook::IQ4;
use super::columns::columns;
use super::iq4::{self, GROUP};
use super::search::temper;
use super::short_block::low_bits;
use super::superblock::{BATCH, WEIGHTS, mean_squares};
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, LANES, Lanes, Simd, nearest_int};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

/// The format.
pub enum IQ4XS {}

const GROUPS: usize = WEIGHTS / GROUP;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    scales_h: U16,
    scales_l: [u8; 4],
    qs: [u8; 128],
}

impl Format for IQ4XS {
    type Block = Block;
    const WEIGHTS: usize = WEIGHTS;
    const GROUP: usize = GROUP;
    const MIN_CODE: i8 = -127;
    const MAX_CODE: i8 = 113;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        // Four bits, and two, of each scale to a byte of its own.
        let spread = |bits: u64, by: u32, mask: u64| (bits | bits << by) & mask;
        let low = u64::from(u32::from_le_bytes(block.scales_l));
        let low = spread(low, 16, 0x0000_ffff_0000_ffff);
        let low = spread(spread(low, 8, 0x00ff_00ff_00ff_00ff), 4, 0x0f0f_0f0f_0f0f_0f0f);
        let high = u64::from(block.scales_h.get());
        let high = spread(high, 24, 0x0000_00ff_0000_00ff);
        let high = spread(spread(high, 12, 0x000f_000f_000f_000f), 6, 0x0303_0303_0303_0303);
        let scales: [i8; LANES] = transmute!([(low | high << 4).to_le_bytes(), [0; 8]]);
        let d = s.splat(block.d.widen(s));
        out.scales = (d * (s.load_whole(&scales) - s.splat(32.0))).to_array();
        let (qs, _) = block.qs.as_chunks::<16>();
        let (groups, _) = out.codes.as_chunks_mut::<32>();
        for (codes, qs) in groups.iter_mut().zip(qs) {
            s.nibbles(qs).look_up(&IQ4).store(codes);
        }
    }
}

impl Block {
    /// `scales` have 32 added.
    #[inline(always)]
    fn new(d: Half, scales: [u8; GROUPS], qs: [u8; 128]) -> Block {
        let (mut high, mut low) = (0, [0; GROUPS / 2]);
        for (g, scale) in scales.into_iter().enumerate() {
            high |= u16::from(scale >> 4) << (2 * g);
            low[g / 2] |= (scale & 15) << (4 * (g % 2));
        }
        Block { d, scales_h: U16::new(high), scales_l: low, qs }
    }
}

impl Encode for IQ4XS {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        const STEP: usize = BATCH * WEIGHTS;
        for (n, (weights, out)) in weights.chunks(STEP).zip(out.chunks_mut(BATCH)).enumerate() {
            let importance = importance.map(|all| &all[n * STEP..][..weights.len()]);
            let scales = search(s, weights, importance);
            let (scales, _) = scales.as_flattened().as_chunks::<GROUPS>();
            let (blocks, _) = weights.as_chunks::<WEIGHTS>();
            for ((x, scales), out) in blocks.iter().zip(scales).zip(out) {
                *out = finish(s, x, scales);
            }
        }
    }
}

impl Recode for IQ4XS {
    const LEVELS: &'static [i8] = &IQ4;

    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        for (codes, qs) in codes.as_chunks().0.iter().zip(block.qs.as_chunks_mut().0) {
            *qs = low_bits(&iq4::numbers(codes));
        }
    }
}

/// The scale of every group of a batch, in order.
#[inline(always)]
fn search<S: Simd>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
) -> [[f32; LANES]; BATCH * GROUPS / LANES] {
    const SET: usize = LANES * GROUP;
    let mean_squares = match importance {
        None => [0.0; BATCH],
        Some(_) => mean_squares(weights, 1.0),
    };
    let mut scales = [[0.0; LANES]; BATCH * GROUPS / LANES];
    for (n, (weights, scales)) in weights.chunks(SET).zip(&mut scales).enumerate() {
        let x = columns::<S, GROUP>(s, weights);
        let w = match importance {
            None => iq4::squares(&x),
            Some(importance) => {
                let mut w = columns(s, &importance[n * SET..][..weights.len()]);
                let first = n * SET / WEIGHTS;
                // Doubled last, as in ggml.
                let (a, b) = (2.0 * mean_squares[first], 2.0 * mean_squares[first + 1]);
                temper(&mut w, &x, s.by_eight(a, b));
                w
            }
        };
        *scales = iq4::scale(s, &x, &w).to_array();
    }
    scales
}

/// Rounds the scales of a superblock, and finds its codes.
#[inline(always)]
fn finish<S: Simd>(s: S, x: &[f32; WEIGHTS], scales: &[f32; GROUPS]) -> Block {
    let mut farthest = 0.0_f32;
    for &scale in scales {
        farthest = if scale.abs() > farthest.abs() { scale } else { farthest };
    }
    let d = -farthest / 32.0;
    let steps = if d != 0.0 { 1.0 / d } else { 0.0 };
    let mut rounded = [0; GROUPS];
    let mut qs = [0; WEIGHTS / 2];
    for (g, (x, qs)) in x.as_chunks().0.iter().zip(qs.as_chunks_mut().0).enumerate() {
        let scale = nearest_int(steps * scales[g]).clamp(-32, 31);
        rounded[g] = (scale + 32) as u8;
        let scale = d * scale as f32;
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        *qs = low_bits(&iq4::codes(s, x, inverse));
    }
    Block::new(Half::new(d), rounded, qs)
}
