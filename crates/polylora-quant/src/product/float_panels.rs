//! Small matrices of floats, such as an adapter's factors.

use super::Way;
use super::ahead::ask_ahead;
use crate::isa::{Isa, Kernel, LANES, Lanes, Simd};
use crate::vector::load_some;
use std::ops::Range;
use zerocopy::IntoBytes;

/// A matrix of `rows` by `columns` in panels of sixteen rows, laid out for [`multiply_add`].
///
/// Both factors of an adapter are used this way: `A` (rank by inputs) on the tokens, and `B`
/// (outputs by rank) on what `A` gave.
///
/// [`multiply_add`]: FloatPanels::multiply_add
#[derive(Clone, Debug)]
pub struct FloatPanels {
    rows: usize,
    columns: usize,
    values: Values,
}

/// `[rows / 16][columns]` of sixteen rows each, the last filled up with zeros.
#[derive(Clone, Debug)]
enum Values {
    Half(Vec<[u16; LANES]>),
    Single(Vec<[f32; LANES]>),
}

impl FloatPanels {
    /// From `values`, `[rows][columns]`. They are kept in half precision, but in single where
    /// `precise` asks for it, or one of them is too large for a half.
    ///
    /// # Panics
    /// Where `values` are not `rows * columns`.
    pub fn new(rows: usize, columns: usize, values: &[f32], precise: bool) -> FloatPanels {
        assert_eq!(values.len(), rows * columns, "one value for each row and column");
        let mut panels = vec![[0.0; LANES]; rows.div_ceil(LANES) * columns];
        for (r, row) in values.chunks_exact(columns.max(1)).enumerate() {
            let panel = &mut panels[r / LANES * columns..][..columns];
            for (lanes, &value) in panel.iter_mut().zip(row) {
                lanes[r % LANES] = value;
            }
        }
        let fits = |value: &f32| half::f16::from_f32(*value).is_finite();
        let values = if precise || !values.iter().all(fits) {
            Values::Single(panels)
        } else {
            let half = |value: f32| half::f16::from_f32(value).to_bits();
            Values::Half(panels.iter().map(|lanes| lanes.map(half)).collect())
        };
        FloatPanels { rows, columns, values }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Panels of sixteen rows, the last one perhaps of fewer.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::Half(values) => size_of_val(&values[..]),
            Values::Single(values) => size_of_val(&values[..]),
        }
    }

    /// The values of some panels, as they lie in memory.
    pub fn bytes_of(&self, panels: Range<usize>) -> &[u8] {
        let columns = panels.start * self.columns..panels.end * self.columns;
        match &self.values {
            Values::Half(values) => values[columns].as_bytes(),
            Values::Single(values) => values[columns].as_bytes(),
        }
    }

    /// Adds to row `to` of `out` the products of row `from` of `x` with the rows of some panels, for
    /// each (`from`, `to`) of `pairs`.
    ///
    /// `x` begins at the first column of its first row, `out` at the first panel's first row: an
    /// `out` that holds other rows too is to be cut by the caller. The order of sums is that of
    /// `way`.
    ///
    /// # Panics
    /// Where one of `panels`, or a row that `pairs` names, is not there.
    #[allow(clippy::too_many_arguments)] // A matrix with its stride, and where to put another.
    pub fn multiply_add(
        &self,
        isa: Isa,
        way: Way,
        panels: Range<usize>,
        x: &[f32],
        x_stride: usize,
        pairs: &[(u32, u32)],
        out: &mut [f32],
        out_stride: usize,
    ) {
        assert!(panels.end <= self.panels(), "no panels {panels:?} of {}", self.panels());
        let rows = self.rows.min(panels.end * LANES) - panels.start * LANES;
        let columns = panels.start * self.columns..panels.end * self.columns;
        let job = Job { way, rows, width: self.columns, x, x_stride, pairs, out, out_stride };
        match &self.values {
            Values::Half(values) => isa.run(MultiplyAdd { job, columns: &values[columns] }),
            Values::Single(values) => isa.run(MultiplyAdd { job, columns: &values[columns] }),
        }
    }
}

/// See [`FloatPanels::multiply_add`].
struct Job<'a> {
    way: Way,
    rows: usize,
    /// Columns of a panel.
    width: usize,
    x: &'a [f32],
    x_stride: usize,
    pairs: &'a [(u32, u32)],
    out: &'a mut [f32],
    out_stride: usize,
}

/// A job with values of one kind.
struct MultiplyAdd<'a, V> {
    job: Job<'a>,
    /// Of one panel after the other.
    columns: &'a [V],
}

impl<V> Kernel for MultiplyAdd<'_, V>
where
    for<'a> &'a [V]: Columns,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // Eight sums side by side, or as many as registers hold, for none to wait for another; how
        // many of them are one value's is each way's own.
        match (self.job.way, S::ROOMY) {
            (Way::Few, true) => self.all::<S, 1, 2, 4>(s),
            (Way::Few, false) => self.all::<S, 1, 1, 4>(s),
            (Way::Many, true) => self.all::<S, 4, 4, 2>(s),
            (Way::Many, false) => self.all::<S, 2, 2, 2>(s),
        }
    }
}

impl<V> MultiplyAdd<'_, V>
where
    for<'a> &'a [V]: Columns,
{
    /// `T` tokens at a time with one panel, and what remains of them with `P` panels.
    #[inline(always)]
    fn all<S: Simd, const T: usize, const P: usize, const SUMS: usize>(&mut self, s: S) {
        let panels = self.job.rows.div_ceil(LANES);
        let (several, ones) = self.job.pairs.as_chunks::<T>();
        let ones = if T == 1 {
            self.job.pairs
        } else {
            for panel in 0..panels {
                for pairs in several {
                    self.tile::<S, T, 1, SUMS>(s, panel, pairs);
                }
            }
            ones
        };
        for pair in ones {
            let whole = panels / P * P;
            for panel in (0..whole).step_by(P) {
                self.tile::<S, 1, P, SUMS>(s, panel, &[*pair]);
            }
            for panel in whole..panels {
                self.tile::<S, 1, 1, SUMS>(s, panel, &[*pair]);
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const T: usize, const P: usize, const SUMS: usize>(
        &mut self,
        s: S,
        first: usize,
        pairs: &[(u32, u32); T],
    ) {
        let mut x: [&[f32]; T] = [&[]; T];
        for t in 0..T {
            x[t] = &self.job.x[pairs[t].0 as usize * self.job.x_stride..][..self.job.width];
        }
        let mut columns: [&[V]; P] = [&[]; P];
        for (p, columns) in columns.iter_mut().enumerate() {
            *columns = &self.columns[(first + p) * self.job.width..][..self.job.width];
        }
        let sums = sixteen::<S, T, P, SUMS>(s, columns, x);
        for t in 0..T {
            for p in 0..P {
                let row = (first + p) * LANES;
                let lanes = (self.job.rows - row).min(LANES);
                let start = pairs[t].1 as usize * self.job.out_stride + row;
                let out = &mut self.job.out[start..][..lanes];
                match out.as_mut_array::<LANES>() {
                    Some(out) => *out = (s.load(out) + sums[t][p]).to_array(),
                    None => {
                        let sums = (load_some(s, out, 0.0) + sums[t][p]).to_array();
                        out.copy_from_slice(&sums[..out.len()]);
                    }
                }
            }
        }
    }
}

/// Columns of sixteen rows.
pub(crate) trait Columns: Copy {
    /// Column `k`.
    fn column<S: Simd>(self, s: S, k: usize) -> S::F32;
    /// Asks for what comes some time after `count` columns from `k` on, where that is far away.
    #[inline(always)]
    fn ask_ahead<S: Simd>(self, _: S, _k: usize, _count: usize) {}
}

impl Columns for &[[u16; LANES]] {
    #[inline(always)]
    fn column<S: Simd>(self, s: S, k: usize) -> S::F32 {
        s.load_half(&self[k])
    }
    #[inline(always)]
    fn ask_ahead<S: Simd>(self, s: S, k: usize, count: usize) {
        ask_ahead(s, self[k..k + count].as_bytes());
    }
}

impl Columns for &[[f32; LANES]] {
    #[inline(always)]
    fn column<S: Simd>(self, s: S, k: usize) -> S::F32 {
        s.load(&self[k])
    }
    #[inline(always)]
    fn ask_ahead<S: Simd>(self, s: S, k: usize, count: usize) {
        ask_ahead(s, self[k..k + count].as_bytes());
    }
}

/// `sum over k of columns[p][k] * x[t][k]`, for each `t` and `p`, in `SUMS` parts that are added at
/// the end; all `columns` and all `x` are of one length.
#[inline(always)]
pub(crate) fn sixteen<S: Simd, const T: usize, const P: usize, const SUMS: usize>(
    s: S,
    columns: [impl Columns; P],
    mut x: [&[f32]; T],
) -> [[S::F32; P]; T] {
    let length = x[0].len();
    for x in &mut x {
        *x = &x[..length]; // For the compiler to know.
    }
    let mut sums = [[[s.splat(0.0); SUMS]; P]; T];
    let whole = length / SUMS * SUMS;
    for k in (0..whole).step_by(SUMS) {
        if T == 1 {
            for columns in columns {
                columns.ask_ahead(s, k, SUMS);
            }
        }
        for i in 0..SUMS {
            for p in 0..P {
                let column = columns[p].column(s, k + i);
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[p][i] = column.mul_add(s.splat(x[k + i]), sums[p][i]);
                }
            }
        }
    }
    for k in whole..length {
        for p in 0..P {
            let column = columns[p].column(s, k);
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[p][0] = column.mul_add(s.splat(x[k]), sums[p][0]);
            }
        }
    }
    // Loops, not closures: those would be functions without the instruction set.
    let mut totals = [[s.splat(0.0); P]; T];
    for (totals, sums) in totals.iter_mut().zip(&sums) {
        for (total, sums) in totals.iter_mut().zip(sums) {
            let (halves, rest) = sums.as_chunks::<2>();
            for (i, [a, b]) in halves.iter().enumerate() {
                *total = if i == 0 { *a + *b } else { *total + (*a + *b) };
            }
            if let [only] = rest {
                *total = *only;
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::super::tests::Random;
    use super::*;

    #[test]
    fn panels_add_their_product() {
        let mut random = Random(6);
        for (rows, columns) in [(16, 64), (1, 5), (40, 16), (17, 3), (8, 576), (64, 8)] {
            let a: Vec<f32> = (0..rows * columns).map(|_| random.value()).collect();
            let x: Vec<f32> = (0..9 * (columns + 2)).map(|_| random.value()).collect();
            for pairs in [&[(3, 0)][..], &[(0, 4), (8, 1), (2, 2), (2, 0), (1, 3)]] {
                for (isa, precise) in
                    Isa::available().into_iter().flat_map(|isa| [(isa, true), (isa, false)])
                {
                    let panels = FloatPanels::new(rows, columns, &a, precise);
                    assert_eq!(panels.panels(), rows.div_ceil(16));
                    let product = |way, pairs: &[(u32, u32)]| {
                        let mut out = vec![0.5; 5 * (rows + 1)];
                        let (all, step) = (0..panels.panels(), columns + 2);
                        panels.multiply_add(isa, way, all, &x, step, pairs, &mut out, rows + 1);
                        out
                    };
                    let (few, out) = (product(Way::Few, pairs), product(Way::Many, pairs));
                    for (way, all) in [(Way::Few, &few), (Way::Many, &out)] {
                        // To the bit what each pair adds alone.
                        for pair in pairs {
                            let place = pair.1 as usize * (rows + 1)..;
                            let alone = product(way, &[*pair]);
                            assert_eq!(alone[place.clone()][..rows], all[place][..rows]);
                        }
                        // And each panel, whichever are beside it.
                        let mut each = vec![0.5; 5 * (rows + 1)];
                        for panel in 0..panels.panels() {
                            let (out, one) = (&mut each[16 * panel..], panel..panel + 1);
                            let step = columns + 2;
                            panels.multiply_add(isa, way, one, &x, step, pairs, out, rows + 1);
                        }
                        assert_eq!(&each, all);
                    }
                    let mut want = vec![0.5; 5 * (rows + 1)];
                    for &(from, to) in pairs {
                        for r in 0..rows {
                            for k in 0..columns {
                                let x = x[from as usize * (columns + 2) + k];
                                want[to as usize * (rows + 1) + r] += a[r * columns + k] * x;
                            }
                        }
                    }
                    let allowed = if precise { 1e-5 } else { 3e-3 } * (columns as f32).sqrt();
                    for (got, want) in few.iter().chain(&out).zip(want.iter().cycle()) {
                        assert!((got - want).abs() < allowed, "{rows}x{columns}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn halves_hold_what_fits_them() {
        let bytes = |values: &[f32], precise| FloatPanels::new(1, 2, values, precise).bytes();
        assert_eq!(bytes(&[1.0, -65504.0], false), 2 * 16 * 2);
        assert_eq!(bytes(&[1.0, -65504.0], true), 2 * 16 * 4);
        assert_eq!(bytes(&[1.0, 70000.0], false), 2 * 16 * 4);
    }
}
