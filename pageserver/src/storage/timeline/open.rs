//! Opening a timeline: its layers, and what its logs have beyond them.

use crate::error::{Error, Kind, Result};
use crate::locks::read;
use crate::storage::catalog::LaneRecord;
use crate::storage::index::Index;
use crate::storage::index::versions::Retained;
use crate::storage::log::record::LaneFileId;
use crate::storage::log::{Log, Start, recovery};
use crate::storage::page::{LaneKind, Position, TimelineId};
use crate::storage::timeline::lane::{Lane, LaneState, open_layers};
use crate::storage::timeline::syncer::SyncQueue;
use crate::storage::timeline::{Ancestor, Shared, Timeline};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// What a timeline is opened with, from the catalog.
pub struct Opening {
    /// Which one.
    pub id: TimelineId,
    /// Where it was forked from.
    pub ancestor: Option<Ancestor>,
    /// Fork positions of its children, by lane.
    pub retained: [Retained; 2],
    /// Positions up to which its lanes are known to have been synced.
    pub required: [Position; 2],
    /// What of its lanes is sealed.
    pub lanes: [LaneRecord; 2],
    /// The files of its logs, in any order.
    pub files: Vec<LaneFileId>,
    /// Whether it was open before, in this run: a child may still read its files through what was
    /// open then.
    pub reopened: bool,
}

impl Timeline {
    /// Replays the timeline's lanes.
    pub fn open(shared: Shared, mut opening: Opening) -> Result<Arc<Self>> {
        opening.files.sort_unstable();
        let changed = AtomicU64::new(0);
        let open_lane = |lane: LaneKind, retained: &Retained| -> Result<Lane> {
            let base = opening.ancestor.as_ref().map_or(0, |ancestor| ancestor.at[lane as usize]);
            let mut index = Index::new(base, retained.clone());
            let ids: Vec<LaneFileId> =
                opening.files.iter().filter(|id| id.lane == lane).copied().collect();
            let required = opening.required[lane as usize];
            let record = opening.lanes[lane as usize].clone();
            let layers = open_layers(&shared.lane_files, (opening.id, lane), &record)?;
            if let Some(newest) = layers.first() {
                let metadata = newest.metadata()?;
                metadata
                    .into_iter()
                    .for_each(|(position, change)| index.apply(position, &[change], 0, 0));
            }
            let start = Start { sealed: record.sealed, sequence: record.sequence };
            let mut closed_at = 0;
            let log = recovery::recover(
                &shared.lane_files,
                (opening.id, lane),
                &ids,
                (start, required),
                &mut |found, _| {
                    let offset = usize::try_from(found.offset).unwrap_or(usize::MAX);
                    index.apply(found.header.position, &found.changes, found.sequence, offset);
                    closed_at = if found.changes.is_empty() { found.header.position } else { 0 };
                    if found.changes.iter().any(|change| !change.is_of_marks()) {
                        changed.fetch_max(found.header.position, Ordering::SeqCst);
                    }
                    Ok(())
                },
            )?;
            let last = log.last();
            Ok(Lane {
                state: RwLock::new(LaneState {
                    log,
                    index,
                    hot: None,
                    layers,
                    record,
                    frozen: None,
                }),
                appended: AtomicU64::new(last),
                durable: AtomicU64::new(last),
                queue: SyncQueue::default(),
                closed_at,
            })
        };
        let data = open_lane(LaneKind::Data, &opening.retained[0])?;
        // The data lane's marks keep the other lane readable too.
        let mut retained = opening.retained[1].clone();
        read(&data.state).index.marks().all().iter().for_each(|mark| retained.add(mark.position));
        let lanes = [data, open_lane(LaneKind::Wal, &retained)?];
        if read(&lanes[0].state).index.marks().newest().is_none() {
            // Whatever it shows was never marked.
            for lane in &lanes {
                changed.fetch_max(lane.appended.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        }
        let logical = Mutex::new(([Position::MAX; 2], [0; 2]));
        let Opening { id, ancestor, reopened, .. } = opening;
        let (latch, data_synced, in_use) =
            (OnceLock::new(), AtomicBool::new(true), AtomicBool::new(false));
        Ok(Arc::new(Self {
            id,
            ancestor,
            shared,
            lanes,
            latch,
            data_synced,
            changed,
            in_use,
            reopened,
            logical,
        }))
    }

    /// What a reader at these positions of the lanes sees, for reading only. The caller keeps them
    /// readable.
    pub fn view(self: &Arc<Self>, at: [Position; 2]) -> Arc<Self> {
        let lane = |kind: LaneKind| {
            let start = Start { sealed: 0, sequence: 0 };
            let log = Log::new(Arc::clone(&self.shared.lane_files), self.id, kind, start);
            let index = Index::new(at[kind as usize], Retained::default());
            let (layers, record) = (Vec::new(), LaneRecord::default());
            Lane {
                state: RwLock::new(LaneState {
                    log,
                    index,
                    hot: None,
                    layers,
                    record,
                    frozen: None,
                }),
                appended: AtomicU64::new(0),
                durable: AtomicU64::new(0),
                queue: SyncQueue::default(),
                closed_at: 0,
            }
        };
        let error =
            Error::new(Kind::Latched, "read_only", format!("a moment of timeline {}", self.id));
        Arc::new(Self {
            id: self.id,
            ancestor: Some(Ancestor { timeline: Arc::clone(self), at }),
            shared: self.shared.clone(),
            lanes: LaneKind::ALL.map(lane),
            latch: OnceLock::from(error),
            data_synced: AtomicBool::new(false),
            changed: AtomicU64::new(0),
            in_use: AtomicBool::new(false),
            reopened: false,
            logical: Mutex::new(([Position::MAX; 2], [0; 2])),
        })
    }
}
