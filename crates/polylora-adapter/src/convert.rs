//! An adapter of any kind as a GGUF file that llama.cpp applies correctly.
//!
//! llama.cpp knows one alpha for a whole file and computes `alpha / rank` for each tensor. The
//! alpha written is the one that most tensors want; where a tensor's scale differs (rsLoRA,
//! `alpha_pattern`), the ratio is multiplied into its `lora_b`.

use crate::adapter::{Adapter, Change, ChangeKind};
use crate::factor::Factor;
use polylora_file::{Gguf, GgufWriter, Metadata, TensorPlan, Value, WriteOptions};
use polylora_quant::{GgmlType, RowError, dequantize, quantize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// A GGUF adapter has been written.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct ConvertReport {
    /// The file.
    pub path: PathBuf,
    /// Tensors of the base that it changes.
    pub tensors: usize,
    /// `adapter.lora.alpha`.
    pub alpha: f32,
    /// Tensors whose own scale was multiplied into their `lora_b`.
    pub rescaled: usize,
    /// Tensors whose rows are no whole blocks of the type asked for, written as F16.
    pub fallback: Vec<String>,
}

/// An adapter cannot be written as a GGUF file for llama.cpp.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Something that llama.cpp's adapters cannot express.
    #[error("{source_name} cannot be a part of a GGUF adapter: {why}. Merge the adapter instead")]
    Inexpressible {
        /// The module in the adapter.
        source_name: String,
        /// What stands in the way.
        why: &'static str,
    },
    /// Experts that have pairs of different kinds.
    #[error("the experts of {0} do not fit together")]
    Experts(String),
    /// Too large for the type.
    #[error("{tensor} does not fit type {ty}: its values are too large; write f32 or bf16")]
    Overflow {
        /// The tensor in the file to be.
        tensor: String,
        /// The type asked for.
        ty: GgmlType,
    },
    /// A type without an encoder.
    #[error("{tensor} cannot be written: {error}")]
    Encode {
        /// The tensor in the file to be.
        tensor: String,
        /// Why.
        error: RowError,
    },
    /// The file.
    #[error(transparent)]
    File(#[from] polylora_file::Error),
}

/// The pairs of one tensor of the base: one, or one for each expert that has one.
struct Target<'a> {
    name: &'a str,
    /// Experts, in a stack.
    experts: Option<usize>,
    /// Rows of the base for each expert, or all.
    out: usize,
    /// The highest rank: pairs of a lower one are filled up with zeros.
    rank: usize,
    /// By expert.
    pairs: BTreeMap<usize, Pair>,
}

/// The two factors as they are to lie in the file.
struct Pair {
    a: Factor,
    b: Factor,
    scale: f32,
}

/// Writes `adapter`, as it is matched to `base`, to a GGUF file of type `ty`.
///
/// The user's scale goes into the file. Tensors whose rows are no whole blocks of `ty` (a rank
/// that is no multiple of 32, say, with Q8_0) are written as F16.
///
/// # Errors
/// Where the adapter does something that llama.cpp cannot (DoRA, biases, whole modules, embedding
/// and head of a base that has one tensor for both), before anything is written; where `ty` cannot
/// hold a value; where the file cannot be written, or exists and `overwrite` is not set.
pub fn convert(
    adapter: &Adapter,
    base: &Gguf,
    out: &Path,
    ty: GgmlType,
    overwrite: bool,
) -> Result<ConvertReport, ConvertError> {
    let targets = targets(adapter, base)?;
    let alpha = common_alpha(&targets);
    let mut report = ConvertReport {
        path: out.to_owned(),
        tensors: targets.len(),
        alpha,
        rescaled: 0,
        fallback: Vec::new(),
    };

    let mut plans = Vec::new();
    let mut encoded = Vec::new();
    for target in &targets {
        report.rescaled += usize::from(target.is_rescaled(alpha));
        for (half, (shape, values)) in [("lora_a", target.a()), ("lora_b", target.b(alpha))] {
            let name = format!("{}.{half}", target.name);
            let columns = shape.last().copied().unwrap_or(1);
            let mut ty = ty;
            if ty.row_bytes(columns).is_none() {
                report.fallback.push(name.clone());
                ty = GgmlType::F16;
            }
            encoded.push(encode(&name, ty, columns, &values)?);
            plans.push(TensorPlan { name, ty, shape });
        }
    }

    let options = WriteOptions { overwrite, ..WriteOptions::default() };
    let writer = GgufWriter::create(out, &metadata(adapter, base, alpha), &plans, options)?;
    for (i, bytes) in encoded.iter().enumerate() {
        writer.write_at(i, 0, bytes)?;
    }
    writer.finish()?;
    Ok(report)
}

fn metadata(adapter: &Adapter, base: &Gguf, alpha: f32) -> Metadata {
    let mut metadata = Metadata::default();
    let architecture = base.architecture().unwrap_or_default();
    metadata.insert("general.architecture", architecture.into());
    metadata.insert("general.type", "adapter".into());
    metadata.insert("general.name", adapter.name.as_str().into());
    metadata.insert("adapter.type", "lora".into());
    metadata.insert("adapter.lora.alpha", Value::F32(alpha));
    metadata.insert("polylora.adapter.source_sha256", adapter.hash.as_str().into());
    metadata
}

/// Brings the changes of each tensor together, and refuses what cannot be expressed.
fn targets<'a>(adapter: &'a Adapter, base: &Gguf) -> Result<Vec<Target<'a>>, ConvertError> {
    let mut targets: BTreeMap<&str, Target<'a>> = BTreeMap::new();
    for change in &adapter.changes {
        let pair = pair(change, base).map_err(|why| ConvertError::Inexpressible {
            source_name: change.source.clone(),
            why,
        })?;
        let shape = base.tensor(&change.tensor).map(|tensor| &*tensor.shape);
        let (experts, out) = match shape {
            Some(&[experts, out, _]) => (Some(experts), out),
            _ => (None, change.rows.end),
        };
        let target = targets.entry(&change.tensor).or_insert_with(|| Target {
            name: &change.tensor,
            experts,
            out,
            rank: 0,
            pairs: BTreeMap::new(),
        });
        target.rank = target.rank.max(pair.b.columns());
        let expert = change.rows.start.checked_div(out).unwrap_or(0);
        let whole = change.rows == (expert * out..(expert + 1) * out);
        if !whole || target.pairs.insert(expert, pair).is_some() {
            return Err(ConvertError::Experts(change.tensor.clone()));
        }
    }
    Ok(targets.into_values().collect())
}

/// The factors of a change, or why llama.cpp has no place for it.
fn pair(change: &Change, base: &Gguf) -> Result<Pair, &'static str> {
    let (down, up, scale) = match &change.kind {
        ChangeKind::LowRank { magnitude: Some(_), .. } | ChangeKind::ScaleColumns { .. } => {
            return Err("it is DoRA, which llama.cpp does not compute");
        }
        ChangeKind::Replace { .. } => return Err("it replaces weights instead of adding to them"),
        ChangeKind::Add { .. } => return Err("it changes a bias"),
        &ChangeKind::LowRank { ref down, ref up, scale, magnitude: None } => (down, up, scale),
    };
    if base.tensor(&change.tensor).is_none() {
        return Err("the base uses its embedding as the head, and llama.cpp has no place for a \
                    pair of the head alone");
    }
    if change.tensor != EMBEDDING {
        return Ok(Pair { a: down.clone(), b: up.clone(), scale });
    }
    if base.tensor(HEAD).is_none() {
        return Err(
            "the base uses its embedding as the head, and llama.cpp stops when it meets a \
                    pair for a tensor of both uses",
        );
    }
    // Its rows are looked up, so the two change roles.
    Ok(Pair { a: up.clone(), b: down.clone().transposed(), scale })
}

/// The alpha that gives most pairs their scale without touching their values.
fn common_alpha(targets: &[Target<'_>]) -> f32 {
    let mut counts: Vec<(f32, usize)> = Vec::new();
    for target in targets {
        for pair in target.pairs.values() {
            let alpha = pair.scale * target.rank as f32;
            match counts.iter_mut().find(|(other, _)| *other == alpha) {
                Some((_, count)) => *count += 1,
                None => counts.push((alpha, 1)),
            }
        }
    }
    // Zero means "no alpha" to llama.cpp, and scales nothing.
    counts.retain(|&(alpha, _)| alpha != 0.0 && alpha.is_finite());
    counts.iter().rev().max_by_key(|(_, count)| *count).map_or(1.0, |&(alpha, _)| alpha)
}

impl Target<'_> {
    /// What `lora_b` is multiplied with.
    fn ratio(&self, pair: &Pair, alpha: f32) -> f32 {
        pair.scale / (alpha / self.rank as f32)
    }

    fn is_rescaled(&self, alpha: f32) -> bool {
        self.pairs.values().any(|pair| self.ratio(pair, alpha) != 1.0)
    }

    /// Shape and values of `lora_a`.
    fn a(&self) -> (Vec<usize>, Vec<f32>) {
        let columns = self.pairs.values().map(|pair| pair.a.columns()).max().unwrap_or(0);
        let rows = if self.name == EMBEDDING { self.out } else { self.rank };
        self.stack([rows, columns], |pair| (&pair.a, 1.0))
    }

    /// Shape and values of `lora_b`, scaled where the file's alpha does not do.
    fn b(&self, alpha: f32) -> (Vec<usize>, Vec<f32>) {
        let rows = self.pairs.values().map(|pair| pair.b.rows()).max().unwrap_or(0);
        self.stack([rows, self.rank], |pair| (&pair.b, self.ratio(pair, alpha)))
    }

    /// One matrix for each expert; what a pair does not fill is zero.
    fn stack<'p>(
        &'p self,
        [rows, columns]: [usize; 2],
        factor: impl Fn(&'p Pair) -> (&'p Factor, f32),
    ) -> (Vec<usize>, Vec<f32>) {
        let mut values = vec![0.0; self.experts.unwrap_or(1) * rows * columns];
        for (expert, pair) in &self.pairs {
            let (factor, ratio) = factor(pair);
            let stored = factor.to_f32();
            let stored = stored.chunks_exact(factor.columns());
            let out = values[expert * rows * columns..].chunks_exact_mut(columns);
            for (out, stored) in out.zip(stored) {
                for (out, value) in out.iter_mut().zip(stored) {
                    *out = value * ratio;
                }
            }
        }
        let shape = self.experts.into_iter().chain([rows, columns]).collect();
        (shape, values)
    }
}

/// Rows to bytes, and a look whether the type could hold them.
fn encode(
    name: &str,
    ty: GgmlType,
    columns: usize,
    values: &[f32],
) -> Result<Vec<u8>, ConvertError> {
    let fault = |error| ConvertError::Encode { tensor: name.to_owned(), error };
    let row_bytes = ty.row_bytes(columns).unwrap_or(0);
    let mut bytes = vec![0; values.len() / columns.max(1) * row_bytes];
    let mut back = vec![0.0; columns];
    for (row, bytes) in values.chunks_exact(columns).zip(bytes.chunks_exact_mut(row_bytes)) {
        quantize(ty, row, None, bytes).map_err(fault)?;
        dequantize(ty, bytes, &mut back).map_err(fault)?;
        if back.iter().any(|value| !value.is_finite()) {
            return Err(ConvertError::Overflow { tensor: name.to_owned(), ty });
        }
    }
    Ok(bytes)
}
