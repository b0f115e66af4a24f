//! `POST /v1/load_lora_adapter`

use crate::access::Admin;
use crate::adapters::{Refused, Unfit};
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ErrorBody};
use axum::extract::State;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// An adapter to be registered.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct LoadRequest {
    /// What to call it.
    #[serde(default)]
    lora_name: String,
    /// Where it lies: relative to the folder of adapters, or absolute and inside it.
    #[serde(default)]
    lora_path: String,
    /// Whether to put it in the place of one of this name. Answers that are being written with the
    /// old one are not changed.
    #[serde(default)]
    load_inplace: bool,
}

/// Register an adapter from the folder of adapters.
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", tag = "vLLM", request_body = LoadRequest,
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn load(
    State(app): State<Arc<App>>,
    _: Admin,
    body: Body,
) -> Result<String, ApiError> {
    app.check_loading()?;
    let request: LoadRequest = body.read()?;
    let LoadRequest { lora_name: name, lora_path: path, load_inplace: replace } = request;
    for (param, value) in [("lora_name", &name), ("lora_path", &path)] {
        if value.is_empty() {
            return Err(ApiError::bad_param(param, format!("{param} is missing.")));
        }
    }
    let (adapters, base) = (app.adapters.clone(), app.base.id.clone());
    let load = {
        let name = name.clone();
        move || adapters.add_by_request(&name, &path, &base, replace)
    };
    let loaded = tokio::task::spawn_blocking(load).await;
    loaded.map_err(|_| ApiError::internal("Loading failed: the server's log says why."))??;
    tracing::info!(adapter = name, "adapter loaded by request");
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

impl App {
    pub(super) fn check_loading(&self) -> Result<(), ApiError> {
        match self.allow_loading {
            true => Ok(()),
            false => Err(ApiError::forbidden(
                "Adapters are not loaded by request here: start the server with \
                 --allow-adapter-loading.",
            )),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        let message = refused.to_string();
        match refused {
            Refused::Name(_) | Refused::IsBase(_) | Refused::Duplicate(_) => {
                ApiError::bad_param("lora_name", message)
            }
            Refused::CommandLine(_) | Refused::Load(_) => ApiError::bad(message),
            Refused::Unfit(Unfit::Missing(_)) => ApiError::not_found(message).param("lora_path"),
            Refused::Unfit(Unfit::NoFolder | Unfit::Outside(_)) => {
                ApiError::forbidden(message).param("lora_path")
            }
        }
    }
}
