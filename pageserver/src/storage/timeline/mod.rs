//! One history of one data directory: two lanes with their indexes, and the ancestor for what they
//! do not hold.
//!
//! Everything is read at the head. A change takes a position, goes to its lane's log and enters the
//! index under one lock, so a lane is always in the order of positions. After a failed write or
//! sync the timeline is latched: it refuses changes and syncs until it is opened anew, because
//! nobody can know what reached the disk. The order of locks is in [`crate::storage`].

pub mod append;
mod files;
pub mod history;
pub(in crate::storage) mod lane;
pub mod open;
pub(in crate::storage) mod parts;
pub(in crate::storage) mod read;
mod sync;
pub mod syncer;

use crate::error::{Error, Kind, Result};
use crate::locks::{read, write};
use crate::storage::clock::Clock;
use crate::storage::layer::Layer;
use crate::storage::log::files::LaneFiles;
use crate::storage::log::record::LaneFileId;
use crate::storage::page::{HEAD, LaneKind, PerLane, Position, Positions, TimelineId};
use crate::storage::timeline::lane::{Lane, LaneState};
use crate::storage::timeline::syncer::Syncer;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What timelines of a store share.
#[derive(Clone)]
pub struct Shared {
    /// Where lane files are.
    pub lane_files: Arc<LaneFiles>,
    /// The order of records.
    pub positions: Arc<Positions>,
    /// Who syncs.
    pub syncer: Syncer,
    /// What time it is.
    pub clock: Arc<Clock>,
}

/// Where a timeline reads what it does not hold itself.
pub struct Ancestor {
    /// The timeline it was forked from.
    pub timeline: Arc<Timeline>,
    /// What it sees of the ancestor's lanes, by [`LaneKind`].
    pub at: PerLane<Position>,
}

/// One history. See the module.
pub struct Timeline {
    id: TimelineId,
    pub(in crate::storage) ancestor: Option<Ancestor>,
    shared: Shared,
    /// How long a moment can be gone back to, in nanoseconds; 0 for not at all. The catalog keeps
    /// it up to date.
    window_ns: Arc<AtomicI64>,
    lanes: PerLane<Lane>,
    latch: OnceLock<Error>,
    /// Whether the data lane was synced since the newest mark that removals made.
    data_synced: AtomicBool,
    /// Position of the newest record that changed what it shows, as marks do not.
    changed: AtomicU64,
    /// Whether a name or a child needs it; an import in progress has no history.
    in_use: AtomicBool,
    /// Whether others may have its files open too, so that they must not be recycled.
    pub(in crate::storage) reopened: bool,
    /// The sum of file sizes, and the newest positions at which it was made.
    logical: Mutex<(PerLane<Position>, PerLane<u64>)>,
}

impl Timeline {
    /// Its number.
    pub fn id(&self) -> TimelineId {
        self.id
    }

    /// The timeline it was forked from.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.ancestor.as_ref().map(|ancestor| &ancestor.timeline)
    }

    pub(in crate::storage) fn lane_files(&self) -> &Arc<LaneFiles> {
        &self.shared.lane_files
    }

    pub(in crate::storage) fn take_position(&self) -> Position {
        self.shared.positions.take()
    }

    /// Why it refuses changes, if it does.
    pub fn latched(&self) -> Option<&Error> {
        self.latch.get()
    }

    /// Bytes of its own files.
    pub fn own_bytes(&self) -> u64 {
        let bytes = |state: &LaneState| {
            state.log.bytes() + state.layers.iter().map(|layer| layer.bytes()).sum::<u64>()
        };
        self.lanes.iter().map(|lane| bytes(&read(&lane.state))).sum()
    }

    pub(in crate::storage) fn layers(&self, lane: LaneKind) -> Vec<Arc<Layer>> {
        read(&self.lane(lane).state).layers.clone()
    }

    /// Whether its logs are empty: all there is of it is in layers, or in its ancestor.
    pub(in crate::storage) fn is_sealed(&self) -> bool {
        self.lanes.iter().all(|lane| read(&lane.state).log.is_empty())
    }

    /// Newest positions of both lanes.
    pub fn last_positions(&self) -> PerLane<Position> {
        PerLane::from_fn(|lane| self.lanes[lane].appended.load(Ordering::SeqCst))
    }

    pub(in crate::storage) fn lane(&self, kind: LaneKind) -> &Lane {
        &self.lanes[kind]
    }

    /// The timelines that hold what an inode made at `created` shows, newest first, with what is
    /// seen of each.
    fn chain(
        self: &Arc<Self>,
        lane: LaneKind,
        created: Position,
    ) -> impl Iterator<Item = (&Arc<Self>, Position)> {
        std::iter::successors(Some((self, HEAD)), move |(timeline, _)| {
            let ancestor = timeline.ancestor.as_ref()?;
            let at = ancestor.at[lane];
            (created <= at).then_some((&ancestor.timeline, at))
        })
    }

    fn refuse_if_latched(&self) -> Result<()> {
        match self.latch.get() {
            None => Ok(()),
            Some(error) if error.kind == Kind::Full => Err(error.clone()),
            Some(error) => Err(Error::new(
                Kind::Latched,
                "latched",
                format!("timeline {} refuses changes since: {error}; restart the branch", self.id),
            )),
        }
    }

    /// Latches after a write that failed before it came to the log. The kernel has let go of what
    /// it wanted to write, so going on would lose it.
    pub fn latch_failed_write(&self, error: Error) -> Error {
        if self.latch.get().is_some() { error } else { self.latch(error) }
    }

    fn latch(&self, error: Error) -> Error {
        tracing::error!(
            timeline = %self.id, %error,
            "timeline latched: no more changes until it is opened anew"
        );
        self.latch.get_or_init(|| error).clone()
    }

    /// Ends each lane with a record that says all before it is synced, so that damage to the last
    /// records is noticed at the next opening.
    pub fn close(self: &Arc<Self>) -> Result<()> {
        self.sync_and_wait()?;
        for kind in LaneKind::ALL {
            let lane = self.lane(kind);
            let mut state = write(&lane.state);
            if lane.appended.load(Ordering::SeqCst) == lane.closed_at || state.log.is_empty() {
                continue;
            }
            let position = self.shared.positions.take();
            let durable = lane.durable.load(Ordering::SeqCst);
            let last = state.log.last();
            assert!(durable <= last, "durable to {durable}, appended to {last}");
            state.log.append(position, durable, &[], &[]).map_err(|error| self.latch(error))?;
            lane.appended.store(position, Ordering::SeqCst);
        }
        self.sync_and_wait()
    }

    /// Ends the timeline for good: nothing is appended any more. Returns its files with their
    /// lengths.
    pub fn retire(&self) -> Vec<(LaneFileId, u64)> {
        let error =
            Error::new(Kind::Latched, "dropped", format!("timeline {} was dropped", self.id));
        self.latch.get_or_init(|| error);
        // The write lock waits for a change that began before the latch. A sync may go on without
        // it, and the files are another timeline's next.
        self.lanes.iter().flat_map(|lane| write(&lane.state).log.retire()).collect()
    }

    /// Its files with their lengths.
    pub fn files(&self) -> Vec<(LaneFileId, u64)> {
        // The write lock waits for a change that began before the latch.
        self.lanes.iter().flat_map(|lane| write(&lane.state).log.list()).collect()
    }

    /// Forgets what the operating system cached of its files, so that opening it anew reads what
    /// the disk has.
    pub fn drop_cache(&self) -> Result<()> {
        for lane in self.lanes.iter() {
            for file in read(&lane.state).log.files.values() {
                file.drop_cache().map_err(|e| Error::io("drop the cache of a lane file", &e))?;
            }
        }
        Ok(())
    }
}
