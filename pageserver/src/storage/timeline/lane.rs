//! A lane of a timeline: its log, its index and its layers.

use crate::error::{Error, Result};
use crate::storage::catalog::{LaneRecord, LayerRecord};
use crate::storage::disk::DiskFile;
use crate::storage::index::versions::Retained;
use crate::storage::index::{Blocks, Index};
use crate::storage::layer::Layer;
use crate::storage::layer::format::LayerId;
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::Change;
use crate::storage::log::{Log, Start};
use crate::storage::page::{LaneKind, Position, TimelineId};
use crate::storage::timeline::parts::HotPage;
use crate::storage::timeline::syncer::SyncQueue;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};

/// What a lane holds.
///
/// Invariants: the layers are those of `record`, newest first, and each begins where the next one
/// ends; the newest ends at `record.sealed`, where the log begins.
pub(in crate::storage) struct LaneState {
    pub(in crate::storage) log: Log,
    pub(in crate::storage) index: Index,
    /// The page written last, if it is of the write-ahead lane.
    pub(in crate::storage) hot: Option<HotPage>,
    /// What is sealed, newest first. All of it is older than the log.
    pub(in crate::storage) layers: Vec<Arc<Layer>>,
    /// What the catalog says of it.
    pub(in crate::storage) record: LaneRecord,
    /// The part of the log that is being sealed, or whose sealing failed and is tried again.
    pub(in crate::storage) frozen: Option<Arc<Frozen>>,
}

pub(in crate::storage) struct Lane {
    pub(in crate::storage) state: RwLock<LaneState>,
    pub(super) appended: AtomicU64,
    pub(super) durable: AtomicU64,
    pub(super) queue: SyncQueue,
    /// Position of the newest record when the lane was opened, if that says that all before it is
    /// synced.
    pub(super) closed_at: Position,
}

impl LaneState {
    /// To be called when what is sealed has changed.
    pub(in crate::storage) fn assert_sound(&self) {
        let sealed = self.record.sealed;
        let known: Vec<u64> = self.record.layers.iter().map(|layer| layer.number).collect();
        let numbers: Vec<u64> = self.layers.iter().map(|layer| layer.id().number).collect();
        assert_eq!(numbers, known, "layers that are open and layers of the record");
        if let Some(newest) = self.layers.first() {
            assert_eq!(newest.to(), sealed, "{} and what is sealed", newest.id().path());
        }
        for pair in self.layers.windows(2) {
            let name = pair[1].id().path();
            assert_eq!(pair[0].from(), pair[1].to(), "a gap behind {name}");
        }
        assert!(self.log.last() >= sealed, "{} is older than {sealed}", self.log.last());
    }
}

impl Lane {
    /// A lane of which nothing is being sealed. All of the log is durable.
    pub(super) fn new(
        log: Log,
        index: Index,
        layers: Vec<Arc<Layer>>,
        record: LaneRecord,
        closed_at: Position,
    ) -> Self {
        let last = log.last();
        assert!(closed_at == 0 || closed_at == last, "closed at {closed_at}, ends at {last}");
        let state = LaneState { log, index, hot: None, layers, record, frozen: None };
        state.assert_sound();
        Self {
            state: RwLock::new(state),
            appended: AtomicU64::new(last),
            durable: AtomicU64::new(last),
            queue: SyncQueue::default(),
            closed_at,
        }
    }
}

/// The part of a lane's log that is being sealed.
pub(in crate::storage) struct Frozen {
    pub(in crate::storage) lane: LaneKind,
    /// It holds what was appended after this position.
    pub(in crate::storage) from: Position,
    /// Where the log goes on.
    pub(in crate::storage) start: Start,
    pub(in crate::storage) blocks: Arc<Blocks>,
    pub(in crate::storage) metadata: Vec<(Position, Change)>,
    pub(in crate::storage) retained: Retained,
    pub(in crate::storage) files: BTreeMap<u32, Arc<dyn DiskFile>>,
}

/// Opens the layers of a lane, newest first, which follow one another without a gap.
pub(in crate::storage) fn open_layers(
    lane_files: &LaneFiles,
    (timeline, lane): (TimelineId, LaneKind),
    record: &LaneRecord,
) -> Result<Vec<Arc<Layer>>> {
    let mut layers: Vec<Arc<Layer>> = Vec::new();
    for LayerRecord { number, .. } in &record.layers {
        let id = LayerId { timeline, lane, number: *number };
        let layer = Layer::open(lane_files.disk(), lane_files.store(), id)?;
        let expected = layers.last().map_or(record.sealed, |newer| newer.from());
        if layer.to() != expected {
            let (name, to) = (id.path(), layer.to());
            return Err(Error::corrupt(format!(
                "{name} ends at position {to}, the catalog expects {expected}"
            )));
        }
        layers.push(Arc::new(layer));
    }
    Ok(layers)
}
