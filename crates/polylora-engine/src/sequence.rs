//! The tokens that were seen, as keys and values of every layer.

use polylora_quant::GgmlType;

/// Positions in a page. Attention takes one at a time, so a page of keys of one head and the same
/// of values fit the first cache.
pub(crate) const PAGE: usize = 64;

/// The keys and values of some tokens: what a model remembers of a text.
///
/// It grows by a page at a time, so memory is taken as it is needed.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) layout: Layout,
    pub(crate) pages: Vec<Page>,
    len: usize,
    context: usize,
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
}

/// `(layer, keys or values, head, position, value)`
#[derive(Debug)]
pub(crate) struct Page(Vec<u8>);

impl Page {
    /// The keys and the values of one head in one layer, position after position.
    pub(crate) fn head(&self, layout: &Layout, layer: usize, head: usize) -> (&[u8], &[u8]) {
        let (keys, values) = self.0[2 * layer * layout.side()..].split_at(layout.side());
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
        let (keys, values) = self.0[start..][..2 * layout.side()].split_at_mut(layout.side());
        keys.chunks_exact_mut(layout.block()).zip(values.chunks_exact_mut(layout.block()))
    }
}

impl Sequence {
    pub(crate) fn new(layout: Layout, context: usize) -> Sequence {
        Sequence { layout, pages: Vec::new(), len: 0, context }
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

    /// Bytes that its keys and values take.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.0.len()).sum()
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Makes room for `more` tokens, which follow at once.
    pub(crate) fn grow(&mut self, more: usize) {
        self.len += more;
        let bytes = 2 * self.layout.layers * self.layout.side();
        self.pages.resize_with(self.len.div_ceil(PAGE), || Page(vec![0; bytes]));
    }
}
