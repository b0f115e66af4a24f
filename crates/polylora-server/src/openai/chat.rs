//! `POST /v1/chat/completions`

use super::generate::{Answer, MOST_LOGPROBS, Manner, Meter, Wish, collect, finish_reason};
use super::logprobs::ChatLogprobs;
use super::stream::{Chunks, respond};
use super::tools::{Call, Calls, ToolChoice, ToolUse};
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
use polylora_engine::{Finish, Message, Scored, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

/// A conversation to be answered.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    messages: Vec<ChatMessage>,
    /// At most so many tokens; by default as many as the context holds.
    max_completion_tokens: Option<usize>,
    /// The old name of `max_completion_tokens`.
    max_tokens: Option<usize>,
    /// Whether to tell how likely each token was.
    #[serde(default)]
    logprobs: bool,
    /// How many of the likeliest tokens to tell beside each; at most 20.
    top_logprobs: Option<usize>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<ToolChoice>,
    functions: Option<Value>,
}

/// A conversation to be answered, and how.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is read as two parts, each with its own errors")]
pub(crate) struct ChatBody {
    #[serde(flatten)]
    request: ChatRequest,
    #[serde(flatten)]
    manner: Manner,
}

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    role: String,
    /// A text, or a list of parts that are texts.
    content: Option<Content>,
    #[serde(flatten)]
    #[schema(ignore)]
    extra: serde_json::Map<String, Value>,
}

/// What a message says.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of what a message says.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Part {
    /// `text`: nothing else can be read here.
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// An answered conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// One answer (`message`), or a piece of one (`delta`).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Said>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Said>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

/// What the model says.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

/// Answer a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatBody,
    responses((status = 200, body = ChatResponse), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    caller.take()?;
    let (request, manner): (ChatRequest, Manner) = (body.read()?, body.read()?);
    let top = request.check()?;
    let selection = app.select(&caller, &manner.model, manner.lora.as_deref())?;
    let base = &app.base;
    let template = base.template.as_ref().ok_or_else(|| {
        let message = "This model has no chat template: use /v1/completions.";
        ApiError::bad_param("messages", message)
    })?;
    let tools = request.tools.as_deref().unwrap_or_default();
    let tools = ToolUse::new(template, tools, request.tool_choice.as_ref())?;
    let messages = request.messages.iter().enumerate();
    let messages: Vec<Message> = messages.map(|(at, m)| m.message(at)).collect::<Result<_, _>>()?;
    let prompt = template.prompt(&base.tokenizer, &messages, tools.described());
    let mut prompt = prompt.map_err(|error| ApiError::bad_param("messages", error.to_string()))?;
    prompt.extend(base.tokenizer.encode(tools.prefix(), false, true));
    let prompts = [prompt];

    let wish = Wish {
        prompt: "messages",
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        logprobs: top,
        ..Wish::default()
    };
    let shape = || match tools.constraint(base)? {
        Some(constraint) => Ok(Some(constraint)),
        None => manner.constraint(base),
    };
    let (jobs, events) = manner.jobs(&app, &selection, &prompts, wish, &shape)?;
    let count = manner.count()?;
    app.scheduler.submit(jobs)?;
    let mut meter = Meter::new(&prompts, count);
    let head = Head {
        id: id::new("chatcmpl-"),
        created: unix_time(SystemTime::now()),
        model: selection.model,
        tokenizer: base.tokenizer.clone(),
        has_logprobs: top.is_some(),
    };
    if manner.stream {
        let calls = (0..count).map(|_| tools.reader()).collect();
        let stream = Stream { head, calls };
        return respond(events, meter, stream, manner.includes_usage()).await;
    }
    let answers = collect(events, &mut meter).await?;
    let choices = answers.into_iter().enumerate();
    let choices =
        choices.map(|(index, answer)| head.whole(index, answer, tools.reader())).collect();
    Ok(Json(head.response("chat.completion", choices, Some(meter.usage()))).into_response())
}

impl ChatRequest {
    /// Refuses what cannot be honoured; returns how many of the likeliest tokens are wanted.
    fn check(&self) -> Result<Option<usize>, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::bad_param("messages", "There is no message to answer."));
        }
        if self.functions.as_ref().is_some_and(|functions| !functions.is_null()) {
            return Err(ApiError::bad_param("functions", "Use `tools`, which took their place."));
        }
        if self.top_logprobs.is_some_and(|top| top > MOST_LOGPROBS) {
            let message = format!("It must be 0 to {MOST_LOGPROBS}.");
            return Err(ApiError::bad_param("top_logprobs", message));
        }
        if self.top_logprobs.is_some_and(|top| top > 0) && !self.logprobs {
            return Err(ApiError::bad_param("top_logprobs", "It goes with `logprobs`: true."));
        }
        Ok(self.logprobs.then(|| self.top_logprobs.unwrap_or(0)))
    }
}

impl ChatMessage {
    /// As a template reads it; `at` is its place among the others.
    fn message(&self, at: usize) -> Result<Message, ApiError> {
        let mut content = String::new();
        match &self.content {
            None => {}
            Some(Content::Text(text)) => content = text.clone(),
            Some(Content::Parts(parts)) => {
                for part in parts {
                    let Some(text) = part.text.as_ref().filter(|_| part.kind == "text") else {
                        let message =
                            format!("A part of type {:?} cannot be read here.", part.kind);
                        return Err(ApiError::bad_param(
                            format!("messages[{at}].content"),
                            message,
                        ));
                    };
                    content += text;
                }
            }
        }
        let mut extra = self.extra.clone();
        if let Some(calls) = extra.get_mut("tool_calls") {
            read_arguments(calls);
        }
        Ok(Message { role: self.role.clone(), content, extra })
    }
}

/// Templates want the arguments of earlier calls as values; the API has them as JSON in a text.
fn read_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(value) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = value;
        }
    }
}

/// What all chunks of a response have.
struct Head {
    id: String,
    created: u64,
    model: String,
    tokenizer: Tokenizer,
    has_logprobs: bool,
}

impl Head {
    fn response(
        &self,
        object: &'static str,
        choices: Vec<ChatChoice>,
        usage: Option<Usage>,
    ) -> ChatResponse {
        let (id, model) = (self.id.clone(), self.model.clone());
        ChatResponse { id, object, created: self.created, model, choices, usage }
    }

    fn logprobs(&self, scored: &[Scored]) -> Option<ChatLogprobs> {
        self.has_logprobs.then(|| ChatLogprobs::new(&self.tokenizer, scored))
    }

    fn whole(&self, index: usize, answer: Answer, mut calls: Calls) -> ChatChoice {
        let (mut text, mut tool_calls) = calls.push(&answer.text);
        let (rest, more) = calls.finish();
        text += &rest;
        tool_calls.extend(more);
        let finish_reason = answer.finish.map(|finish| calls.finish_reason(finish));
        let content = Some(text).filter(|text| !text.is_empty() || tool_calls.is_empty());
        let message = Said { role: Some("assistant"), content, tool_calls };
        let logprobs = self.logprobs(&answer.scored);
        ChatChoice { index, message: Some(message), delta: None, logprobs, finish_reason }
    }
}

impl Calls {
    fn finish_reason(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Stop if self.has_calls() => "tool_calls",
            finish => finish_reason(finish),
        }
    }
}

/// The answers of a request.
struct Stream {
    head: Head,
    calls: Vec<Calls>,
}

impl Chunks for Stream {
    type Chunk = ChatResponse;

    fn chunks(&mut self, index: usize, event: Event) -> Vec<ChatResponse> {
        let calls = &mut self.calls[index];
        let mut choices = Vec::new();
        let mut push = |delta, logprobs, finish_reason| {
            let delta = Some(delta);
            choices.push(ChatChoice { index, message: None, delta, logprobs, finish_reason });
        };
        match event {
            Event::Begun { .. } => {
                let (role, content) = (Some("assistant"), Some(String::new()));
                push(Said { role, content, tool_calls: Vec::new() }, None, None);
            }
            Event::Wrote { text, scored } => {
                let (text, tool_calls) = calls.push(&text);
                let logprobs = self.head.logprobs(&scored).filter(|_| !scored.is_empty());
                if !text.is_empty() || !tool_calls.is_empty() || logprobs.is_some() {
                    let content = Some(text).filter(|text| !text.is_empty());
                    push(Said { role: None, content, tool_calls }, logprobs, None);
                }
            }
            Event::Done { finish, .. } => {
                let (text, tool_calls) = calls.finish();
                if !text.is_empty() || !tool_calls.is_empty() {
                    let content = Some(text).filter(|text| !text.is_empty());
                    push(Said { role: None, content, tool_calls }, None, None);
                }
                push(Said::default(), None, Some(calls.finish_reason(finish)));
            }
            Event::PromptScores(_) | Event::Embedded(_) | Event::Failed(_) => {}
        }
        let response = |choice| self.head.response("chat.completion.chunk", vec![choice], None);
        choices.into_iter().map(response).collect()
    }

    fn usage(&self, usage: Usage) -> ChatResponse {
        self.head.response("chat.completion.chunk", Vec::new(), Some(usage))
    }
}
