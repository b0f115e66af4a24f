//! The encoder that Q2_K, Q4_K and Q5_K share: superblocks of 256 weights, whose groups each have
//! a scale and a minimum, which are rounded in turn to steps `d` and `dmin` of the superblock.

use super::columns::{columns, runs};
use super::search::{Affine, Groups, Tries, positive_scale, scale_and_min, temper};
use super::{Format, codes};
use crate::isa::{LANES, Lanes, Simd, nearest_int};

/// Weights in a superblock.
pub(super) const WEIGHTS: usize = 256;

/// Superblocks that are encoded together: their scales and minima are sixteen runs, as
/// [`positive_scale`] wants them.
pub(super) const BATCH: usize = LANES / 2;

/// A format of such superblocks, each of `GROUPS` groups.
pub(super) trait Superblock<const GROUPS: usize>: Format {
    /// The search without importance.
    const TRIES: Tries;
    /// The highest scale and minimum of a group.
    const TOP: f32;
    /// What bounds a scale or minimum where there is no importance. ggml has a bound in some formats
    /// only; it matters where the search ends in a negative scale, which wraps around in a byte.
    const BOUND: u8;
    /// How much of the superblock's mean square goes into its importance: see [`temper`].
    const TEMPER: f32;
    /// The part of a block that is known before the codes.
    type Header;

    /// `d`, `dmin`, and the rounded scales and minima.
    fn header(d: f32, dmin: f32, scale: [u8; GROUPS], min: [u8; GROUPS]) -> Self::Header;
    /// The scale and minimum of group `g`, `d` and `dmin` multiplied in.
    fn group(header: &Self::Header, g: usize) -> (f32, f32);
    /// A block.
    fn block(header: Self::Header, codes: &[u8; WEIGHTS]) -> Self::Block;
}

/// Encodes superblocks of `GROUPS` groups of `GROUP` weights; see
/// [`Encode::encode`](super::Encode::encode).
#[inline(always)]
pub(super) fn encode<S: Simd, F: Superblock<GROUPS>, const GROUPS: usize, const GROUP: usize>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [F::Block],
) {
    const { assert!(GROUPS * GROUP == WEIGHTS) };
    const STEP: usize = BATCH * WEIGHTS;
    for (n, (weights, out)) in weights.chunks(STEP).zip(out.chunks_mut(BATCH)).enumerate() {
        let importance = importance.map(|all| &all[n * STEP..][..weights.len()]);
        let fits = if S::ROOMY {
            fit::<S, GROUP, 2>(s, weights, importance, &F::TRIES, F::TEMPER)
        } else {
            fit::<S, GROUP, 1>(s, weights, importance, &F::TRIES, F::TEMPER)
        };
        let steps = match importance {
            None => steps_of_largest::<GROUPS>(&fits, F::TOP, F::BOUND),
            Some(_) => weighted_steps::<S, GROUPS>(s, &fits, F::TOP),
        };
        let (blocks, _) = weights.as_chunks::<WEIGHTS>();
        for (b, (out, x)) in out.iter_mut().zip(blocks).enumerate() {
            let (d, scale) = steps[b];
            let (dmin, min) = steps[BATCH + b];
            let header = F::header(d, dmin, scale, min);
            let mut codes = [0; WEIGHTS];
            let (groups, _) = codes.as_chunks_mut::<GROUP>();
            for (g, (x, codes)) in x.as_chunks::<GROUP>().0.iter().zip(groups).enumerate() {
                let (scale, min) = F::group(&header, g);
                if scale == 0.0 {
                    // ggml leaves the codes as the search found them.
                    let at = b * GROUPS + g;
                    let base = fits.base.as_flattened()[at];
                    let inverse = fits.inverse.as_flattened()[at];
                    codes::above(s, x, base, inverse, F::TRIES.top, codes);
                } else {
                    codes::over(s, x, min, scale, F::TRIES.top, codes);
                }
            }
            *out = F::block(header, &codes);
        }
    }
}

/// What the search found for each group of a batch, in order.
type Fits = Affine<[[f32; LANES]; BATCH]>;

/// Searches every group, `SETS` times sixteen side by side.
#[inline(always)]
fn fit<S: Simd, const GROUP: usize, const SETS: usize>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
    tries: &Tries,
    tempered: f32,
) -> Fits {
    let mut fits = Fits::filled([[0.0; LANES]; BATCH]);
    let mean_squares = match importance {
        None => [0.0; BATCH],
        Some(_) => mean_squares(weights, tempered),
    };
    let set_len = LANES * GROUP;
    for (n, weights) in weights.chunks(SETS * set_len).enumerate() {
        let mut groups = Groups::<S::F32, GROUP, SETS>::filled(s.splat(0.0));
        for (k, weights) in weights.chunks(set_len).enumerate() {
            let (x, w) = (&mut groups.x[k], &mut groups.w[k]);
            *x = columns(s, weights);
            match importance {
                None => *w = plain_importance(s, x, tries.magnitudes),
                Some(importance) => {
                    let first = (n * SETS + k) * set_len;
                    *w = columns(s, &importance[first..][..weights.len()]);
                    let mut lanes = [0.0; LANES];
                    for (lane, mean_square) in lanes.iter_mut().enumerate() {
                        *mean_square = mean_squares[(first + lane * GROUP) / WEIGHTS];
                    }
                    temper(w, x, s.load(&lanes));
                }
            }
        }
        // Two calls, so that each has its numbers as constants.
        let found = match importance {
            None => scale_and_min(s, &groups, tries),
            Some(_) => scale_and_min(s, &groups, &Tries::weighted(tries.top)),
        };
        for (k, found) in found.iter().enumerate() {
            let set = n * SETS + k;
            fits.scale[set] = found.scale.to_array();
            fits.low[set] = found.low.to_array();
            fits.base[set] = found.base.to_array();
            fits.inverse[set] = found.inverse.to_array();
            fits.importance[set] = found.importance.to_array();
        }
    }
    fits
}

/// Without an importance matrix a weight counts by its magnitude; where squares are summed, by
/// that and its group's root mean square.
#[inline(always)]
fn plain_importance<S: Simd, const GROUP: usize>(
    s: S,
    x: &[S::F32; GROUP],
    magnitudes: bool,
) -> [S::F32; GROUP] {
    let mut w = *x;
    for w in &mut w {
        *w = w.abs();
    }
    if !magnitudes {
        let mut sum = s.splat(0.0);
        for &x in x {
            sum = sum + x * x;
        }
        let typical = (sum / s.splat(GROUP as f32)).sqrt();
        for w in &mut w {
            *w = typical + *w;
        }
    }
    w
}

/// The mean square of each superblock of a batch, times `factor`. Eight sums at a time: each must
/// be taken in order.
#[inline(always)]
pub(super) fn mean_squares(weights: &[f32], factor: f32) -> [f32; BATCH] {
    let mut sums = [0.0; BATCH];
    let (blocks, _) = weights.as_chunks::<WEIGHTS>();
    for i in 0..WEIGHTS {
        for (sum, block) in sums.iter_mut().zip(blocks) {
            *sum += block[i] * block[i];
        }
    }
    sums.map(|sum| factor * sum / WEIGHTS as f32)
}

/// For each superblock the step of its scales, and the scales in such steps; then the same for
/// the minima of each.
type Steps<const GROUPS: usize> = [(f32, [u8; GROUPS]); LANES];

/// The largest is `top` steps.
#[inline(always)]
fn steps_of_largest<const GROUPS: usize>(fits: &Fits, top: f32, bound: u8) -> Steps<GROUPS> {
    let mut steps = [(0.0, [0; GROUPS]); LANES];
    let scales = fits.scale.as_flattened().as_chunks::<GROUPS>().0;
    let lows = fits.low.as_flattened().as_chunks::<GROUPS>().0;
    for b in 0..BATCH {
        for (at, values) in [(b, scales[b]), (BATCH + b, lows[b].map(|low| -low))] {
            let mut largest = 0.0;
            for value in values {
                largest = if value > largest { value } else { largest };
            }
            let inverse = if largest > 0.0 { top / largest } else { 0.0 };
            for (code, value) in steps[at].1.iter_mut().zip(values) {
                *code = (nearest_int(inverse * value) as u8).min(bound);
            }
            steps[at].0 = largest / top;
        }
    }
    steps
}

/// As the groups' importance has it.
#[inline(always)]
fn weighted_steps<S: Simd, const GROUPS: usize>(s: S, fits: &Fits, top: f32) -> Steps<GROUPS> {
    let zero = s.splat(0.0);
    let (mut x, mut w) = ([zero; GROUPS], [zero; GROUPS]);
    for g in 0..GROUPS {
        let (mut values, mut importances) = ([0.0; LANES], [0.0; LANES]);
        for b in 0..BATCH {
            let at = b * GROUPS + g;
            values[b] = fits.scale.as_flattened()[at];
            values[BATCH + b] = -fits.low.as_flattened()[at];
            importances[b] = fits.importance.as_flattened()[at];
            importances[BATCH + b] = importances[b];
        }
        (x[g], w[g]) = (s.load(&values), s.load(&importances));
    }
    let (step, codes) = positive_scale(s, &x, &w, top);
    let (step, codes) = (step.to_array(), runs(&codes));
    let mut steps = [(0.0, [0; GROUPS]); LANES];
    for (steps, (step, codes)) in steps.iter_mut().zip(step.into_iter().zip(codes)) {
        *steps = (step, codes.map(|code| code as u8));
    }
    steps
}
