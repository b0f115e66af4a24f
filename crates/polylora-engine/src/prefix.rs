//! What was read already: keys and values of the beginnings of texts, to be shared.

use crate::engine::Engine;
use crate::sequence::{PAGE, Page};
use crate::{LoadedAdapter, Sequence};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Keys and values of texts that were read, page by page, for texts that begin alike.
///
/// A page is found by all that it was computed from: the content and scales of the adapters in
/// their order, and every token up to its end. These are compared themselves, not hashes of them
/// (of an adapter's content it is SHA-256), so what was computed under one adapter is never taken
/// for another's, whatever either is called.
///
/// ```text
/// [shout x 1.0] ── tokens 0..64 ─┬─ tokens 64..128 ── ..
///                                └─ other tokens 64..128
/// [base]        ── tokens 0..64 ── ..
/// ```
///
/// It belongs to one engine, whose sequences alone it is given.
#[derive(Debug, Default)]
pub struct PrefixCache {
    roots: HashMap<Root, Id>,
    nodes: HashMap<Id, Node>,
    /// Nodes after which nothing follows, by when they were last used: the first goes first.
    leaves: BTreeMap<u64, Id>,
    next_id: Id,
    clock: u64,
}

type Id = u64;

/// What all keys and values of a text depend on, besides the tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Root {
    /// Hash of the content and bits of the scale of each.
    adapters: Vec<(String, u32)>,
    /// How many tokens the sequence is to hold: some rotary embeddings depend on it.
    context: usize,
}

#[derive(Debug)]
struct Node {
    up: Up,
    /// None at a root.
    page: Option<Arc<Page>>,
    /// By the tokens of their page.
    next: HashMap<Box<[u32]>, Id>,
    used: u64,
}

/// Where a node hangs.
#[derive(Clone, Debug)]
enum Up {
    Root(Root),
    Page(Id, Box<[u32]>),
}

impl Root {
    fn new(adapters: &[Arc<LoadedAdapter>], context: usize) -> Root {
        let key =
            |adapter: &Arc<LoadedAdapter>| (adapter.hash().to_owned(), adapter.scale().to_bits());
        Root { adapters: adapters.iter().map(key).collect(), context }
    }
}

impl PrefixCache {
    /// An empty one.
    pub fn new() -> PrefixCache {
        PrefixCache::default()
    }

    /// Pages in it.
    pub fn pages(&self) -> usize {
        self.nodes.len() - self.roots.len()
    }

    /// A sequence for `tokens` under `adapters`, which holds as much of their beginning as is
    /// known: whole pages, and never the last token, whose logits are wanted.
    pub fn begin(
        &mut self,
        engine: &Engine,
        context: usize,
        adapters: &[Arc<LoadedAdapter>],
        tokens: &[u32],
    ) -> Sequence {
        let mut sequence = engine.sequence(context);
        let Some(&root) = self.roots.get(&Root::new(adapters, context)) else { return sequence };
        let (mut at, mut pages) = (root, Vec::new());
        let readable = tokens.len().saturating_sub(1);
        for piece in tokens[..readable].chunks_exact(PAGE) {
            let Some(&next) = self.nodes[&at].next.get(piece) else { break };
            pages.extend(self.nodes[&next].page.clone());
            at = next;
        }
        self.touch(at);
        sequence.begin_with(pages);
        sequence
    }

    /// Keeps what `sequence`, which was computed under `adapters`, holds of `tokens`.
    ///
    /// # Panics
    /// Where the sequence holds more tokens than there are.
    pub fn remember(
        &mut self,
        adapters: &[Arc<LoadedAdapter>],
        tokens: &[u32],
        sequence: &Sequence,
    ) {
        assert!(sequence.len() <= tokens.len(), "the sequence holds some of the tokens");
        if sequence.full_pages().is_empty() {
            return;
        }
        let root = Root::new(adapters, sequence.context());
        let mut at = match self.roots.get(&root) {
            Some(&id) => id,
            None => {
                let id = self.add(Up::Root(root.clone()), None);
                self.roots.insert(root, id);
                id
            }
        };
        for (piece, page) in tokens.chunks_exact(PAGE).zip(sequence.full_pages()) {
            at = match self.nodes[&at].next.get(piece) {
                Some(&known) => known,
                None => {
                    let id = self.add(Up::Page(at, piece.into()), Some(Arc::clone(page)));
                    let node = self.nodes.get_mut(&at).expect("it was just walked through");
                    node.next.insert(piece.into(), id);
                    self.leaves.remove(&node.used);
                    id
                }
            };
        }
        self.touch(at);
    }

    /// Forgets what was not used for longest, until `pages` pages are free that were; returns how
    /// many are. Pages that a sequence holds too would not be, and stay.
    pub fn evict(&mut self, pages: usize) -> usize {
        let mut freed = 0;
        // What a leaf hangs on was used later, so it is still ahead when it becomes one.
        let mut after = 0;
        while freed < pages {
            let Some((&used, &leaf)) = self.leaves.range(after..).next() else { break };
            after = used + 1;
            let page = self.nodes[&leaf].page.as_ref();
            if page.is_some_and(|page| Arc::strong_count(page) > 1) {
                continue;
            }
            freed += usize::from(page.is_some());
            self.remove(leaf);
        }
        freed
    }

    fn add(&mut self, up: Up, page: Option<Arc<Page>>) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        self.clock += 1;
        self.nodes.insert(id, Node { up, page, next: HashMap::new(), used: self.clock });
        self.leaves.insert(self.clock, id);
        id
    }

    /// Notes that a node, and so all above it, was used.
    fn touch(&mut self, id: Id) {
        self.clock += 1;
        let node = self.nodes.get_mut(&id).expect("only nodes that are there are used");
        if node.next.is_empty() {
            self.leaves.remove(&node.used);
            self.leaves.insert(self.clock, id);
        }
        // What comes before a page is used whenever it is, so it is at least as young.
        let mut at = id;
        loop {
            let node = self.nodes.get_mut(&at).expect("what a node hangs on is there");
            node.used = self.clock;
            match node.up {
                Up::Page(before, _) => at = before,
                Up::Root(_) => break,
            }
            self.clock += 1;
        }
    }

    /// Removes a leaf.
    fn remove(&mut self, leaf: Id) {
        let node = self.nodes.remove(&leaf).expect("a leaf is a node");
        self.leaves.remove(&node.used);
        match node.up {
            Up::Root(root) => {
                self.roots.remove(&root);
            }
            Up::Page(before, tokens) => {
                let above = self.nodes.get_mut(&before).expect("what a node hangs on is there");
                above.next.remove(&tokens);
                if above.next.is_empty() {
                    self.leaves.insert(above.used, before);
                }
            }
        }
    }
}
