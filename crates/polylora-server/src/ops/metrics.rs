//! `GET /metrics`

use crate::access::Admin;
use crate::app::App;
use crate::error::ErrorBody;
use crate::metrics::Metrics;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use std::sync::Arc;

/// Metrics for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "Operation",
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>, _: Admin) -> impl IntoResponse {
    encoded(&app)
}

/// The same for those on a port of its own, who need no key.
pub(crate) async fn open_metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    encoded(&app)
}

fn encoded(app: &App) -> impl IntoResponse + use<> {
    let (bytes, capacity) = app.adapters.usage();
    app.metrics.set_adapter_cache(bytes, capacity);
    ([(CONTENT_TYPE, Metrics::CONTENT_TYPE)], app.metrics.encode())
}
