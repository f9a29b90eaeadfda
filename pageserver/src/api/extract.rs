//! Reads what a request carries, within limits, and says in an API error what is wrong with it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body as Stream, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::app::App;
use super::problem::Fault;
use crate::events::Actor;

/// Largest request body; the largest sensible one is a URL and a few names.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest wait for a request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an oversized body is read and thrown away before the answer.
const DRAIN_BYTES_MAX: usize = 64 << 20;

/// A JSON body that must be there.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        check_content_type(&parts.headers)?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body that may be left out, which stands for the default.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        check_content_type(&parts.headers)?;
        parse(&bytes).map(Self)
    }
}

/// The last part of the path that the route leaves open: a branch name or an import's id,
/// percent-decoded.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(Fault::new(
                StatusCode::BAD_REQUEST,
                "bad_path",
                "the path is not percent-encoded UTF-8",
            )),
        }
    }
}

/// The branch that the path means by its name or its label; what the path says if there is none.
pub(super) struct Named(pub(super) String);

impl FromRequestParts<Arc<App>> for Named {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Fault> {
        let Name(text) = Name::from_request_parts(parts, app).await?;
        Ok(Self(app.branches.name_meant(&text).unwrap_or(text)))
    }
}

/// Who the request is from, as the check of its token found.
pub(super) struct Caller(pub(super) Actor);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let actor = parts.extensions.get::<Actor>().cloned();
        let unknown = || {
            let detail = "nobody has checked who the request is from";
            Fault::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        };
        actor.map(Self).ok_or_else(unknown)
    }
}

/// The query string.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Fault::new(StatusCode::BAD_REQUEST, "bad_query", error.body_text())),
        }
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Fault> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    let essence = given.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    Err(Fault::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "the body must be JSON, with the header `Content-Type: application/json`",
    ))
}

/// Reads JSON, or says what is wrong with it.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => Fault::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_field",
            format!("the body does not fit: {error}; /openapi.json describes it"),
        ),
        Category::Io | Category::Syntax | Category::Eof => Fault::new(
            StatusCode::BAD_REQUEST,
            "bad_json",
            format!("the body is not JSON: {error}"),
        ),
    })
}

/// Reads a body whole, or says why not.
async fn read(body: Stream) -> Result<Vec<u8>, Fault> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(body)).await {
        Ok(result) => result,
        Err(_) => Err(Fault::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

/// Keeps at most the limit in memory. It reads on past it for a while, because a client that is
/// still writing when the connection closes gets a reset instead of the answer.
async fn collect(mut body: Stream) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let mut total = 0_usize;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| {
            Fault::new(
                StatusCode::BAD_REQUEST,
                "bad_body",
                format!("cannot read the body: {error}"),
            )
        })?;
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len());
        if total <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        } else if total > DRAIN_BYTES_MAX {
            break;
        }
    }
    if total > BODY_BYTES_MAX {
        return Err(Fault::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {BODY_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}
