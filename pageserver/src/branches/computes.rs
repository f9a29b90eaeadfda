//! The Postgres of a branch: woken, suspended, and kept awake for a session.

use super::{BranchView, Branches};
use crate::compute::Lease;
use crate::error::{Error, Result};
use crate::events::{Action, Actor};
use crate::storage::page::TimelineId;
use std::sync::Arc;
use std::time::Instant;

impl Branches {
    /// Stops the Postgres of a branch; the next connection wakes it.
    pub async fn suspend(self: &Arc<Self>, actor: Actor, name: &str) -> Result<BranchView> {
        let began = Instant::now();
        let record = self.record(name)?;
        let timeline = TimelineId(record.timeline);
        self.supervisor.suspend(timeline).await;
        self.announce(&actor, Action::Suspend, (record.id, name), None, (timeline, began));
        self.show(name).await
    }

    /// Starts the Postgres of a branch and waits until it accepts connections.
    pub async fn wake(self: &Arc<Self>, actor: Actor, name: &str) -> Result<BranchView> {
        let began = Instant::now();
        let record = self.record(name)?;
        let lease = self.acquire(name).await?;
        let timeline = TimelineId(record.timeline);
        self.announce(&actor, Action::Wake, (record.id, name), None, (timeline, began));
        let branch = self.show(name).await;
        drop(lease);
        branch
    }

    /// Whether this is the operating-system user of a branch's Postgres.
    pub fn is_compute_user(&self, uid: u32) -> bool {
        let timeline = self.mount.timeline_of_user(uid);
        timeline.is_some_and(|timeline| self.store.catalog().timeline(timeline).is_some())
    }

    /// Bounds what branches to come will have to recover. Must be called within the runtime.
    pub fn bound_debts(&self) {
        let catalog = self.store.catalog();
        let newest = |id: TimelineId| Some((id, self.store.if_open(id)?.last_positions().wal));
        let running = self.supervisor.running().into_iter().filter(|id| catalog.is_a_parent(*id));
        let newest: Vec<_> = running.filter_map(newest).collect();
        self.debts.bound(&self.supervisor, &newest);
    }

    /// Wakes a branch for a session and keeps it awake as long as the lease lives.
    pub async fn acquire(self: &Arc<Self>, name: &str) -> Result<Lease> {
        loop {
            let timeline = self.timeline(name)?;
            match self.supervisor.wake(timeline).await {
                // A reset came between: the name leads elsewhere now.
                _ if self.timeline(name)? != timeline => {}
                Ok(lease) => return Ok(lease),
                Err(error) => {
                    let detail = format!("branch \"{name}\" did not start: {}", error.detail);
                    return Err(Error { detail, ..error });
                }
            }
        }
    }
}
