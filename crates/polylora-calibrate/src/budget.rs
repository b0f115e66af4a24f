//! Types for the tensors of a merge: the bytes there are, where they count.
//!
//! What an error of a tensor's outputs costs is measured: the tensor alone is rounded coarsely, and the
//! divergence that this makes at the model's end is set beside the error at its outputs. What error
//! each type leaves is measured by rounding some of the tensor's rows with feedback. Errors of
//! different tensors do little to each other, so their costs add up; the bytes then go to where one
//! buys most.

use crate::merge::{Error, Observer, is_rounded, load};
use crate::seen::{Group, Seen};
use polylora_adapter::Adapter;
use polylora_adapter::rewrite::{Output, Plan, RewriteError};
use polylora_engine::{Engine, LoadedAdapter, LogProbs, Walk};
use polylora_file::Tensor;
use polylora_quant::GgmlType::{self, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use polylora_quant::compensate::{Curvature, quantize_compensated};
use polylora_quant::{Isa, dequantize, quantize};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Tokens by which errors of outputs are measured, at most.
const SURVEYED: usize = 4096;
/// Tokens by which divergences are measured, at most: they go through half the model for each tensor,
/// and all their logits are kept.
const PROBED: usize = 256;
/// Rows of a tensor that are rounded to see what error a type leaves: some runs of as many as are
/// rounded side by side.
const RUNS: usize = 4;
const RUN: usize = 16;
/// The size of the noise that a tensor is probed with, beside its weights: what it does must stand out
/// from the rounding of activations, and still grow as the square.
const NOISE: f64 = 0.2;
/// What a tensor may become, besides what it is: types that every program runs, and runs fast. Beyond
/// nine bits a weight, nothing of an adapter is lost.
const SUPER_BLOCKS: &[GgmlType] = &[Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0];
/// The same for rows that are no whole super-blocks.
const BLOCKS: &[GgmlType] = &[Q4_0, Q4_1, Q5_0, Q5_1, Q8_0];

/// Why no types were chosen.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// Not even with the fewest bits.
    #[error("the tensors take at least {least} bytes, and {budget} are allowed")]
    TooSmall {
        /// Bytes of all tensors, where those that change take the smallest types.
        least: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// From the measuring.
    #[error(transparent)]
    Merge(#[from] Error),
}

impl From<polylora_engine::Error> for BudgetError {
    fn from(error: polylora_engine::Error) -> BudgetError {
        BudgetError::Merge(error.into())
    }
}

impl From<RewriteError> for BudgetError {
    fn from(error: RewriteError) -> BudgetError {
        BudgetError::Merge(error.into())
    }
}

/// Chooses types for what `plan` rounds, so that all tensors of the file take at most `budget` bytes
/// and the divergence from the model with `adapters` at run time is least, as far as it shows in
/// `texts`: by the tensors' names. Stacks of experts keep the type that the plan gives them.
///
/// # Errors
/// Where the budget is too small, or as [`merge`](crate::merge).
pub fn choose(
    plan: &Plan<'_>,
    adapters: &[Adapter],
    engine: &mut Engine,
    texts: &[Vec<u32>],
    budget: u64,
    observer: &dyn Observer,
) -> Result<HashMap<String, GgmlType>, BudgetError> {
    let rounded: Vec<&Output<'_>> =
        plan.touched().filter(|output| is_rounded(output) && output.shape.len() == 2).collect();
    let fixed = plan.tensor_bytes() - rounded.iter().map(|output| output.bytes()).sum::<u64>();
    let least: u64 = rounded.iter().map(|output| smallest(output)).sum();
    if fixed + least > budget {
        return Err(BudgetError::TooSmall { least: fixed + least, budget });
    }

    let whole = load(engine, adapters)?;
    let mut survey = engine.walk(first(texts, SURVEYED), &whole)?;
    let mut probe = Probe::new(engine, first(texts, PROBED), &whole)?;
    let mut ladders = Vec::new();
    while !survey.is_through() {
        let mut seen = Seen::gather(engine, (&mut survey, &whole), None, &rounded);
        for group in &mut seen.groups {
            let [(curvature, _)] = &group.finish()[..] else { continue };
            for name in &group.tensors {
                let output = rounded.iter().find(|output| output.name == *name);
                let output = output.expect("only these are looked for");
                let measured = Measured { plan, output, group, curvature };
                let sensitivity = probe.sensitivity(engine, &measured)?;
                ladders.push(measured.ladder(sensitivity)?);
            }
        }
        engine.advance_walk(&mut survey, &whole);
        engine.advance_walk(&mut probe.walk, &whole);
        observer.reached(survey.progress());
    }
    // What no text came to keeps its type, and its bytes.
    let met: u64 = ladders.iter().map(|ladder| ladder.own_bytes).sum();
    let all: u64 = rounded.iter().map(|output| output.bytes()).sum();
    Ok(climb(&ladders, budget.saturating_sub(fixed + all - met)))
}

/// The first tokens of texts.
fn first(texts: &[Vec<u32>], most: usize) -> Vec<Vec<u32>> {
    let mut left = most;
    let cut = texts.iter().map(|text| {
        let text = &text[..text.len().min(left)];
        left -= text.len();
        text.to_vec()
    });
    cut.filter(|text| !text.is_empty()).collect()
}

/// What rows of this length may become, the smallest first: rows of any type of blocks are whole
/// blocks of these.
fn usual(columns: usize) -> &'static [GgmlType] {
    if columns.is_multiple_of(256) { SUPER_BLOCKS } else { BLOCKS }
}

/// The types that a tensor may take.
fn candidates(output: &Output<'_>) -> Vec<GgmlType> {
    let others = usual(output.columns()).iter().filter(|ty| **ty != output.ty);
    others.copied().chain([output.ty]).collect()
}

/// Bytes of the smallest type that a tensor may take.
fn smallest(output: &Output<'_>) -> u64 {
    let bytes = candidates(output).into_iter().map(|ty| output.bytes_as(ty));
    bytes.min().expect("the plan's own type is a candidate")
}

/// A few tokens on their way through the model as it is meant, and where they come to.
struct Probe<'a> {
    walk: Walk,
    whole: &'a [Arc<LoadedAdapter>],
    /// Logits of the tokens, `(tokens, vocabulary)`.
    meant: Vec<f32>,
}

impl<'a> Probe<'a> {
    fn new(
        engine: &mut Engine,
        texts: Vec<Vec<u32>>,
        whole: &'a [Arc<LoadedAdapter>],
    ) -> Result<Probe<'a>, Error> {
        let walk = engine.walk(texts, whole)?;
        let meant = logits(engine, walk.clone(), whole);
        Ok(Probe { walk, whole, meant })
    }

    /// The divergence that a unit of squared error of a tensor's outputs makes.
    fn sensitivity(&self, engine: &mut Engine, measured: &Measured<'_>) -> Result<f64, Error> {
        let noise = measured.noise()?;
        let error = measured.group.energy(&noise);
        let mut walk = self.walk.clone();
        walk.replace(measured.base_with(noise)?)?;
        let found = logits(engine, walk, self.whole);
        let divergence = divergence(engine.model().vocab_size(), &self.meant, &found);
        Ok(if error > 0.0 { divergence / error } else { 0.0 })
    }
}

/// What a model makes of texts that have come to some layer.
pub(crate) fn logits(
    engine: &mut Engine,
    mut walk: Walk,
    adapters: &[Arc<LoadedAdapter>],
) -> Vec<f32> {
    while !walk.is_through() {
        engine.advance_walk(&mut walk, adapters);
    }
    (0..walk.batches()).flat_map(|batch| engine.walked_logits(&walk, batch, adapters)).collect()
}

/// The mean over all tokens for which there are logits of both, `(tokens, vocabulary)`.
pub(crate) fn divergence(vocabulary: usize, meant: &[f32], found: &[f32]) -> f64 {
    let rows = meant.par_chunks_exact(vocabulary).zip(found.par_chunks_exact(vocabulary));
    let count = rows.len() as f64;
    let each = rows.map(|(p, q)| LogProbs::new(p).divergence_of(&LogProbs::new(q)));
    each.sum::<f64>() / count
}

/// A tensor, and what it reads.
struct Measured<'a> {
    plan: &'a Plan<'a>,
    output: &'a Output<'a>,
    group: &'a Group,
    curvature: &'a Curvature,
}

impl Measured<'_> {
    /// Errors of rounding, `(rows, columns)`: those of the smallest usual type, but of a size of
    /// their own.
    fn noise(&self) -> Result<Vec<f32>, Error> {
        let [_, merged] = self.plan.weights(&self.output.name, 0..self.output.rows())?;
        let columns = self.output.columns();
        let coarse = usual(columns)[0];
        let row_bytes = coarse.row_bytes(columns).expect("candidates fit");
        let mut noise = vec![0.0; merged.len()];
        let rows = merged.par_chunks_exact(columns).zip(noise.par_chunks_exact_mut(columns));
        rows.for_each_init(
            || vec![0; row_bytes],
            |bytes, (merged, noise)| {
                quantize(coarse, merged, None, bytes).expect("whole rows of a type that encodes");
                dequantize(coarse, bytes, noise).expect("what was just encoded");
                noise.iter_mut().zip(merged).for_each(|(noise, merged)| *noise -= merged);
            },
        );
        let squares = |values: &[f32]| values.iter().map(|x| f64::from(x * x)).sum::<f64>();
        let scale = (NOISE * (squares(&merged) / squares(&noise)).sqrt()) as f32;
        let scale = if scale.is_finite() { scale } else { 0.0 };
        noise.iter_mut().for_each(|noise| *noise *= scale);
        Ok(noise)
    }

    /// The tensor as the base has it, plus this.
    fn base_with(&self, mut noise: Vec<f32>) -> Result<Tensor, Error> {
        let [base, _] = self.plan.weights(&self.output.name, 0..self.output.rows())?;
        noise.iter_mut().zip(base).for_each(|(noise, base)| *noise += base);
        let bytes = noise.iter().flat_map(|weight| weight.to_le_bytes()).collect::<Vec<u8>>();
        let Output { name, shape, .. } = self.output;
        let tensor = Tensor::new(name, GgmlType::F32, shape.clone(), bytes.into());
        Ok(tensor.expect("the plan's own shape"))
    }

    /// What each type costs and leaves.
    fn ladder(&self, sensitivity: f64) -> Result<Ladder, Error> {
        let rows = self.output.rows();
        let runs = RUNS.min(rows.div_ceil(RUN));
        let starts = (0..runs).map(|run| run * rows / runs);
        let runs: Vec<_> = starts.map(|start| start..rows.min(start + RUN)).collect();
        let measured_rows: usize = runs.iter().map(ExactSizeIterator::len).sum();
        let scale = sensitivity * rows as f64 / measured_rows as f64;
        let steps = candidates(self.output).into_par_iter().map(|ty| {
            let mut error = 0.0;
            for rows in &runs {
                let [_, merged] = self.plan.weights(&self.output.name, rows.clone())?;
                let own = self.output.source.filter(|source| source.ty == ty);
                let own = own.map(|source| source.rows_bytes(rows.clone()));
                let mut bytes = vec![0; ty.row_bytes(merged.len()).expect("candidates fit")];
                let mut written = vec![0.0; merged.len()];
                quantize_compensated(Isa::best(), ty, &merged, own, self.curvature, &mut bytes)
                    .and_then(|()| dequantize(ty, &bytes, &mut written))
                    .expect("whole rows of a type that encodes");
                written.iter_mut().zip(&merged).for_each(|(written, merged)| *written -= merged);
                error += self.group.energy(&written);
            }
            let (bytes, cost) = (self.output.bytes_as(ty), scale * error);
            Ok(Step { ty, bytes, cost })
        });
        let mut steps = steps.collect::<Result<Vec<_>, Error>>()?;
        steps.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
        Ok(Ladder::new(&self.output.name, self.output.bytes(), steps))
    }
}

/// What a tensor may be written as, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    ty: GgmlType,
    bytes: u64,
    /// The divergence that it is expected to make.
    cost: f64,
}

/// The types of a tensor that are worth their bytes, smallest first: each byte buys less than on the
/// step before.
#[derive(Clone, Debug)]
struct Ladder {
    name: String,
    /// As the plan has it.
    own_bytes: u64,
    steps: Vec<Step>,
}

impl Ladder {
    /// Of steps by their size.
    fn new(name: &str, own_bytes: u64, steps: Vec<Step>) -> Ladder {
        let mut hull: Vec<Step> = Vec::new();
        for step in steps {
            if hull.last().is_some_and(|last| step.cost >= last.cost) {
                continue;
            }
            while let [.., before, last] = hull[..]
                && gain(&before, &last) <= gain(&last, &step)
            {
                hull.pop();
            }
            hull.push(step);
        }
        Ladder { name: name.to_owned(), own_bytes, steps: hull }
    }
}

/// What a byte buys.
fn gain(from: &Step, to: &Step) -> f64 {
    (from.cost - to.cost) / (to.bytes - from.bytes) as f64
}

/// Climbs the ladders where a byte buys most, as far as the bytes reach.
fn climb(ladders: &[Ladder], budget: u64) -> HashMap<String, GgmlType> {
    let mut left = budget.saturating_sub(ladders.iter().map(|ladder| ladder.steps[0].bytes).sum());
    let mut rungs: Vec<(usize, &[Step])> = Vec::new();
    for (n, ladder) in ladders.iter().enumerate() {
        rungs.extend(ladder.steps.windows(2).map(|pair| (n, pair)));
    }
    rungs.sort_by(|(_, a), (_, b)| gain(&b[0], &b[1]).total_cmp(&gain(&a[0], &a[1])));
    let mut chosen: Vec<Step> = ladders.iter().map(|ladder| ladder.steps[0]).collect();
    for (n, rung) in rungs {
        let more = rung[1].bytes - rung[0].bytes;
        // Above a step that was too high, there is no way up.
        if more <= left && chosen[n] == rung[0] {
            left -= more;
            chosen[n] = rung[1];
        }
    }
    ladders.iter().zip(&chosen).map(|(ladder, step)| (ladder.name.clone(), step.ty)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder(name: &str, steps: &[(GgmlType, u64, f64)]) -> Ladder {
        let steps = steps.iter().map(|&(ty, bytes, cost)| Step { ty, bytes, cost });
        Ladder::new(name, 0, steps.collect())
    }

    #[test]
    fn what_is_not_worth_its_bytes_is_no_step() {
        let steps = [(Q4_0, 10, 8.0), (Q4_1, 11, 9.0), (Q5_0, 12, 7.0), (Q5_1, 13, 3.0)];
        let types: Vec<_> = ladder("a", &steps).steps.iter().map(|step| step.ty).collect();
        // Q4_1 is worse than a smaller one; a byte of Q5_0 buys less than one of Q5_1.
        assert_eq!(types, [Q4_0, Q5_1]);
    }

    #[test]
    fn bytes_go_to_where_they_buy_most() {
        let ladders = [
            ladder("much", &[(Q4_0, 10, 8.0), (Q5_0, 12, 2.0), (Q8_0, 20, 0.0)]),
            ladder("little", &[(Q4_0, 10, 1.0), (Q5_0, 12, 0.5)]),
        ];
        let types = |budget| {
            let types = climb(&ladders, budget);
            (types["much"], types["little"])
        };
        assert_eq!(types(20), (Q4_0, Q4_0));
        assert_eq!(types(21), (Q4_0, Q4_0));
        assert_eq!(types(22), (Q5_0, Q4_0));
        assert_eq!(types(24), (Q5_0, Q5_0));
        // The eight bytes of Q8_0 are not there; the two of the other are.
        assert_eq!(types(29), (Q5_0, Q5_0));
        assert_eq!(types(32), (Q8_0, Q5_0));
    }

    #[test]
    fn texts_are_cut_where_the_tokens_end() {
        let texts = [vec![1, 2, 3], vec![4, 5], vec![6]];
        assert_eq!(first(&texts, 4), [vec![1, 2, 3], vec![4]]);
        assert_eq!(first(&texts, 9), texts);
    }
}
