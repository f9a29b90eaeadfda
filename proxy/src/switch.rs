//! Copies the bytes of sessions both ways until they end, on threads of its own.
//!
//! A session costs two reads and two writes for a question and its answer, with which a busy thread
//! need not be woken, and no memory while both sides keep up but what TLS needs: each thread has
//! one `epoll` and one buffer for all its sessions. A task of the runtime for each would also be
//! woken when Postgres has taken what it was sent, and would wake other threads in turn.
//!
//! A session holds at most one buffer for each direction: what one side does not take at once is
//! kept, and nothing more is read for it until it is gone. End-of-file is passed on (a client that
//! only stops sending still gets its answers), and what a Postgres said last reaches the client
//! before the connection closes, unless the proxy is shut down. Nothing is parsed; a [`Witness`]
//! sees each piece.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;
use tokio_rustls::rustls::ServerConnection;

use crate::end::{End, Side};
use crate::line::Line;
use crate::polling::Polling;
use crate::witness::Witness;

/// Bytes copied at a time in one direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// And of what came before a session is copied.
const EARLY_BYTES: usize = 4096;
/// Events taken at a time.
const EVENTS: usize = 64;
/// More threads than this would take from Postgres what they add.
const THREADS_MAX: usize = 4;
/// The event that ends a thread. Sessions count from 1.
const STOP: u64 = 0;

/// The threads that copy. They end when it is dropped, and with them what they still copy.
pub struct Switch {
    threads: Vec<Arc<Lines>>,
    next: AtomicUsize,
}

/// The sessions of one thread.
struct Lines {
    epoll: Epoll,
    stop: EventFd,
    sessions: Mutex<HashMap<u64, Session>>,
    next: AtomicU64,
    is_closed: AtomicBool,
}

/// What is left of a session that has ended.
struct Finished {
    end: End,
    client: OwnedFd,
    witness: Witness,
}

struct Session {
    client: Line,
    server: Line,
    /// Whether the client may still send, and its Postgres.
    asks: bool,
    answers: bool,
    /// Who closed first.
    first: Side,
    /// What the thread waits for, for the client and the server.
    awaited: [EpollFlags; 2],
    witness: Witness,
    finished: oneshot::Sender<Finished>,
}

/// Whether a session goes on.
type Step = Result<(), End>;

impl Switch {
    /// Starts a thread for every second processor; the others are for Postgres.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from) / 2;
        let threads =
            (0..count.clamp(1, THREADS_MAX)).map(|_| Lines::start()).collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// Copies between the socket of a client, which may be encrypted, and that of its Postgres
    /// until one side is done or `shutdown` is.
    pub(crate) async fn relay(
        &self,
        (client, tls): (OwnedFd, Option<ServerConnection>),
        server: OwnedFd,
        witness: Witness,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<(End, OwnedFd, Witness)> {
        let nth = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let (finished, mut ended) = oneshot::channel();
        let call = self.threads[nth].connect(Session {
            client: Line::new(client, tls)?,
            server: Line::new(server, None)?,
            asks: true,
            answers: true,
            first: Side::Server,
            awaited: [EpollFlags::empty(); 2],
            witness,
            finished,
        })?;
        let finished = tokio::select! {
            finished = &mut ended => finished,
            () = shutdown => {
                call.lines.end(call.number, End::Shutdown);
                ended.await
            }
        };
        let Finished { end, client, witness } = finished.map_err(io::Error::other)?;
        Ok((end, client, witness))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for lines in &self.threads {
            // A counter at its limit, which one write cannot reach, is the only thing that could
            // fail.
            let _ = lines.stop.write(1);
        }
    }
}

/// A session in the hands of a thread, taken back when dropped.
struct Call<'l> {
    lines: &'l Lines,
    number: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.lines.sessions().remove(&self.number);
    }
}

impl Lines {
    fn start() -> io::Result<Arc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let (next, is_closed) = (AtomicU64::new(STOP + 1), AtomicBool::new(false));
        let lines = Arc::new(Self { epoll, stop, sessions: Mutex::default(), next, is_closed });
        let its = Arc::clone(&lines);
        thread::Builder::new().name("switch".to_owned()).spawn(move || {
            its.run();
            its.close();
        })?;
        Ok(lines)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Session>> {
        // A session that a panic left half-way is at worst cut off.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, mut session: Session) -> io::Result<Call<'_>> {
        // What came with the handshake.
        let step = session.ask_for_the_rest(&mut [0; EARLY_BYTES]);
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
        Ok(Call { lines: self, number })
    }

    /// Cuts off all sessions, and takes no more.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.sessions().clear();
    }

    /// Ends a session, if it has not ended yet.
    fn end(&self, number: u64, end: End) {
        let Some(mut session) = self.sessions().remove(&number) else { return };
        session.forget(&self.epoll);
        let Session { client, server, witness, finished, .. } = session;
        // Postgres sees the end before its branch is let go.
        drop(server);
        // Whoever does not wait any more does not want to know.
        drop(finished.send(Finished { end, client: client.into_socket(), witness }));
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
                // It may have ended after the event was taken.
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

impl Session {
    /// Whether the client is to be read.
    fn may_ask(&self) -> bool {
        self.asks && !self.server.is_behind()
    }

    /// Whether its Postgres is to be read.
    fn may_answer(&self) -> bool {
        self.answers && !self.client.is_behind()
    }

    /// Does what an event of one side makes possible.
    fn go_on(&mut self, side: Side, flags: EpollFlags, buffer: &mut [u8]) -> Step {
        let broken = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let writable = flags.intersects(EpollFlags::EPOLLOUT | broken);
        let readable = flags.intersects(EpollFlags::EPOLLIN | broken);
        match side {
            Side::Client => {
                if writable && self.client.is_behind() {
                    self.client.send_kept().map_err(|error| End::Failed(Side::Client, error))?;
                    self.end_if_told()?;
                }
                if readable { self.ask(buffer) } else { Ok(()) }
            }
            Side::Server => {
                if writable && self.server.is_behind() {
                    if self.server.send_kept().is_err() {
                        self.stop_asking();
                    }
                    self.ask_for_the_rest(buffer)?;
                }
                if readable && self.may_answer() { self.answer(buffer) } else { Ok(()) }
            }
        }
    }

    /// A Postgres that takes no more input may have said why: that is still to be delivered.
    fn stop_asking(&mut self) {
        self.asks = false;
        self.server.drop_kept();
    }

    /// Copies from the client to its Postgres, if that takes it.
    fn ask(&mut self, buffer: &mut [u8]) -> Step {
        if self.may_ask() {
            self.pass_question(buffer)?;
        }
        self.ask_for_the_rest(buffer)
    }

    /// The same for what came with what was read before, of which no event tells.
    fn ask_for_the_rest(&mut self, buffer: &mut [u8]) -> Step {
        let failed = |error| End::Failed(Side::Client, error);
        while self.may_ask() && self.client.holds_more().map_err(failed)? {
            self.pass_question(buffer)?;
        }
        Ok(())
    }

    fn pass_question(&mut self, buffer: &mut [u8]) -> Step {
        match self.client.read(buffer).map_err(|error| End::Failed(Side::Client, error))? {
            None => {}
            Some(0) => {
                self.asks = false;
                if self.server.close().is_ok() {
                    self.first = Side::Client;
                }
            }
            Some(count) => {
                self.witness.sent(&buffer[..count]);
                if self.server.send(&buffer[..count]).is_err() {
                    self.stop_asking();
                }
            }
        }
        Ok(())
    }

    /// Copies from Postgres to its client.
    fn answer(&mut self, buffer: &mut [u8]) -> Step {
        match self.server.read(buffer).map_err(|error| End::Failed(Side::Server, error))? {
            None => Ok(()),
            Some(0) => {
                self.answers = false;
                self.client.say_goodbye().map_err(|error| End::Failed(Side::Client, error))?;
                self.end_if_told()
            }
            Some(count) => {
                self.witness.received(&buffer[..count]);
                self.client.send(&buffer[..count]).map_err(|error| End::Failed(Side::Client, error))
            }
        }
    }

    /// Ends the session once the client has what its Postgres said last.
    fn end_if_told(&mut self) -> Step {
        if self.answers || self.client.is_behind() {
            return Ok(());
        }
        let told = self.client.close();
        Err(told
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
        let client = of(self.may_ask(), self.client.is_behind());
        let server = of(self.may_answer(), self.server.is_behind());
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

/// Changes what is waited for, if it is something else than before. Nothing is not the same as no
/// event: a broken connection would be reported over and over.
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
#[path = "switch_tests.rs"]
mod tests;
