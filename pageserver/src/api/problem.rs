//! Errors as `application/problem+json` (RFC 9457): the one place where an error gets its HTTP
//! status.

use ::api::types::Problem;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Kind};

/// An error on its way to the client. A copy travels in the response's extensions for the request's
/// log line.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// HTTP status.
    pub(super) status: StatusCode,
    /// Stable identifier.
    pub(super) code: &'static str,
    /// What went wrong and what to do.
    pub(super) detail: String,
}

impl Fault {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }
}

/// The HTTP status of an error, by its consequence.
fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Full => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Latched | Kind::Corrupt | Kind::Io => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::new(status(error.kind), error.code, error.detail)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            detail: self.detail.clone(),
        };
        let mut response = (self.status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"coppice\""),
            );
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status() {
        let table = [
            (Kind::Invalid, 400),
            (Kind::NotFound, 404),
            (Kind::Conflict, 409),
            (Kind::Latched, 500),
            (Kind::Corrupt, 500),
            (Kind::Io, 500),
            (Kind::Unavailable, 503),
            (Kind::Full, 507),
        ];
        for (kind, expected) in table {
            let response =
                Fault::from(Error::new(kind, "some_code", "some detail")).into_response();
            assert_eq!(response.status().as_u16(), expected, "{kind:?}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        }
    }
}
