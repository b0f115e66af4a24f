//! Bodies of requests: JSON, of bounded length, with the place of a mistake in the answer.

use crate::error::ApiError;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

/// Bytes that a request may have: the longest prompts have some megabytes.
pub(crate) const LONGEST: usize = 16 << 20;

/// The body of a request, which says that it is JSON.
pub(crate) struct Body(Bytes);

impl Body {
    /// The body as `T`; fields that `T` does not know are passed over.
    ///
    /// # Errors
    /// Where it is no JSON, or a field is not as it should be: which one is told.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let mut reader = serde_json::Deserializer::from_slice(&self.0);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let why = error.into_inner();
            match path.as_str() {
                "." => ApiError::bad(format!("The request is not as it should be: {why}")),
                _ => ApiError::bad(format!("{path}: {why}")).param(path),
            }
        })?;
        reader.end().map_err(|error| ApiError::bad(format!("After the request's end: {error}")))?;
        Ok(value)
    }
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Body, ApiError> {
        // A page of somebody else's, in the browser of who runs this server, cannot send this
        // type without being asked first whether it may.
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_json = content_type.and_then(|value| value.to_str().ok()).is_some_and(|value| {
            value.split(';').next().is_some_and(|ty| ty.trim() == "application/json")
        });
        if !is_json {
            return Err(ApiError::not_json());
        }
        // Who asks first need not send it. Others do not read before they have sent all: what is
        // too much of theirs is read first.
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let asks = request.headers().contains_key(header::EXPECT);
        if asks && length.is_some_and(|length| length > LONGEST as u64) {
            return Err(ApiError::too_large(LONGEST));
        }
        Bytes::from_request(request, state).await.map(Body).map_err(|error: BytesRejection| {
            match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(LONGEST),
                // Its sender has stopped, or is too slow.
                _ => ApiError::too_slow(),
            }
        })
    }
}
