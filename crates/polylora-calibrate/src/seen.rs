//! What linear layers that come next read, by groups that read the same.

use crate::merge;
use crate::moments::{Aim, moments};
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
    /// Of each expert.
    sums: Vec<Sums>,
    /// Some of what is read, and of what should be, `(rows, columns)` each; empty for a mixture.
    sample: [Vec<f32>; 2],
}

/// Rows of a sample: enough for a figure that is to be read in two digits.
const SAMPLE: usize = 128;

/// A walk, and the adapters of its texts.
type Walked<'a> = (&'a Walk, &'a [Arc<LoadedAdapter>]);

impl Seen {
    /// Gathers what the tensors `wanted` read in a walk, and what they are meant to read, which
    /// the other walk shows; each with its adapters.
    pub(crate) fn gather(
        engine: &mut Engine,
        (walk, adapters): Walked<'_>,
        meant: Option<Walked<'_>>,
        wanted: &[&Output<'_>],
    ) -> Seen {
        let mut groups: Vec<Group> = Vec::new();
        for batch in 0..walk.batches() {
            let read = engine.groups(walk, batch, adapters);
            let should_read = match meant {
                Some((meant, whole)) => engine.groups(meant, batch, whole),
                None => Vec::new(),
            };
            for group in read {
                let is_read = |output: &&&Output<'_>| group.tensors.contains(&output.name);
                let Some(first) = wanted.iter().find(is_read) else { continue };
                let place = groups.iter().position(|other| other.tensors.contains(&first.name));
                let place = place.unwrap_or_else(|| {
                    let tensors = wanted.iter().filter(is_read).map(|output| output.name.clone());
                    let tensors = tensors.collect();
                    let experts = if first.shape.len() == 3 { first.shape[0] } else { 1 };
                    let columns = first.shape[first.shape.len() - 1];
                    let sums = vec![Sums::new(columns); experts];
                    groups.push(Group { tensors, columns, sums, sample: Default::default() });
                    groups.len() - 1
                });
                // Of a mixture, other tokens may come to an expert than should.
                let is_dense = first.shape.len() == 2;
                let should =
                    should_read.iter().find(|meant| is_dense && meant.tensors == group.tensors);
                let Group { columns, sums, sample, .. } = &mut groups[place];
                let should = should.unwrap_or(&group);
                sums[group.expert].add(&group.inputs, &should.inputs);
                if is_dense {
                    // The last ones: those of the first batch may all begin the same.
                    let last = group.inputs.len().min(SAMPLE * *columns);
                    *sample = [&group.inputs, &should.inputs]
                        .map(|inputs| inputs[inputs.len() - last..].to_vec());
                }
            }
        }
        Seen { groups }
    }
}

impl Group {
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

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}
