//! `GET /health`

use crate::app::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, or `draining` while it is going down.
    status: &'static str,
}

/// Whether new requests are taken.
#[utoipa::path(
    get, path = "/health", tag = "Operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(crate) async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    match app.scheduler.is_draining() {
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "draining" })),
        false => (StatusCode::OK, Json(Health { status: "ok" })),
    }
}
