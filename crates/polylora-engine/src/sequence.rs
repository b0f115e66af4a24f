//! The tokens that were seen, as keys and values of every layer.

use polylora_quant::GgmlType;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Positions in a page. Attention takes one at a time, so a page of keys of one head and the same
/// of values fit the first cache.
pub const PAGE: usize = 64;

/// The keys and values of some tokens: what a model remembers of a text.
///
/// It grows by a page at a time, so memory is taken as it is needed. Sequences that begin alike
/// may share pages (see [`PrefixCache`](crate::PrefixCache)); one that is to be written to is
/// copied first.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) layout: Layout,
    pub(crate) pages: Vec<Arc<Page>>,
    len: usize,
    context: usize,
    count: PageCount,
}

/// How many pages of an engine there are, shared ones counted once.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageCount(Arc<AtomicUsize>);

impl PageCount {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where in a page things lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Values of a head.
    pub(crate) head: usize,
    pub(crate) ty: GgmlType,
    /// Bytes of one head's keys (or values) at one position.
    pub(crate) row: usize,
    /// Of the engine: a sequence holds what its model computed.
    pub(crate) engine: u64,
}

impl Layout {
    /// Bytes of one head's keys (or values) in a page.
    pub(crate) fn block(&self) -> usize {
        PAGE * self.row
    }

    /// Bytes of the keys (or values) of all heads of a layer in a page.
    fn side(&self) -> usize {
        self.heads * self.block()
    }

    /// Bytes of a page.
    pub(crate) fn page(&self) -> usize {
        2 * self.layers * self.side()
    }
}

/// `(layer, keys or values, head, position, value)`
#[derive(Debug)]
pub(crate) struct Page {
    bytes: Vec<u8>,
    count: PageCount,
}

impl Clone for Page {
    fn clone(&self) -> Page {
        Page::new(self.bytes.clone(), &self.count)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.count.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Page {
    fn new(bytes: Vec<u8>, count: &PageCount) -> Page {
        count.0.fetch_add(1, Ordering::Relaxed);
        Page { bytes, count: count.clone() }
    }

    /// The keys and the values of one head in one layer, position after position.
    pub(crate) fn head(&self, layout: &Layout, layer: usize, head: usize) -> (&[u8], &[u8]) {
        let (keys, values) = self.bytes[2 * layer * layout.side()..].split_at(layout.side());
        let block = layout.block();
        (&keys[head * block..][..block], &values[head * block..][..block])
    }

    /// The keys and the values of each head in one layer.
    pub(crate) fn heads_mut(
        &mut self,
        layout: &Layout,
        layer: usize,
    ) -> impl Iterator<Item = (&mut [u8], &mut [u8])> {
        let start = 2 * layer * layout.side();
        let (keys, values) = self.bytes[start..][..2 * layout.side()].split_at_mut(layout.side());
        keys.chunks_exact_mut(layout.block()).zip(values.chunks_exact_mut(layout.block()))
    }
}

impl Sequence {
    pub(crate) fn new(layout: Layout, context: usize, count: PageCount) -> Sequence {
        Sequence { layout, pages: Vec::new(), len: 0, context, count }
    }

    /// Begins an empty sequence with pages that are full.
    pub(crate) fn begin_with(&mut self, pages: Vec<Arc<Page>>) {
        self.len = pages.len() * PAGE;
        self.pages = pages;
    }

    /// The pages that are full.
    pub(crate) fn full_pages(&self) -> &[Arc<Page>] {
        &self.pages[..self.len / PAGE]
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes that its keys and values take, shared ones included.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.bytes.len()).sum()
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Begins again with `len` tokens, which follow at once, in the pages that it has.
    pub(crate) fn restart(&mut self, len: usize) {
        self.len = 0;
        self.grow(len);
    }

    /// Makes room for `more` tokens, which follow at once: in pages of its own.
    pub(crate) fn grow(&mut self, more: usize) {
        if let Some(begun) = self.pages.get_mut(self.len / PAGE) {
            Arc::make_mut(begun);
        }
        self.len += more;
        let bytes = self.layout.page();
        let page = || Arc::new(Page::new(vec![0; bytes], &self.count));
        self.pages.resize_with(self.len.div_ceil(PAGE), page);
    }

    /// Pages that the sequence has just grown into, to be written to.
    pub(crate) fn pages_mut(
        &mut self,
        numbers: std::ops::Range<usize>,
    ) -> impl Iterator<Item = &mut Page> {
        let own = |page| Arc::get_mut(page).expect("a page that grows is the sequence's own");
        self.pages[numbers].iter_mut().map(own)
    }
}
