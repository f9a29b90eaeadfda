//! How long moments are kept: forgets marks with time and above a byte limit, and finds what only
//! they saw.
//!
//! A timeline that is written to forgets marks as it makes new ones. A timeline that rests is
//! visited here, and rarely: each visit writes a record, which has to be sealed.

use crate::error::Result;
use crate::locks::lock;
use crate::storage::catalog::LaneRecord;
use crate::storage::index::marks::Marks;
use crate::storage::index::versions::Retained;
use crate::storage::page::{LaneKind, PerLane, Position, TimelineId};
use crate::storage::slot::TimelineSlot;
use crate::storage::store::Store;
use crate::storage::timeline::Timeline;
use crate::storage::upkeep::pace::Pace;
use crate::storage::upkeep::plan::MAX_INPUTS;
use crate::storage::upkeep::survey::Survey;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Timelines that are opened at once to forget marks.
const MAX_OPENED: usize = 4;
/// How long one is then left alone.
const NOT_BEFORE_NS: i64 = 3_600_000_000_000;
/// With the same layers and forks, only marks went since the last survey; that is looked at no more
/// often.
const SURVEY_AGAIN: Duration = Duration::from_secs(300);
/// Surveys of a timeline take at most one part in so many of the time.
const SURVEY_SHARE: u32 = 20;

/// What was found of timelines, from one look to the next.
#[derive(Default)]
pub(super) struct Retention {
    looked: HashMap<TimelineId, Instant>,
    surveyed: HashMap<TimelineId, Surveyed>,
    garbage: HashMap<(TimelineId, LaneKind), u64>,
}

/// When a survey ended, or began if it did not end; how long it took, and what it saw.
struct Surveyed {
    at: Instant,
    took: Duration,
    seen: SurveyBasis,
}

impl Surveyed {
    fn is_enough(&self, seen: &SurveyBasis, every: Duration) -> bool {
        let since = self.at.elapsed();
        since < self.took * SURVEY_SHARE || (self.seen == *seen && since < SURVEY_AGAIN.max(every))
    }
}

/// What a survey depends on: the newest layers and how many there are, and the number of forks.
type SurveyBasis = (PerLane<Option<u64>>, PerLane<usize>, usize);

impl Retention {
    /// Bytes of a lane's layers that nobody needs, as far as is known.
    pub(super) fn garbage(&self, id: TimelineId, lane: LaneKind) -> u64 {
        self.garbage.get(&(id, lane)).copied().unwrap_or(0)
    }

    /// All of the lane's layers are written anew.
    pub(super) fn forget(&mut self, id: TimelineId, lane: LaneKind) {
        self.garbage.remove(&(id, lane));
    }

    /// Forgets all but these timelines.
    pub(super) fn keep(&mut self, timelines: &[Arc<Timeline>]) {
        let open: HashSet<TimelineId> = timelines.iter().map(|timeline| timeline.id()).collect();
        self.looked.retain(|id, _| open.contains(id));
        self.surveyed.retain(|id, _| open.contains(id));
        self.garbage.retain(|(id, _), _| open.contains(id));
    }

    /// Forgets marks and looks for garbage, unless it did so less than `every` ago. Where layers
    /// have piled up there is no looking through them before they are merged.
    pub(super) fn look(
        &mut self,
        store: &Store,
        timeline: &Arc<Timeline>,
        (rests, every, limit): (bool, Duration, u64),
        pace: &mut Pace<'_>,
    ) -> Result<()> {
        let id = timeline.id();
        if self.looked.get(&id).is_some_and(|looked| looked.elapsed() < every) {
            return Ok(());
        }
        self.looked.insert(id, Instant::now());
        let window_ns = timeline.window_ns();
        // It may have been dropped meanwhile.
        let Ok(slot) = store.slot(id) else { return Ok(()) };
        if lock(&slot).is_shorter(window_ns) {
            timeline.forget_marks(&timeline.due())?;
            // What only they saw is to go soon.
            self.surveyed.remove(&id);
        } else if rests || window_ns == 0 {
            timeline.forget_marks(&timeline.due_at_rest())?;
        }
        let forks = store.catalog().forks(id);
        let newest =
            PerLane::from_fn(|lane| timeline.layers(lane).first().map(|layer| layer.id().number));
        let seen: SurveyBasis =
            (newest, PerLane::from_fn(|lane| timeline.layers(lane).len()), forks.len());
        let enough = self.surveyed.get(&id).is_some_and(|before| before.is_enough(&seen, every));
        if enough || seen.1.iter().any(|layers| *layers > MAX_INPUTS) {
            return Ok(());
        }
        let at = Instant::now();
        self.surveyed.insert(id, Surveyed { at, took: Duration::ZERO, seen });
        let mut all = Survey::default();
        for lane in LaneKind::ALL {
            let mut retained = Retained::default();
            forks.iter().for_each(|fork| retained.add(fork.at[lane]));
            let found = timeline.survey(lane, &retained, &store.children(id, lane)?, pace)?;
            self.garbage.insert((id, lane), found.garbage);
            all.add(found);
        }
        self.surveyed.insert(id, Surveyed { at: Instant::now(), took: at.elapsed(), seen });
        let cutoff = all.cutoff(limit);
        if cutoff > 0 {
            let marks = timeline.marks().into_iter().map(|mark| mark.position);
            let marks: Vec<Position> = marks.filter(|mark| *mark < cutoff).collect();
            tracing::info!(
                timeline = %id, moments = marks.len(),
                "history is over its limit: the oldest moments go"
            );
            timeline.forget_marks(&marks)?;
        }
        Ok(())
    }
}

/// Why a timeline that is closed is opened.
enum Due {
    /// Less of its past is kept than before.
    Shorter,
    /// It rests, and its marks are old, or its log is to be sealed.
    Rests,
}

impl Store {
    /// Forgets marks of timelines that are closed, and opens those whose logs a killed server
    /// left to be sealed; a few at a time.
    pub(super) fn open_due(&self) {
        let (now_ns, mut opened) = (self.clock().now_ns(), 0);
        for (id, slot) in self.slots() {
            let Some(due) =
                slot.try_lock().ok().and_then(|mut slot| self.due(id, &mut slot, now_ns))
            else {
                continue;
            };
            let forget = |timeline: Arc<Timeline>| match due {
                Due::Shorter => timeline.forget_marks(&timeline.due()),
                Due::Rests => timeline.forget_marks(&timeline.due_at_rest()),
            };
            if let Err(error) = self.timeline(id).and_then(forget) {
                tracing::warn!(
                    timeline = %id, %error,
                    "a timeline that rests could not be looked after"
                );
            }
            opened += 1;
            if opened == MAX_OPENED {
                return;
            }
        }
    }

    /// What is to be done about a timeline, if it is closed.
    fn due(&self, id: TimelineId, slot: &mut TimelineSlot, now_ns: i64) -> Option<Due> {
        if slot.timeline.is_some() {
            return None;
        }
        let LaneRecord { newest_mark_ns, marks, .. } = slot.lanes.data;
        let window_ns = if marks > 0 { self.catalog().window_ns(id) } else { i64::MAX };
        // The newest from before the window stays.
        let marks = marks > u64::from(window_ns > 0);
        if marks && slot.is_shorter(window_ns) {
            return Some(Due::Shorter);
        }
        let marks = marks && Marks::due_at_rest_ns(newest_mark_ns, window_ns) <= now_ns;
        if now_ns < slot.not_before_ns || !(marks || slot.has_log()) {
            return None;
        }
        slot.not_before_ns = now_ns.saturating_add(NOT_BEFORE_NS);
        Some(Due::Rests)
    }
}
