//! Sums of products of what layers read.
//!
//! A sum over tokens of `x[i] * y[k]` is the product of two rows of a turned matrix, so these sums are
//! made by the products that models are run with, of codes of eight bits. Their rounding adds noise with
//! a ten-thousandth of the values' variance, a hundredth of what the moments are damped by.

use polylora_quant::GgmlType::{self, Q8_0};
use polylora_quant::product::{Activations, Scratch, Way, multiply};
use polylora_quant::{Isa, quantize};
use rayon::prelude::*;

/// Sums over inputs `x` of a layer, and over the inputs `y` that it is meant to have. The matrices are
/// `(columns, columns)`, column after column; empty ones are zeros.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    /// The sum of `x x^T`; above the diagonal some of it is missing.
    pub(crate) square: Vec<f32>,
    /// The sum of `x (y - x)^T`.
    pub(crate) cross: Vec<f32>,
    /// `x` that are not in the sums yet.
    read: Turned,
    /// Their `y`; none, where these are the same.
    meant: Turned,
}

/// Rows that are summed up together.
const TOGETHER: usize = 2048;

/// Tiles of a sum are so wide and high: of rows of so many tokens they stay in the second cache.
const TILE: usize = 256;

/// What columns are rounded to when they are weights.
const TYPE: GgmlType = Q8_0;

impl Sums {
    /// Of nothing yet.
    pub(crate) fn new(columns: usize) -> Sums {
        let [read, meant] = [Turned::new(columns), Turned::new(columns)];
        Sums { square: Vec::new(), cross: Vec::new(), read, meant }
    }

    /// The length of the rows.
    pub(crate) fn columns(&self) -> usize {
        self.read.columns
    }

    /// Adds some `x`, `(rows, columns)`: no more rows than are summed up together.
    pub(crate) fn add(&mut self, inputs: &[f32]) {
        if self.read.rows + inputs.len() / self.columns() > TOGETHER {
            self.sum_up();
        }
        self.read.push(inputs);
    }

    /// What should have been read instead of what was [added](Sums::add) last; to be told of all or
    /// of none.
    pub(crate) fn add_meant(&mut self, meant: &[f32]) {
        self.meant.push(meant);
    }

    /// Takes in what waits.
    pub(crate) fn sum_up(&mut self) {
        let Sums { square, cross, read, meant } = self;
        if read.rows == 0 {
            return;
        }
        let weights = Weights::new(read);
        let rounded = read.rounded(|_, _| {});
        weights.multiply(&rounded, true, square);
        let is_off = |column| read.column(column) != meant.column(column);
        if meant.rows == read.rows && (0..read.columns).any(is_off) {
            let off = meant.rounded(|column, values| {
                values.iter_mut().zip(read.column(column)).for_each(|(y, x)| *y -= x);
            });
            weights.multiply(&off, false, cross);
        }
        read.rows = 0;
        meant.rows = 0;
    }
}

/// Rows that lie column by column.
#[derive(Clone, Debug)]
struct Turned {
    columns: usize,
    rows: usize,
    /// `(columns, TOGETHER)`, when there are any rows.
    values: Vec<f32>,
}

impl Turned {
    fn new(columns: usize) -> Turned {
        Turned { columns, rows: 0, values: Vec::new() }
    }

    /// Adds rows, for which there is room.
    fn push(&mut self, rows: &[f32]) {
        self.values.resize(self.columns * TOGETHER, 0.0);
        turn(rows, self.columns, &mut self.values, TOGETHER, self.rows);
        self.rows += rows.len() / self.columns;
    }

    fn column(&self, column: usize) -> &[f32] {
        &self.values[column * TOGETHER..][..self.rows]
    }

    /// Whole blocks of a column.
    fn length(&self) -> usize {
        self.rows.next_multiple_of(TYPE.block_weights())
    }

    /// The columns in eight bits, each changed before.
    fn rounded(&self, change: impl Fn(usize, &mut [f32]) + Sync) -> Activations {
        let mut rounded = Activations::default();
        rounded.reset(self.columns, self.length());
        let columns: Vec<_> = rounded.tokens_mut().collect();
        columns.into_par_iter().enumerate().for_each_init(Vec::new, |values, (column, mut to)| {
            values.clear();
            values.extend_from_slice(self.column(column));
            change(column, values);
            values.resize(self.length(), 0.0);
            to.quantize(Isa::best(), values);
        });
        rounded
    }
}

/// Columns of a batch as rows of weights.
struct Weights {
    row_bytes: usize,
    /// Of rows that were divided by their sizes: scales of blocks have few bits.
    bytes: Vec<u8>,
    sizes: Vec<f32>,
}

impl Weights {
    fn new(turned: &Turned) -> Weights {
        let row_bytes = TYPE.row_bytes(turned.length()).expect("whole blocks");
        let mut bytes = vec![0; row_bytes * turned.columns];
        let mut sizes = vec![0.0; turned.columns];
        let rows = bytes.par_chunks_exact_mut(row_bytes).zip(&mut sizes).enumerate();
        rows.for_each_init(Vec::new, |scaled, (column, (bytes, size))| {
            let values = turned.column(column);
            *size = values.iter().fold(0.0, |size: f32, value| size.max(value.abs()));
            let inverse = if *size > 0.0 { 1.0 / *size } else { 0.0 };
            scaled.clear();
            scaled.extend(values.iter().map(|value| value * inverse));
            scaled.resize(turned.length(), 0.0);
            quantize(TYPE, scaled, None, bytes).expect("whole rows of a type that encodes");
        });
        Weights { row_bytes, bytes, sizes }
    }

    /// Adds the products with all columns of another batch to `sum`; of the tiles that lie above the
    /// diagonal only where `lower` is not set.
    fn multiply(&self, x: &Activations, lower: bool, sum: &mut Vec<f32>) {
        let columns = self.sizes.len();
        sum.resize(columns * columns, 0.0);
        let parts = sum.par_chunks_mut(TILE * columns).enumerate();
        parts.for_each_init(
            || (Scratch::default(), Vec::new()),
            |(scratch, products), (part, sum)| {
                let first = part * TILE;
                let tokens: Vec<u32> = (first..columns).take(TILE).map(|k| k as u32).collect();
                for start in (if lower { first } else { 0 }..columns).step_by(TILE) {
                    let rows = start..columns.min(start + TILE);
                    let bytes =
                        &self.bytes[rows.start * self.row_bytes..][..rows.len() * self.row_bytes];
                    products.resize(rows.len() * tokens.len(), 0.0);
                    multiply(
                        Isa::best(),
                        Way::Many,
                        TYPE,
                        bytes,
                        x,
                        &tokens,
                        products,
                        scratch,
                        &[],
                    )
                    .expect("rows of one length");
                    let sizes = &self.sizes[rows.clone()];
                    let products = products.chunks_exact(rows.len());
                    for (products, sum) in products.zip(sum.chunks_exact_mut(columns)) {
                        let sums = sum[rows.clone()].iter_mut().zip(products.iter().zip(sizes));
                        sums.for_each(|(sum, (product, size))| *sum += product * size);
                    }
                }
            },
        );
    }
}

/// Puts `values`, `(rows, columns)`, column by column into `turned`, `(columns, length)`, from a place
/// in each on.
pub(crate) fn turn(values: &[f32], columns: usize, turned: &mut [f32], length: usize, from: usize) {
    /// Rows that are turned together, for whole lines of the cache to be written at once; and columns:
    /// some lines of each row are read in turn.
    const ROWS: usize = 16;
    const COLUMNS: usize = 64;
    turned.par_chunks_mut(COLUMNS * length).enumerate().for_each(|(part, turned)| {
        let width = turned.len() / length;
        for (rows, first) in values.chunks(ROWS * columns).zip((from..).step_by(ROWS)) {
            let mut pieces: [&[f32]; ROWS] = [&[]; ROWS];
            for (piece, row) in pieces.iter_mut().zip(rows.chunks_exact(columns)) {
                *piece = &row[part * COLUMNS..][..width];
            }
            let pieces = &pieces[..rows.len() / columns];
            for (column, turned) in turned.chunks_exact_mut(length).enumerate() {
                let turned = turned[first..].iter_mut();
                turned.zip(pieces).for_each(|(to, piece)| *to = piece[column]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_products() {
        // More rows than are summed up together, and columns beyond a tile; some of them tiny.
        const COLUMNS: usize = 300;
        let row = |r: usize, seed: usize| {
            (0..COLUMNS).map(move |c| {
                let size = if c % 7 == 0 { 1e-6 } else { 1.0 };
                size * ((r * (c + 3) + seed * c) as f32 * 0.37).sin()
            })
        };
        let mut sums = Sums::new(COLUMNS);
        let [mut square, mut cross] = [(); 2].map(|()| vec![0.0_f64; COLUMNS * COLUMNS]);
        for r in 0..TOGETHER + 100 {
            let (x, d): (Vec<f32>, Vec<f32>) = (row(r, 1).collect(), row(r, 2).collect());
            let y: Vec<f32> = x.iter().zip(&d).map(|(x, d)| x + d).collect();
            sums.add(&x);
            sums.add_meant(&y);
            for k in 0..COLUMNS {
                for i in 0..COLUMNS {
                    square[k * COLUMNS + i] += f64::from(x[i] * x[k]);
                    cross[k * COLUMNS + i] += f64::from(x[i] * d[k]);
                }
            }
        }
        sums.sum_up();
        for k in 0..COLUMNS {
            for i in 0..COLUMNS {
                let at = k * COLUMNS + i;
                let size = (square[i * COLUMNS + i] * square[k * COLUMNS + k]).sqrt();
                let off = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() / size;
                assert!(i < k || off(sums.square[at], square[at]) < 2e-3, "{i}, {k}");
                assert!(off(sums.cross[at], cross[at]) < 2e-3, "{i}, {k}");
            }
        }
    }
}
