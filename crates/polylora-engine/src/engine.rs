//! A batch of rows, each with its own sequence and adapters, through the layers.

use crate::Error;
use crate::adapter::LoadedAdapter;
use crate::batch::Batch;
use crate::layer::{At, Buffers, Pending};
use crate::linear::{Context, Scratch};
use crate::model::Model;
use crate::pool::Pool;
use crate::rope::RopeTable;
use crate::sequence::{Layout, PageCount, Sequence};
use polylora_adapter::Adapter;
use polylora_quant::product::Way;
use polylora_quant::{GgmlType, Isa, dequantize_with};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How to run a model.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Threads to work on; `None` for one on each core.
    pub threads: Option<NonZeroUsize>,
    /// Weights dequantized a row at a time and activations in single precision: slow, and what
    /// the fast way is checked against.
    pub exact: bool,
    /// What keys and values are kept in: F16, F32, Q8_0 or any type that encodes without
    /// importance.
    pub kv_type: GgmlType,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { threads: None, exact: false, kv_type: GgmlType::F16 }
    }
}

/// What of a sequence is to be computed next.
pub struct Input<'a> {
    /// What came before; it grows by `tokens`.
    pub sequence: &'a mut Sequence,
    /// The tokens to add; not empty.
    pub tokens: &'a [u32],
    /// The adapters that apply to these tokens, their scales folded in.
    pub adapters: &'a [Arc<LoadedAdapter>],
    /// For which of the tokens logits are wanted.
    pub logits: Wanted,
    /// How the tokens go through products: a prompt's as many, however few of them there are here,
    /// and those that are written, one at a time, as few. Tokens that go the same way give the same,
    /// to the bit, whatever else is in the batch and however a prompt is cut (but for mixtures of
    /// experts, where the way goes by how many an expert sees).
    pub way: Way,
}

/// Which of an input's tokens need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: more of the prompt follows.
    None,
    /// The last one.
    Last,
    /// All.
    All,
}

/// What becomes of the wanted tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Logits,
    HiddenStates,
}

/// Logits of the wanted tokens, in the order of the inputs.
#[derive(Clone, Debug, Default)]
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.vocabulary).unwrap_or(0)
    }

    /// Whether none were wanted.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What may follow the `i`th wanted token: one number for each of the vocabulary.
    ///
    /// # Panics
    /// Where there are no so many.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.vocabulary..][..self.vocabulary]
    }

    /// As [`row`](Logits::row), to be changed in place.
    ///
    /// # Panics
    /// Where there are no so many.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.values[i * self.vocabulary..][..self.vocabulary]
    }
}

/// Rows that go through the layers together. More would spill what a product reads for each panel
/// of weights out of the second cache; fewer would read the weights more often.
pub(crate) const STEP: usize = 512;

/// A model with threads and memory to run it.
pub struct Engine {
    /// Apart from every other engine of the process.
    id: u64,
    model: Arc<Model>,
    isa: Isa,
    exact: bool,
    layout: Layout,
    pages: PageCount,
    pool: Pool,
    scratch: Vec<Mutex<Scratch>>,
    /// By whether the layer has a window, then by whether the sequence is long.
    ropes: [[RopeTable; 2]; 2],
    buffers: Buffers,
}

/// Makes adapters ready for one engine.
#[derive(Clone, Debug)]
pub struct AdapterLoader {
    model: Arc<Model>,
    engine: u64,
    exact: bool,
}

impl AdapterLoader {
    /// As [`Engine::load_adapter`], on the threads of the rayon pool that it is called in.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`].
    pub fn load(&self, adapter: &Adapter) -> Result<Arc<LoadedAdapter>, Error> {
        LoadedAdapter::new(&self.model, adapter, self.engine, self.exact).map(Arc::new)
    }
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where they cannot be started, or keys and values cannot be kept in the type asked for.
    pub fn new(model: Arc<Model>, options: &EngineOptions) -> Result<Engine, Error> {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        let threads = options.threads.map_or_else(cores, NonZeroUsize::get);
        let pool = Pool::new(threads).map_err(Error::Threads)?;
        let id = ENGINES.fetch_add(1, Ordering::Relaxed);
        let description = &model.description;
        let (ty, head) = (options.kv_type, description.head);
        let fault = |why: &str| Error::KvType { ty, why: why.to_owned() };
        ty.encodes().ok_or_else(|| fault("it cannot be written"))?;
        let row = ty.row_bytes(head).ok_or_else(|| {
            fault(&format!("heads of {head} values are no whole blocks of it; take f16"))
        })?;
        let (layers, heads) = (description.layers, description.heads_kv);
        let local = description.window.as_ref().map_or(&description.rope, |window| &window.rope);
        Ok(Engine {
            id,
            isa: Isa::best(),
            exact: options.exact,
            layout: Layout { layers, heads, head, ty, row, engine: id },
            pages: PageCount::default(),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            pool,
            ropes: [&description.rope, local]
                .map(|rope| [false, true].map(|long| rope.table(long))),
            buffers: Buffers::default(),
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How many threads work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Makes an adapter ready to run with this engine.
    ///
    /// # Errors
    /// Where it changes something that cannot be changed at run time.
    pub fn load_adapter(&self, adapter: &Adapter) -> Result<Arc<LoadedAdapter>, Error> {
        self.adapter_loader().load(adapter)
    }

    /// What makes adapters ready while the engine is busy.
    pub fn adapter_loader(&self) -> AdapterLoader {
        AdapterLoader { model: Arc::clone(&self.model), engine: self.id, exact: self.exact }
    }

    /// An empty sequence with room for `context` tokens.
    pub fn sequence(&self, context: usize) -> Sequence {
        Sequence::new(self.layout, context, self.pages.clone())
    }

    /// Bytes of a page: keys and values of [`PAGE`](crate::PAGE) tokens in all layers.
    pub fn page_bytes(&self) -> usize {
        self.layout.page()
    }

    /// How many pages there are, those that several sequences or a
    /// [`PrefixCache`](crate::PrefixCache) share counted once.
    pub fn pages(&self) -> usize {
        self.pages.get()
    }

    /// Computes all inputs in one batch. A prompt may have any length; long ones are cut into
    /// steps here.
    ///
    /// What a row gives does not depend on its neighbours in the batch: see [`Input::way`].
    ///
    /// # Errors
    /// Where a sequence has no room for its tokens, a token is not one of the vocabulary, or a
    /// sequence or adapter was made by another engine. All sequences are then as they were.
    pub fn forward(&mut self, inputs: &mut [Input<'_>]) -> Result<Logits, Error> {
        let values = self.run(inputs, Output::Logits)?;
        Ok(Logits { values, vocabulary: self.model.vocab_size() })
    }

    /// As [`forward`](Engine::forward), but of the wanted tokens what the head would read: the
    /// normed state after the last layer, `(wanted tokens, hidden)`.
    ///
    /// # Errors
    /// As [`forward`](Engine::forward).
    pub fn hidden_states(&mut self, inputs: &mut [Input<'_>]) -> Result<Vec<f32>, Error> {
        self.run(inputs, Output::HiddenStates)
    }

    fn run(&mut self, inputs: &mut [Input<'_>], output: Output) -> Result<Vec<f32>, Error> {
        inputs.iter().try_for_each(|input| self.check(input))?;
        let mut values = Vec::new();
        // Of each input, how many tokens are done.
        let mut done = vec![0; inputs.len()];
        let mut first = 0;
        while first < inputs.len() {
            let adapters = inputs[first..].iter().flat_map(|input| input.adapters);
            let mut batch = Batch::new(adapters);
            let mut wanted = Vec::new();
            let mut sequences = Vec::new();
            let mut next = first;
            for (input, done) in inputs[first..].iter_mut().zip(&mut done[first..]) {
                let rest = &input.tokens[*done..];
                let taken = rest.len().min(STEP - batch.len());
                if taken == 0 {
                    break;
                }
                let start = batch.len();
                let is_long = self.model.description.rope.is_long(input.sequence.context());
                let position = input.sequence.len();
                batch.push(&rest[..taken], position, is_long, input.way, input.adapters);
                input.sequence.grow(taken);
                sequences.push(&mut *input.sequence);
                *done += taken;
                let is_last = taken == rest.len();
                match input.logits {
                    Wanted::All => wanted.extend(start..start + taken),
                    Wanted::Last if is_last => wanted.push(start + taken - 1),
                    Wanted::Last | Wanted::None => {}
                }
                next += usize::from(is_last);
            }
            self.step(batch, &mut sequences, &wanted, output, &mut values);
            first = next;
        }
        Ok(values)
    }

    pub(crate) fn check(&self, input: &Input<'_>) -> Result<(), Error> {
        let sequence = &*input.sequence;
        if sequence.layout != self.layout {
            return Err(Error::ForeignSequence);
        }
        if let Some(adapter) = input.adapters.iter().find(|adapter| adapter.engine != self.id) {
            return Err(Error::ForeignAdapter(adapter.name().to_owned()));
        }
        let vocabulary = self.model.weights.embedding.rows();
        if let Some(&token) = input.tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        let (used, wanted) = (sequence.len(), input.tokens.len());
        if wanted == 0 {
            return Err(Error::NoTokens);
        }
        if used + wanted > sequence.context() {
            let (context, model) = (sequence.context(), self.model.context_length());
            return Err(Error::ContextFull { context, used, wanted, model });
        }
        Ok(())
    }

    /// Takes a batch through all layers, and the wanted rows to what is asked for.
    fn step(
        &mut self,
        mut batch: Batch,
        sequences: &mut [&mut Sequence],
        wanted: &[usize],
        output: Output,
        out: &mut Vec<f32>,
    ) {
        let model = Arc::clone(&self.model);
        let (description, weights) = (&model.description, &model.weights);
        self.extend_ropes(&batch, sequences);
        let (mut at, buffers) = self.begin(&model);
        buffers.residual.resize(batch.len() * description.hidden, 0.0);
        embed(&at.context, &model, &batch, &mut buffers.residual);

        let mut pending: Pending<'_> = None;
        for (number, layer) in weights.layers.iter().enumerate() {
            at.number = number;
            buffers.norm_attention(&at, &batch, pending);
            buffers.remember(&at, &batch, sequences);
            let is_last = number + 1 == weights.layers.len();
            if is_last && wanted.is_empty() {
                return;
            }
            buffers.look(&at, &batch, sequences);
            if is_last && wanted.len() < batch.len() {
                buffers.keep(&at, &mut batch, wanted);
            }
            buffers.output(&at, &batch);
            buffers.norm_feed_forward(&at, &batch, Some(layer.attention_post_norm.as_ref()));
            let routes = buffers.gate_up(&at, &batch);
            buffers.down(&at, &batch, routes.as_ref());
            pending = Some(layer.feed_forward_post_norm.as_ref());
        }

        if output == Output::Logits {
            buffers.logits(&at, &batch, pending, out);
            return;
        }
        buffers.norm(&at.context, &model, &batch, pending, &weights.output_norm, &[]);
        out.extend_from_slice(&buffers.normed.values);
    }

    /// Makes room for the positions that the sequences have come to.
    pub(crate) fn extend_ropes(&mut self, batch: &Batch, sequences: &[&mut Sequence]) {
        let end = sequences.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
        for (table, is_long) in
            self.ropes.iter_mut().flat_map(|pair| pair.iter_mut().zip([false, true]))
        {
            if batch.is_long.contains(&is_long) {
                table.extend(end);
            }
        }
    }

    /// The first layer of a model of this engine's kind, and what it is worked out in.
    pub(crate) fn begin<'a>(&'a mut self, model: &'a Model) -> (At<'a>, &'a mut Buffers) {
        let context =
            Context { pool: &self.pool, isa: self.isa, exact: self.exact, scratch: &self.scratch };
        (At { context, model, number: 0, ropes: &self.ropes }, &mut self.buffers)
    }
}

/// Cores that this process may use. The second thread of a core would get in the way of the first:
/// they share the units that multiply, and one alone reads as fast as memory gives.
fn cores() -> usize {
    // What the process is held to counts threads of cores.
    let allowed = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    allowed.min(num_cpus::get_physical()).max(1)
}

/// The embeddings of all tokens, changed by their adapters.
pub(crate) fn embed(context: &Context<'_>, model: &Model, batch: &Batch, out: &mut [f32]) {
    let (embedding, scale) = (&model.weights.embedding, model.description.embedding_scale);
    let mut rows: Vec<_> = out.chunks_exact_mut(embedding.columns()).enumerate().collect();
    context.pool.for_each(&mut rows, |_, (row, out)| {
        let token = batch.tokens[*row] as usize;
        dequantize_with(context.isa, embedding.ty, embedding.rows_bytes(token..token + 1), out)
            .expect("the embedding was checked when the model was opened");
        batch.adapters_of(*row).for_each(|adapter| adapter.change_embedding(token, out));
        if scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= scale);
        }
    });
}
