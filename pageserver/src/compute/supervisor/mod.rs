//! All computes: wakes them, puts the idle ones to sleep, and ends them with the server.
//!
//! Each start has one task of its own, from before the process exists until after its last one is
//! gone. Wakers only wait for it, so a waker that goes away takes nothing with it and a hundred of
//! them share one Postgres. Nothing is kept of a compute that sleeps.

mod logs;
mod start;

use crate::compute::config::ComputeConfig;
use crate::compute::leftovers::{Records, remove_sockets};
use crate::compute::log_files::LogFiles;
use crate::compute::postgres::Postgres;
use crate::compute::room::{self, Room, has_clients};
use crate::compute::settings::{ManagedFiles, SOCKET_FILE};
use crate::compute::slot::{Admission, ComputeDue, ComputeSlot, Halt, Phase};
pub use crate::compute::slot::{ComputeState, Lease};
use crate::compute::surroundings::ComputeSurroundings;
use crate::compute::user::OsUser;
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::catalog::{Allowance, BranchNetwork};
use crate::storage::clock::whole_ms;
use crate::storage::page::TimelineId;
use crate::tasks;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Longest path of a Unix socket, in bytes, without the final zero.
const SOCKET_PATH_BYTES: usize = 107;

/// How long the sessions of a branch that is reset, restored or deleted have to end by themselves,
/// with what their Postgres tells them.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often it is looked whether they have.
const LEFT_POLL: Duration = Duration::from_millis(1);

/// How long one start may count among the parallel ones.
const TURN_LIMIT: Duration = Duration::from_secs(2);

/// Where the data directories come from. Both are called from threads that may block.
pub trait DataDirectories: Send + Sync + 'static {
    /// Makes the timeline's files reachable and returns its data directory. Called before every
    /// start.
    fn open(&self, timeline: TimelineId) -> Result<PathBuf>;
    /// What of a file in the data directory the kernel has handed over, without touching the mount;
    /// `None` if there is no such door.
    fn received(&self, _timeline: TimelineId, _name: &str) -> Option<Vec<u8>> {
        None
    }
    /// The timeline's Postgres has stopped (cleanly or not), or did not start after `open`.
    fn closed(&self, timeline: TimelineId);
    /// Whether a compute may run on the timeline: a name leads to it, or somebody visits it. Unlike
    /// the others this is called from any thread, and answers at once.
    fn is_wanted(&self, timeline: TimelineId) -> bool;
    /// What the timeline's Postgres may do beyond its own data. Asked at each start.
    fn allowance(&self, _timeline: TimelineId) -> Allowance {
        Allowance::default()
    }
    /// Bytes that are free where temporary files go, if that is known.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

/// What is known of one compute.
#[derive(Clone, Debug)]
pub struct ComputeStatus {
    /// What its Postgres is doing.
    pub state: ComputeState,
    /// Why it failed, with Postgres's last lines.
    pub failure: Option<String>,
    /// Leases that are out.
    pub leases: u64,
    /// Its Unix socket, while it runs.
    pub socket: Option<PathBuf>,
}

/// Code of the error for a timeline that no name leads to any more.
pub const DROPPED: &str = "timeline_dropped";

/// Runs the computes of all timelines.
pub struct Supervisor {
    config: ComputeConfig,
    directories: Arc<dyn DataDirectories>,
    managed: ManagedFiles,
    records: Records,
    logs: LogFiles,
    slots: Mutex<HashMap<TimelineId, Arc<ComputeSlot>>>,
    starts: Semaphore,
    room: Room,
    surroundings: ComputeSurroundings,
    /// True once the server shuts down: no start any more, and those under way end.
    closing: watch::Sender<bool>,
}

impl Supervisor {
    /// Prepares the run directory. Call [`crate::compute::leftovers::clean`] first.
    pub fn new(config: ComputeConfig, directories: Arc<dyn DataDirectories>) -> Result<Arc<Self>> {
        check_run_dir(&config.run_dir)?;
        let managed = ManagedFiles::write(config.run_dir.join("etc"))?;
        let records = Records::open(&config.run_dir)?;
        let hba = managed.path("pg_hba.conf");
        config.user.with_rights(|| std::fs::File::open(&hba)).map_err(|e| {
            Error::invalid(
                "run_dir",
                format!(
                    "user {}, who runs Postgres, cannot read {}: {e}; let others pass through its \
                     parent directories (chmod o+x) or choose another run directory",
                    config.user.name,
                    hba.display()
                ),
            )
        })?;
        let logs = LogFiles::open(config.log_dir.clone(), |id| directories.is_wanted(id))?;
        Ok(Arc::new(Self {
            logs,
            surroundings: ComputeSurroundings::prepare(&config),
            starts: Semaphore::new(config.parallel_starts.max(1)),
            room: Room::new(config.max_running),
            config,
            directories,
            managed,
            records,
            slots: Mutex::default(),
            closing: watch::Sender::new(false),
        }))
    }

    /// Waits until the timeline's Postgres accepts connections, starting it if need be, and keeps
    /// it awake until the lease is dropped. A start that is under way is shared, and goes on if
    /// this future is dropped.
    pub async fn wake(self: &Arc<Self>, timeline: TimelineId) -> Result<Lease> {
        loop {
            let slot = self.slot(timeline)?;
            match slot.enter() {
                Admission::Ready(lease) => return Ok(lease),
                Admission::Start(generation) => {
                    tokio::spawn(self.clone().live(slot.clone()));
                    slot.started(generation).await?;
                }
                Admission::Wait(generation) => slot.started(generation).await?,
                Admission::Stopping(generation) => slot.rested(generation).await,
                Admission::Retired => tokio::task::yield_now().await,
            }
        }
    }

    /// Stops the Postgres of a timeline that is not wanted any more: whoever waits for it to start
    /// or to stop is refused with `timeline_dropped`, so that nobody commits where no name leads.
    pub async fn drop_timeline(self: &Arc<Self>, timeline: TimelineId) {
        loop {
            let slot = lock(&self.slots).get(&timeline).cloned();
            let Some(slot) = slot else { return };
            stop(&slot).await;
            if self.retire(timeline, true) {
                return;
            }
            if slot.is_at_rest() {
                // Sessions that have not ended yet hold leases; the slot goes with the last.
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    slot.unused().await;
                    this.retire(timeline, true);
                });
                return;
            }
            // A waker that found the slot before has begun to start it.
        }
    }

    /// Ends the sessions that rest on a timeline that a name no longer leads to. They learn why.
    pub fn part(&self, timeline: TimelineId) {
        if let Some(slot) = lock(&self.slots).get(&timeline) {
            slot.part();
        }
    }

    /// Ends all sessions on a timeline that a name no longer leads to. When it returns, Postgres
    /// acknowledges nothing there any more; its shutdown may still be under way.
    ///
    /// Postgres tells its clients. Those that are left after a second are cut off.
    pub async fn end_sessions(&self, timeline: TimelineId) {
        let slot = lock(&self.slots).get(&timeline).cloned();
        let Some(slot) = slot else { return };
        if !matches!(slot.ask_to_stop(), Halt::Stopping(_)) {
            // Whoever waits for a start finds that the name leads elsewhere.
            return;
        }
        let socket = self.sockets(timeline).join(SOCKET_FILE);
        if tokio::time::timeout(FAREWELL, left(&slot, &socket)).await.is_ok() {
            return;
        }
        slot.revoke();
        if tokio::time::timeout(self.config.stop_limit, left(&slot, &socket)).await.is_err() {
            tracing::error!(%timeline, "sessions on a branch's former state cannot be ended");
        }
    }

    /// Does something in the data directory of a compute that rests, which nobody can wake
    /// meanwhile. Waits for one that starts or stops; none if it runs.
    pub async fn offline<T: Send + 'static>(
        self: &Arc<Self>,
        timeline: TimelineId,
        work: impl FnOnce(&Path, &OsUser) -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let this = Arc::clone(self);
        let done = async move {
            loop {
                let slot = this.slot(timeline)?;
                match slot.enter() {
                    Admission::Ready(_) => return Ok(None),
                    Admission::Start(_) => {
                        let done = this.blocking(move |this| this.work_in(timeline, work)).await;
                        slot.rest(None);
                        this.retire(timeline, true);
                        return done.map(Some);
                    }
                    // A failed start is at rest as well.
                    Admission::Wait(generation) => drop(slot.started(generation).await),
                    Admission::Stopping(generation) => slot.rested(generation).await,
                    Admission::Retired => tokio::task::yield_now().await,
                }
            }
        };
        tasks::detached(done).await
    }

    fn work_in<T>(
        &self,
        timeline: TimelineId,
        work: impl FnOnce(&Path, &OsUser) -> Result<T>,
    ) -> Result<T> {
        let data = self.directories.open(timeline)?;
        let done = self.config.user.owner_of(&data).and_then(|user| work(&data, &user));
        self.directories.closed(timeline);
        done
    }

    /// Stops the timeline's Postgres now, whoever is connected; waits for a start that is under
    /// way.
    pub async fn suspend(&self, timeline: TimelineId) {
        let slot = lock(&self.slots).get(&timeline).cloned();
        if let Some(slot) = slot {
            stop(&slot).await;
        }
    }

    /// What the timeline's compute does now.
    pub fn state(&self, timeline: TimelineId) -> ComputeStatus {
        let state = lock(&self.slots).get(&timeline).map(|slot| slot.state());
        let leases = state.as_ref().map_or(0, |state| state.leases);
        let (state, failure, socket) = match state.map(|state| state.phase) {
            None | Some(Phase::Suspended) => (ComputeState::Suspended, None, None),
            Some(Phase::Starting) => (ComputeState::Starting, None, None),
            Some(Phase::Running(socket)) => {
                (ComputeState::Running, None, Some(socket.to_path_buf()))
            }
            Some(Phase::Stopping) => (ComputeState::Stopping, None, None),
            Some(Phase::Failed(error)) => (ComputeState::Failed, Some(error.detail), None),
        };
        ComputeStatus { state, failure, leases, socket }
    }

    /// The network that a start with this allowance has.
    pub fn network(&self, allowance: Allowance) -> BranchNetwork {
        self.surroundings.network_of(allowance)
    }

    /// The timelines whose computes run.
    pub fn running(&self) -> Vec<TimelineId> {
        let slots = lock(&self.slots);
        let runs = |slot: &ComputeSlot| matches!(slot.state().phase, Phase::Running(_));
        slots.iter().filter(|(_, slot)| runs(slot)).map(|(timeline, _)| *timeline).collect()
    }

    /// A lease on the timeline's compute if it runs.
    pub(crate) fn lease_if_running(&self, timeline: TimelineId) -> Option<Lease> {
        let slot = lock(&self.slots).get(&timeline).cloned()?;
        slot.lease_if_running()
    }

    /// How many computes run, and how many leases are out.
    pub fn totals(&self) -> (u64, u64) {
        let slots = lock(&self.slots);
        slots.values().fold((0, 0), |(running, leases), slot| {
            let state = slot.state();
            let runs = matches!(state.phase, Phase::Running(_));
            (running + u64::from(runs), leases + state.leases)
        })
    }

    /// Stops all computes, at the server's shutdown: starts under way end, and later wakes are
    /// refused.
    pub async fn stop_all(&self) {
        let slots: Vec<_> = {
            let slots = lock(&self.slots);
            self.closing.send_replace(true);
            slots.values().cloned().collect()
        };
        let stops: Vec<_> =
            slots.into_iter().map(|slot| tokio::spawn(async move { stop(&slot).await })).collect();
        for task in stops {
            // It fails only as the runtime ends, which nobody waits for.
            let _stopped = task.await;
        }
    }

    fn slot(&self, timeline: TimelineId) -> Result<Arc<ComputeSlot>> {
        let mut slots = lock(&self.slots);
        if *self.closing.borrow() {
            return Err(shutting_down());
        }
        // Under the lock: who drops the timeline later finds the slot, and who did so before has
        // taken its name away.
        if !self.directories.is_wanted(timeline) {
            let detail =
                format!("timeline {timeline} was dropped by a reset or deletion; connect again");
            return Err(Error::unavailable(DROPPED, detail));
        }
        let slot = slots.entry(timeline).or_insert_with(|| Arc::new(ComputeSlot::new(timeline)));
        Ok(slot.clone())
    }

    /// Takes a slot out of use if nothing uses it; true if there is none then.
    fn retire(&self, timeline: TimelineId, failed_too: bool) -> bool {
        let mut slots = lock(&self.slots);
        if slots.get(&timeline).is_some_and(|slot| slot.retire(failed_too)) {
            slots.remove(&timeline);
        }
        !slots.contains_key(&timeline)
    }

    /// The life of one compute, from start to rest.
    async fn live(self: Arc<Self>, slot: Arc<ComputeSlot>) {
        let started = match self.room.place(|| lock(&self.slots).values().cloned().collect()).await
        {
            Ok(place) => self.start(&slot).await.map(|postgres| (postgres, place)),
            Err(error) => Err(error),
        };
        let failure = match started {
            Err(error) => {
                tracing::warn!(timeline = %slot.timeline, error = %error, "compute did not start");
                Some(error)
            }
            Ok((mut postgres, _place)) => {
                slot.running(self.sockets(slot.timeline).join(SOCKET_FILE), postgres.uid());
                let failure = self.tend(&slot, &mut postgres).await;
                self.clean_up(slot.timeline).await;
                failure
            }
        };
        // Nothing is wrong with a branch that there was no room for.
        let refused = failure.as_ref().is_some_and(|error| error.code == room::TOO_MANY);
        slot.rest(failure);
        self.retire(slot.timeline, refused);
    }

    /// Watches a running compute to its end; the error if it died by itself.
    async fn tend(&self, slot: &ComputeSlot, postgres: &mut Postgres) -> Option<Error> {
        let socket = self.sockets(slot.timeline).join(SOCKET_FILE);
        loop {
            let due = tokio::select! {
                error = postgres.died_by_itself() => {
                    tracing::warn!(timeline = %slot.timeline, error = %error, "compute died");
                    slot.going_down();
                    postgres.sweep().await;
                    return Some(error);
                }
                due = slot.due(self.config.suspend_after) => due,
            };
            if due == ComputeDue::Idle && has_clients(socket.clone()).await {
                slot.touch();
            } else if due == ComputeDue::Stop || slot.stop_if_idle(self.config.suspend_after) {
                break;
            }
        }
        let asked = Instant::now();
        let clean = postgres.stop(self.config.stop_limit, slot.hurried()).await;
        if !clean {
            postgres.sweep().await;
        }
        tracing::info!(timeline = %slot.timeline, clean, ms = millis(asked), "compute stopped");
        None
    }

    /// Removes the traces of a compute whose processes are gone, and gives its data directory back.
    async fn clean_up(self: &Arc<Self>, timeline: TimelineId) {
        let clean = move |this: &Self| {
            this.surroundings.end(timeline);
            remove_sockets(&this.sockets(timeline));
            this.managed.remove_defaults(timeline);
            this.directories.closed(timeline);
            this.records.remove(timeline);
        };
        self.blocking(clean).await;
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let this = self.clone();
        tasks::blocking(move || work(&this)).await
    }

    fn sockets(&self, timeline: TimelineId) -> PathBuf {
        self.config.run_dir.join(timeline.to_string())
    }
}

/// Waits until nobody is connected to the compute in `slot`, through the proxy or not.
async fn left(slot: &ComputeSlot, socket: &Path) {
    slot.unused().await;
    while !slot.is_at_rest() && has_clients(socket.to_owned()).await {
        tokio::time::sleep(LEFT_POLL).await;
    }
}

/// Stops whatever runs in `slot`, a start that is under way included, and waits until it rests.
async fn stop(slot: &ComputeSlot) {
    loop {
        match slot.ask_to_stop() {
            Halt::AtRest => return,
            Halt::Stopping(generation) => return slot.rested(generation).await,
            Halt::Starting(generation) => {
                // A failed start is at rest as well.
                let _failed = slot.started(generation).await;
            }
        }
    }
}

/// Postgres's list of socket directories is separated by commas and may be quoted.
fn check_run_dir(run_dir: &Path) -> Result<()> {
    let longest = run_dir.join(format!("{:016x}", 0)).join(SOCKET_FILE);
    let problem = if !run_dir.is_absolute() {
        "must be an absolute path"
    } else if longest.as_os_str().len() > SOCKET_PATH_BYTES {
        "is too long for the path of a Unix socket (76 bytes at most)"
    } else if run_dir.to_str().is_none_or(|path| path.contains([',', '"', '\'', '\n'])) {
        "must not contain commas, quotes or line breaks"
    } else {
        return Ok(());
    };
    Err(Error::invalid(
        "run_dir",
        format!("run directory {} {problem}; choose another", run_dir.display()),
    ))
}

fn shutting_down() -> Error {
    Error::unavailable(
        "shutting_down",
        "the server is shutting down; connect again once it is back",
    )
}

fn millis(since: Instant) -> u64 {
    whole_ms(since.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_directories_that_postgres_could_not_use_are_refused() {
        assert!(check_run_dir(Path::new("/run/coppice")).is_ok());
        for bad in ["run", "/run/a,b", &format!("/{}", "x".repeat(80))] {
            assert_eq!(check_run_dir(Path::new(bad)).unwrap_err().code, "run_dir");
        }
    }
}
