//! Opening a timeline: its layers, and what its logs have beyond them.

use crate::error::{Error, Kind, Result};
use crate::locks::read;
use crate::storage::catalog::LaneRecord;
use crate::storage::index::Index;
use crate::storage::index::versions::Retained;
use crate::storage::log::record::LaneFileId;
use crate::storage::log::{Log, Start, recovery};
use crate::storage::page::{LaneKind, PerLane, Position, TimelineId};
use crate::storage::timeline::lane::{Lane, open_layers};
use crate::storage::timeline::{Ancestor, Shared, Timeline};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What a timeline is opened with, from the catalog.
pub struct Opening {
    /// Which one.
    pub id: TimelineId,
    /// Where it was forked from.
    pub ancestor: Option<Ancestor>,
    /// Fork positions of its children, by lane.
    pub retained: PerLane<Retained>,
    /// Positions up to which its lanes are known to have been synced.
    pub required: PerLane<Position>,
    /// What of its lanes is sealed.
    pub lanes: PerLane<LaneRecord>,
    /// The files of its logs, in any order.
    pub files: Vec<LaneFileId>,
    /// How long its moments are kept, in nanoseconds, as the catalog says at each time.
    pub window_ns: Arc<AtomicI64>,
    /// Whether it was open before, in this run: a child may still read its files through what was
    /// open then.
    pub reopened: bool,
}

impl Opening {
    /// Opens a lane: what its newest layer knows of files, then the records of its log. Returns it
    /// with the position of the newest record that changed what the timeline shows.
    fn lane(
        &self,
        shared: &Shared,
        lane: LaneKind,
        retained: Retained,
    ) -> Result<(Lane, Position)> {
        let base = self.ancestor.as_ref().map_or(0, |ancestor| ancestor.at[lane]);
        let mut index = Index::new(base, retained);
        let record = self.lanes[lane].clone();
        let layers = open_layers(&shared.lane_files, (self.id, lane), &record)?;
        if let Some(newest) = layers.first() {
            let metadata = newest.metadata()?;
            metadata
                .into_iter()
                .for_each(|(position, change)| index.apply(position, &[change], 0, 0));
        }
        let mut files: Vec<LaneFileId> =
            self.files.iter().filter(|id| id.lane == lane).copied().collect();
        files.sort_unstable();
        let start = Start { sealed: record.sealed, sequence: record.sequence };
        let (mut closed_at, mut changed) = (0, 0);
        let log = recovery::recover(
            &shared.lane_files,
            (self.id, lane),
            &files,
            (start, self.required[lane]),
            &mut |found, _| {
                let position = found.header.position;
                let offset = usize::try_from(found.offset).unwrap_or(usize::MAX);
                index.apply(position, &found.changes, found.sequence, offset);
                closed_at = if found.changes.is_empty() { position } else { 0 };
                if found.changes.iter().any(|change| !change.is_of_marks()) {
                    changed = position;
                }
                Ok(())
            },
        )?;
        if log.last() >= shared.positions.next() {
            return Err(Error::corrupt(format!(
                "timeline {} has a record of position {}, which no run has reached: restore the \
                 store from a backup",
                self.id,
                log.last()
            )));
        }
        Ok((Lane::new(log, index, layers, record, closed_at), changed))
    }
}

impl Timeline {
    /// Replays the timeline's lanes.
    pub fn open(shared: Shared, opening: Opening) -> Result<Arc<Self>> {
        let id = opening.id;
        if let Some(ancestor) = &opening.ancestor {
            let older = ancestor.timeline.id();
            assert!(older < id, "timeline {id} comes from {older}, which is younger");
        }
        let strange = opening.files.iter().find(|file| file.timeline != id);
        assert!(strange.is_none(), "timeline {id} is opened with {strange:?}");
        let PerLane { data: of_data, wal: mut of_wal } = opening.retained.clone();
        let (data, changed) = opening.lane(&shared, LaneKind::Data, of_data)?;
        // The data lane's marks keep the other lane readable too.
        let (marked, marks) = {
            let data = read(&data.state);
            let marks = data.index.marks().all();
            (!marks.is_empty(), marks.iter().map(|mark| mark.position).collect::<Vec<_>>())
        };
        marks.into_iter().for_each(|mark| of_wal.add(mark));
        let (wal, wal_changed) = opening.lane(&shared, LaneKind::Wal, of_wal)?;
        let lanes = PerLane { data, wal };
        let mut changed = changed.max(wal_changed);
        if !marked {
            // Whatever it shows was never marked.
            let newest = lanes.iter().map(|lane| lane.appended.load(Ordering::SeqCst)).max();
            changed = changed.max(newest.unwrap_or(0));
        }
        let Opening { id, ancestor, window_ns, reopened, .. } = opening;
        Ok(Arc::new(Self {
            id,
            ancestor,
            shared,
            window_ns,
            lanes,
            latch: OnceLock::new(),
            data_synced: AtomicBool::new(true),
            changed: AtomicU64::new(changed),
            in_use: AtomicBool::new(false),
            reopened,
            logical: Mutex::new((PerLane::both(Position::MAX), PerLane::both(0))),
        }))
    }

    /// What a reader at these positions of the lanes sees, for reading only. The caller keeps them
    /// readable.
    pub fn view(self: &Arc<Self>, at: PerLane<Position>) -> Arc<Self> {
        let lane = |kind: LaneKind| {
            let start = Start { sealed: 0, sequence: 0 };
            let log = Log::new(Arc::clone(&self.shared.lane_files), self.id, kind, start);
            let index = Index::new(at[kind], Retained::default());
            Lane::new(log, index, Vec::new(), LaneRecord::default(), 0)
        };
        let error =
            Error::new(Kind::Latched, "read_only", format!("a moment of timeline {}", self.id));
        Arc::new(Self {
            id: self.id,
            ancestor: Some(Ancestor { timeline: Arc::clone(self), at }),
            shared: self.shared.clone(),
            window_ns: Arc::clone(&self.window_ns),
            lanes: PerLane::from_fn(lane),
            latch: OnceLock::from(error),
            data_synced: AtomicBool::new(false),
            changed: AtomicU64::new(0),
            in_use: AtomicBool::new(false),
            reopened: false,
            logical: Mutex::new((PerLane::both(Position::MAX), PerLane::both(0))),
        })
    }
}
