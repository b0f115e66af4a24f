//! An answer, token by token: what is chosen, what of it is text, when it ends.

use crate::{
    Constraint, ConstraintError, EmptyStop, Engine, Error, Input, InvalidParams, LoadedAdapter,
    LogProbs, SampleError, Sampler, SamplingParams, Sequence, StopStrings, Tokenizer, Utf8Stream,
    Wanted, Way,
};
use std::sync::Arc;

/// Tokens of a prompt that a row reads in one step, unless it is told otherwise: between steps a
/// caller may look at other things, and stop.
const READ_AT_ONCE: usize = 512;

/// The same where each token's logits are wanted: so many rows of a vocabulary are some megabytes.
const SCORE_AT_ONCE: usize = 64;

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
    /// Of each token how likely the model held it to be, and so many of the likeliest beside it.
    pub logprobs: Option<usize>,
}

/// A token, and how likely the model held it to be before a sampler or a constraint had a say.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens in its place, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Scored {
    fn new(token: u32, logits: &[f32], top: usize) -> Scored {
        let logprobs = LogProbs::new(logits);
        Scored { token, logprob: logprobs.of(token), top: logprobs.top(top) }
    }
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
    logprobs: Option<usize>,
    scored: Vec<Scored>,
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
            logprobs: options.logprobs,
            scored: Vec::new(),
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
        // What the model itself says is gone once constraint and sampler have changed the logits.
        let said = self.logprobs.map(|top| (top, logits.to_vec()));
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        let token = self.sampler.sample(logits)?.token;
        if self.tokenizer.is_end_of_generation(token) {
            self.finish = Some(Finish::Stop);
            return Ok(self.ended(String::new()));
        }
        self.sampler.accept(token);
        self.scored.extend(said.map(|(top, logits)| Scored::new(token, &logits, top)));
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

    /// Takes the scores of the tokens that were written since this was last asked; there are some
    /// where [`CompletionOptions::logprobs`] asks for them.
    pub fn take_scored(&mut self) -> Vec<Scored> {
        std::mem::take(&mut self.scored)
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
    /// Holds the first of `tokens`; the next steps read the others.
    sequence: Sequence,
    /// The prompt, then what was written.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    adapters: Vec<Arc<LoadedAdapter>>,
    completion: Completion,
    /// Tokens to read in one step at most.
    read_at_most: usize,
    /// How what is written goes through products.
    write_as: Way,
    /// How many of the likeliest tokens are wanted beside each of the prompt; none: no scores.
    score_prompt: Option<usize>,
    /// Of the prompt's tokens after the first.
    prompt_scores: Vec<Scored>,
    text: String,
    failure: Option<CompletionError>,
}

impl Row {
    /// A row that answers `prompt`, of which `sequence` may hold a beginning.
    ///
    /// # Panics
    /// Where the sequence leaves nothing to read: an answer follows from something.
    pub fn new(
        sequence: Sequence,
        prompt: Vec<u32>,
        adapters: Vec<Arc<LoadedAdapter>>,
        completion: Completion,
    ) -> Row {
        assert!(sequence.len() < prompt.len(), "a row has something to read");
        Row {
            sequence,
            prompt_tokens: prompt.len(),
            tokens: prompt,
            adapters,
            completion,
            read_at_most: READ_AT_ONCE,
            write_as: Way::Few,
            score_prompt: None,
            prompt_scores: Vec::new(),
            text: String::new(),
            failure: None,
        }
    }

    /// Scores the prompt's tokens too, each with `top` of the likeliest. Only what is read is
    /// scored, so the sequence should be empty.
    pub fn score_prompt(&mut self, top: usize) {
        self.score_prompt = Some(top);
    }

    /// The scores of the prompt's tokens after the first, as far as it was read.
    pub fn prompt_scores(&self) -> &[Scored] {
        &self.prompt_scores
    }

    /// The answer, and whether it has ended.
    pub fn completion(&self) -> &Completion {
        &self.completion
    }

    /// As [`Completion::take_scored`].
    pub fn take_scored(&mut self) -> Vec<Scored> {
        self.completion.take_scored()
    }

    /// Takes the text that was written since this was last asked.
    pub fn take_text(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Whether it takes no more steps: the answer has ended, or cannot go on.
    pub fn is_done(&self) -> bool {
        self.completion.finish.is_some() || self.failure.is_some()
    }

    /// Takes the reason why the answer cannot go on, if it cannot.
    pub fn take_failure(&mut self) -> Option<CompletionError> {
        self.failure.take()
    }

    /// The prompt, and what was written.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What was read of them.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// What applies to it.
    pub fn adapters(&self) -> &[Arc<LoadedAdapter>] {
        &self.adapters
    }

    /// Tokens that were not read yet: of the prompt, or one that was written.
    pub fn unread(&self) -> usize {
        self.tokens.len() - self.sequence.len()
    }

    /// Whether the next step reads, rather than writing a token.
    pub fn is_reading(&self) -> bool {
        self.unread() > 1 || self.sequence.len() < self.prompt_tokens
    }

    /// How many tokens the next steps read at most; with none the row waits.
    pub fn read_at_most(&mut self, tokens: usize) {
        self.read_at_most = tokens;
    }

    /// Says how the tokens that are written go through products: as few, unless this says otherwise,
    /// which is the faster for up to some four rows. An answer is the same, to the bit, beside any
    /// others; not the same both ways.
    pub fn write_as(&mut self, way: Way) {
        self.write_as = way;
    }

    /// Puts another sequence in the place of the row's, which is returned. What it does not hold
    /// of the row's tokens is read again: the answer goes on as if nothing had happened.
    ///
    /// # Panics
    /// Where it leaves nothing to read. It must hold the beginning of the row's tokens.
    pub fn set_sequence(&mut self, sequence: Sequence) -> Sequence {
        assert!(sequence.len() < self.tokens.len(), "a row has something to read");
        std::mem::replace(&mut self.sequence, sequence)
    }

    /// How many tokens the next step reads.
    pub fn next_read(&self) -> usize {
        let most = if self.score_prompt.is_some() { SCORE_AT_ONCE } else { usize::MAX };
        // What was written is read again, where it has to be, as it was written.
        let of_prompt = self.prompt_tokens.saturating_sub(self.sequence.len());
        let alike = if of_prompt > 0 { of_prompt } else { usize::MAX };
        self.unread().min(self.read_at_most).min(most).min(alike)
    }

    /// How the next tokens go through products.
    fn way(&self) -> Way {
        if self.sequence.len() < self.prompt_tokens { Way::Many } else { self.write_as }
    }

    /// Which logits of the next step are wanted.
    fn wanted(&self) -> Wanted {
        match self.score_prompt {
            Some(_) if self.sequence.len() + 1 < self.prompt_tokens => Wanted::All,
            _ if self.next_read() == self.unread() => Wanted::Last,
            _ => Wanted::None,
        }
    }

    /// Scores the token after place `at` of the prompt by the logits there.
    fn score(&mut self, at: usize, logits: &[f32]) {
        // What was read twice is scored once.
        if let Some(top) = self.score_prompt
            && self.prompt_scores.len() == at
            && at + 1 < self.prompt_tokens
        {
            self.prompt_scores.push(Scored::new(self.tokens[at + 1], logits, top));
        }
    }

    /// Goes on from the logits after all that is there.
    fn choose(&mut self, logits: &mut [f32]) -> Result<(), CompletionError> {
        let step = self.completion.step(logits)?;
        self.text += &step.text;
        self.tokens.extend(step.token);
        if step.token.is_some() && self.sequence.len() == self.sequence.context() {
            self.text += &self.completion.end(Finish::ContextFull);
        }
        Ok(())
    }
}

impl Engine {
    /// Takes every row that is not done one step further, all in one batch: a piece of its prompt
    /// is read, or a token written. A row whose answer cannot go on is [done](Row::is_done), and
    /// has a [failure](Row::take_failure); the others do not mind.
    ///
    /// # Errors
    /// Where a prompt has no room in its sequence.
    pub fn advance<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a mut Row>,
    ) -> Result<(), Error> {
        let moves = |row: &&mut Row| !row.is_done() && row.read_at_most > 0;
        let mut rows: Vec<&mut Row> = rows.into_iter().filter(moves).collect();
        // Those that go the same way together: the weights are read once for each.
        rows.sort_by_key(|row| row.way() == Way::Many);
        let reads: Vec<(usize, Wanted)> =
            rows.iter().map(|row| (row.next_read(), row.wanted())).collect();
        let mut inputs = Vec::with_capacity(rows.len());
        for (row, &(count, logits)) in rows.iter_mut().zip(&reads) {
            let (start, way) = (row.sequence.len(), row.way());
            inputs.push(Input {
                way,
                sequence: &mut row.sequence,
                tokens: &row.tokens[start..start + count],
                adapters: &row.adapters,
                logits,
            });
        }
        let mut logits = self.forward(&mut inputs)?;
        let mut next = 0;
        for (row, (count, wanted)) in rows.into_iter().zip(reads) {
            if wanted == Wanted::All {
                let start = row.sequence.len() - count;
                (0..count).for_each(|i| row.score(start + i, logits.row(next + i)));
                next += count - 1;
            }
            if wanted == Wanted::None {
                continue;
            }
            if row.unread() == 0 {
                row.failure = row.choose(logits.row_mut(next)).err();
            }
            next += 1;
        }
        Ok(())
    }
}
