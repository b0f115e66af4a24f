//! Which rows go through the layers together, and which adapters apply to which.

use crate::adapter::LoadedAdapter;
use polylora_quant::product::Way;
use std::ops::Range;
use std::sync::Arc;

/// Rows of one step: tokens of one or more sequences.
pub(crate) struct Batch {
    pub(crate) tokens: Vec<u32>,
    /// The place of each row's token in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Whether each row's sequence is a long one; see [`Rope::is_long`](crate::rope::Rope).
    pub(crate) is_long: Vec<bool>,
    /// How each row goes through products.
    pub(crate) ways: Vec<Way>,
    /// The rows of each sequence.
    pub(crate) spans: Vec<Range<usize>>,
    /// Adapters that apply to any of the rows, in the order in which their changes are added: by
    /// their content, so that it is the same for a row whatever other rows are there.
    pub(crate) adapters: Vec<Arc<LoadedAdapter>>,
    /// Of each row, which of `adapters` apply.
    applied: Vec<Arc<[usize]>>,
}

impl Batch {
    /// An empty one, for rows with any of these adapters.
    pub(crate) fn new<'a>(adapters: impl Iterator<Item = &'a Arc<LoadedAdapter>>) -> Batch {
        let mut all: Vec<Arc<LoadedAdapter>> = Vec::new();
        for adapter in adapters {
            if !all.iter().any(|other| Arc::ptr_eq(other, adapter)) {
                all.push(Arc::clone(adapter));
            }
        }
        all.sort_by(|a, b| {
            let scales = a.scale().total_cmp(&b.scale());
            a.hash().cmp(b.hash()).then(scales)
        });
        Batch {
            tokens: Vec::new(),
            positions: Vec::new(),
            is_long: Vec::new(),
            ways: Vec::new(),
            spans: Vec::new(),
            adapters: all,
            applied: Vec::new(),
        }
    }

    /// Adds tokens of a sequence, the first of them at `position`.
    pub(crate) fn push(
        &mut self,
        tokens: &[u32],
        position: usize,
        is_long: bool,
        way: Way,
        adapters: &[Arc<LoadedAdapter>],
    ) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..tokens.len()).map(|i| position + i));
        self.is_long.resize(self.tokens.len(), is_long);
        self.ways.resize(self.tokens.len(), way);
        self.spans.push(start..self.tokens.len());
        let numbers = adapters.iter().map(|adapter| {
            let number = self.adapters.iter().position(|other| Arc::ptr_eq(other, adapter));
            number.expect("the batch was made for it")
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
        self.ways = rows.iter().map(|&row| self.ways[row]).collect();
        self.applied = rows.iter().map(|&row| Arc::clone(&self.applied[row])).collect();
        self.spans.clear();
    }
}

/// Rows that meet one weight: all of a batch, or those that pass one expert.
pub(crate) struct RowSet {
    /// Which of a stack of experts; 0 elsewhere.
    pub(crate) expert: usize,
    /// The rows of the input, `0..n` for a dense layer.
    pub(crate) inputs: Vec<u32>,
    /// The row of the output of the first; the others follow.
    pub(crate) first: usize,
    /// For each of the batch's adapters, which of `inputs` it applies to, by their places here.
    pub(crate) applied: Vec<Vec<u32>>,
    /// Which of `inputs` go through products in which way: neighbours together.
    pub(crate) runs: Vec<(Range<usize>, Way)>,
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
        let mut runs: Vec<(Range<usize>, Way)> = Vec::new();
        for (place, row) in rows.enumerate() {
            for &number in batch.applied(row as usize) {
                applied[number].push(place as u32);
            }
            let way = batch.ways[row as usize];
            match runs.last_mut() {
                Some((run, last)) if *last == way => run.end += 1,
                _ => runs.push((place..place + 1, way)),
            }
        }
        if expert.is_some() {
            // Of a long prompt an expert sees few tokens, for which panels would be slow.
            runs = vec![(0..inputs.len(), Way::of(inputs.len()))];
        }
        RowSet { expert: expert.unwrap_or(0), inputs, first, applied, runs }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.inputs.len()
    }

    /// The ways that its rows go, with the part of an ascending list of places that goes each.
    pub(crate) fn by_way<'a>(
        &'a self,
        places: &'a [u32],
    ) -> impl Iterator<Item = (Way, &'a [u32])> {
        let parts = self.runs.iter().map(|(run, way)| (*way, within(places, run)));
        parts.filter(|(_, places)| !places.is_empty())
    }
}

/// The part of an ascending list that lies in a range.
fn within<'a>(places: &'a [u32], range: &Range<usize>) -> &'a [u32] {
    let below = |limit: usize| places.partition_point(|&place| (place as usize) < limit);
    &places[below(range.start)..below(range.end)]
}
