//! What branches do with their past: begin at a moment of it, go back to one, and list them.
//!
//! The timeline that shows a moment is made before names are locked, because finding the moment
//! reads the write-ahead log.

use super::{Branches, micros, names, now_ns, refuse_if_protected};
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::moment;
use crate::storage::catalog::{BranchRecord, Update};
use crate::storage::page::TimelineId;
use crate::storage::store::Store;
use api::types::{Branch, History, Moment, RestoreBranch};
use std::sync::Arc;
use std::time::Instant;

/// A timeline that shows a moment and has no name yet; given up when dropped.
pub(super) struct Held<'s> {
    store: &'s Store,
    id: Option<TimelineId>,
}

impl Held<'_> {
    /// Publishes `put` of the timeline, which gives it a name. Returns it with the timelines that
    /// are freed.
    pub(super) fn publish(
        mut self,
        put: impl FnOnce(TimelineId) -> Update,
    ) -> Result<(TimelineId, Vec<TimelineId>)> {
        let Some(id) = self.id else { unreachable!("it is taken when dropped only") };
        let freed = self.store.publish(put(id))?;
        self.id = None;
        Ok((id, freed))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            moment::give_up(self.store, id);
        }
    }
}

impl Branches {
    /// Makes the timeline that shows a moment of a branch's past.
    pub(super) fn hold(&self, branch: &str, at: &Moment) -> Result<Held<'_>> {
        let timeline = TimelineId(self.record(branch)?.timeline);
        let id = moment::fork(&self.store, timeline, at, branch)?;
        Ok(Held { store: &self.store, id: Some(id) })
    }

    /// Makes a timeline from the head of `parent`, or from the moment that is held, and publishes
    /// `put` of it.
    pub(super) fn begin(
        &self,
        parent: &BranchRecord,
        held: Option<Held<'_>>,
        put: impl FnOnce(TimelineId) -> Update,
    ) -> Result<(TimelineId, Vec<TimelineId>)> {
        match held {
            Some(held) => held.publish(put),
            None => self.store.fork(TimelineId(parent.timeline), put),
        }
    }

    /// Takes a branch to a moment of its own past. Its name and settings stay; its connections end.
    /// The state before it goes to a branch `keep_as`, or is given up.
    pub async fn restore(self: &Arc<Self>, name: &str, request: RestoreBranch) -> Result<Branch> {
        let name = name.to_owned();
        self.blocking(move |this| {
            let began = Instant::now();
            let before = this.restorable(&name, request.keep_as.as_deref())?;
            let held = this.hold(&name, &request.at)?;
            let _changing = lock(&this.changing);
            let record = this.restorable(&name, request.keep_as.as_deref())?;
            if record.timeline != before.timeline {
                let detail = format!(
                    "branch \"{name}\" was reset or restored meanwhile; look at \
                    its history again"
                );
                return Err(Error::conflict("branch_changed", detail));
            }
            let old = TimelineId(record.timeline);
            let kept = request.keep_as.map(|keep_as| {
                let (id, now) = (this.store.catalog().new_branch(), now_ns());
                (keep_as, BranchRecord { id, created_ns: now, protected: false, ..record.clone() })
            });
            let (timeline, freed) = held.publish(|timeline| {
                let restored = BranchRecord { timeline: timeline.0, forked_ns: now_ns(), ..record };
                let update = Update::default().put(&name, restored);
                match &kept {
                    Some((kept_as, record)) => update.put(kept_as, record.clone()),
                    None => update,
                }
            })?;
            let kept = kept.inspect(|(name, record)| this.add_name(name, record.id));
            tracing::info!(
                branch = %name, %timeline, kept_as = kept.as_ref().map(|(name, _)| name),
                duration_us = micros(began),
                "branch restored"
            );
            if kept.is_some() {
                this.suspend_behind(old)
            } else {
                this.retire(old, freed)
            }
            this.get(&name)
        })
        .await
    }

    fn restorable(&self, name: &str, keep_as: Option<&str>) -> Result<BranchRecord> {
        let record = self.record(name)?;
        refuse_if_protected(name, &record)?;
        keep_as.map_or(Ok(()), |keep_as| self.refuse_if_taken(keep_as))?;
        Ok(record)
    }

    pub(super) fn add_name(&self, name: &str, id: u64) {
        let mut names = lock(&self.names);
        names.by_id.insert(id, name.to_owned());
        names.by_host.insert(names::host(name), name.to_owned());
    }

    /// Stops a timeline's Postgres behind the answer, so that nobody goes on under a name they did
    /// not ask for.
    fn suspend_behind(&self, timeline: TimelineId) {
        let supervisor = Arc::clone(&self.supervisor);
        tokio::spawn(async move {
            if let Err(error) = supervisor.suspend(timeline).await {
                tracing::warn!(
                    %timeline, %error,
                    "the Postgres of a restored branch's state before did not stop"
                );
            }
        });
    }

    /// The moments that a branch can be taken back to.
    pub async fn history(self: &Arc<Self>, name: &str) -> Result<History> {
        let name = name.to_owned();
        self.blocking(move |this| {
            moment::history(&this.store, TimelineId(this.record(&name)?.timeline))
        })
        .await
    }
}
