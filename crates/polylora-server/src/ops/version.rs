//! `GET /version`

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// What this server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    version: &'static str,
}

/// The version of this server.
#[utoipa::path(get, path = "/version", tag = "Operation", responses((status = 200, body = Version)))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
