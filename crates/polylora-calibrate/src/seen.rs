//! What linear layers that come next read, by groups that read the same.

use crate::merge;
use crate::moments::{Aim, moments};
use crate::products::Left;
use crate::residual::{Pair, product};
use crate::sums::Sums;
use faer::MatRef;
use polylora_adapter::rewrite::{Output, Plan, RewriteError};
use polylora_engine::{Engine, LoadedAdapter, Walk};
use polylora_file::Tensor;
use polylora_quant::compensate::Curvature;
use rayon::prelude::*;
use std::sync::Arc;

/// Of all texts of a walk.
pub(crate) struct Seen {
    pub(crate) groups: Vec<Group>,
}

/// Layers that read the same.
pub(crate) struct Group {
    /// Their tensors, as far as they are wanted.
    pub(crate) tensors: Vec<String>,
    columns: usize,
    /// Whether all tokens come to it.
    is_dense: bool,
    /// Of each expert.
    sums: Vec<Sums>,
    /// Some of what is read, and of what should be, `(rows, columns)` each; empty for a mixture.
    sample: [Vec<f32>; 2],
}

/// Rows of a sample: enough for a figure that is to be read in two digits.
const SAMPLE: usize = 128;

/// A walk, and the adapters of its texts.
type Walked<'a> = (&'a mut Walk, &'a [Arc<LoadedAdapter>]);

/// The model as it is meant.
pub(crate) struct Meant<'a> {
    pub(crate) walked: Walked<'a>,
    /// Has its weights.
    pub(crate) plan: &'a Plan<'a>,
}

impl Seen {
    /// Gathers what the tensors `wanted` read in a walk, and what they are meant to read, which
    /// the other walk shows; each with its adapters.
    pub(crate) fn gather(
        engine: &mut Engine,
        (walk, adapters): Walked<'_>,
        mut meant: Option<Meant<'_>>,
        wanted: &[&Output<'_>],
    ) -> Seen {
        let mut groups: Vec<Group> = Vec::new();
        let plan = meant.as_ref().map(|meant| meant.plan);
        for batch in 0..walk.batches() {
            engine.show_groups(walk, batch, adapters, &mut |shown| {
                let is_read = |output: &&&Output<'_>| shown.tensors.contains(&&output.name[..]);
                let Some(first) = wanted.iter().find(is_read) else { return };
                let place = groups.iter().position(|other| other.tensors.contains(&first.name));
                let place = place.unwrap_or_else(|| {
                    let tensors = wanted.iter().filter(is_read).map(|output| output.name.clone());
                    let weights = plan.filter(|_| tensors.clone().count() == 1);
                    let weights = weights.and_then(|plan| narrow(plan, first));
                    groups.push(Group::new(tensors.collect(), &first.shape, weights));
                    groups.len() - 1
                });
                let group = &mut groups[place];
                group.sums[shown.expert].add(&shown.inputs);
                if group.is_dense {
                    group.sample = [(); 2].map(|()| group.end_of(&shown.inputs));
                }
            });
            let Some(Meant { walked: (meant, whole), .. }) = &mut meant else { continue };
            engine.show_groups(meant, batch, whole, &mut |shown| {
                let is_of = |group: &&mut Group| shown.tensors.contains(&&group.tensors[0][..]);
                // Of a mixture, other tokens may come to an expert than should.
                let Some(group) = groups.iter_mut().filter(|group| group.is_dense).find(is_of)
                else {
                    return;
                };
                group.sums[0].add_meant(&shown.inputs);
                group.sample[1] = group.end_of(&shown.inputs);
            });
        }
        Seen { groups }
    }
}

impl Group {
    /// Of nothing yet, for tensors of a shape; perhaps with the weights of the only one.
    fn new(tensors: Vec<String>, shape: &[usize], mut weights: Option<Left>) -> Group {
        let [stacked @ .., _, columns] = shape else { unreachable!("linear layers are matrices") };
        let (columns, is_dense) = (*columns, stacked.is_empty());
        let experts = 0..stacked.iter().product();
        let sums = experts.map(|_| Sums::new(columns, weights.take())).collect();
        Group { tensors, columns, is_dense, sums, sample: Default::default() }
    }

    /// The last inputs of a batch: the first of all batches may begin the same.
    fn end_of(&self, inputs: &[f32]) -> Vec<f32> {
        inputs[inputs.len() - inputs.len().min(SAMPLE * self.columns)..].to_vec()
    }

    /// For each expert, how errors of its rows count, all alike where it read nothing, and what they
    /// are to aim at.
    pub(crate) fn finish(&mut self) -> Vec<(Curvature, Option<Aim>)> {
        std::mem::take(&mut self.sums).into_iter().map(moments).collect()
    }

    /// How far the outputs of a tensor that was `written`, with what is `kept` beside it, are from
    /// those that are meant, as a part of what the adapters change them by; none for a mixture.
    pub(crate) fn output_error(
        &self,
        plan: &Plan<'_>,
        written: &Tensor,
        kept: Option<&Pair>,
    ) -> Result<Option<f64>, RewriteError> {
        /// Rows of the tensor that are worked on together.
        const TOGETHER: usize = 512;
        let [read, meant] = &self.sample;
        if read.is_empty() {
            return Ok(None);
        }
        let starts: Vec<usize> = (0..written.rows()).step_by(TOGETHER).collect();
        let parts = starts.into_par_iter().map(|start| {
            let rows = start..written.rows().min(start + TOGETHER);
            let [base, merged] = plan.weights(&written.name, rows.clone())?;
            let mut now = merge::read(written, &rows);
            if let Some(kept) = kept {
                now.iter_mut().zip(kept.rows(&rows)).for_each(|(now, kept)| *now += kept);
            }
            let [base, wanted] = [base, merged].map(|weights| self.outputs(meant, &weights));
            let found = self.outputs(read, &now);
            Ok([squared_distance(&found, &wanted), squared_distance(&base, &wanted)])
        });
        let parts = parts.collect::<Result<Vec<[f64; 2]>, RewriteError>>()?;
        let [error, change] = [0, 1].map(|k| parts.iter().map(|part| part[k]).sum::<f64>());
        Ok((change > 0.0).then(|| (error / change).sqrt()))
    }

    /// The squares of the outputs that rows of weights, `(rows, columns)`, give of what is read: their
    /// sum over the rows, their mean over a sample of tokens. Zero for a mixture.
    pub(crate) fn energy(&self, weights: &[f32]) -> f64 {
        let [read, _] = &self.sample;
        let tokens = (read.len() / self.columns).max(1);
        let outputs = self.outputs(read, weights);
        outputs.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / tokens as f64
    }

    /// `(inputs, rows)`
    fn outputs(&self, inputs: &[f32], weights: &[f32]) -> Vec<f32> {
        let rows = |matrix: &'_ [f32]| matrix.len() / self.columns;
        let inputs = MatRef::from_row_major_slice(inputs, rows(inputs), self.columns);
        let weights = MatRef::from_row_major_slice(weights, rows(weights), self.columns);
        product(inputs, weights.transpose())
    }
}

/// The weights that a tensor is meant to have, where sums with them are smaller.
fn narrow(plan: &Plan<'_>, output: &Output<'_>) -> Option<Left> {
    let (rows, columns) = (output.rows(), output.columns());
    if output.shape.len() != 2 || 2 * rows >= columns {
        return None;
    }
    // If they cannot be read, the rounding will tell.
    let [_, weights] = plan.weights(&output.name, 0..rows).ok()?;
    Some(Left::new(rows, |row| &weights[row * columns..][..columns]))
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}
