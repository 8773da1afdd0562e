//! Errors as clients see them: always JSON, always the same four fields.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::catalog::{Code, Refusal};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What kind of error, in one word that does not change.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The field, parameter or header that is wrong, such as `spec.listeners[0].port`.
    pub field: Option<String>,
    /// Ids of those who use the object, for `InUse`.
    pub users: Vec<String>,
}

/// An answer that is not a success.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { code: code.into(), message: message.into(), field: None, users: Vec::new() } }
    }

    /// A value of the request that is not allowed.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Invalid", message).at(field)
    }

    /// No credentials, or none that are known.
    pub(super) fn unauthenticated(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthenticated", message)
    }

    /// A fault of ours.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", message)
    }

    /// More than there is room for; later it may do.
    pub(super) fn busy(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", message)
    }

    pub(super) fn at(mut self, field: impl Into<String>) -> Self {
        self.body.field = Some(field.into());
        self
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match refusal.code {
            Code::Invalid => (StatusCode::BAD_REQUEST, "Invalid"),
            Code::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
            Code::Conflict => (StatusCode::CONFLICT, "Conflict"),
            Code::InUse => (StatusCode::CONFLICT, "InUse"),
            Code::AlreadyExists => (StatusCode::CONFLICT, "AlreadyExists"),
            Code::Forbidden => (StatusCode::FORBIDDEN, "Forbidden"),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "Unauthenticated"),
            Code::NotSupportedByGateway => (StatusCode::UNPROCESSABLE_ENTITY, "NotSupportedByGateway"),
            Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge"),
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal"),
        };
        let body =
            ErrorBody { code: code.into(), message: refusal.message, field: refusal.field, users: refusal.users };
        Self { status, body }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self.body)).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            StatusCode::SERVICE_UNAVAILABLE => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("5"))),
            _ => {}
        }
        response
    }
}

/// The answer to a path that there is not.
pub(super) async fn no_such_path() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "NotFound", "there is no such path; /v1/openapi.json has them all")
}

/// The answer to a path that there is, with a method that it does not have.
pub(super) async fn no_such_method() -> ApiError {
    let message = "this path does not have that method; the Allow header has those that it has";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}
