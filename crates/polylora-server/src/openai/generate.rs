//! What chats and completions share: how an answer is to be written, and how it comes.

use super::{OneOrMany, PromptTokens, Usage};
use crate::app::{App, Base, Lora, Selection};
use crate::error::ApiError;
use crate::scheduler::{Event, Events, Failure, Job, Task};
use polylora_engine::{CompletionOptions, Constraint, Finish, Sampler, SamplingParams, Scored};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::unbounded_channel;
use utoipa::ToSchema;

/// Answers that one request may ask for.
const MOST_ANSWERS: usize = 128;

/// The likeliest tokens that a request may ask for beside each of its own.
pub(super) const MOST_LOGPROBS: usize = 20;

/// How an answer is to be written: the fields that chats and completions share. `top_k`, `min_p`,
/// `repetition_penalty`, `ignore_eos` and `lora` are not OpenAI's.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Manner {
    /// The base's id, an adapter's name, or `base:adapter`.
    #[serde(default)]
    pub(super) model: String,
    /// Adapters with scales, besides the one that `model` names.
    pub(super) lora: Option<Vec<Lora>>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i32>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    /// What is added to logits, by token.
    pub(super) logit_bias: Option<BTreeMap<u32, f32>>,
    /// Any number; the same one gives the same answer.
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<OneOrMany>,
    /// How many answers.
    pub(super) n: Option<usize>,
    /// Whether to go on where the model would end.
    #[serde(default)]
    pub(super) ignore_eos: bool,
    pub(super) response_format: Option<ResponseFormat>,
    #[serde(default)]
    pub(super) stream: bool,
    pub(super) stream_options: Option<StreamOptions>,
}

/// What a stream tells besides the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// The tokens that it took, at the end.
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// What the answer must look like.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    Text,
    /// Any JSON object.
    JsonObject,
    JsonSchema {
        json_schema: NamedSchema,
    },
}

/// A JSON schema.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// The schema; without one, any object.
    pub(super) schema: Option<serde_json::Value>,
}

impl ResponseFormat {
    fn constraint(&self, base: &Base) -> Result<Option<Constraint>, ApiError> {
        let made = match self {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::JsonObject => Constraint::json_object(base.constraints()?),
            ResponseFormat::JsonSchema { json_schema } => match &json_schema.schema {
                Some(schema) => Constraint::json_schema(base.constraints()?, schema),
                None => Constraint::json_object(base.constraints()?),
            },
        };
        made.map(Some).map_err(|error| ApiError::bad_param("response_format", error.to_string()))
    }
}

/// What one answer must look like, to be made anew for each.
pub(super) type Shape<'a> = &'a dyn Fn() -> Result<Option<Constraint>, ApiError>;

/// What is asked of each answer besides its [`Manner`].
#[derive(Clone, Copy, Default)]
pub(super) struct Wish {
    /// The field that the prompt is in.
    pub(super) prompt: &'static str,
    pub(super) max_tokens: Option<usize>,
    /// Scores, and how many of the likeliest tokens beside each.
    pub(super) logprobs: Option<usize>,
    pub(super) score_prompt: Option<usize>,
    /// Whether the answer goes on in the middle of the prompt's text.
    pub(super) continues: bool,
}

impl Manner {
    /// How many answers each prompt gets.
    pub(super) fn count(&self) -> Result<usize, ApiError> {
        let n = self.n.unwrap_or(1);
        if !(1..=MOST_ANSWERS).contains(&n) {
            return Err(ApiError::bad_param("n", format!("It must be 1 to {MOST_ANSWERS}.")));
        }
        Ok(n)
    }

    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// As OpenAI's defaults have it: the model's own distribution.
    fn params(&self, base: &Base, answer: usize) -> Result<SamplingParams, ApiError> {
        let mut params = SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repeat_penalty: self.repetition_penalty.unwrap_or(1.0),
            repeat_last_n: -1,
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias.clone().unwrap_or_default(),
            // Answers to one prompt differ.
            seed: self.seed.map(|seed| (seed as u64).wrapping_add(answer as u64)),
        };
        // OpenAI's bounds; beyond them answers are no language any more.
        for (name, penalty) in [
            ("presence_penalty", params.presence_penalty),
            ("frequency_penalty", params.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&penalty) {
                return Err(ApiError::bad_param(name, "It must be -2 to 2."));
            }
        }
        // A sampler knows what cannot be meant.
        Sampler::new(params.clone(), base.vocab_size)
            .map_err(|error| ApiError::bad(error.to_string()))?;
        if self.ignore_eos {
            let ends = (0..base.tokenizer.vocab_size())
                .filter(|&token| base.tokenizer.is_end_of_generation(token))
                .filter(|&token| (token as usize) < base.vocab_size);
            params.logit_bias.extend(ends.map(|token| (token, f32::NEG_INFINITY)));
        }
        Ok(params)
    }

    /// What the response format asks for.
    pub(super) fn constraint(&self, base: &Base) -> Result<Option<Constraint>, ApiError> {
        let constraint = self.response_format.as_ref().map(|format| format.constraint(base));
        Ok(constraint.transpose()?.flatten())
    }

    /// The jobs for the answers to some prompts, and where their events come: those of prompt `p`
    /// have the numbers `p * n ..`.
    pub(super) fn jobs(
        &self,
        app: &App,
        selection: &Selection,
        prompts: &[Vec<u32>],
        wish: Wish,
        shape: Shape<'_>,
    ) -> Result<(Vec<Job>, Events), ApiError> {
        if self.stream_options.is_some() && !self.stream {
            return Err(ApiError::bad_param("stream_options", "It goes with `stream`: true."));
        }
        let (events, receiver) = unbounded_channel();
        let count = self.count()?;
        let mut jobs = Vec::with_capacity(prompts.len() * count);
        for prompt in prompts {
            check_length(&app.base, wish.prompt, prompt)?;
            for answer in 0..count {
                let options = CompletionOptions {
                    params: self.params(&app.base, answer)?,
                    stop: self.stop()?,
                    constraint: shape()?,
                    continues: wish.continues,
                    max_tokens: wish.max_tokens,
                    logprobs: wish.logprobs,
                };
                jobs.push(Job {
                    prompt: prompt.clone(),
                    adapters: selection.adapters.clone(),
                    names: Arc::clone(&selection.names),
                    tenant: selection.tenant.clone(),
                    task: Task::Complete {
                        options: Box::new(options),
                        score_prompt: wish.score_prompt,
                    },
                    index: jobs.len(),
                    events: events.clone(),
                    arrived: Instant::now(),
                    span: tracing::Span::current(),
                });
            }
        }
        Ok((jobs, receiver))
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stop = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        match stop.iter().any(String::is_empty) {
            true => Err(ApiError::bad_param("stop", "An empty text would stop every answer.")),
            false => Ok(stop),
        }
    }
}

/// Refuses a prompt that leaves no room for an answer.
pub(super) fn check_length(
    base: &Base,
    param: &'static str,
    prompt: &[u32],
) -> Result<(), ApiError> {
    let (tokens, context) = (prompt.len(), base.context);
    if prompt.is_empty() {
        return Err(ApiError::bad_param(param, "The prompt is empty."));
    }
    if tokens >= context {
        let message = format!(
            "This model's maximum context length is {context} tokens here, and the prompt has \
             {tokens}: nothing is left for an answer."
        );
        return Err(ApiError::bad_param(param, message).code("context_length_exceeded"));
    }
    Ok(())
}

/// Why an answer ended, as the API has it.
pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::ContextFull => "length",
    }
}

/// An answer that has ended.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) scored: Vec<Scored>,
    pub(super) prompt_scores: Vec<Scored>,
    pub(super) finish: Option<Finish>,
}

/// Counts what a request takes, from its events.
pub(super) struct Meter {
    usage: Usage,
    /// Answers that have not ended.
    pub(super) open: usize,
}

impl Meter {
    /// `prompts` have so many tokens, and each `count` answers.
    pub(super) fn new(prompts: &[Vec<u32>], count: usize) -> Meter {
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let usage = Usage { prompt_tokens, ..Usage::default() };
        Meter { usage, open: prompts.len() * count }
    }

    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Begun { cached } => {
                let PromptTokens { cached_tokens } = &mut self.usage.prompt_tokens_details;
                // Answers to one prompt share it: it is counted once.
                *cached_tokens = (*cached_tokens).max(*cached);
            }
            Event::Done { tokens, .. } => {
                self.usage.completion_tokens += tokens;
                self.open -= 1;
            }
            _ => {}
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let Usage { prompt_tokens, completion_tokens, .. } = self.usage;
        Usage { total_tokens: prompt_tokens + completion_tokens, ..self.usage }
    }
}

/// All answers of a request, once they have ended.
pub(super) async fn collect(
    mut events: Events,
    meter: &mut Meter,
) -> Result<Vec<Answer>, ApiError> {
    let mut answers: Vec<Answer> = (0..meter.open).map(|_| Answer::default()).collect();
    while meter.open > 0 {
        let Some((index, event)) = events.recv().await else { return Err(gone()) };
        meter.note(&event);
        let answer = &mut answers[index];
        match event {
            Event::Wrote { text, scored } => {
                answer.text += &text;
                answer.scored.extend(scored);
            }
            Event::PromptScores(scores) => answer.prompt_scores = scores,
            Event::Done { finish, .. } => answer.finish = Some(finish),
            Event::Failed(failure) => return Err(failure.into()),
            Event::Begun { .. } | Event::Embedded(_) => {}
        }
    }
    Ok(answers)
}

/// The scheduler has ended before its time.
pub(super) fn gone() -> ApiError {
    Failure::Engine("the scheduler is gone".into()).into()
}
