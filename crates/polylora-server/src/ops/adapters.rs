//! `GET /adapters`: what the page shows.

use crate::access::Caller;
use crate::adapters::Residence;
use crate::app::App;
use crate::error::ErrorBody;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// The server at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Overview {
    model: ModelOverview,
    /// For an admin: it tells of others.
    cache: Option<CacheOverview>,
    /// For an admin.
    requests: Option<Requests>,
    adapters: Vec<AdapterOverview>,
}

/// The base.
#[derive(Debug, Serialize, ToSchema)]
struct ModelOverview {
    id: String,
    architecture: String,
    parameters: u64,
    /// Tokens of a request, its answer included.
    context: usize,
    threads: usize,
}

/// What is in memory.
#[derive(Debug, Serialize, ToSchema)]
struct CacheOverview {
    /// Of adapters.
    bytes: usize,
    capacity_bytes: usize,
    /// Pages of keys and values that no request holds, but later ones may use.
    prefix_pages: usize,
    /// Pages that requests hold.
    kv_used: usize,
    kv_capacity: usize,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
struct Requests {
    running: usize,
    waiting: usize,
}

/// An adapter.
#[derive(Debug, Serialize, ToSchema)]
struct AdapterOverview {
    /// Its number in `/lora-adapters`.
    id: usize,
    name: String,
    #[schema(value_type = String)]
    state: Residence,
    /// In memory.
    bytes: Option<usize>,
    rank: Option<usize>,
    generation: u64,
    /// SHA-256 of its content.
    hash: Option<String>,
    /// Why it cannot be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Requests that ended; this and what follows is of all keys, and for an admin.
    requests: Option<u64>,
    /// Tokens that were written.
    tokens: Option<u64>,
    running: Option<usize>,
    waiting: Option<usize>,
}

/// The model, the adapters and how busy they are.
#[utoipa::path(
    get, path = "/adapters", tag = "Operation",
    responses((status = 200, body = Overview), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn overview(State(app): State<Arc<App>>, caller: Caller) -> Json<Overview> {
    let (bytes, capacity_bytes) = app.adapters.usage();
    let load = app.scheduler.load();
    let names = app.adapters.names();
    // Ids count the adapters that the caller may use, of all that ever were.
    let visible = names.iter().filter(|name| caller.may_use(name)).zip(0..);
    let ids: HashMap<&String, usize> = visible.collect();
    let adapters = app.adapters.list().into_iter().filter_map(|told| {
        let id = *ids.get(&told.name)?;
        let traffic = caller.is_admin().then(|| app.metrics.traffic(&told.name));
        Some(AdapterOverview {
            id,
            state: told.residence,
            bytes: told.bytes,
            rank: told.rank,
            generation: told.generation,
            hash: told.hash,
            // Paths of files stand in it.
            error: told.error.map(|error| match caller.is_admin() {
                true => error.to_string(),
                false => "it cannot be loaded".to_owned(),
            }),
            requests: traffic.as_ref().map(|traffic| traffic.requests),
            tokens: traffic.as_ref().map(|traffic| traffic.tokens),
            running: traffic.as_ref().map(|traffic| traffic.running),
            waiting: traffic.as_ref().map(|traffic| traffic.waiting),
            name: told.name,
        })
    });
    let base = &app.base;
    Json(Overview {
        model: ModelOverview {
            id: base.id.clone(),
            architecture: base.architecture.clone(),
            parameters: base.parameters,
            context: base.context,
            threads: base.threads,
        },
        cache: caller.is_admin().then_some(CacheOverview {
            bytes,
            capacity_bytes,
            prefix_pages: load.prefix_pages,
            kv_used: load.pages,
            kv_capacity: load.most_pages,
        }),
        requests: (caller.is_admin())
            .then_some(Requests { running: load.running, waiting: load.waiting }),
        adapters: adapters.collect(),
    })
}
