//! Q3_K: 256 weights of three bits around zero; each group of 16 has a scale of six bits.
//!
//! ```text
//! byte  0                       32                96                       108  110
//!       | hmask[0] .. hmask[31] | qs[0] .. qs[63] | scales[0] .. scales[11] | d |      d: half
//!
//! qs: 32 bytes for a half of 128 weights, byte i: low 2 bits of weights i, i + 32, i + 64, i + 96
//! hmask: bit k of byte i is the high bit of weight i + 32k
//! scales: of group g < 8 the low 4 bits are the low half of byte g, of g + 8 the high half;
//!         the high 2 bits of group g are bits 2 (g / 4) and up of byte 8 + g % 4
//! weight = d * (scale - 32) * (q - 4)
//! ```

use super::columns::{columns, runs};
use super::q2_k::two_bits;
use super::search::{TINY, farthest, nearest_between, signed_scale, temper};
use super::superblock::{BATCH, WEIGHTS, mean_squares};
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::{Bytes, Lanes, Simd, nearest_int};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q3K {}

const GROUP: usize = 16;
const GROUPS: usize = 16;
/// Codes and scales are stored with these added.
const HALF: f32 = 4.0;
const SCALE_HALF: f32 = 32.0;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    hmask: [u8; 32],
    qs: [u8; 64],
    scales: [u8; 12],
    d: Half,
}

impl Format for Q3K {
    type Block = Block;
    const WEIGHTS: usize = WEIGHTS;
    const GROUP: usize = GROUP;
    const MIN_CODE: i8 = -4;
    const MAX_CODE: i8 = 3;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        let mut scales = [0; GROUPS];
        for (g, scale) in scales.iter_mut().enumerate() {
            let low = block.scales[g % 8] >> (4 * (g / 8)) & 15;
            let high = block.scales[8 + g % 4] >> (2 * (g / 4)) & 3;
            *scale = (low | high << 4) as i8;
        }
        let scales = s.load_whole(&scales) - s.splat(SCALE_HALF);
        out.scales = (s.splat(d) * scales).to_array();
        let hmask = s.bytes(&block.hmask);
        let halves = out.codes.as_chunks_mut::<128>().0;
        for (n, (codes, qs)) in halves.iter_mut().zip(block.qs.as_chunks::<32>().0).enumerate() {
            let qs = s.bytes(qs);
            for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let high = hmask.bits((4 * n + k) as u32, 1);
                (qs.bits(2 * k as u32, 2) | high.up(2)).less(4).store(codes);
            }
        }
    }
}

impl Block {
    /// `scales` and `codes` have their halves added.
    #[inline(always)]
    fn new(d: Half, scales: [u8; GROUPS], codes: &[u8; WEIGHTS]) -> Block {
        let mut packed = [0; 12];
        for (g, scale) in scales.into_iter().enumerate() {
            packed[g % 8] |= (scale & 15) << (4 * (g / 8));
            packed[8 + g % 4] |= scale >> 4 << (2 * (g / 4));
        }
        Block { hmask: high_bits(codes), qs: two_bits(codes), scales: packed, d }
    }
}

#[inline(always)]
fn high_bits(codes: &[u8; WEIGHTS]) -> [u8; 32] {
    let mut hmask = [0; 32];
    for (k, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (byte, code) in hmask.iter_mut().zip(codes) {
            *byte |= code >> 2 << k;
        }
    }
    hmask
}

impl Encode for Q3K {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        const STEP: usize = BATCH * WEIGHTS;
        for (n, (weights, out)) in weights.chunks(STEP).zip(out.chunks_mut(BATCH)).enumerate() {
            match importance {
                None => plain(s, weights, out),
                Some(all) => weighted(s, weights, &all[n * STEP..][..weights.len()], out),
            }
        }
    }
}

impl Recode for Q3K {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        (block.hmask, block.qs) = (high_bits(codes), two_bits(codes));
    }
}

/// The scale of a group, `d` multiplied in.
#[inline(always)]
fn group_scale(d: Half, scale: u8) -> f32 {
    d.get() * (f32::from(scale) - SCALE_HALF)
}

/// Encodes the codes of a superblock whose scales are known. A group without a scale keeps the
/// codes that its search found, as in ggml: those of `codes`.
#[inline(always)]
fn finish<S: Simd>(
    s: S,
    x: &[f32; WEIGHTS],
    d: Half,
    scales: [u8; GROUPS],
    mut codes: [u8; WEIGHTS],
) -> Block {
    let groups = x.as_chunks::<GROUP>().0.iter().zip(codes.as_chunks_mut::<GROUP>().0);
    for ((x, codes), scale) in groups.zip(scales) {
        let scale = group_scale(d, scale);
        if scale != 0.0 {
            codes::around_over(s, x, scale, HALF, codes);
        }
    }
    Block::new(d, scales, &codes)
}

/// Superblocks that are fitted side by side: each step of a fit waits for the last.
const SETS: usize = 4;

/// Encodes a batch without importance.
#[inline(always)]
fn plain<S: Simd>(s: S, weights: &[f32], out: &mut [Block]) {
    for (weights, out) in weights.chunks(SETS * WEIGHTS).zip(out.chunks_mut(SETS)) {
        let (blocks, _) = weights.as_chunks::<WEIGHTS>();
        let mut x = [[s.splat(0.0); GROUP]; SETS];
        for (x, block) in x.iter_mut().zip(blocks) {
            *x = columns(s, block);
        }
        let (scale, found) = fit(s, &x);
        for (b, (x, out)) in blocks.iter().zip(out).enumerate() {
            let scale = scale[b].to_array();
            let largest = codes::farthest(s, &scale);
            let (mut d, mut scales) = (Half::new(0.0), [0; GROUPS]);
            if largest != 0.0 {
                let steps = -SCALE_HALF / largest;
                d = Half::new(1.0 / steps);
                for (code, scale) in scales.iter_mut().zip(scale) {
                    *code = ((nearest_int(steps * scale) as i8).clamp(-32, 31) + 32) as u8;
                }
            }
            let mut codes = [0; WEIGHTS];
            if scales.iter().any(|&scale| group_scale(d, scale) == 0.0) {
                let found = runs(&found[b]);
                for (code, &found) in codes.iter_mut().zip(found.as_flattened()) {
                    *code = found as u8;
                }
            }
            *out = finish(s, x, d, scales, codes);
        }
    }
}

/// Encodes a batch by importance.
#[inline(always)]
fn weighted<S: Simd>(s: S, weights: &[f32], importance: &[f32], out: &mut [Block]) {
    let (blocks, _) = weights.as_chunks::<WEIGHTS>();
    let mean_squares = mean_squares(weights, 2.0);
    let mut scale = [[0.0; GROUPS]; BATCH];
    let (mut inverse, mut sum_w) = (scale, scale);
    for (b, (x, w)) in blocks.iter().zip(importance.as_chunks::<WEIGHTS>().0).enumerate() {
        let x = columns::<S, GROUP>(s, x);
        let mut w = columns(s, w);
        temper(&mut w, &x, s.splat(mean_squares[b]));
        let mut sum = s.splat(0.0);
        for &w in &w {
            sum = sum + w;
        }
        let found = signed_scale(s, &x, &w, HALF);
        scale[b] = found.scale.to_array();
        inverse[b] = found.inverse.to_array();
        sum_w[b] = sum.to_array();
    }
    // The scales in their turn: a superblock to a lane.
    let lanes = columns::<S, GROUPS>(s, scale.as_flattened());
    let steps = signed_scale(s, &lanes, &columns(s, sum_w.as_flattened()), SCALE_HALF);
    let (d, steps) = (steps.scale.to_array(), steps.inverse.to_array());

    for (b, (x, out)) in blocks.iter().zip(out).enumerate() {
        let d = Half::new(d[b]);
        let mut scales = [0; GROUPS];
        codes::around(s, &scale[b], steps[b], SCALE_HALF, &mut scales);
        let mut codes = [0; WEIGHTS];
        let groups = x.as_chunks::<GROUP>().0.iter().zip(codes.as_chunks_mut::<GROUP>().0);
        for (g, (x, codes)) in groups.enumerate() {
            if group_scale(d, scales[g]) == 0.0 {
                codes::around(s, x, inverse[b][g], HALF, codes);
            }
        }
        *out = finish(s, x, d, scales, codes);
    }
}

/// A scale for each group, and its codes with their half added: first the scale that gives the
/// weight farthest from zero the lowest code, then each code in turn to where it fits best with
/// the others as they are, up to five times over. ggml's `make_q3_quants`.
#[inline(always)]
fn fit<S: Simd>(s: S, x: &[[S::F32; GROUP]; SETS]) -> ([S::F32; SETS], [[S::F32; GROUP]; SETS]) {
    let zero = s.splat(0.0);
    let (lowest, highest) = (s.splat(-HALF), s.splat(HALF - 1.0));
    let mut codes = [[zero; GROUP]; SETS];
    let (mut sum_xl, mut sum_l2) = ([zero; SETS], [zero; SETS]);
    let mut empty = [zero.lt(zero); SETS];
    for k in 0..SETS {
        let (farthest, magnitude) = farthest(s, &x[k]);
        empty[k] = magnitude.lt(s.splat(TINY));
        let inverse = lowest / farthest;
        for i in 0..GROUP {
            let x = x[k][i];
            let w = x * x;
            let code = nearest_between(s, inverse * x, lowest, highest);
            codes[k][i] = code;
            sum_xl[k] = sum_xl[k] + w * x * code;
            sum_l2[k] = sum_l2[k] + w * code * code;
        }
    }

    // A lane that a sweep leaves as it was stays so: no need to hold it back.
    for _ in 0..5 {
        let mut changed = zero.lt(zero);
        for i in 0..GROUP {
            for k in 0..SETS {
                let (x, old) = (x[k][i], codes[k][i]);
                let w = x * x;
                let others_xl = sum_xl[k] - w * x * old;
                let others_l2 = sum_l2[k] - w * old * old;
                let code = nearest_between(s, x * others_l2 / others_xl, lowest, highest);
                let new_xl = others_xl + w * x * code;
                let new_l2 = others_l2 + w * code * code;
                let better = zero.lt(others_xl)
                    & !code.eq(old)
                    & zero.lt(new_l2)
                    & (sum_xl[k] * sum_xl[k] * new_l2).lt(new_xl * new_xl * sum_l2[k]);
                codes[k][i] = S::F32::select(better, code, old);
                sum_xl[k] = S::F32::select(better, new_xl, sum_xl[k]);
                sum_l2[k] = S::F32::select(better, new_l2, sum_l2[k]);
                changed = changed | better;
            }
        }
        if !S::F32::any(changed) {
            break;
        }
    }

    let mut scale = [zero; SETS];
    for k in 0..SETS {
        let fits = !empty[k] & zero.lt(sum_l2[k]);
        scale[k] = S::F32::select(fits, sum_xl[k] / sum_l2[k], zero);
        for code in &mut codes[k] {
            *code = S::F32::select(empty[k], zero, *code + s.splat(HALF));
        }
    }
    (scale, codes)
}
