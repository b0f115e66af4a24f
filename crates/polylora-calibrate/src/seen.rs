//! What linear layers that come next read, by groups that read the same.

use crate::merge;
use crate::moments::Moments;
use crate::residual::{Pair, product};
use faer::MatRef;
use polylora_adapter::rewrite::{Output, Plan, RewriteError};
use polylora_engine::{Engine, LoadedAdapter, Walk};
use polylora_file::Tensor;
use polylora_quant::compensate::Curvature;
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
    /// Of each expert, if it read anything.
    moments: Vec<Option<Moments>>,
    /// Some of what is read, and of what should be, `(rows, columns)` each; empty for a mixture.
    sample: [Vec<f32>; 2],
}

/// Rows of a sample: enough for a figure that is to be read in two digits.
const SAMPLE: usize = 128;

impl Seen {
    /// Gathers what the tensors `wanted` read in a walk, and what they are meant to read, which the
    /// other walk shows; each with its adapters.
    pub(crate) fn gather(
        engine: &mut Engine,
        [walk, meant]: [&Walk; 2],
        [adapters, whole]: [&[Arc<LoadedAdapter>]; 2],
        wanted: &[&Output<'_>],
    ) -> Seen {
        let mut groups: Vec<Group> = Vec::new();
        for batch in 0..walk.batches() {
            let read = engine.groups(walk, batch, adapters);
            let should_read = engine.groups(meant, batch, whole);
            for group in read {
                let is_read = |output: &&&Output<'_>| group.tensors.contains(&output.name);
                let Some(first) = wanted.iter().find(is_read) else { continue };
                let place = groups.iter().position(|other| other.tensors.contains(&first.name));
                let place = place.unwrap_or_else(|| {
                    let tensors = wanted.iter().filter(is_read).map(|output| output.name.clone());
                    let tensors = tensors.collect();
                    let experts = if first.shape.len() == 3 { first.shape[0] } else { 1 };
                    let columns = first.shape[first.shape.len() - 1];
                    let (moments, sample) = (vec![None; experts], [Vec::new(), Vec::new()]);
                    groups.push(Group { tensors, columns, moments, sample });
                    groups.len() - 1
                });
                // Of a mixture, other tokens may come to an expert than should.
                let is_dense = first.shape.len() == 2;
                let meant =
                    should_read.iter().find(|meant| is_dense && meant.tensors == group.tensors);
                let Group { columns, moments, sample, .. } = &mut groups[place];
                let moments = moments[group.expert].get_or_insert_with(|| Moments::new(*columns));
                moments.add(&group.inputs, meant.map(|meant| &*meant.inputs));
                if let Some(meant) = meant {
                    // The last ones: those of the first batch may all begin the same.
                    let last = group.inputs.len().min(SAMPLE * *columns);
                    *sample = [&group.inputs, &meant.inputs]
                        .map(|inputs| inputs[inputs.len() - last..].to_vec());
                }
            }
        }
        Seen { groups }
    }
}

impl Group {
    /// One for each expert; where one read nothing, all its errors count alike.
    pub(crate) fn curvatures(&self) -> Vec<Curvature> {
        let of = |moments: &Option<Moments>| match moments {
            Some(moments) => moments.curvature(),
            None => Moments::new(self.columns).curvature(),
        };
        self.moments.iter().map(of).collect()
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
        let (mut error, mut change) = (0.0, 0.0);
        for start in (0..written.rows()).step_by(TOGETHER) {
            let rows = start..written.rows().min(start + TOGETHER);
            let [base, merged] = plan.weights(&written.name, rows.clone())?;
            let mut now = merge::read(written, &rows);
            if let Some(kept) = kept {
                now.iter_mut().zip(kept.rows(&rows)).for_each(|(now, kept)| *now += kept);
            }
            let [base, wanted] = [base, merged].map(|weights| self.outputs(meant, &weights));
            let found = self.outputs(read, &now);
            error += squared_distance(&found, &wanted);
            change += squared_distance(&base, &wanted);
        }
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
