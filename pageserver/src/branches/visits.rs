//! Visits: sessions on a moment of a branch's past, each moment on a timeline of its own that has
//! no name.
//!
//! Sessions on the same moment share its timeline. It goes when its Postgres has been suspended for
//! lack of clients, and at the latest with the server, because the next start removes timelines
//! without a name.

use super::Branches;
use crate::compute::Lease;
use crate::compute::supervisor::DROPPED;
use crate::error::{Error, Result};
use crate::moment;
use crate::storage::page::TimelineId;
use api::types::{ComputeState, Moment};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Moments that may be visited at the same time.
const MAX_VISITS: usize = 100;
/// A moment that was just asked for may not have its Postgres yet.
const YOUNG: Duration = Duration::from_secs(30);
/// One that nobody asked for so long, and nobody is connected to, goes even if nothing is ever
/// suspended.
const OLD: Duration = Duration::from_secs(600);

/// The moments that are visited, by the branch's timeline and what was asked for.
#[derive(Default)]
pub(super) struct Visits(Mutex<HashMap<(TimelineId, String), Visit>>);

struct Visit {
    timeline: TimelineId,
    asked: Instant,
}

impl Branches {
    /// Wakes a Postgres, for reading, on a moment of a branch's past, and keeps it awake as long as
    /// the lease lives.
    pub async fn visit(self: &Arc<Self>, name: &str, moment: &Moment) -> Result<Lease> {
        loop {
            // On a task of its own: what was made is remembered, also when the client leaves
            // meanwhile.
            let (this, name_of, at) = (Arc::clone(self), name.to_owned(), moment.clone());
            let found = tokio::spawn(async move { this.timeline_at(&name_of, &at).await }).await;
            let timeline =
                found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
            match self.supervisor.wake(timeline).await {
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

    async fn timeline_at(self: &Arc<Self>, name: &str, moment: &Moment) -> Result<TimelineId> {
        let key = (TimelineId(self.record(name)?.timeline), moment.to_string());
        let mut visits = self.visits.0.lock().await;
        if let Some(visit) = visits.get_mut(&key) {
            visit.asked = Instant::now();
            return Ok(visit.timeline);
        }
        if visits.len() >= MAX_VISITS {
            let detail =
                format!("{MAX_VISITS} moments are visited already; end some of those sessions");
            return Err(Error::unavailable("too_many_moments", detail));
        }
        let (of, moment, name) = (key.0, moment.clone(), name.to_owned());
        let fork = move |this: &Self| moment::fork_for_reading(&this.store, of, &moment, &name);
        let timeline = self.blocking(fork).await?;
        tracing::info!(branch = %of, %timeline, moment = %key.1, "moment visited");
        visits.insert(key, Visit { timeline, asked: Instant::now() });
        Ok(timeline)
    }

    /// Removes the moments that nobody visits any more.
    pub async fn end_visits(self: &Arc<Self>) {
        let over = |visit: &Visit| {
            let compute = self.supervisor.state(visit.timeline);
            let rests = matches!(compute.state, ComputeState::Suspended | ComputeState::Failed);
            compute.leases == 0 && visit.asked.elapsed() > if rests { YOUNG } else { OLD }
        };
        let mut ended = Vec::new();
        let mut visits = self.visits.0.lock().await;
        visits.retain(|_, visit| {
            let over = over(visit);
            if over {
                ended.push(visit.timeline);
            }
            !over
        });
        drop(visits);
        for timeline in ended {
            let outcome = self.blocking(move |this| this.store.release(timeline)).await;
            match outcome {
                Ok(freed) => self.retire(timeline, freed),
                Err(error) => {
                    tracing::error!(
                        %timeline, %error,
                        "a visited moment stays until the next start"
                    )
                }
            }
            tracing::info!(%timeline, "moment left");
        }
    }
}
