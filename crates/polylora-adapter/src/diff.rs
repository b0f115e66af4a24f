//! Two models side by side, tensor by tensor.

use crate::merge::MergeError;
use crate::rewrite::Observer;
use polylora_file::{Gguf, Tensor};
use polylora_quant::isa::LANES;
use rayon::prelude::*;
use serde::Serialize;

/// What two files have in common, and what not.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// Tensors that both have with one shape, in the first file's order.
    pub tensors: Vec<TensorDiff>,
    /// Tensors that both have, with different shapes: name, shape in A, shape in B.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Only the first has these.
    pub only_a: Vec<String>,
    /// Only the second has these.
    pub only_b: Vec<String>,
    /// Metadata keys whose values differ, or that only one file has.
    pub metadata: Vec<String>,
}

/// One tensor in both files.
#[derive(Clone, Debug, Serialize)]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// Its type in the first file.
    pub type_a: &'static str,
    /// Its type in the second file.
    pub type_b: &'static str,
    /// Whether type and bytes are the same.
    pub identical: bool,
    /// Largest difference of two weights.
    pub max: f64,
    /// Root of the mean square of the differences.
    pub rms: f64,
    /// `||b - a|| / ||a||`.
    pub relative_error: f64,
    /// Cosine of the two tensors as vectors.
    pub cosine: f64,
}

/// Sums over weights of one tensor: `a` and `b` in the two files.
#[derive(Clone, Copy, Default)]
struct Sums {
    max: f64,
    difference: f64,
    a: f64,
    b: f64,
    product: f64,
}

impl Sums {
    fn add(self, other: Sums) -> Sums {
        Sums {
            // `f64::max` would drop a NaN, and a NaN is what the reader looks for.
            max: if self.max.is_nan() || self.max > other.max { self.max } else { other.max },
            difference: self.difference + other.difference,
            a: self.a + other.a,
            b: self.b + other.b,
            product: self.product + other.product,
        }
    }

    fn of(a: &[f32], b: &[f32]) -> Sums {
        let mut total = Sums::default();
        // Sixteen independent sums: the compiler keeps them in registers.
        let mut lanes = [[0.0_f64; 4]; LANES];
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            let (a, b) = (f64::from(a), f64::from(b));
            let lane = &mut lanes[i % LANES];
            lane[0] += (b - a) * (b - a);
            lane[1] += a * a;
            lane[2] += b * b;
            lane[3] += a * b;
            let difference = (b - a).abs();
            if difference.is_nan() || difference > total.max {
                total.max = difference;
            }
        }
        for lane in lanes {
            total.difference += lane[0];
            total.a += lane[1];
            total.b += lane[2];
            total.product += lane[3];
        }
        total
    }
}

/// Weights that a thread compares at a time.
const WEIGHTS_IN_HAND: usize = 1 << 17;

/// Compares `b` with `a`. The observer is told of the first file's bytes.
///
/// # Errors
/// A tensor whose type cannot be decoded, where the two are not identical anyway; a cancelled job
/// ends with what was compared so far.
pub fn diff(a: &Gguf, b: &Gguf, observer: &dyn Observer) -> Result<Diff, MergeError> {
    let mut found = Diff {
        tensors: Vec::new(),
        reshaped: Vec::new(),
        only_a: Vec::new(),
        only_b: Vec::new(),
        metadata: metadata(a, b),
    };
    for tensor in a.tensors() {
        match b.tensor(&tensor.name) {
            None => found.only_a.push(tensor.name.clone()),
            Some(other) if other.shape != tensor.shape => {
                found.reshaped.push((
                    tensor.name.clone(),
                    tensor.shape.clone(),
                    other.shape.clone(),
                ));
            }
            Some(other) => found.tensors.push(compare(tensor, other)?),
        }
        observer.wrote(tensor.bytes.len() as u64);
        if observer.cancelled() {
            break;
        }
    }
    let missing = b.tensors().iter().filter(|tensor| a.tensor(&tensor.name).is_none());
    found.only_b.extend(missing.map(|tensor| tensor.name.clone()));
    Ok(found)
}

fn compare(a: &Tensor, b: &Tensor) -> Result<TensorDiff, MergeError> {
    let identical = a.ty == b.ty && *a.bytes == *b.bytes;
    // Integers are compared as bytes; equal weights need no second look but for their norm.
    let sums = if identical && !a.ty.decodes() { Sums::default() } else { sums(a, b)? };
    let norm = (sums.a * sums.b).sqrt();
    Ok(TensorDiff {
        name: a.name.clone(),
        type_a: a.ty.name(),
        type_b: b.ty.name(),
        identical,
        max: sums.max,
        rms: (sums.difference / a.elements().max(1) as f64).sqrt(),
        relative_error: if sums.a > 0.0 { (sums.difference / sums.a).sqrt() } else { 0.0 },
        cosine: if norm > 0.0 { sums.product / norm } else { 1.0 },
    })
}

fn sums(a: &Tensor, b: &Tensor) -> Result<Sums, MergeError> {
    let step = (WEIGHTS_IN_HAND / a.columns().max(1)).max(1);
    let pieces: Vec<Sums> = (0..a.rows().div_ceil(step))
        .into_par_iter()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(weights_a, weights_b), piece| {
                let rows = piece * step..a.rows().min((piece + 1) * step);
                weights_a.resize(rows.len() * a.columns(), 0.0);
                weights_b.resize(rows.len() * a.columns(), 0.0);
                a.dequantize_rows(rows.clone(), weights_a)?;
                b.dequantize_rows(rows, weights_b)?;
                Ok(Sums::of(weights_a, weights_b))
            },
        )
        .collect::<Result<_, MergeError>>()?;
    Ok(pieces.into_iter().fold(Sums::default(), Sums::add))
}

fn metadata(a: &Gguf, b: &Gguf) -> Vec<String> {
    let (a, b) = (a.metadata(), b.metadata());
    let differs = a.iter().filter(|(key, value)| b.get(key) != Some(*value)).map(|(key, _)| key);
    let added = b.iter().filter(|(key, _)| a.get(key).is_none()).map(|(key, _)| key);
    differs.chain(added).map(str::to_owned).collect()
}
