//! The encoder that the IQ2 and IQ3 formats share: superblocks of 256 weights, whose groups have a
//! scale, and whose runs are an entry of a grid of magnitudes and a sign a weight.
//!
//! ggml tries a number of scales for each group. With each it rounds the weights to the grid's
//! levels and snaps every run to the grid; the scale that is best for these codes competes with
//! those of the other tries. Here sixteen groups do that side by side: their weights stand in
//! columns, but for the snapping, which goes run by run.

use super::neighbours::Grid;
use super::scale_code;
use crate::format::columns::{columns, columns_of_whole};
use crate::format::search::temper;
use crate::format::superblock::{WEIGHTS, mean_squares};
use crate::format::{Format, Half};
use crate::isa::{LANES, Lanes, Simd};

/// The most weights in a group.
const MAX_GROUP: usize = 32;
/// The most runs in a group.
const MAX_RUNS: usize = MAX_GROUP / 4;
/// The most weights in sixteen groups.
const MAX_ROWS: usize = LANES * MAX_GROUP;

/// A format of groups of `GROUP` weights, runs of `W`.
pub(in crate::format) trait Magnitudes<const W: usize, const GROUP: usize>:
    Format
{
    /// How many levels there are: the codes 1, 3, 5 and so on.
    const LEVELS: u8;
    /// The scales to try are those with which the group's reach is the highest code, and up to so
    /// many `STEP`s more or less.
    const STEPS: i8;
    /// See above.
    const STEP: f32;
    /// How much of the superblock's mean square goes into its importance: see [`temper`].
    const TEMPER: f32;
    /// Groups whose weights are all smaller are taken as zero.
    const TINY: f32;
    /// Whether only seven signs of each eight are kept: the eighth makes the negative ones even in
    /// number.
    const EVEN_SIGNS: bool;
    /// `d` is kept with this factor, which ggml found to be better.
    const CORRECTION: f32;
    /// Whether all else is zero too in a superblock whose scales are.
    const CLEARS: bool;

    /// The grid.
    fn grid() -> &'static Grid<W>;

    /// What a weight counts for where there is no importance.
    #[inline(always)]
    fn plain_importance<S: Simd>(_: S, x: S::F32, _mean_square: S::F32) -> S::F32 {
        x * x
    }

    /// The scale to start from, which stays where no try is any good; and the group's reach, which
    /// is about what its highest code is to stand for. `high` is the greatest of its weights `x`.
    #[inline(always)]
    fn start<S: Simd>(
        s: S,
        _x: &[S::F32; GROUP],
        _w: &[S::F32; GROUP],
        high: S::F32,
    ) -> (S::F32, S::F32) {
        (high / s.splat(top_code(Self::LEVELS)), high)
    }

    /// Which runs are snapped again with the scale that was found, a bit each: `off` are those that
    /// were not on the grid, `None` where no try was any good.
    #[inline(always)]
    fn again(off: Option<u8>) -> u8 {
        off.unwrap_or(0)
    }

    /// The block.
    fn block(fit: &Fit) -> Self::Block;
}

/// The code of the highest level.
#[inline(always)]
fn top_code(levels: u8) -> f32 {
    f32::from(2 * levels - 1)
}

/// What is in a block.
pub(in crate::format) struct Fit {
    /// The step of the scales.
    pub(in crate::format) d: Half,
    /// A scale a group, four bits.
    pub(in crate::format) scales: [u8; WEIGHTS / 16],
    /// The index of each run in the grid.
    pub(in crate::format) runs: [u16; WEIGHTS / 4],
    /// A bit a weight, set where it is negative.
    pub(in crate::format) signs: [u8; WEIGHTS / 8],
    /// A bit a group, clear where it was taken as zero.
    pub(in crate::format) live: u16,
}

/// Scales of four bits, two a byte, as many as the block has.
#[inline(always)]
pub(in crate::format) fn nibbles<const N: usize>(scales: &[u8; WEIGHTS / 16]) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(scales.as_chunks::<2>().0) {
        *byte = pair[0] | pair[1] << 4;
    }
    bytes
}

/// See [`Encode::encode`](crate::format::Encode::encode).
#[inline(always)]
pub(in crate::format) fn encode<
    S: Simd,
    F: Magnitudes<W, GROUP>,
    const W: usize,
    const GROUP: usize,
>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [F::Block],
) {
    let set_len = LANES * GROUP;
    let sets = weights.chunks(set_len).zip(out.chunks_mut(set_len / WEIGHTS));
    for (n, (weights, out)) in sets.enumerate() {
        let importance = importance.map(|all| &all[n * set_len..][..weights.len()]);
        let rows = Rows::new::<S, F, W, GROUP>(s, weights, importance);
        let found = search::<S, F, W, GROUP>(s, &rows);
        for (b, out) in out.iter_mut().enumerate() {
            *out = F::block(&fit::<F, W, GROUP>(&rows, &found, b));
        }
    }
}

/// Sixteen groups, one after the other.
struct Rows {
    /// The weights' magnitudes; but where a sign is not as it should be, that of the weight is
    /// negative.
    x: [f32; MAX_ROWS],
    /// Their importance.
    w: [f32; MAX_ROWS],
    /// The square roots of that: how snapping counts an error.
    roots: [f32; MAX_ROWS],
    /// A bit a weight, set where it is negative.
    signs: [u8; MAX_ROWS / 8],
}

impl Rows {
    #[inline(always)]
    fn new<S: Simd, F: Magnitudes<W, GROUP>, const W: usize, const GROUP: usize>(
        s: S,
        weights: &[f32],
        importance: Option<&[f32]>,
    ) -> Rows {
        let mut rows = Rows {
            x: [0.0; MAX_ROWS],
            w: [0.0; MAX_ROWS],
            roots: [0.0; MAX_ROWS],
            signs: [0; MAX_ROWS / 8],
        };
        let mean_squares = mean_squares(weights, F::TEMPER);
        for (t, weights) in weights.as_chunks::<LANES>().0.iter().enumerate() {
            let x = s.load(weights);
            let mean_square = s.splat(mean_squares[t * LANES / WEIGHTS]);
            let mut w = [F::plain_importance(s, x, mean_square)];
            if let Some(importance) = importance {
                w = [s.load(&importance.as_chunks().0[t])];
                temper(&mut w, &[x], mean_square);
            }
            let [w] = w;
            rows.x.as_chunks_mut().0[t] = x.abs().to_array();
            rows.w.as_chunks_mut().0[t] = w.to_array();
            rows.roots.as_chunks_mut().0[t] = w.sqrt().to_array();
            let negative = S::F32::bits(x.lt(s.splat(0.0)));
            rows.signs.as_chunks_mut().0[t] = negative.to_le_bytes();
        }
        if F::EVEN_SIGNS {
            rows.make_signs_even();
        }
        rows
    }

    /// Where a run of eight has an odd number of negative weights, one gets the other sign.
    fn make_signs_even(&mut self) {
        let (runs, _) = self.x.as_chunks_mut::<8>();
        for ((x, w), signs) in runs.iter_mut().zip(self.w.as_chunks().0).zip(&mut self.signs) {
            if !signs.count_ones().is_multiple_of(2) {
                let at = cheapest(x, w);
                x[at] = -x[at];
                *signs ^= 1 << at;
            }
        }
    }
}

/// The place of the weight that costs least where it is zero: the one to get a wrong sign.
fn cheapest(x: &[f32; 8], w: &[f32; 8]) -> usize {
    let (mut at, mut least) = (0, w[0] * x[0] * x[0]);
    for i in 1..8 {
        let cost = w[i] * x[i] * x[i];
        if cost < least {
            (at, least) = (i, cost);
        }
    }
    at
}

/// What the search found for sixteen groups.
struct Found {
    /// Their scales, before they are rounded.
    scales: [f32; LANES],
    /// Their runs.
    runs: [Runs; LANES],
    /// A bit a group, clear where it is taken as zero.
    live: u16,
}

/// The runs of a group.
#[derive(Clone, Copy)]
struct Runs {
    /// Their entries of the grid.
    index: [u16; MAX_RUNS],
    /// A bit a run, set where its levels were not on the grid; `None` where they were not tried.
    off: Option<u8>,
}

/// The places of the bits that are set.
struct Places(u16);

impl Iterator for Places {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let place = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (place < LANES).then_some(place)
    }
}

#[inline(always)]
fn search<S: Simd, F: Magnitudes<W, GROUP>, const W: usize, const GROUP: usize>(
    s: S,
    rows: &Rows,
) -> Found {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let grid = F::grid();
    let x: [S::F32; GROUP] = columns(s, &rows.x[..LANES * GROUP]);
    let w: [S::F32; GROUP] = columns(s, &rows.w[..LANES * GROUP]);
    let mut wx = w;
    for (wx, &x) in wx.iter_mut().zip(&x) {
        *wx = *wx * x;
    }
    let mut high = x[0];
    for &x in &x {
        high = high.max(x);
    }
    let (mut scale, reach) = F::start(s, &x, &w, high);
    let live = S::F32::bits(!(high.lt(s.splat(F::TINY)) | reach.le(zero)));

    let every = u8::MAX >> (8 - GROUP / W);
    let mut wanted = [0; LANES];
    for lane in Places(live) {
        wanted[lane] = every;
    }
    let mut runs = [Runs { index: [0; MAX_RUNS], off: None }; LANES];
    let mut tried = runs;
    let mut best = zero;
    for step in -F::STEPS..=F::STEPS {
        let inverse = s.splat(top_code(F::LEVELS) + f32::from(step) * F::STEP) / reach;
        snap::<S, F, W, GROUP>(s, rows, &x, inverse, one / inverse, &wanted, &mut tried);
        let (sum_xq, sum_q2) = sums(s, grid, &tried, &w, &wx);
        let better = zero.lt(sum_q2) & (best * sum_q2).lt(sum_xq * sum_xq);
        scale = S::F32::select(better, sum_xq / sum_q2, scale);
        best = S::F32::select(better, scale * sum_xq, best);
        for lane in Places(S::F32::bits(better)) {
            runs[lane] = tried[lane];
        }
    }

    // Once more with the scale that was found.
    let positive = live & S::F32::bits(zero.lt(scale));
    wanted = [0; LANES];
    for lane in Places(positive) {
        wanted[lane] = F::again(runs[lane].off) & every;
    }
    let mut scales = scale.to_array();
    if wanted != [0; LANES] {
        snap::<S, F, W, GROUP>(s, rows, &x, one / scale, scale, &wanted, &mut runs);
        let (sum_xq, sum_q2) = sums(s, grid, &runs, &w, &wx);
        let (sum_xq, sum_q2) = (sum_xq.to_array(), sum_q2.to_array());
        for lane in 0..LANES {
            if wanted[lane] != 0 && sum_q2[lane] > 0.0 {
                scales[lane] = sum_xq[lane] / sum_q2[lane];
            }
        }
    }
    Found { scales, runs, live }
}

/// Rounds the weights to levels, `inverse * x` to the nearest code, and snaps those runs to the
/// grid that are `wanted`, a bit each.
#[inline(always)]
fn snap<S: Simd, F: Magnitudes<W, GROUP>, const W: usize, const GROUP: usize>(
    s: S,
    rows: &Rows,
    x: &[S::F32; GROUP],
    inverse: S::F32,
    scale: S::F32,
    wanted: &[u8; LANES],
    runs: &mut [Runs; LANES],
) {
    let grid = F::grid();
    let (half, one) = (s.splat(0.5), s.splat(1.0));
    let (zero, top) = (s.splat(0.0), s.splat(f32::from(F::LEVELS - 1)));
    let scales = scale.to_array();
    let mut off = [0; LANES];
    for (r, columns) in x.as_chunks::<W>().0.iter().enumerate() {
        // The run's number in the grid, digit by digit.
        let mut number = zero;
        for &x in columns.iter().rev() {
            let level = s.nearest_int(half * (inverse * x - one)).max(zero).min(top);
            number = number * s.splat(f32::from(F::LEVELS)) + level;
        }
        let numbers = number.to_array().map(|number| number as u16);
        for lane in 0..LANES {
            if wanted[lane] >> r & 1 != 0 {
                let at = lane * (GROUP / W) + r;
                let (x, w) = (&rows.x.as_chunks().0[at], &rows.roots.as_chunks().0[at]);
                let (index, on_grid) = grid.snap(s, numbers[lane], x, w, scales[lane], None);
                runs[lane].index[r] = index;
                off[lane] |= u8::from(!on_grid) << r;
            }
        }
    }
    for (runs, off) in runs.iter_mut().zip(off) {
        runs.off = Some(off);
    }
}

/// For each group, the sums of importance times weight times code, and of importance times the
/// code's square.
#[inline(always)]
fn sums<S: Simd, const W: usize, const GROUP: usize>(
    s: S,
    grid: &Grid<W>,
    runs: &[Runs; LANES],
    w: &[S::F32; GROUP],
    wx: &[S::F32; GROUP],
) -> (S::F32, S::F32) {
    let mut codes = [[0; GROUP]; LANES];
    for (codes, runs) in codes.iter_mut().zip(runs) {
        for (codes, &index) in codes.as_chunks_mut().0.iter_mut().zip(&runs.index) {
            *codes = grid.codes[usize::from(index)];
        }
    }
    let codes = columns_of_whole(s, &codes);
    let (mut sum_xq, mut sum_q2) = (s.splat(0.0), s.splat(0.0));
    for i in 0..GROUP {
        sum_xq = sum_xq + wx[i] * codes[i];
        sum_q2 = sum_q2 + w[i] * codes[i] * codes[i];
    }
    (sum_xq, sum_q2)
}

/// Superblock `b` of those that were searched together: its groups' scales are rounded.
fn fit<F: Magnitudes<W, GROUP>, const W: usize, const GROUP: usize>(
    rows: &Rows,
    found: &Found,
    b: usize,
) -> Fit {
    let groups = WEIGHTS / GROUP;
    let mut fit = Fit {
        d: Half::new(0.0),
        scales: [0; WEIGHTS / 16],
        runs: [0; WEIGHTS / 4],
        signs: rows.signs.as_chunks().0[b],
        live: 0,
    };
    let mut scales = [0.0; WEIGHTS / 16];
    let mut largest = 0.0;
    for (g, scale) in scales[..groups].iter_mut().enumerate() {
        let lane = b * groups + g;
        let signs = &mut fit.signs[g * GROUP / 8..][..GROUP / 8];
        if found.live >> lane & 1 == 0 {
            signs.fill(0);
            continue;
        }
        fit.live |= 1 << g;
        let index = &found.runs[lane].index[..GROUP / W];
        fit.runs[g * index.len()..][..index.len()].copy_from_slice(index);
        *scale = found.scales[lane];
        if *scale < 0.0 {
            // Where the weight with the wrong sign counts for more than all others.
            *scale = -*scale;
            for signs in signs {
                *signs = !*signs;
            }
        }
        largest = if largest > *scale { largest } else { *scale };
    }
    if largest == 0.0 {
        if F::CLEARS {
            fit.runs.fill(0);
            fit.signs.fill(0);
        }
        return fit;
    }
    let d = largest / 31.0; // The highest scale: 2 * 15 + 1.
    fit.d = Half::new(d * F::CORRECTION);
    for (rounded, scale) in fit.scales[..groups].iter_mut().zip(scales) {
        *rounded = scale_code(scale, d, 15);
    }
    fit
}
