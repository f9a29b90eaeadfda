//! Threads that make lanes durable, so that few file system threads wait for the disk: at most
//! [`MAX_INLINE`].
//!
//! Requests for the same lane that arrive while a sync runs share the next one. A lane is synced by
//! one thread at a time; different lanes sync in parallel.

use crate::error::Result;
use crate::locks::lock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Threads, and so lanes that sync at once.
const THREADS: usize = 4;
/// Callers that may sync on their own thread at once. A lone commit so needs no second
/// thread to be woken; the limit keeps threads free for the file system when many sync.
pub const MAX_INLINE: usize = 2;

/// Called once with the outcome of a sync, on any thread.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// Serves the requests of a lane that wait now; whether that were all.
type SyncJob = Arc<dyn Fn() -> bool + Send + Sync>;

/// Sync requests of one lane.
#[derive(Default)]
pub struct SyncQueue(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Vec<Done>,
    running: bool,
}

impl SyncQueue {
    /// Adds a request; true if the caller must bring the lane to a thread.
    pub(super) fn add(&self, done: Done) -> bool {
        let mut queue = lock(&self.0);
        queue.waiting.push(done);
        !std::mem::replace(&mut queue.running, true)
    }

    /// All requests that wait.
    pub(super) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut lock(&self.0).waiting)
    }

    /// Ends the turn of the thread, unless requests wait; whether it did.
    pub(super) fn end_turn(&self) -> bool {
        let mut queue = lock(&self.0);
        assert!(queue.running, "{} wait, and it was nobody's turn", queue.waiting.len());
        queue.running = !queue.waiting.is_empty();
        !queue.running
    }

    /// Whether somebody serves requests.
    pub(super) fn is_running(&self) -> bool {
        lock(&self.0).running
    }
}

/// The threads; they end when the last clone of the syncer is dropped.
#[derive(Clone)]
pub struct Syncer {
    sender: Arc<mpsc::Sender<SyncJob>>,
    /// Threads of callers that sync themselves at the moment.
    inline: Arc<AtomicUsize>,
}

impl Syncer {
    /// Starts the threads.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<SyncJob>();
        let (sender, receiver) = (Arc::new(sender), Arc::new(Mutex::new(receiver)));
        for nth in 0..THREADS {
            let (receiver, again) = (Arc::clone(&receiver), Arc::downgrade(&sender));
            let run = move || {
                // The guard is gone before the job runs.
                while let Ok(job) = { lock(&receiver).recv() } {
                    while !job() {
                        // Other lanes that wait come first.
                        let job = Arc::clone(&job);
                        if again.upgrade().is_some_and(|sender| sender.send(job).is_ok()) {
                            break;
                        }
                    }
                }
            };
            std::thread::Builder::new().name(format!("sync-{nth}")).spawn(run)?;
        }
        Ok(Self { sender, inline: Arc::default() })
    }

    /// Serves a lane whose queue has begun to fill: on the caller's own thread if few others do so
    /// at the moment, else on one of the syncer's, which serve what was asked meanwhile in any
    /// case: the caller's own answer may go out only when this returns.
    pub(super) fn serve(&self, job: impl Fn() -> bool + Send + Sync + 'static) {
        let inline = self.inline.fetch_add(1, Ordering::SeqCst) < MAX_INLINE;
        let served = inline && job();
        let callers = self.inline.fetch_sub(1, Ordering::SeqCst);
        assert!(callers > 0, "more callers left than came");
        if !served {
            self.serve_later(job);
        }
    }

    /// Serves such a lane on one of the syncer's threads.
    pub(super) fn serve_later(&self, job: impl Fn() -> bool + Send + Sync + 'static) {
        // The threads live as long as a sender does, and this is one.
        if self.sender.send(Arc::new(job)).is_err() {
            unreachable!("the sync threads ended before their sender");
        }
    }
}
