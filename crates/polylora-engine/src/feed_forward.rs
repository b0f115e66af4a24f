//! The feed-forward part of a layer, for all tokens alike or as a mixture of experts.

use crate::batch::{Batch, RowSet};
use crate::linear::{Context, Inputs};
use crate::model::{Description, Experts, FeedForward, Linear};
use polylora_quant::vector;

/// What reads the layer's input.
pub(crate) fn first(weights: &FeedForward) -> Vec<&Linear> {
    match weights {
        FeedForward::Dense { gate_up, .. } => gate_up.iter().collect(),
        // The experts' inputs are rounded with the router's.
        FeedForward::Mixture { router, gate, up, .. } => vec![router, gate, up],
    }
}

/// `activation(gate x) * (up x)`, for rows that are prepared for what reads them first; and of a
/// mixture, which rows went where.
pub(crate) fn gate_up(
    context: &Context<'_>,
    batch: &Batch,
    description: &Description,
    weights: &FeedForward,
    [normed, inner]: [&mut Inputs; 2],
) -> Option<Routes> {
    let activation = description.activation;
    match weights {
        FeedForward::Dense { down, .. } => {
            inner.reset(batch.len(), down.columns);
            let (gate_up, sets) = (first(weights), [batch.all_rows()]);
            normed.multiply_gated(context, batch, &gate_up, &sets, activation, &mut inner.values);
            None
        }
        FeedForward::Mixture { router, gate, up, down } => {
            let experts = description.experts.expect("a mixture has experts");
            let routes = route(context, batch, experts, router, normed);
            inner.reset(routes.slots, down.columns);
            let (gate_up, sets) = ([gate, up], &routes.into);
            normed.multiply_gated(context, batch, &gate_up, sets, activation, &mut inner.values);
            Some(routes)
        }
    }
}

/// `down inner`; of a mixture, the sum of what a row's experts give.
pub(crate) fn down(
    context: &Context<'_>,
    batch: &Batch,
    weights: &FeedForward,
    routes: Option<&Routes>,
    inner: &mut Inputs,
    out: &mut [f32],
) {
    let down = weights.down();
    let Some(routes) = routes else {
        inner.prepare(context, &[down], batch.len(), &mut [], |_, _, _| {});
        inner.multiply(context, batch, &[down], &[batch.all_rows()], out);
        return;
    };
    inner.prepare(context, &[down], routes.slots, &mut [], |_, _, _| {});
    let mut outputs = vec![0.0; routes.slots * down.rows];
    inner.multiply(context, batch, &[down], &routes.between, &mut outputs);

    let hidden = down.rows;
    let mut rows: Vec<_> = out.chunks_exact_mut(hidden).zip(&routes.of_row).collect();
    context.pool.for_each(&mut rows, |_, (out, slots)| {
        out.fill(0.0);
        for &(slot, weight) in slots.iter() {
            vector::add_scaled(context.isa, out, weight, &outputs[slot * hidden..][..hidden]);
        }
    });
}

/// Which rows pass which expert. Each way of a row through an expert has a slot; the slots of one
/// expert follow each other.
pub(crate) struct Routes {
    /// From rows of the batch to slots.
    pub(crate) into: Vec<RowSet>,
    /// From slots to slots.
    pub(crate) between: Vec<RowSet>,
    pub(crate) slots: usize,
    /// For each row, the slots that it has and their weights.
    of_row: Vec<Vec<(usize, f32)>>,
}

/// Sends each row, prepared for the router, to the experts with the highest scores. Their weights
/// are the softmax of all scores, brought to the sum of one.
pub(crate) fn route(
    context: &Context<'_>,
    batch: &Batch,
    Experts { count, used, scale }: Experts,
    router: &Linear,
    normed: &Inputs,
) -> Routes {
    /// The smallest sum of weights, as llama.cpp has it.
    const LEAST: f32 = 6.103_515_6e-5;
    let mut scores = vec![0.0; batch.len() * count];
    normed.multiply(context, batch, &[router], &[batch.all_rows()], &mut scores);
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
