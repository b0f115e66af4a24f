//! The feed-forward part of a layer, for all tokens alike or as a mixture of experts.

use crate::batch::{Batch, RowSet};
use crate::linear::{Context, Inputs};
use crate::model::{Activation, Experts, Linear};
use polylora_quant::vector;

/// `down(activation(gate x) * (up x))`, for rows that are prepared for `gate_up`.
pub(crate) fn dense(
    context: &Context<'_>,
    batch: &Batch,
    [gate_up, down]: [&[&Linear]; 2],
    activation: Activation,
    [normed, inner]: [&mut Inputs; 2],
    out: &mut [f32],
) {
    let sets = [batch.all_rows()];
    let columns = down[0].columns;
    inner.reset(batch.len(), columns);
    normed.multiply_gated(context, batch, gate_up, &sets, activation, &mut inner.values);
    inner.prepare(context, down, batch.len(), &mut [], |_, _, _| {});
    inner.multiply(context, batch, down, &sets, out);
}

/// The weights of a mixture.
pub(crate) struct Mixture<'a> {
    pub(crate) experts: Experts,
    pub(crate) router: &'a Linear,
    pub(crate) gate: &'a Linear,
    pub(crate) up: &'a Linear,
    pub(crate) down: &'a Linear,
}

/// Which rows pass which expert. Each way of a row through an expert has a slot; the slots of one
/// expert follow each other.
struct Routes {
    /// From rows of the batch to slots.
    into: Vec<RowSet>,
    /// From slots to slots.
    between: Vec<RowSet>,
    slots: usize,
    /// For each row, the slots that it has and their weights.
    of_row: Vec<Vec<(usize, f32)>>,
}

impl Mixture<'_> {
    /// The sum of some experts' outputs, for rows that are prepared for the router.
    pub(crate) fn run(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        activation: Activation,
        [normed, inner]: [&mut Inputs; 2],
        out: &mut [f32],
    ) {
        let mut scores = vec![0.0; batch.len() * self.experts.count];
        normed.multiply(context, batch, &[self.router], &[batch.all_rows()], &mut scores);
        let routes = self.route(context, batch, &mut scores);

        let gate_up = [self.gate, self.up];
        inner.reset(routes.slots, self.down.columns);
        let sets = &routes.into;
        normed.multiply_gated(context, batch, &gate_up, sets, activation, &mut inner.values);
        inner.prepare(context, &[self.down], routes.slots, &mut [], |_, _, _| {});
        let mut outputs = vec![0.0; routes.slots * self.down.rows];
        inner.multiply(context, batch, &[self.down], &routes.between, &mut outputs);

        let hidden = self.down.rows;
        let mut rows: Vec<_> = out.chunks_exact_mut(hidden).zip(&routes.of_row).collect();
        context.pool.for_each(&mut rows, |_, (out, slots)| {
            out.fill(0.0);
            for &(slot, weight) in slots.iter() {
                vector::add_scaled(context.isa, out, weight, &outputs[slot * hidden..][..hidden]);
            }
        });
    }

    /// Sends each row to the experts with the highest scores. Their weights are the softmax of all
    /// scores, brought to the sum of one.
    fn route(&self, context: &Context<'_>, batch: &Batch, scores: &mut [f32]) -> Routes {
        /// The smallest sum of weights, as llama.cpp has it.
        const LEAST: f32 = 6.103_515_6e-5;
        let Experts { count, used, scale } = self.experts;
        let mut chosen = Vec::with_capacity(batch.len());
        let mut rows_of = vec![Vec::new(); count];
        for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
            vector::softmax(context.isa, scores);
            let mut order: Vec<usize> = (0..count).collect();
            // Of equal scores the first wins, whatever the order of the sort.
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.truncate(used);
            let sum: f32 = order.iter().map(|&expert| scores[expert]).sum();
            let weight = scale / sum.max(LEAST);
            for &expert in &order {
                rows_of[expert].push(row as u32);
            }
            let weights = order.iter().map(|&expert| (expert, scores[expert] * weight));
            chosen.push(weights.collect::<Vec<_>>());
        }
        let (mut into, mut between, mut slots) = (Vec::new(), Vec::new(), 0);
        let mut of_row = vec![Vec::with_capacity(used); batch.len()];
        for (expert, rows) in rows_of.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            for (slot, &row) in (slots..).zip(&rows) {
                let weights = &chosen[row as usize];
                let weight = weights.iter().find(|(other, _)| *other == expert);
                of_row[row as usize].push((slot, weight.map_or(0.0, |(_, weight)| *weight)));
            }
            let end = slots + rows.len();
            let of_slots = (slots as u32..end as u32).collect();
            between.push(RowSet::new(batch, Some(expert), slots, of_slots, rows.iter().copied()));
            into.push(RowSet::new(batch, Some(expert), slots, rows.clone(), rows.into_iter()));
            slots = end;
        }
        Routes { into, between, slots, of_row }
    }
}
