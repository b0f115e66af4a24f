//! Second moments of what layers read, and what follows for the rounding of their weights.

use crate::sums::{Sums, turn};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Llt, Solve};
use faer::{Accum, Mat, MatRef, Par, Side};
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
    (curvature(sums.columns(), &sums.square), Aim::new(&sums))
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
    let factor = factor(columns, DAMPING * mean, |i, j| turned[(last - j) * columns + last - i]);
    let lower = factor.L();
    let mut feedback = vec![0.0; columns * columns];
    let mut loss = vec![0.0; columns];
    let rows = feedback.par_chunks_exact_mut(columns).zip(&mut loss).enumerate();
    rows.for_each(|(j, (feedback, loss))| {
        let diagonal = lower[(last - j, last - j)];
        *loss = diagonal * diagonal / mean;
        for (i, feedback) in feedback[..j].iter_mut().enumerate() {
            *feedback = lower[(last - i, last - j)] / diagonal;
        }
    });
    Curvature::new(feedback, loss)
}

/// What weights are to become, so that a layer gives of `x` most nearly what it should give of `y`:
///
/// ```text
/// sum of |w y - (w + g) x|^2 is least for g H = w * (sum of (y - x) x^T)
/// ```
pub(crate) struct Aim {
    /// Of `H`
    factor: Llt<f32>,
    /// The sum of `x (y - x)^T`.
    cross: Mat<f32>,
}

impl Aim {
    /// None, where all inputs are what they should be.
    fn new(sums: &Sums) -> Option<Aim> {
        if sums.cross.is_empty() {
            return None;
        }
        let columns = sums.columns();
        let mean = mean_square(columns, &sums.square)?;
        let factor = factor(columns, AIM_DAMPING * mean, |i, j| sums.square[j * columns + i]);
        let cross = MatRef::from_column_major_slice(&sums.cross, columns, columns).to_owned();
        Some(Aim { factor, cross })
    }

    /// Moves rows of weights, `(rows, columns)`.
    pub(crate) fn apply(&self, weights: &mut [f32]) {
        /// Rows that are moved together, so that what is made of them stays small.
        const ROWS: usize = 2048;
        let columns = self.cross.ncols();
        for weights in weights.chunks_mut(ROWS * columns) {
            let rows = weights.len() / columns;
            let turned = MatRef::from_column_major_slice(weights, columns, rows);
            let mut moves = Mat::zeros(columns, rows);
            matmul(&mut moves, Accum::Replace, &self.cross, turned, 1.0, Par::rayon(0));
            self.factor.solve_in_place(&mut moves);
            for (weights, moves) in weights.chunks_exact_mut(columns).zip(moves.col_iter()) {
                weights.iter_mut().zip(moves.iter()).for_each(|(weight, moved)| *weight += moved);
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

/// The Cholesky factor of a matrix whose lower triangle is given, with so much or more on its diagonal.
fn factor(columns: usize, mut damping: f32, lower: impl Fn(usize, usize) -> f32) -> Llt<f32> {
    loop {
        let damped = Mat::from_fn(columns, columns, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => lower(i, j) + damping,
            std::cmp::Ordering::Greater => lower(i, j),
        });
        match damped.llt(Side::Lower) {
            Ok(factor) => return factor,
            Err(_) => damping *= 10.0,
        }
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
        let mut sums = Sums::new(COLUMNS);
        sums.add(&x);
        sums.add_meant(&meant);
        let (_, aim) = moments(sums);
        let mut moved = weights.clone();
        aim.expect("inputs are not what they should be").apply(&mut moved);
        let wanted = given(&meant, &weights);
        let off = |weights: &[f32]| -> f32 {
            given(&x, weights).iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum()
        };
        assert!(off(&moved) < 0.02 * off(&weights), "{} of {}", off(&moved), off(&weights));
    }

    #[test]
    fn nothing_is_moved_where_inputs_are_as_they_should_be() {
        let x = random(100, 1);
        let mut sums = Sums::new(COLUMNS);
        sums.add(&x);
        sums.add_meant(&x);
        assert!(moments(sums).1.is_none());
        assert!(moments(Sums::new(COLUMNS)).1.is_none());
    }
}
