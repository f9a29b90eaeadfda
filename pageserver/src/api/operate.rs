//! `/metrics` and `/healthz`: for those who operate the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::api::types::Health;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::faults::{Always, Broken};
use super::metrics::Metrics;
use super::problem::Fault;
use crate::branches::ServerView;

/// Prometheus metrics.
#[utoipa::path(
    get, path = "/metrics", tag = "server",
    responses(
        (
            status = 200, description = "Prometheus text format", body = String,
            content_type = "text/plain"
        ),
        Always,
    )
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    // Without a status the gauges keep their last values: the request counts are worth having most
    // when it fails.
    if let Ok(view) = app.branches.server().await {
        set_gauges(&app.metrics, &view);
    }
    set_proxy_counts(&app.metrics, &app.proxy);
    set_event_counts(&app);
    set_job_outcomes(&app);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

fn set_gauges(metrics: &Metrics, status: &ServerView) {
    for (name, help, value) in [
        ("coppice_branches", "Branches.", status.branches),
        ("coppice_computes_running", "Branches whose Postgres runs.", status.running),
        ("coppice_connections", "Client connections through the proxy.", status.connections),
        ("coppice_store_bytes", "Bytes the store takes on disk.", status.store_bytes),
        ("coppice_free_bytes", "Bytes free on the store's file system.", status.free_bytes),
        ("coppice_uptime_seconds", "Seconds since the server started.", status.uptime_s),
    ] {
        metrics.gauge(name, help, &[]).set(value);
    }
}

fn set_proxy_counts(metrics: &Metrics, proxy: &proxy::Metrics) {
    for (name, help, value) in [
        (
            "coppice_proxy_connections_total",
            "Connections the proxy accepted.",
            &proxy.connections_total,
        ),
        ("coppice_proxy_refused_total", "Connections the proxy refused.", &proxy.refused_total),
        ("coppice_proxy_cancels_total", "Cancel requests.", &proxy.cancels_total),
        (
            "coppice_proxy_received_bytes_total",
            "Bytes from clients.",
            &proxy.bytes_from_clients_total,
        ),
        ("coppice_proxy_sent_bytes_total", "Bytes to clients.", &proxy.bytes_to_clients_total),
    ] {
        metrics.counter(name, help, &[]).set(value.load(Ordering::Relaxed));
    }
}

/// Whether branches can be created. Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "server", security(()),
    responses((status = 200, description = "Branches can be created", body = Health), Broken)
)]
pub(super) async fn healthz(State(app): State<Arc<App>>) -> Result<Json<Health>, Fault> {
    app.branches.health()?;
    let status = "ok".to_owned();
    Ok(Json(Health { status }))
}

fn set_event_counts(app: &App) {
    for (action, count) in app.branches.events().counts() {
        let labels = [("action", action.word())];
        app.metrics
            .counter("coppice_branch_events_total", "What was done to branches.", &labels)
            .set(count);
    }
}

fn set_job_outcomes(app: &App) {
    for (job, outcome) in app.jobs.outcomes() {
        let labels = [("job", job)];
        let metrics = &app.metrics;
        metrics.counter("coppice_job_runs_total", "Runs of a job.", &labels).set(outcome.runs);
        metrics
            .counter("coppice_job_failures_total", "Runs of a job that failed.", &labels)
            .set(outcome.failures);
        metrics
            .gauge("coppice_job_last_ok", "Whether the last run succeeded: 1 or 0.", &labels)
            .set(u64::from(outcome.error.is_none()));
        metrics
            .gauge("coppice_job_last_end_seconds", "When the last run ended, since 1970.", &labels)
            .set(outcome.ended_ns.unsigned_abs() / 1_000_000_000);
        metrics
            .gauge("coppice_job_last_duration_ms", "How long the last run took.", &labels)
            .set(outcome.duration_ms);
    }
}
