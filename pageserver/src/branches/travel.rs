//! Sessions on a moment of a branch's past, each moment on a timeline of its own that has no name.
//!
//! Sessions on the same moment share its timeline. It goes when its Postgres has been suspended
//! for lack of clients, and at the latest with the server, because the next start removes timelines
//! without a name. Finding a moment reads the write-ahead log, which may take long. Only those who
//! ask for the same moment wait for that.

use super::Branches;
use crate::compute::supervisor::DROPPED;
use crate::compute::{ComputeState, Lease};
use crate::error::{Error, Result};
use crate::moment::{self, Moment};
use crate::storage::page::TimelineId;
use crate::tasks;
use std::sync::Arc;
use std::time::Duration;

/// A moment that was just asked for may not have its Postgres yet.
const YOUNG: Duration = Duration::from_secs(30);
/// One that nobody asked for so long, and nobody is connected to, goes even if nothing is ever
/// suspended.
const OLD: Duration = Duration::from_secs(600);

impl Branches {
    /// Wakes a Postgres, for reading, on a moment of a branch's past, and keeps it awake as long as
    /// the lease lives.
    pub async fn visit(self: &Arc<Self>, name: &str, moment: &Moment) -> Result<Lease> {
        loop {
            // What was made is remembered, also when the client leaves meanwhile.
            let (this, name_of, at) = (Arc::clone(self), name.to_owned(), moment.clone());
            let found = tasks::detached(async move { this.timeline_at(&name_of, at).await }).await;
            match self.supervisor.wake(found?).await {
                // It was about to go.
                Err(error) if error.code == DROPPED => {}
                Ok(lease) => return Ok(lease),
                Err(error) => {
                    let detail =
                        format!("branch \"{name}\" at {moment} did not start: {}", error.detail);
                    return Err(Error { detail, ..error });
                }
            }
        }
    }

    async fn timeline_at(self: &Arc<Self>, name: &str, moment: Moment) -> Result<TimelineId> {
        let key = (self.timeline(name)?, moment.to_string());
        let visit = self.visits.enter(&key)?;
        let (of, name) = (key.0, name.to_owned());
        let find = || async {
            let fork = move |this: &Self| moment::fork_for_reading(&this.store, of, &moment, &name);
            let timeline = self.blocking(fork).await?;
            tracing::info!(branch = %of, %timeline, moment = %key.1, "moment visited");
            Ok(timeline)
        };
        let found = visit.timeline.get_or_try_init(find).await.copied();
        self.visits.leave(&key, visit);
        found
    }

    /// Removes the moments that nobody visits any more. What fails stays until the next start.
    pub async fn end_visits(self: &Arc<Self>) -> Result<()> {
        let ended = self.visits.take_over(|timeline, unasked| {
            let compute = self.supervisor.state(timeline);
            let rests = matches!(compute.state, ComputeState::Suspended | ComputeState::Failed);
            compute.leases == 0 && unasked > if rests { YOUNG } else { OLD }
        });
        let mut outcome = Ok(());
        for timeline in ended {
            match self.blocking(move |this| this.store.release(timeline)).await {
                Ok(freed) => self.retire(timeline, freed),
                Err(error) => outcome = outcome.and(Err(error)),
            }
            tracing::info!(%timeline, "moment left");
        }
        outcome
    }
}
