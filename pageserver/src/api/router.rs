//! Which path goes to which handler, and what wraps them all.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_request};
use axum::routing::get;

use super::app::App;
use super::auth::{self, Token};
use super::metrics::Metrics;
use super::observe::observe;
use super::problem::Fault;
use super::v1::paths::joined;
use super::{openapi, operate, v1};

/// The whole API over `app`, for requests that bear `token`.
pub fn router(app: Arc<App>, token: Token) -> Router {
    let metrics = Arc::clone(&app.metrics);
    let guarded = v1::routes()
        .route("/metrics", get(operate::metrics))
        .route_layer(from_fn_with_state(token, auth::require));
    let open = Router::new()
        .route("/healthz", get(operate::healthz))
        .route("/openapi.json", get(openapi::show));
    wrap(guarded.merge(open).with_state(app), metrics)
}

/// Adds what every request gets, whether a route matches it or not.
pub(super) fn wrap(routes: Router, metrics: Arc<Metrics>) -> Router {
    let routes = routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(metrics, observe));
    // A layer of the router itself would run after the route is chosen; this one has to run before.
    Router::new().fallback_service(routes).layer(map_request(join_name))
}

async fn join_name(mut request: Request) -> Request {
    // What was a valid path stays one; were it not, the request would go on unchanged to a 404.
    if let Some(uri) = joined(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

async fn not_found(uri: Uri) -> Fault {
    let path = uri.path();
    Fault::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("no route is `{path}`; /openapi.json lists them all"),
    )
}

async fn method_not_allowed(method: Method, uri: Uri) -> Fault {
    Fault::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("`{}` does not take {method}; /openapi.json lists what it takes", uri.path()),
    )
}
