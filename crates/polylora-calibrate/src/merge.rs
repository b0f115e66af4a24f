//! A merge, layer after layer.

use crate::budget::{divergence, logits};
use crate::moments::Aim;
use crate::residual::Pair;
use crate::seen::{Meant, Seen};
use polylora_adapter::report::{Calibration, Report};
use polylora_adapter::rewrite::{self, Output, Plan, RewriteError};
use polylora_adapter::{Adapter, Change};
use polylora_engine::{Engine, LoadedAdapter};
use polylora_file::{Tensor, WriteOptions};
use polylora_quant::compensate::Curvature;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A merge that could not be calibrated or written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)] // Each is the error of one part, which says what it is.
pub enum Error {
    Engine(#[from] polylora_engine::Error),
    Rewrite(#[from] RewriteError),
}

/// Watches the work from the outside; called from all threads.
pub trait Observer: Sync {
    /// So much is done, from 0 to 1.
    fn reached(&self, _share: f64) {}
    /// Whether to give up: asked before each piece of writing.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Observer for () {}

/// Asks whether to give up.
struct Stop<'a>(&'a dyn Observer);

impl rewrite::Observer for Stop<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// How to merge.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How to write the file.
    pub write: WriteOptions,
    /// The rank of what the weights cannot hold, to be kept beside them; none: nothing is.
    pub residual_rank: Option<usize>,
}

/// What came of a merge.
#[derive(Clone, Debug)]
pub struct Merged {
    /// What was written.
    pub report: Report,
    /// What belongs to it, where that was asked for.
    pub residual: Option<Adapter>,
}

/// Carries out `plan`, a merge of `adapters` into the model that `engine` runs, by what its layers
/// read of `texts`.
///
/// # Errors
/// Where an adapter cannot be run, a text is longer than [`Engine::WALKED`], or the file cannot be
/// written.
pub fn merge(
    plan: &Plan<'_>,
    adapters: &[Adapter],
    engine: &mut Engine,
    texts: Vec<Vec<u32>>,
    (out, options): (&Path, Options),
    observer: &dyn Observer,
) -> Result<Merged, Error> {
    let model = Arc::clone(engine.model());
    let is_met = |output: &&Output<'_>| is_rounded(output) && model.has_linear(&output.name);
    let rounded: Vec<&Output<'_>> = plan.touched().filter(is_met).collect();
    let (judged, texts) = held_back(texts);
    let tokens = texts.iter().map(Vec::len).sum();
    let whole = load(engine, adapters)?;
    // What no rounded tensor takes in, the merged model needs beside these until the end.
    let mut rest = adapters.to_vec();
    for adapter in &mut rest {
        let is_merged = |name: &str| rounded.iter().any(|output| output.name == name);
        adapter.changes.retain(|change| !is_merged(&change.tensor));
    }
    let rest = load(engine, &rest)?;

    let mut merged = engine.walk(texts, &whole)?;
    let mut meant = merged.clone();
    let mut writing = plan.begin(out, options.write)?;
    let mut residual = Vec::new();
    let mut errors = HashMap::new();
    // The texts go no further than to the last tensor that is rounded.
    let mut left = rounded.len();
    while !merged.is_through() {
        let as_meant = Meant { walked: (&mut meant, &whole), plan };
        let mut seen = Seen::gather(engine, (&mut merged, &rest), Some(as_meant), &rounded);
        let mut beside = Vec::new();
        for group in &mut seen.groups {
            let (curvatures, aims): (Vec<_>, Vec<_>) = group.finish().into_iter().unzip();
            for name in &group.tensors {
                let output = rounded.iter().find(|output| output.name == *name);
                let output = output.expect("only those were gathered");
                let rounding = Rounding { plan, output, curvatures: &curvatures, aims: &aims };
                let aim = rounding.aim()?;
                let less = match options.residual_rank {
                    Some(rank) => Some(rounding.without_change(&aim, rank)?),
                    None => None,
                };
                let to_write = less.as_deref().unwrap_or(&aim);
                let tensor = writing.compensated(name, &curvatures, to_write, &Stop(observer))?;
                let kept = match options.residual_rank {
                    Some(rank) => rounding.left(aim, &tensor, rank),
                    None => Vec::new(),
                };
                let first = kept.first().map(|(_, pair)| pair);
                if let Some(error) = group.output_error(plan, &tensor, first)? {
                    errors.insert(name.clone(), error);
                }
                let kept = kept.into_iter();
                beside.extend(kept.map(|(rows, pair)| rounding.change(rows, pair)));
                merged.replace(tensor)?;
                left -= 1;
            }
        }
        let mut present = rest.clone();
        if !beside.is_empty() {
            present.extend(load(engine, &[Adapter::made(RESIDUAL, beside.clone())])?);
            residual.extend(beside);
        }
        if left == 0 {
            break;
        }
        engine.advance_walk(&mut meant, &whole);
        engine.advance_walk(&mut merged, &present);
        observer.reached(merged.progress());
    }

    let residual = options.residual_rank.map(|_| Adapter::made(RESIDUAL, residual));
    let mut present = rest;
    if let Some(residual) = &residual {
        present.extend(load(engine, std::slice::from_ref(residual))?);
    }
    let alone = engine.walk(judged.clone(), &[])?;
    let found = engine.walk_again(&merged, judged.clone(), &present)?;
    let wanted = engine.walk(judged, &whole)?;
    let wanted = logits(engine, wanted, &whole);
    let [divergence, base_divergence] =
        [(found, &present[..]), (alone, &[])].map(|(walk, adapters)| {
            divergence(model.vocab_size(), &wanted, &logits(engine, walk, adapters))
        });
    let mut report = writing.finish(&Stop(observer))?;
    for tensor in &mut report.tensors {
        tensor.output_error = errors.get(&tensor.name).copied();
    }
    let mut errors: Vec<f64> = errors.into_values().collect();
    errors.sort_by(f64::total_cmp);
    let output_error = errors.get(errors.len() / 2).copied().unwrap_or(0.0);
    report.calibration =
        Some(Calibration { tokens, divergence, base_divergence, output_error, residual: None });
    Ok(Merged { report, residual })
}

/// Parts texts into some that it is judged by what came of a merge, and the others, which it goes by:
/// what was rounded by a text does far better on that text. One text alone has to do for both.
fn held_back(mut texts: Vec<Vec<u32>>) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    /// The part that is held back, but a text at least, and no more tokens than a figure of two digits
    /// needs: their logits are held all at once.
    const PART: usize = 16;
    const MOST: usize = 1024;
    if texts.len() < 2 {
        return (texts.clone(), texts);
    }
    let all: usize = texts.iter().map(Vec::len).sum();
    let mut left = MOST.min(all / PART);
    let fits = texts.iter().map_while(|text| {
        left = left.checked_sub(text.len())?;
        Some(text)
    });
    let count = fits.count().max(1);
    let others = texts.split_off(count);
    (texts, others)
}

/// The name of what is kept beside a merge.
const RESIDUAL: &str = "residual";

/// A tensor that is rounded; of each of its experts, how errors of its rows count, and what they aim
/// at.
struct Rounding<'a> {
    plan: &'a Plan<'a>,
    output: &'a Output<'a>,
    curvatures: &'a [Curvature],
    aims: &'a [Option<Aim>],
}

impl Rounding<'_> {
    /// What the tensor would best become, `(rows, columns)`, if nothing were lost.
    fn aim(&self) -> Result<Vec<f32>, Error> {
        let [_, mut aim] = self.weights()?;
        let of_one = aim.len() / self.aims.len().max(1);
        let experts = aim.chunks_exact_mut(of_one.max(1)).zip(self.aims);
        let columns = self.output.columns();
        experts.for_each(|(weights, aim)| aim.iter().for_each(|aim| aim.apply(columns, weights)));
        Ok(aim)
    }

    /// The aim without the best part of a rank of the intended change: codes that need not hold it
    /// may stay as they came, without an error.
    fn without_change(&self, aim: &[f32], rank: usize) -> Result<Vec<f32>, Error> {
        let [base, mut change] = self.weights()?;
        change.iter_mut().zip(&base).for_each(|(new, old)| *new -= old);
        let mut less = aim.to_vec();
        for (curvature, rows) in self.experts() {
            let columns = curvature.columns();
            let of_expert = rows.start * columns..rows.end * columns;
            let change = &change[of_expert.clone()];
            let part = Pair::nearest(change, curvature, rank);
            let part = part.map(|pair| pair.rows(&(0..rows.len())));
            let part = part.as_deref().unwrap_or(change);
            less[of_expert].iter_mut().zip(part).for_each(|(less, part)| *less -= part);
        }
        Ok(less)
    }

    /// What is left of the aim when the tensor was written, by a rank.
    fn left(&self, aim: Vec<f32>, written: &Tensor, rank: usize) -> Vec<(Range<usize>, Pair)> {
        let mut left = aim;
        let now = read(written, &(0..written.rows()));
        left.iter_mut().zip(now).for_each(|(left, now)| *left -= now);
        let pairs = self.experts().filter_map(|(curvature, rows)| {
            let columns = curvature.columns();
            let left = &left[rows.start * columns..rows.end * columns];
            Some((rows, Pair::nearest(left, curvature, rank)?))
        });
        pairs.collect()
    }

    /// A pair as an adapter has it, which no scale beside the weights is for.
    fn change(&self, rows: Range<usize>, Pair { mut up, down, rank }: Pair) -> Change {
        let scale = self.output.scales().of_expert(rows.start / rows.len().max(1));
        up.iter_mut().for_each(|up| *up *= scale);
        Change::low_rank(&self.output.name, rows, [down, up], rank)
    }

    /// Rows of each expert with their curvature.
    fn experts(&self) -> impl Iterator<Item = (&Curvature, Range<usize>)> {
        let rows = self.output.rows() / self.curvatures.len().max(1);
        let ranges = (0..).map(move |expert| expert * rows..(expert + 1) * rows);
        self.curvatures.iter().zip(ranges)
    }

    /// The tensor as the base has it, and merged, `(rows, columns)` each.
    fn weights(&self) -> Result<[Vec<f32>; 2], Error> {
        Ok(self.plan.weights(&self.output.name, 0..self.output.rows())?)
    }
}

/// Rows of a tensor that was just written.
pub(crate) fn read(tensor: &Tensor, rows: &Range<usize>) -> Vec<f32> {
    let mut values = vec![0.0; rows.len() * tensor.columns()];
    tensor.dequantize_rows(rows.clone(), &mut values).expect("what was written can be read");
    values
}

/// Whether a tensor is a matrix that loses something when it is written.
pub(crate) fn is_rounded(output: &Output<'_>) -> bool {
    output.shape.len() > 1 && output.ty.block_weights() > 1 && output.source.is_some()
}

pub(crate) fn load(
    engine: &Engine,
    adapters: &[Adapter],
) -> Result<Vec<Arc<LoadedAdapter>>, Error> {
    let loaded = adapters.iter().map(|adapter| engine.load_adapter(adapter));
    Ok(loaded.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_texts_are_held_back() {
        let lengths = |texts: &[Vec<u32>]| texts.iter().map(Vec::len).collect::<Vec<_>>();
        let parted = |all: &[usize]| {
            let (judged, others) = held_back(all.iter().map(|&length| vec![7; length]).collect());
            (lengths(&judged), lengths(&others))
        };
        // A sixteenth of 320; of a text that is longer than that, all the same; no more than 1024.
        assert_eq!(parted(&[10, 10, 100, 200]), (vec![10, 10], vec![100, 200]));
        assert_eq!(parted(&[100, 50]), (vec![100], vec![50]));
        assert_eq!(parted(&[500; 50]), (vec![500; 2], vec![500; 48]));
        // Nothing else is there.
        assert_eq!(parted(&[100]), (vec![100], vec![100]));
    }
}
