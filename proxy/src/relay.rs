//! The threads that copy the bytes of sessions both ways until the sessions end.
//!
//! A request and its reply cost two reads and two writes, and wake no thread that is busy. While
//! both sides keep up, a session takes no memory but what TLS needs: each thread has one `epoll`
//! and one buffer for all its sessions. A task of the runtime for each session would also be woken
//! when Postgres has read a request, and would wake other threads in turn.
//!
//! A session holds at most one buffer for each direction. The relay keeps what a socket does not
//! take at once, and reads nothing more for that socket until it has sent the rest. The relay
//! passes end-of-file on, so a client that only stops sending still gets its replies. The last
//! words of a Postgres reach the client before the connection closes, unless the proxy shuts down
//! or the branch is taken from the session.
//! The relay parses nothing; a [`Monitor`] sees each piece of data.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;
use tokio_rustls::rustls::ServerConnection;

use crate::end::{End, Side};
use crate::locks::lock;
use crate::monitor::Monitor;
use crate::polling::Polling;
use crate::socket::Socket;

/// Bytes copied at a time in one direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes copied at a time of what the client sent before the session began.
const EARLY_BYTES: usize = 4096;
/// Events taken at a time.
const EVENTS: usize = 64;
/// More threads than this would take from Postgres what they add.
const THREADS_MAX: usize = 4;
/// The event that ends a thread. Sessions count from 1.
const STOP: u64 = 0;

/// The threads that copy. Dropping the relay ends them, and the sessions that they still copy.
pub struct Relay {
    threads: Vec<Arc<RelayThread>>,
    next: AtomicUsize,
}

/// The sessions of one thread.
struct RelayThread {
    epoll: Epoll,
    stop: EventFd,
    sessions: Mutex<HashMap<u64, SocketPair>>,
    next: AtomicU64,
    is_closed: AtomicBool,
}

/// What is left of a session that has ended.
struct Finished {
    end: End,
    client: OwnedFd,
    monitor: Monitor,
}

/// The two sockets of a session, and what the relay knows of them.
struct SocketPair {
    client: Socket,
    server: Socket,
    /// Whether the client may still send.
    client_is_open: bool,
    /// Whether its Postgres may still send.
    server_is_open: bool,
    /// The side that closed first.
    first: Side,
    /// The events that the thread waits for, of the client and of the server.
    awaited: [EpollFlags; 2],
    monitor: Monitor,
    finished: oneshot::Sender<Finished>,
}

/// Whether a session goes on.
type Step = Result<(), End>;

impl Relay {
    /// Starts a thread for every second CPU; the others are for Postgres.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from) / 2;
        let threads = (0..count.clamp(1, THREADS_MAX))
            .map(|_| RelayThread::start())
            .collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// Copies between the socket of a client, which may be encrypted, and that of its Postgres
    /// until one side is done or `cut` is, which says why; a session that rests when `parting` is
    /// ready is cut then.
    pub(crate) async fn copy(
        &self,
        (client, tls): (OwnedFd, Option<ServerConnection>),
        server: OwnedFd,
        monitor: Monitor,
        parting: impl Future<Output = ()>,
        cut: impl Future<Output = End>,
    ) -> io::Result<(End, OwnedFd, Monitor)> {
        let nth = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let (finished, mut ended) = oneshot::channel();
        let guard = self.threads[nth].connect(SocketPair {
            client: Socket::new(client, tls)?,
            server: Socket::new(server, None)?,
            client_is_open: true,
            server_is_open: true,
            first: Side::Server,
            awaited: [EpollFlags::empty(); 2],
            monitor,
            finished,
        })?;
        let cut_at_rest = async {
            parting.await;
            guard.thread.end_if_it_rests(guard.number);
            pending::<Infallible>().await
        };
        let finished = tokio::select! {
            finished = &mut ended => finished,
            end = cut => {
                guard.thread.end(guard.number, end);
                ended.await
            }
            never = cut_at_rest => match never {},
        };
        let Finished { end, client, monitor } = finished.map_err(io::Error::other)?;
        Ok((end, client, monitor))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for thread in &self.threads {
            // A counter at its limit, which one write cannot reach, is the only thing that could
            // fail.
            let _ = thread.stop.write(1);
        }
    }
}

/// A session that a thread copies. Dropping the guard takes the session away from the thread.
struct SessionGuard<'l> {
    thread: &'l RelayThread,
    number: u64,
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.thread.sessions().remove(&self.number);
    }
}

impl RelayThread {
    fn start() -> io::Result<Arc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let (next, is_closed) = (AtomicU64::new(STOP + 1), AtomicBool::new(false));
        let thread = Arc::new(Self { epoll, stop, sessions: Mutex::default(), next, is_closed });
        let its = Arc::clone(&thread);
        thread::Builder::new().name("relay".to_owned()).spawn(move || {
            its.run();
            its.close();
        })?;
        Ok(thread)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, SocketPair>> {
        // The relay at worst cuts off a session that a panic left half-way.
        lock(&self.sessions)
    }

    fn connect(&self, mut session: SocketPair) -> io::Result<SessionGuard<'_>> {
        // No event tells of the bytes that came with the handshake.
        let step = session.copy_buffered_requests(&mut [0; EARLY_BYTES]);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut sessions = self.sessions();
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the thread that copies sessions has ended"));
        }
        session.wait(&self.epoll, number)?;
        sessions.insert(number, session);
        drop(sessions);
        if let Err(end) = step {
            self.end(number, end);
        }
        Ok(SessionGuard { thread: self, number })
    }

    /// Cuts off all sessions, and takes no more.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.sessions().clear();
    }

    /// Ends a session whose client waits for no answer.
    fn end_if_it_rests(&self, number: u64) {
        let rests = self.sessions().get(&number).is_some_and(|session| session.monitor.is_idle());
        if rests {
            self.end(number, End::Revoked);
        }
    }

    /// Ends a session, if it has not ended yet.
    fn end(&self, number: u64, end: End) {
        let Some(mut session) = self.sessions().remove(&number) else { return };
        session.forget(&self.epoll);
        if matches!(end, End::Revoked)
            && let Some(words) = session.monitor.parting_words()
        {
            // A client that takes nothing learns nothing.
            let _taken = session.client.send(&words);
        }
        let SocketPair { client, server, monitor, finished, .. } = session;
        // Postgres sees the end before the session gives up the lease of its branch.
        drop(server);
        // A task that no longer waits needs no outcome.
        drop(finished.send(Finished { end, client: client.into_socket(), monitor }));
    }

    fn run(&self) {
        let (mut events, mut buffer) = ([EpollEvent::empty(); EVENTS], vec![0; BUFFER_BYTES]);
        let mut polling = Polling::new();
        loop {
            let count = match polling.wait(&self.epoll, &mut events) {
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "the proxy's thread that copies sessions has ended");
                    return;
                }
                Ok(count) => count,
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                let (number, side) = (
                    event.data() / 2,
                    [Side::Client, Side::Server][usize::from(event.data() % 2 == 1)],
                );
                let mut sessions = self.sessions();
                // The session may have ended after the thread took the event.
                let Some(session) = sessions.get_mut(&number) else { continue };
                let step = session.go_on(side, event.events(), &mut buffer);
                let step = step.and_then(|()| {
                    session.wait(&self.epoll, number).map_err(|error| End::Failed(side, error))
                });
                drop(sessions);
                if let Err(end) = step {
                    self.end(number, end);
                }
            }
        }
    }
}

impl SocketPair {
    /// Whether the relay may read from the client.
    fn reads_client(&self) -> bool {
        self.client_is_open && !self.server.has_unsent()
    }

    /// Whether the relay may read from Postgres.
    fn reads_server(&self) -> bool {
        self.server_is_open && !self.client.has_unsent()
    }

    /// Does what an event of one side makes possible.
    fn go_on(&mut self, side: Side, flags: EpollFlags, buffer: &mut [u8]) -> Step {
        let broken = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let writable = flags.intersects(EpollFlags::EPOLLOUT | broken);
        let readable = flags.intersects(EpollFlags::EPOLLIN | broken);
        match side {
            Side::Client => {
                if writable && self.client.has_unsent() {
                    self.client.send_unsent().map_err(|error| End::Failed(Side::Client, error))?;
                    self.end_if_delivered()?;
                }
                if readable { self.copy_requests(buffer) } else { Ok(()) }
            }
            Side::Server => {
                if writable && self.server.has_unsent() {
                    if self.server.send_unsent().is_err() {
                        self.stop_requests();
                    }
                    self.copy_buffered_requests(buffer)?;
                }
                if readable && self.reads_server() { self.copy_reply(buffer) } else { Ok(()) }
            }
        }
    }

    /// Reads no more from the client. A Postgres that takes no more input may have sent the reason,
    /// which the client still has to get.
    fn stop_requests(&mut self) {
        self.client_is_open = false;
        self.server.drop_unsent();
    }

    /// Copies from the client to its Postgres, if Postgres takes more.
    fn copy_requests(&mut self, buffer: &mut [u8]) -> Step {
        if self.reads_client() {
            self.copy_request(buffer)?;
        }
        self.copy_buffered_requests(buffer)
    }

    /// Copies what TLS has decrypted already, of which no event tells.
    fn copy_buffered_requests(&mut self, buffer: &mut [u8]) -> Step {
        let failed = |error| End::Failed(Side::Client, error);
        while self.reads_client() && self.client.holds_more().map_err(failed)? {
            self.copy_request(buffer)?;
        }
        Ok(())
    }

    fn copy_request(&mut self, buffer: &mut [u8]) -> Step {
        match self.client.read(buffer).map_err(|error| End::Failed(Side::Client, error))? {
            None => {}
            Some(0) => {
                self.client_is_open = false;
                if self.server.close().is_ok() {
                    self.first = Side::Client;
                }
            }
            Some(count) => {
                self.monitor.sent(&buffer[..count]);
                if self.server.send(&buffer[..count]).is_err() {
                    self.stop_requests();
                }
            }
        }
        Ok(())
    }

    /// Copies from Postgres to its client.
    fn copy_reply(&mut self, buffer: &mut [u8]) -> Step {
        match self.server.read(buffer) {
            Ok(None) => Ok(()),
            Ok(Some(0)) => self.end_replies(),
            // Postgres ended without reading all that the client had sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.end_replies(),
            Err(error) => Err(End::Failed(Side::Server, error)),
            Ok(Some(count)) => {
                self.monitor.received(&buffer[..count]);
                self.client.send(&buffer[..count]).map_err(|error| End::Failed(Side::Client, error))
            }
        }
    }

    /// Postgres sends no more.
    fn end_replies(&mut self) -> Step {
        let failed = |error| End::Failed(Side::Client, error);
        self.server_is_open = false;
        if let Some(words) = self.monitor.last_words() {
            self.client.send(&words).map_err(failed)?;
        }
        self.client.send_close_notify().map_err(failed)?;
        self.end_if_delivered()
    }

    /// Ends the session once the client has the last words of its Postgres.
    fn end_if_delivered(&mut self) -> Step {
        if self.server_is_open || self.client.has_unsent() {
            return Ok(());
        }
        let closed = self.client.close();
        Err(closed
            .map_or_else(|error| End::Failed(Side::Client, error), |()| End::Closed(self.first)))
    }

    /// Makes the thread wait for what the session can go on with, and for nothing else.
    fn wait(&mut self, epoll: &Epoll, number: u64) -> io::Result<()> {
        let of = |reading: bool, writing: bool| {
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, reading);
            flags.set(EpollFlags::EPOLLOUT, writing);
            flags
        };
        let client = of(self.reads_client(), self.client.has_unsent());
        let server = of(self.reads_server(), self.server.has_unsent());
        await_events(epoll, &self.client, &mut self.awaited[0], client, number * 2)?;
        await_events(epoll, &self.server, &mut self.awaited[1], server, number * 2 + 1)
    }

    fn forget(&mut self, epoll: &Epoll) {
        let none = EpollFlags::empty();
        let client = await_events(epoll, &self.client, &mut self.awaited[0], none, STOP);
        let server = await_events(epoll, &self.server, &mut self.awaited[1], none, STOP);
        if let Err(error) = client.and(server) {
            tracing::warn!(%error, "cannot take a session that ended off its thread");
        }
    }
}

/// Changes the events that the thread waits for. A socket without events is taken out of `epoll`,
/// since `epoll` would report a broken connection over and over.
fn await_events(
    epoll: &Epoll,
    socket: &impl AsFd,
    awaited: &mut EpollFlags,
    wanted: EpollFlags,
    data: u64,
) -> io::Result<()> {
    if *awaited == wanted {
        return Ok(());
    }
    let mut event = EpollEvent::new(wanted, data);
    match (awaited.is_empty(), wanted.is_empty()) {
        (true, _) => epoll.add(socket, event)?,
        (_, true) => epoll.delete(socket)?,
        _ => epoll.modify(socket, &mut event)?,
    }
    *awaited = wanted;
    Ok(())
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
