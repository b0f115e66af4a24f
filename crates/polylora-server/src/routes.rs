//! The route table: one row for each, and what all have in common.

use crate::app::App;
use crate::error::ApiError;
use crate::{body, id, llama_cpp, openai, ops, page, vllm};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::timeout::RequestBodyTimeoutLayer;
use tracing::Instrument;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How long a request's body may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// Where requests carry their name, and answers too.
const REQUEST_ID: &str = "x-request-id";

/// What is asked every few seconds by machines, and by the page.
const PROBES: [&str; 3] = ["/health", "/metrics", "/adapters"];

/// The longest name of a request that is taken over.
const LONGEST_ID: usize = 128;

#[derive(OpenApi)]
#[openapi(info(
    title = "PolyLoRA",
    description = "Many LoRA adapters over one quantized model, a different one in every row of a \
                   batch, behind the OpenAI API."
))]
struct Description;

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(openai::chat::chat))
        .routes(routes!(openai::completions::complete))
        .routes(routes!(openai::embeddings::embed))
        .routes(routes!(openai::models::list))
        .routes(routes!(openai::models::retrieve))
        .routes(routes!(vllm::load::load))
        .routes(routes!(vllm::unload::unload))
        .routes(routes!(llama_cpp::adapters::list, llama_cpp::adapters::set))
        .routes(routes!(ops::adapters::overview))
        .routes(routes!(ops::health::health))
        .routes(routes!(ops::version::version))
        .routes(routes!(ops::metrics::metrics))
        .split_for_parts();
    let description = Arc::new(description);
    let router = router
        .route("/openapi.json", get(async move || Json((*description).clone())))
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::js))
        .route("/icon.svg", get(page::icon))
        .fallback(async || ApiError::not_found("There is no such path: see /openapi.json."))
        .method_not_allowed_fallback(async || ApiError::bad_method());
    finish(router, app)
}

/// Metrics alone, without keys.
pub(crate) fn metrics_router(app: Arc<App>) -> Router {
    let router = Router::new()
        .route("/metrics", get(ops::metrics::open_metrics))
        .fallback(async || ApiError::not_found("There is no such path: only /metrics."));
    finish(router, app)
}

fn finish(router: Router<Arc<App>>, app: Arc<App>) -> Router {
    router
        .layer(DefaultBodyLimit::max(body::LONGEST))
        .layer(RequestBodyTimeoutLayer::new(SILENCE))
        .layer(from_fn(with_id))
        .with_state(app)
}

/// Gives every request a name, in the log and in the answer.
async fn with_id(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(plain)
    };
    let id = given.filter(is_plain).map_or_else(|| id::new("req-"), str::to_owned);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let key = tracing::field::Empty;
    let span = tracing::info_span!("request", id, %method, path, key);
    #[cfg(feature = "otlp")]
    continue_trace(&span, request.headers());
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    // Of a stream this is when it began.
    let (status, seconds) = (response.status().as_u16(), start.elapsed().as_secs_f64());
    span.in_scope(|| match PROBES.contains(&&*path) {
        true => tracing::debug!(status, seconds, "answered"),
        false => tracing::info!(status, seconds, "answered"),
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.into_response()
}

/// Makes the request part of the trace that it comes with, where it comes with one.
#[cfg(feature = "otlp")]
fn continue_trace(span: &tracing::Span, headers: &axum::http::HeaderMap) {
    use opentelemetry::propagation::{Extractor, TextMapPropagator};
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    struct Headers<'a>(&'a axum::http::HeaderMap);

    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(|key| key.as_str()).collect()
        }
    }

    let context = TraceContextPropagator::new().extract(&Headers(headers));
    // It fails only where nobody collects spans.
    let _ = span.set_parent(context);
}
