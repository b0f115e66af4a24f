//! Linear layers over a batch: quantized weights and low-rank changes in one pass.
//!
//! ```text
//! prepare    x rounded to 8 bits, and lora_a x, in one phase over rows
//! multiply   W x for some rows of W, then lora_b (lora_a x) added while they are in the cache
//! ```

use crate::adapter::{LinearChange, Pair};
use crate::batch::{Batch, RowSet, within};
use crate::model::{Activation, Linear};
use crate::pool::{Pool, Tile, tiles};
use polylora_quant::Isa;
use polylora_quant::isa::LANES as PANEL_ROWS;
use polylora_quant::product::{self, ActivationMut, Activations, FloatPanels};
use polylora_quant::vector;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// What every phase works with.
pub(crate) struct Context<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) isa: Isa,
    /// Weights dequantized, activations as they are.
    pub(crate) exact: bool,
    /// One for each thread.
    pub(crate) scratch: &'a [Mutex<Scratch>],
}

/// What a thread works in.
#[derive(Default)]
pub(crate) struct Scratch {
    product: product::Scratch,
    /// `(rows of the set, rows of the weight)`: products on their way out.
    out: Vec<f32>,
    second: Vec<f32>,
    factors: Vec<f32>,
    pairs: Vec<(u32, u32)>,
    pub(crate) attention: crate::attention::Scratch,
}

impl Context<'_> {
    /// The thread's own; nobody else asks for it.
    pub(crate) fn scratch(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A matrix of inputs, as the products of some layers read it.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    columns: usize,
    /// `(rows, columns)`
    pub(crate) values: Vec<f32>,
    activations: Activations,
    reduced: Reduced,
}

/// `lora_a x`, for every row and every adapter that applies to it.
#[derive(Debug, Default)]
struct Reduced {
    /// Values of a row.
    width: usize,
    /// `(rows, width)`
    values: Vec<f32>,
    places: Vec<Place>,
}

/// Where in a row the reduced inputs of one pair lie.
#[derive(Debug)]
struct Place {
    /// The adapter's number in the batch.
    adapter: usize,
    /// The layer's.
    site: usize,
    /// The pair's in the adapter's change of the layer.
    pair: usize,
    expert: usize,
    offset: usize,
}

impl Reduced {
    /// Finds a place for every pair. Adapters that apply to no row together share theirs, and so do
    /// experts, for a row passes one at a time.
    fn place<'a>(
        &mut self,
        batch: &Batch,
        linears: impl Iterator<Item = &'a Linear> + Clone,
        sets: &'a [RowSet],
    ) {
        let rows = sets.iter().map(RowSet::len).sum();
        self.places.clear();
        self.width = 0;
        // How much of each row is taken.
        let mut taken = vec![0; rows];
        for (adapter, loaded) in batch.adapters.iter().enumerate() {
            let its_rows = || {
                let of_set = |set: &'a RowSet| {
                    set.applied[adapter].iter().map(|&row| set.first + row as usize)
                };
                sets.iter().flat_map(of_set)
            };
            let mut end = its_rows().map(|row| taken[row]).max().unwrap_or(0);
            for linear in linears.clone() {
                let Some(change) = loaded.linear(linear.site) else { continue };
                let (start, first) = (end, self.places.len());
                for (pair, factors) in change.pairs.iter().enumerate() {
                    let expert = factors.expert;
                    let of_expert = self.places[first..].iter().filter(|p| p.expert == expert);
                    let after = |p: &Place| p.offset + padded_rank(&change.pairs[p.pair].down);
                    let offset = of_expert.map(after).max().unwrap_or(start);
                    end = end.max(offset + padded_rank(&factors.down));
                    self.places.push(Place { adapter, site: linear.site, pair, expert, offset });
                }
            }
            its_rows().for_each(|row| taken[row] = end);
            self.width = self.width.max(end);
        }
        self.values.clear();
        self.values.resize(rows * self.width, 0.0);
    }

    /// `lora_a x` for some rows of a set; `out` has as many rows, all zero.
    fn reduce(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        rows: &Rows<'_, impl Fn(usize) -> u32>,
        out: &mut [f32],
        pairs: &mut Vec<(u32, u32)>,
    ) {
        let Rows { set, range, x, columns, row_of } = rows;
        for place in self.places.iter().filter(|place| place.expert == set.expert) {
            let change = batch.adapters[place.adapter].linear(place.site).expect("it has a place");
            let down = &change.pairs[place.pair].down;
            for (way, rows) in set.by_way(within(&set.applied[place.adapter], range)) {
                pairs.clear();
                let pair = |&row: &u32| (row_of(row as usize), row - range.start as u32);
                pairs.extend(rows.iter().map(pair));
                let (all, out) = (0..down.panels(), &mut out[place.offset..]);
                down.multiply_add(context.isa, way, all, x, *columns, pairs, out, self.width);
            }
        }
    }
}

/// Rows of a set that are taken through `lora_a`.
struct Rows<'a, F: Fn(usize) -> u32> {
    set: &'a RowSet,
    range: Range<usize>,
    /// `(any rows, columns)`
    x: &'a [f32],
    columns: usize,
    /// Where in `x` a row of the set is.
    row_of: F,
}

/// Some rows of a layer, to be multiplied with a set of rows.
struct Part<'a> {
    linear: &'a Linear,
    rows: Range<usize>,
    set: &'a RowSet,
}

/// Ranks fill whole panels.
fn padded_rank(down: &FloatPanels) -> usize {
    down.panels() * PANEL_ROWS
}

/// Rows that one thread prepares together: enough to read an adapter's factors once for several.
const BLOCK: usize = 8;

/// A part of a phase over rows.
struct Block<'a> {
    set: &'a RowSet,
    /// Which of the set's rows.
    range: Range<usize>,
    values: &'a mut [f32],
    residual: &'a mut [f32],
    activations: Vec<ActivationMut<'a>>,
    reduced: &'a mut [f32],
}

/// The first `len` values of a slice, which then begins after them.
fn cut<'a>(slice: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    slice.split_off_mut(..len).expect("as many rows as the sets have")
}

impl Inputs {
    /// Room for `rows` rows of `columns` values, of which the caller may fill `values`.
    pub(crate) fn reset(&mut self, rows: usize, columns: usize) {
        self.columns = columns;
        self.values.resize(rows * columns, 0.0);
    }

    /// Makes all rows ready for the products of `linears`. The rows of `sets` follow each other. Of
    /// a stack of experts, only the rows of sets for one expert are taken through its `lora_a`: see
    /// [`reduce_experts`](Inputs::reduce_experts) for the others.
    ///
    /// `fill` is called for each row first, with its number, its part of `residual` (which may be
    /// empty) and its values.
    pub(crate) fn prepare(
        &mut self,
        context: &Context<'_>,
        batch: &Batch,
        linears: &[&Linear],
        sets: &[RowSet],
        residual: &mut [f32],
        fill: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        let columns = self.columns;
        let rows: usize = sets.iter().map(RowSet::len).sum();
        let rounds = !context.exact && linears.iter().any(|linear| linear.is_quantized());
        self.activations.reset(if rounds { rows } else { 0 }, columns);
        let mut reduced = std::mem::take(&mut self.reduced);
        let is_routed = sets.first().is_none_or(|set| set.is_expert);
        let reducing = linears.iter().copied().filter(|linear| linear.is_stack() == is_routed);
        reduced.place(batch, reducing, sets);
        let mut reduced_values = std::mem::take(&mut reduced.values);

        // By the number of rows alone: how sums are taken must not depend on the threads.
        let step = (rows / 8).clamp(1, BLOCK);
        let residual_columns = residual.len() / rows.max(1);
        let (mut values, mut residual, mut reduced_rest) =
            (&mut self.values[..], residual, &mut reduced_values[..]);
        let mut activations = self.activations.tokens_mut();
        let mut blocks = Vec::with_capacity(rows / step + sets.len());
        for set in sets {
            for start in (0..set.len()).step_by(step) {
                let range = start..set.len().min(start + step);
                blocks.push(Block {
                    values: cut(&mut values, range.len() * columns),
                    residual: cut(&mut residual, range.len() * residual_columns),
                    activations: activations.by_ref().take(range.len()).collect(),
                    reduced: cut(&mut reduced_rest, range.len() * reduced.width),
                    set,
                    range,
                });
            }
        }
        context.pool.for_each(&mut blocks, |thread, block| {
            let scratch = &mut *context.scratch(thread);
            for (i, values) in block.values.chunks_exact_mut(columns).enumerate() {
                let residual = &mut block.residual[i * residual_columns..][..residual_columns];
                fill(block.set.first + block.range.start + i, residual, values);
                if let Some(activation) = block.activations.get_mut(i) {
                    activation.quantize(context.isa, values);
                }
            }
            let start = block.range.start;
            let row_of = |row: usize| (row - start) as u32;
            let (set, range, x) = (block.set, block.range.clone(), &*block.values);
            let rows = Rows { set, range, x, columns, row_of };
            reduced.reduce(context, batch, &rows, block.reduced, &mut scratch.pairs);
        });
        drop(blocks);
        drop(activations);
        reduced.values = reduced_values;
        self.reduced = reduced;
    }

    /// Takes rows that are prepared already through the `lora_a` of a stack of experts: which of
    /// them a row meets was not known before.
    pub(crate) fn reduce_experts(
        &mut self,
        context: &Context<'_>,
        batch: &Batch,
        linears: &[&Linear],
        sets: &[RowSet],
    ) {
        let columns = self.columns;
        let mut reduced = std::mem::take(&mut self.reduced);
        reduced.place(batch, linears.iter().copied(), sets);
        if reduced.width > 0 {
            let mut out = std::mem::take(&mut reduced.values);
            let mut rest = &mut out[..];
            let mut parts: Vec<(&RowSet, &mut [f32])> =
                sets.iter().map(|set| (set, cut(&mut rest, set.len() * reduced.width))).collect();
            let x = &self.values;
            context.pool.for_each(&mut parts, |thread, (set, out)| {
                let pairs = &mut context.scratch(thread).pairs;
                let row_of = |row: usize| set.inputs[row];
                let rows = Rows { set, range: 0..set.len(), x, columns, row_of };
                reduced.reduce(context, batch, &rows, out, pairs);
            });
            reduced.values = out;
        }
        self.reduced = reduced;
    }

    /// `out[row] = W x + bias` with all that adapters add, each set with its expert; for one or more
    /// layers side by side, whose outputs follow each other in rows of `out`.
    pub(crate) fn multiply(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        linears: &[&Linear],
        sets: &[RowSet],
        out: &mut [f32],
    ) {
        let chunk = chunk(context, linears.iter().map(|linear| linear.rows).sum(), sets);
        let mut columns: Vec<(&Linear, Range<usize>)> = Vec::new();
        for &linear in linears {
            columns.extend(chunks(linear.rows, chunk).map(|rows| (linear, rows)));
        }
        for_each_tile(context, &columns, sets, out, |set, (linear, rows), tile, scratch| {
            let mut out = std::mem::take(&mut scratch.out);
            let part = Part { linear, rows: rows.clone(), set };
            self.product(context, batch, part, scratch, &mut out);
            tile.fill(&out);
            scratch.out = out;
        });
    }

    /// `out[row] = activation(gate x) * (up x)`, for all sets; `gate_up` has both layers, or one
    /// with gate's rows before up's.
    pub(crate) fn multiply_gated(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        gate_up: &[&Linear],
        sets: &[RowSet],
        activation: Activation,
        out: &mut [f32],
    ) {
        let (gate, up, inner, up_start) = match *gate_up {
            [gate, up] => (gate, up, gate.rows, 0),
            _ => (gate_up[0], gate_up[0], gate_up[0].rows / 2, gate_up[0].rows / 2),
        };
        let chunk = chunk(context, 2 * inner, sets);
        let columns: Vec<((), Range<usize>)> =
            chunks(inner, chunk).map(|rows| ((), rows)).collect();
        for_each_tile(context, &columns, sets, out, |set, ((), rows), tile, scratch| {
            let (mut gated, mut upped) =
                (std::mem::take(&mut scratch.out), std::mem::take(&mut scratch.second));
            let up_rows = up_start + rows.start..up_start + rows.end;
            let gate_part = Part { linear: gate, rows: rows.clone(), set };
            self.product(context, batch, gate_part, scratch, &mut gated);
            let up_part = Part { linear: up, rows: up_rows, set };
            self.product(context, batch, up_part, scratch, &mut upped);
            match activation {
                Activation::Silu => vector::silu_mul(context.isa, &mut gated, &upped),
                Activation::Gelu => vector::gelu_mul(context.isa, &mut gated, &upped),
            }
            tile.fill(&gated);
            (scratch.out, scratch.second) = (gated, upped);
        });
    }

    /// The products of some rows of a layer: `(rows of the set, rows of the layer)`.
    fn product(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        part: Part<'_>,
        scratch: &mut Scratch,
        out: &mut Vec<f32>,
    ) {
        let Part { linear, rows, set } = part;
        // Panels of changes begin at multiples of their size: half a fused layer may not.
        let lead = rows.start % PANEL_ROWS;
        let rows = rows.start - lead..rows.end;
        // Of the stack, the rows of this expert.
        let start = set.expert * linear.rows;
        let weights = linear.tensor.rows_bytes(start + rows.start..start + rows.end);
        out.clear();
        out.resize(set.len() * rows.len(), 0.0);
        let (isa, ty) = (context.isa, linear.tensor.ty);
        let part = Part { linear, rows: rows.clone(), set };
        let its_pairs = self.pairs_of(batch, &part);
        let its_pairs = its_pairs.filter(|(place, _)| !set.applied[place.adapter].is_empty());
        let next: Vec<&[u8]> = its_pairs
            .map(|(_, pair)| pair.up.bytes_of(panels_in(&pair.up, pair.first_row, &rows)))
            .collect();
        let product = &mut scratch.product;
        for (run, way) in &set.runs {
            let inputs = &set.inputs[run.clone()];
            let out = &mut out[run.start * rows.len()..run.end * rows.len()];
            if context.exact || !linear.is_quantized() {
                let (x, columns) = (&self.values, self.columns);
                product::multiply_exact(isa, ty, weights, columns, x, inputs, out, product)
            } else {
                let x = &self.activations;
                product::multiply(isa, *way, ty, weights, x, inputs, out, product, &next)
            }
            .expect("the model's tensors were checked when it was opened");
        }
        self.add_changes(context, batch, &part, scratch, out);
        if let Some(bias) = &linear.bias {
            for out in out.chunks_exact_mut(rows.len()) {
                out.iter_mut().zip(&bias[rows.clone()]).for_each(|(out, bias)| *out += bias);
            }
        }
        if lead > 0 {
            for row in 0..set.len() {
                let first = row * rows.len() + lead;
                out.copy_within(first..(row + 1) * rows.len(), row * (rows.len() - lead));
            }
            out.truncate(set.len() * (rows.len() - lead));
        }
    }

    /// What adapters have for the weights of a part, and where their reduced inputs lie.
    fn pairs_of<'a>(
        &'a self,
        batch: &'a Batch,
        part: &Part<'a>,
    ) -> impl Iterator<Item = (&'a Place, &'a Pair)> {
        let (site, expert) = (part.linear.site, part.set.expert);
        let of_part = move |place: &&Place| (place.site, place.expert) == (site, expert);
        self.reduced.places.iter().filter(of_part).map(move |place| {
            let change = batch.adapters[place.adapter].linear(site).expect("it has a place");
            (place, &change.pairs[place.pair])
        })
    }

    /// What the adapters do to products that are still in the cache.
    fn add_changes(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        part: &Part<'_>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let (isa, Part { linear, rows, set }) = (context.isa, part);
        let width = rows.len();
        let changes = batch.adapters.iter().zip(&set.applied);
        let changes = changes.filter_map(|(adapter, applied)| {
            let change = adapter.linear(linear.site).filter(|_| !applied.is_empty())?;
            Some((change, applied))
        });
        scale_rows(changes.clone(), rows, &mut scratch.factors, out);
        let pairs = &mut scratch.pairs;
        for (place, pair) in self.pairs_of(batch, part) {
            let (x, stride) = (&self.reduced.values[place.offset..], self.reduced.width);
            let panels = panels_in(&pair.up, pair.first_row, rows);
            if panels.is_empty() {
                continue;
            }
            let at = pair.first_row + panels.start * PANEL_ROWS - rows.start;
            for (way, applied) in set.by_way(&set.applied[place.adapter]) {
                pairs.clear();
                pairs.extend(applied.iter().map(|&row| (set.first as u32 + row, row)));
                let (panels, out) = (panels.clone(), &mut out[at..]);
                pair.up.multiply_add(isa, way, panels, x, stride, pairs, out, width);
            }
        }
        for (change, applied) in changes {
            for added in &change.added {
                let (x, stride) = (&self.values, self.columns);
                let panels = panels_in(&added.values, added.first_row, rows);
                if panels.is_empty() {
                    continue;
                }
                let at = added.first_row + panels.start * PANEL_ROWS - rows.start;
                for (way, applied) in set.by_way(applied) {
                    pairs.clear();
                    pairs.extend(applied.iter().map(|&row| (set.inputs[row as usize], row)));
                    let (panels, out) = (panels.clone(), &mut out[at..]);
                    added.values.multiply_add(isa, way, panels, x, stride, pairs, out, width);
                }
            }
            if let Some(bias) = &change.bias {
                for &row in applied {
                    let out = &mut out[row as usize * width..][..width];
                    out.iter_mut().zip(&bias[rows.clone()]).for_each(|(out, bias)| *out += bias);
                }
            }
        }
    }
}

/// The panels of values for a layer's rows from `first_row` on that lie in `rows`.
fn panels_in(values: &FloatPanels, first_row: usize, rows: &Range<usize>) -> Range<usize> {
    let first = rows.start.saturating_sub(first_row) / PANEL_ROWS;
    let end = rows.end.saturating_sub(first_row).div_ceil(PANEL_ROWS).min(values.panels());
    first.min(end)..end
}

/// Multiplies products with what DoRA and replaced rows ask for, before anything is added.
fn scale_rows<'a>(
    changes: impl Iterator<Item = (&'a LinearChange, &'a Vec<u32>)>,
    rows: &Range<usize>,
    factors: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = rows.len();
    factors.clear();
    for (change, applied) in changes {
        let Some(row_change) = &change.row_change else { continue };
        // Several adapters on one row all change the base's product, not each other's.
        factors.resize(out.len(), 1.0);
        for &row in applied {
            let factors = &mut factors[row as usize * width..][..width];
            let changes = &row_change[rows.clone()];
            factors.iter_mut().zip(changes).for_each(|(factor, change)| *factor += change);
        }
    }
    out.iter_mut().zip(factors).for_each(|(out, factor)| *out *= *factor);
}

/// Runs `job` for each set and each part of the columns of `out`: rows of some layer.
fn for_each_tile<L: Sync>(
    context: &Context<'_>,
    columns: &[(L, Range<usize>)],
    sets: &[RowSet],
    out: &mut [f32],
    job: impl Fn(&RowSet, &(L, Range<usize>), &mut Tile<'_>, &mut Scratch) + Sync,
) {
    let widths: Vec<usize> = columns.iter().map(|(_, rows)| rows.len()).collect();
    let bands: Vec<Range<usize>> =
        sets.iter().map(|set| set.first..set.first + set.len()).collect();
    let tiles = tiles(out, widths.iter().sum(), &bands, &widths);
    let places = sets.iter().flat_map(|set| columns.iter().map(move |part| (set, part)));
    let mut parts: Vec<_> = places.zip(tiles).collect();
    context.pool.for_each(&mut parts, |thread, ((set, part), tile)| {
        job(set, part, tile, &mut context.scratch(thread));
    });
}

/// How many rows of a weight a thread takes at a time: whole panels, and enough parts that
/// threads end together.
fn chunk(context: &Context<'_>, rows: usize, sets: &[RowSet]) -> usize {
    /// Products of so many tokens and rows stay in the second cache until they are written.
    const PRODUCTS: usize = 32 * 512;
    let tokens = sets.iter().map(RowSet::len).sum::<usize>() / sets.len().max(1);
    let even = rows / (8 * context.pool.threads());
    even.min(PRODUCTS / tokens.max(1)).clamp(PANEL_ROWS, 256) / PANEL_ROWS * PANEL_ROWS
}

/// `0..len` in parts of `chunk`.
fn chunks(len: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(chunk).map(move |start| start..len.min(start + chunk))
}
