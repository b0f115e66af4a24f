//! `POST /v1/completions`

use super::generate::{Answer, MOST_LOGPROBS, Manner, Meter, Wish, collect, finish_reason};
use super::logprobs::CompletionLogprobs;
use super::stream::{Chunks, respond};
use super::{Usage, unix_time};
use crate::access::Caller;
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ErrorBody};
use crate::id;
use crate::scheduler::Event;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use polylora_engine::{Scored, Tokenizer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

/// Tokens of an answer where a request does not say: OpenAI's.
const MAX_TOKENS: usize = 16;

/// A text to be gone on with.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    prompt: Prompts,
    /// At most so many tokens; 16 by default.
    max_tokens: Option<usize>,
    /// Of each token how likely it was, and so many of the likeliest beside it; at most 20.
    logprobs: Option<usize>,
    /// Whether the answer begins with the prompt.
    #[serde(default)]
    echo: bool,
    best_of: Option<usize>,
    suffix: Option<String>,
}

/// A text to be gone on with, and how.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is read as two parts, each with its own errors")]
pub(crate) struct CompletionBody {
    #[serde(flatten)]
    request: CompletionRequest,
    #[serde(flatten)]
    manner: Manner,
}

/// One prompt or several, as texts or as tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    /// The tokens of each.
    pub(super) fn tokens(&self, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
        let encode = |text: &String| tokenizer.encode(text, true, true);
        match self {
            Prompts::Text(text) => vec![encode(text)],
            Prompts::Tokens(tokens) => vec![tokens.clone()],
            Prompts::Texts(texts) => texts.iter().map(encode).collect(),
            Prompts::ManyTokens(prompts) => prompts.clone(),
        }
    }
}

/// Texts that were gone on with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// One answer, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Go on with a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionBody,
    responses((status = 200, body = CompletionResponse), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    caller.take()?;
    let (request, manner): (CompletionRequest, Manner) = (body.read()?, body.read()?);
    request.check(&manner)?;
    let selection = app.select(&caller, &manner.model, manner.lora.as_deref())?;
    let prompts = request.prompt.tokens(&app.base.tokenizer);
    request.check_tokens(&app, &prompts)?;
    let count = manner.count()?;
    let wish = Wish {
        prompt: "prompt",
        max_tokens: Some(request.max_tokens.unwrap_or(MAX_TOKENS)),
        logprobs: request.logprobs,
        score_prompt: request.logprobs.filter(|_| request.echo),
        continues: true,
    };
    let shape = || manner.constraint(&app.base);
    let (jobs, events) = manner.jobs(&app, &selection, &prompts, wish, &shape)?;
    app.scheduler.submit(jobs)?;
    let mut meter = Meter::new(&prompts, count);
    let prompt_of = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, count));
    let writers = prompt_of.map(|prompt| Writer {
        tokenizer: app.base.tokenizer.clone(),
        echo: request.echo.then(|| prompt.clone()),
        has_logprobs: request.logprobs.is_some(),
        offset: 0,
    });
    let head = Head {
        id: id::new("cmpl-"),
        created: unix_time(SystemTime::now()),
        model: selection.model,
    };
    let mut stream = Stream { head, writers: writers.collect() };
    if manner.stream {
        return respond(events, meter, stream, manner.includes_usage()).await;
    }
    let answers = collect(events, &mut meter).await?;
    let choices = answers.into_iter().enumerate();
    let choices =
        choices.map(|(index, answer)| stream.writers[index].whole(index, answer)).collect();
    Ok(Json(stream.head.response(choices, Some(meter.usage()))).into_response())
}

impl CompletionRequest {
    fn check(&self, manner: &Manner) -> Result<(), ApiError> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::bad_param("suffix", "Filling in a gap is not known here."));
        }
        if self.best_of.is_some_and(|best| best != manner.n.unwrap_or(1)) {
            let message = "Choosing among more answers than are given is not known here.";
            return Err(ApiError::bad_param("best_of", message));
        }
        if self.logprobs.is_some_and(|logprobs| logprobs > MOST_LOGPROBS) {
            let message = format!("It must be 0 to {MOST_LOGPROBS}.");
            return Err(ApiError::bad_param("logprobs", message));
        }
        Ok(())
    }

    fn check_tokens(&self, app: &App, prompts: &[Vec<u32>]) -> Result<(), ApiError> {
        let vocab_size = app.base.vocab_size;
        if prompts.is_empty() {
            return Err(ApiError::bad_param("prompt", "There is no prompt."));
        }
        let mut tokens = prompts.iter().flatten();
        match tokens.find(|&&token| token as usize >= vocab_size) {
            Some(token) => {
                let message = format!("Token {token} is not in the vocabulary of {vocab_size}.");
                Err(ApiError::bad_param("prompt", message))
            }
            None => Ok(()),
        }
    }
}

/// What all chunks of a response have.
struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn response(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionResponse {
        let Head { id, created, model } = self;
        let (id, model) = (id.clone(), model.clone());
        CompletionResponse {
            id,
            object: "text_completion",
            created: *created,
            model,
            choices,
            usage,
        }
    }
}

/// Writes one answer.
struct Writer {
    tokenizer: Tokenizer,
    /// The prompt, until it was written.
    echo: Option<Vec<u32>>,
    has_logprobs: bool,
    /// Where in the text the next token begins.
    offset: usize,
}

impl Writer {
    /// The prompt's part of the answer, once.
    fn echo(&mut self, scores: &[Scored]) -> Option<(String, CompletionLogprobs)> {
        let prompt = self.echo.take()?;
        let mut logprobs = CompletionLogprobs::default();
        if let Some(&first) = prompt.first().filter(|_| self.has_logprobs) {
            logprobs.push_first(&self.tokenizer, first, &mut self.offset);
        }
        scores.iter().for_each(|s| logprobs.push(&self.tokenizer, s, &mut self.offset));
        Some((self.tokenizer.decode(&prompt, false), logprobs))
    }

    fn logprobs(
        &mut self,
        mut logprobs: CompletionLogprobs,
        scored: &[Scored],
    ) -> Option<CompletionLogprobs> {
        scored.iter().for_each(|s| logprobs.push(&self.tokenizer, s, &mut self.offset));
        self.has_logprobs.then_some(logprobs)
    }

    fn whole(&mut self, index: usize, answer: Answer) -> CompletionChoice {
        let (prompt, logprobs) = self.echo(&answer.prompt_scores).unwrap_or_default();
        CompletionChoice {
            index,
            text: prompt + &answer.text,
            logprobs: self.logprobs(logprobs, &answer.scored),
            finish_reason: answer.finish.map(finish_reason),
        }
    }
}

/// The answers of a request.
struct Stream {
    head: Head,
    writers: Vec<Writer>,
}

impl Chunks for Stream {
    type Chunk = CompletionResponse;

    fn chunks(&mut self, index: usize, event: Event) -> Vec<CompletionResponse> {
        let writer = &mut self.writers[index];
        let mut choices = Vec::new();
        let mut push = |text, logprobs, finish_reason| {
            choices.push(CompletionChoice { index, text, logprobs, finish_reason });
        };
        let scores = match &event {
            Event::PromptScores(scores) => &scores[..],
            _ => &[],
        };
        // The scores of the prompt, where they are wanted, come before anything else.
        let is_time = !matches!(event, Event::Begun { .. });
        if let Some((prompt, logprobs)) = is_time.then(|| writer.echo(scores)).flatten() {
            push(prompt, writer.has_logprobs.then_some(logprobs), None);
        }
        match event {
            Event::Wrote { text, scored } => {
                let logprobs = writer.logprobs(CompletionLogprobs::default(), &scored);
                push(text, logprobs, None);
            }
            Event::Done { finish, .. } => push(String::new(), None, Some(finish_reason(finish))),
            _ => {}
        }
        choices.into_iter().map(|choice| self.head.response(vec![choice], None)).collect()
    }

    fn usage(&self, usage: Usage) -> CompletionResponse {
        self.head.response(Vec::new(), Some(usage))
    }
}
