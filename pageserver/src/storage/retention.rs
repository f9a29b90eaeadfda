//! How long moments are kept: marks are let go of with time and above a byte limit, and what only they saw is found.
//!
//! A timeline that is written to lets go of marks as it makes new ones. One that rests does it here, at few moments, since each
//! time costs it its rest.

use crate::error::Result;
use crate::locks::lock;
use crate::storage::format::LaneKind;
use crate::storage::marks::Marks;
use crate::storage::page::{Position, TimelineId};
use crate::storage::store::Store;
use crate::storage::survey::Survey;
use crate::storage::timeline::Timeline;
use crate::storage::versions::Retained;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was found of timelines, from one look to the next.
#[derive(Default)]
pub(super) struct Retention {
    looked: HashMap<TimelineId, (Instant, Seen)>,
    garbage: HashMap<(TimelineId, LaneKind), u64>,
}

/// What a survey depends on: the newest layers and how many there are, the oldest mark, and the number of forks.
type Seen = ([Option<u64>; 2], [usize; 2], Option<Position>, usize);

impl Retention {
    /// Bytes of a lane's layers that nobody needs, as far as is known.
    pub(super) fn garbage(&self, id: TimelineId, lane: LaneKind) -> u64 {
        self.garbage.get(&(id, lane)).copied().unwrap_or(0)
    }

    /// The lane's layers are others now.
    pub(super) fn forget(&mut self, id: TimelineId, lane: LaneKind) {
        self.garbage.remove(&(id, lane));
    }

    /// Forgets all but these timelines.
    pub(super) fn keep(&mut self, timelines: &[Arc<Timeline>]) {
        self.looked.retain(|id, _| timelines.iter().any(|timeline| timeline.id() == *id));
        self.garbage.retain(|(id, _), _| timelines.iter().any(|timeline| timeline.id() == *id));
    }

    /// Lets go of marks and looks for garbage, unless it did so less than `every` ago.
    pub(super) fn look(
        &mut self,
        store: &Store,
        timeline: &Arc<Timeline>,
        (rests, every, limit): (bool, Duration, u64),
    ) -> Result<()> {
        let id = timeline.id();
        let before = self.looked.get(&id);
        if before.is_some_and(|(looked, _)| looked.elapsed() < every) {
            return Ok(());
        }
        if rests {
            timeline.let_go(&timeline.due_at_rest())?;
        }
        let forks = store.catalog().forks(id);
        let newest = LaneKind::ALL.map(|lane| timeline.layers(lane).first().map(|layer| layer.id().number));
        let layers = LaneKind::ALL.map(|lane| timeline.layers(lane).len());
        let oldest = timeline.marks().first().map(|mark| mark.position);
        let seen: Seen = (newest, layers, oldest, forks.len());
        let known = before.is_some_and(|(_, before)| *before == seen);
        self.looked.insert(id, (Instant::now(), seen));
        if known {
            return Ok(());
        }
        let mut all = Survey::default();
        for lane in LaneKind::ALL {
            let mut retained = Retained::default();
            forks.iter().for_each(|fork| retained.add(fork.at[lane as usize]));
            let found = timeline.survey(lane, &retained, &store.children(id, lane)?)?;
            self.garbage.insert((id, lane), found.garbage);
            all.add(found);
        }
        let cutoff = all.cutoff(limit);
        if cutoff > 0 {
            let marks = timeline.marks().into_iter().map(|mark| mark.position);
            let marks: Vec<Position> = marks.filter(|mark| *mark < cutoff).collect();
            tracing::info!(timeline = %id, moments = marks.len(), "history is over its limit: the oldest moments go");
            timeline.let_go(&marks)?;
        }
        Ok(())
    }
}

impl Store {
    /// Opens a timeline whose marks are to be let go of, or whose logs a killed server left to be sealed.
    pub(super) fn open_due(&self) -> Result<()> {
        let (now_ns, window_ns) = (self.clock().now_ns(), self.window_ns());
        for (id, slot) in self.slots() {
            let due = slot.try_lock().is_ok_and(|slot| {
                let newest_ns = slot.lanes[0].newest_mark_ns;
                let marks =
                    newest_ns > 0 && Marks::next_at_rest(newest_ns, slot.rested_ns, window_ns) <= now_ns;
                slot.timeline.is_none() && (marks || slot.has_log())
            });
            if due {
                self.timeline(id)?;
                // Remembered when it is closed, so that it is not opened again for the same reason.
                lock(&slot).rested_ns = now_ns;
                return Ok(());
            }
        }
        Ok(())
    }
}
