//! An adapter as the products want it.

use crate::Error;
use crate::model::{Linear, Model, SiteShape};
use polylora_adapter::{Adapter, Change, ChangeKind, Factor};
use polylora_quant::isa::LANES as PANEL_ROWS;
use polylora_quant::product::FloatPanels;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

/// An adapter ready to run: its factors in the order in which products read them, scales folded
/// in, DoRA's norms taken. It belongs to one model.
#[derive(Debug)]
pub struct LoadedAdapter {
    name: String,
    hash: String,
    scale: f32,
    pub(crate) engine: u64,
    /// By the number of a linear layer: looked up for every part of every product. Most are empty
    /// where an adapter changes few.
    linears: Vec<LinearChange>,
    /// By the number of a norm: what is added to its weight.
    norms: HashMap<usize, Vec<f32>>,
    /// In order.
    embedding: Vec<EmbeddingChange>,
}

/// What happens to the outputs of a linear layer, or of a stack of experts:
/// `y = (1 + row_change) * s W x + sum of up (down x) + sum of values x + bias`.
#[derive(Debug, Default)]
pub(crate) struct LinearChange {
    pub(crate) pairs: Vec<Pair>,
    pub(crate) added: Vec<Added>,
    /// What is added to 1, for each row: by DoRA, and where a row is replaced.
    pub(crate) row_change: Option<Vec<f32>>,
    /// What is added to the bias.
    pub(crate) bias: Option<Vec<f32>>,
}

/// `up (down x)`: one LoRA pair.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Which of a stack of experts; 0 elsewhere.
    pub(crate) expert: usize,
    /// `(rank, columns)`
    pub(crate) down: FloatPanels,
    /// `(rows - first_row, rank)`, all scales folded in.
    pub(crate) up: FloatPanels,
    /// The row of the layer that is the first of `up`; panels of both begin together.
    pub(crate) first_row: usize,
}

/// `values x`, without a detour: new rows, beside which `row_change` takes the old ones away.
#[derive(Debug)]
pub(crate) struct Added {
    /// `(rows - first_row, columns)`, the scale folded in.
    pub(crate) values: FloatPanels,
    /// As in [`Pair`].
    pub(crate) first_row: usize,
}

/// What happens to rows of the embedding.
#[derive(Debug)]
enum EmbeddingChange {
    /// `row += up[token] down`, then DoRA's rescaling where there is a magnitude.
    LowRank { down: Vec<f32>, up: Vec<f32>, scale: f32, magnitude: Option<Vec<f32>> },
    /// `row += scale * (values - row)`, for some tokens.
    Replace { tokens: Range<usize>, values: Factor, scale: f32 },
    /// Each column times a factor.
    ScaleColumns(std::sync::Arc<[f32]>),
}

impl LoadedAdapter {
    /// What to call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of its content: see [`Adapter::hash`](polylora_adapter::Adapter).
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The user's scale, folded in.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        let floats = |values: &[f32]| size_of_val(values);
        let optional = |values: &Option<Vec<f32>>| values.as_deref().map_or(0, floats);
        let linear = |change: &LinearChange| {
            let pairs = change.pairs.iter().map(|pair| pair.down.bytes() + pair.up.bytes());
            let matrices = pairs.chain(change.added.iter().map(|rows| rows.values.bytes()));
            matrices.sum::<usize>() + optional(&change.row_change) + optional(&change.bias)
        };
        let embedding = |change: &EmbeddingChange| match change {
            EmbeddingChange::LowRank { down, up, magnitude, .. } => {
                floats(down) + floats(up) + optional(magnitude)
            }
            EmbeddingChange::Replace { values, .. } => values.held_bytes(),
            EmbeddingChange::ScaleColumns(factors) => floats(factors),
        };
        self.linears.iter().map(linear).sum::<usize>()
            + self.norms.values().map(|norm| floats(norm)).sum::<usize>()
            + self.embedding.iter().map(embedding).sum::<usize>()
    }

    pub(crate) fn linear(&self, site: usize) -> Option<&LinearChange> {
        self.linears.get(site)
    }

    pub(crate) fn norm(&self, site: usize) -> Option<&[f32]> {
        self.norms.get(&site).map(Vec::as_slice)
    }

    /// `precise`: factors in single precision, where the fast way rounds them to half.
    pub(crate) fn new(
        model: &Model,
        adapter: &Adapter,
        engine: u64,
        precise: bool,
    ) -> Result<LoadedAdapter, Error> {
        let mut loaded = LoadedAdapter {
            name: adapter.name.clone(),
            hash: adapter.hash.clone(),
            scale: adapter.scale,
            engine,
            linears: Vec::new(),
            norms: HashMap::new(),
            embedding: Vec::new(),
        };
        let parts = adapter
            .changes
            .par_iter()
            .map(|change| {
                Part::of(model, change, precise).map_err(|why| Error::Adapter {
                    adapter: adapter.name.clone(),
                    tensor: change.tensor.clone(),
                    why,
                })
            })
            .collect::<Result<Vec<Part>, Error>>()?;
        for part in parts {
            loaded.take(part);
        }
        Ok(loaded)
    }

    fn take(&mut self, part: Part) {
        match part {
            Part::Embedding(change) => self.embedding.push(change),
            Part::Norm { site, change } => add(self.norms.entry(site).or_default(), &change),
            Part::Bias { site, change } => {
                let linear = self.linear_mut(site);
                add(linear.bias.get_or_insert_default(), &change);
            }
            Part::Pair { site, pair, row_change } => {
                let linear = self.linear_mut(site);
                linear.pairs.push(pair);
                if let Some(change) = row_change {
                    add(linear.row_change.get_or_insert_default(), &change);
                }
            }
            Part::Added { site, added, row_change } => {
                let linear = self.linear_mut(site);
                linear.added.push(added);
                add(linear.row_change.get_or_insert_default(), &row_change);
            }
        }
    }

    fn linear_mut(&mut self, site: usize) -> &mut LinearChange {
        if self.linears.len() <= site {
            self.linears.resize_with(site + 1, LinearChange::default);
        }
        &mut self.linears[site]
    }

    /// Changes the embedding of a token, which the caller has looked up.
    pub(crate) fn change_embedding(&self, token: usize, row: &mut [f32]) {
        for change in &self.embedding {
            change.apply(token, row);
        }
    }
}

/// Adds vectors; an empty one is zero.
fn add(sum: &mut Vec<f32>, change: &[f32]) {
    sum.resize(change.len(), 0.0);
    sum.iter_mut().zip(change).for_each(|(sum, change)| *sum += change);
}

impl EmbeddingChange {
    fn apply(&self, token: usize, row: &mut [f32]) {
        match self {
            EmbeddingChange::LowRank { down, up, scale, magnitude } => {
                let rank = down.len() / row.len();
                for (u, down) in up[token * rank..][..rank].iter().zip(down.chunks(row.len())) {
                    row.iter_mut().zip(down).for_each(|(row, down)| *row += scale * u * down);
                }
                if let Some(magnitude) = magnitude {
                    let factor = magnitude[token] / norm(row);
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            }
            EmbeddingChange::Replace { tokens, values, scale } => {
                if tokens.contains(&token) {
                    let at = token - tokens.start;
                    for (row, new) in row.iter_mut().zip(values.rows_f32(at..at + 1)) {
                        *row += scale * (new - *row);
                    }
                }
            }
            EmbeddingChange::ScaleColumns(factors) => {
                row.iter_mut().zip(&**factors).for_each(|(row, factor)| *row *= factor);
            }
        }
    }
}

fn norm(row: &[f32]) -> f32 {
    row.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt() as f32
}

/// One change, worked out.
enum Part {
    Embedding(EmbeddingChange),
    Norm { site: usize, change: Vec<f32> },
    Bias { site: usize, change: Vec<f32> },
    Pair { site: usize, pair: Pair, row_change: Option<Vec<f32>> },
    Added { site: usize, added: Added, row_change: Vec<f32> },
}

impl Part {
    fn of(model: &Model, change: &Change, precise: bool) -> Result<Part, String> {
        let weights = &model.weights;
        match weights.site(&change.tensor) {
            None => Err("is not part of the model".to_owned()),
            Some(SiteShape::Embedding) => Ok(Part::Embedding(embedding_change(change))),
            Some(SiteShape::Norm { site, len }) => {
                let old = weights.norm(site).map(|norm| &*norm.weight);
                Ok(Part::Norm { site, change: vector_change(change, len, old)? })
            }
            Some(SiteShape::Bias { site, len }) => {
                let old = weights.linear(site).and_then(|linear| linear.bias.as_deref());
                Ok(Part::Bias { site, change: vector_change(change, len, old)? })
            }
            Some(SiteShape::Linear { site, rows, columns, experts }) => {
                let linear = weights.linear(site).ok_or("has no weights")?;
                if change.rows.end > rows * experts {
                    return Err(format!(
                        "has {rows} rows, and the adapter changes {:?}",
                        change.rows
                    ));
                }
                linear_change(change, linear, [rows, columns], precise)
            }
        }
    }
}

fn embedding_change(change: &Change) -> EmbeddingChange {
    match &change.kind {
        ChangeKind::LowRank { down, up, scale, magnitude } => EmbeddingChange::LowRank {
            down: down.to_f32(),
            up: up.to_f32(),
            scale: *scale,
            magnitude: magnitude.as_ref().map(Factor::to_f32),
        },
        ChangeKind::Replace { values, scale } | ChangeKind::Add { values, scale } => {
            let (tokens, values) = (change.rows.clone(), values.clone());
            EmbeddingChange::Replace { tokens, values, scale: *scale }
        }
        ChangeKind::ScaleColumns { factors } => EmbeddingChange::ScaleColumns(factors.clone()),
    }
}

/// What is added to a vector.
fn vector_change(change: &Change, len: usize, old: Option<&[f32]>) -> Result<Vec<f32>, String> {
    let (values, scale, is_new) = match &change.kind {
        ChangeKind::Add { values, scale } => (values, *scale, false),
        ChangeKind::Replace { values, scale } => (values, *scale, true),
        ChangeKind::LowRank { .. } | ChangeKind::ScaleColumns { .. } => {
            return Err("is a vector, and the adapter has a matrix for it".to_owned());
        }
    };
    let mut values = values.to_f32();
    if values.len() != len {
        return Err(format!("has {len} values, and the adapter {}", values.len()));
    }
    if let (true, Some(old)) = (is_new, old) {
        values.iter_mut().zip(old).for_each(|(new, old)| *new -= old);
    }
    values.iter_mut().for_each(|value| *value *= scale);
    Ok(values)
}

fn linear_change(
    change: &Change,
    linear: &Linear,
    [rows, columns]: [usize; 2],
    precise: bool,
) -> Result<Part, String> {
    let (tensor, site) = (&linear.tensor, linear.site);
    let expert = change.rows.start / rows;
    let within = change.rows.start - expert * rows..change.rows.end - expert * rows;
    if within.end > rows {
        return Err("is changed for several experts at once".to_owned());
    }
    let is_stack = tensor.shape.len() > 2;
    // Where the weights are not rounded, neither is what changes them.
    let precise = precise || tensor.ty.block_weights() == 1;
    // For each row of the layer, from one for each row that changes.
    let of_all_rows = |changes: &mut dyn Iterator<Item = f32>| {
        let mut all = vec![0.0; rows];
        all[within.clone()].iter_mut().zip(changes).for_each(|(all, change)| *all = change);
        all
    };
    // Panels of the layer and of its change begin together: rows before the first are zero.
    let first_row = within.start / PANEL_ROWS * PANEL_ROWS;
    let panels = |columns: usize, values: &[f32]| {
        let mut padded = vec![0.0; (within.start - first_row) * columns];
        padded.extend_from_slice(values);
        FloatPanels::new(within.end - first_row, columns, &padded, precise)
    };
    match &change.kind {
        ChangeKind::LowRank { down, up, scale, magnitude } => {
            let (rank, down) = (down.rows(), down.to_f32());
            let mut up = up.to_f32();
            up.iter_mut().for_each(|value| *value *= scale);
            let mut row_change = None;
            if let Some(magnitude) = magnitude {
                if is_stack {
                    return Err("is a stack of experts, for which DoRA is not known".to_owned());
                }
                let factors = {
                    let magnitude = magnitude.to_f32();
                    dora_factors(linear, within.clone(), rank, [&down, &up], &magnitude)?
                };
                for (up, factor) in up.chunks_mut(rank.max(1)).zip(&factors) {
                    up.iter_mut().for_each(|value| *value *= factor);
                }
                row_change = Some(of_all_rows(&mut factors.iter().map(|factor| factor - 1.0)));
            }
            let up = panels(rank, &up);
            let down = FloatPanels::new(rank, columns, &down, precise);
            Ok(Part::Pair { site, pair: Pair { expert, down, up, first_row }, row_change })
        }
        ChangeKind::Replace { values, scale } => {
            if is_stack {
                return Err("is a stack of experts, and the adapter replaces one".to_owned());
            }
            let mut values = values.to_f32();
            values.iter_mut().for_each(|value| *value *= scale);
            let row_change = of_all_rows(&mut within.clone().map(|_| -scale));
            let added = Added { values: panels(columns, &values), first_row };
            Ok(Part::Added { site, added, row_change })
        }
        ChangeKind::Add { .. } | ChangeKind::ScaleColumns { .. } => {
            Err("is a matrix, and the adapter changes it in a way not known at run time".to_owned())
        }
    }
}

/// `magnitude / ||s W + up down||` of each row (Liu et al., 2024, eq. 5); the scale is in `up`.
fn dora_factors(
    linear: &Linear,
    rows: Range<usize>,
    rank: usize,
    [down, up]: [&[f32]; 2],
    magnitude: &[f32],
) -> Result<Vec<f32>, String> {
    let (tensor, scale) = (&linear.tensor, linear.scales.of_expert(0));
    let columns = tensor.columns();
    rows.into_par_iter()
        .zip(up.par_chunks(rank.max(1)))
        .zip(magnitude)
        .map_init(
            || vec![0.0; columns],
            |row, ((number, up), magnitude)| {
                let decoded = tensor.dequantize_rows(number..number + 1, row);
                decoded.map_err(|error| error.to_string())?;
                row.iter_mut().for_each(|row| *row *= scale);
                for (u, down) in up.iter().zip(down.chunks(columns)) {
                    row.iter_mut().zip(down).for_each(|(row, down)| *row += u * down);
                }
                Ok(magnitude / norm(row))
            },
        )
        .collect()
}
