//! `POST /v1/unload_lora_adapter`

use crate::access::Admin;
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ErrorBody};
use axum::extract::State;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// An adapter to be taken away.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct UnloadRequest {
    /// What it is called.
    #[serde(default)]
    lora_name: String,
}

/// Take an adapter away. Answers that are being written with it go on to their ends.
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", tag = "vLLM", request_body = UnloadRequest,
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    _: Admin,
    body: Body,
) -> Result<String, ApiError> {
    app.check_loading()?;
    let UnloadRequest { lora_name: name } = body.read()?;
    if name.is_empty() {
        return Err(ApiError::bad_param("lora_name", "lora_name is missing."));
    }
    let number = app.adapters.find(&name).ok_or_else(|| {
        ApiError::not_found(format!("There is no adapter {name:?}.")).param("lora_name")
    })?;
    app.adapters.remove(number)?;
    tracing::info!(adapter = name, "adapter unloaded by request");
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}
