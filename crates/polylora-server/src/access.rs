//! Who asks, and what they may.

use crate::app::App;
use crate::error::ApiError;
use crate::keys::Key;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use std::sync::Arc;

/// Who sent a request: the holder of a key, or anybody where the server has no keys.
pub(crate) struct Caller(Option<Arc<Key>>);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Caller, ApiError> {
        let Some(keys) = app.keys() else { return Ok(Caller(None)) };
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, bearer) =
            header.and_then(|value| value.split_once(' ')).ok_or_else(ApiError::no_key)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::no_key());
        }
        let key = keys.check(bearer.trim()).ok_or_else(ApiError::no_key)?;
        tracing::Span::current().record("key", key.name());
        Ok(Caller(Some(key)))
    }
}

impl Caller {
    /// Whether this caller may use an adapter, and know of it.
    pub(crate) fn may_use(&self, adapter: &str) -> bool {
        self.0.as_ref().is_none_or(|key| key.may_use(adapter))
    }

    /// Refuses who may not change what others see.
    pub(crate) fn check_admin(&self) -> Result<(), ApiError> {
        match &self.0 {
            Some(key) if !key.is_admin() => Err(ApiError::forbidden("This takes an admin's key.")),
            _ => Ok(()),
        }
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.check_admin().is_ok()
    }

    /// Counts a request of this caller.
    pub(crate) fn take(&self) -> Result<(), ApiError> {
        self.0.as_ref().map_or(Ok(()), |key| key.take()).map_err(ApiError::too_often)
    }

    /// The name of the key.
    pub(crate) fn name(&self) -> Option<Arc<str>> {
        self.0.as_ref().map(|key| key.name().into())
    }
}

/// A caller who may change what others see.
pub(crate) struct Admin;

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Admin, ApiError> {
        Caller::from_request_parts(parts, app).await?.check_admin()?;
        Ok(Admin)
    }
}
