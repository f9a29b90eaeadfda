//! Version 1 of the API, the project's own.
//!
//! One function per route: take the request apart, call the service, hand its answer back. The
//! bodies are the types of the crate `api`; `convert` translates between them and the services'.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, patch, post};

use super::app::App;
use super::problem::Fault;

pub(super) mod branches;
mod convert;
pub(super) mod imports;
pub(super) mod logs;
pub(super) mod paths;
pub(super) mod server;

/// What a handler returns.
type Handled<T> = Result<T, Fault>;

/// The routes.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/branches", get(branches::list).post(branches::create))
        .route(
            "/v1/branches/{name}",
            get(branches::show)
                .put(branches::ensure)
                .patch(branches::update)
                .delete(branches::delete),
        )
        .route("/v1/branches/{name}/reset", post(branches::reset))
        .route("/v1/branches/{name}/restore", post(branches::restore))
        .route("/v1/branches/{name}/suspend", post(branches::suspend))
        .route("/v1/branches/{name}/wake", post(branches::wake))
        .route("/v1/branches/{name}/connection", get(branches::connection))
        .route("/v1/branches/{name}/history", get(branches::history))
        .route("/v1/branches/{name}/logs", get(logs::logs))
        .route("/v1/branches/{name}/settings", patch(branches::settings))
        .route("/v1/branches/{name}/password", post(branches::password))
        .route("/v1/imports", post(imports::start))
        .route("/v1/imports/{id}", get(imports::show))
        .route("/v1/usage", get(server::usage))
        .route("/v1/status", get(server::status))
}
