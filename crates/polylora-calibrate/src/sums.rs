//! Sums of products of what layers read.
//!
//! A sum over tokens of `x[i] * y[k]` is the product of two rows of a turned matrix, so these sums are
//! made in eight bits: their noise is a hundredth of what the moments are damped by.

use crate::products::{Left, right};
use polylora_quant::product::Activations;
use polylora_quant::{Isa, vector};
use rayon::prelude::*;

/// Sums over inputs `x` of a layer, and over the inputs `y` that it is meant to have. The matrices lie
/// column after column; empty ones are zeros.
pub(crate) struct Sums {
    /// The sum of `x x^T`, `(columns, columns)`; above the diagonal some of it is missing.
    pub(crate) square: Vec<f32>,
    /// The sum of `x (y - x)^T`, `(columns, columns)`; with weights `w`, that of `x (w (y - x))^T`,
    /// `(columns, rows of w)`.
    pub(crate) cross: Vec<f32>,
    /// `w`
    pub(crate) weights: Option<Left>,
    /// The `x` that were added last.
    last: Vec<f32>,
    /// `x` that are not in the sums yet.
    read: Turned,
    /// What they are multiplied with besides, if anything.
    off: Turned,
    /// Whether some of that is not zero.
    is_off: bool,
}

/// Rows that are summed up together.
const TOGETHER: usize = 2048;

impl Sums {
    /// Of nothing yet. Where rows of `weights` are less than half as many as columns, it pays to have
    /// them: products with two narrow matrices for those with a square one.
    pub(crate) fn new(columns: usize, weights: Option<Left>) -> Sums {
        let off = weights.as_ref().map_or(columns, Left::count);
        let [read, off] = [columns, off].map(Turned::new);
        let [square, cross, last] = [const { Vec::new() }; 3];
        Sums { square, cross, weights, last, read, off, is_off: false }
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
        self.last.clear();
        self.last.extend_from_slice(inputs);
    }

    /// The `y` of what was [added](Sums::add) last; to be told of all or of none.
    pub(crate) fn add_meant(&mut self, meant: &[f32]) {
        let columns = self.columns();
        let rows = self.last.par_chunks_exact_mut(columns).zip(meant.par_chunks_exact(columns));
        let is_off = rows.map(|(row, meant)| {
            row.iter_mut().zip(meant).for_each(|(x, y)| *x = y - *x);
            row.iter().any(|off| *off != 0.0)
        });
        self.is_off |= is_off.reduce(|| false, |a, b| a | b);
        match &self.weights {
            None => self.off.push(&self.last),
            Some(weights) => {
                let rows = self.last.len() / columns;
                let off = right(rows, columns, |row, values| {
                    values.extend_from_slice(&self.last[row * columns..][..columns]);
                });
                let mut given = vec![0.0; rows * weights.count()];
                weights.add_to(&mut given, &off, true);
                self.off.push(&given);
            }
        }
    }

    /// Takes in what waits.
    pub(crate) fn sum_up(&mut self) {
        let Sums { square, cross, read, off, is_off, .. } = self;
        if read.rows == 0 {
            return;
        }
        let left = Left::new(read.columns, |column| read.column(column));
        square.resize(read.columns * read.columns, 0.0);
        left.add_to(square, &read.rounded(), false);
        if *is_off {
            cross.resize(read.columns * off.columns, 0.0);
            left.add_to(cross, &off.rounded(), true);
        }
        read.rows = 0;
        off.rows = 0;
    }
}

/// Rows that lie column by column.
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

    /// The columns in eight bits.
    fn rounded(&self) -> Activations {
        let fill = |column, values: &mut Vec<f32>| values.extend_from_slice(self.column(column));
        right(self.columns, self.rows, fill)
    }
}

/// Puts `values`, `(rows, columns)`, column by column into `turned`, `(columns, length)`, from a place
/// in each on.
pub(crate) fn turn(values: &[f32], columns: usize, turned: &mut [f32], length: usize, from: usize) {
    /// Columns that are turned together: some lines of each row are read in turn.
    const COLUMNS: usize = 64;
    turned.par_chunks_mut(COLUMNS * length).enumerate().for_each(|(part, turned)| {
        let some = part * COLUMNS..part * COLUMNS + turned.len() / length;
        vector::turn(Isa::best(), (values, columns), some, (turned, length), from);
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
        // And with some weights.
        const ROWS: usize = 70;
        let weights: Vec<f32> = (0..ROWS).flat_map(|r| row(r, 4)).collect();
        let left = Left::new(ROWS, |row| &weights[row * COLUMNS..][..COLUMNS]);
        let [mut sums, mut narrow] = [None, Some(left)].map(|left| Sums::new(COLUMNS, left));
        let [mut square, mut cross] = [(); 2].map(|()| vec![0.0_f64; COLUMNS * COLUMNS]);
        let (mut squares, mut given) = (vec![0.0_f64; ROWS], vec![0.0_f64; ROWS * COLUMNS]);
        for r in 0..TOGETHER + 100 {
            let (x, d): (Vec<f32>, Vec<f32>) = (row(r, 1).collect(), row(r, 2).collect());
            let y: Vec<f32> = x.iter().zip(&d).map(|(x, d)| x + d).collect();
            for sums in [&mut sums, &mut narrow] {
                sums.add(&x);
                sums.add_meant(&y);
            }
            for k in 0..COLUMNS {
                for i in 0..COLUMNS {
                    square[k * COLUMNS + i] += f64::from(x[i] * x[k]);
                    cross[k * COLUMNS + i] += f64::from(x[i] * d[k]);
                }
            }
            for (k, weights) in weights.chunks_exact(COLUMNS).enumerate() {
                let z: f64 = weights.iter().zip(&d).map(|(w, d)| f64::from(w * d)).sum();
                squares[k] += z * z;
                (0..COLUMNS).for_each(|i| given[k * COLUMNS + i] += f64::from(x[i]) * z);
            }
        }
        sums.sum_up();
        narrow.sum_up();
        assert_eq!(narrow.cross.len(), given.len());
        for k in 0..COLUMNS {
            for i in 0..COLUMNS {
                let at = k * COLUMNS + i;
                let squares_of_i = square[i * COLUMNS + i];
                let off = |found: f32, wanted: f64, squares: f64| {
                    (f64::from(found) - wanted).abs() / (squares_of_i * squares).sqrt()
                };
                let squares_of_k = square[k * COLUMNS + k];
                assert!(i < k || off(sums.square[at], square[at], squares_of_k) < 2e-3, "{i}, {k}");
                assert!(off(sums.cross[at], cross[at], squares_of_k) < 2e-3, "{i}, {k}");
                if k < ROWS {
                    assert!(off(narrow.cross[at], given[at], squares[k]) < 4e-3, "{i}, {k}");
                }
            }
        }
    }
}
