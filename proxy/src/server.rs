//! The accept loop, and the shutdown of the proxy.
//!
//! The loop bounds the number of connections before their session and within, and of those that are
//! refused. When file descriptors run out, the loop pauses; it neither ends nor spins. [`run`]
//! returns only after every connection is gone.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backends::Backends;
use crate::limits::Limits;
use crate::local_listener::LocalListener;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::route::Routing;
use crate::session::{Admission, serve, serve_local, too_many_starting};
use crate::shared::{Phase, Shared};
use crate::tls::Tls;

/// Pause after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// How long connections get to finish once the proxy closes them.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// When the kernel probes a silent client: first, then how often and how many times. Without probes
/// a laptop that was closed would keep its branch awake for the two hours that Linux waits by
/// default.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// The sockets on which the proxy accepts clients.
pub struct Listeners {
    /// For clients on the same machine, at less cost: without TLS, and so without a host name that
    /// could choose the branch.
    pub unix: Option<LocalListener>,
    /// For clients anywhere. Closed last, so that a successor finds both closed.
    pub tcp: TcpListener,
}

/// How a proxy works.
pub struct Settings {
    /// Its certificate, and the domain of the branches.
    pub tls: Tls,
    /// How it chooses branches.
    pub routing: Routing,
    /// What it refuses.
    pub limits: Limits,
    /// What copies the bytes of sessions.
    pub relay: Relay,
}

/// Serves connections through `listeners` until `shutdown` is ready, then ends those that are left,
/// and returns.
///
/// A page server that stops its computes while this waits for the grace period lets each client get
/// the shutdown message of its own Postgres.
pub async fn run<B: Backends>(
    listeners: Listeners,
    settings: Settings,
    backends: Arc<B>,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()>,
) {
    let (phase, watch) = watch::channel(Phase::Serving);
    let Settings { tls, routing, limits, relay } = settings;
    let grace = limits.grace;
    let shared = Arc::new(Shared {
        backends,
        tls,
        routing,
        metrics,
        keys: Arc::default(),
        relay,
        sessions: Arc::new(Semaphore::new(limits.sessions)),
        greetings: Arc::new(Semaphore::new(limits.greetings)),
        refusals: Arc::new(Semaphore::new(limits.refusals)),
        limits,
        phase: watch,
    });
    let mut connections = JoinSet::new();
    accept_until(shutdown, &listeners, &shared, &mut connections).await;
    drop(listeners);
    phase.send_replace(Phase::Draining);
    let _ = timeout(grace, finish(&mut connections)).await;
    if !connections.is_empty() {
        let left = connections.len();
        tracing::info!(left, "closing the sessions that are left after the grace period");
    }
    phase.send_replace(Phase::Closing);
    let _ = timeout(CLOSE_TIME, finish(&mut connections)).await;
    connections.shutdown().await;
}

async fn accept_until<B: Backends>(
    shutdown: impl Future<Output = ()>,
    listeners: &Listeners,
    shared: &Arc<Shared<B>>,
    connections: &mut JoinSet<()>,
) {
    let local = async || match &listeners.unix {
        Some(unix) => unix.listener.accept().await,
        None => std::future::pending().await,
    };
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            accepted = listeners.tcp.accept() => {
                accepted.map(|(socket, peer)| admit(socket, peer, shared, connections))
            }
            accepted = local() => {
                accepted.map(|(socket, _)| admit_local(socket, shared, connections))
            }
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept a connection");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn finish(connections: &mut JoinSet<()>) {
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

fn admit<B: Backends>(
    socket: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared<B>>,
    connections: &mut JoinSet<()>,
) {
    let place = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned();
    let admitted = place(&shared.greetings).map(|permit| (permit, Admission::Served));
    let admitted =
        admitted.or_else(|_| place(&shared.refusals).map(|permit| (permit, Admission::Refused)));
    let Ok((permit, admission)) = admitted else {
        return turn_away(&peer, socket.into_std());
    };
    if let Err(error) = prepare(&socket) {
        tracing::debug!(%peer, %error, "cannot set socket options");
    }
    let open = shared.metrics.open();
    let shared = Arc::clone(shared);
    connections.spawn(async move {
        let _open = open;
        serve(socket, peer, shared, admission, permit).await;
    });
}

fn admit_local<B: Backends>(
    socket: UnixStream,
    shared: &Arc<Shared<B>>,
    connections: &mut JoinSet<()>,
) {
    let Ok(permit) = Arc::clone(&shared.greetings).try_acquire_owned() else {
        return turn_away(&"on this machine", socket.into_std());
    };
    let open = shared.metrics.open();
    let shared = Arc::clone(shared);
    connections.spawn(async move {
        let _open = open;
        serve_local(socket, shared, permit).await;
    });
}

/// Refuses without waiting for anything, so that the accept loop cannot be held up.
fn turn_away(peer: &impl Display, socket: io::Result<impl Write>) {
    tracing::info!(
        %peer,
        "connection turned away: too many have not sent their startup packet yet"
    );
    let refusal = too_many_starting().encode();
    let written = socket.and_then(|mut socket| socket.write(&refusal));
    tracing::trace!(?written, "sent the refusal");
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    Ok(setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?)
}

/// Raises this process's limit on open files as far as it is allowed to, and returns it.
///
/// A session takes two, so the usual soft limit of 1,024 is too low for the default [`Limits`].
pub fn raise_file_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}
