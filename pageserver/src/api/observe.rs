//! What happens around every request: it runs to its end, is counted, timed and logged.

use std::sync::Arc;
use std::time::Instant;

use axum::RequestExt;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{debug, error, info};

use super::metrics::Metrics;
use super::problem::Fault;
use crate::tasks;

/// Set by a handler on its response when the branch is named in the body, not in the path.
#[derive(Clone, Debug)]
pub(super) struct Subject(pub(super) String);

/// What the log line says about a request. Neither query, headers nor body: those may hold secrets.
struct Observed {
    method: Method,
    route: String,
    branch: Option<String>,
    started: Instant,
}

/// Runs the request as a task of its own. A client that hangs up drops the connection's future; a
/// change dropped half way could leave a branch between two states.
pub(super) async fn observe(
    State(metrics): State<Arc<Metrics>>,
    mut request: Request,
    next: Next,
) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let params = request.extract_parts::<RawPathParams>().await.ok();
    let name = params.and_then(|params| {
        params.iter().find(|(key, _)| *key == "name").map(|(_, name)| name.to_owned())
    });
    let seen =
        Observed { method: request.method().clone(), route, branch: name, started: Instant::now() };
    tasks::detached(async move {
        let response = next.run(request).await;
        record(&metrics, &seen, &response);
        response
    })
    .await
}

fn record(metrics: &Metrics, seen: &Observed, response: &Response) {
    let duration = seen.started.elapsed();
    let status = response.status();
    let route = seen.route.as_str();
    let labels =
        [("route", route), ("method", method_label(&seen.method)), ("status", status.as_str())];
    metrics.counter("coppice_http_requests_total", "API requests answered.", &labels).add(1);
    metrics
        .histogram(
            "coppice_http_request_seconds",
            "Time to answer API requests.",
            &[("route", route)],
        )
        .observe(duration);

    let method = &seen.method;
    let branch =
        response.extensions().get::<Subject>().map(|subject| &subject.0).or(seen.branch.as_ref());
    // Debug formatting escapes control characters, so that a name cannot forge a log line.
    let branch = branch.map(tracing::field::debug);
    let ms = duration.as_secs_f64() * 1000.0;
    let fault = response.extensions().get::<Fault>();
    let code = fault.map(|fault| fault.code);
    let status = status.as_u16();
    if let Some(fault) = fault.filter(|fault| fault.status == StatusCode::INTERNAL_SERVER_ERROR) {
        let detail = fault.detail.as_str();
        error!(%method, route, branch, status, code, detail, ms, "request failed");
    } else if method.is_safe() {
        debug!(%method, route, branch, status, code, ms, "request");
    } else {
        info!(%method, route, branch, status, code, ms, "request");
    }
}

/// A client may invent methods; the label's values must stay few.
fn method_label(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    if known.contains(method) { method.as_str() } else { "other" }
}
