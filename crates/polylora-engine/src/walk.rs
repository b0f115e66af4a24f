//! Texts through a model, from linear layers to the next, for those who look at what these read, or
//! change the weights of some when those before them are done.

use crate::Error;
use crate::adapter::LoadedAdapter;
use crate::batch::{Batch, RowSet};
use crate::engine::{Engine, Input, STEP, Wanted, embed};
use crate::feed_forward::{self, Routes, route};
use crate::layer::{At, Buffers};
use crate::linear::Inputs;
use crate::model::{FeedForward, Linear, Model};
use crate::sequence::Sequence;
use polylora_file::Tensor;
use polylora_quant::product::Way;
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
pub struct Group {
    /// The names of their tensors.
    pub tensors: Vec<String>,
    /// Of a mixture, the expert; else zero.
    pub expert: usize,
    /// `(rows, columns)`
    pub inputs: Vec<f32>,
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

    /// How far it is, from 0 to 1.
    pub fn progress(&self) -> f64 {
        let stage = match self.stage {
            Stage::Attention => 0,
            Stage::Output => 1,
            Stage::FeedForward => 2,
            Stage::Down => 3,
            Stage::Head | Stage::Through => 4,
        };
        (4 * self.layer + stage) as f64 / (4 * self.model.layers()) as f64
    }
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

    /// What a batch of the texts brings to the linear layers that read next, in their order.
    ///
    /// # Panics
    /// Where there is no such batch.
    pub fn groups(
        &mut self,
        walk: &Walk,
        batch: usize,
        adapters: &[Arc<LoadedAdapter>],
    ) -> Vec<Group> {
        let together = &walk.batches[batch];
        let batch = together.batch(adapters);
        let (at, buffers) = self.enter(walk);
        together.load(walk.stage, buffers);
        let all = [batch.all_rows()];
        match walk.stage {
            Stage::Attention => {
                buffers.norm_attention(&at, &batch, None);
                groups(&at.qkv(), &buffers.normed, &all)
            }
            Stage::Output => {
                buffers.attended.reset(batch.len(), at.model.description.queries());
                groups(&[&at.layer().attention_output], &buffers.attended, &all)
            }
            Stage::FeedForward => {
                buffers.norm_feed_forward(&at, &batch, None);
                let FeedForward::Mixture { router, gate, up, .. } = &at.layer().feed_forward else {
                    let gate_up = feed_forward::first(&at.layer().feed_forward);
                    return groups(&gate_up, &buffers.normed, &all);
                };
                let routes = route(&at.context, &batch, at.experts(), router, &buffers.normed);
                let mut found = groups(&[router], &buffers.normed, &all);
                found.extend(groups(&[gate, up], &buffers.normed, &routes.into));
                found
            }
            Stage::Down => {
                let (FeedForward::Dense { down, .. } | FeedForward::Mixture { down, .. }) =
                    &at.layer().feed_forward;
                match buffers.routes(&at, &batch) {
                    None => groups(&[down], &buffers.inner, &all),
                    Some(routes) => groups(&[down], &buffers.inner, &routes.between),
                }
            }
            Stage::Head => {
                let (weights, head) = (&at.model.weights, at.model.weights.head());
                let norm = &weights.output_norm;
                buffers.norm(&at.context, at.model, &batch, None, norm, &[]);
                groups(&[head], &buffers.normed, &all)
            }
            Stage::Through => Vec::new(),
        }
    }

    /// Takes the texts through the linear layers that read next.
    pub fn advance_walk(&mut self, walk: &mut Walk, adapters: &[Arc<LoadedAdapter>]) {
        let mut batches = std::mem::take(&mut walk.batches);
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
            together.load(walk.stage, buffers);
            let layer = at.layer();
            match walk.stage {
                Stage::Attention => {
                    buffers.norm_attention(&at, &batch, None);
                    buffers.remember(&at, &batch, &mut sequences);
                    buffers.look(&at, &batch, &mut sequences);
                    together.inputs.clone_from(&buffers.attended.values);
                }
                Stage::Output => {
                    buffers.attended.reset(batch.len(), at.model.description.queries());
                    buffers.output(&at, &batch);
                    let post_norm = layer.attention_post_norm.as_ref();
                    buffers.norm_feed_forward(&at, &batch, Some(post_norm));
                    together.residual.clone_from(&buffers.residual);
                }
                Stage::FeedForward => {
                    buffers.norm_feed_forward(&at, &batch, None);
                    buffers.gate_up(&at, &batch);
                    together.inputs.clone_from(&buffers.inner.values);
                }
                Stage::Down => {
                    let routes = buffers.routes(&at, &batch);
                    buffers.down(&at, &batch, routes.as_ref());
                    // The norm is of no use here; what it is taken of is.
                    let (norm, pending) = (&layer.attention_norm, &layer.feed_forward_post_norm);
                    let pending = Some(pending.as_ref());
                    buffers.norm(&at.context, at.model, &batch, pending, norm, &[]);
                    together.residual.clone_from(&buffers.residual);
                }
                Stage::Head | Stage::Through => {}
            }
        }
        walk.batches = batches;
        walk.stage = match walk.stage {
            Stage::Attention => Stage::Output,
            Stage::Output => Stage::FeedForward,
            Stage::FeedForward => Stage::Down,
            Stage::Down if walk.layer + 1 < walk.model.layers() => {
                walk.layer += 1;
                Stage::Attention
            }
            // A head that is the embedding too is no linear layer of its own.
            Stage::Down if walk.model.weights.has_own_head() => Stage::Head,
            Stage::Down | Stage::Head | Stage::Through => Stage::Through,
        };
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
        together.load(walk.stage, buffers);
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
        let (FeedForward::Dense { down, .. } | FeedForward::Mixture { down, .. }) =
            &at.layer().feed_forward;
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

    /// Puts it where its stage reads it.
    fn load(&self, stage: Stage, buffers: &mut Buffers) {
        buffers.residual.clone_from(&self.residual);
        match stage {
            Stage::Output => buffers.attended.values.clone_from(&self.inputs),
            Stage::Down => buffers.inner.values.clone_from(&self.inputs),
            Stage::Attention | Stage::FeedForward | Stage::Head | Stage::Through => {}
        }
    }
}

fn groups(linears: &[&Linear], inputs: &Inputs, sets: &[RowSet]) -> Vec<Group> {
    let tensors: Vec<String> = linears.iter().map(|linear| linear.tensor.name.clone()).collect();
    let group = |set: &RowSet| Group {
        tensors: tensors.clone(),
        expert: set.expert,
        inputs: inputs.of(set),
    };
    sets.iter().map(group).collect()
}
