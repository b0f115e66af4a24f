//! `POST /v1/embeddings`

use super::Usage;
use super::completions::Prompts;
use super::generate::{check_length, gone};
use crate::access::Caller;
use crate::app::{App, Lora};
use crate::body::Body;
use crate::error::{ApiError, ErrorBody};
use crate::scheduler::{Event, Job, Task};
use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::unbounded_channel;
use utoipa::ToSchema;

/// Texts to be made into vectors.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    #[serde(default)]
    model: String,
    input: Prompts,
    lora: Option<Vec<Lora>>,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    #[default]
    Float,
    /// Singles, little-endian, in base 64.
    Base64,
}

/// Texts as vectors.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingResponse {
    object: &'static str,
    model: String,
    data: Vec<EmbeddingData>,
    usage: Usage,
}

/// One text's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingData {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// A vector of length one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

impl Encoding {
    fn write(self, values: Vec<f32>) -> Vector {
        match self {
            Encoding::Float => Vector::Floats(values),
            Encoding::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

/// Make vectors of texts, where the model is made for it.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses((status = 200, body = EmbeddingResponse), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Json<EmbeddingResponse>, ApiError> {
    caller.take()?;
    let request: EmbeddingRequest = body.read()?;
    let selection = app.select(&caller, &request.model, request.lora.as_deref())?;
    let pooling = app.base.pooling.ok_or_else(|| {
        let message = "This model is not made for embeddings: its file does not say how the \
                       states of a text become one (pooling_type mean or last).";
        ApiError::bad_param("model", message).code("unsupported_model")
    })?;
    if request.dimensions.is_some() {
        return Err(ApiError::bad_param("dimensions", "Vectors are given as they are, whole."));
    }
    let prompts = request.input.tokens(&app.base.tokenizer);
    let (events, mut receiver) = unbounded_channel();
    let mut jobs = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        check_length(&app.base, "input", prompt)?;
        jobs.push(Job {
            prompt: prompt.clone(),
            adapters: selection.adapters.clone(),
            names: Arc::clone(&selection.names),
            tenant: selection.tenant.clone(),
            task: Task::Embed(pooling),
            index,
            events: events.clone(),
            arrived: Instant::now(),
            span: tracing::Span::current(),
        });
    }
    drop(events);
    let mut found: Vec<Option<Vec<f32>>> = vec![None; jobs.len()];
    app.scheduler.submit(jobs)?;
    while found.iter().any(Option::is_none) {
        match receiver.recv().await {
            Some((index, Event::Embedded(values))) => found[index] = Some(values),
            Some((_, Event::Failed(failure))) => return Err(failure.into()),
            Some(_) => {}
            None => return Err(gone()),
        }
    }
    let data = found.into_iter().flatten().enumerate().map(|(index, values)| EmbeddingData {
        object: "embedding",
        index,
        embedding: request.encoding_format.write(values),
    });
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
    let (object, data) = ("list", data.collect());
    Ok(Json(EmbeddingResponse { object, model: selection.model, data, usage }))
}
