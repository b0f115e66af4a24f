//! The arithmetic of a merge, on plain slices: `W' = W + scale * (B @ A)`.
//!
//! [`apply`] takes a quantized weight and low-rank changes to `f32`; [`requantize`] takes the
//! result back to a type. With [`polylora_quant::dequantize`] they are all that another runtime
//! needs; [`crate::rewrite`] drives the same code over whole files.

use polylora_quant::isa::{Isa, Kernel, LANES, Lanes, Simd};
use polylora_quant::{GgmlType, RowError, dequantize, quantize};

/// A low-rank change of some rows: `scale * up @ down`, and with a magnitude (DoRA) the rescaling
/// of each changed row.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// PEFT's `lora_A`: `[rank, columns]`, row-major.
    pub down: &'a [f32],
    /// PEFT's `lora_B`: `[rows, rank]`, row-major.
    pub up: &'a [f32],
    /// The rank; 0 changes nothing.
    pub rank: usize,
    /// `alpha / rank` (rsLoRA: `alpha / sqrt(rank)`), the user's scale multiplied in.
    pub scale: f32,
    /// DoRA's magnitude, one a row: after the addition row `o` is multiplied by `m[o] / ||V[o]||`,
    /// where `V = W + scale * up @ down` with the weight `W` as it was before any change.
    pub magnitude: Option<&'a [f32]>,
}

/// What cannot be applied or encoded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// From the format.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A factor or the weight is not of the shape that the others imply.
    #[error("{what} has {found} values where {expected} are expected")]
    Shape {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that fits.
        expected: usize,
    },
}

fn check(what: &'static str, found: usize, expected: usize) -> Result<(), MergeError> {
    if found == expected { Ok(()) } else { Err(MergeError::Shape { what, found, expected }) }
}

/// Decodes rows of a quantized weight and applies `changes` to them, one after the other.
///
/// `bytes` are whole rows of `columns` weights of type `ty`; `out` takes them as
/// `[rows, columns]`. Nothing of the weight is rounded again: `out` is in single precision.
///
/// # Errors
/// Where `ty` holds no weights, or the lengths contradict each other.
///
/// ```
/// # use polylora_adapter::merge::{LowRank, apply};
/// # use polylora_quant::{GgmlType, quantize};
/// // A weight of 2 rows and 32 columns, all 1.0, in Q8_0.
/// let mut weight = vec![0; GgmlType::Q8_0.row_bytes(64).unwrap()];
/// quantize(GgmlType::Q8_0, &[1.0; 64], None, &mut weight)?;
///
/// // Rank 1: add 0.5 * 2.0 to the second row.
/// let (down, up) = ([2.0; 32], [0.0, 1.0]);
/// let change = LowRank { down: &down, up: &up, rank: 1, scale: 0.5, magnitude: None };
///
/// let mut merged = [0.0; 64];
/// apply(GgmlType::Q8_0, &weight, 32, &[change], &mut merged)?;
/// assert!((merged[0] - 1.0).abs() < 1e-3 && (merged[32] - 2.0).abs() < 1e-3);
/// # Ok::<(), polylora_adapter::merge::MergeError>(())
/// ```
pub fn apply(
    ty: GgmlType,
    bytes: &[u8],
    columns: usize,
    changes: &[LowRank<'_>],
    out: &mut [f32],
) -> Result<(), MergeError> {
    let rows = out.len().checked_div(columns).unwrap_or(0);
    check("the output", out.len(), rows * columns)?;
    for change in changes {
        check("lora_a", change.down.len(), change.rank * columns)?;
        check("lora_b", change.up.len(), rows * change.rank)?;
        if let Some(magnitude) = change.magnitude {
            check("the magnitude", magnitude.len(), rows)?;
        }
    }
    dequantize(ty, bytes, out)?;
    let base = changes.iter().any(|change| change.magnitude.is_some()).then(|| out.to_vec());
    for change in changes {
        add_low_rank(change, columns, base.as_deref().unwrap_or(&[]), out);
    }
    Ok(())
}

/// Encodes rows of weights as type `ty`: what [`apply`] gave, on its way back.
///
/// `weights` is `[rows, columns]`; `importance`, where given, has one value a column; `out` takes
/// the rows' bytes.
///
/// # Errors
/// Where `ty` has no encoder, or the lengths contradict each other.
///
/// ```
/// # use polylora_adapter::merge::requantize;
/// # use polylora_quant::GgmlType;
/// let weights = [0.25; 2 * 256];
/// let mut bytes = vec![0; GgmlType::Q6_K.row_bytes(2 * 256).unwrap()];
/// requantize(GgmlType::Q6_K, &weights, 256, None, &mut bytes)?;
/// assert_eq!(bytes.len(), 2 * 210);
/// # Ok::<(), polylora_adapter::merge::MergeError>(())
/// ```
pub fn requantize(
    ty: GgmlType,
    weights: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), MergeError> {
    if importance.is_none() {
        // Blocks know nothing of rows: all at once keeps the encoder's lanes full.
        return Ok(quantize(ty, weights, None, out)?);
    }
    let row_bytes = ty.row_bytes(columns).unwrap_or(0);
    let rows = weights.len().checked_div(columns).unwrap_or(0);
    check("the weight", weights.len(), rows * columns)?;
    check("the output", out.len(), rows * row_bytes)?;
    if rows == 0 {
        return Ok(());
    }
    for (row, out) in weights.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes)) {
        quantize(ty, row, importance, out)?;
    }
    Ok(())
}

/// `weights[o] += scale * sum_r up[o][r] * down[r]`, then DoRA's rescaling, which needs the rows of
/// `base`, the weight before any change. The lengths were checked.
pub(crate) fn add_low_rank(
    change: &LowRank<'_>,
    columns: usize,
    base: &[f32],
    weights: &mut [f32],
) {
    struct Rows<'a> {
        change: &'a LowRank<'a>,
        columns: usize,
        base: &'a [f32],
        weights: &'a mut [f32],
    }

    impl Kernel for Rows<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Rows { change, columns, base, weights } = self;
            let mut alone = Vec::new();
            for (o, row) in weights.chunks_exact_mut(columns).enumerate() {
                let up = &change.up[o * change.rank..][..change.rank];
                add_row(simd, up, change, row);
                let Some(magnitude) = change.magnitude else { continue };
                // Liu et al., 2024, eq. 5. The norm is of the base with this adapter alone, as
                // PEFT has it since 0.19, so that the order of several adapters does not matter.
                alone.clear();
                alone.extend_from_slice(&base[o * columns..][..columns]);
                add_row(simd, up, change, &mut alone);
                let square: f64 = alone.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                let factor = magnitude[o] / square.sqrt() as f32;
                row.iter_mut().for_each(|weight| *weight *= factor);
            }
        }
    }

    if change.rank > 0 || change.magnitude.is_some() {
        Isa::best().run(Rows { change, columns, base, weights });
    }
}

/// Registers of sixteen that one pass over the ranks keeps: enough to hide the latency of an
/// addition, few enough for sixteen registers of AVX2 (two to a vector).
const UNROLL: usize = 4;

/// One row. As PEFT does, the product is summed first and scaled then, so that a merge to F32
/// equals PEFT's to the last few bits.
#[inline(always)]
fn add_row<S: Simd>(simd: S, up: &[f32], change: &LowRank<'_>, row: &mut [f32]) {
    let columns = row.len();
    let scale = simd.splat(change.scale);
    let mut blocks = row.chunks_exact_mut(UNROLL * LANES);
    let mut at = 0;
    for block in &mut blocks {
        let mut sum = [simd.splat(0.0); UNROLL];
        for (r, &u) in up.iter().enumerate() {
            let u = simd.splat(u);
            let down = &change.down[r * columns + at..][..UNROLL * LANES];
            for (sum, down) in sum.iter_mut().zip(down.as_chunks::<LANES>().0) {
                *sum = *sum + u * simd.load(down);
            }
        }
        for (lanes, sum) in block.as_chunks_mut::<LANES>().0.iter_mut().zip(sum) {
            *lanes = (simd.load(lanes) + scale * sum).to_array();
        }
        at += UNROLL * LANES;
    }
    for (i, weight) in blocks.into_remainder().iter_mut().enumerate() {
        let down = change.down[at + i..].iter().step_by(columns);
        let sum = up.iter().zip(down).fold(0.0, |sum, (u, d)| sum + u * d);
        *weight += change.scale * sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A weight of three rows in F32, its bytes.
    fn f32_bytes(weights: &[f32]) -> Vec<u8> {
        weights.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + seed) * 1.618).sin()).collect()
    }

    #[test]
    fn equals_the_formula_for_any_number_of_columns() {
        // Below, at and above the widths at which the code changes its way.
        for columns in [1, 15, 16, 63, 64, 65, 200] {
            let (rows, rank) = (3, 5);
            let (w, up) = (numbers(rows * columns, 1.0), numbers(rows * rank, 2.0));
            let down = numbers(rank * columns, 3.0);
            let magnitude = [0.5, 1.0, 2.0];
            for magnitude in [None, Some(&magnitude[..])] {
                let change = LowRank { down: &down, up: &up, rank, scale: -1.5, magnitude };
                let mut out = vec![0.0; rows * columns];
                apply(GgmlType::F32, &f32_bytes(&w), columns, &[change], &mut out).unwrap();
                for o in 0..rows {
                    let want = |i: usize| {
                        let sum: f64 = (0..rank)
                            .map(|r| f64::from(up[o * rank + r]) * f64::from(down[r * columns + i]))
                            .sum();
                        f64::from(w[o * columns + i]) - 1.5 * sum
                    };
                    let norm = (0..columns).map(|i| want(i) * want(i)).sum::<f64>().sqrt();
                    let factor = magnitude.map_or(1.0, |m| f64::from(m[o]) / norm);
                    for i in 0..columns {
                        let got = f64::from(out[o * columns + i]);
                        assert!((got - want(i) * factor).abs() < 1e-5, "{columns} columns: {got}");
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_that_contradict_each_other_are_errors() {
        let down = [0.0; 8];
        let change = LowRank { down: &down, up: &[0.0; 2], rank: 1, scale: 1.0, magnitude: None };
        let mut out = [0.0; 16];
        let error = apply(GgmlType::F32, &[0; 64], 4, &[change], &mut out).unwrap_err();
        assert_eq!(error, MergeError::Shape { what: "lora_a", found: 8, expected: 4 });
        let error = apply(GgmlType::F32, &[0; 63], 4, &[], &mut out).unwrap_err();
        assert!(matches!(error, MergeError::Row(RowError::Length { .. })), "{error}");
        let error =
            requantize(GgmlType::Q8_0, &[0.0; 64], 32, Some(&[1.0; 31]), &mut [0; 68]).unwrap_err();
        assert_eq!(error, MergeError::Row(RowError::Importance { weights: 32, importance: 31 }));
    }
}
