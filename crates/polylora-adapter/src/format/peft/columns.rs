//! DoRA on an embedding: `W' = (W + scale * up @ down) * magnitude / norm`, where magnitude and norm
//! are those of the columns, over the whole vocabulary.

use crate::error::Fault;
use crate::factor::Factor;
use polylora_file::Tensor;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Rows that are decoded at a time.
const ROWS: usize = 256;

/// A pair as it is added to the embedding.
pub(super) struct LowRank {
    /// `(rank, width)`
    pub(super) down: Factor,
    /// `(vocabulary, rank)`
    pub(super) up: Factor,
    pub(super) scale: f32,
}

/// What each column is multiplied with. Shapes were checked; the base is there, too.
pub(super) fn factors(
    pair: &LowRank,
    magnitude: &Arc<Tensor>,
    base: Option<&Tensor>,
) -> Result<Arc<[f32]>, Fault> {
    let down = pair.down.to_f32();
    let rows = pair.up.rows();
    let pieces = (0..rows.div_ceil(ROWS)).into_par_iter().map(|piece| {
        let rows = piece * ROWS..rows.min((piece + 1) * ROWS);
        squares(pair, &down, base, rows)
    });
    // Summed up in order, so that the result does not depend on the threads.
    let mut sums = vec![0.0; pair.down.columns()];
    for piece in pieces.collect::<Result<Vec<_>, Fault>>()? {
        sums.iter_mut().zip(piece).for_each(|(sum, square)| *sum += square);
    }
    let lengths = Factor::whole(magnitude).to_f32();
    Ok(lengths.iter().zip(sums).map(|(length, sum)| length / sum.sqrt() as f32).collect())
}

/// The sum of squares of each column, over some rows of the changed embedding.
fn squares(
    pair: &LowRank,
    down: &[f32],
    base: Option<&Tensor>,
    rows: Range<usize>,
) -> Result<Vec<f64>, Fault> {
    let columns = pair.down.columns();
    let mut weights = vec![0.0; rows.len() * columns];
    if let Some(base) = base {
        let decoded = base.dequantize_rows(rows.clone(), &mut weights);
        decoded.map_err(|error| Fault::Base { tensor: base.name.clone(), error })?;
    }
    let up = pair.up.rows_f32(rows);
    let mut sums = vec![0.0; columns];
    for (weights, up) in weights.chunks_exact_mut(columns).zip(up.chunks_exact(pair.up.columns())) {
        for (up, down) in up.iter().zip(down.chunks_exact(columns)) {
            let factor = pair.scale * up;
            weights.iter_mut().zip(down).for_each(|(weight, down)| *weight += factor * down);
        }
        for (sum, &weight) in sums.iter_mut().zip(&*weights) {
            *sum += f64::from(weight) * f64::from(weight);
        }
    }
    Ok(sums)
}
