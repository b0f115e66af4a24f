//! A model that runs.

use crate::answer::{Answer, Completion, Stream, finish};
use crate::arrays::array;
use crate::error::{OrRaise, Raised};
use crate::options::Options;
use crate::prompt::{Prompt, Prompts};
use crate::specs::spec;
use numpy::PyArrayDyn;
use polylora_adapter::{AdapterSpec, OnMismatch};
use polylora_engine::{
    ChatError, ChatTemplate, ConstraintError, ConstraintFactory, Engine, EngineOptions, Input,
    LoadedAdapter, Message, Row, Tokenizer, TokenizerError, Wanted, Way,
};
use polylora_file::Gguf;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::collections::HashMap;
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// What a model and its streams share.
pub(crate) struct Shared {
    path: PathBuf,
    gguf: Gguf,
    engine: Mutex<Engine>,
    model: Arc<polylora_engine::Model>,
    /// A model without a vocabulary or template that can be used still gives logits.
    tokenizer: Result<Tokenizer, TokenizerError>,
    template: Result<Option<ChatTemplate>, ChatError>,
    /// Made when it is first needed: it takes a while for large vocabularies.
    constraints: OnceLock<Result<ConstraintFactory, ConstraintError>>,
    context: usize,
    /// By path and the bits of the scale.
    adapters: Mutex<HashMap<(PathBuf, u32), Arc<LoadedAdapter>>>,
}

impl Shared {
    /// Only without Python's lock: whoever has the engine may wait for that lock.
    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().expect("no step panicked")
    }

    /// Reads an adapter, and keeps it for those who name it later.
    fn load(&self, spec: &AdapterSpec) -> PyResult<Arc<LoadedAdapter>> {
        let read = polylora_adapter::load(spec, &self.gguf, OnMismatch::Fail).or_raise()?;
        let loaded = self.engine().load_adapter(&read).or_raise()?;
        let mut known = self.adapters.lock().expect("a map does not panic");
        known.insert(Shared::key(spec), Arc::clone(&loaded));
        Ok(loaded)
    }

    fn known(&self, spec: &AdapterSpec) -> Option<Arc<LoadedAdapter>> {
        let known = self.adapters.lock().expect("a map does not panic");
        known.get(&Shared::key(spec)).cloned()
    }

    fn key(spec: &AdapterSpec) -> (PathBuf, u32) {
        let path = spec.path.canonicalize().unwrap_or_else(|_| spec.path.clone());
        (path, spec.scale.to_bits())
    }

    /// An adapter that was loaded, or the name of one, which is loaded once.
    fn adapter(&self, value: &Bound<'_, PyAny>) -> PyResult<Arc<LoadedAdapter>> {
        if let Ok(adapter) = value.cast::<Adapter>() {
            return Ok(Arc::clone(&adapter.get().loaded));
        }
        let spec = spec(value)?;
        match self.known(&spec) {
            Some(adapter) => Ok(adapter),
            None => value.py().detach(|| self.load(&spec)),
        }
    }

    /// Those of one prompt: none, one, or a list that is stacked.
    fn adapters(&self, value: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Arc<LoadedAdapter>>> {
        let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(Vec::new()) };
        match value.cast::<PyList>() {
            Ok(list) => list.iter().map(|item| self.adapter(&item)).collect(),
            Err(_) => Ok(vec![self.adapter(value)?]),
        }
    }

    /// Those of each of `count` prompts: the same for all, or a list with an item for each.
    fn adapters_of_each(
        &self,
        value: Option<&Bound<'_, PyAny>>,
        count: usize,
    ) -> PyResult<Vec<Vec<Arc<LoadedAdapter>>>> {
        let Some(list) = value.and_then(|value| value.cast::<PyList>().ok()) else {
            return Ok(vec![self.adapters(value)?; count]);
        };
        if list.len() != count {
            return Err(PyValueError::new_err(format!(
                "adapter is a list of {} for {count} prompts: give one for each prompt, None or \
                 a list of several where need be",
                list.len()
            )));
        }
        list.iter().map(|item| self.adapters(Some(&item))).collect()
    }

    fn tokenizer(&self) -> PyResult<&Tokenizer> {
        self.tokenizer.as_ref().map_err(Raised::raised)
    }

    fn template(&self) -> PyResult<Option<&ChatTemplate>> {
        self.template.as_ref().map(Option::as_ref).map_err(Raised::raised)
    }

    fn constraints(&self) -> PyResult<&ConstraintFactory> {
        let tokenizer = self.tokenizer()?;
        let made = self.constraints.get_or_init(|| ConstraintFactory::for_tokenizer(tokenizer));
        made.as_ref().map_err(Raised::raised)
    }

    /// The tokens of a prompt, and whether the answer goes on in the midst of its text.
    fn tokens(&self, prompt: Prompt, options: &Options) -> PyResult<(Vec<u32>, bool)> {
        let tokenizer = self.tokenizer()?;
        let model = self.path.display();
        let wrong = |why: String| Err(PyValueError::new_err(why));
        let (template, messages) = match prompt {
            Prompt::Text(text) => {
                let template = if options.raw { None } else { self.template()? };
                let Some(template) = template else {
                    return match (&options.system, options.raw) {
                        (None, _) => Ok((tokenizer.encode(&text, true, true), true)),
                        (Some(_), true) => wrong(
                            "raw leaves the chat template out: there is no place for system".into(),
                        ),
                        (Some(_), false) => wrong(format!(
                            "{model} has no chat template: there is no place for system"
                        )),
                    };
                };
                let system = options.system.as_deref().map(|text| Message::new("system", text));
                (template, system.into_iter().chain([Message::new("user", text)]).collect())
            }
            Prompt::Chat(_) if options.raw => {
                return wrong("raw is for a text: messages need the chat template".into());
            }
            Prompt::Chat(_) if options.system.is_some() => {
                return wrong("system is for a text: put it at the head of the messages".into());
            }
            Prompt::Chat(messages) => match self.template()? {
                Some(template) => (template, messages),
                None => {
                    return wrong(format!(
                        "{model} has no chat template: give a text instead of messages"
                    ));
                }
            },
        };
        Ok((template.prompt(tokenizer, &messages, None).or_raise()?, false))
    }

    /// An answer that is not begun yet.
    fn answer(
        &self,
        prompt: Prompt,
        adapters: Vec<Arc<LoadedAdapter>>,
        options: &Options,
    ) -> PyResult<Answer> {
        let (tokens, continues) = self.tokens(prompt, options)?;
        if tokens.is_empty() {
            return Err(PyValueError::new_err("the prompt is empty: an answer needs something"));
        }
        let constraints = options.has_shape().then(|| self.constraints()).transpose()?;
        let options = options.completion(constraints, continues).or_raise()?;
        let vocabulary = self.model.vocab_size();
        let completion =
            polylora_engine::Completion::new(self.tokenizer()?, vocabulary, &tokens, options)
                .or_raise()?;
        let sequence = self.engine().sequence(self.context);
        let prompt_tokens = tokens.len();
        Ok(Answer { row: Row::new(sequence, tokens, adapters, completion), prompt_tokens })
    }
}

/// A model that runs, with adapters inside its quantized products: no weight is copied for one.
///
/// path: a GGUF model; of a split one, any part.
/// threads: to work on; None for one on each core.
/// exact: compute in single precision from weights dequantized exactly; slow.
/// kv_type: what keys and values are kept in: f16, q8_0 or f32.
/// context: tokens of prompt and answer together; None for as many as the model was made for.
///
/// Wherever an adapter is asked for it may be an Adapter, a path (a PEFT folder or a GGUF LoRA),
/// a text "[NAME=]PATH[@SCALE]", or (path, scale). One named by its path is loaded once.
///
/// Threads may share a model; their steps take turns.
#[pyclass(frozen, module = "polylora")]
pub(crate) struct Model(Arc<Shared>);

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (path, *, threads=None, exact=false, kv_type="f16", context=None))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        threads: Option<NonZeroUsize>,
        exact: bool,
        kv_type: &str,
        context: Option<NonZeroUsize>,
    ) -> PyResult<Model> {
        let options = EngineOptions { threads, exact, kv_type: kv_type.parse().or_raise()? };
        let shared = py.detach(|| -> PyResult<Shared> {
            let gguf = Gguf::open_model(&path).or_raise()?;
            let model = Arc::new(polylora_engine::Model::open(&gguf).or_raise()?);
            let engine = Engine::new(Arc::clone(&model), &options).or_raise()?;
            Ok(Shared {
                engine: Mutex::new(engine),
                tokenizer: Tokenizer::from_gguf(&gguf),
                template: ChatTemplate::from_gguf(&gguf),
                constraints: OnceLock::new(),
                context: context.map_or(model.context_length(), NonZeroUsize::get),
                adapters: Mutex::default(),
                path,
                gguf,
                model,
            })
        })?;
        let (context, known) = (shared.context, shared.model.context_length());
        if context > known {
            let path = shared.path.display();
            let why = format!("{path} was made for {known} tokens, not {context}: expect nonsense");
            let why = CString::new(why).expect("a path has no zero bytes");
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &why, 1)?;
        }
        Ok(Model(Arc::new(shared)))
    }

    /// `general.architecture`.
    #[getter]
    fn architecture(&self) -> &str {
        self.0.model.architecture()
    }

    /// The number of logits.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.model.vocab_size()
    }

    /// The number of tokens that the model was made for.
    #[getter]
    fn context_length(&self) -> usize {
        self.0.model.context_length()
    }

    /// Loads an adapter, also where its path was loaded before: the file may have changed.
    fn load_adapter(&self, adapter: &Bound<'_, PyAny>) -> PyResult<Adapter> {
        let spec = spec(adapter)?;
        let loaded = adapter.py().detach(|| self.0.load(&spec))?;
        Ok(Adapter { path: spec.path, loaded })
    }

    /// Answers a prompt, or a batch of them, and returns a Completion, or a list of them.
    ///
    /// prompt: a text, which is what the user says in a chat; a list of messages, such as
    ///     {"role": "user", "content": "Hi"}; or a list of these: their rows go through the model
    ///     together.
    /// adapter: one, or a list that is stacked. For a batch one for all, or a list with an item for
    ///     each prompt: None, one, or a list that is stacked.
    /// max_tokens: to write at most; otherwise until the model ends, or the context is full.
    /// temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, presence_penalty,
    /// frequency_penalty: as in llama.cpp, whose defaults they have (0.8, 40, 0.95, 0.05, 1, 64, 0,
    ///     0); temperature 0 takes the likeliest token each time.
    /// logit_bias: a dict from token to what is added to its logit; -inf forbids it.
    /// seed: the same one gives the same answer; None for a new one each time.
    /// stop: texts that end the answer before them.
    /// json_schema: a dict or JSON text; the answer is JSON that it allows.
    /// grammar: the answer is what this grammar (Lark, as llguidance reads it) allows.
    /// raw: continue the text as it is, without the chat template. So it is also where the model has
    ///     no template.
    /// system: what the model is told before the text.
    #[pyo3(signature = (prompt, *, adapter=None, **options))]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        adapter: Option<&Bound<'py, PyAny>>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = Options::read(options)?;
        let shared = &*self.0;
        match Prompts::read(prompt)? {
            Prompts::One(prompt) => {
                let adapters = shared.adapters(adapter)?;
                let answer = py.detach(|| shared.answer(prompt, adapters, &options))?;
                let completions = finish(py, shared, vec![answer])?;
                let completion = completions.into_iter().next();
                completion.expect("one answer to one prompt").into_bound_py_any(py)
            }
            Prompts::Several(prompts) => {
                let adapters = shared.adapters_of_each(adapter, prompts.len())?;
                let answers = py.detach(|| {
                    let rows = prompts.into_iter().zip(adapters);
                    let answer = |(prompt, adapters)| shared.answer(prompt, adapters, &options);
                    rows.map(answer).collect::<PyResult<Vec<Answer>>>()
                })?;
                let completions: Vec<Completion> = finish(py, shared, answers)?;
                completions.into_bound_py_any(py)
            }
        }
    }

    /// Answers a prompt piece by piece: an iterator of texts. All else is as for generate.
    #[pyo3(signature = (prompt, *, adapter=None, **options))]
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        adapter: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Stream> {
        let options = Options::read(options)?;
        let Prompts::One(prompt) = Prompts::read(prompt)? else {
            let why = "a stream answers one prompt: make a stream of each, or generate a batch";
            return Err(PyValueError::new_err(why));
        };
        let adapters = self.0.adapters(adapter)?;
        let answer = py.detach(|| self.0.answer(prompt, adapters, &options))?;
        Ok(Stream::new(Arc::clone(&self.0), answer))
    }

    /// The tokens of a text.
    ///
    /// add_special: add the tokens that begin and end a text, where the model wants them.
    /// parse_special: the text of a special token is that token.
    #[pyo3(signature = (text, *, add_special=true, parse_special=true))]
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> PyResult<Vec<u32>> {
        Ok(self.0.tokenizer()?.encode(text, add_special, parse_special))
    }

    /// The text of tokens. Special ones are left out unless render_special is set.
    #[pyo3(signature = (tokens, *, render_special=false))]
    fn detokenize(&self, tokens: &Bound<'_, PyAny>, render_special: bool) -> PyResult<String> {
        Ok(self.0.tokenizer()?.decode(&token_ids(tokens)?, render_special))
    }

    /// What may follow each of these tokens: a float32 array [tokens, vocab_size].
    #[pyo3(signature = (tokens, *, adapter=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
        adapter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let tokens = token_ids(tokens)?;
        let adapters = self.0.adapters(adapter)?;
        let (rows, columns) = (tokens.len(), self.0.model.vocab_size());
        let values = py.detach(|| -> PyResult<Vec<f32>> {
            let mut engine = self.0.engine();
            let mut sequence = engine.sequence(self.0.context);
            let (sequence, logits) = (&mut sequence, Wanted::All);
            let (tokens, adapters) = (&tokens, &adapters);
            let input = Input { sequence, tokens, adapters, logits, way: Way::Many };
            let logits = engine.forward(&mut [input]).or_raise()?;
            Ok((0..logits.len()).flat_map(|row| logits.row(row)).copied().collect())
        })?;
        array(py, values, vec![rows, columns])
    }

    fn __repr__(&self) -> String {
        format!("<polylora.Model {}: {}>", self.0.path.display(), self.architecture())
    }
}

/// Any iterable of numbers: NumPy's arrays are no sequences to Python.
fn token_ids(tokens: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let range = |_| PyValueError::new_err("a token is a number from 0 to 2**32 - 1");
    tokens.try_iter()?.map(|token| token?.extract().map_err(range)).collect()
}

/// An adapter that is ready to run with the model that loaded it.
#[pyclass(frozen, module = "polylora")]
pub(crate) struct Adapter {
    path: PathBuf,
    loaded: Arc<LoadedAdapter>,
}

#[pymethods]
impl Adapter {
    /// What it is called.
    #[getter]
    fn name(&self) -> &str {
        self.loaded.name()
    }

    /// Where it was read from.
    #[getter]
    fn path(&self) -> &PathBuf {
        &self.path
    }

    /// What its own scale was multiplied with.
    #[getter]
    fn scale(&self) -> f32 {
        self.loaded.scale()
    }

    /// SHA-256 of its content: of the GGUF file, or of adapter_config.json and the weights.
    #[getter]
    fn hash(&self) -> &str {
        self.loaded.hash()
    }

    fn __repr__(&self) -> String {
        format!("<polylora.Adapter {} at scale {}>", self.loaded.name(), self.loaded.scale())
    }
}
