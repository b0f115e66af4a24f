//! The encoder that IQ1_S and IQ1_M share: superblocks of 256 weights, whose groups have a scale,
//! and whose runs are an entry of a grid of -1, 0 and 1, all shifted up or down.
//!
//! In the order of their size, those weights of a group that round to -1 come first, then those
//! that round to 0. ggml tries every place for these two borders, with every shift. Given sums over
//! the sorted weights, a try costs a few operations; here sixteen groups are tried side by side.
//! Then each run goes to the grid.

use super::neighbours::IQ1;
use crate::format::columns::columns;
use crate::format::search::temper;
use crate::format::superblock::{WEIGHTS, mean_squares};
use crate::format::{Format, codes};
use crate::isa::{LANES, Lanes, Simd};

/// Weights in a run.
const RUN: usize = 8;
/// The most runs in a group.
const MAX_RUNS: usize = 4;

/// A format of groups of `GROUP` weights.
pub(in crate::format) trait Ternary<const GROUP: usize>: Format {
    /// Groups whose weights are all smaller are taken as zero.
    const TINY: f32;

    /// Tries all splits.
    fn split<S: Simd>(s: S, groups: &Groups<GROUP>) -> Best<S::F32>;

    /// The runs that are shifted down in this [`Split::way`], a bit each.
    fn down(way: usize) -> u8;

    /// The block for these groups; of these weights, with these importances.
    fn block(groups: &[Group], x: &[f32; WEIGHTS], w: &[f32; WEIGHTS]) -> Self::Block;
}

/// What is added to the codes of the grid.
#[inline(always)]
fn shift(down: bool) -> f32 {
    if down { -0.125 } else { 0.125 }
}

/// What was found for a group.
#[derive(Clone, Copy)]
pub(in crate::format) struct Group {
    /// Before it is rounded.
    pub(in crate::format) scale: f32,
    /// The index of each run in the grid.
    pub(in crate::format) index: [u16; MAX_RUNS],
    /// A bit a run, set where it is shifted down.
    pub(in crate::format) down: u8,
}

impl Group {
    /// Where all weights are zero.
    const ZERO: Group = Group { scale: 0.0, index: [0; MAX_RUNS], down: 0 };

    /// The shift of a run.
    #[inline(always)]
    fn shift(&self, run: usize) -> f32 {
        shift(self.down >> run & 1 != 0)
    }

    /// The code of weight `i`, shifted.
    #[inline(always)]
    pub(in crate::format) fn code(&self, i: usize) -> f32 {
        let run = i / RUN;
        f32::from(IQ1.codes[usize::from(self.index[run])][i % RUN]) + self.shift(run)
    }
}

/// The largest scale of a block.
pub(in crate::format) fn largest_scale(groups: &[Group]) -> f32 {
    groups.iter().fold(0.0, |most, group| if most > group.scale { most } else { group.scale })
}

/// Where a group is split, and how its runs are shifted.
#[derive(Clone, Copy)]
pub(in crate::format) struct Split {
    /// How many weights round to -1.
    pub(in crate::format) low: usize,
    /// How many round to -1 or 0.
    pub(in crate::format) high: usize,
    /// One of the format's ways to shift runs.
    pub(in crate::format) way: usize,
}

impl Split {
    /// The most weights in a group.
    const MAX_GROUP: usize = 32;
    /// The most ways.
    const WAYS: usize = 4;

    /// As a number that single precision holds.
    #[inline(always)]
    fn number(self) -> f32 {
        ((self.low * (Split::MAX_GROUP + 1) + self.high) * Split::WAYS + self.way) as f32
    }

    /// The way back; `None` where `number` is below zero.
    #[inline(always)]
    fn from_number(number: f32) -> Option<Split> {
        let whole = number as usize;
        let (places, way) = (whole / Split::WAYS, whole % Split::WAYS);
        let (low, high) = (places / (Split::MAX_GROUP + 1), places % (Split::MAX_GROUP + 1));
        (number >= 0.0).then_some(Split { low, high, way })
    }
}

/// The best split so far, of each of sixteen groups.
pub(in crate::format) struct Best<F> {
    /// How much of the squares of the group's weights it accounts for.
    score: F,
    scale: F,
    /// See [`Split::number`]; below zero where there is none.
    split: F,
}

impl<F: Lanes> Best<F> {
    /// None yet.
    #[inline(always)]
    pub(in crate::format) fn none<S: Simd<F32 = F>>(s: S) -> Best<F> {
        Best { score: s.splat(-f32::MAX), scale: s.splat(0.0), split: s.splat(-1.0) }
    }

    /// Keeps `split` where it is better. `sum_xq` is the sum of importance times weight times code,
    /// `sum_q2` that of importance times the square of the code.
    #[inline(always)]
    pub(in crate::format) fn consider<S: Simd<F32 = F>>(
        &mut self,
        s: S,
        split: Split,
        sum_xq: F,
        sum_q2: F,
    ) {
        let better = s.splat(0.0).lt(sum_q2) & (self.score * sum_q2).lt(sum_xq * sum_xq);
        if F::any(better) {
            self.scale = F::select(better, sum_xq / sum_q2, self.scale);
            self.score = F::select(better, self.scale * sum_xq, self.score);
            self.split = F::select(better, s.splat(split.number()), self.split);
        }
    }
}

/// Sixteen groups.
pub(in crate::format) struct Groups<const GROUP: usize> {
    /// Their weights.
    x: [[f32; GROUP]; LANES],
    /// The importance of these.
    w: [[f32; GROUP]; LANES],
    /// For each place in the groups, how many weights of its group are in front of the one there
    /// when they are sorted.
    ranks: [[u8; LANES]; GROUP],
}

impl<const GROUP: usize> Groups<GROUP> {
    #[inline(always)]
    fn new<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>) -> Self {
        let (mut x, mut w) = ([[0.0; GROUP]; LANES], [[0.0; GROUP]; LANES]);
        x.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
        let mean_squares = mean_squares(weights, 2.0);
        let rows = w.as_flattened_mut().as_chunks_mut::<LANES>().0.iter_mut();
        for (t, (row, x)) in rows.zip(weights.as_chunks().0).enumerate() {
            let x = s.load(x);
            let mut w = [x * x];
            if let Some(importance) = importance {
                w = [s.load(&importance.as_chunks().0[t])];
                temper(&mut w, &[x], s.splat(mean_squares[t * LANES / WEIGHTS]));
            }
            *row = w[0].to_array();
        }
        Groups { ranks: ranks::<S, GROUP>(s, &columns(s, weights)), x, w }
    }

    /// In order: importance times weight, and importance; both zero for weights whose place is not
    /// in `from..to`.
    #[inline(always)]
    pub(in crate::format) fn sorted<S: Simd>(
        &self,
        s: S,
        from: usize,
        to: usize,
    ) -> ([S::F32; GROUP], [S::F32; GROUP]) {
        let (mut wx, mut w) = ([[0.0; GROUP]; LANES], [[0.0; GROUP]; LANES]);
        for i in from..to {
            for (lane, &rank) in self.ranks[i].iter().enumerate() {
                let rank = usize::from(rank);
                w[lane][rank] = self.w[lane][i];
                wx[lane][rank] = self.w[lane][i] * self.x[lane][i];
            }
        }
        (columns(s, wx.as_flattened()), columns(s, w.as_flattened()))
    }
}

/// The weights' places when each group is sorted, equal ones in the order they have: every pair is
/// compared.
#[inline(always)]
fn ranks<S: Simd, const GROUP: usize>(s: S, x: &[S::F32; GROUP]) -> [[u8; LANES]; GROUP] {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let mut ranks = [zero; GROUP];
    for j in 0..GROUP {
        let mut rank = s.splat(j as f32);
        for i in 0..j {
            let swapped = S::F32::select(x[j].lt(x[i]), one, zero);
            rank = rank - swapped;
            ranks[i] = ranks[i] + swapped;
        }
        ranks[j] = rank;
    }
    let mut out = [[0; LANES]; GROUP];
    for (out, rank) in out.iter_mut().zip(ranks) {
        *out = rank.to_bytes();
    }
    out
}

/// See [`Encode::encode`](crate::format::Encode::encode).
#[inline(always)]
pub(in crate::format) fn encode<S: Simd, F: Ternary<GROUP>, const GROUP: usize>(
    s: S,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [F::Block],
) {
    let set_len = LANES * GROUP;
    let sets = weights.chunks(set_len).zip(out.chunks_mut(set_len / WEIGHTS));
    for (n, (weights, out)) in sets.enumerate() {
        let importance = importance.map(|all| &all[n * set_len..][..weights.len()]);
        let groups = Groups::<GROUP>::new(s, weights, importance);
        let found = search::<S, F, GROUP>(s, &groups);
        let blocks = found.chunks_exact(WEIGHTS / GROUP);
        let (x, w) = (groups.x.as_flattened(), groups.w.as_flattened());
        for (b, (out, found)) in out.iter_mut().zip(blocks).enumerate() {
            *out = F::block(found, &x.as_chunks().0[b], &w.as_chunks().0[b]);
        }
    }
}

#[inline(always)]
fn search<S: Simd, F: Ternary<GROUP>, const GROUP: usize>(
    s: S,
    groups: &Groups<GROUP>,
) -> [Group; LANES] {
    let best = F::split(s, groups);
    let (splits, scales) = (best.split.to_array(), best.scale.to_array());
    let mut found = [Group::ZERO; LANES];
    for lane in 0..LANES {
        let (x, w) = (&groups.x[lane], &groups.w[lane]);
        let Some(split) = Split::from_number(splits[lane]) else { continue };
        if codes::magnitude(s, x) < F::TINY {
            continue;
        }
        let mut levels = [0; GROUP];
        for (level, ranks) in levels.iter_mut().zip(&groups.ranks) {
            let rank = usize::from(ranks[lane]);
            *level = u16::from(rank >= split.low) + u16::from(rank >= split.high);
        }
        let group = &mut found[lane];
        group.scale = scales[lane];
        group.down = F::down(split.way);
        if group.scale < 0.0 {
            group.scale = -group.scale;
            group.down ^= u8::MAX;
            levels = levels.map(|level| 2 - level);
        }
        let mut all_on_grid = true;
        for (r, levels) in levels.as_chunks::<RUN>().0.iter().enumerate() {
            let number = levels.iter().rev().fold(0, |number, level| number * 3 + level);
            let (x, w) = (&x.as_chunks().0[r], &w.as_chunks().0[r]);
            let (index, on_grid) = IQ1.snap(s, number, x, w, group.scale, Some(group.shift(r)));
            group.index[r] = index;
            all_on_grid &= on_grid;
        }
        if !all_on_grid {
            let (mut sum_xq, mut sum_q2) = (0.0, 0.0);
            for i in 0..GROUP {
                let code = group.code(i);
                sum_xq += w[i] * code * x[i];
                sum_q2 += w[i] * code * code;
            }
            if sum_xq > 0.0 && sum_q2 > 0.0 {
                group.scale = sum_xq / sum_q2;
            }
        }
    }
    found
}
