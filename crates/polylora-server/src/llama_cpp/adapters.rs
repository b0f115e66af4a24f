//! `GET /lora-adapters` and `POST /lora-adapters`

use crate::access::{Admin, Caller};
use crate::app::{App, Lora};
use crate::body::Body;
use crate::error::{ApiError, ErrorBody};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// An adapter, and how it applies to requests for the base that do not say which they want.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ListedAdapter {
    id: usize,
    name: String,
    path: String,
    scale: f32,
}

/// The adapters with their default scales.
#[utoipa::path(
    get, path = "/lora-adapters", tag = "llama-server",
    responses((status = 200, body = Vec<ListedAdapter>), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Json<Vec<ListedAdapter>> {
    let defaults = app.adapters.defaults();
    let names = app.adapters.names();
    let mut told = app.adapters.list().into_iter().peekable();
    let mut listed = Vec::new();
    // The place among those that the caller may use, of all that ever were: see `App::number_of`.
    let visible = (0..names.len()).filter(|&number| caller.may_use(&names[number]));
    for (id, number) in visible.enumerate() {
        while told.next_if(|told| told.number < number).is_some() {}
        let Some(told) = told.next_if(|told| told.number == number) else { continue };
        let default = defaults.iter().find(|(default, _)| *default == number);
        let path = told.path.display().to_string();
        listed.push(ListedAdapter {
            id,
            path: if caller.is_admin() { path } else { told.name.clone() },
            name: told.name,
            scale: default.map_or(0.0, |&(_, scale)| scale),
        });
    }
    Json(listed)
}

/// Set the default scales; adapters that are not named have none.
#[utoipa::path(
    post, path = "/lora-adapters", tag = "llama-server", request_body = Vec<Lora>,
    responses((status = 200), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    caller: Caller,
    _: Admin,
    body: Body,
) -> Result<Json<serde_json::Value>, ApiError> {
    let wanted: Vec<Lora> = body.read()?;
    let selection = app.select(&caller, &app.base.id, Some(&wanted))?;
    app.adapters.set_defaults(selection.adapters);
    Ok(Json(serde_json::json!({ "success": true })))
}
