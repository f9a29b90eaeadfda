//! Accepts connections and serves them, within limits, until told to stop.
//!
//! `axum::serve` has no limit on connections, on how long a client may take over a request's head
//! or on how long it may leave an answer unread, so that one that sends a byte a minute would keep
//! a socket for ever. This is the same loop with all three.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Most connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// Longest time for a request's head to arrive, and for a connection to stay open between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest request head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Longest time in milliseconds that a client may leave what was sent to it unread.
const UNREAD_TIMEOUT_MS: u32 = 30_000;
/// How long a connection may be silent before the kernel asks whether its client is still there.
const KEEPALIVE_SECONDS: u32 = 60;
/// How long requests under way may still take after the shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of file handles, say, which a busy loop would not cure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown` completes; then accepts nothing more, lets
/// requests under way finish for at most 10 seconds, and returns.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            continue;
        };
        let (router, stopping) = (router.clone(), stopping.clone());
        connections.spawn(async move {
            connection(stream, router, stopping).await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    stop.send_replace(());
    let drained =
        timeout(SHUTDOWN_GRACE, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!(
            connections = connections.len(),
            "API requests still under way at shutdown were cut off"
        );
    }
}

/// The next connection and its place among the permitted ones; none when the accept failed.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            warn!(%error, "cannot accept an API connection");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, router: Router, mut stopping: watch::Receiver<()>) {
    // Answers are small and each is awaited: never hold one back to fill a packet.
    let _ = stream.set_nodelay(true);
    // A log that is followed may say nothing for long, and its client may be gone meanwhile.
    let options = setsockopt(&stream, sockopt::TcpUserTimeout, &UNREAD_TIMEOUT_MS)
        .and_then(|()| setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS))
        .and_then(|()| setsockopt(&stream, sockopt::KeepAlive, &true));
    if let Err(error) = options {
        debug!(%error, "cannot set a socket option");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        _ = stopping.changed() => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "API connection ended");
    }
}
