//! Attention: keys and values are remembered, then queries look at them.

use crate::batch::Batch;
use crate::linear::Context;
use crate::model::{Description, Layer, Norm};
use crate::pool::tiles;
use crate::rope::RopeTable;
use crate::sequence::{PAGE, Sequence};
use polylora_quant::{attention::Attention, dequantize_with, quantize_with, vector};
use std::borrow::Cow;
use std::ops::Range;

/// What a thread works in.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    attention: Attention,
    /// A page of one head: `(positions, head)`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `(rows, heads of the group, head)`
    queries: Vec<f32>,
    visible: Vec<Range<usize>>,
    normed: Vec<f32>,
}

/// One layer's attention over a batch.
pub(crate) struct Attending<'a> {
    pub(crate) description: &'a Description,
    pub(crate) batch: &'a Batch,
    pub(crate) layer: &'a Layer,
    pub(crate) number: usize,
    /// For sequences that are not long, and for long ones.
    pub(crate) ropes: &'a [RopeTable; 2],
    /// `(rows, queries | keys | values)`
    pub(crate) qkv: &'a [f32],
}

/// A norm's weight for a row, with what its adapters add.
pub(crate) fn norm_weight<'a>(norm: &'a Norm, batch: &Batch, row: usize) -> Cow<'a, [f32]> {
    let mut weight = Cow::Borrowed(&norm.weight[..]);
    for change in batch.adapters_of(row).filter_map(|adapter| adapter.norm(norm.site)) {
        weight.to_mut().iter_mut().zip(change).for_each(|(weight, change)| *weight += change);
    }
    weight
}

/// Rows whose queries look at a page together: many, so that its keys are decoded seldom.
const ROWS: usize = 16;

impl Attending<'_> {
    /// A part of a row of `qkv`.
    fn part(&self, row: usize, start: usize) -> &[f32] {
        let stride = self.description.queries() + 2 * self.description.keys();
        &self.qkv[row * stride + start..][..self.description.head]
    }

    /// Norms and turns a head of queries or keys.
    fn place(
        &self,
        context: &Context<'_>,
        norm: Option<&Norm>,
        row: usize,
        head: &mut [f32],
        normed: &mut Vec<f32>,
    ) {
        if let Some(norm) = norm {
            normed.clear();
            normed.extend_from_slice(head);
            let weight = norm_weight(norm, self.batch, row);
            vector::rms_norm(context.isa, normed, &weight, self.description.norm_eps, head);
        }
        let rope = &self.ropes[usize::from(self.batch.is_long[row])];
        rope.turn(context.isa, self.batch.positions[row], head);
    }

    /// Writes the keys and values of all rows into their sequences.
    pub(crate) fn remember(&self, context: &Context<'_>, sequences: &mut [&mut Sequence]) {
        /// What goes into one head's part of a page.
        struct Part<'a> {
            head: usize,
            rows: Range<usize>,
            ty: polylora_quant::GgmlType,
            keys: &'a mut [u8],
            values: &'a mut [u8],
        }

        let mut parts = Vec::new();
        for (span, sequence) in self.batch.spans.iter().zip(sequences) {
            let layout = sequence.layout;
            let first = self.batch.positions[span.start];
            let end = first + span.len();
            let pages = first / PAGE..end.div_ceil(PAGE);
            for (number, page) in pages.clone().zip(sequence.pages_mut(pages)) {
                let (start, stop) = (first.max(number * PAGE), end.min((number + 1) * PAGE));
                let rows = span.start + start - first..span.start + stop - first;
                let bytes = (start % PAGE) * layout.row..(start % PAGE + rows.len()) * layout.row;
                let heads = page.heads_mut(&layout, self.number).enumerate();
                parts.extend(heads.map(|(head, (keys, values))| Part {
                    head,
                    rows: rows.clone(),
                    ty: layout.ty,
                    keys: &mut keys[bytes.clone()],
                    values: &mut values[bytes.clone()],
                }));
            }
        }
        let (size, queries, keys) =
            (self.description.head, self.description.queries(), self.description.keys());
        context.pool.for_each(&mut parts, |thread, part| {
            let scratch = &mut context.scratch(thread).attention;
            let row_bytes = part.keys.len() / part.rows.len();
            scratch.keys.resize(size, 0.0);
            let rows = part.keys.chunks_exact_mut(row_bytes);
            let rows = rows.zip(part.values.chunks_exact_mut(row_bytes)).zip(part.rows.clone());
            for ((key_bytes, value_bytes), row) in rows {
                let key = &mut scratch.keys;
                key.copy_from_slice(self.part(row, queries + part.head * size));
                let norm = self.layer.key_norm.as_ref();
                self.place(context, norm, row, key, &mut scratch.normed);
                let value = self.part(row, queries + keys + part.head * size);
                for (values, bytes) in [(&key[..], key_bytes), (value, value_bytes)] {
                    quantize_with(context.isa, part.ty, values, None, bytes)
                        .expect("the type was checked when the engine was made");
                }
            }
        });
    }

    /// What the queries find: `(rows, heads, head)`.
    pub(crate) fn look(&self, context: &Context<'_>, sequences: &[&mut Sequence], out: &mut [f32]) {
        let description = self.description;
        let (size, group) = (description.head, description.heads / description.heads_kv);
        let window = description.window(self.number).map(|window| window.tokens);
        let mut bands = Vec::new();
        let mut sequence_of = Vec::new();
        for (span, sequence) in self.batch.spans.iter().zip(sequences) {
            for start in span.clone().step_by(ROWS) {
                bands.push(start..span.end.min(start + ROWS));
                sequence_of.push(&**sequence);
            }
        }
        let widths = vec![group * size; description.heads_kv];
        let mut tiles = tiles(out, description.queries(), &bands, &widths).into_iter();
        let mut parts = Vec::new();
        for (rows, sequence) in bands.iter().zip(sequence_of) {
            let heads = (0..description.heads_kv).zip(&mut tiles);
            parts.extend(heads.map(|(head, tile)| (rows.clone(), sequence, head, tile)));
        }
        context.pool.for_each(&mut parts, |thread, (rows, sequence, head, tile)| {
            let scratch = &mut context.scratch(thread).attention;
            let Scratch { attention, keys, values, queries, visible, normed } = scratch;
            queries.clear();
            for row in rows.clone() {
                for member in 0..group {
                    let start = queries.len();
                    queries.extend_from_slice(self.part(row, (*head * group + member) * size));
                    let query = &mut queries[start..];
                    self.place(context, self.layer.query_norm.as_ref(), row, query, normed);
                    query.iter_mut().for_each(|value| *value *= description.attention_scale);
                }
            }
            attention.reset(rows.len() * group, size);
            // A row sees from the beginning, or of its window, to itself.
            let sees = |row: usize| {
                let position = self.batch.positions[row];
                window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
            };
            let layout = &sequence.layout;
            let pages = sees(rows.start).start / PAGE..sees(rows.end - 1).end.div_ceil(PAGE);
            for number in pages {
                let start = number * PAGE;
                let count = PAGE.min(sequence.len() - start);
                let (key_bytes, value_bytes) =
                    sequence.pages[number].head(layout, self.number, *head);
                for (values, bytes) in [(&mut *keys, key_bytes), (&mut *values, value_bytes)] {
                    values.resize(count * size, 0.0);
                    let bytes = &bytes[..count * layout.row];
                    dequantize_with(context.isa, layout.ty, bytes, values)
                        .expect("a page holds whole rows");
                }
                visible.clear();
                for row in rows.clone() {
                    let sees = sees(row);
                    let here = sees.start.clamp(start, start + count) - start
                        ..sees.end.clamp(start, start + count) - start;
                    visible.extend(std::iter::repeat_n(here, group));
                }
                let cap = description.attention_cap;
                let way = self.batch.ways[rows.start];
                attention.attend(context.isa, way, keys, values, queries, visible, cap);
            }
            attention.finish(context.isa, queries);
            for (row, found) in queries.chunks_exact(group * size).enumerate() {
                tile.row(row).copy_from_slice(found);
            }
        });
    }
}
