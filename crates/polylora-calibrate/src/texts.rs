//! Texts to calibrate by.

use polylora_engine::{
    ChatError, ChatTemplate, Completion, CompletionError, CompletionOptions, Engine, LoadedAdapter,
    Message, Row, SamplingParams, Tokenizer, Way,
};
use std::sync::Arc;

/// Tokens of a piece of a long text.
const PIECE: usize = Engine::WALKED;
/// Answers that are written at a time.
const ROWS: usize = 16;
/// The longest answer, in tokens.
const ANSWER: usize = 160;

/// Questions and requests of many kinds, one a line.
const PROMPTS: &str = include_str!("prompts.txt");

/// Texts cannot be made.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)] // Each is the error of one part, which says what it is.
pub enum TextError {
    Chat(#[from] ChatError),
    Completion(#[from] CompletionError),
    Engine(#[from] polylora_engine::Error),
}

/// A plain text, in pieces.
pub fn cut(tokenizer: &Tokenizer, text: &str) -> Vec<Vec<u32>> {
    tokenizer.encode(text, true, false).chunks(PIECE).map(<[u32]>::to_vec).collect()
}

/// Conversations, each as a text of its own.
///
/// # Errors
/// Where the template cannot be filled.
pub fn from_chats(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    chats: &[Vec<Message>],
) -> Result<Vec<Vec<u32>>, TextError> {
    let mut texts = Vec::new();
    for chat in chats {
        let tokens = template.tokens(tokenizer, chat)?;
        texts.extend(tokens.chunks(PIECE).map(<[u32]>::to_vec));
    }
    Ok(texts)
}

/// What the model writes with the adapters: answers to prompts of many kinds, `tokens` in all or
/// somewhat more. `wrote` hears how many there are, now and then.
///
/// # Errors
/// Where the model cannot answer.
pub fn written(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    adapters: &[Arc<LoadedAdapter>],
    tokens: usize,
    mut wrote: impl FnMut(usize),
) -> Result<Vec<Vec<u32>>, TextError> {
    let prompts: Vec<&str> = PROMPTS.lines().collect();
    // The same prompts again give other answers: the seed is another.
    let mut asked = (0_u64..).zip(prompts.iter().cycle()).map(|(seed, prompt)| {
        let params = SamplingParams { temperature: 0.8, seed: Some(seed), ..Default::default() };
        (*prompt, params)
    });
    let mut texts: Vec<Vec<u32>> = Vec::new();
    let mut count = 0;
    while count < tokens {
        let asked: Vec<_> = asked.by_ref().take(ROWS).collect();
        for answer in answers(engine, tokenizer, template, adapters, asked, ANSWER)? {
            let mut text = answer.tokens;
            text.truncate(PIECE);
            count += text.len();
            texts.push(text);
        }
        wrote(count.min(tokens));
    }
    Ok(texts)
}

/// What a model said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The prompt and the answer.
    pub tokens: Vec<u32>,
    /// The answer.
    pub text: String,
}

/// Answers of a model with adapters, all of them written at the same time, none longer than `most`
/// tokens.
///
/// # Errors
/// Where the model cannot answer.
pub fn answers<'a>(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    adapters: &[Arc<LoadedAdapter>],
    prompts: impl IntoIterator<Item = (&'a str, SamplingParams)>,
    most: usize,
) -> Result<Vec<Answer>, TextError> {
    let mut rows = Vec::new();
    for (prompt, params) in prompts {
        let prompt = match template {
            Some(template) => template.prompt(tokenizer, &[Message::new("user", prompt)], None)?,
            None => tokenizer.encode(prompt, true, false),
        };
        let options = CompletionOptions { params, max_tokens: Some(most), ..Default::default() };
        let model = engine.model();
        let completion = Completion::new(tokenizer, model.vocab_size(), &prompt, options)?;
        let sequence = engine.sequence(model.context_length());
        let mut row = Row::new(sequence, prompt, adapters.to_vec(), completion);
        row.write_as(Way::Many);
        rows.push(row);
    }
    while rows.iter().any(|row| !row.is_done()) {
        engine.advance(rows.iter_mut().filter(|row| !row.is_done()))?;
    }
    let answer = |mut row: Row| {
        row.take_failure().map_or(Ok(()), Err)?;
        Ok(Answer { text: row.take_text(), tokens: row.tokens().to_vec() })
    };
    rows.into_iter().map(answer).collect()
}
