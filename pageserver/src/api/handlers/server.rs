//! The server itself: status, metrics, health, and its own description.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::api::types::{Health, Status, Usage};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Answer;
use crate::api::metrics::Metrics;
use crate::api::openapi::{self, Always, Broken};
use crate::api::router::App;

/// Who takes how much of the disk: every byte of the store, counted once.
#[utoipa::path(
    get, path = "/v1/usage", tag = "server",
    responses((status = 200, description = "The bytes", body = Usage), Always)
)]
pub(in crate::api) async fn usage(State(app): State<Arc<App>>) -> Answer<Json<Usage>> {
    let joined = tokio::task::spawn_blocking(move || app.branches.usage()).await;
    Ok(Json(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?))
}

/// Versions, counts and sizes.
#[utoipa::path(
    get, path = "/v1/status", tag = "server",
    responses((status = 200, description = "The server's status", body = Status), Always)
)]
pub(in crate::api) async fn status(State(app): State<Arc<App>>) -> Answer<Json<Status>> {
    Ok(Json(app.branches.status()?))
}

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
pub(in crate::api) async fn metrics(State(app): State<Arc<App>>) -> Response {
    // Without a status the gauges keep their last values: the request counts are worth having most
    // when it fails.
    if let Ok(status) = app.branches.status() {
        set_gauges(&app.metrics, &status);
    }
    set_proxy_counts(&app.metrics, &app.proxy);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

fn set_gauges(metrics: &Metrics, status: &Status) {
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
pub(in crate::api) async fn healthz(State(app): State<Arc<App>>) -> Answer<Json<Health>> {
    app.branches.status()?;
    let status = "ok".to_owned();
    Ok(Json(Health { status }))
}

/// This document. Needs no token.
#[utoipa::path(
    get, path = "/openapi.json", tag = "server", security(()),
    responses((status = 200, description = "OpenAPI 3.1 document", body = Object))
)]
pub(in crate::api) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::document()).into_response()
}
