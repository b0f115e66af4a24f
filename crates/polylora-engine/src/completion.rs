//! An answer, token by token: what is chosen, what of it is text, when it ends.

use crate::{
    Constraint, ConstraintError, EmptyStop, Engine, Error, Input, InvalidParams, LoadedAdapter,
    SampleError, Sampler, SamplingParams, Sequence, StopStrings, Tokenizer, Utf8Stream, Wanted,
};
use std::sync::Arc;

/// Tokens of a prompt that a row reads in one step: between steps a caller may look at other
/// things, and stop.
const READ_AT_ONCE: usize = 512;

/// How an answer is to be written.
#[derive(Debug, Default)]
pub struct CompletionOptions {
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// Texts that end the answer before them.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Whether the answer goes on in the middle of the prompt's text, no template between them.
    pub continues: bool,
    /// Tokens to write at most; none: until the model ends, or the context is full.
    pub max_tokens: Option<usize>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model, the constraint or a stop string ended it.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// The sequence has no room for more.
    ContextFull,
}

/// An answer cannot be begun, or not go on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)] // Each is the error of one part, which says what it is.
pub enum CompletionError {
    Params(#[from] InvalidParams),
    Stop(#[from] EmptyStop),
    Constraint(#[from] ConstraintError),
    Sample(#[from] SampleError),
    Engine(#[from] Error),
}

/// The state of one answer: it turns logits into tokens, and tokens into text.
#[derive(Debug)]
pub struct Completion {
    tokenizer: Tokenizer,
    sampler: Sampler,
    constraint: Option<Constraint>,
    stop: StopStrings,
    stream: Utf8Stream,
    max_tokens: Option<usize>,
    tokens: usize,
    finish: Option<Finish>,
}

/// What one step of an answer brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Text that is certain now; may be empty.
    pub text: String,
    /// What the model reads next; none where the answer has ended, and `text` is the last of it.
    pub token: Option<u32>,
}

impl Completion {
    /// An answer to `prompt`, by a model with `vocab_size` logits.
    ///
    /// # Errors
    /// Where the options cannot be meant.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        prompt: &[u32],
        options: CompletionOptions,
    ) -> Result<Completion, CompletionError> {
        let mut sampler = Sampler::new(options.params, vocab_size)?;
        // Penalties look at the prompt too, as llama.cpp's do.
        prompt.iter().for_each(|&token| sampler.accept(token));
        let stream = match options.continues {
            true => tokenizer.stream_continuation(),
            false => tokenizer.stream(),
        };
        Ok(Completion {
            tokenizer: tokenizer.clone(),
            sampler,
            constraint: options.constraint,
            stop: StopStrings::new(options.stop)?,
            stream,
            max_tokens: options.max_tokens,
            tokens: 0,
            finish: None,
        })
    }

    /// Chooses the next token by the logits after the last one, which are left changed.
    ///
    /// # Errors
    /// Where no token can be chosen, or the constraint cannot be followed.
    pub fn step(&mut self, logits: &mut [f32]) -> Result<Step, CompletionError> {
        if self.finish.is_some() || self.is_complete() {
            return Ok(self.ended(String::new()));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        let token = self.sampler.sample(logits)?.token;
        if self.tokenizer.is_end_of_generation(token) {
            self.finish = Some(Finish::Stop);
            return Ok(self.ended(String::new()));
        }
        self.sampler.accept(token);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        self.tokens += 1;
        let pushed = self.stop.push(&self.stream.push(token));
        if pushed.stopped.is_some() {
            self.finish = Some(Finish::Stop);
        }
        if self.finish.is_some() || self.is_complete() {
            return Ok(self.ended(pushed.text));
        }
        Ok(Step { text: pushed.text, token: Some(token) })
    }

    /// Ends the answer here, if it has not ended; returns what was held back, half a character or
    /// the beginning of a stop string.
    pub fn end(&mut self, finish: Finish) -> String {
        self.finish.get_or_insert(finish);
        let rest = self.stop.push(&self.stream.finish()).text;
        rest + &self.stop.finish()
    }

    /// Tokens that were written.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Why the answer ended, if it has.
    pub fn finished(&self) -> Option<Finish> {
        self.finish
    }

    /// Whether the constraint or the limit wants no more.
    fn is_complete(&mut self) -> bool {
        let constrained = self.constraint.as_ref().is_some_and(Constraint::is_finished);
        let full = self.max_tokens.is_some_and(|most| self.tokens >= most);
        if constrained {
            self.finish = Some(Finish::Stop);
        } else if full {
            self.finish = Some(Finish::Length);
        }
        constrained || full
    }

    fn ended(&mut self, text: String) -> Step {
        let rest = self.end(Finish::Stop);
        Step { text: text + &rest, token: None }
    }
}

/// A row of a batch: a sequence with its adapters, and the answer that is written into it.
#[derive(Debug)]
pub struct Row {
    sequence: Sequence,
    adapters: Vec<Arc<LoadedAdapter>>,
    completion: Completion,
    /// What the sequence does not hold yet: the rest of the prompt, or the last token written.
    pending: Vec<u32>,
    text: String,
}

impl Row {
    /// A row whose `sequence` is to read `unread`, the rest of the prompt, before it answers.
    ///
    /// # Panics
    /// Where `unread` is empty: an answer follows from something.
    pub fn new(
        sequence: Sequence,
        unread: Vec<u32>,
        adapters: Vec<Arc<LoadedAdapter>>,
        completion: Completion,
    ) -> Row {
        assert!(!unread.is_empty(), "a row has something to read");
        Row { sequence, adapters, completion, pending: unread, text: String::new() }
    }

    /// The answer, and whether it has ended.
    pub fn completion(&self) -> &Completion {
        &self.completion
    }

    /// Takes the text that was written since this was last asked.
    pub fn take_text(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// How many of the pending tokens the next step reads.
    fn next_read(&self) -> usize {
        self.pending.len().min(READ_AT_ONCE)
    }

    /// Goes on from the logits after all that was pending.
    fn choose(&mut self, logits: &mut [f32]) -> Result<(), CompletionError> {
        let step = self.completion.step(logits)?;
        self.text += &step.text;
        self.pending.extend(step.token);
        if step.token.is_some() && self.sequence.len() == self.sequence.context() {
            self.text += &self.completion.end(Finish::ContextFull);
        }
        Ok(())
    }
}

impl Engine {
    /// Takes every row that has not ended one step further, all in one batch: a piece of its
    /// prompt is read, or a token written.
    ///
    /// # Errors
    /// Where a prompt has no room in its sequence, or a row cannot go on.
    pub fn advance<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a mut Row>,
    ) -> Result<(), CompletionError> {
        let mut rows: Vec<&mut Row> =
            rows.into_iter().filter(|row| row.completion.finish.is_none()).collect();
        let mut inputs = Vec::with_capacity(rows.len());
        for row in &mut rows {
            let count = row.next_read();
            let logits = if count == row.pending.len() { Wanted::Last } else { Wanted::None };
            inputs.push(Input {
                sequence: &mut row.sequence,
                tokens: &row.pending[..count],
                adapters: &row.adapters,
                logits,
            });
        }
        let mut logits = self.forward(&mut inputs)?;
        let mut next = 0;
        for row in rows {
            let count = row.next_read();
            row.pending.drain(..count);
            if row.pending.is_empty() {
                row.choose(logits.row_mut(next))?;
                next += 1;
            }
        }
        Ok(())
    }
}
