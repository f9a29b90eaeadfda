//! Copies the bytes of unencrypted sessions both ways, on threads of its own.
//!
//! A session here costs two reads, two writes and two wake-ups for a question and its answer, and no memory while both
//! sides keep up: each thread has one `epoll` and one buffer for all its sessions. A task for each, as [`relay`](crate::relay) has,
//! is also woken when Postgres has taken what it was sent, and wakes other threads in turn.
//!
//! Guarantees what [`relay`](crate::relay) does. What one side does not take at once is kept, at most one buffer for each
//! direction, and nothing more is read for it until it is gone.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use crate::relay::{BUFFER_BYTES, End, Side};
use crate::witness::Witness;

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

/// One direction of a session.
struct Direction {
    /// Whether more may come.
    is_open: bool,
    /// What was read and not taken yet: the bytes from `taken` on.
    pending: Vec<u8>,
    taken: usize,
}

struct Session {
    /// A stream socket, of whatever family: they are all used alike.
    client: UnixStream,
    server: UnixStream,
    up: Direction,
    down: Direction,
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
        let threads = (0..count.clamp(1, THREADS_MAX)).map(|_| Lines::start()).collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// Copies between the socket of a client and that of its Postgres until one side is done or `shutdown` is.
    pub(crate) async fn relay<C: Into<OwnedFd> + From<OwnedFd>>(
        &self,
        client: C,
        server: UnixStream,
        witness: Witness,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<(End, C, Witness)> {
        let nth = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let (finished, mut ended) = oneshot::channel();
        let call = self.threads[nth].connect(Session {
            client: client.into().into(),
            server,
            up: Direction::default(),
            down: Direction::default(),
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
        Ok((end, client.into(), witness))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for lines in &self.threads {
            // A counter at its limit, which one write cannot reach, is the only thing that could fail.
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
        session.client.set_nonblocking(true)?;
        session.server.set_nonblocking(true)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut sessions = self.sessions();
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the thread that copies sessions has ended"));
        }
        session.wait(&self.epoll, number)?;
        sessions.insert(number, session);
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
        drop(finished.send(Finished { end, client: client.into(), witness }));
    }

    fn run(&self) {
        let (mut events, mut buffer) = ([EpollEvent::empty(); EVENTS], vec![0; BUFFER_BYTES]);
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    return tracing::error!(%error, "the proxy's thread that copies sessions has ended");
                }
                Ok(count) => count,
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                let (number, side) =
                    (event.data() / 2, [Side::Client, Side::Server][usize::from(event.data() % 2 == 1)]);
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

impl Default for Direction {
    fn default() -> Self {
        Self { is_open: true, pending: Vec::new(), taken: 0 }
    }
}

impl Direction {
    fn is_waiting(&self) -> bool {
        self.taken < self.pending.len()
    }

    /// Whether more is to be read for it.
    fn wants_more(&self) -> bool {
        self.is_open && !self.is_waiting()
    }

    /// Hands on as much of `data` as `to` takes, and keeps the rest.
    fn send(&mut self, mut to: impl Write, data: &[u8]) -> io::Result<()> {
        let taken = take_all_it_can(&mut to, data)?;
        if taken < data.len() {
            (self.pending, self.taken) = (data[taken..].to_vec(), 0);
        }
        Ok(())
    }

    /// Hands on what was kept.
    fn send_pending(&mut self, mut to: impl Write) -> io::Result<()> {
        self.taken += take_all_it_can(&mut to, &self.pending[self.taken..])?;
        if !self.is_waiting() {
            self.drop_pending();
        }
        Ok(())
    }

    fn drop_pending(&mut self) {
        (self.pending, self.taken) = (Vec::new(), 0);
    }
}

/// How many bytes of `data` are taken without waiting.
fn take_all_it_can(to: &mut impl Write, data: &[u8]) -> io::Result<usize> {
    let mut taken = 0;
    while taken < data.len() {
        match to.write(&data[taken..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => taken += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

/// What is there to read; nothing if that is yet to come.
fn read(mut from: impl Read, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match from.read(buffer) {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Session {
    /// Does what an event of one side makes possible.
    fn go_on(&mut self, side: Side, flags: EpollFlags, buffer: &mut [u8]) -> Step {
        let broken = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let writable = flags.intersects(EpollFlags::EPOLLOUT | broken);
        let readable = flags.intersects(EpollFlags::EPOLLIN | broken);
        match side {
            Side::Client => {
                if writable && self.down.is_waiting() {
                    let sent = self.down.send_pending(&self.client);
                    sent.map_err(|error| End::Failed(Side::Client, error))?;
                }
                if readable && self.up.wants_more() { self.ask(buffer) } else { Ok(()) }
            }
            Side::Server => {
                if writable && self.up.is_waiting() && self.up.send_pending(&self.server).is_err() {
                    self.stop_asking();
                }
                if readable && self.down.wants_more() { self.answer(buffer) } else { Ok(()) }
            }
        }
    }

    /// A Postgres that takes no more input may have said why: that is still to be delivered.
    fn stop_asking(&mut self) {
        self.up.is_open = false;
        self.up.drop_pending();
    }

    /// Copies from the client to its Postgres.
    fn ask(&mut self, buffer: &mut [u8]) -> Step {
        match read(&self.client, buffer).map_err(|error| End::Failed(Side::Client, error))? {
            None => {}
            Some(0) => {
                self.up.is_open = false;
                if self.server.shutdown(Shutdown::Write).is_ok() {
                    self.first = Side::Client;
                }
            }
            Some(count) => {
                self.witness.sent(&buffer[..count]);
                if self.up.send(&self.server, &buffer[..count]).is_err() {
                    self.stop_asking();
                }
            }
        }
        Ok(())
    }

    /// Copies from Postgres to its client.
    fn answer(&mut self, buffer: &mut [u8]) -> Step {
        match read(&self.server, buffer).map_err(|error| End::Failed(Side::Server, error))? {
            None => Ok(()),
            Some(0) => {
                let told = self.client.shutdown(Shutdown::Write);
                Err(told.map_or_else(|error| End::Failed(Side::Client, error), |()| End::Closed(self.first)))
            }
            Some(count) => {
                self.witness.received(&buffer[..count]);
                let sent = self.down.send(&self.client, &buffer[..count]);
                sent.map_err(|error| End::Failed(Side::Client, error))
            }
        }
    }

    /// Makes the thread wait for what the session can go on with, and for nothing else.
    fn wait(&mut self, epoll: &Epoll, number: u64) -> io::Result<()> {
        let of = |reading: &Direction, writing: &Direction| {
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, reading.wants_more());
            flags.set(EpollFlags::EPOLLOUT, writing.is_waiting());
            flags
        };
        let wanted = [of(&self.up, &self.down), of(&self.down, &self.up)];
        await_events(epoll, &self.client, &mut self.awaited[0], wanted[0], number * 2)?;
        await_events(epoll, &self.server, &mut self.awaited[1], wanted[1], number * 2 + 1)
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

/// Changes what is waited for, if it is something else than before. Nothing is not the same as no event: a broken connection
/// would be reported over and over.
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
