//! Appending a record to a lane: what it reads under the lane's lock, and the changes it gathers.

use crate::error::{Error, Result};
use crate::locks::{self, write};
use crate::storage::disk::DiskFile;
use crate::storage::log::format::{self, Attributes, Change};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, inode_created, lane_of};
use crate::storage::timeline::Timeline;
use crate::storage::timeline::lane::LaneState;
use crate::storage::timeline::parts::{self, HotPage};
use crate::storage::timeline::read;
use crate::storage::timeline::sync::wait_for;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Unsynced bytes of a lane at which it is synced without being asked, so that a fork never waits
/// for much.
const MAX_UNSYNCED_BYTES: u64 = 16 << 20;

/// Unsynced bytes of a lane at which an append waits for a sync.
const WAIT_UNSYNCED_BYTES: u64 = 4 * MAX_UNSYNCED_BYTES;

/// A record in the making, under its lane's lock.
pub struct RecordBuilder<'s, 'p> {
    timeline: &'s Arc<Timeline>,
    state: &'s LaneState,
    kind: LaneKind,
    position: Position,
    gathered: Gathered<'p>,
}

/// What a record is to hold.
#[derive(Default)]
pub(super) struct Gathered<'p> {
    pub(super) changes: Vec<Change>,
    /// The pages that the changes name.
    pub(super) pages: Vec<Cow<'p, [u8]>>,
    /// The last page, if the next record may change a part of it.
    pub(in crate::storage) hot: Option<HotPage>,
}

impl<'s, 'p> RecordBuilder<'s, 'p> {
    pub(super) fn new(
        timeline: &'s Arc<Timeline>,
        state: &'s LaneState,
        kind: LaneKind,
        position: Position,
    ) -> Self {
        Self { timeline, state, kind, position, gathered: Gathered::default() }
    }

    pub(super) fn into_gathered(self) -> Gathered<'p> {
        self.gathered
    }

    /// The record's position, which numbers an inode made in it.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Attributes of an inode of this lane.
    pub fn attributes(&self, inode: u64) -> Option<Attributes> {
        assert_eq!(lane_of(inode), self.kind, "inode {inode:#x} is of the other lane");
        let mut chain = self.timeline.chain(self.kind, inode_created(inode));
        chain.find_map(|(timeline, at)| {
            if Arc::ptr_eq(timeline, self.timeline) {
                return self.state.index.attributes(inode, at).map(|a| a.cloned());
            }
            locks::read(&timeline.lane(self.kind).state)
                .index
                .attributes(inode, at)
                .map(|a| a.cloned())
        })?
    }

    /// Reads one block of an inode of this lane.
    pub fn read_block(&self, inode: u64, block: u32) -> Result<Vec<u8>> {
        if let Some(hot) =
            self.state.hot.as_ref().filter(|hot| (hot.inode, hot.block) == (inode, block))
        {
            return Ok(hot.bytes.clone());
        }
        let sources = self.timeline.resolve(self.state, inode, block, 1)?;
        let mut page = vec![0; PAGE_BYTES];
        read::fetch(inode, block, &sources, &mut page)?;
        Ok(page)
    }

    /// Adds a change other than pages.
    pub fn push(&mut self, change: Change) {
        if let Some(inode) = change.inode() {
            assert_eq!(lane_of(inode), self.kind, "{inode:#x} is of the other lane: {change:?}");
        }
        self.gathered.changes.push(change);
    }

    /// Adds a run of whole pages with their checksums.
    pub fn push_pages(&mut self, inode: u64, block: u32, crcs: Vec<u32>, bytes: Cow<'p, [u8]>) {
        assert_eq!(bytes.len(), crcs.len() * PAGE_BYTES, "one checksum for each page");
        let count = format::u32_of(crcs.len());
        assert!(block.checked_add(count).is_some(), "{count} blocks from {block} on");
        if self.kind == LaneKind::Data || bytes.is_empty() {
            return self.push_whole(inode, block, crcs, bytes);
        }
        let last = &bytes[bytes.len() - PAGE_BYTES..];
        let hot =
            HotPage { inode, block: block + format::u32_of(crcs.len() - 1), bytes: last.to_vec() };
        // One part in a record is all that a commit needs, and bounds its changes.
        let first = &bytes[..PAGE_BYTES];
        let whole = self.gathered.hot.is_some();
        let changed =
            || parts::changed(&self.state.index, self.state.hot.as_ref(), (inode, block), first);
        match if whole { None } else { changed() } {
            None => self.push_whole(inode, block, crcs, bytes),
            Some(range) => {
                let start = u16::try_from(range.start).unwrap_or(u16::MAX);
                self.push(Change::Part {
                    inode,
                    block,
                    start,
                    crc: crcs[0],
                    bytes: first[range].to_vec(),
                });
                if crcs.len() > 1 {
                    let rest = match bytes {
                        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[PAGE_BYTES..]),
                        Cow::Owned(bytes) => Cow::Owned(bytes[PAGE_BYTES..].to_vec()),
                    };
                    self.push_whole(inode, block + 1, crcs[1..].to_vec(), rest);
                }
            }
        }
        self.gathered.hot = Some(hot);
    }

    fn push_whole(&mut self, inode: u64, block: u32, crcs: Vec<u32>, bytes: Cow<'p, [u8]>) {
        self.push(Change::Pages { inode, block, crcs });
        self.gathered.pages.push(bytes);
    }

    /// Sets length and modification time, with all attributes if this lane does not hold them yet.
    pub fn push_size(&mut self, inode: u64, attributes: Attributes) {
        if self.state.index.has_attributes(inode) {
            self.push(Change::Size {
                inode,
                size: attributes.size,
                modified_ns: attributes.modified_ns,
            });
        } else {
            self.push(Change::Attributes { inode, attributes });
        }
    }
}

impl Timeline {
    /// Makes the changes that `build` puts together from what it reads, as one record of the lane.
    /// An error of `build` leaves everything as it was; an error of the disk latches the timeline.
    pub fn append<'p, T, E: From<Error>>(
        self: &Arc<Self>,
        kind: LaneKind,
        build: impl FnOnce(&mut RecordBuilder<'_, 'p>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lane = self.lane(kind);
        let mut state = write(&lane.state);
        // Under the lock, so that nothing is appended once `retire` has gone through.
        self.refuse_if_latched()?;
        let position = self.shared.positions.take();
        let mut record = RecordBuilder::new(self, &state, kind, position);
        let value = build(&mut record)?;
        let Gathered { changes, pages, hot } = record.into_gathered();
        if changes.is_empty() {
            return Ok(value);
        }
        let slices: Vec<&[u8]> = pages.iter().map(|run| &**run).collect();
        let durable = lane.durable.load(Ordering::SeqCst);
        let appended = state.log.append(position, durable, &changes, &slices);
        let (sequence, offset) = appended.map_err(|error| self.latch(error))?;
        let last = lane.appended.load(Ordering::SeqCst);
        assert!(last < position, "position {position} was appended after {last}");
        state.index.apply(position, &changes, sequence, offset);
        if hot.is_some() || changes.iter().any(Change::is_of_blocks) {
            state.hot = hot;
        }
        lane.appended.store(position, Ordering::SeqCst);
        self.changed.fetch_max(position, Ordering::SeqCst);
        let unsynced = state.log.unsynced_bytes();
        let file = (!slices.is_empty()).then(|| Arc::clone(state.log.file(sequence)));
        drop(state);
        self.keep_up(kind, file, unsynced)?;
        Ok(value)
    }

    /// Keeps a lane that was appended to from having too much in memory, or unsynced.
    fn keep_up(
        self: &Arc<Self>,
        kind: LaneKind,
        file: Option<Arc<dyn DiskFile>>,
        unsynced: u64,
    ) -> Result<()> {
        if let Some(file) = file {
            let failed = |e| self.latch(Error::io("append to a lane file", &e));
            file.catch_up().map_err(failed)?;
        }
        if unsynced > WAIT_UNSYNCED_BYTES {
            return wait_for(|done| self.sync(kind, done));
        }
        if unsynced > MAX_UNSYNCED_BYTES && self.joins_queue(kind, Box::new(|_| ())) {
            self.shared.syncer.serve_later(self.server(kind));
        }
        Ok(())
    }
}
