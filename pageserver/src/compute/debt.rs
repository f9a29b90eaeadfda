//! Recovery debt: the write-ahead log since a Postgres's last checkpoint, which each branch that is
//! made of it replays before its first row.
//!
//! Once what was written pauses, a checkpoint bounds the debt. While a Postgres writes without a
//! pause its own settings decide, since a checkpoint more often would cost it writes.

use super::door::{CLOSED, Door, said};
use super::slot::Lease;
use super::supervisor::Supervisor;
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::page::{Position, TimelineId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often each Postgres is looked at.
pub const DEBT_TICK: Duration = Duration::from_millis(50);
/// How long nothing may have been written.
const PAUSE: Duration = Duration::from_millis(100);
/// Debt that is let be; it is replayed in less time than a start takes.
const LET_BE_BYTES: i64 = 4 << 20;
/// A checkpoint that takes longer is left to Postgres.
const LIMIT: Duration = Duration::from_secs(120);
const QUESTION: &str = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), \
                        redo_lsn)::bigint FROM pg_catalog.pg_control_checkpoint()";

/// What is known of each Postgres that others may be made of.
#[derive(Default)]
pub struct Debts(Mutex<HashMap<TimelineId, Writes>>);

/// When a Postgres last wrote.
#[derive(Debug)]
struct Writes {
    newest: Position,
    since: Instant,
    /// The newest position that was looked at.
    settled: Option<Position>,
    /// Whether somebody looks now.
    busy: bool,
}

impl Writes {
    /// Notes the newest position; whether it is time to look, which is then under way.
    fn is_due(&mut self, newest: Position, now: Instant) -> bool {
        if newest != self.newest {
            (self.newest, self.since) = (newest, now);
        }
        let due = !self.busy && self.settled != Some(newest) && now - self.since >= PAUSE;
        self.busy |= due;
        due
    }
}

impl Debts {
    /// Looks at the Postgres of timelines, each with its newest position in the write-ahead log,
    /// and begins the checkpoints that are due.
    pub fn bound(self: &Arc<Self>, supervisor: &Arc<Supervisor>, of: &[(TimelineId, Position)]) {
        let now = Instant::now();
        let mut known = lock(&self.0);
        known.retain(|timeline, writes| {
            writes.busy || of.iter().any(|(other, _)| other == timeline)
        });
        for (timeline, newest) in of.iter().copied() {
            let begin = || Writes { newest, since: now, settled: None, busy: false };
            if known.entry(timeline).or_insert_with(begin).is_due(newest, now) {
                let (this, supervisor) = (Arc::clone(self), Arc::clone(supervisor));
                tokio::spawn(async move { this.settle(&supervisor, timeline, newest).await });
            }
        }
    }

    async fn settle(&self, supervisor: &Supervisor, timeline: TimelineId, newest: Position) {
        if let Some(lease) = supervisor.lease_if_running(timeline) {
            let began = Instant::now();
            match tokio::time::timeout(LIMIT, checkpoint_if_due(&lease)).await {
                Ok(Ok(0)) => {}
                Ok(Ok(bytes)) => {
                    let ms = began.elapsed().as_millis();
                    tracing::info!(%timeline, bytes, ms, "checkpoint for branches to come");
                }
                // A Postgres that stops meanwhile, or has no door, keeps its debt.
                Ok(Err(error)) => tracing::debug!(%timeline, %error, "no checkpoint"),
                Err(_) => tracing::warn!(%timeline, "a checkpoint takes long"),
            }
        }
        if let Some(writes) = lock(&self.0).get_mut(&timeline) {
            (writes.busy, writes.settled) = (false, Some(newest));
        }
    }
}

/// Makes a checkpoint if there is much to replay; how many bytes it was, 0 for none.
async fn checkpoint_if_due(lease: &Lease) -> Result<i64> {
    let door = Door::open(lease).await?;
    let failed = |error: tokio_postgres::Error| Error::unavailable(CLOSED, said(&error));
    let row = door.client().query_one(QUESTION, &[]).await.map_err(failed)?;
    let bytes: i64 = row.try_get(0).map_err(failed)?;
    if bytes < LET_BE_BYTES {
        return Ok(0);
    }
    door.client().batch_execute("CHECKPOINT").await.map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_due_once_after_each_pause() {
        let began = Instant::now();
        let mut writes = Writes { newest: 1, since: began, settled: None, busy: false };
        let at = |pauses: u32| began + PAUSE * pauses;
        assert!(!writes.is_due(1, began), "just now");
        assert!(!writes.is_due(2, at(1)), "it writes");
        assert!(writes.is_due(2, at(2)), "it has paused");
        assert!(!writes.is_due(2, at(3)), "somebody looks already");
        (writes.busy, writes.settled) = (false, Some(2));
        assert!(!writes.is_due(2, at(4)), "nothing is new");
        assert!(!writes.is_due(3, at(5)), "it writes again");
        assert!(writes.is_due(3, at(6)));
    }
}
