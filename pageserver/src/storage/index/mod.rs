//! The index of a lane: all it knows of files and names, and where the blocks in its log are.
//!
//! Of each key it holds the newest version and the older ones that a retained point still sees.
//! What sealed layers hold of blocks, and what an ancestor holds, is the timeline's business. The
//! index is a pure function of the records applied and the retained points, so replaying a log
//! gives the same index.

pub mod marks;
pub(in crate::storage) mod versions;

use crate::storage::index::marks::{Mark, Marks};
use crate::storage::index::versions::{Retained, Versions};
use crate::storage::log::format::{
    Attributes, Change, FileKind, PART_HEAD_BYTES, TO_END, encoded_bytes,
};
use crate::storage::log::record::{RECORD_ALIGNMENT, RECORD_HEADER_BYTES};
use crate::storage::page::{HEAD, PAGE_BYTES, Position, inode_created};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Where a page's bytes are in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAt {
    /// Which file of the lane.
    pub sequence: u32,
    /// Where in the file.
    pub offset: u32,
    /// Checksum of the page.
    pub crc: u32,
}

/// Where a part of a page is in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartAt {
    /// Which file of the lane.
    pub sequence: u32,
    /// Where in the file.
    pub offset: u32,
    /// Where in the page.
    pub start: u16,
    /// How many bytes.
    pub length: u16,
}

/// A page that was written in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// What the first part changed; zeros if there is none.
    pub base: Option<PageAt>,
    /// One over the other, oldest first.
    pub parts: Vec<PartAt>,
    /// Checksum of the page with all of them.
    pub crc: u32,
}

/// What a lane knows of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Its bytes are there.
    Page(PageAt),
    /// Its bytes are in several places.
    Parts(Box<Parts>),
    /// It reads as zeros, whatever an ancestor has.
    Zeros,
}

/// What a name in a directory leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The inode.
    pub inode: u64,
    /// What it is.
    pub kind: FileKind,
}

#[derive(Default)]
struct Inode {
    attributes: Option<Versions<Option<Attributes>>>,
    /// Truncations: from this block on, what is older than the position reads as zeros. Oldest
    /// first.
    cuts: Vec<(Position, u32)>,
}

type DirectoryNames = BTreeMap<Vec<u8>, Versions<Option<Target>>>;

/// Versions of blocks by inode and block.
pub(in crate::storage) type Blocks = HashMap<u64, BTreeMap<u32, Versions<Block>>>;

/// All a lane's log says about its keys.
#[derive(Default)]
pub struct Index {
    inodes: HashMap<u64, Inode>,
    directories: HashMap<u64, DirectoryNames>,
    blocks: Blocks,
    /// Blocks of the part of the log that is being sealed: nothing is added here.
    frozen: Arc<Blocks>,
    retained: Retained,
    marks: Marks,
    /// What was made after this position, no ancestor has.
    base: Position,
}

impl Index {
    /// An empty index that keeps what `retained` sees, of a timeline that inherits up to `base` (0
    /// for a root).
    pub fn new(base: Position, retained: Retained) -> Self {
        Self { retained, base, ..Self::default() }
    }

    /// Keeps from now on what a reader at `position` sees.
    pub fn retain(&mut self, position: Position) {
        self.retained.add(position);
    }

    /// Nobody reads at `position` any more.
    pub fn release(&mut self, position: Position) {
        self.retained.remove(position);
    }

    /// Takes in the changes of one record that begins at `offset` of file `sequence`.
    pub fn apply(&mut self, position: Position, changes: &[Change], sequence: u32, offset: usize) {
        let mut at = offset + RECORD_HEADER_BYTES;
        let changes_end = at + changes.iter().map(encoded_bytes).sum::<usize>();
        let mut page_offset = changes_end.next_multiple_of(RECORD_ALIGNMENT);
        for change in changes {
            match change {
                Change::Pages { inode, block, crcs } => {
                    for (crc, block) in crcs.iter().zip(*block..) {
                        let at = PageAt { sequence, offset: offset_u32(page_offset), crc: *crc };
                        self.put_block(position, *inode, block, Block::Page(at));
                        page_offset += PAGE_BYTES;
                    }
                }
                Change::Part { inode, block, start, crc, bytes } => {
                    let (offset, length) = (offset_u32(at + PART_HEAD_BYTES), bytes.len());
                    let length = u16::try_from(length)
                        .unwrap_or_else(|_| panic!("a part of {length} bytes"));
                    let part = PartAt { sequence, offset, start: *start, length };
                    self.put_part(position, (*inode, *block), part, *crc);
                }
                Change::Zeros { inode, block, count: TO_END } => self.cut(position, *inode, *block),
                Change::Zeros { inode, block, count } => {
                    for block in *block..block.saturating_add(*count) {
                        self.put_block(position, *inode, block, Block::Zeros);
                    }
                }
                Change::Attributes { inode, attributes } => {
                    self.put_attributes(position, *inode, Some(attributes.clone()));
                }
                Change::Size { inode, size, modified_ns } => {
                    self.put_size(position, *inode, *size, *modified_ns)
                }
                Change::Gone { inode } => self.gone(position, *inode),
                Change::Name { directory, name, inode, kind } => {
                    self.put_name(
                        position,
                        *directory,
                        name,
                        Some(Target { inode: *inode, kind: *kind }),
                    );
                }
                Change::NoName { directory, name } => {
                    self.put_name(position, *directory, name, None)
                }
                Change::Mark { time_ns, kept } => {
                    self.marks.add(Mark { position, time_ns: *time_ns, kept: *kept });
                    self.retain(position);
                }
                Change::NoMark { mark } => {
                    if self.marks.remove(*mark) {
                        self.release(*mark);
                    }
                }
            }
            at += encoded_bytes(change);
        }
    }

    fn put_part(&mut self, position: Position, (inode, block): (u64, u32), part: PartAt, crc: u32) {
        let mut parts = match self.newest_block(inode, block) {
            Some(Block::Page(base)) => {
                Parts { base: Some(base), parts: Vec::with_capacity(1), crc }
            }
            Some(Block::Parts(parts)) => Parts { crc, ..*parts },
            Some(Block::Zeros) | None => Parts { base: None, parts: Vec::with_capacity(1), crc },
        };
        parts.parts.push(part);
        self.put_block(position, inode, block, Block::Parts(Box::new(parts)));
    }

    /// What the open log says of a block at the head.
    pub fn newest_block(&self, inode: u64, block: u32) -> Option<Block> {
        let (position, value) = self.blocks.get(&inode)?.get(&block)?.newest();
        let cut = self.cut_at(inode, block, HEAD).is_some_and(|cut| position < cut);
        Some(if cut { Block::Zeros } else { value.clone() })
    }

    fn put_block(&mut self, position: Position, inode: u64, block: u32, value: Block) {
        let blocks = self.blocks.entry(inode).or_default();
        match blocks.get_mut(&block) {
            Some(versions) => versions.put(position, value, &self.retained),
            None => {
                blocks.insert(block, Versions::One(position, value));
            }
        }
    }

    fn put_attributes(&mut self, position: Position, inode: u64, value: Option<Attributes>) {
        match &mut self.inodes.entry(inode).or_default().attributes {
            Some(versions) => versions.put(position, value, &self.retained),
            none => *none = Some(Versions::One(position, value)),
        }
    }

    fn put_size(&mut self, position: Position, inode: u64, size: u64, modified_ns: i64) {
        // The writer sends all attributes before the first bare size, so a miss is damage that the
        // check reports.
        if let Some(Some(known)) = self.attributes(inode, Position::MAX) {
            let attributes = Attributes { size, modified_ns, ..known.clone() };
            self.put_attributes(position, inode, Some(attributes));
        }
    }

    /// Whether an inode's end leaves nothing to remember: no ancestor and no retained point knows
    /// it.
    fn forgettable(&self, inode: u64, position: Position) -> bool {
        let created = inode_created(inode);
        created > self.base && !self.retained.sees(created, position)
    }

    fn put_name(&mut self, position: Position, directory: u64, name: &[u8], value: Option<Target>) {
        let own_directory = inode_created(directory) > self.base;
        let names = self.directories.entry(directory).or_default();
        if value.is_none() && own_directory {
            let unseen = |old: &Versions<_>| match old {
                Versions::One(at, _) => !self.retained.sees(*at, position),
                _ => false,
            };
            if names.get(name).is_none_or(unseen) {
                names.remove(name);
                return;
            }
        }
        match names.get_mut(name) {
            Some(versions) => versions.put(position, value, &self.retained),
            None => {
                names.insert(name.to_vec(), Versions::One(position, value));
            }
        }
    }

    fn cut(&mut self, position: Position, number: u64, from: u32) {
        let inode = self.inodes.entry(number).or_default();
        let newest = inode.cuts.last().map_or(0, |(at, _)| *at);
        assert!(newest <= position, "a cut at {position} after {newest}");
        let retained = &self.retained;
        let unseen = |at: Position| !retained.sees(at, position);
        if let Some(blocks) = self.blocks.get_mut(&number) {
            blocks.retain(|block, versions| {
                *block < from
                    || matches!(versions, Versions::Many(_))
                    || !unseen(versions.newest().0)
            });
        }
        while inode.cuts.last().is_some_and(|(at, older)| *older >= from && unseen(*at)) {
            inode.cuts.pop();
        }
        inode.cuts.push((position, from));
    }

    fn gone(&mut self, position: Position, inode: u64) {
        if self.forgettable(inode, position) {
            self.inodes.remove(&inode);
            self.blocks.remove(&inode);
            self.directories.remove(&inode);
            return;
        }
        self.cut(position, inode, 0);
        self.put_attributes(position, inode, None);
    }

    /// Attributes as of `position`: `None` if this lane does not say, `Some(None)` if the inode is
    /// gone.
    pub fn attributes(&self, inode: u64, position: Position) -> Option<Option<&Attributes>> {
        let (_, value) = self.inodes.get(&inode)?.attributes.as_ref()?.at(position)?;
        Some(value.as_ref())
    }

    /// Whether this lane itself holds attributes of the inode.
    pub fn has_attributes(&self, inode: u64) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| inode.attributes.is_some())
    }

    /// Calls `found` with each version that a reader at `position` sees of the `blocks` in the log,
    /// cut off or not.
    pub fn blocks(
        &self,
        inode: u64,
        blocks: std::ops::Range<u32>,
        position: Position,
        mut found: impl FnMut(u32, Position, &Block),
    ) {
        // What is in the log is newer than what is being sealed.
        for part in [&self.blocks, &*self.frozen] {
            for (block, versions) in
                part.get(&inode).into_iter().flat_map(|part| part.range(blocks.clone()))
            {
                if let Some((at, value)) = versions.at(position) {
                    found(*block, at, value);
                }
            }
        }
    }

    /// Whether the file was ever cut.
    pub fn has_cuts(&self, inode: u64) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| !inode.cuts.is_empty())
    }

    /// Truncations of a file, oldest first: when, and from which block on.
    pub(in crate::storage) fn cuts(&self, inode: u64) -> &[(Position, u32)] {
        self.inodes.get(&inode).map_or(&[], |inode| &inode.cuts)
    }

    /// Whether an ancestor may know the inode.
    pub(in crate::storage) fn inherits(&self, inode: u64) -> bool {
        inode_created(inode) <= self.base
    }

    /// When the block was last cut off, as a reader at `position` sees it: older versions read as
    /// zeros.
    pub fn cut_at(&self, inode: u64, block: u32, position: Position) -> Option<Position> {
        let cuts = &self.inodes.get(&inode)?.cuts;
        cuts.iter().rev().find(|(at, from)| *at <= position && *from <= block).map(|(at, _)| *at)
    }

    /// Forgets what no reader can see any more, now that points may have gone: removed files and
    /// names, and cuts behind which another came.
    pub(in crate::storage) fn sweep(&mut self) {
        let (retained, base) = (&self.retained, self.base);
        let mut forgotten = Vec::new();
        self.inodes.retain(|number, inode| {
            inode.attributes.iter_mut().for_each(|versions| versions.trim(retained));
            let ends: Vec<(Position, u32)> = inode.cuts.clone();
            let hidden = |(at, from): &(Position, u32)| {
                ends.iter().any(|(later, lower)| {
                    later > at && lower <= from && !retained.sees(*at, *later)
                })
            };
            inode.cuts.retain(|cut| !hidden(cut));
            // No older version is left that anybody sees.
            let gone = matches!(&inode.attributes, Some(Versions::One(_, None)))
                && inode_created(*number) > base;
            if gone {
                forgotten.push(*number);
            }
            !gone
        });
        for inode in forgotten {
            self.blocks.remove(&inode);
            self.directories.remove(&inode);
        }
        for (directory, names) in &mut self.directories {
            let own = inode_created(*directory) > base;
            names.retain(|_, versions| {
                versions.trim(retained);
                !(own && matches!(versions, Versions::One(_, None)))
            });
        }
    }

    /// Sets the blocks of the log aside, to be sealed, and begins anew with none.
    pub(in crate::storage) fn freeze(&mut self) -> Arc<Blocks> {
        assert!(self.frozen.is_empty(), "{} files are being sealed already", self.frozen.len());
        self.frozen = Arc::new(std::mem::take(&mut self.blocks));
        Arc::clone(&self.frozen)
    }

    /// Whether the block is in what was set aside, and not in the log since.
    pub(in crate::storage) fn is_frozen(&self, inode: u64, block: u32) -> bool {
        let holds =
            |blocks: &Blocks| blocks.get(&inode).is_some_and(|blocks| blocks.contains_key(&block));
        holds(&self.frozen) && !holds(&self.blocks)
    }

    /// What was set aside is in a layer now.
    pub(in crate::storage) fn thaw(&mut self) {
        self.frozen = Arc::default();
    }

    /// The moments that can be gone back to.
    pub(in crate::storage) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The points at which somebody reads.
    pub(in crate::storage) fn retained(&self) -> &Retained {
        &self.retained
    }

    /// Whether all the lane ever had of an inode is gone for everybody.
    pub(in crate::storage) fn forgot(&self, inode: u64) -> bool {
        !self.inodes.contains_key(&inode) && !self.inherits(inode)
    }

    /// All that is known of files and names, as changes that make an empty index know the same.
    pub(in crate::storage) fn metadata(&self) -> Vec<(Position, Change)> {
        let mut changes = Vec::new();
        for (inode, known) in &self.inodes {
            let inode = *inode;
            let cut = |(at, block): &(Position, u32)| {
                (*at, Change::Zeros { inode, block: *block, count: TO_END })
            };
            changes.extend(known.cuts.iter().map(cut));
            for (at, attributes) in known.attributes.iter().flat_map(Versions::all) {
                changes.push((
                    at,
                    match attributes.clone() {
                        Some(attributes) => Change::Attributes { inode, attributes },
                        None => Change::Gone { inode },
                    },
                ));
            }
        }
        for (directory, names) in &self.directories {
            let directory = *directory;
            for (name, (at, target)) in
                names.iter().flat_map(|(name, versions)| versions.all().map(move |v| (name, v)))
            {
                let name = name.clone();
                changes.push((
                    at,
                    match *target {
                        Some(Target { inode, kind }) => {
                            Change::Name { directory, name, inode, kind }
                        }
                        None => Change::NoName { directory, name },
                    },
                ));
            }
        }
        let mark =
            |mark: &Mark| (mark.position, Change::Mark { time_ns: mark.time_ns, kept: mark.kept });
        changes.extend(self.marks.all().iter().map(mark));
        changes.sort_by_key(|(at, _)| *at);
        changes
    }

    /// What `name` leads to as of `position`: `None` if this lane does not say, `Some(None)` if
    /// nowhere.
    pub fn name(
        &self,
        directory: u64,
        name: &[u8],
        position: Position,
    ) -> Option<(Position, Option<Target>)> {
        let (at, target) = self.directories.get(&directory)?.get(name)?.at(position)?;
        Some((at, *target))
    }

    /// Calls `found` with each name that this lane says something about as of `position`.
    pub fn names<'a>(
        &'a self,
        directory: u64,
        position: Position,
        mut found: impl FnMut(&'a [u8], Position, Option<Target>),
    ) {
        for (name, versions) in self.directories.get(&directory).into_iter().flatten() {
            if let Some((at, target)) = versions.at(position) {
                found(name, at, *target);
            }
        }
    }

    /// All inodes that this lane has said something about.
    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        self.inodes.keys().copied()
    }
}

fn offset_u32(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or_else(|_| panic!("offset {offset} beyond a lane file"))
}

#[cfg(test)]
mod tests;
