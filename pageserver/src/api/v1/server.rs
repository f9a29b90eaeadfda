//! `/v1/usage` and `/v1/status`: the server as a whole.

use std::sync::Arc;

use ::api::types::{Status, Usage};
use axum::Json;
use axum::extract::State;

use super::Handled;
use crate::api::app::App;
use crate::api::faults::Always;

/// Who takes how much of the disk: every byte of the store, counted once.
#[utoipa::path(
    get, path = "/v1/usage", tag = "server",
    responses((status = 200, description = "The bytes", body = Usage), Always)
)]
pub(in crate::api) async fn usage(State(app): State<Arc<App>>) -> Handled<Json<Usage>> {
    Ok(Json(app.branches.usage().await?.into()))
}

/// Versions, counts and sizes.
#[utoipa::path(
    get, path = "/v1/status", tag = "server",
    responses((status = 200, description = "The server's status", body = Status), Always)
)]
pub(in crate::api) async fn status(State(app): State<Arc<App>>) -> Handled<Json<Status>> {
    Ok(Json(app.branches.server().await?.into()))
}
