//! Second moments of what layers read, and what follows for the rounding of their weights.

use crate::products::{Left, right};
use crate::sums::{Sums, turn};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::cholesky::llt::solve::solve_in_place;
use faer::{MatMut, MatRef, Par, Spec};
use polylora_quant::compensate::Curvature;
use rayon::prelude::*;

/// The part of the mean of the diagonal that is added to it: what was read says little of what seldom
/// varies, and a factor must exist.
const DAMPING: f32 = 0.01;

/// The same where it is asked what weights make good of what came before: they would else fit the
/// very texts.
///
/// SmolLM2-135M in Q4_1, divergence from the adapter at run time, with both of 0.01, this one of 0.05,
/// both of 0.05: 0.061, 0.053 and 0.053 with an adapter that answers in capitals; 0.030 and 0.035 (the
/// last two) with one that answers as a pirate.
const AIM_DAMPING: f32 = 0.05;

/// How errors of a row count that reads what was summed up, and what rows are to aim at, if not at
/// what they are.
pub(crate) fn moments(mut sums: Sums) -> (Curvature, Option<Aim>) {
    sums.sum_up();
    (curvature(sums.columns(), &sums.square), Aim::new(sums))
}

/// `H = F D F^T`, `F` unit upper triangular, of a sum of squares.
fn curvature(columns: usize, square: &[f32]) -> Curvature {
    let Some(mean) = mean_square(columns, square) else {
        // Nothing was read: all errors count alike.
        return Curvature::new(vec![0.0; columns * columns], vec![1.0; columns]);
    };
    let last = columns - 1;
    // The Cholesky factor of the matrix turned about, turned about, is upper triangular.
    let mut turned = vec![0.0; columns * columns];
    turn(square, columns, &mut turned, columns, 0);
    let factor = Factor::new(columns, DAMPING * mean, |j, column| {
        let turned = turned[(last - j) * columns..][..column.len()].iter().rev();
        column.iter_mut().zip(turned).for_each(|(to, value)| *to = *value);
    });
    let mut feedback = vec![0.0; columns * columns];
    let mut loss = vec![0.0; columns];
    let rows = feedback.par_chunks_exact_mut(columns).zip(&mut loss).enumerate();
    rows.for_each(|(j, (feedback, loss))| {
        let [diagonal, below @ ..] = factor.column(last - j) else { unreachable!("it has one") };
        *loss = diagonal * diagonal / mean;
        let below = feedback.iter_mut().zip(below.iter().rev());
        below.for_each(|(feedback, value)| *feedback = value / diagonal);
    });
    Curvature::new(feedback, loss)
}

/// What weights `w` are moved by, so that a layer gives of `x` most nearly what it should give of `y`:
///
/// ```text
/// sum of |w y - (w + g) x|^2 is least for g H = w * (sum of (y - x) x^T)
/// ```
pub(crate) enum Aim {
    /// `g`, `(rows, columns)`.
    Weights(Vec<f32>),
    /// The rows of `H^-1 * sum of x (y - x)^T`: products of rows of any weights with them are `g`.
    Inputs(Left),
}

impl Aim {
    /// None, where all inputs are what they should be.
    fn new(sums: Sums) -> Option<Aim> {
        if sums.cross.is_empty() {
            return None;
        }
        let columns = sums.columns();
        let damping = AIM_DAMPING * mean_square(columns, &sums.square)?;
        let factor = Factor::new(columns, damping, |j, column| {
            column.copy_from_slice(&sums.square[j * columns + j..][..column.len()]);
        });
        let mut moves = sums.cross;
        factor.solve(&mut moves);
        if sums.weights.is_some() {
            return Some(Aim::Weights(moves));
        }
        let mut rows = vec![0.0; columns * columns];
        turn(&moves, columns, &mut rows, columns, 0);
        Some(Aim::Inputs(Left::new(columns, |row| &rows[row * columns..][..columns])))
    }

    /// Moves rows of weights, `(rows, columns)`.
    pub(crate) fn apply(&self, columns: usize, weights: &mut [f32]) {
        match self {
            Aim::Weights(moves) => {
                weights.iter_mut().zip(moves).for_each(|(weight, moved)| *weight += moved);
            }
            Aim::Inputs(moves) => {
                let rounded = right(weights.len() / columns, columns, |row, values| {
                    values.extend_from_slice(&weights[row * columns..][..columns]);
                });
                moves.add_to(weights, &rounded, true);
            }
        }
    }
}

/// The mean of the diagonal; none for nothing, and for what is not finite.
fn mean_square(columns: usize, square: &[f32]) -> Option<f32> {
    let diagonal = square.iter().step_by(columns + 1);
    let mean = diagonal.sum::<f32>() / columns as f32;
    (mean > 0.0 && mean.is_finite()).then_some(mean)
}

/// The Cholesky factor of a matrix with something added to its diagonal.
struct Factor {
    columns: usize,
    /// Column after column; what is above the diagonal is not meant.
    lower: Vec<f32>,
}

impl Factor {
    /// Of a matrix of which `fill` gives each column from the diagonal on; with so much or more on the
    /// diagonal.
    fn new(columns: usize, mut damping: f32, fill: impl Fn(usize, &mut [f32]) + Sync) -> Factor {
        let mut lower = vec![0.0; columns * columns];
        let (par, params) = (Par::rayon(0), Spec::default());
        let mut scratch = MemBuffer::new(cholesky_in_place_scratch::<f32>(columns, par, params));
        loop {
            lower.par_chunks_exact_mut(columns).enumerate().for_each(|(j, column)| {
                fill(j, &mut column[j..]);
                column[j] += damping;
            });
            let matrix = MatMut::from_column_major_slice_mut(&mut lower, columns, columns);
            let (fixes, stack) = (LltRegularization::default(), MemStack::new(&mut scratch));
            match cholesky_in_place(matrix, fixes, par, stack, params) {
                Ok(_) => return Factor { columns, lower },
                Err(_) => damping *= 10.0,
            }
        }
    }

    /// A column from the diagonal on.
    fn column(&self, j: usize) -> &[f32] {
        &self.lower[j * self.columns..][j..self.columns]
    }

    /// Multiplies columns, one after the other, with the inverse of the matrix.
    fn solve(&self, columns: &mut [f32]) {
        let lower = MatRef::from_column_major_slice(&self.lower, self.columns, self.columns);
        let count = columns.len() / self.columns;
        let columns = MatMut::from_column_major_slice_mut(columns, self.columns, count);
        // It needs no memory besides.
        solve_in_place(lower, columns, Par::rayon(0), MemStack::new(&mut []));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: usize = 48;

    /// `(rows, COLUMNS)`, of which no column says much of another.
    fn random(rows: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..rows * COLUMNS).map(|_| next()).collect()
    }

    /// What weights give of inputs, `(inputs, rows)`.
    fn given(inputs: &[f32], weights: &[f32]) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum();
        let of_one = |x| weights.chunks_exact(COLUMNS).map(move |w| dot(x, w));
        inputs.chunks_exact(COLUMNS).flat_map(of_one).collect()
    }

    #[test]
    fn rows_aim_at_what_makes_good_their_inputs() {
        let (x, weights) = (random(1000, 1), random(5, 2));
        // Each input is meant to be a mixture with the next one.
        let mut meant = x.clone();
        for (meant, x) in meant.chunks_exact_mut(COLUMNS).zip(x.chunks_exact(COLUMNS)) {
            (0..COLUMNS - 1).for_each(|i| meant[i] += 0.3 * x[i + 1]);
        }
        let wanted = given(&meant, &weights);
        let off = |weights: &[f32]| -> f32 {
            given(&x, weights).iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let left = Left::new(5, |row| &weights[row * COLUMNS..][..COLUMNS]);
        for left in [None, Some(left)] {
            let mut sums = Sums::new(COLUMNS, left);
            sums.add(&x);
            sums.add_meant(&meant);
            let (_, aim) = moments(sums);
            let mut moved = weights.clone();
            aim.expect("inputs are not what they should be").apply(COLUMNS, &mut moved);
            assert!(off(&moved) < 0.02 * off(&weights), "{} of {}", off(&moved), off(&weights));
        }
    }

    #[test]
    fn nothing_is_moved_where_inputs_are_as_they_should_be() {
        let x = random(100, 1);
        let mut sums = Sums::new(COLUMNS, None);
        sums.add(&x);
        sums.add_meant(&x);
        assert!(moments(sums).1.is_none());
        assert!(moments(Sums::new(COLUMNS, None)).1.is_none());
    }
}
