//! An adapter out of what another model has otherwise.

use crate::low_rank::{Wanted, factor};
use crate::merge::Observer;
use polylora_adapter::{Adapter, Change, ScaleError, Scales};
use polylora_file::{Gguf, Tensor};
use polylora_quant::RowError;
use serde::Serialize;
use std::ops::Range;

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// What was taken out, and what was not.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractReport {
    /// The share of the whole change that the adapter holds, what it cannot hold included: of the
    /// squared Frobenius norm of the difference, as all shares here.
    pub held: f64,
    /// The tensors that the adapter changes, those that it holds least of first.
    pub tensors: Vec<ExtractedTensor>,
    /// Tensors that differ, but have no place in a GGUF LoRA, the largest change first.
    pub left_out: Vec<LeftOut>,
    /// Tensors whose weights are the same in both models.
    pub equal: usize,
}

/// A tensor that the adapter changes.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractedTensor {
    /// Its name.
    pub name: String,
    /// The rank of its pair; of several experts' pairs, the highest.
    pub rank: usize,
    /// The share of its change that the pair holds.
    pub held: f64,
    /// Its own share of the whole change.
    pub share: f64,
}

/// A tensor that differs and that the adapter leaves as it is.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Its share of the whole change.
    pub share: f64,
    /// Why there is no place for it.
    pub why: &'static str,
}

/// Two models have no adapter between them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// A tensor that only one model has.
    #[error(
        "{tensor} is only in the {model} model: an adapter cannot add or take away tensors. Take two \
         models of the same architecture and size"
    )]
    Missing {
        /// Its name.
        tensor: String,
        /// Which model has it.
        model: &'static str,
    },
    /// A tensor of different shapes.
    #[error(
        "{tensor} has the shape {base:?} in the base and {tuned:?} in the tuned model: an adapter \
         cannot change a shape. Take two models of the same architecture and vocabulary"
    )]
    Shape {
        /// Its name.
        tensor: String,
        /// Slowest dimension first.
        base: Vec<usize>,
        /// Slowest dimension first.
        tuned: Vec<usize>,
    },
    /// A type without a decoder.
    #[error("{tensor} cannot be compared: {error}")]
    Decode {
        /// Its name.
        tensor: String,
        /// Why.
        error: RowError,
    },
    /// What products are multiplied by is no such thing.
    #[error(transparent)]
    Scale(#[from] ScaleError),
    /// A difference that is no number.
    #[error("{0} differs by what is not a finite number: one of the two models is damaged")]
    NotFinite(String),
    /// No tensor differs that an adapter could change.
    #[error("the two models have no matrix that differs: there is nothing to extract")]
    Nothing,
    /// [`Observer::cancelled`] said so.
    #[error("interrupted")]
    Cancelled,
}

/// Takes the difference of two models apart into pairs of low rank: merged into `base`, the adapter
/// gives `tuned` most nearly. The types of their tensors may be any; what these cost in exactness is
/// part of the difference. [`Scales`] beside weights are taken into them.
///
/// One matrix, or one expert of a stack, is in memory at a time, beside the pairs found so far.
///
/// # Errors
/// Where the models are not of the same tensors and shapes, cannot be decoded, or no matrix differs.
pub fn extract(
    base: &Gguf,
    tuned: &Gguf,
    wanted: Wanted,
    observer: &dyn Observer,
) -> Result<(Adapter, ExtractReport), ExtractError> {
    let pairs = pairs(base, tuned)?;
    let mut found = Found::default();
    for (done, (base_tensor, tuned_tensor)) in pairs.iter().enumerate() {
        if observer.cancelled() {
            return Err(ExtractError::Cancelled);
        }
        let weights = [Weights::of(base, base_tensor)?, Weights::of(tuned, tuned_tensor)?];
        found.compare(&weights, wanted, no_place(base_tensor, base))?;
        observer.reached((done + 1) as f64 / pairs.len() as f64);
    }
    if found.changes.is_empty() {
        return Err(ExtractError::Nothing);
    }
    let name = tuned.metadata().str("general.name").unwrap_or("extracted");
    let (changes, report) = found.finish();
    Ok((Adapter::made(name, changes), report))
}

/// A tensor, and what its products are multiplied by.
struct Weights<'a> {
    tensor: &'a Tensor,
    scales: Scales,
}

impl<'a> Weights<'a> {
    fn of(model: &Gguf, tensor: &'a Tensor) -> Result<Weights<'a>, ScaleError> {
        Ok(Weights { tensor, scales: Scales::find(model, &tensor.name, &tensor.shape)? })
    }

    /// Rows of one expert, as their products count.
    fn rows(&self, rows: Range<usize>, scale: f32, out: &mut [f32]) -> Result<(), ExtractError> {
        let decoded = self.tensor.dequantize_rows(rows, out);
        decoded.map_err(|error| {
            let tensor = self.tensor.name.clone();
            ExtractError::Decode { tensor, error }
        })?;
        out.iter_mut().for_each(|weight| *weight *= scale);
        Ok(())
    }
}

/// Each tensor of the base with the same of the other model; scales go with their weights.
fn pairs<'a>(
    base: &'a Gguf,
    tuned: &'a Gguf,
) -> Result<Vec<(&'a Tensor, &'a Tensor)>, ExtractError> {
    let missing =
        |tensor: &Tensor, model| ExtractError::Missing { tensor: tensor.name.clone(), model };
    let is_added = |tensor: &&Tensor| {
        base.tensor(&tensor.name).is_none() && !Scales::are_in(tuned, &tensor.name)
    };
    if let Some(tensor) = tuned.tensors().iter().find(is_added) {
        return Err(missing(tensor, "tuned"));
    }
    let pair = |tensor: &'a Tensor| {
        let other = tuned.tensor(&tensor.name).ok_or_else(|| missing(tensor, "base"))?;
        if other.shape != tensor.shape {
            let (base, tuned) = (tensor.shape.clone(), other.shape.clone());
            return Err(ExtractError::Shape { tensor: tensor.name.clone(), base, tuned });
        }
        Ok((tensor, other))
    };
    base.tensors().iter().filter(|tensor| !Scales::are_in(base, &tensor.name)).map(pair).collect()
}

/// Why a GGUF LoRA cannot change a tensor, if it cannot.
fn no_place(tensor: &Tensor, base: &Gguf) -> Option<&'static str> {
    match tensor.shape.len() {
        2 if tensor.name == EMBEDDING && base.tensor(HEAD).is_none() => {
            Some("the embedding is the head too, which llama.cpp has no place for")
        }
        2 | 3 => None,
        _ => Some("it is no matrix"),
    }
}

/// What was found so far. Until all is known, shares are squared norms.
#[derive(Default)]
struct Found {
    changes: Vec<Change>,
    tensors: Vec<ExtractedTensor>,
    left_out: Vec<LeftOut>,
    equal: usize,
}

impl Found {
    fn compare(
        &mut self,
        weights: &[Weights<'_>; 2],
        wanted: Wanted,
        no_place: Option<&'static str>,
    ) -> Result<(), ExtractError> {
        let [Weights { tensor: base, scales }, Weights { tensor: tuned, scales: others }] = weights;
        if base.ty == tuned.ty && *base.bytes == *tuned.bytes && scales == others {
            self.equal += 1;
            return Ok(());
        }
        // Of a stack of experts each is a matrix of its own; all else is one.
        let rows = if let [_, rows, _] = base.shape[..] { rows } else { base.rows() };
        let (mut rank, mut norm, mut held) = (0, 0.0, 0.0);
        for start in (0..base.rows()).step_by(rows.max(1)) {
            let rows = start..start + rows;
            let difference = difference(weights, rows.clone())?;
            let part: f64 = difference.iter().map(|&off| f64::from(off) * f64::from(off)).sum();
            if !part.is_finite() {
                return Err(ExtractError::NotFinite(base.name.clone()));
            }
            norm += part;
            if part == 0.0 || no_place.is_some() {
                continue;
            }
            let factors = factor(&difference, rows.len(), base.columns(), wanted);
            rank = rank.max(factors.rank);
            held += factors.held * part;
            let pair = [factors.down, factors.up];
            self.changes.push(Change::low_rank(&base.name, rows, pair, factors.rank));
        }
        let (name, share) = (base.name.clone(), norm);
        match no_place {
            _ if norm == 0.0 => self.equal += 1,
            Some(why) => self.left_out.push(LeftOut { name, share, why }),
            None => self.tensors.push(ExtractedTensor { name, rank, held: held / norm, share }),
        }
        Ok(())
    }

    fn finish(self) -> (Vec<Change>, ExtractReport) {
        let Found { changes, mut tensors, mut left_out, equal } = self;
        let extracted: f64 = tensors.iter().map(|tensor| tensor.share).sum();
        let total = extracted + left_out.iter().map(|tensor| tensor.share).sum::<f64>();
        tensors.iter_mut().for_each(|tensor| tensor.share /= total);
        left_out.iter_mut().for_each(|tensor| tensor.share /= total);
        tensors.sort_by(|a, b| a.held.total_cmp(&b.held));
        left_out.sort_by(|a, b| b.share.total_cmp(&a.share));
        let held = tensors.iter().map(|tensor| tensor.held * tensor.share).sum();
        (changes, ExtractReport { held, tensors, left_out, equal })
    }
}

/// The rows of an expert, or of what is no stack, of the tuned tensor less those of the base.
fn difference(
    [base, tuned]: &[Weights<'_>; 2],
    rows: Range<usize>,
) -> Result<Vec<f32>, ExtractError> {
    let columns = base.tensor.columns();
    let expert = rows.start / rows.len().max(1);
    let mut difference = vec![0.0; rows.len() * columns];
    tuned.rows(rows.clone(), tuned.scales.of_expert(expert), &mut difference)?;
    // The base row by row: a second matrix would double the memory.
    let mut row = vec![0.0; columns];
    for (i, difference) in rows.zip(difference.chunks_exact_mut(columns.max(1))) {
        base.rows(i..i + 1, base.scales.of_expert(expert), &mut row)?;
        difference.iter_mut().zip(&row).for_each(|(tuned, base)| *tuned -= base);
    }
    Ok(difference)
}
