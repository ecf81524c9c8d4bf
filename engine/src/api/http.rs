//! Answers: JSON documents, and failures with the statuses of interface §6.
//!
//! Always holds: an error is JSON `{"error":{"code","message"}}` and names what is wrong. Must never put a value of the
//! tree or a token into an error.

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;

use super::backend::Failure;

/// A JSON document with `status`.
pub(super) fn document(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(error) => Failure::Internal(format!("an answer could not be written: {error}")).into_response(),
    }
}

/// A JSON document with 200.
pub(super) fn ok(value: &impl Serialize) -> Response {
    document(StatusCode::OK, value)
}

const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// A body of JSON lines that comes piece by piece.
pub(super) fn lines(
    pieces: impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
) -> Response {
    ([(header::CONTENT_TYPE, LINES)], Body::from_stream(pieces)).into_response()
}

/// A body of one JSON line that is there already.
pub(super) fn line(line: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, LINES)], line).into_response()
}

impl Failure {
    /// The HTTP status (interface §6).
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::NotActive { .. } | Self::Refused { .. } => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy { .. } | Self::NoRoom { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotReached { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable word of the error document.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NotFound(_) => "not-found",
            Self::NotActive { .. } => "not-active",
            Self::Refused { code, .. } => code,
            Self::TooLarge(_) => "too-large",
            Self::Busy { .. } => "busy",
            Self::NoRoom { .. } => "no-room",
            Self::NotReached { .. } => "not-reached",
            Self::Internal(_) => "internal",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// An error document with a status of its own.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    document(status, &json!({"error": {"code": code, "message": message}}))
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = json!({"error": {"code": self.code(), "message": self.to_string()}});
        // What a program needs stands beside the error and, for those who look there, inside it.
        let extra = match &self {
            Self::NotActive { active } => Some(("active", json!(active))),
            Self::NotReached { version: Some(version), .. } => Some(("version", json!(version))),
            Self::Refused { blockers, .. } if !blockers.is_empty() => Some(("blockers", json!(blockers))),
            _ => None,
        };
        if let Some((key, value)) = extra {
            body["error"][key] = value.clone();
            body[key] = value;
        }
        let mut response = document(self.status(), &body);
        if let Self::Busy { retry_after_s } | Self::NoRoom { retry_after_s, .. } = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        response
    }
}
