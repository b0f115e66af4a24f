//! Products of matrices in eight bits.
//!
//! They are made by what models are run with, which is quicker than single precision. Both sides are
//! rounded by 32 values with a scale of their own, which adds noise with a ten-thousandth of the
//! values' variance.

use polylora_quant::GgmlType::{self, Q8_0};
use polylora_quant::product::{Activations, Scratch, Way, multiply};
use polylora_quant::{Isa, quantize};
use rayon::prelude::*;

/// What the rows of the left side are rounded to.
const TYPE: GgmlType = Q8_0;

/// Tiles of a product are so wide and high: of rows of two thousand values they stay in the second
/// cache.
const TILE: usize = 256;

/// The left side of products: some rows.
pub(crate) struct Left {
    row_bytes: usize,
    /// Of rows that were divided by their sizes: scales of blocks have few bits.
    bytes: Vec<u8>,
    sizes: Vec<f32>,
}

impl Left {
    /// So many rows, one at least, all of one length.
    pub(crate) fn new<'a>(count: usize, row: impl Fn(usize) -> &'a [f32] + Sync) -> Left {
        let length = padded(row(0).len());
        let row_bytes = TYPE.row_bytes(length).expect("whole blocks");
        let mut bytes = vec![0; row_bytes * count];
        let mut sizes = vec![0.0; count];
        let rows = bytes.par_chunks_exact_mut(row_bytes).zip(&mut sizes).enumerate();
        rows.for_each_init(Vec::new, |scaled, (n, (bytes, size))| {
            let values = row(n);
            *size = values.iter().fold(0.0, |size: f32, value| size.max(value.abs()));
            let inverse = if *size > 0.0 { 1.0 / *size } else { 0.0 };
            scaled.clear();
            scaled.extend(values.iter().map(|value| value * inverse));
            scaled.resize(length, 0.0);
            quantize(TYPE, scaled, None, bytes).expect("whole rows of a type that encodes");
        });
        Left { row_bytes, bytes, sizes }
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Adds the dot products of these rows with those of the `right` to `sum`: `(right rows, left
    /// rows)`, row after row. Of the tiles in which all of the left are before all of the right, only
    /// where `all` is set.
    pub(crate) fn add_to(&self, sum: &mut [f32], right: &Activations, all: bool) {
        let count = self.sizes.len();
        let parts = sum.par_chunks_mut(TILE * count).enumerate();
        parts.for_each_init(
            || (Scratch::default(), Vec::new()),
            |(scratch, products), (part, sum)| {
                let first = part * TILE;
                let tokens: Vec<u32> =
                    (first..right.tokens()).take(TILE).map(|k| k as u32).collect();
                for start in (if all { 0 } else { first }..count).step_by(TILE) {
                    let rows = start..count.min(start + TILE);
                    let bytes =
                        &self.bytes[rows.start * self.row_bytes..][..rows.len() * self.row_bytes];
                    products.resize(rows.len() * tokens.len(), 0.0);
                    let (isa, way) = (Isa::best(), Way::Many);
                    multiply(isa, way, TYPE, bytes, right, &tokens, products, scratch, &[])
                        .expect("rows of one length");
                    let sizes = &self.sizes[rows.clone()];
                    let products = products.chunks_exact(rows.len());
                    for (products, sum) in products.zip(sum.chunks_exact_mut(count)) {
                        let sums = sum[rows.clone()].iter_mut().zip(products.iter().zip(sizes));
                        sums.for_each(|(sum, (product, size))| *sum += product * size);
                    }
                }
            },
        );
    }
}

/// The right side of products: so many rows of a length, which `fill` gives.
pub(crate) fn right(
    count: usize,
    length: usize,
    fill: impl Fn(usize, &mut Vec<f32>) + Sync,
) -> Activations {
    let mut rounded = Activations::default();
    rounded.reset(count, padded(length));
    let rows: Vec<_> = rounded.tokens_mut().collect();
    rows.into_par_iter().enumerate().for_each_init(Vec::new, |values, (n, mut to)| {
        values.clear();
        fill(n, values);
        values.resize(padded(length), 0.0);
        to.quantize(Isa::best(), values);
    });
    rounded
}

/// Whole blocks.
fn padded(length: usize) -> usize {
    length.next_multiple_of(TYPE.block_weights())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_nearly_those_of_single_numbers() {
        // More rows than a tile, and no whole blocks.
        for (left, right, length) in [(300, 290, 50), (7, 600, 32), (3, 0, 5)] {
            let row = |n: usize, seed: f32| -> Vec<f32> {
                (0..length).map(|k| ((n * length + k) as f32 * seed).sin()).collect()
            };
            let rows: Vec<Vec<f32>> = (0..left).map(|n| row(n, 0.37)).collect();
            let others: Vec<Vec<f32>> = (0..right).map(|n| row(n, 0.71)).collect();
            let product = Left::new(left, |n| &rows[n]);
            let rounded = super::right(right, length, |n, values| values.extend(&others[n]));
            for all in [true, false] {
                let mut sum = vec![1.0; left * right];
                product.add_to(&mut sum, &rounded, all);
                for (at, found) in sum.into_iter().enumerate() {
                    let (i, k) = (at % left, at / left);
                    let wanted: f32 = rows[i].iter().zip(&others[k]).map(|(a, b)| a * b).sum();
                    let is_close = (found - 1.0 - wanted).abs() < 0.01 * (length as f32).sqrt();
                    assert!(is_close || (!all && i < k), "{i}, {k}: {found} for {wanted}");
                }
            }
        }
    }
}
