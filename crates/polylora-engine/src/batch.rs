//! Which rows go through the layers together, and which adapters apply to which.

use crate::adapter::LoadedAdapter;
use std::ops::Range;
use std::sync::Arc;

/// Rows of one step: tokens of one or more sequences.
pub(crate) struct Batch {
    pub(crate) tokens: Vec<u32>,
    /// The place of each row's token in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Whether each row's sequence is a long one; see [`Rope::is_long`](crate::rope::Rope).
    pub(crate) is_long: Vec<bool>,
    /// The rows of each sequence.
    pub(crate) spans: Vec<Range<usize>>,
    /// Adapters that apply to any of the rows.
    pub(crate) adapters: Vec<Arc<LoadedAdapter>>,
    /// Of each row, which of `adapters` apply.
    applied: Vec<Arc<[usize]>>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch {
            tokens: Vec::new(),
            positions: Vec::new(),
            is_long: Vec::new(),
            spans: Vec::new(),
            adapters: Vec::new(),
            applied: Vec::new(),
        }
    }

    /// Adds tokens of a sequence, the first of them at `position`.
    pub(crate) fn push(
        &mut self,
        tokens: &[u32],
        position: usize,
        is_long: bool,
        adapters: &[Arc<LoadedAdapter>],
    ) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..tokens.len()).map(|i| position + i));
        self.is_long.resize(self.tokens.len(), is_long);
        self.spans.push(start..self.tokens.len());
        let numbers = adapters.iter().map(|adapter| {
            let known = self.adapters.iter().position(|other| Arc::ptr_eq(other, adapter));
            known.unwrap_or_else(|| {
                self.adapters.push(Arc::clone(adapter));
                self.adapters.len() - 1
            })
        });
        let applied: Arc<[usize]> = numbers.collect();
        self.applied.resize(self.tokens.len(), applied);
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The adapters of a row, by their numbers.
    pub(crate) fn applied(&self, row: usize) -> &[usize] {
        &self.applied[row]
    }

    /// The adapters of a row.
    pub(crate) fn adapters_of(&self, row: usize) -> impl Iterator<Item = &LoadedAdapter> {
        self.applied[row].iter().map(|&number| &*self.adapters[number])
    }

    /// All rows, as one dense layer takes them.
    pub(crate) fn all_rows(&self) -> RowSet {
        let rows = 0..self.len() as u32;
        RowSet::new(self, None, 0, rows.clone().collect(), rows)
    }

    /// Keeps some rows only, in order; what comes after the last attention needs no others.
    pub(crate) fn keep(&mut self, rows: &[usize]) {
        self.tokens = rows.iter().map(|&row| self.tokens[row]).collect();
        self.positions = rows.iter().map(|&row| self.positions[row]).collect();
        self.is_long = rows.iter().map(|&row| self.is_long[row]).collect();
        self.applied = rows.iter().map(|&row| Arc::clone(&self.applied[row])).collect();
        self.spans.clear();
    }
}

/// Rows that meet one weight: all of a batch, or those that pass one expert.
pub(crate) struct RowSet {
    /// Which of a stack of experts; 0 elsewhere.
    pub(crate) expert: usize,
    /// Whether there are others with other experts.
    pub(crate) is_expert: bool,
    /// The rows of the input, `0..n` for a dense layer.
    pub(crate) inputs: Vec<u32>,
    /// The row of the output of the first; the others follow.
    pub(crate) first: usize,
    /// For each of the batch's adapters, which of `inputs` it applies to, by their places here.
    pub(crate) applied: Vec<Vec<u32>>,
}

impl RowSet {
    /// `inputs[i]` is a row of the input that came from row `rows[i]` of the batch.
    pub(crate) fn new(
        batch: &Batch,
        expert: Option<usize>,
        first: usize,
        inputs: Vec<u32>,
        rows: impl Iterator<Item = u32>,
    ) -> RowSet {
        let mut applied = vec![Vec::new(); batch.adapters.len()];
        for (place, row) in rows.enumerate() {
            for &number in batch.applied(row as usize) {
                applied[number].push(place as u32);
            }
        }
        let is_expert = expert.is_some();
        RowSet { expert: expert.unwrap_or(0), is_expert, inputs, first, applied }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.inputs.len()
    }
}
