//! The threads that serve one mount.

use crate::fs::cpu::RequestCpus;
use crate::fs::fuse::Adapter;
use crate::fs::protocol::{self, HEADER_BYTES, Offer, Operation, ReplyBody, Request, flag};
use crate::fs::reply::{Reply, ReplyTo};
use crate::fs::ring::{self, Ring};
use crate::storage::timeline::syncer::MAX_INLINE;
use crate::sys;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Threads that read requests from the device; some of them may be syncing.
const THREADS: usize = MAX_INLINE + 2;
/// Largest write that the server asks the kernel to send at once.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Room for the largest write and the header before it.
const BUFFER_BYTES: usize = MAX_TRANSFER_BYTES as usize + 4096;
/// Requests that the kernel may have in flight in the background.
const MAX_BACKGROUND: u16 = 64;
/// Times are in whole seconds. So the kernel reports a new time with a commit's sync once a second
/// and not at every commit.
const TIME_STEP: Duration = Duration::from_secs(1);
/// Abilities that the kernel must have.
const NEEDED: u64 =
    flag::WRITEBACK_CACHE | flag::PARALLEL_DIROPS | flag::MAX_PAGES | flag::BIG_WRITES;
/// Abilities that the mount uses if the kernel has them. The kernel caches links; otherwise it
/// would ask for the link to the write-ahead log with each file.
const WANTED: u64 = flag::ASYNC_READ | flag::CACHE_SYMLINKS | flag::INIT_EXT;

/// A mount, and the threads that serve it.
pub(super) struct Session {
    device: Arc<File>,
    threads: Vec<JoinHandle<()>>,
    over_io_uring: bool,
}

impl Session {
    /// Serves the mount of `device`, over io_uring if `io_uring` is set and the kernel offers it.
    pub(super) fn start(adapter: &Arc<Adapter>, device: File, io_uring: bool) -> io::Result<Self> {
        let device = Arc::new(device);
        let over_io_uring = agree(&device, io_uring)?;
        let mut session = Self { device, threads: Vec::new(), over_io_uring };
        if over_io_uring {
            session.serve_rings(adapter)?;
        }
        // The kernel always sends requests that no process waits for this way.
        for nth in 0..if over_io_uring { 1 } else { THREADS } {
            let device = match nth {
                0 => Arc::clone(&session.device),
                _ => Arc::new(sys::clone_fuse_device(&session.device)?),
            };
            let (adapter, buffer) = (Arc::clone(adapter), sys::memory(BUFFER_BYTES)?);
            let run = move || serve_device(&adapter, &device, buffer);
            session.threads.push(Builder::new().name(format!("fuse-{nth}")).spawn(run)?);
        }
        Ok(session)
    }

    /// Whether requests come over io_uring.
    pub(super) fn over_io_uring(&self) -> bool {
        self.over_io_uring
    }

    /// Whether the mount is gone already.
    pub(super) fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// A handle that notifies the kernel.
    pub(super) fn notifier(&self) -> Notifier {
        Notifier(Arc::clone(&self.device))
    }

    /// Waits for the threads of a mount that is gone.
    pub(super) fn join(self) -> io::Result<()> {
        let mut outcome = Ok(());
        // Waits for all threads, also behind one that panicked.
        for thread in self.threads {
            outcome = thread
                .join()
                .map_err(|_| io::Error::other("a thread of the mount panicked"))
                .and(outcome);
        }
        outcome
    }

    fn serve_rings(&mut self, adapter: &Arc<Adapter>) -> io::Result<()> {
        let queues = ring::queues()?;
        let (sender, receiver) = channel();
        let cpus = Arc::<RequestCpus>::default();
        for (nth, queue) in queues.iter().copied().enumerate() {
            let (adapter, device, sender) =
                (Arc::clone(adapter), Arc::clone(&self.device), sender.clone());
            let cpus = Arc::clone(&cpus);
            let run = move || serve_ring(&adapter, device, queue, cpus, &sender);
            self.threads.push(Builder::new().name(format!("fuse-ring-{nth}")).spawn(run)?);
        }
        drop(sender);
        // Waits for all threads, also behind one that failed: the mount must not go while others
        // begin.
        let outcomes: Vec<_> = receiver.iter().take(queues.len()).collect();
        if outcomes.len() < queues.len() {
            return Err(io::Error::other("a thread of the mount ended"));
        }
        outcomes.into_iter().collect()
    }
}

/// Notifies the kernel.
pub(super) struct Notifier(Arc<File>);

impl Notifier {
    /// Has the kernel ask again for a name in a directory.
    pub(super) fn forget_name(&self, parent: u64, name: &OsStr) {
        // The kernel answers ENOENT when it never looked the name up.
        let _ = (&*self.0).write_all(&protocol::forget_name(parent, name));
    }
}

fn serve_ring(
    adapter: &Adapter,
    device: Arc<File>,
    queue: u16,
    cpus: Arc<RequestCpus>,
    registered: &Sender<io::Result<()>>,
) {
    match Ring::register(device, queue, MAX_TRANSFER_BYTES as usize) {
        Ok(ring) => {
            // The thread that starts the session still waits.
            drop(registered.send(Ok(())));
            ring.serve(cpus, |request, reply| adapter.serve(request, reply));
        }
        Err(error) => drop(registered.send(Err(error))),
    }
}

/// Reads requests until the mount is gone.
fn serve_device(adapter: &Adapter, device: &Arc<File>, mut buffer: impl DerefMut<Target = [u8]>) {
    loop {
        let length = match (&**device).read(&mut buffer) {
            Ok(length) => length,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // The process that asked has gone meanwhile, or a signal came.
                Some(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => continue,
                Some(Errno::ENODEV | Errno::ECONNABORTED) => return,
                _ => return tracing::error!(%error, "a thread of the mount ends"),
            },
        };
        match protocol::decode(&buffer[..length]) {
            Ok(request) => {
                let reply = Reply::new(request.unique, ReplyTo::Device(Arc::clone(device)));
                adapter.serve(request, reply);
            }
            Err(Some(unique)) => {
                Reply::new(unique, ReplyTo::Device(Arc::clone(device))).error(Errno::EIO)
            }
            Err(None) => return tracing::error!(length, "the kernel sent what is no request"),
        }
    }
}

/// Answers the first request, in which the kernel offers its abilities. Returns whether both sides
/// agree on io_uring.
fn agree(device: &Arc<File>, ring: bool) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let length = loop {
        match (&**device).read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => break outcome?,
        }
    };
    let too_old = || {
        io::Error::other(
            "the kernel speaks FUSE older than 7.31, or without a write-back cache: a newer one is \
             needed",
        )
    };
    let (unique, offer) = match protocol::decode(&buffer[..length.max(HEADER_BYTES)]) {
        Ok(Request { unique, operation: Operation::Init(offer), .. }) => (unique, offer),
        _ => return Err(too_old()),
    };
    let reply = Reply::new(unique, ReplyTo::Device(Arc::clone(device)));
    if offer.flags & NEEDED != NEEDED {
        reply.error(Errno::EPROTO);
        return Err(too_old());
    }
    let ring = ring && offer.flags & flag::OVER_IO_URING != 0;
    reply.body(answer(&offer, ring));
    Ok(ring)
}

fn answer(offer: &Offer, ring: bool) -> ReplyBody {
    let ring = if ring { flag::OVER_IO_URING } else { 0 };
    let flags = NEEDED | (WANTED | ring) & offer.flags;
    ReplyBody::init(offer, flags, MAX_TRANSFER_BYTES, MAX_BACKGROUND, TIME_STEP)
}
