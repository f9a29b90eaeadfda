//! Keeping a store in shape in the background: sealing logs and merging layers.
//!
//! One thread seals, another does the rest, each one thing at a time. A new layer counts from one
//! transaction of the catalog on. If anything fails before, all stays as it was and is tried again
//! later.

mod children;
mod flatten;
mod merge;
pub mod pace;
pub mod plan;
mod publish;
mod retention;
mod seal;
mod survey;

use crate::error::{Error, Kind, Result};
use crate::storage::clock::whole_ms;
use crate::storage::page::{LaneKind, Position, TimelineId};
use crate::storage::store::Store;
use crate::storage::timeline::Timeline;
use crate::storage::upkeep::pace::{STOPPING, Slices};
use crate::storage::upkeep::plan::Plan;
use crate::storage::upkeep::retention::Retention;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A lane whose sealing or merging failed is left alone for so long.
const RETRY: Duration = Duration::from_secs(60);
/// What a timeline keeps is looked at no more often than this.
const SOON: Duration = Duration::from_secs(1);

/// When a lane's log is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When it is longer than this, even while it is written to.
    pub max_log_bytes: u64,
    /// When nothing was appended for so long.
    pub quiet: Duration,
    /// Bytes that a timeline may keep for marks alone.
    pub max_history_bytes: u64,
}

/// What a pass is for. Sealing and everything else go on side by side, so that a long merge lets no
/// log grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Logs become layers.
    Seal,
    /// Layers are merged, marks forgotten, long chains shortened.
    Tidy,
}

/// What a pass goes by.
struct PassRules {
    limits: Limits,
    duty: Duty,
    /// Lanes whose sealing or merging failed, and when.
    failed: HashMap<(TimelineId, LaneKind), Instant>,
}

impl PassRules {
    /// How many times over its limit that lane is that is furthest behind. One that cannot be
    /// worked on is not looked at.
    fn excess(&self, store: &Store) -> u64 {
        let timelines = store.open_timelines();
        let healthy = timelines.iter().filter(|timeline| timeline.latched().is_none());
        let lanes = healthy.flat_map(|timeline| LaneKind::ALL.map(|lane| (timeline, lane)));
        let possible =
            lanes.filter(|(timeline, lane)| !self.failed.contains_key(&(timeline.id(), *lane)));
        let excess = possible.map(|(timeline, lane)| {
            let (shape, _) = timeline.shape(lane, Position::MAX);
            match self.duty {
                Duty::Seal => {
                    (shape.log_bytes / self.limits.max_log_bytes.max(1)).saturating_sub(1)
                }
                Duty::Tidy => plan::excess(&shape.layers),
            }
        });
        excess.max().unwrap_or(0)
    }
}

/// What was seen of the lanes, from one pass to the next.
pub struct Maintenance {
    due: PassRules,
    /// The newest record of each lane, and when it was first seen to be that.
    seen: HashMap<(TimelineId, LaneKind), (Position, Instant)>,
    retention: Retention,
    /// When deep chains were last looked for.
    looked: Instant,
    /// What failed first in the pass. Nothing is lost by it, and it is tried again later.
    failure: Option<Error>,
}

impl Maintenance {
    /// Does its `duty` within `limits`.
    pub fn new(limits: Limits, duty: Duty) -> Self {
        Self {
            due: PassRules { limits, duty, failed: HashMap::new() },
            seen: HashMap::new(),
            retention: Retention::default(),
            looked: Instant::now(),
            failure: None,
        }
    }

    /// Does what is due for each lane, one thing at most, so that a lane that always has more keeps
    /// none waiting. Whether there may be more; or what failed, after everything else was done.
    pub fn pass(&mut self, store: &Store, stop: &AtomicBool) -> Result<bool> {
        let more = self.work(store, stop);
        self.failure.take().map_or(Ok(more), Err)
    }

    fn work(&mut self, store: &Store, stop: &AtomicBool) -> bool {
        if self.due.duty == Duty::Tidy {
            store.open_due();
        }
        let timelines = store.open_timelines();
        self.retention.keep(&timelines);
        self.seen.retain(|(id, _), _| timelines.iter().any(|timeline| timeline.id() == *id));
        self.due.failed.retain(|_, failed| failed.elapsed() < RETRY);
        let mut more = false;
        for timeline in timelines.iter().filter(|timeline| timeline.latched().is_none()) {
            for lane in LaneKind::ALL {
                more |= self.lane((store, stop), timeline, lane);
                if stop.load(Ordering::Relaxed) {
                    return false;
                }
            }
            // Behind the merges: there are few layers to look through.
            if self.due.duty == Duty::Tidy {
                self.look((store, stop), timeline);
            }
        }
        if self.due.duty == Duty::Tidy {
            self.flatten(store, stop);
        }
        more
    }

    /// Lets a timeline at the end of a long chain stand on its own.
    fn flatten(&mut self, store: &Store, stop: &AtomicBool) {
        if self.looked.elapsed() < self.due.limits.quiet.max(SOON) {
            return;
        }
        let excess = || self.due.excess(store);
        let mut pace = Slices::new(store.positions(), stop, &excess);
        match store.flatten_deep(&mut |bytes| pace.worked(bytes)) {
            // There may be another.
            Ok(true) => {}
            Err(error) if error.code != STOPPING && error.kind != Kind::NotFound => {
                self.fail("a timeline at the end of a long chain stays there", error);
                self.looked = Instant::now() + RETRY;
            }
            _ => self.looked = Instant::now(),
        }
    }

    /// Remembers the first failure of a pass.
    fn fail(&mut self, what: &str, error: Error) {
        let detail = format!("{what}; nothing is lost, it is tried again later: {error}");
        self.failure.get_or_insert(Error { detail, ..error });
    }

    /// Since when the lane is as it is.
    fn quiet_since(&self, id: TimelineId, lane: LaneKind) -> Option<Position> {
        let quiet = self
            .seen
            .get(&(id, lane))
            .filter(|(_, since)| since.elapsed() >= self.due.limits.quiet);
        quiet.map(|(last, _)| *last)
    }

    fn look(&mut self, (store, stop): (&Store, &AtomicBool), timeline: &Arc<Timeline>) {
        let last = timeline.last_positions();
        let rests = LaneKind::ALL
            .iter()
            .all(|lane| self.quiet_since(timeline.id(), *lane) == Some(last[*lane]));
        let Limits { quiet, max_history_bytes, .. } = self.due.limits;
        let wanted = (rests, quiet.max(SOON), max_history_bytes);
        let excess = || self.due.excess(store);
        let mut pace = Slices::new(store.positions(), stop, &excess);
        let looked = self.retention.look(store, timeline, wanted, &mut |bytes| pace.worked(bytes));
        if let Err(error) = looked
            && error.code != STOPPING
        {
            let what = format!("the past of timeline {} could not be looked at", timeline.id());
            self.fail(&what, error);
        }
    }

    /// Does one thing to a lane; false if there is nothing to do.
    fn lane(
        &mut self,
        (store, stop): (&Store, &AtomicBool),
        timeline: &Timeline,
        lane: LaneKind,
    ) -> bool {
        let (id, began) = (timeline.id(), Instant::now());
        if self.due.failed.contains_key(&(id, lane)) {
            return false;
        }
        let (mut shape, last) =
            timeline.shape(lane, self.quiet_since(id, lane).unwrap_or(Position::MAX));
        shape.garbage = self.retention.garbage(id, lane);
        let seen = self.seen.entry((id, lane)).or_insert((last, began));
        if seen.0 != last {
            *seen = (last, began);
        }
        match self.due.duty {
            Duty::Seal => shape.layers.clear(),
            Duty::Tidy => shape.log_bytes = 0,
        }
        let plan = plan::choose(&shape, self.due.limits.max_log_bytes);
        let excess = || self.due.excess(store);
        let mut pace = Slices::new(store.positions(), stop, &excess);
        if plan != Plan::Nothing {
            pace.look();
        }
        let outcome = match &plan {
            Plan::Nothing => return false,
            Plan::Seal => store.seal(id, lane, &mut |bytes| pace.worked(bytes)),
            Plan::Merge(range) => {
                if range.len() == shape.layers.len() {
                    self.retention.forget(id, lane);
                }
                store.merge(id, lane, range.clone(), &mut |bytes| pace.worked(bytes))
            }
        };
        let duration_ms = whole_ms(began.elapsed());
        match outcome {
            Ok(done) => {
                tracing::debug!(timeline = %id, ?lane, ?plan, duration_ms, "lane kept in shape");
                done
            }
            // The timeline may have been dropped meanwhile.
            Err(error) if error.code == STOPPING || error.kind == Kind::NotFound => false,
            Err(error) => {
                self.due.failed.insert((id, lane), Instant::now());
                self.fail(&format!("sealing or merging {lane:?} of timeline {id} failed"), error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::SimDisk;
    use crate::storage::page::PAGE_BYTES;
    use crate::storage::tests::{make, named, new_store, tree};

    const LIMITS: Limits =
        Limits { max_log_bytes: 0, quiet: Duration::from_secs(3600), max_history_bytes: u64::MAX };

    #[test]
    fn the_lane_that_is_furthest_behind_counts() {
        let (store, id) = new_store(&SimDisk::default());
        let (other, _) = store.fork(id, |t| named("other", t)).unwrap();
        let (limits, failed) = (Limits { max_log_bytes: 1 << 16, ..LIMITS }, HashMap::new());
        let mut due = PassRules { limits, duty: Duty::Seal, failed };
        assert_eq!(due.excess(&store), 0);
        let child = tree(&store, other);
        let inode = make(&child, b"f");
        for (pages, expected) in [(15, 0), (3, 1), (8, 2), (16, 4)] {
            child.write(inode, 0, &vec![7; pages * PAGE_BYTES]).unwrap();
            assert_eq!(due.excess(&store), expected, "{pages} pages more");
        }
        due.duty = Duty::Tidy;
        for layers in 1..=16 {
            store.seal(other, LaneKind::Data, &mut |_| Ok(())).unwrap();
            child.write(inode, 0, &[7; PAGE_BYTES]).unwrap();
            assert_eq!(due.excess(&store), (layers / 4_u64).saturating_sub(1), "{layers} layers");
        }
        due.failed.insert((other, LaneKind::Data), Instant::now());
        assert_eq!(due.excess(&store), 0);
        (due.duty, due.failed) = (Duty::Seal, HashMap::new());
        assert_eq!(due.excess(&store), 0);
    }

    #[test]
    fn a_lane_that_always_has_more_keeps_none_waiting() {
        let (store, id) = new_store(&SimDisk::default());
        let (main, stop) = (tree(&store, id), AtomicBool::new(false));
        let inode = make(&main, b"f");
        let write =
            |nth: u64| main.write(inode, nth % 1024 * PAGE_BYTES as u64, &[7; PAGE_BYTES]).unwrap();
        let mut maintenance = Maintenance::new(LIMITS, Duty::Seal);
        let (ended, end) = std::sync::mpsc::channel();
        (0..1024).for_each(write);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(write));
            scope.spawn(|| {
                assert!(maintenance.pass(&store, &stop).unwrap(), "the log was sealed");
                ended.send(()).unwrap();
            });
            let outcome = end.recv_timeout(Duration::from_secs(120));
            stop.store(true, Ordering::Relaxed);
            assert!(outcome.is_ok(), "a pass over one lane does not end");
        });
    }

    #[test]
    fn a_lane_that_cannot_be_sealed_is_reported_once_and_left_alone_for_a_while() {
        let disk = SimDisk::default();
        let (store, id) = new_store(&disk);
        let (main, stop) = (tree(&store, id), AtomicBool::new(false));
        let inode = make(&main, b"f");
        main.write(inode, 0, &[7; 16 * PAGE_BYTES]).unwrap();
        let mut maintenance = Maintenance::new(LIMITS, Duty::Seal);
        disk.set_capacity_bytes(Some(disk.used_bytes()));
        let error = maintenance.pass(&store, &stop).unwrap_err();
        assert!(error.detail.contains("sealing or merging Data of timeline"), "{error}");
        assert_eq!(error.kind, Kind::Full);
        disk.set_capacity_bytes(None);
        assert!(!maintenance.pass(&store, &stop).unwrap(), "it is left alone");
        let mut other = Maintenance::new(LIMITS, Duty::Seal);
        assert!(other.pass(&store, &stop).unwrap(), "it can be sealed");
    }
}
