//! A layer of a model in stages, each of which begins where linear layers read the same.
//!
//! ```text
//! attention norm | q, k, v, attention | output, norm | gate, up | down
//! ```

use crate::attention::{Attending, norm_weight};
use crate::batch::Batch;
use crate::feed_forward::{self, Routes};
use crate::linear::{Context, Inputs};
use crate::model::{Description, Experts, Layer, Linear, Model, Norm};
use crate::rope::RopeTable;
use crate::sequence::Sequence;
use polylora_quant::vector;

/// What lies between the phases of a step.
#[derive(Default)]
pub(crate) struct Buffers {
    /// `(rows, hidden)`: what goes from layer to layer.
    pub(crate) residual: Vec<f32>,
    /// `(rows, hidden)`: what half a layer adds to it.
    branch: Vec<f32>,
    /// `(rows, queries | keys | values)`
    qkv: Vec<f32>,
    pub(crate) normed: Inputs,
    pub(crate) attended: Inputs,
    pub(crate) inner: Inputs,
}

/// The norm that the branch passes before it is added to the residual, if any; none: there is no
/// branch.
pub(crate) type Pending<'a> = Option<Option<&'a Norm>>;

/// Which layer, and what it is worked out with.
pub(crate) struct At<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) model: &'a Model,
    pub(crate) number: usize,
    pub(crate) ropes: &'a [[RopeTable; 2]; 2],
}

impl At<'_> {
    pub(crate) fn layer(&self) -> &Layer {
        &self.model.weights.layers[self.number]
    }

    pub(crate) fn qkv(&self) -> Vec<&Linear> {
        self.layer().qkv.iter().collect()
    }

    /// # Panics
    /// Where the layer is no mixture.
    pub(crate) fn experts(&self) -> Experts {
        self.model.description.experts.expect("a mixture has experts")
    }

    fn attending<'a>(&'a self, batch: &'a Batch, qkv: &'a [f32]) -> Attending<'a> {
        let (description, number) = (&self.model.description, self.number);
        let ropes = &self.ropes[usize::from(description.window(number).is_some())];
        Attending { description, batch, layer: self.layer(), number, ropes, qkv }
    }
}

impl Buffers {
    /// Adds the branch to the residual; its norm is what q, k and v read.
    pub(crate) fn norm_attention(&mut self, at: &At<'_>, batch: &Batch, pending: Pending<'_>) {
        let norm = &at.layer().attention_norm;
        self.norm(&at.context, at.model, batch, pending, norm, &at.qkv());
    }

    /// q, k and v; the sequences remember keys and values.
    pub(crate) fn remember(&mut self, at: &At<'_>, batch: &Batch, sequences: &mut [&mut Sequence]) {
        let description = &at.model.description;
        self.qkv.resize(batch.len() * (description.queries() + 2 * description.keys()), 0.0);
        let (qkv, rows) = (at.qkv(), [batch.all_rows()]);
        self.normed.multiply(&at.context, batch, &qkv, &rows, &mut self.qkv);
        at.attending(batch, &self.qkv).remember(&at.context, sequences);
    }

    /// What the queries find in the sequences, which the output's layer reads.
    pub(crate) fn look(&mut self, at: &At<'_>, batch: &Batch, sequences: &mut [&mut Sequence]) {
        self.attended.reset(batch.len(), at.model.description.queries());
        let attending = at.attending(batch, &self.qkv);
        attending.look(&at.context, sequences, &mut self.attended.values);
    }

    /// Goes on with these rows alone, in ascending order.
    pub(crate) fn keep(&mut self, at: &At<'_>, batch: &mut Batch, rows: &[usize]) {
        let description = &at.model.description;
        keep_rows(&mut self.attended.values, description.queries(), rows);
        keep_rows(&mut self.residual, description.hidden, rows);
        batch.keep(rows);
        self.attended.reset(batch.len(), description.queries());
    }

    /// The output's layer, which leaves a branch.
    pub(crate) fn output(&mut self, at: &At<'_>, batch: &Batch) {
        let output = [&at.layer().attention_output];
        self.attended.prepare(&at.context, &output, batch.len(), &mut [], |_, _, _| {});
        self.branch.resize(batch.len() * at.model.description.hidden, 0.0);
        let rows = [batch.all_rows()];
        self.attended.multiply(&at.context, batch, &output, &rows, &mut self.branch);
    }

    /// Adds the branch to the residual; its norm is what gate and up read, and the router.
    pub(crate) fn norm_feed_forward(&mut self, at: &At<'_>, batch: &Batch, pending: Pending<'_>) {
        let readers = feed_forward::first(&at.layer().feed_forward);
        let norm = &at.layer().feed_forward_norm;
        self.norm(&at.context, at.model, batch, pending, norm, &readers);
    }

    /// What down reads, and which rows went to which expert, where there are any.
    pub(crate) fn gate_up(&mut self, at: &At<'_>, batch: &Batch) -> Option<Routes> {
        let (description, weights) = (&at.model.description, &at.layer().feed_forward);
        let inputs = [&mut self.normed, &mut self.inner];
        feed_forward::gate_up(&at.context, batch, description, weights, inputs)
    }

    /// The second half's last product, which leaves a branch.
    pub(crate) fn down(&mut self, at: &At<'_>, batch: &Batch, routes: Option<&Routes>) {
        let weights = &at.layer().feed_forward;
        self.branch.resize(batch.len() * at.model.description.hidden, 0.0);
        feed_forward::down(&at.context, batch, weights, routes, &mut self.inner, &mut self.branch);
    }

    /// Appends what comes after the last layer: logits, `(rows, vocabulary)`.
    pub(crate) fn logits(
        &mut self,
        at: &At<'_>,
        batch: &Batch,
        pending: Pending<'_>,
        out: &mut Vec<f32>,
    ) {
        let (description, weights) = (&at.model.description, &at.model.weights);
        let head = [weights.head()];
        self.norm(&at.context, at.model, batch, pending, &weights.output_norm, &head);
        let start = out.len();
        out.resize(start + batch.len() * head[0].rows, 0.0);
        let logits = &mut out[start..];
        self.normed.multiply(&at.context, batch, &head, &[batch.all_rows()], logits);
        if description.logit_scale != 1.0 {
            logits.iter_mut().for_each(|logit| *logit *= description.logit_scale);
        }
        if let Some(cap) = description.logit_cap {
            vector::soft_cap(at.context.isa, logits, cap);
        }
    }

    /// Adds the branch, where there is one, to the residual, and makes the norm of that ready for
    /// the products of `readers`.
    pub(crate) fn norm(
        &mut self,
        context: &Context<'_>,
        model: &Model,
        batch: &Batch,
        pending: Pending<'_>,
        norm: &Norm,
        readers: &[&Linear],
    ) {
        let &Description { hidden, norm_eps, residual_scale, .. } = &model.description;
        let (isa, branch) = (context.isa, &self.branch);
        self.normed.reset(batch.len(), hidden);
        let fill = |row: usize, residual: &mut [f32], normed: &mut [f32]| {
            if let Some(post_norm) = pending {
                let mut branch = &branch[row * hidden..][..hidden];
                if let Some(post_norm) = post_norm {
                    let weight = norm_weight(post_norm, batch, row);
                    vector::rms_norm(isa, branch, &weight, norm_eps, normed);
                    branch = normed;
                }
                vector::add_scaled(isa, residual, residual_scale, branch);
            }
            vector::rms_norm(isa, residual, &norm_weight(norm, batch, row), norm_eps, normed);
        };
        self.normed.prepare(context, readers, batch.len(), &mut self.residual, fill);
    }
}

/// Moves some rows of a matrix, in ascending order, to its beginning.
fn keep_rows(matrix: &mut Vec<f32>, columns: usize, rows: &[usize]) {
    for (to, &from) in rows.iter().enumerate() {
        matrix.copy_within(from * columns..(from + 1) * columns, to * columns);
    }
    matrix.truncate(rows.len() * columns);
}
