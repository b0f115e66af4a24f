//! A model that reads prompts and writes answers, one after another, and remembers what it read.

use super::sampling::Shape;
use crate::cmd::WrongUse;
use crate::cmd::loaded::Loaded;
use crate::terminal::{self, rate};
use anyhow::{Context, Result};
use polylora_engine::{
    ChatTemplate, Completion, CompletionOptions, Finish, Input, LoadedAdapter, Logits, Message,
    SamplingParams, Sequence, Tokenizer, Wanted, Way,
};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of a prompt that are read between two looks at Ctrl-C.
const READ_AT_ONCE: usize = 512;

pub(super) struct Session {
    pub(super) loaded: Loaded,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    sequence: Sequence,
    /// What `sequence` holds.
    tokens: Vec<u32>,
    /// Under which `sequence` was computed.
    adapters: Vec<Arc<LoadedAdapter>>,
}

/// How to answer.
pub(super) struct Asked {
    pub(super) params: SamplingParams,
    pub(super) stop: Vec<String>,
    pub(super) shape: Option<Shape>,
    /// Whether the answer goes on in the middle of the prompt's text: no template comes between.
    pub(super) continues: bool,
    /// Tokens at most; none: as many as fit.
    pub(super) limit: Option<usize>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// The model, the grammar or a stop string ended it.
    Stop,
    /// The limit that was asked for.
    Length,
    ContextFull,
    Interrupted,
}

/// What was written, and how fast.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) end: End,
    /// Tokens of the prompt, and how many of them were still known.
    pub(super) prompt_tokens: usize,
    pub(super) reused_tokens: usize,
    pub(super) prompt_seconds: f64,
    pub(super) answer_tokens: usize,
    pub(super) answer_seconds: f64,
}

impl Session {
    /// `context` tokens; none: as many as the model was made for.
    pub(super) fn new(loaded: Loaded, context: Option<usize>) -> Result<Session> {
        let tokenizer = loaded.tokenizer()?;
        let template = ChatTemplate::from_gguf(&loaded.gguf)
            .with_context(|| format!("cannot use the chat template of {}", loaded.source))?;
        let context = context.unwrap_or(loaded.engine.model().context_length());
        let sequence = loaded.sequence(context);
        let (tokens, adapters) = (Vec::new(), Vec::new());
        Ok(Session { loaded, tokenizer, template, sequence, tokens, adapters })
    }

    /// The tokens of a conversation, up to where the assistant speaks next.
    pub(super) fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.template.as_ref().context("there is no chat template")?;
        template.prompt(&self.tokenizer, messages, None).context("the chat template failed")
    }

    /// Sets the adapters for what follows. What was read under others is forgotten: its keys and
    /// values are theirs.
    pub(super) fn set_adapters(&mut self, adapters: Vec<Arc<LoadedAdapter>>) {
        let same = adapters.len() == self.adapters.len()
            && adapters.iter().zip(&self.adapters).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            self.keep(0);
            self.adapters = adapters;
        }
    }

    fn keep(&mut self, tokens: usize) {
        self.sequence.truncate(tokens);
        self.tokens.truncate(tokens);
    }

    fn forward(&mut self, tokens: &[u32], logits: Wanted, way: Way) -> Result<Logits> {
        let input =
            Input { sequence: &mut self.sequence, tokens, adapters: &self.adapters, logits, way };
        let logits = self.loaded.engine.forward(&mut [input])?;
        self.tokens.extend(tokens);
        Ok(logits)
    }

    /// Reads a prompt, but for the part that is known already. `None` where it was interrupted.
    fn read(&mut self, prompt: &[u32]) -> Result<(usize, Option<Logits>)> {
        let context = self.sequence.context();
        if prompt.is_empty() {
            return Err(WrongUse("the prompt is empty".to_owned()).into());
        }
        if prompt.len() > context {
            anyhow::bail!(
                "the prompt is {} tokens, the context holds {context}: shorten it, or ask for \
                 more with --ctx",
                prompt.len()
            );
        }
        let same = prompt.iter().zip(&self.tokens).take_while(|(a, b)| a == b).count();
        // The last token is read again if need be: its logits are wanted.
        let known = same.min(prompt.len() - 1);
        self.keep(known);
        let (rest, last) =
            prompt[known..].split_at((prompt.len() - known - 1) / READ_AT_ONCE * READ_AT_ONCE);
        for piece in rest.chunks(READ_AT_ONCE) {
            if terminal::interrupted() {
                return Ok((known, None));
            }
            self.forward(piece, Wanted::None, Way::Many)?;
        }
        Ok((known, Some(self.forward(last, Wanted::Last, Way::Many)?)))
    }

    /// Answers a prompt, and hands each piece of text to `write` as soon as it is certain.
    pub(super) fn answer(
        &mut self,
        prompt: &[u32],
        asked: &Asked,
        mut write: impl FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        let vocab_size = self.loaded.engine.model().vocab_size();
        let options = CompletionOptions {
            params: asked.params.clone(),
            stop: asked.stop.clone(),
            constraint: asked.shape.as_ref().map(Shape::constraint).transpose()?,
            continues: asked.continues,
            max_tokens: asked.limit,
            logprobs: None,
        };
        let mut completion = Completion::new(&self.tokenizer, vocab_size, prompt, options)?;

        let start = Instant::now();
        let (known, mut logits) = self.read(prompt)?;
        let prompt_time = start.elapsed();

        let start = Instant::now();
        let mut text = String::new();
        let mut write = |piece: &str| {
            text += piece;
            write(piece)
        };
        let cut_short = loop {
            let Some(row) = &mut logits else { break Some(End::Interrupted) };
            let step = completion.step(row.row_mut(0))?;
            write(&step.text)?;
            let Some(token) = step.token else { break None };
            if terminal::interrupted() {
                break Some(End::Interrupted);
            }
            if self.sequence.len() == self.sequence.context() {
                break Some(End::ContextFull);
            }
            logits = Some(self.forward(&[token], Wanted::Last, Way::Few)?);
        };
        let end = match (cut_short, completion.finished()) {
            (Some(end), _) => end,
            (None, Some(Finish::Length)) => End::Length,
            (None, _) => End::Stop,
        };
        write(&completion.end(Finish::Stop))?;
        Ok(Answer {
            text,
            end,
            prompt_tokens: prompt.len(),
            reused_tokens: known,
            prompt_seconds: prompt_time.as_secs_f64(),
            answer_tokens: completion.tokens(),
            answer_seconds: start.elapsed().as_secs_f64(),
        })
    }

    pub(super) fn context(&self) -> usize {
        self.sequence.context()
    }
}

impl Answer {
    /// What a person wants to know of it.
    pub(super) fn statistics(&self) -> String {
        let read = self.prompt_tokens - self.reused_tokens;
        let reused = match self.reused_tokens {
            0 => String::new(),
            reused => format!(" ({reused} more known)"),
        };
        format!(
            "prompt {read} tokens{reused} in {}, {} tokens/s; answer {} tokens, {} tokens/s",
            terminal::seconds(Duration::from_secs_f64(self.prompt_seconds)),
            rate(read as f64 / self.prompt_seconds),
            self.answer_tokens,
            rate(self.answer_tokens as f64 / self.answer_seconds),
        )
    }
}
