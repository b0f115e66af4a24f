//! A merge, layer after layer.

use crate::residual::{Pair, shifted};
use crate::seen::Seen;
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
    let rounded: Vec<&Output<'_>> = plan.touched().filter(|output| is_rounded(output)).collect();
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
    while !merged.is_through() {
        let seen = Seen::gather(engine, [&merged, &meant], [&rest, &whole], &rounded);
        let mut beside = Vec::new();
        for group in &seen.groups {
            let curvatures = group.curvatures();
            for name in &group.tensors {
                let rounding = Rounding { plan, name, curvatures: &curvatures };
                let less = match options.residual_rank {
                    Some(rank) => Some(rounding.part_of_change(rank)?),
                    None => None,
                };
                let tensor =
                    writing.compensated(name, &curvatures, less.as_deref(), &Stop(observer))?;
                let kept = match options.residual_rank {
                    Some(rank) => rounding.left(&tensor, rank)?,
                    None => Vec::new(),
                };
                let first = kept.first().map(|(_, pair)| pair);
                if let Some(error) = group.output_error(plan, &tensor, first)? {
                    errors.insert(name.clone(), error);
                }
                beside.extend(kept.into_iter().map(|(rows, Pair { up, down, rank })| {
                    Change::low_rank(name, rows, [down, up], rank)
                }));
                merged.replace(tensor)?;
            }
        }
        let mut present = rest.clone();
        if !beside.is_empty() {
            present.extend(load(engine, &[Adapter::made(RESIDUAL, beside.clone())])?);
            residual.extend(beside);
        }
        engine.advance_walk(&mut meant, &whole);
        engine.advance_walk(&mut merged, &present);
        observer.reached(merged.progress());
    }

    let mut report = writing.finish(&Stop(observer))?;
    for tensor in &mut report.tensors {
        tensor.output_error = errors.get(&tensor.name).copied();
    }
    let mut errors: Vec<f64> = errors.into_values().collect();
    errors.sort_by(f64::total_cmp);
    let output_error = errors.get(errors.len() / 2).copied().unwrap_or(0.0);
    report.calibration = Some(Calibration { tokens, output_error, residual: None });
    let residual = options.residual_rank.map(|_| Adapter::made(RESIDUAL, residual));
    Ok(Merged { report, residual })
}

/// The name of what is kept beside a merge.
const RESIDUAL: &str = "residual";

/// A tensor that is rounded, and how errors of its experts' rows count.
struct Rounding<'a> {
    plan: &'a Plan<'a>,
    name: &'a str,
    curvatures: &'a [Curvature],
}

impl Rounding<'_> {
    /// The best part of a rank of the intended change, `(rows, columns)`: codes that need not hold
    /// it may stay as they came, without an error.
    fn part_of_change(&self, rank: usize) -> Result<Vec<f32>, Error> {
        let mut part = Vec::new();
        for (curvature, rows) in self.experts() {
            let [base, merged] = self.plan.weights(self.name, rows)?;
            let change: Vec<f32> = merged.iter().zip(&base).map(|(new, old)| new - old).collect();
            match Pair::nearest(&change, curvature, rank) {
                Some(pair) => part.extend(pair.rows(&(0..merged.len() / curvature.columns()))),
                None => part.extend(change),
            }
        }
        Ok(part)
    }

    /// What is left when the tensor was written, by a rank.
    fn left(&self, written: &Tensor, rank: usize) -> Result<Vec<(Range<usize>, Pair)>, Error> {
        let mut pairs = Vec::new();
        for (curvature, rows) in self.experts() {
            let [_, merged] = self.plan.weights(self.name, rows.clone())?;
            let mut left = shifted(&merged, curvature);
            left.iter_mut().zip(read(written, &rows)).for_each(|(left, now)| *left -= now);
            pairs.extend(Pair::nearest(&left, curvature, rank).map(|pair| (rows, pair)));
        }
        Ok(pairs)
    }

    /// Rows of each expert with their curvature.
    fn experts(&self) -> impl Iterator<Item = (&Curvature, Range<usize>)> {
        let output = self.plan.touched().find(|output| output.name == self.name);
        let rows = output.map_or(0, Output::rows) / self.curvatures.len().max(1);
        let ranges = (0..).map(move |expert| expert * rows..(expert + 1) * rows);
        self.curvatures.iter().zip(ranges)
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
