//! What codes cannot hold of a change, as an adapter of a low rank.
//!
//! Where `H` counts errors, `E` has its best part of rank `r` in the space of the `r` largest left
//! singular vectors `U` of `E H^1/2`: `E` is nearest to `U U^T E`.

use crate::low_rank::{Wanted, factor};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use polylora_quant::compensate::Curvature;
use std::ops::Range;

/// `up @ down`, `(rows, rank)` and `(rank, columns)`.
pub(crate) struct Pair {
    pub(crate) up: Vec<f32>,
    pub(crate) down: Vec<f32>,
    pub(crate) rank: usize,
}

impl Pair {
    /// The best of a rank for `matrix`, `(rows, columns)`; none for a matrix of zeros.
    pub(crate) fn nearest(matrix: &[f32], curvature: &Curvature, rank: usize) -> Option<Pair> {
        let columns = curvature.columns();
        let rows = matrix.len() / columns;
        let found = factor(&weighed(matrix, curvature), rows, columns, Wanted::Rank(rank));
        let rank = found.rank;
        if rank == 0 {
            return None;
        }
        let up = MatRef::from_row_major_slice(&found.up, rows, rank);
        let matrix = MatRef::from_row_major_slice(matrix, rows, columns);
        let mut down = product(up.transpose(), matrix);
        // The columns of `up` are orthogonal, not of length one.
        for (i, down) in down.chunks_exact_mut(columns).enumerate() {
            let length = up.col(i).squared_norm_l2();
            down.iter_mut().for_each(|value| *value /= length);
        }
        Some(Pair { up: found.up, down, rank })
    }

    /// Rows of the product, `(rows, columns)`.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Vec<f32> {
        let up = &self.up[rows.start * self.rank..rows.end * self.rank];
        let up = MatRef::from_row_major_slice(up, rows.len(), self.rank);
        let columns = self.down.len() / self.rank;
        product(up, MatRef::from_row_major_slice(&self.down, self.rank, columns))
    }
}

/// `E F D^1/2`, whose squares sum up to what `E` costs.
fn weighed(matrix: &[f32], curvature: &Curvature) -> Vec<f32> {
    let columns = curvature.columns();
    let (feedback, loss) = curvature.factors();
    let matrix = MatRef::from_row_major_slice(matrix, matrix.len() / columns, columns);
    let factor = Mat::from_fn(columns, columns, |i, j| {
        let unscaled = match i.cmp(&j) {
            std::cmp::Ordering::Less => feedback[j * columns + i],
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => 0.0,
        };
        unscaled * loss[j].sqrt()
    });
    product(matrix, factor.as_ref())
}

/// `a @ b`, row after row.
pub(crate) fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Vec<f32> {
    let mut out = vec![0.0; a.nrows() * b.ncols()];
    let to = MatMut::from_row_major_slice_mut(&mut out, a.nrows(), b.ncols());
    matmul(to, Accum::Replace, a, b, 1.0, Par::rayon(0));
    out
}
