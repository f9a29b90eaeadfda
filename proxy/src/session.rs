//! One connection from accept to close: greeting, route, wake, relay.
//!
//! A client that the proxy refuses learns the reason in a Postgres error. The session gives up the
//! lease of its branch as soon as the session ends, or as the client goes away while the branch
//! still wakes. Each session leaves one line in the log, without any secret. The branch's Postgres
//! does the authentication, whose messages pass through untouched.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::rustls::ServerConnection;
use tokio_rustls::server::TlsStream;

use crate::backends::{Backends, Upstream};
use crate::end::{End, close};
use crate::first_reply::{FirstReply, first_reply};
use crate::greeting::{self, Failure, Negotiated, StartupRequest};
use crate::mentions::Mentions;
use crate::monitor::Monitor;
use crate::refusal::{
    CANNOT_CONNECT_NOW, INVALID_AUTHORIZATION, PROTOCOL_VIOLATION, Refusal, SHUTTING_DOWN,
    TOO_MANY_CONNECTIONS,
};
use crate::route::{Route, route};
use crate::shared::{Phase, Shared};
use crate::startup::{CancelKey, Startup};

/// Bytes that a client may send ahead while its branch wakes; more stay in the kernel.
const EARLY_BYTES_MAX: usize = 8 * 1024;
/// How long to wait before connecting again to a Postgres whose queue of new connections is full.
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);
/// How often a session asks for its branch if the Postgres of the branch goes away just then.
const ATTEMPTS: u32 = 9;
/// Longest pause between two of these; after a crash Postgres may need some seconds to end.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long the refusal of a client may take to send.
const REFUSAL_TIME: Duration = Duration::from_secs(5);

/// Whether a connection may become a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may.
    Served,
    /// Too many others have not started theirs yet. The client learns that where it expects an
    /// answer: within TLS, if it asks for TLS.
    Refused,
}

/// Serves one connection. `permit` counts it among those that have not started a session yet, or
/// among those that are refused.
pub(crate) async fn serve<B: Backends>(
    mut socket: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared<B>>,
    admission: Admission,
    permit: OwnedSemaphorePermit,
) {
    let connection = Connection::new(peer.to_string(), &shared, admission, permit);
    let deadline = Instant::now() + connection.limit();
    match connection.until(deadline, greeting::negotiate(&mut socket)).await {
        Ok(Negotiated::Plain(request)) => connection.handle(socket, Ok(request)).await,
        Ok(Negotiated::Tls { direct }) => connection.encrypt(socket, direct, deadline).await,
        Err(failure) => connection.handle(socket, Err(failure)).await,
    }
}

/// Serves one connection from the same machine.
pub(crate) async fn serve_local<B: Backends>(
    mut socket: UnixStream,
    shared: Arc<Shared<B>>,
    permit: OwnedSemaphorePermit,
) {
    let user = socket.peer_cred().map(|peer| peer.uid());
    let peer = user.as_ref().map_or("local".to_owned(), |uid| format!("local user {uid}"));
    let connection = Connection::new(peer, &shared, Admission::Served, permit);
    let deadline = Instant::now() + connection.limit();
    let request = if user.is_ok_and(|uid| shared.backends.admits(uid)) {
        connection.until(deadline, greeting::local(&mut socket)).await
    } else {
        Err(not_admitted().into())
    };
    connection.handle(socket, request).await;
}

/// A connection before its session, whatever kind of stream it is.
struct Connection<'a, B> {
    /// The client's address or user, for the log.
    peer: String,
    shared: &'a Arc<Shared<B>>,
    admission: Admission,
    /// Held until the session starts.
    permit: Option<OwnedSemaphorePermit>,
    sni: Option<String>,
    tls: bool,
}

/// A branch that is ready for the session.
struct Awake {
    upstream: Upstream,
    server: UnixStream,
}

impl<'a, B: Backends> Connection<'a, B> {
    fn new(
        peer: String,
        shared: &'a Arc<Shared<B>>,
        admission: Admission,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { peer, shared, admission, permit: Some(permit), sni: None, tls: false }
    }

    /// Time from accept to a complete startup packet.
    fn limit(&self) -> Duration {
        match self.admission {
            Admission::Served => self.shared.limits.startup,
            Admission::Refused => self.shared.limits.refusal,
        }
    }

    /// Does the TLS handshake and reads the request within it.
    async fn encrypt(mut self, socket: TcpStream, direct: bool, deadline: Instant) {
        let handshake = async { Ok(self.shared.tls.accept(socket).await?) };
        let mut handshake = match self.until(deadline, handshake).await {
            Ok(handshake) => handshake,
            // Half a handshake leaves no channel to say more than TLS itself has said.
            Err(failure) => {
                return tracing::debug!(peer = %self.peer, ?failure, "TLS handshake failed");
            }
        };
        self.sni = handshake.sni.take();
        self.tls = true;
        let request = if direct && !handshake.alpn {
            let text = "direct TLS without the application protocol (ALPN) \"postgresql\"";
            let hint =
                "Use a client that supports sslnegotiation=direct, or sslnegotiation=postgres.";
            Err(Refusal::new(PROTOCOL_VIOLATION, text).with_hint(hint).into())
        } else {
            self.until(deadline, greeting::encrypted(&mut handshake.stream)).await
        };
        self.handle(handshake.stream, request).await;
    }

    /// Waits for `work`, but not beyond the deadline for the startup packet, nor into a shutdown.
    async fn until<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            result = work => result,
            () = sleep_until(deadline) => Err(self.late().into()),
            () = self.shared.reached(Phase::Draining) => Err(shutting_down().into()),
        }
    }

    fn late(&self) -> Refusal {
        match self.admission {
            Admission::Served => {
                let text = format!("no complete startup packet within {:?}", self.limit());
                Refusal::new(PROTOCOL_VIOLATION, text)
            }
            Admission::Refused => too_many_starting(),
        }
    }

    async fn handle(mut self, mut stream: impl Stream, request: Result<StartupRequest, Failure>) {
        let result = match request {
            Ok(StartupRequest::Session(startup)) => match self.start(&mut stream, startup).await {
                Ok(session) => return self.run(stream, session).await,
                Err(failure) => Err(failure),
            },
            Ok(StartupRequest::Cancel(key)) => {
                self.cancel(&key).await;
                Ok(())
            }
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => {}
            Err(Failure::Gone(error)) => {
                return tracing::debug!(peer = %self.peer, %error, "client left before a session");
            }
            Err(Failure::Refused(refusal)) => {
                self.shared.metrics.refused_total.fetch_add(1, Ordering::Relaxed);
                let Refusal { sqlstate, message, .. } = &refusal;
                // Debug form, since the message may quote what the client sent.
                tracing::info!(
                    peer = %self.peer, sqlstate, reason = ?message,
                    "connection refused"
                );
                let sent = timeout(REFUSAL_TIME, stream.write_all(&refusal.encode())).await;
                tracing::trace!(?sent, "sent the refusal");
            }
        }
        close(&mut stream).await;
    }

    async fn cancel(&self, key: &CancelKey) {
        self.shared.metrics.cancels_total.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.shared.keys.forward(key).await {
            tracing::warn!(peer = %self.peer, %error, "cannot forward a cancel request");
        }
    }

    /// Gets a session to where its Postgres has the startup packet.
    async fn start(
        &mut self,
        client: &mut impl Stream,
        startup: Startup,
    ) -> Result<Session, Failure> {
        if self.admission == Admission::Refused {
            return Err(too_many_starting().into());
        }
        let route = self.route(startup).await?;
        let permit = Arc::clone(&self.shared.sessions).try_acquire_owned();
        let permit = permit.map_err(|_| too_many(self.shared.limits.sessions))?;
        self.permit = None;
        let started = Instant::now();
        let mut early = Vec::new();
        let Awake { upstream, mut server } = tokio::select! {
            biased;
            awake = self.wake(&route) => awake?,
            error = watch_client(client, &mut early) => return Err(Failure::Gone(error)),
            () = self.shared.reached(Phase::Draining) => return Err(shutting_down().into()),
        };
        let sent = server.write_all(&early).await;
        sent.map_err(|error| unreachable_branch(&upstream, &error))?;
        Ok(Session { upstream, server, started, permit })
    }

    /// Finds the branch that the client asks for.
    async fn route(&self, startup: Startup) -> Result<Route, Refusal> {
        let Shared { backends, tls, routing, .. } = &**self.shared;
        let mentions = Mentions::read(startup, self.sni.as_deref(), tls.domain())?;
        let selectors = mentions.selectors();
        let found =
            if selectors.is_empty() { Vec::new() } else { backends.find(selectors).await? };
        let mut route = route(mentions, &found, routing.default_branch.as_deref())?;
        if routing.application_name_add_host {
            route.startup.add_host(&self.peer);
        }
        Ok(route)
    }

    /// Wakes the branch, and has its Postgres answer the startup packet. A Postgres that goes away
    /// just then, as one whose branch is reset, is left for the one that the branch has now.
    async fn wake(&self, route: &Route) -> Result<Awake, Refusal> {
        let limit = self.shared.limits.wake;
        let startup = route.startup.encode();
        let work = async {
            let (mut attempt, mut pause, began) = (0, CONNECT_INTERVAL, Instant::now());
            loop {
                let upstream = self.shared.backends.acquire(&route.target).await?;
                attempt += 1;
                let is_last = attempt == ATTEMPTS || began.elapsed() + pause >= limit;
                match reach(&upstream.socket, upstream.owner, &startup).await {
                    Ok((_, reply)) if route.role_changed && reply.asks_for_md5() => {
                        return Err(md5_with_label(&route.startup));
                    }
                    Ok((server, _)) => return Ok(Awake { upstream, server }),
                    Err(error) if is_last => return Err(unreachable_branch(&upstream, &error)),
                    Err(error) => {
                        let branch = &upstream.branch;
                        tracing::debug!(branch, %error, "tries the branch again");
                    }
                }
                drop(upstream);
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        timeout(limit, work).await.unwrap_or_else(|_| {
            let text = format!("the branch was not ready within {limit:?}");
            Err(Refusal::new(CANNOT_CONNECT_NOW, text)
                .with_hint("Connect again later; it may still be recovering."))
        })
    }

    /// Runs a session to its end.
    async fn run(&self, client: impl Stream, session: Session) {
        let Session { upstream, server, started, permit } = session;
        let Upstream { branch, socket, lease, parting, revoked, .. } = upstream;
        let monitor = Monitor::new(&self.shared.metrics, &self.shared.keys, socket);
        let cut = async {
            tokio::select! {
                () = self.shared.reached(Phase::Closing) => End::Shutdown,
                () = revoked => End::Revoked,
            }
        };
        let ended = async {
            let (client, server) = (client.into_parts()?, server.into_std()?.into());
            self.shared.relay.copy(client, server, monitor, parting, cut).await
        };
        let ended = ended.await;
        let duration = started.elapsed();
        let (peer, tls) = (&self.peer, self.tls);
        let (end, client, monitor) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                return tracing::error!(branch, %peer, tls, ?duration, %error, "session cut off");
            }
        };
        let (bytes_in, bytes_out) = (monitor.bytes_in, monitor.bytes_out);
        drop((monitor, lease, permit));
        tracing::info!(branch, %peer, tls, ?duration, bytes_in, bytes_out, %end, "session ended");
        // A socket of any family is shut down and read alike.
        if let Ok(mut client) = UnixStream::from_std(client.into()) {
            close(&mut client).await;
        }
    }
}

/// A session whose Postgres has the startup packet.
struct Session {
    upstream: Upstream,
    server: UnixStream,
    started: Instant,
    permit: OwnedSemaphorePermit,
}

/// A connection of a client, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket, and the TLS connection of an encrypted one.
    fn into_parts(self) -> io::Result<(OwnedFd, Option<ServerConnection>)>;
}

impl Stream for TcpStream {
    fn into_parts(self) -> io::Result<(OwnedFd, Option<ServerConnection>)> {
        Ok((self.into_std()?.into(), None))
    }
}

impl Stream for UnixStream {
    fn into_parts(self) -> io::Result<(OwnedFd, Option<ServerConnection>)> {
        Ok((self.into_std()?.into(), None))
    }
}

impl Stream for TlsStream<TcpStream> {
    fn into_parts(self) -> io::Result<(OwnedFd, Option<ServerConnection>)> {
        let (socket, tls) = self.into_inner();
        Ok((socket.into_std()?.into(), Some(tls)))
    }
}

/// Ends when the client goes away. Keeps what the client sends meanwhile for its Postgres.
async fn watch_client(client: &mut impl Stream, early: &mut Vec<u8>) -> io::Error {
    let mut watched = client.take(EARLY_BYTES_MAX as u64);
    while watched.limit() > 0 {
        match watched.read_buf(early).await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    std::future::pending().await
}

/// Connects to a Postgres and waits until it has begun to answer.
async fn reach(
    socket: &Path,
    owner: Option<u32>,
    startup: &[u8],
) -> io::Result<(UnixStream, FirstReply)> {
    let mut server = connect(socket).await?;
    // A link that the branch put there leads to somebody else.
    if owner.is_some_and(|owner| server.peer_cred().map_or(true, |peer| peer.uid() != owner)) {
        return Err(io::Error::other("another user listens at its socket"));
    }
    server.write_all(startup).await?;
    let reply = first_reply(&server).await?;
    if reply.is_going_away() {
        return Err(io::Error::other("it is shutting down"));
    }
    Ok((server, reply))
}

/// Connects to a Postgres, waiting while its queue of new connections is full.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(CONNECT_INTERVAL).await
            }
            result => return result,
        }
    }
}

fn unreachable_branch(upstream: &Upstream, error: &io::Error) -> Refusal {
    let Upstream { branch, socket, .. } = upstream;
    tracing::warn!(branch, ?socket, %error, "cannot reach the Postgres of a branch");
    Refusal::new(CANNOT_CONNECT_NOW, format!("cannot reach the Postgres of the branch: {error}"))
        .with_hint("Connect again; if that does not help, the server's log says why.")
}

/// An MD5 secret is bound to the name of the role, which the client gives with the label.
fn md5_with_label(startup: &Startup) -> Refusal {
    let role = String::from_utf8_lossy(startup.get("user").unwrap_or_default()).into_owned();
    let text = format!("role \"{role}\" has an MD5 password, which the label behind it spoils");
    Refusal::new(INVALID_AUTHORIZATION, text).with_hint(
        "Give the role a SCRAM password (`branchctl password BRANCH --role ROLE`), or name the \
         branch by options=branch=BRANCH or behind the database (app@BRANCH).",
    )
}

fn not_admitted() -> Refusal {
    let text = "this operating-system user may not connect to branches";
    Refusal::new(INVALID_AUTHORIZATION, text)
        .with_hint("A branch's own Postgres reaches no branch.")
}

fn too_many(limit: usize) -> Refusal {
    let text = format!("all {limit} connections of the proxy are in use");
    Refusal::new(TOO_MANY_CONNECTIONS, text).with_hint("Close connections, or connect again later.")
}

/// Why a connection is refused while too many others have not started a session yet.
pub(crate) fn too_many_starting() -> Refusal {
    let text = "too many connections are starting at the same time";
    Refusal::new(TOO_MANY_CONNECTIONS, text).with_hint("Connect again later.")
}

fn shutting_down() -> Refusal {
    Refusal::new(SHUTTING_DOWN, "the server is shutting down")
        .with_hint("Connect again when it is back.")
}
