//! `GET /v1/models` and `GET /v1/models/{id}`

use super::unix_time;
use crate::access::Caller;
use crate::adapters::Told;
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// All models that the caller may use: the base, and the adapters over it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<Card>,
}

/// A model, or an adapter, which is used like one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Card {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Of an adapter: where it lies, for those who may know; else its name.
    root: String,
    /// Of an adapter: the base.
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
}

/// The models.
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI",
    responses((status = 200, body = ModelList), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Json<ModelList> {
    let adapters = app.adapters.list();
    let adapters = adapters.into_iter().filter(|told| caller.may_use(&told.name));
    let cards = adapters.map(|told| adapter_card(&app, &caller, told));
    let data = std::iter::once(base_card(&app)).chain(cards).collect();
    Json(ModelList { object: "list", data })
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path)),
    responses((status = 200, body = Card), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Card>, ApiError> {
    let found = app.find(&caller, &id).ok_or_else(|| ApiError::no_model(&id))?;
    let Some(number) = found else { return Ok(Json(base_card(&app))) };
    let told = app.adapters.list().into_iter().find(|told| told.number == number);
    let told = told.ok_or_else(|| ApiError::no_model(&id))?;
    Ok(Json(adapter_card(&app, &caller, told)))
}

fn base_card(app: &App) -> Card {
    Card {
        id: app.base.id.clone(),
        object: "model",
        created: unix_time(app.base.created),
        owned_by: "polylora",
        root: app.base.id.clone(),
        parent: None,
        max_model_len: Some(app.base.context),
    }
}

fn adapter_card(app: &App, caller: &Caller, told: Told) -> Card {
    let root = if caller.is_admin() { told.path.display().to_string() } else { told.name.clone() };
    Card {
        id: told.name,
        object: "model",
        created: unix_time(told.created),
        owned_by: "polylora",
        root,
        parent: Some(app.base.id.clone()),
        max_model_len: None,
    }
}
