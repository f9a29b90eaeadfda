//! Sealing: the log of a lane becomes a layer, and its files are free again.
//!
//! The log is cut: what was appended so far is frozen, and goes on being read from its files while
//! it is written into a layer in the order of keys. Then one catalog transaction says that the
//! layer counts and the files do not, and only then do readers turn to the layer. If anything fails
//! in between the frozen part stays as it is, and is tried again.

use crate::error::Result;
use crate::locks::write;
use crate::storage::catalog::{LaneRecord, LayerRecord};
use crate::storage::index::Block;
use crate::storage::layer::Layer;
use crate::storage::layer::dictionary;
use crate::storage::layer::format::LayerId;
use crate::storage::layer::writer::LayerWriter;
use crate::storage::log::Start;
use crate::storage::log::format::Change;
use crate::storage::log::record::LaneFileId;
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, TimelineId};
use crate::storage::store::Store;
use crate::storage::timeline::Timeline;
use crate::storage::timeline::lane::Frozen;
use crate::storage::timeline::{parts, read};
use crate::storage::upkeep::pace::Pace;
use crate::storage::upkeep::publish::healthy;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the disk is asked for at once.
const PIECE_BYTES: usize = 128 << 10;

/// A layer that is written and does not count yet.
pub(super) struct Sealed {
    pub(super) layer: Arc<Layer>,
    start: Start,
    logical_bytes: u64,
    /// Times of the marks, in order.
    marks: Vec<i64>,
}

impl Sealed {
    /// What the catalog is to say of a lane of which it says `now`.
    pub(in crate::storage) fn record(&self, now: &LaneRecord) -> LaneRecord {
        let (sealed, sequence) = (self.start.sealed, self.start.sequence);
        assert_eq!(self.layer.from(), now.sealed, "{} begins elsewhere", self.layer.id().path());
        assert_eq!(self.layer.to(), sealed, "{} ends elsewhere", self.layer.id().path());
        assert!(sequence >= now.sequence, "file {sequence} after {}", now.sequence);
        let newest = LayerRecord { number: self.layer.id().number, bytes: self.layer.bytes() };
        LaneRecord {
            sealed,
            sequence,
            layers: std::iter::once(newest).chain(now.layers.iter().cloned()).collect(),
            logical_bytes: self.logical_bytes,
            newest_mark_ns: self.marks.last().copied().unwrap_or(0),
            marks: self.marks.len() as u64,
        }
    }
}

impl Timeline {
    /// Cuts the log of a lane; `None` if nothing was appended since the last time.
    pub(super) fn freeze(&self, lane: LaneKind) -> Option<Arc<Frozen>> {
        let mut state = write(&self.lane(lane).state);
        if let Some(frozen) = &state.frozen {
            return Some(Arc::clone(frozen));
        }
        if state.log.is_empty() || state.log.last() == state.record.sealed {
            return None;
        }
        let (files, start) = state.log.freeze();
        let from = state.record.sealed;
        assert!(start.sealed > from, "seals from {from} to {}", start.sealed);
        // A part of a page is laid over what the same log holds.
        state.hot = None;
        state.index.sweep();
        let frozen = Arc::new(Frozen {
            lane,
            from: state.record.sealed,
            start,
            metadata: state.index.metadata(),
            blocks: state.index.freeze(),
            retained: state.index.retained().clone(),
            files,
        });
        state.frozen = Some(Arc::clone(&frozen));
        Some(frozen)
    }

    /// Writes what was frozen as a layer.
    pub(super) fn write_layer(
        self: &Arc<Self>,
        frozen: &Frozen,
        pace: &mut Pace<'_>,
    ) -> Result<Sealed> {
        let lane_files = self.lane_files();
        let number = self.take_position();
        let id = LayerId { timeline: self.id(), lane: frozen.lane, number };
        let range = (frozen.from, frozen.start.sealed);
        let versions = frozen.versions();
        frozen.bring_near(&versions, pace)?;
        let samples = dictionary::sample(versions.len() as u64, |nth, page| {
            let ((inode, block, _), value) = versions[usize::try_from(nth).unwrap_or(0)];
            *value != Block::Zeros && frozen.read(self.id(), value, (inode, block), page).is_ok()
        });
        let mut writer =
            LayerWriter::begin(lane_files.disk(), lane_files.store(), id, range, &samples)?;
        if let Err(error) = self.write_blocks(frozen, &versions, &mut writer, pace) {
            writer.discard();
            return Err(error);
        }
        writer.finish(&frozen.metadata)?;
        let layer = Arc::new(Layer::open(lane_files.disk(), lane_files.store(), id)?);
        let time = |(_, change): &(Position, Change)| match change {
            Change::Mark { time_ns, .. } => Some(*time_ns),
            _ => None,
        };
        let marks: Vec<i64> = frozen.metadata.iter().filter_map(time).collect();
        let logical_bytes = self.sum_sizes(frozen.lane);
        Ok(Sealed { layer, start: frozen.start, logical_bytes, marks })
    }

    fn write_blocks(
        &self,
        frozen: &Frozen,
        versions: &[Version<'_>],
        writer: &mut LayerWriter<'_>,
        pace: &mut Pace<'_>,
    ) -> Result<()> {
        let mut page = vec![0; PAGE_BYTES];
        for (key, value) in versions {
            if **value == Block::Zeros {
                writer.add(*key, None)?;
                continue;
            }
            frozen.read(self.id(), value, (key.0, key.1), &mut page)?;
            writer.add(*key, Some(&page))?;
            pace(PAGE_BYTES as u64)?;
        }
        Ok(())
    }

    /// Lets readers turn to a layer that the catalog names now, and retires the files it came
    /// from.
    pub(super) fn turn_to(&self, sealed: Sealed, record: LaneRecord) {
        let Sealed { layer, start, .. } = sealed;
        let gone = {
            let mut state = write(&self.lane(layer.id().lane).state);
            state.layers.insert(0, layer);
            state.record = record;
            state.frozen = None;
            state.index.thaw();
            state.assert_sound();
            state.log.forget_before(start)
        };
        self.lane_files().retire_later(gone, !self.reopened);
    }
}

/// A version of a block, by inode, block and position.
type Version<'a> = ((u64, u32, Position), &'a Block);

impl Frozen {
    /// The versions that somebody sees, in order.
    fn versions(&self) -> Vec<Version<'_>> {
        let mut inodes: Vec<_> = self.blocks.iter().collect();
        inodes.sort_unstable_by_key(|(inode, _)| **inode);
        let mut all = Vec::new();
        for (inode, blocks) in inodes {
            for (block, versions) in blocks {
                let seen = versions.seen(&self.retained);
                all.extend(seen.map(|(position, value)| ((*inode, *block, position), value)));
            }
        }
        all
    }

    /// Where the last of the versions ends in each file.
    fn ends(versions: &[Version<'_>]) -> BTreeMap<u32, u64> {
        let mut ends = BTreeMap::<u32, u64>::new();
        let mut note = |sequence, offset: u32, length: usize| {
            let end = ends.entry(sequence).or_default();
            *end = (*end).max(u64::from(offset) + length as u64);
        };
        for (_, value) in versions {
            match value {
                Block::Zeros => (),
                Block::Page(at) => note(at.sequence, at.offset, PAGE_BYTES),
                Block::Parts(at) => {
                    at.base.iter().for_each(|base| note(base.sequence, base.offset, PAGE_BYTES));
                    at.parts
                        .iter()
                        .for_each(|part| note(part.sequence, part.offset, part.length.into()));
                }
            }
        }
        ends
    }

    /// Has the system read the files as they lie, a piece at a time, so that commits do not wait
    /// behind it. In the order of keys each page would be a read of the disk of its own. Of an
    /// error whoever needs the page hears.
    fn bring_near(&self, versions: &[Version<'_>], pace: &mut Pace<'_>) -> Result<()> {
        for (sequence, end) in Self::ends(versions) {
            let file = &self.files[&sequence];
            for start in (0..end).step_by(PIECE_BYTES) {
                let count = (end - start).min(PIECE_BYTES as u64);
                file.will_read(start, count);
                // Waits for it.
                let _ = file.read_exact_at(&mut [0], start + count - 1);
                pace(count)?;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        timeline: TimelineId,
        value: &Block,
        of: (u64, u32),
        page: &mut [u8],
    ) -> Result<()> {
        let id = |sequence| LaneFileId { timeline, lane: self.lane, sequence };
        match value {
            Block::Zeros => page.fill(0),
            Block::Page(at) => {
                read::read_pages(&*self.files[&at.sequence], id(at.sequence), at, page)?;
                read::check_page(page, id(at.sequence), at, of)?;
            }
            Block::Parts(at) => {
                let files: Vec<_> =
                    parts::files(at).map(|sequence| Arc::clone(&self.files[&sequence])).collect();
                parts::read(&files, id(at.parts[at.parts.len() - 1].sequence), at, of, page)?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Seals what a lane's log holds; true if there was anything. `pace` is called with the bytes
    /// worked on.
    pub fn seal(&self, id: TimelineId, lane: LaneKind, pace: &mut Pace<'_>) -> Result<bool> {
        self.catalog().require()?;
        let slot = self.slot(id)?;
        let Some(timeline) = healthy(&slot) else { return Ok(false) };
        let Some(frozen) = timeline.freeze(lane) else { return Ok(false) };
        let sealed = match timeline.write_layer(&frozen, pace) {
            // What it read was given up meanwhile, and who failed has been told why.
            Err(_) if timeline.latched().is_some() => return Ok(false),
            sealed => sealed?,
        };
        drop(frozen);
        let layer = sealed.layer.id();
        self.publish_lane(&slot, &timeline, layer, sealed, Sealed::record, |sealed, record| {
            timeline.turn_to(sealed, record);
        })
    }
}
