//! Texts through a model, from linear layers to the next, for those who look at what these read, or
//! change the weights of some when those before them are done.

use crate::Error;
use crate::adapter::LoadedAdapter;
use crate::batch::{Batch, RowSet};
use crate::engine::{Engine, Input, STEP, Wanted, embed};
use crate::feed_forward::{self, Routes, route};
use crate::layer::{At, Buffers};
use crate::linear::Inputs;
use crate::model::{FeedForward, Layer, Linear, Model};
use crate::sequence::Sequence;
use polylora_file::Tensor;
use polylora_quant::product::Way;
use std::borrow::Cow;
use std::sync::Arc;

/// Texts that have come to the same linear layers of a model.
///
/// ```text
/// q, k, v -> output -> gate, up -> down -> (the next layer's) q, k, v -> ... -> head
/// ```
#[derive(Clone)]
pub struct Walk {
    /// The engine's, until a weight is replaced.
    model: Arc<Model>,
    batches: Vec<Together>,
    layer: usize,
    stage: Stage,
}

/// What reads next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Attention,
    Output,
    FeedForward,
    Down,
    Head,
    Through,
}

/// Texts that go together.
#[derive(Clone)]
struct Together {
    texts: Vec<Vec<u32>>,
    /// `(tokens, hidden)`
    residual: Vec<f32>,
    /// What the output or down reads; the others read a norm of the residual.
    inputs: Vec<f32>,
}

/// Linear layers that read the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<'a> {
    /// The names of their tensors.
    pub tensors: Vec<&'a str>,
    /// Of a mixture, the expert; else zero.
    pub expert: usize,
    /// `(rows, columns)`
    pub inputs: Cow<'a, [f32]>,
}

impl Walk {
    /// Puts other weights in the place of a linear layer's, of the same shape and any type.
    ///
    /// # Errors
    /// Where there is no such layer, or the shape is another.
    pub fn replace(&mut self, tensor: Tensor) -> Result<(), Error> {
        Arc::make_mut(&mut self.model).weights.replace(tensor)
    }

    /// How many batches the texts go in.
    pub fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Whether the texts are through the model: nothing reads them any more.
    pub fn is_through(&self) -> bool {
        self.stage == Stage::Through
    }

    /// How far it is, from 0 to 1, by what a merge takes for the layers behind.
    pub fn progress(&self) -> f64 {
        let stages = match self.stage {
            Stage::Attention => 0,
            Stage::Output => 1,
            Stage::FeedForward => 2,
            Stage::Down => 3,
            Stage::Head | Stage::Through => 4,
        };
        let costs = self.model.weights.layers.iter().flat_map(costs);
        let behind: usize = costs.clone().take(4 * self.layer + stages).sum();
        behind as f64 / costs.sum::<usize>() as f64
    }

    /// The layer and the stage that come next.
    fn next(&self) -> (usize, Stage) {
        match self.stage {
            Stage::Attention => (self.layer, Stage::Output),
            Stage::Output => (self.layer, Stage::FeedForward),
            Stage::FeedForward => (self.layer, Stage::Down),
            Stage::Down if self.layer + 1 < self.model.layers() => {
                (self.layer + 1, Stage::Attention)
            }
            // A head that is the embedding too is no linear layer of its own.
            Stage::Down if self.model.weights.has_own_head() => (self.layer, Stage::Head),
            Stage::Down | Stage::Head | Stage::Through => (self.layer, Stage::Through),
        }
    }
}

/// What the stages of a layer take beside each other: the products of their weights, and as many of
/// what they read with itself.
fn costs(layer: &Layer) -> [usize; 4] {
    let cost = |linears: &[&Linear]| {
        let weights: usize = linears.iter().map(|linear| linear.rows * linear.columns).sum();
        weights + linears.first().map_or(0, |linear| linear.columns.pow(2))
    };
    let qkv: Vec<&Linear> = layer.qkv.iter().collect();
    let first = feed_forward::first(&layer.feed_forward);
    let down = layer.feed_forward.down();
    [cost(&qkv), cost(&[&layer.attention_output]), cost(&first), cost(&[down])]
}

impl Engine {
    /// The most tokens that a text may have to [walk](Engine::walk).
    pub const WALKED: usize = STEP;

    /// Brings texts to the first layer, each a sequence of its own.
    ///
    /// # Errors
    /// As [`forward`](Engine::forward); and where a text has more tokens than
    /// [`WALKED`](Engine::WALKED).
    pub fn walk(
        &mut self,
        texts: Vec<Vec<u32>>,
        adapters: &[Arc<LoadedAdapter>],
    ) -> Result<Walk, Error> {
        self.walk_through(Arc::clone(self.model()), texts, adapters)
    }

    /// Brings other texts to the first layer of the model that a walk goes through: with the weights
    /// that were replaced.
    ///
    /// # Errors
    /// As [`walk`](Engine::walk).
    pub fn walk_again(
        &mut self,
        walk: &Walk,
        texts: Vec<Vec<u32>>,
        adapters: &[Arc<LoadedAdapter>],
    ) -> Result<Walk, Error> {
        self.walk_through(Arc::clone(&walk.model), texts, adapters)
    }

    fn walk_through(
        &mut self,
        model: Arc<Model>,
        texts: Vec<Vec<u32>>,
        adapters: &[Arc<LoadedAdapter>],
    ) -> Result<Walk, Error> {
        let mut batches: Vec<Together> = Vec::new();
        let mut room = 0;
        for text in texts {
            let (mut sequence, logits, way) = (self.sequence(STEP), Wanted::None, Way::Many);
            let (sequence, tokens) = (&mut sequence, &text[..]);
            self.check(&Input { sequence, tokens, adapters, logits, way })?;
            if text.len() > room {
                let (residual, inputs) = (Vec::new(), Vec::new());
                batches.push(Together { texts: Vec::new(), residual, inputs });
                room = STEP;
            }
            room -= text.len();
            batches.last_mut().expect("one was pushed").texts.push(text);
        }
        for together in &mut batches {
            let batch = together.batch(adapters);
            together.residual.resize(batch.len() * model.description.hidden, 0.0);
            let (at, _) = self.begin(&model);
            embed(&at.context, &model, &batch, &mut together.residual);
        }
        Ok(Walk { model, batches, layer: 0, stage: Stage::Attention })
    }

    /// Shows what a batch of the texts brings to the linear layers that read next, in their order.
    ///
    /// # Panics
    /// Where there is no such batch.
    pub fn show_groups(
        &mut self,
        walk: &mut Walk,
        batch: usize,
        adapters: &[Arc<LoadedAdapter>],
        see: &mut dyn FnMut(Group<'_>),
    ) {
        let mut batches = std::mem::take(&mut walk.batches);
        let together = &mut batches[batch];
        let batch = together.batch(adapters);
        let (at, buffers) = self.enter(walk);
        together.swap(walk.stage, buffers);
        let all = [batch.all_rows()];
        match walk.stage {
            Stage::Attention => {
                buffers.norm_attention(&at, &batch, None);
                show(&at.qkv(), &buffers.normed, &all, see);
            }
            Stage::Output => {
                buffers.attended.reset(batch.len(), at.model.description.queries());
                show(&[&at.layer().attention_output], &buffers.attended, &all, see);
            }
            Stage::FeedForward => {
                buffers.norm_feed_forward(&at, &batch, None);
                match &at.layer().feed_forward {
                    FeedForward::Dense { gate_up, .. } => {
                        let gate_up: Vec<&Linear> = gate_up.iter().collect();
                        show(&gate_up, &buffers.normed, &all, see);
                    }
                    FeedForward::Mixture { router, gate, up, .. } => {
                        let experts = at.experts();
                        let routes = route(&at.context, &batch, experts, router, &buffers.normed);
                        show(&[router], &buffers.normed, &all, see);
                        show(&[gate, up], &buffers.normed, &routes.into, see);
                    }
                }
            }
            Stage::Down => {
                let down = at.layer().feed_forward.down();
                match buffers.routes(&at, &batch) {
                    None => show(&[down], &buffers.inner, &all, see),
                    Some(routes) => show(&[down], &buffers.inner, &routes.between, see),
                }
            }
            Stage::Head => {
                let (weights, head) = (&at.model.weights, at.model.weights.head());
                let norm = &weights.output_norm;
                buffers.norm(&at.context, at.model, &batch, None, norm, &[]);
                show(&[head], &buffers.normed, &all, see);
            }
            Stage::Through => {}
        }
        together.swap(walk.stage, buffers);
        walk.batches = batches;
    }

    /// Takes the texts through the linear layers that read next.
    pub fn advance_walk(&mut self, walk: &mut Walk, adapters: &[Arc<LoadedAdapter>]) {
        let mut batches = std::mem::take(&mut walk.batches);
        let next = walk.next();
        // Of one batch after the other: no layer reads what an earlier one remembered.
        let mut sequences: Vec<Sequence> = Vec::new();
        for together in &mut batches {
            let batch = together.batch(adapters);
            sequences
                .resize_with(sequences.len().max(together.texts.len()), || self.sequence(STEP));
            let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
            sequences.truncate(together.texts.len());
            if walk.stage == Stage::Attention {
                for (sequence, text) in sequences.iter_mut().zip(&together.texts) {
                    sequence.restart(text.len());
                }
                self.extend_ropes(&batch, &sequences);
            }
            let (at, buffers) = self.enter(walk);
            together.swap(walk.stage, buffers);
            let layer = at.layer();
            match walk.stage {
                Stage::Attention => {
                    buffers.norm_attention(&at, &batch, None);
                    buffers.remember(&at, &batch, &mut sequences);
                    buffers.look(&at, &batch, &mut sequences);
                }
                Stage::Output => {
                    buffers.attended.reset(batch.len(), at.model.description.queries());
                    buffers.output(&at, &batch);
                    let post_norm = layer.attention_post_norm.as_ref();
                    buffers.norm_feed_forward(&at, &batch, Some(post_norm));
                }
                Stage::FeedForward => {
                    buffers.norm_feed_forward(&at, &batch, None);
                    buffers.gate_up(&at, &batch);
                }
                Stage::Down => {
                    let routes = buffers.routes(&at, &batch);
                    buffers.down(&at, &batch, routes.as_ref());
                    // The norm is of no use here; what it is taken of is.
                    let (norm, pending) = (&layer.attention_norm, &layer.feed_forward_post_norm);
                    let pending = Some(pending.as_ref());
                    buffers.norm(&at.context, at.model, &batch, pending, norm, &[]);
                }
                Stage::Head | Stage::Through => {}
            }
            together.swap(next.1, buffers);
        }
        walk.batches = batches;
        (walk.layer, walk.stage) = next;
    }

    /// What the model makes of a batch of texts that are through it: logits, `(tokens, vocabulary)`.
    ///
    /// # Panics
    /// Where there is no such batch, or the texts have not come so far.
    pub fn walked_logits(
        &mut self,
        walk: &Walk,
        batch: usize,
        adapters: &[Arc<LoadedAdapter>],
    ) -> Vec<f32> {
        assert!(walk.is_through(), "the texts are through the model");
        let together = &walk.batches[batch];
        let batch = together.batch(adapters);
        let (at, buffers) = self.enter(walk);
        buffers.residual.clone_from(&together.residual);
        let mut logits = Vec::new();
        buffers.logits(&at, &batch, None, &mut logits);
        logits
    }

    /// The layer that a walk has come to.
    fn enter<'a>(&'a mut self, walk: &'a Walk) -> (At<'a>, &'a mut Buffers) {
        let (at, buffers) = self.begin(&walk.model);
        (At { number: walk.layer, ..at }, buffers)
    }
}

impl Buffers {
    /// Which rows went to which expert, where there are any; and room for what down reads.
    fn routes(&mut self, at: &At<'_>, batch: &Batch) -> Option<Routes> {
        let routes = match &at.layer().feed_forward {
            FeedForward::Dense { .. } => None,
            FeedForward::Mixture { router, .. } => {
                self.norm_feed_forward(at, batch, None);
                Some(route(&at.context, batch, at.experts(), router, &self.normed))
            }
        };
        let down = at.layer().feed_forward.down();
        let rows = routes.as_ref().map_or(batch.len(), |routes| routes.slots);
        self.inner.reset(rows, down.columns);
        routes
    }
}

impl Together {
    fn batch(&self, adapters: &[Arc<LoadedAdapter>]) -> Batch {
        let mut batch = Batch::new(adapters.iter());
        for text in &self.texts {
            batch.push(text, 0, false, Way::Many, adapters);
        }
        batch
    }

    /// Puts it where a stage reads it, or takes it back from there.
    fn swap(&mut self, stage: Stage, buffers: &mut Buffers) {
        std::mem::swap(&mut self.residual, &mut buffers.residual);
        match stage {
            Stage::Output => std::mem::swap(&mut self.inputs, &mut buffers.attended.values),
            Stage::Down => std::mem::swap(&mut self.inputs, &mut buffers.inner.values),
            Stage::Attention | Stage::FeedForward | Stage::Head | Stage::Through => {}
        }
    }
}

fn show(linears: &[&Linear], inputs: &Inputs, sets: &[RowSet], see: &mut dyn FnMut(Group<'_>)) {
    for set in sets {
        let tensors = linears.iter().map(|linear| &linear.tensor.name[..]).collect();
        see(Group { tensors, expert: set.expert, inputs: inputs.of(set) });
    }
}
