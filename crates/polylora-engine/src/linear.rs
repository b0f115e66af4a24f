//! Linear layers over a batch: quantized weights and low-rank changes in one pass.
//!
//! ```text
//! prepare    x rounded to 8 bits, in a phase over rows
//! multiply   lora_a x, then W x for some rows of W, to which lora_b (lora_a x) is added while they
//!            are in the cache (times the scale that some files have beside W), in one phase: hardly
//!            anybody waits for lora_a x, which is begun first
//! ```

use crate::adapter::{LinearChange, Pair};
use crate::batch::{Batch, RowSet};
use crate::model::{Activation, Linear};
use crate::pool::{Pool, Tile, pause, tiles};
use polylora_quant::Isa;
use polylora_quant::isa::LANES as PANEL_ROWS;
use polylora_quant::product::{self, ActivationMut, Activations, FloatPanels, Way};
use polylora_quant::vector;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock};

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
}

/// `lora_a x` of one pair for some rows of a set: one thread works it out, all read it.
struct Reduced<'a> {
    set: &'a RowSet,
    /// The layer's number.
    site: usize,
    pair: &'a Pair,
    way: Way,
    /// Which rows of the set.
    rows: &'a [u32],
    /// `(rows, padded rank)`
    values: OnceLock<Vec<f32>>,
}

/// Rows that a thread takes through `lora_a` at a time.
const REDUCED: usize = 32;

impl<'a> Reduced<'a> {
    /// Of all pairs that adapters have for `linears`.
    fn all(batch: &'a Batch, linears: &[&Linear], sets: &'a [RowSet]) -> Vec<Reduced<'a>> {
        let mut all = Vec::new();
        for set in sets {
            for (adapter, applied) in batch.adapters.iter().zip(&set.applied) {
                for linear in linears {
                    let Some(change) = adapter.linear(linear.site) else { continue };
                    let its_pairs = change.pairs.iter().filter(|pair| pair.expert == set.expert);
                    for pair in its_pairs {
                        for (way, rows) in set.by_way(applied) {
                            all.extend(rows.chunks(REDUCED).map(|rows| Reduced {
                                set,
                                site: linear.site,
                                pair,
                                way,
                                rows,
                                values: OnceLock::new(),
                            }));
                        }
                    }
                }
            }
        }
        all
    }

    /// From one row of its values to the next: ranks fill whole panels.
    fn stride(&self) -> usize {
        self.pair.down.panels() * PANEL_ROWS
    }

    /// Works it out, from `x` of any rows by `columns`.
    fn reduce(&self, isa: Isa, x: &[f32], columns: usize, pairs: &mut Vec<(u32, u32)>) {
        /// Others wait for the values, even where a panic is on its way.
        struct Given<'a>(&'a OnceLock<Vec<f32>>, Vec<f32>);
        impl Drop for Given<'_> {
            fn drop(&mut self) {
                let _ = self.0.set(std::mem::take(&mut self.1));
            }
        }

        let (down, stride) = (&self.pair.down, self.stride());
        let mut given = Given(&self.values, vec![0.0; self.rows.len() * stride]);
        pairs.clear();
        pairs.extend(
            self.rows.iter().zip(0..).map(|(&row, to)| (self.set.inputs[row as usize], to)),
        );
        let panels = 0..down.panels();
        down.multiply_add(isa, self.way, panels, x, columns, pairs, &mut given.1, stride);
    }

    /// The values; waits for the thread that works them out, which began before this was asked.
    fn values(&self) -> &[f32] {
        let mut spins = 0;
        loop {
            match self.values.get() {
                Some(values) => return values,
                None => pause(&mut spins),
            }
        }
    }

    /// Whether it is for the rows of a part.
    fn is_of(&self, part: &Part<'_>) -> bool {
        self.site == part.linear.site && std::ptr::eq(self.set, part.set)
    }
}

/// Some rows of a layer, to be multiplied with a set of rows.
struct Part<'a> {
    linear: &'a Linear,
    rows: Range<usize>,
    set: &'a RowSet,
}

/// Rows that one thread prepares together.
const BLOCK: usize = 8;

/// A part of a phase over rows.
struct Block<'a> {
    /// The number of its first row.
    first: usize,
    values: &'a mut [f32],
    residual: &'a mut [f32],
    activations: Vec<ActivationMut<'a>>,
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

    /// Makes all `rows` ready for the products of `linears`.
    ///
    /// `fill` is called for each row first, with its number, its part of `residual` (which may be
    /// empty) and its values.
    pub(crate) fn prepare(
        &mut self,
        context: &Context<'_>,
        linears: &[&Linear],
        rows: usize,
        residual: &mut [f32],
        fill: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        let columns = self.columns;
        let rounds = !context.exact && linears.iter().any(|linear| linear.is_quantized());
        self.activations.reset(if rounds { rows } else { 0 }, columns);

        let step = (rows / 8).clamp(1, BLOCK);
        let residual_columns = residual.len() / rows.max(1);
        let (mut values, mut residual) = (&mut self.values[..], residual);
        let mut activations = self.activations.tokens_mut();
        let mut blocks = Vec::with_capacity(rows.div_ceil(step));
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            blocks.push(Block {
                first,
                values: cut(&mut values, count * columns),
                residual: cut(&mut residual, count * residual_columns),
                activations: activations.by_ref().take(count).collect(),
            });
        }
        context.pool.for_each(&mut blocks, |_, block| {
            for (i, values) in block.values.chunks_exact_mut(columns).enumerate() {
                let residual = &mut block.residual[i * residual_columns..][..residual_columns];
                fill(block.first + i, residual, values);
                if let Some(activation) = block.activations.get_mut(i) {
                    activation.quantize(context.isa, values);
                }
            }
        });
    }

    /// The rows of a set, one after the other.
    pub(crate) fn of(&self, set: &RowSet) -> Cow<'_, [f32]> {
        let mut places = set.inputs.iter().zip(0..);
        if places.all(|(&row, place)| row == place) {
            return Cow::Borrowed(&self.values[..set.inputs.len() * self.columns]);
        }
        let mut rows = Vec::with_capacity(set.inputs.len() * self.columns);
        for &row in &set.inputs {
            rows.extend_from_slice(&self.values[row as usize * self.columns..][..self.columns]);
        }
        Cow::Owned(rows)
    }

    /// `out[row] = s W x + bias` with all that adapters add, each set with its expert; for one or
    /// more layers side by side, whose outputs follow each other in rows of `out`.
    pub(crate) fn multiply(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        linears: &[&Linear],
        sets: &[RowSet],
        out: &mut [f32],
    ) {
        let layers: Vec<_> = linears.iter().map(|&linear| (linear, linear.rows)).collect();
        let columns = parts(context, &layers, sets);
        let reduced = Reduced::all(batch, linears, sets);
        self.for_each_tile(context, &reduced, &columns, sets, out, |set, at, tile, scratch| {
            let (linear, rows) = at;
            let mut out = std::mem::take(&mut scratch.out);
            let part = Part { linear, rows: rows.clone(), set };
            self.product(context, batch, &reduced, part, scratch, &mut out);
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
        let columns = parts(context, &[((), inner)], sets);
        let reduced = Reduced::all(batch, gate_up, sets);
        self.for_each_tile(
            context,
            &reduced,
            &columns,
            sets,
            out,
            |set, (_, rows), tile, scratch| {
                let (mut gated, mut upped) =
                    (std::mem::take(&mut scratch.out), std::mem::take(&mut scratch.second));
                let up_rows = up_start + rows.start..up_start + rows.end;
                let gate_part = Part { linear: gate, rows: rows.clone(), set };
                self.product(context, batch, &reduced, gate_part, scratch, &mut gated);
                let up_part = Part { linear: up, rows: up_rows, set };
                self.product(context, batch, &reduced, up_part, scratch, &mut upped);
                match activation {
                    Activation::Silu => vector::silu_mul(context.isa, &mut gated, &upped),
                    Activation::Gelu => vector::gelu_mul(context.isa, &mut gated, &upped),
                }
                tile.fill(&gated);
                (scratch.out, scratch.second) = (gated, upped);
            },
        );
    }

    /// The products of some rows of a layer: `(rows of the set, rows of the layer)`.
    fn product(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        reduced: &[Reduced<'_>],
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
        // What it held is written over.
        out.resize(set.len() * rows.len(), 0.0);
        let (isa, ty) = (context.isa, linear.tensor.ty);
        let part = Part { linear, rows: rows.clone(), set };
        let reduced = || reduced.iter().filter(|reduced| reduced.is_of(&part));
        let next: Vec<&[u8]> = reduced()
            .map(|Reduced { pair, .. }| {
                pair.up.bytes_of(panels_in(&pair.up, pair.first_row, &rows))
            })
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
        if !linear.scales.is_empty() {
            let scale = linear.scales.of_expert(set.expert);
            out.iter_mut().for_each(|out| *out *= scale);
        }
        self.add_changes(context, batch, reduced(), &part, scratch, out);
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

    /// What the adapters do to products that are still in the cache.
    fn add_changes<'a>(
        &self,
        context: &Context<'_>,
        batch: &Batch,
        reduced: impl Iterator<Item = &'a Reduced<'a>>,
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
        for reduced in reduced {
            let pair = reduced.pair;
            let panels = panels_in(&pair.up, pair.first_row, rows);
            if panels.is_empty() {
                continue;
            }
            let at = pair.first_row + panels.start * PANEL_ROWS - rows.start;
            pairs.clear();
            pairs.extend((0..).zip(reduced.rows.iter().copied()));
            let (x, stride, out) = (reduced.values(), reduced.stride(), &mut out[at..]);
            pair.up.multiply_add(isa, reduced.way, panels, x, stride, pairs, out, width);
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

    /// Works out all of `reduced`, and runs `job` for each set and each part of the columns of
    /// `out`: rows of some layer.
    fn for_each_tile<L: Sync>(
        &self,
        context: &Context<'_>,
        reduced: &[Reduced<'_>],
        columns: &[(L, Range<usize>)],
        sets: &[RowSet],
        out: &mut [f32],
        job: impl Fn(&RowSet, &(L, Range<usize>), &mut Tile<'_>, &mut Scratch) + Sync,
    ) {
        enum Step<'a, P> {
            Reduce(&'a Reduced<'a>),
            Multiply(P, Tile<'a>),
        }

        let widths: Vec<usize> = columns.iter().map(|(_, rows)| rows.len()).collect();
        let bands: Vec<Range<usize>> =
            sets.iter().map(|set| set.first..set.first + set.len()).collect();
        let tiles = tiles(out, widths.iter().sum(), &bands, &widths);
        let places = sets.iter().flat_map(|set| columns.iter().map(move |part| (set, part)));
        let multiply = places.zip(tiles).map(|(place, tile)| Step::Multiply(place, tile));
        // What others may wait for is begun first.
        let mut steps: Vec<_> = reduced.iter().map(Step::Reduce).chain(multiply).collect();
        context.pool.for_each(&mut steps, |thread, step| {
            let scratch = &mut *context.scratch(thread);
            match step {
                Step::Reduce(reduced) => {
                    reduced.reduce(context.isa, &self.values, self.columns, &mut scratch.pairs);
                }
                Step::Multiply((set, part), tile) => job(set, part, tile, scratch),
            }
        });
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

/// Rows of weights that threads take one after the other: many at first, for to begin anew costs
/// time, and fewer and fewer, for threads to end together. Whole panels, of all `layers`, which have
/// so many rows.
fn parts<L: Copy>(
    context: &Context<'_>,
    layers: &[(L, usize)],
    sets: &[RowSet],
) -> Vec<(L, Range<usize>)> {
    /// Products of so many tokens and rows stay in the second cache until they are written.
    const PRODUCTS: usize = 64 * 512;
    /// Of what is left, a thread takes its share divided by this.
    const SHARES: usize = 2;
    let tokens = sets.iter().map(RowSet::len).sum::<usize>() / sets.len().max(1);
    let most = (PRODUCTS / tokens.max(1)).clamp(PANEL_ROWS, 1024);
    let mut left: usize = layers.iter().map(|(_, rows)| rows).sum();
    let mut parts = Vec::new();
    for &(layer, rows) in layers {
        let mut start = 0;
        while start < rows {
            let share = left / (SHARES * context.pool.threads());
            let taken = share.clamp(PANEL_ROWS, most) / PANEL_ROWS * PANEL_ROWS;
            let end = rows.min(start + taken);
            parts.push((layer, start..end));
            left -= end - start;
            start = end;
        }
    }
    parts
}
