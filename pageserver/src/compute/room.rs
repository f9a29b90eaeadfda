//! How many computes may be in memory at the same time, and which one goes when there is no room
//! for another.

use super::processes;
use super::slot::{ComputeSlot, Halt, Phase};
use crate::error::{Error, Result};
use crate::tasks;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a start waits for a place while all are taken by computes in use.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks again.
const AGAIN: Duration = Duration::from_millis(50);
/// What a compute is reckoned to need when nobody says how many there may be.
const COMPUTE_BYTES: u64 = 100 << 20;
/// So many fit any machine.
const FEW: usize = 4;

/// Code of the error for a start without a place.
pub(crate) const TOO_MANY: &str = "too_many_computes";

/// Places for computes.
#[derive(Debug)]
pub(crate) struct Room {
    places: Arc<Semaphore>,
    count: usize,
}

impl Room {
    /// Room for `count` computes; 0 is no limit.
    pub(crate) fn new(count: usize) -> Self {
        let places =
            if count == 0 { Semaphore::MAX_PERMITS } else { count.min(Semaphore::MAX_PERMITS) };
        Self { places: Arc::new(Semaphore::new(places)), count }
    }

    /// A place, which the compute has until it is dropped. If there is none, the compute that
    /// nobody has used for the longest time is stopped; `all` lists the computes.
    pub(crate) async fn place(
        &self,
        all: impl Fn() -> Vec<Arc<ComputeSlot>>,
    ) -> Result<OwnedSemaphorePermit> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Ok(place);
            }
            if let Some(leaving) = stop_least_recently_used(all()).await {
                // The place is free when its processes are gone, and whoever asks first gets it.
                tracing::debug!(
                    timeline = %leaving.timeline,
                    "an idle compute makes room for another"
                );
                if let Halt::Stopping(generation) = leaving.ask_to_stop() {
                    leaving.rested(generation).await;
                }
            } else if Instant::now() >= deadline {
                return Err(self.full());
            } else {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    fn full(&self) -> Error {
        let detail = format!(
            "{} branches run and all are in use, which is the limit: disconnect from one, or start \
             the server with a higher --max-running",
            self.count
        );
        Error::unavailable(TOO_MANY, detail)
    }
}

/// Begins to stop the compute that has been idle the longest, if any is.
async fn stop_least_recently_used(all: Vec<Arc<ComputeSlot>>) -> Option<Arc<ComputeSlot>> {
    let mut idle: Vec<_> =
        all.into_iter().filter_map(|slot| Some((slot.state().idle_since()?, slot))).collect();
    idle.sort_by_key(|(since, _)| *since);
    for (_, slot) in idle {
        let Phase::Running(socket) = slot.state().phase else { continue };
        if !has_clients(socket.to_path_buf()).await && slot.stop_if_idle(Duration::ZERO) {
            return Some(slot);
        }
    }
    None
}

/// Whether anybody is connected to a compute's socket, through the proxy or not. The kernel's list
/// of sockets is long on a busy machine, so a thread that may wait reads it.
pub(crate) async fn has_clients(socket: PathBuf) -> bool {
    tasks::blocking(move || processes::clients_of(&socket)).await.map_or_else(
        |error| {
            tracing::warn!(error = %error, "cannot read /proc/net/unix; the compute stays awake");
            true
        },
        |clients| clients > 0,
    )
}

/// How many computes the machine's memory has room for.
pub(crate) fn that_fit() -> usize {
    usize::try_from(memory_bytes() / COMPUTE_BYTES).unwrap_or(FEW).max(FEW)
}

/// Bytes of memory that the machine has; 0 if it does not say.
pub(crate) fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total.and_then(|rest| rest.trim().split(' ').next()?.parse().ok()).unwrap_or(0);
    kib * 1024
}
