//! A model ready to run, as the commands that run one share it.

use super::{WrongUse, fetch, open_model};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, count, size};
use anyhow::{Context, Result};
use polylora_adapter::{AdapterSpec, OnMismatch};
use polylora_engine::{Engine, EngineOptions, LoadedAdapter, Model, Sequence, Tokenizer};
use polylora_file::Gguf;
use polylora_quant::GgmlType;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// How to run a model.
#[derive(clap::Args)]
pub(super) struct EngineArgs {
    /// Threads to work on [default: one on each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Compute in single precision from weights dequantized exactly: slow, to check the fast way
    #[arg(long)]
    exact: bool,
    /// What keys and values are kept in
    #[arg(long, value_name = "f16|q8_0|f32", default_value = "f16", value_parser = kv_type)]
    kv_type: GgmlType,
}

impl Default for EngineArgs {
    fn default() -> EngineArgs {
        let EngineOptions { threads, exact, kv_type } = EngineOptions::default();
        EngineArgs { threads, exact, kv_type }
    }
}

fn kv_type(text: &str) -> Result<GgmlType, String> {
    let found = text.parse().ok();
    let kept = |ty: &GgmlType| ["F16", "Q8_0", "F32"].contains(&ty.name());
    found.filter(kept).ok_or_else(|| "it is f16, q8_0 or f32".to_owned())
}

/// A model with its threads.
pub(super) struct Loaded {
    pub(super) source: Source,
    pub(super) gguf: Gguf,
    pub(super) engine: Engine,
}

/// An adapter with the name and scale that the user gave it.
pub(super) struct Named {
    pub(super) spec: AdapterSpec,
    pub(super) adapter: Arc<LoadedAdapter>,
}

impl Loaded {
    pub(super) fn open(source: &Source, args: &EngineArgs) -> Result<Loaded> {
        let gguf = open_model(source)?;
        let model = Model::open(&gguf).with_context(|| format!("cannot run {source}"))?;
        let options =
            EngineOptions { threads: args.threads, exact: args.exact, kv_type: args.kv_type };
        let engine = Engine::new(Arc::new(model), &options)
            .with_context(|| format!("cannot run {source}"))?;
        Ok(Loaded { source: source.clone(), gguf, engine })
    }

    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(&self.gguf)
            .with_context(|| format!("cannot read the vocabulary of {}", self.source))
    }

    pub(super) fn adapter(&self, spec: &AdapterSpec) -> Result<Named> {
        let read = polylora_adapter::load(spec, &self.gguf, OnMismatch::Fail)?;
        let adapter = self.engine.load_adapter(&read);
        let adapter =
            adapter.with_context(|| format!("cannot run with {}", spec.path.display()))?;
        Ok(Named { spec: spec.clone(), adapter })
    }

    pub(super) fn adapters(&self, sources: &[AdapterSource]) -> Result<Vec<Named>> {
        fetch(sources)?.iter().map(|spec| self.adapter(spec)).collect()
    }

    /// An empty sequence of `context` tokens; says so where that is more than the model knows.
    pub(super) fn sequence(&self, context: usize) -> Sequence {
        let known = self.engine.model().context_length();
        if context > known {
            let model = &self.source;
            terminal::tell(&format!(
                "note: {model} was made for {known} tokens, not {context}: expect nonsense beyond\n"
            ));
        }
        self.engine.sequence(context)
    }

    /// `model.gguf: llama, 134.5 M parameters, 94.3 MiB`
    pub(super) fn describe(&self) -> String {
        let tensors = self.gguf.tensors();
        let parameters: usize = tensors.iter().map(|tensor| tensor.elements()).sum();
        let bytes: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        format!(
            "{}: {}, {} parameters, {}",
            self.source,
            self.engine.model().architecture(),
            count(parameters as u64),
            size(bytes as u64)
        )
    }
}

impl Named {
    /// `shout`, `shout@0.5`
    pub(super) fn label(&self) -> String {
        match self.spec.scale {
            1.0 => self.spec.name.clone(),
            scale => format!("{}@{scale}", self.spec.name),
        }
    }
}

/// `shout@0.5 + formal`; `none` where there are none.
pub(super) fn labels<'a>(adapters: impl IntoIterator<Item = &'a Named>) -> String {
    let labels: Vec<String> = adapters.into_iter().map(Named::label).collect();
    if labels.is_empty() { "none".to_owned() } else { labels.join(" + ") }
}

/// The adapters as the engine takes them.
pub(super) fn handles(adapters: &[Named]) -> Vec<Arc<LoadedAdapter>> {
    adapters.iter().map(|named| Arc::clone(&named.adapter)).collect()
}

/// A prompt, a text: what a file holds, as text.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes).map_err(|_| not_text(&path.display().to_string()))
}

/// What is piped in, as text.
pub(super) fn read_standard_input() -> Result<String> {
    std::io::read_to_string(std::io::stdin()).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => not_text("standard input"),
        _ => anyhow::Error::new(error).context("cannot read standard input"),
    })
}

fn not_text(what: &str) -> anyhow::Error {
    WrongUse(format!("{what} is not text in UTF-8")).into()
}
