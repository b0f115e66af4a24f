//! What a client is told when a request cannot be answered: OpenAI's form, whatever the route.

use crate::scheduler::{Failure, NotTaken};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// An error as clients of OpenAI's API read it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorDetail,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// For people.
    pub(crate) message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or
    /// `server_error`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    /// For programs.
    pub(crate) code: Option<&'static str>,
}

/// A request that is not answered as it was meant.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    detail: ErrorDetail,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        let detail = ErrorDetail { message: message.into(), kind, param: None, code: None };
        ApiError { status, detail, retry_after: None }
    }

    /// The request cannot be meant.
    pub(crate) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The request cannot be meant, because of one field.
    pub(crate) fn bad_param(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::bad(message).param(param)
    }

    /// There is no such model, or not for this caller: which of both is not told.
    pub(crate) fn no_model(name: &str) -> ApiError {
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        error.param("model").code("model_not_found")
    }

    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub(crate) fn bad_method() -> ApiError {
        let message = "This path is not used with this method: see /openapi.json.";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    pub(crate) fn no_key() -> ApiError {
        let message = "Send an API key that this server knows: Authorization: Bearer KEY.";
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        error.code("invalid_api_key")
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(crate) fn too_large(limit: usize) -> ApiError {
        let message = format!("A request may have {limit} bytes.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    pub(crate) fn too_slow() -> ApiError {
        let message = "The request did not arrive in time.";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    pub(crate) fn not_json() -> ApiError {
        let message = "Send JSON, and say so: Content-Type: application/json.";
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    pub(crate) fn too_often(wait: Duration) -> ApiError {
        let message = "This key has used up its rate of requests.";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.code("rate_limit_exceeded").retry_after(wait)
    }

    /// A fault of ours; what it was stands in the log.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(crate) fn param(mut self, param: impl Into<String>) -> ApiError {
        self.detail.param = Some(param.into());
        self
    }

    pub(crate) fn code(mut self, code: &'static str) -> ApiError {
        self.detail.code = Some(code);
        self
    }

    fn retry_after(mut self, wait: Duration) -> ApiError {
        self.retry_after = Some(wait);
        self
    }

    /// For a stream that has begun, where no status can be told any more.
    pub(crate) fn body(self) -> ErrorBody {
        ErrorBody { error: self.detail }
    }
}

impl From<NotTaken> for ApiError {
    fn from(why: NotTaken) -> ApiError {
        match why {
            NotTaken::Full(wait) => {
                let message = "Too many requests are waiting: try again later.";
                let error =
                    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
                error.code("server_overloaded").retry_after(wait)
            }
            NotTaken::Draining => {
                let message = "The server is going down: try another, or again later.";
                let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
                error.code("draining").retry_after(Duration::from_secs(5))
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        match &failure {
            Failure::AdapterGone(name) => ApiError::no_model(name),
            Failure::Completion(why) => ApiError::bad(why.clone()),
            Failure::Adapter { .. } | Failure::Engine(_) => {
                ApiError::internal(format!("{failure}: the server's log says why."))
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self.body())).into_response();
        if let Some(wait) = retry_after {
            // Whole seconds, not fewer than it takes.
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            // The rest of the request is not read, so the connection ends here. A client that kept it
            // would learn that by its next request.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
