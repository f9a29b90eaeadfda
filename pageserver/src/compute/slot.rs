//! The states of one compute and the rules between them; no process and no file in here.
//!
//! Invariants:
//! - Only the task that was started for a generation moves the slot out of `Starting` and
//!   `Stopping`.
//! - The slot leaves `Running` for `Stopping` in the same step that sees no lease, so a lease is
//!   never handed out for a compute that is going away.
//! - A retired slot never runs again; whoever still holds it asks the supervisor for the new one.

use crate::error::Error;
use crate::storage::page::TimelineId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the Postgres of a timeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeState {
    /// No process; the next connection wakes it.
    Suspended,
    /// Postgres is starting or recovering.
    Starting,
    /// Postgres accepts connections.
    Running,
    /// Postgres is shutting down.
    Stopping,
    /// The last start failed or Postgres died; the next connection tries again.
    Failed,
}

/// Where a compute stands.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Suspended,
    Starting,
    Running(Arc<Path>),
    Stopping,
    Failed(Error),
}

/// A phase and what decides the next one.
#[derive(Clone, Debug)]
pub(crate) struct SlotState {
    pub(crate) phase: Phase,
    /// Counts starts, so that a waiter can tell "not yet" from "already again".
    generation: u64,
    pub(crate) leases: u64,
    idle_since: Instant,
    retired: bool,
    /// The operating-system user that the compute runs as.
    owner: u32,
    /// Whether the name of the timeline leads elsewhere.
    parting: bool,
    /// Whether this generation's sessions must end at once, and its Postgres without ceremony.
    revoked: bool,
}

/// One timeline's compute.
#[derive(Debug)]
pub(crate) struct ComputeSlot {
    pub(crate) timeline: TimelineId,
    state: watch::Sender<SlotState>,
}

/// What a waker finds.
pub(crate) enum Admission {
    /// It runs, and stays awake for this lease.
    Ready(Lease),
    /// It was at rest: the caller must start it, as this generation.
    Start(u64),
    /// Somebody else starts this generation.
    Wait(u64),
    /// It is going down, as this generation.
    Stopping(u64),
    /// The slot is out of use.
    Retired,
}

/// What somebody who wants a compute stopped finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// There is no process.
    AtRest,
    /// This generation starts; ask again when it has.
    Starting(u64),
    /// This generation is going down.
    Stopping(u64),
}

/// What the task of a running compute has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ComputeDue {
    /// Stop was asked for.
    Stop,
    /// Nobody held a lease for the suspend time.
    Idle,
}

impl ComputeSlot {
    pub(crate) fn new(timeline: TimelineId) -> Self {
        let state = SlotState {
            phase: Phase::Suspended,
            generation: 0,
            leases: 0,
            idle_since: Instant::now(),
            retired: false,
            owner: 0,
            parting: false,
            revoked: false,
        };
        Self { timeline, state: watch::Sender::new(state) }
    }

    /// A copy of the state now.
    pub(crate) fn state(&self) -> SlotState {
        self.state.borrow().clone()
    }

    /// Takes a lease, or finds out what to wait for; a slot at rest is `Starting` afterwards.
    pub(crate) fn enter(self: &Arc<Self>) -> Admission {
        let mut entry = Admission::Retired;
        self.state.send_if_modified(|state| {
            if state.retired {
                return false;
            }
            if let Some(lease) = self.lease(state) {
                entry = Admission::Ready(lease);
                return false;
            }
            entry = match &state.phase {
                Phase::Running(_) => unreachable!("it gave no lease"),
                Phase::Starting => Admission::Wait(state.generation),
                Phase::Stopping => Admission::Stopping(state.generation),
                Phase::Suspended | Phase::Failed(_) => {
                    state.phase = Phase::Starting;
                    state.generation += 1;
                    (state.parting, state.revoked) = (false, false);
                    Admission::Start(state.generation)
                }
            };
            matches!(entry, Admission::Start(_))
        });
        entry
    }

    /// A lease if it runs.
    pub(crate) fn lease_if_running(self: &Arc<Self>) -> Option<Lease> {
        let mut lease = None;
        self.state.send_if_modified(|state| {
            lease = self.lease(state);
            false
        });
        lease
    }

    fn lease(self: &Arc<Self>, state: &mut SlotState) -> Option<Lease> {
        let Phase::Running(socket) = &state.phase else { return None };
        let (slot, socket) = (Arc::clone(self), Arc::clone(socket));
        state.leases += 1;
        Some(Lease { slot, socket, owner: state.owner, generation: state.generation })
    }

    /// Waits until start `generation` is over; its error if it failed.
    pub(crate) async fn started(&self, generation: u64) -> Result<(), Error> {
        let over = |state: &SlotState| {
            state.generation > generation || !matches!(state.phase, Phase::Starting)
        };
        let state = self.wait_for(over).await;
        match state.phase {
            Phase::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until no process of `generation` is left.
    pub(crate) async fn rested(&self, generation: u64) {
        self.wait_for(|state| state.generation > generation || state.at_rest()).await;
    }

    async fn wait_for(&self, wanted: impl FnMut(&SlotState) -> bool) -> SlotState {
        let mut receiver = self.state.subscribe();
        // The sender is `self`, so the channel cannot close while we wait.
        match receiver.wait_for(wanted).await {
            Ok(state) => state.clone(),
            Err(_) => self.state(),
        }
    }

    /// The start succeeded.
    pub(crate) fn running(&self, socket: PathBuf, owner: u32) {
        self.state.send_modify(|state| {
            assert!(matches!(state.phase, Phase::Starting), "running after {:?}", state.phase);
            (state.phase, state.owner) = (Phase::Running(socket.into()), owner);
            state.idle_since = Instant::now();
        });
    }

    /// No process is left: suspended, or failed with `failure`.
    pub(crate) fn rest(&self, failure: Option<Error>) {
        self.state.send_modify(|state| {
            assert!(!state.at_rest(), "at rest twice: {:?}", state.phase);
            state.phase = failure.map_or(Phase::Suspended, Phase::Failed);
        });
    }

    /// Postgres died: no lease is handed out any more while the remains are cleaned up.
    pub(crate) fn going_down(&self) {
        self.state.send_modify(|state| state.phase = Phase::Stopping);
    }

    /// Asks the task of a running compute to stop it, and says what to wait for.
    pub(crate) fn ask_to_stop(&self) -> Halt {
        let mut halt = Halt::AtRest;
        self.state.send_if_modified(|state| {
            let runs = matches!(state.phase, Phase::Running(_));
            halt = match state.phase {
                Phase::Suspended | Phase::Failed(_) => Halt::AtRest,
                Phase::Starting => Halt::Starting(state.generation),
                Phase::Running(_) | Phase::Stopping => Halt::Stopping(state.generation),
            };
            if runs {
                state.phase = Phase::Stopping;
            }
            runs
        });
        halt
    }

    /// Ends the sessions that rest, as the name of the timeline leads elsewhere.
    pub(crate) fn part(&self) {
        self.state.send_if_modified(|state| !std::mem::replace(&mut state.parting, true));
    }

    /// Ends the sessions of a compute that is going down at once, and that compute.
    pub(crate) fn revoke(&self) {
        self.state.send_if_modified(|state| {
            let goes_down = matches!(state.phase, Phase::Stopping);
            state.revoked |= goes_down;
            goes_down
        });
    }

    /// Waits until the sessions of `generation` must end, or this is so.
    fn over(
        &self,
        generation: u64,
        is_over: fn(&SlotState) -> bool,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.state.subscribe();
        async move {
            let over = |state: &SlotState| state.generation > generation || is_over(state);
            if state.wait_for(over).await.is_err() {
                // The slot is gone, and so is its compute.
            }
        }
    }

    /// Waits until the compute that is going down has to be ended without ceremony.
    pub(crate) async fn hurried(&self) {
        self.wait_for(|state| state.revoked).await;
    }

    /// Moves to `Stopping` if nobody has held a lease for `suspend_after`.
    pub(crate) fn stop_if_idle(&self, suspend_after: Duration) -> bool {
        self.state.send_if_modified(|state| {
            let idle = matches!(state.phase, Phase::Running(_))
                && state.leases == 0
                && state.idle_since + suspend_after <= Instant::now();
            if idle {
                state.phase = Phase::Stopping;
            }
            idle
        })
    }

    /// Begins a new idle period.
    pub(crate) fn touch(&self) {
        self.state.send_if_modified(|state| {
            state.idle_since = Instant::now();
            false
        });
    }

    /// Waits until the running compute has to be looked at. A `suspend_after` of zero means never
    /// idle.
    pub(crate) async fn due(&self, suspend_after: Duration) -> ComputeDue {
        let mut receiver = self.state.subscribe();
        loop {
            let state = receiver.borrow_and_update().clone();
            if !matches!(state.phase, Phase::Running(_)) {
                return ComputeDue::Stop;
            }
            let idle = async {
                if state.leases > 0 || suspend_after.is_zero() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep_until(state.idle_since + suspend_after).await;
            };
            tokio::select! {
                biased;
                _ = receiver.changed() => {}
                () = idle => return ComputeDue::Idle,
            }
        }
    }

    /// Whether it has no process.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Suspended | Phase::Failed(_))
    }

    /// Waits until no lease is out.
    pub(crate) async fn unused(&self) {
        let mut state = self.state.subscribe();
        // It fails only with the slot itself.
        let _unused = state.wait_for(|state| state.leases == 0).await;
    }

    /// Takes a suspended slot without leases (and, if `failed_too`, a failed one) out of use.
    pub(crate) fn retire(&self, failed_too: bool) -> bool {
        self.state.send_if_modified(|state| {
            let unused = match state.phase {
                Phase::Suspended => true,
                Phase::Failed(_) => failed_too,
                _ => false,
            };
            if unused && state.leases == 0 {
                state.retired = true;
            }
            state.retired
        })
    }
}

impl SlotState {
    /// Since when a running compute has had no lease.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (matches!(self.phase, Phase::Running(_)) && self.leases == 0).then_some(self.idle_since)
    }

    /// No process and nobody busy with one.
    pub(crate) fn at_rest(&self) -> bool {
        matches!(self.phase, Phase::Suspended | Phase::Failed(_))
    }
}

/// Keeps a compute awake while it exists: one per connection.
#[derive(Debug)]
pub struct Lease {
    slot: Arc<ComputeSlot>,
    socket: Arc<Path>,
    owner: u32,
    generation: u64,
}

impl Lease {
    /// The operating-system user who listens at the socket. The directory of the socket belongs to
    /// that user, who may put something else in its place.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Ready when the session must end at once, since nothing of its Postgres may reach the client
    /// any more.
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + 'static {
        self.slot.over(self.generation, |state| state.revoked)
    }

    /// Ready when the session is to end if it rests, as the branch leads elsewhere.
    pub fn parting(&self) -> impl Future<Output = ()> + Send + 'static {
        self.slot.over(self.generation, |state| state.parting)
    }

    /// The Unix socket of the compute.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slot.state.send_if_modified(|state| {
            assert!(state.leases > 0, "a lease of {} was given back twice", self.slot.timeline);
            state.leases -= 1;
            state.idle_since = Instant::now();
            state.leases == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Arc<ComputeSlot> {
        let slot = Arc::new(ComputeSlot::new(TimelineId(1)));
        assert!(matches!(slot.enter(), Admission::Start(1)));
        assert!(matches!(slot.enter(), Admission::Wait(1)));
        slot.running(PathBuf::from("/s"), 1);
        slot
    }

    fn lease(slot: &Arc<ComputeSlot>) -> Lease {
        match slot.enter() {
            Admission::Ready(lease) => lease,
            _ => panic!("not running: {:?}", slot.state()),
        }
    }

    const SUSPEND: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn idleness_counts_from_the_last_lease() {
        let slot = running();
        let (one, two) = (lease(&slot), lease(&slot));
        drop(one);
        let due = tokio::time::timeout(SUSPEND * 2, slot.due(SUSPEND)).await;
        assert!(due.is_err() && !slot.stop_if_idle(SUSPEND), "a lease was out");
        let given_back = Instant::now();
        let (due, ()) = tokio::join!(slot.due(SUSPEND), async { drop(two) });
        assert_eq!(due, ComputeDue::Idle);
        assert!(given_back.elapsed() >= SUSPEND);
        assert!(slot.stop_if_idle(SUSPEND));
        assert!(matches!(slot.enter(), Admission::Stopping(1)));
    }

    #[tokio::test]
    async fn a_suspend_time_of_zero_means_never() {
        let slot = running();
        let due = tokio::time::timeout(SUSPEND, slot.due(Duration::ZERO)).await;
        assert!(due.is_err());
    }

    #[tokio::test]
    async fn a_request_to_stop_is_due_at_once() {
        let slot = running();
        let _lease = lease(&slot);
        let (due, halt) = tokio::join!(slot.due(SUSPEND), async { slot.ask_to_stop() });
        assert_eq!((due, halt), (ComputeDue::Stop, Halt::Stopping(1)));
    }

    #[tokio::test]
    async fn a_failed_start_fails_its_wakers_and_the_next_one_starts_again() {
        let slot = Arc::new(ComputeSlot::new(TimelineId(1)));
        assert!(matches!(slot.enter(), Admission::Start(1)));
        slot.rest(Some(Error::unavailable("compute_failed", "no")));
        assert_eq!(slot.started(1).await.unwrap_err().detail, "no");
        assert!(matches!(slot.enter(), Admission::Start(2)));
    }

    #[tokio::test]
    async fn sessions_of_a_compute_that_goes_down_are_revoked_and_later_ones_are_not() {
        let slot = running();
        let lease = lease(&slot);
        let revoked = lease.revoked();
        slot.revoke();
        assert!(!slot.state().revoked, "it runs");
        assert_eq!(slot.ask_to_stop(), Halt::Stopping(1));
        slot.revoke();
        revoked.await;
        slot.hurried().await;
        slot.rest(None);
        assert!(matches!(slot.enter(), Admission::Start(2)));
        assert!(!slot.state().revoked);
    }

    #[tokio::test]
    async fn a_retired_slot_takes_nobody() {
        let slot = running();
        assert!(!slot.retire(true), "it runs");
        assert_eq!(slot.ask_to_stop(), Halt::Stopping(1));
        slot.rest(None);
        slot.rested(1).await;
        assert_eq!(slot.ask_to_stop(), Halt::AtRest);
        assert!(slot.retire(false));
        assert!(matches!(slot.enter(), Admission::Retired));
    }
}
