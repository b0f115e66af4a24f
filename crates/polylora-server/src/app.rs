//! What all routes share.

use crate::access::Caller;
use crate::adapters::{Adapters, Number};
use crate::error::ApiError;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::scheduler::{Handle, Pooling, Tenant};
use polylora_engine::{ChatTemplate, ConstraintError, ConstraintFactory, Tokenizer};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::SystemTime;
use utoipa::ToSchema;

/// The state of the server.
pub(crate) struct App {
    pub(crate) base: Base,
    pub(crate) adapters: Adapters,
    pub(crate) scheduler: Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) keys: RwLock<Option<Arc<Keys>>>,
    /// Where they came from.
    pub(crate) keys_file: Option<PathBuf>,
    /// Whether adapters may be loaded and unloaded by request.
    pub(crate) allow_loading: bool,
}

/// The model under all adapters.
pub(crate) struct Base {
    /// What requests call it.
    pub(crate) id: String,
    pub(crate) architecture: String,
    pub(crate) parameters: u64,
    pub(crate) created: SystemTime,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) pooling: Option<Pooling>,
    /// Tokens of a request, its answer included.
    pub(crate) context: usize,
    pub(crate) vocab_size: usize,
    pub(crate) threads: usize,
    pub(crate) constraints: OnceLock<Result<ConstraintFactory, ConstraintError>>,
}

impl Base {
    /// Made when first asked for: it takes some tenths of a second.
    pub(crate) fn constraints(&self) -> Result<&ConstraintFactory, ApiError> {
        let made =
            self.constraints.get_or_init(|| ConstraintFactory::for_tokenizer(&self.tokenizer));
        made.as_ref().map_err(|error| ApiError::bad(error.to_string()))
    }
}

/// An adapter that a request asks for, by name or by its number.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Lora {
    /// The adapter's name.
    pub(crate) name: Option<String>,
    /// Its number in `/lora-adapters`, as llama-server's clients know it.
    pub(crate) id: Option<usize>,
    /// What its own scale is multiplied with.
    #[serde(default = "one")]
    pub(crate) scale: f32,
}

fn one() -> f32 {
    1.0
}

/// What a request runs on.
#[derive(Clone)]
pub(crate) struct Selection {
    /// As the request named it.
    pub(crate) model: String,
    pub(crate) adapters: Vec<(Number, f32)>,
    pub(crate) names: Arc<[String]>,
    pub(crate) tenant: Tenant,
}

impl App {
    pub(crate) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The adapter that a model's name stands for, none for the base; nothing where there is none
    /// that this caller may use.
    ///
    /// An adapter is called by its name, or as `base:name` or `base::name`. The base's own name
    /// wins a clash.
    pub(crate) fn find(&self, caller: &Caller, model: &str) -> Option<Option<Number>> {
        if model == self.base.id {
            return Some(None);
        }
        let allowed = |name: &str| {
            // Asked in any case, that both ways take as long.
            let found = self.adapters.find(name);
            found.filter(|_| caller.may_use(name))
        };
        let qualified = || {
            let rest = model.strip_prefix(self.base.id.as_str())?.strip_prefix(':')?;
            allowed(rest.strip_prefix(':').unwrap_or(rest))
        };
        allowed(model).or_else(qualified).map(Some)
    }

    /// What a request's `model` and `lora` stand for.
    ///
    /// # Errors
    /// Where there is no such model, or not for this caller.
    pub(crate) fn select(
        &self,
        caller: &Caller,
        model: &str,
        lora: Option<&[Lora]>,
    ) -> Result<Selection, ApiError> {
        let named = self.find(caller, model).ok_or_else(|| ApiError::no_model(model))?;
        let mut adapters: Vec<(Number, f32)> =
            named.map(|number| (number, 1.0)).into_iter().collect();
        match lora {
            Some(lora) => {
                for (at, one) in lora.iter().enumerate() {
                    adapters.push(self.select_one(caller, at, one)?);
                }
            }
            None if named.is_none() => {
                let may_use = |number: Number| {
                    self.adapters.name(number).is_some_and(|name| caller.may_use(&name))
                };
                adapters.extend(self.adapters.defaults().into_iter().filter(|d| may_use(d.0)));
            }
            None => {}
        }
        // At zero it does nothing, and is not even loaded.
        adapters.retain(|&(_, scale)| scale != 0.0);
        let names = adapters.iter().filter_map(|&(number, _)| self.adapters.name(number));
        let names: Arc<[String]> = names.collect();
        let tenant = Tenant { key: caller.name(), adapter: names.join("+") };
        Ok(Selection { model: model.to_owned(), adapters, names, tenant })
    }

    fn select_one(
        &self,
        caller: &Caller,
        at: usize,
        lora: &Lora,
    ) -> Result<(Number, f32), ApiError> {
        if !lora.scale.is_finite() {
            return Err(ApiError::bad_param(format!("lora[{at}].scale"), "A scale is a number."));
        }
        let number = match (&lora.name, lora.id) {
            (Some(name), None) => {
                let found = self.adapters.find(name).filter(|_| caller.may_use(name));
                found.ok_or_else(|| ApiError::no_model(name).param(format!("lora[{at}].name")))?
            }
            (None, Some(id)) => self.number_of(caller, id).ok_or_else(|| {
                ApiError::no_model(&id.to_string()).param(format!("lora[{at}].id"))
            })?,
            _ => {
                let message = "An adapter is named by `name` or by `id`, one of both.";
                return Err(ApiError::bad_param(format!("lora[{at}]"), message));
            }
        };
        Ok((number, lora.scale))
    }

    /// The adapter that this caller knows by a number, if it is registered: the number is its place
    /// among all that they may use, of all that ever were. So it stays the same, and tells nothing
    /// of those of others.
    pub(crate) fn number_of(&self, caller: &Caller, id: usize) -> Option<Number> {
        let names = self.adapters.names();
        let mut visible = (0..names.len()).filter(|&number| caller.may_use(&names[number]));
        visible.nth(id).filter(|&number| self.adapters.name(number).is_some())
    }
}
