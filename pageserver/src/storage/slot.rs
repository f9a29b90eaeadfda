//! A timeline's place in the store, open or closed.

use crate::storage::catalog::{AncestorRecord, LaneRecord};
use crate::storage::log::files::Files;
use crate::storage::page::{PerLane, TimelineId};
use crate::storage::timeline::Timeline;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// A timeline's place: its files while it is closed, itself while it is open.
pub(super) struct TimelineSlot {
    pub(super) ancestor: Option<AncestorRecord>,
    /// What of its lanes is sealed.
    pub(super) lanes: PerLane<LaneRecord>,
    pub(super) files: Files,
    pub(super) timeline: Option<Arc<Timeline>>,
    /// Before this time it is not looked at again whether marks are due.
    pub(super) not_before_ns: i64,
    /// The window by which its marks were last looked at.
    pub(super) window_ns: Option<i64>,
    /// The children whose forks the open timeline keeps readable.
    pub(super) kept_for: HashSet<TimelineId>,
    /// Whether it had to be opened anew.
    pub(super) reopened: bool,
}

impl TimelineSlot {
    pub(super) fn closed(
        ancestor: Option<AncestorRecord>,
        lanes: PerLane<LaneRecord>,
        files: Files,
    ) -> Arc<Mutex<Self>> {
        let (timeline, not_before_ns, window_ns) = (None, 0, None);
        let (kept_for, reopened) = (HashSet::new(), false);
        Arc::new(Mutex::new(Self {
            ancestor,
            lanes,
            files,
            timeline,
            not_before_ns,
            window_ns,
            kept_for,
            reopened,
        }))
    }

    /// All of it is in these lanes now; it has no ancestor, and is closed. Returns the one that it
    /// had.
    pub(super) fn become_root(&mut self, lanes: PerLane<LaneRecord>) -> Option<AncestorRecord> {
        assert!(self.ancestor.is_some(), "it is a root already, with {} files", self.files.len());
        (self.lanes, self.timeline, self.files) = (lanes, None, Vec::new());
        self.ancestor.take()
    }

    /// Whether its window is shorter than when this was last asked: its marks are looked at anew.
    pub(super) fn is_shorter(&mut self, window_ns: i64) -> bool {
        self.window_ns.replace(window_ns).is_some_and(|before_ns| window_ns < before_ns)
    }

    /// Whether something of it is not sealed.
    pub(super) fn has_log(&self) -> bool {
        !self.files.is_empty()
    }

    /// What both lanes show while it is closed and all of it is sealed.
    pub(super) fn sealed_logical_bytes(&self) -> PerLane<u64> {
        let inherited =
            self.ancestor.as_ref().map_or_else(PerLane::default, |ancestor| ancestor.logical_bytes);
        PerLane::from_fn(|lane| {
            let record = &self.lanes[lane];
            if record.layers.is_empty() { inherited[lane] } else { record.logical_bytes }
        })
    }
}
