//! `/v1/branches/{name}/logs`: what a branch's Postgres logged.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Handled;
use super::branches::BranchName;
use crate::api::app::App;
use crate::api::extract::{Name, Params};
use crate::api::faults::{Always, BadInput, Missing};
use crate::api::problem::Fault;
use crate::branches::LogStream;
use crate::error::Error;

/// How many lines there are unless the request says otherwise.
const LINES: usize = 200;
/// Most lines of the past.
const LINES_MAX: usize = 10_000;

/// Which lines to answer with.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct LogQuery {
    /// How many of the last lines, 0 to 10000; 200 if left out.
    lines: Option<usize>,
    /// Whether the answer goes on with the lines to come, until the branch is deleted or the server
    /// stops.
    #[serde(default)]
    follow: bool,
}

/// What the branch's Postgres logged, statements included: the last lines of those that are kept.
#[utoipa::path(
    get, path = "/v1/branches/{name}/logs", tag = "branches", params(BranchName, LogQuery),
    responses(
        (
            status = 200, description = "The lines, oldest first", body = String,
            content_type = "text/plain"
        ),
        Always, BadInput, Missing,
    )
)]
pub(in crate::api) async fn logs(
    State(app): State<Arc<App>>,
    Name(name): Name,
    Params(LogQuery { lines, follow }): Params<LogQuery>,
) -> Handled<Response> {
    let lines = lines.unwrap_or(LINES);
    if lines > LINES_MAX {
        let detail = format!("`lines` must be a number from 0 to {LINES_MAX}");
        return Err(Fault::new(StatusCode::BAD_REQUEST, "bad_query", detail));
    }
    let stream = app.branches.logs(&name, lines, follow).await?;
    let kind = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        // A statement in the log is text, whatever it looks like.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((kind, Body::new(LogBody(stream))).into_response())
}

/// A stream as the body of an answer.
struct LogBody(LogStream);

impl hyper::body::Body for LogBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.poll_next(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece?.into()))))
    }
}
