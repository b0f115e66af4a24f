//! Attention, a block of positions at a time, without the matrix of all scores.
//!
//! `softmax(q K) V` is taken in one pass over the positions: each query keeps the largest score
//! that it has met, the sum of `exp(score - largest)`, and the values summed with these weights;
//! where a block brings a larger score, what was kept is scaled down to it (Milakov and Gimelshein
//! 2018, "Online normalizer calculation for softmax"; Dao et al. 2022, "FlashAttention").

use crate::isa::{Isa, Kernel, LANES, Lanes, Simd};
use crate::product::{Columns, Way, sixteen};
use crate::vector::{self, SoftCap, dots, each, exp_less, largest, load_some, turn_with};
use std::ops::Range;

/// Positions that are taken in together.
const BLOCK: usize = 64;
/// Queries whose scores stay in registers together; twice as many, where there are the registers.
const TOGETHER: usize = 4;
/// From how many queries on it pays to lay the keys of sixteen positions side by side. Where many
/// tokens come that is always done: sums are then taken in the same order for all of them.
const TRANSPOSE_FROM: usize = 3;

/// Queries that attend to the positions of one key and value head, and what each has gathered.
///
/// The queries of a step are all that share the head: those of its group of query heads, for each
/// of the tokens.
#[derive(Debug, Default)]
pub struct Attention {
    size: usize,
    largest: Vec<f32>,       // [queries]
    sum: Vec<f32>,           // [queries]
    values: Vec<f32>,        // [queries][size]
    keys: Vec<[f32; BLOCK]>, // [size], of a block
}

impl Attention {
    /// Begins anew, with `queries` queries in heads of `size` values.
    pub fn reset(&mut self, queries: usize, size: usize) {
        self.size = size;
        self.largest.clear();
        self.largest.resize(queries, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(queries, 0.0);
        self.values.clear();
        self.values.resize(queries * size, 0.0);
    }

    /// Takes in the next positions.
    ///
    /// - `keys`, `values`: `[positions][size]`. Multiples of 64 positions are best.
    /// - `queries`: `[queries][size]`, the scale of the scores (`1 / sqrt(size)`) multiplied in.
    /// - `visible`: for each query, which of these positions it sees; none where it is empty.
    /// - `cap`: scores become `cap * tanh(score / cap)`.
    /// - `way`: for few tokens, or for many; with many a query gathers the same, to the bit, whichever
    ///   others are there.
    ///
    /// # Panics
    /// Where a length does not fit, or a range ends beyond the positions.
    #[allow(clippy::too_many_arguments)] // Keys, values and queries, and how to look at them.
    pub fn attend(
        &mut self,
        isa: Isa,
        way: Way,
        keys: &[f32],
        values: &[f32],
        queries: &[f32],
        visible: &[Range<usize>],
        cap: Option<f32>,
    ) {
        let positions = keys.len() / self.size.max(1);
        assert_eq!(keys.len(), positions * self.size, "whole keys");
        assert_eq!(keys.len(), values.len(), "as many values as keys");
        assert_eq!(queries.len(), self.values.len(), "the queries are those of `reset`");
        assert_eq!(visible.len(), self.largest.len(), "a range for each query");
        assert!(visible.iter().all(|range| range.is_empty() || range.end <= positions));
        isa.run(Attend { state: self, way, keys, values, queries, visible, cap });
    }

    /// What each query has gathered, `[queries][size]`, to `out`; zero for one that saw no
    /// position.
    ///
    /// # Panics
    /// Where `out` is not `queries * size`.
    pub fn finish(&self, isa: Isa, out: &mut [f32]) {
        assert_eq!(out.len(), self.values.len(), "the size of all queries");
        out.fill(0.0);
        let size = self.size.max(1);
        let gathered = self.values.chunks_exact(size).zip(&self.sum);
        for (out, (values, &sum)) in out.chunks_exact_mut(size).zip(gathered) {
            if sum > 0.0 || sum.is_nan() {
                vector::add_scaled(isa, out, 1.0 / sum, values);
            }
        }
    }
}

/// See [`Attention::attend`].
struct Attend<'a> {
    state: &'a mut Attention,
    way: Way,
    keys: &'a [f32],
    values: &'a [f32],
    queries: &'a [f32],
    visible: &'a [Range<usize>],
    cap: Option<f32>,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let size = self.state.size;
        for first in (0..self.keys.len() / size.max(1)).step_by(BLOCK) {
            if self.is_transposed() {
                let keys = &self.keys[first * size..];
                let positions = (keys.len() / size).min(BLOCK);
                side_by_side(s, &keys[..positions * size], size, &mut self.state.keys);
            }
            let (mut q, queries) = (0, self.visible.len());
            while S::PAIRS && q + 2 * TOGETHER <= queries {
                self.some::<S, { 2 * TOGETHER }, 1>(s, first, q);
                q += 2 * TOGETHER;
            }
            while q + TOGETHER <= queries {
                self.some::<S, TOGETHER, 1>(s, first, q);
                q += TOGETHER;
            }
            while q < queries {
                match self.way {
                    Way::Few => self.some::<S, 1, 4>(s, first, q),
                    Way::Many => self.some::<S, 1, 1>(s, first, q),
                }
                q += 1;
            }
        }
    }
}

impl Attend<'_> {
    fn is_transposed(&self) -> bool {
        self.way == Way::Many || self.visible.len() >= TRANSPOSE_FROM
    }

    /// `T` queries from `q` on, and the block of positions from `first` on; sums are taken in `SUMS`
    /// parts.
    #[inline(always)]
    fn some<S: Simd, const T: usize, const SUMS: usize>(&mut self, s: S, first: usize, q: usize) {
        let size = self.state.size;
        let mut queries: [&[f32]; T] = [&[]; T];
        // Those that any of the queries sees: the others cost nothing.
        let (mut from, mut to) = (BLOCK, 0);
        for (t, query) in queries.iter_mut().enumerate() {
            *query = &self.queries[(q + t) * size..][..size];
            let (start, end) = self.seen(q + t, first);
            if start < end {
                (from, to) = (from.min(start), to.max(end));
            }
        }
        if from >= to {
            return;
        }
        // A position has its lane whatever comes before it.
        from = from / LANES * LANES;
        let mut scores = [[f32::NEG_INFINITY; BLOCK]; T];
        self.scores::<S, T, SUMS>(s, first, from..to, queries, &mut scores);

        for (t, scores) in scores.iter_mut().enumerate() {
            let (start, end) = self.seen(q + t, first);
            scores[from..start.clamp(from, to)].fill(f32::NEG_INFINITY);
            scores[end.clamp(from, to)..to].fill(f32::NEG_INFINITY);
            let seen = &mut scores[from..to];
            if start >= end {
                seen.fill(0.0);
                continue;
            }
            if let Some(cap) = self.cap {
                each(s, &mut seen[start - from..end - from], &[], &SoftCap(cap));
            }
            let before = self.state.largest[q + t];
            let now = largest(s, seen).max(before);
            self.state.largest[q + t] = now;
            // Where no score is finite, there is nothing to weigh.
            let base = if now == f32::NEG_INFINITY { 0.0 } else { now };
            let kept = (before - base).exp();
            self.state.sum[q + t] = self.state.sum[q + t] * kept + exp_less(s, seen, base);
            if kept != 1.0 {
                let gathered = &mut self.state.values[(q + t) * size..][..size];
                each(s, gathered, &[], &vector::Times(kept));
            }
        }
        let mut weights: [&[f32]; T] = [&[]; T];
        for t in 0..T {
            weights[t] = &scores[t][from..to];
        }
        let values = &self.values[(first + from) * size..(first + to) * size];
        for lane in (0..size).step_by(LANES) {
            let values = Strided { rows: values, stride: size, lane };
            let sums = sixteen::<S, T, 1, SUMS>(s, [values], weights);
            for t in 0..T {
                let gathered = &mut self.state.values[(q + t) * size..][..size][lane..];
                match gathered.first_chunk_mut::<LANES>() {
                    Some(gathered) => *gathered = (s.load(gathered) + sums[t][0]).to_array(),
                    None => {
                        let sums = (load_some(s, gathered, 0.0) + sums[t][0]).to_array();
                        gathered.copy_from_slice(&sums[..gathered.len()]);
                    }
                }
            }
        }
    }

    /// Which positions of the block a query sees: from, to.
    #[inline(always)]
    fn seen(&self, q: usize, first: usize) -> (usize, usize) {
        let visible = &self.visible[q];
        (visible.start.saturating_sub(first), visible.end.saturating_sub(first).min(BLOCK))
    }

    /// Scores of the positions `wanted` of a block, and perhaps of those beside them.
    #[inline(always)]
    fn scores<S: Simd, const T: usize, const SUMS: usize>(
        &self,
        s: S,
        first: usize,
        wanted: Range<usize>,
        queries: [&[f32]; T],
        scores: &mut [[f32; BLOCK]; T],
    ) {
        if !self.is_transposed() {
            let size = self.state.size;
            for p in wanted {
                let dots = dots(s, &self.keys[(first + p) * size..][..size], queries);
                for t in 0..T {
                    scores[t][p] = dots[t];
                }
            }
            return;
        }
        for lane in (wanted.start / LANES * LANES..wanted.end).step_by(LANES) {
            let keys = Strided { rows: self.state.keys.as_flattened(), stride: BLOCK, lane };
            let sums = sixteen::<S, T, 1, SUMS>(s, [keys], queries);
            for t in 0..T {
                scores[t][lane..][..LANES].copy_from_slice(&sums[t][0].to_array());
            }
        }
    }
}

/// Sixteen lanes of each row of a matrix, or as many as there are.
#[derive(Clone, Copy)]
struct Strided<'a> {
    rows: &'a [f32],
    stride: usize,
    lane: usize,
}

impl Columns for Strided<'_> {
    #[inline(always)]
    fn column<S: Simd>(self, s: S, k: usize) -> S::F32 {
        let row = &self.rows[k * self.stride..][..self.stride][self.lane..];
        match row.first_chunk::<LANES>() {
            Some(lanes) => s.load(lanes),
            None => load_some(s, row, 0.0),
        }
    }
}

/// Keys `[positions][size]` to `[size][BLOCK]`, zeros for the positions that are not there.
#[inline(always)]
fn side_by_side<S: Simd>(s: S, keys: &[f32], size: usize, out: &mut Vec<[f32; BLOCK]>) {
    if keys.len() < BLOCK * size {
        out.clear();
    }
    out.resize(size, [0.0; BLOCK]);
    turn_with(s, (keys, size), 0..size, (out.as_flattened_mut(), BLOCK), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: f32, size: f32) -> Vec<f32> {
        (0..count).map(|i| ((i * i) as f32 * 0.37 + seed).sin() * size).collect()
    }

    /// In double precision, all positions at once.
    fn naive(
        keys: &[f32],
        values: &[f32],
        query: &[f32],
        visible: Range<usize>,
        cap: Option<f32>,
    ) -> Vec<f64> {
        let size = query.len();
        let scores: Vec<f64> = visible
            .clone()
            .map(|p| {
                let pairs = keys[p * size..].iter().zip(query);
                let score: f64 = pairs.map(|(&k, &q)| f64::from(k) * f64::from(q)).sum();
                cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; size];
        for (p, score) in visible.zip(&scores) {
            for (out, &value) in out.iter_mut().zip(&values[p * size..]) {
                *out += (score - largest).exp() / sum * f64::from(value);
            }
        }
        out
    }

    #[test]
    fn blocks_give_what_all_positions_at_once_give() {
        let mut attention = Attention::default();
        for (size, count, positions) in
            [(64, 1, 200), (64, 2, 64), (128, 9, 130), (80, 4, 1), (72, 7, 65), (5, 3, 17)]
        {
            let (keys, vals) =
                (values(positions * size, 0.1, 2.0), values(positions * size, 0.7, 3.0));
            let queries = values(count * size, 0.3, 1.5);
            // Causal, windows, and nothing at all.
            let visible: Vec<Range<usize>> = (0..count)
                .map(|q| match q % 4 {
                    0 => 0..positions,
                    1 => positions / 3..(positions / 3 + 60).min(positions),
                    2 => 0..positions.min(q + 1),
                    _ => 0..0,
                })
                .collect();
            for (isa, cap) in
                Isa::available().into_iter().flat_map(|isa| [(isa, None), (isa, Some(6.0))])
            {
                // In pieces of different lengths.
                attention.reset(count, size);
                let mut first = 0;
                for piece in [7, 64, 100, 1, 128] {
                    let end = positions.min(first + piece);
                    let seen: Vec<Range<usize>> = visible
                        .iter()
                        .map(|range| {
                            range.start.clamp(first, end) - first
                                ..range.end.clamp(first, end) - first
                        })
                        .collect();
                    let part = first * size..end * size;
                    let way = Way::of(count);
                    let (keys, vals) = (&keys[part.clone()], &vals[part]);
                    attention.attend(isa, way, keys, vals, &queries, &seen, cap);
                    first = end;
                }
                let mut out = vec![f32::NAN; count * size];
                attention.finish(isa, &mut out);
                for (q, out) in out.chunks_exact(size).enumerate() {
                    let query = &queries[q * size..][..size];
                    let want = naive(&keys, &vals, query, visible[q].clone(), cap);
                    for (got, want) in out.iter().zip(want) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error < 2e-4, "{} {size} query {q}: {got} {want}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn with_many_a_query_gathers_the_same_whichever_others_are_there() {
        let (size, positions) = (72, 200);
        let (keys, vals) = (values(positions * size, 0.1, 2.0), values(positions * size, 0.7, 3.0));
        let queries = values(11 * size, 0.3, 1.5);
        let visible: Vec<Range<usize>> = (0..11).map(|q| 13 * q..positions - 9 * q).collect();
        for isa in Isa::available() {
            let gather = |which: Range<usize>, positions: usize| {
                let mut attention = Attention::default();
                attention.reset(which.len(), size);
                let (queries, visible) =
                    (&queries[which.start * size..which.end * size], &visible[which.clone()]);
                let (keys, vals) = (&keys[..positions * size], &vals[..positions * size]);
                attention.attend(isa, Way::Many, keys, vals, queries, visible, None);
                let mut out = vec![0.0; which.len() * size];
                attention.finish(isa, &mut out);
                out
            };
            let all = gather(0..11, positions);
            for q in 0..11 {
                let alone = gather(q..q + 1, visible[q].end);
                assert_eq!(alone, all[q * size..][..size], "{} {q}", isa.name());
            }
        }
    }
}
