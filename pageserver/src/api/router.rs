//! Which path goes to which handler, and what wraps them all.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_request};
use axum::routing::{get, post};

use super::auth::{self, Token};
use super::handlers::{branches, imports, server};
use super::metrics::Metrics;
use super::observe::observe;
use super::problem::Fault;
use crate::branches::Branches;
use crate::import::Imports;

/// What the handlers work on.
pub struct App {
    /// The branch service.
    pub branches: Arc<Branches>,
    /// Imports under way.
    pub imports: Arc<Imports>,
    /// What a request must present.
    pub token: Token,
    /// Where requests are counted, with whatever other parts of the server registered.
    pub metrics: Arc<Metrics>,
    /// What the proxy counts.
    pub proxy: Arc<proxy::Metrics>,
}

/// The words that may follow a branch's name in a path.
const ACTIONS: [&str; 6] = ["reset", "restore", "suspend", "wake", "connection", "history"];
/// Where branches live.
pub(super) const BRANCHES: &str = "/v1/branches/";

/// The whole API over `app`.
pub fn router(app: Arc<App>) -> Router {
    let metrics = Arc::clone(&app.metrics);
    let guarded = Router::new()
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
        .route("/v1/imports", post(imports::start))
        .route("/v1/imports/{id}", get(imports::show))
        .route("/v1/usage", get(server::usage))
        .route("/v1/status", get(server::status))
        .route("/metrics", get(server::metrics))
        .route_layer(from_fn_with_state(Arc::clone(&app), auth::require));
    let open = Router::new()
        .route("/healthz", get(server::healthz))
        .route("/openapi.json", get(server::openapi));
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

/// Lets a branch name's `/` be written as it is: `/v1/branches/feature/login/reset` is taken as
/// `/v1/branches/feature%2Flogin/reset`; none if there is nothing to change. Where the last part is
/// an action's word it is the action: a branch that is really called `feature/reset` must be
/// written `feature%2Freset`.
pub(super) fn joined(uri: &Uri) -> Option<Uri> {
    let rest = uri.path().strip_prefix(BRANCHES)?;
    let (name, action) = match rest.rsplit_once('/') {
        Some((name, last)) if ACTIONS.contains(&last) => (name, Some(last)),
        _ => (rest, None),
    };
    if !name.contains('/') {
        return None;
    }
    let mut path = format!("{BRANCHES}{}", name.replace('/', "%2F"));
    for part in
        [action.map(|action| format!("/{action}")), uri.query().map(|query| format!("?{query}"))]
    {
        path.push_str(&part.unwrap_or_default());
    }
    path.parse().ok()
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
