//! Deep chains: a timeline that rests at the end of a long chain gets all that it shows in layers
//! of its own, and no ancestor.
//!
//! So no read passes through many timelines for long, and old ones can go when nobody else needs
//! them. It costs a copy of what the timeline shows. It is done only at some depth, for named
//! timelines that were written to, when no moment from before the fork can be gone back to any
//! more.

use crate::error::Result;
use crate::locks::{self, lock};
use crate::storage::catalog::{LaneRecord, LayerRecord, Update};
use crate::storage::index::{Index, Target};
use crate::storage::layer::format::{ENTRY_BYTES, LayerEntry, LayerId, LayerPage};
use crate::storage::layer::writer::LayerWriter;
use crate::storage::log::format::{Attributes, Change};
use crate::storage::page::{LaneKind, PAGE_BYTES, PerLane, Position, TimelineId, inode_created};
use crate::storage::slot::TimelineSlot;
use crate::storage::store::Store;
use crate::storage::timeline::read::{self, BlockSource};
use crate::storage::timeline::{Ancestor, Timeline};
use crate::storage::upkeep::merge::{Input, next_block};
use crate::storage::upkeep::pace::Pace;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Timelines that were written to and that a read may pass through.
const MAX_DEPTH: usize = 8;
/// How often it is tried to be alone with a timeline.
const MAX_TRIES: usize = 40;
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Blocks that are looked up at once.
const CHUNK: u32 = 64;
/// Number of the input that stands for what is inherited.
const INHERITED: usize = usize::MAX;

/// Versions of a block, oldest first, each with the number of its input.
type BlockVersions = Vec<(LayerEntry, usize)>;

impl Store {
    /// Lets the oldest timeline that is too deep stand on its own; true if there was one. `pace` is
    /// called with the bytes worked on.
    pub fn flatten_deep(&self, pace: &mut Pace<'_>) -> Result<bool> {
        let mut slots = self.slots();
        slots.sort_unstable_by_key(|(id, _)| *id);
        let Some((id, slot)) = slots.into_iter().find(|(id, slot)| self.is_too_deep(*id, slot))
        else {
            return Ok(false);
        };
        let timeline = self.timeline(id)?;
        let Some(ancestor) = &timeline.ancestor else { return Ok(false) };
        let before = (lock(&slot).lanes.clone(), timeline.last_positions());
        let shown = timeline.logical_bytes();
        self.require_room(
            shown.data.saturating_add(shown.wal).saturating_add(timeline.own_bytes()),
        )?;
        let mut lanes: PerLane<LaneRecord> = Default::default();
        let mut written = Vec::new();
        for lane in LaneKind::ALL {
            match timeline.write_all(ancestor, lane, pace) {
                Ok((layer, record)) => {
                    written.push(layer);
                    lanes[lane] = record;
                }
                Err(error) => {
                    written.iter().for_each(|layer| self.remove_layer(*layer));
                    return Err(error);
                }
            }
        }
        let published = self.publish_flattened(&slot, timeline, before, lanes);
        if !matches!(published, Ok(true)) && self.catalog().is_open() {
            written.iter().for_each(|layer| self.remove_layer(*layer));
        }
        published
    }

    /// Whether a timeline that nobody uses reads through too many others.
    fn is_too_deep(&self, id: TimelineId, slot: &Mutex<TimelineSlot>) -> bool {
        let rests = slot.try_lock().is_ok_and(|slot| {
            let written = slot.lanes.iter().any(|lane| !lane.layers.is_empty());
            slot.timeline.is_none() && !slot.has_log() && written
        });
        if !rests || !self.catalog().is_named(id) {
            return false;
        }
        let (mut depth, mut next) =
            (0, self.catalog().timeline(id).and_then(|record| record.ancestor));
        let recent = next.as_ref().is_some_and(|fork| self.is_recent(id, fork));
        while let Some(fork) = next.filter(|_| !recent && depth < MAX_DEPTH) {
            let record = self.catalog().timeline(TimelineId(fork.timeline)).unwrap_or_default();
            depth += usize::from(record.lanes.iter().any(|lane| !lane.layers.is_empty()));
            next = record.ancestor;
        }
        depth >= MAX_DEPTH
    }

    fn publish_flattened(
        &self,
        slot: &Mutex<TimelineSlot>,
        timeline: Arc<Timeline>,
        before: (PerLane<LaneRecord>, PerLane<Position>),
        lanes: PerLane<LaneRecord>,
    ) -> Result<bool> {
        let mut guard = lock(slot);
        // Its place and this function have it; nobody else gets it while the place is locked.
        // Background work lets go of it soon.
        for _ in 0..MAX_TRIES {
            if Arc::strong_count(&timeline) == 2 {
                break;
            }
            drop(guard);
            std::thread::sleep(TRY_AGAIN);
            guard = lock(slot);
        }
        let mut slot = guard;
        let same = slot.timeline.as_ref().is_some_and(|open| Arc::ptr_eq(open, &timeline))
            && (slot.lanes.clone(), timeline.last_positions()) == before;
        if !same
            || Arc::strong_count(&timeline) != 2
            || !timeline.is_sealed()
            || timeline.latched().is_some()
        {
            return Ok(false);
        }
        let id = timeline.id();
        let freed =
            self.publish(Update { flatten: vec![(id, lanes.clone())], ..Update::default() })?;
        let replaced = LaneKind::ALL.into_iter().flat_map(|lane| timeline.layers(lane));
        replaced.for_each(|layer| self.remove_layer(layer.id()));
        let ancestor = slot.become_root(lanes);
        drop((slot, timeline));
        if let Some(ancestor) = ancestor {
            self.release_fork(id, &ancestor);
        }
        self.free(&freed);
        tracing::info!(
            timeline = %id, freed = freed.len(),
            "a timeline at the end of a long chain stands on its own"
        );
        Ok(true)
    }
}

impl Timeline {
    /// Writes all that the timeline shows of a lane, now and at its retained points, as one layer.
    fn write_all(
        self: &Arc<Self>,
        ancestor: &Ancestor,
        lane: LaneKind,
        pace: &mut Pace<'_>,
    ) -> Result<(LayerId, LaneRecord)> {
        let base = ancestor.at[lane];
        let inherited = ancestor.timeline.view(ancestor.at);
        let record = locks::read(&self.lane(lane).state).record.clone();
        let lane_files = self.lane_files();
        let number = self.take_position();
        let id = LayerId { timeline: self.id(), lane, number };
        let sealed = record.sealed.max(base);
        let mut writer =
            LayerWriter::begin(lane_files.disk(), lane_files.store(), id, (0, sealed), &[])?;
        let files = inherited.files_of_lane(lane);
        if let Err(error) = self.write_all_blocks(&inherited, &files, base, &mut writer, pace) {
            writer.discard();
            return Err(error);
        }
        let bytes = writer.finish(&self.all_metadata(&inherited, &files, (lane, base, sealed)))?;
        let layers = vec![LayerRecord { number, bytes }];
        let logical_bytes = self.sum_sizes(lane);
        Ok((id, LaneRecord { sealed, layers, logical_bytes, ..record }))
    }

    fn write_all_blocks(
        self: &Arc<Self>,
        inherited: &Arc<Timeline>,
        files: &BTreeMap<u64, Attributes>,
        base: Position,
        writer: &mut LayerWriter<'_>,
        pace: &mut Pace<'_>,
    ) -> Result<()> {
        let lane = writer.lane();
        let layers = self.layers(lane);
        let mut inputs: Vec<_> =
            layers.iter().rev().map(|layer| Input::of(layer, layer.scan())).collect();
        let mut own: BTreeMap<u64, BTreeMap<u32, BlockVersions>> = BTreeMap::new();
        while let Some(versions) = next_block(&mut inputs)? {
            pace((versions.len() * ENTRY_BYTES) as u64)?;
            let (inode, block) = (versions[0].0.inode, versions[0].0.block);
            own.entry(inode).or_default().insert(block, versions);
        }
        for inode in files.keys() {
            own.entry(*inode).or_default();
        }
        let mut page = vec![0; PAGE_BYTES];
        for (inode, mut blocks) in own {
            let fate = self.fate(lane, inode, true);
            let size = files.get(&inode).map_or(0, |attributes| attributes.size);
            let sources = inherited.sources(lane, inode, size)?;
            for block in sources.keys() {
                let page = Some(LayerPage { group: 0, slot: 0, crc: 0 });
                let entry = LayerEntry { inode, block: *block, position: base, page };
                blocks.entry(*block).or_default().insert(0, (entry, INHERITED));
            }
            for (block, versions) in blocks {
                for (entry, input) in fate.kept(&versions, &[]) {
                    let key = (inode, block, entry.position);
                    match (entry.page, sources.get(&block)) {
                        (None, _) => {
                            writer.add(key, None)?;
                            continue;
                        }
                        (Some(_), Some(source)) if input == INHERITED => {
                            read::fetch(inode, block, std::slice::from_ref(source), &mut page)?;
                        }
                        (Some(_), _) => inputs[input].read(&entry, &mut page)?,
                    }
                    writer.add(key, Some(&page))?;
                    pace(PAGE_BYTES as u64)?;
                }
            }
        }
        Ok(())
    }

    /// Where the blocks of a file of so many bytes are that are not zeros.
    fn sources(
        self: &Arc<Self>,
        lane: LaneKind,
        inode: u64,
        size: u64,
    ) -> Result<BTreeMap<u32, Option<BlockSource>>> {
        let end = u32::try_from(size.div_ceil(PAGE_BYTES as u64)).unwrap_or(u32::MAX);
        let mut sources = BTreeMap::new();
        for first in (0..end).step_by(CHUNK as usize) {
            let state = locks::read(&self.lane(lane).state);
            let found = self.resolve(&state, inode, first, CHUNK.min(end - first) as usize)?;
            let there = |source: &Option<BlockSource>| {
                source.as_ref().is_some_and(|it| !matches!(it, BlockSource::Zeros))
            };
            sources.extend((first..).zip(found).filter(|(_, source)| there(source)));
        }
        Ok(sources)
    }

    /// All that the lane knows of files and names, with what it inherits.
    fn all_metadata(
        &self,
        inherited: &Arc<Timeline>,
        files: &BTreeMap<u64, Attributes>,
        (lane, base, sealed): (LaneKind, Position, Position),
    ) -> Vec<(Position, Change)> {
        let mut changes = Vec::new();
        for (inode, attributes) in files {
            let attributes = attributes.clone();
            let created = inode_created(*inode).min(base);
            changes.push((created, Change::Attributes { inode: *inode, attributes }));
            for (position, name, Target { inode: to, kind }) in inherited.list(*inode) {
                changes.push((position, Change::Name { directory: *inode, name, inode: to, kind }));
            }
        }
        let state = locks::read(&self.lane(lane).state);
        changes.extend(state.index.metadata());
        // What was appended meanwhile is not in the layer, which nobody will publish then.
        changes.retain(|(position, _)| *position <= sealed);
        changes.sort_by_key(|(position, _)| *position);
        let mut index = Index::new(0, state.index.retained().clone());
        changes.into_iter().for_each(|(position, change)| index.apply(position, &[change], 0, 0));
        index.sweep();
        index.metadata()
    }
}
