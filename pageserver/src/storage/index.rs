//! The open index of a lane: where the newest versions of its keys are, and the older ones that a fork still sees.
//!
//! The index holds only what its own log says; what an ancestor holds is the timeline's business. It is a pure
//! function of the records applied and the retained points, so replaying a log gives the same index.

use crate::storage::format::{
    Attributes, Change, FileKind, PART_HEAD_BYTES, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, TO_END,
    encoded_bytes,
};
use crate::storage::page::{HEAD, PAGE_BYTES, Position, inode_created};
use std::collections::{BTreeMap, HashMap};

/// Positions at which somebody still reads: the fork positions of children. Sorted.
#[derive(Clone, Debug, Default)]
pub struct Retained(Vec<Position>);

impl Retained {
    /// Adds a point.
    pub fn add(&mut self, position: Position) {
        if let Err(at) = self.0.binary_search(&position) {
            self.0.insert(at, position);
        }
    }

    /// Removes a point.
    pub fn remove(&mut self, position: Position) {
        if let Ok(at) = self.0.binary_search(&position) {
            self.0.remove(at);
        }
    }

    /// Whether some point sees a version of `from` that is replaced at `to`.
    fn sees(&self, from: Position, to: Position) -> bool {
        let at = self.0.partition_point(|point| *point < from);
        self.0.get(at).is_some_and(|point| *point < to)
    }
}

/// The versions of one key, oldest first. Most keys have one.
#[derive(Clone, Debug)]
enum Versions<T> {
    One(Position, T),
    Many(Vec<(Position, T)>),
}

impl<T> Versions<T> {
    fn newest(&self) -> (Position, &T) {
        match self {
            Versions::One(position, value) => (*position, value),
            Versions::Many(list) => {
                let (position, value) = &list[list.len() - 1];
                (*position, value)
            }
        }
    }

    fn at(&self, position: Position) -> Option<(Position, &T)> {
        match self {
            Versions::One(at, value) => (*at <= position).then_some((*at, value)),
            Versions::Many(list) => {
                let (at, value) = &list[list.partition_point(|(at, _)| *at <= position).checked_sub(1)?];
                Some((*at, value))
            }
        }
    }

    /// Adds a version; those before it go that no retained point sees.
    fn put(&mut self, position: Position, value: T, retained: &Retained) {
        let (newest, _) = self.newest();
        assert!(newest <= position, "version {position} after {newest}");
        let keep = retained.sees(newest, position);
        match self {
            Versions::One(at, old) if !keep => (*at, *old) = (position, value),
            Versions::Many(list) if !keep => {
                list.pop();
                list.push((position, value));
            }
            Versions::Many(list) => {
                list.push((position, value));
                // Points may have gone since the older versions were kept for them.
                let ends: Vec<Position> = list.iter().skip(1).map(|(at, _)| *at).collect();
                let mut ends = ends.into_iter();
                list.retain(|(at, _)| ends.next().is_none_or(|end| retained.sees(*at, end)));
            }
            Versions::One(..) => {
                let Versions::One(at, old) = std::mem::replace(self, Versions::Many(Vec::with_capacity(2)))
                else {
                    unreachable!("matched above");
                };
                *self = Versions::Many(vec![(at, old), (position, value)]);
            }
        }
    }
}

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
    blocks: BTreeMap<u32, Versions<Block>>,
    /// Truncations: from this block on, what is older than the position reads as zeros. Oldest first.
    cuts: Vec<(Position, u32)>,
}

type Names = BTreeMap<Vec<u8>, Versions<Option<Target>>>;

/// All a lane's log says about its keys.
#[derive(Default)]
pub struct Index {
    inodes: HashMap<u64, Inode>,
    directories: HashMap<u64, Names>,
    retained: Retained,
    /// What was made after this position, no ancestor has.
    base: Position,
}

impl Index {
    /// An empty index that keeps what `retained` sees, of a timeline that inherits up to `base` (0 for a root).
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
                    let length = u16::try_from(length).unwrap_or_else(|_| panic!("a part of {length} bytes"));
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
                    self.put_name(position, *directory, name, Some(Target { inode: *inode, kind: *kind }));
                }
                Change::NoName { directory, name } => self.put_name(position, *directory, name, None),
            }
            at += encoded_bytes(change);
        }
    }

    fn put_part(&mut self, position: Position, (inode, block): (u64, u32), part: PartAt, crc: u32) {
        let mut parts = match self.newest_block(inode, block) {
            Some(Block::Page(base)) => Parts { base: Some(base), parts: Vec::with_capacity(1), crc },
            Some(Block::Parts(parts)) => Parts { crc, ..*parts },
            Some(Block::Zeros) | None => Parts { base: None, parts: Vec::with_capacity(1), crc },
        };
        parts.parts.push(part);
        self.put_block(position, inode, block, Block::Parts(Box::new(parts)));
    }

    /// What this lane says of a block at the head.
    pub fn newest_block(&self, inode: u64, block: u32) -> Option<Block> {
        let mut newest = None;
        self.blocks(inode, block..block + 1, HEAD, |_, value| newest = Some(value.clone()));
        newest
    }

    fn put_block(&mut self, position: Position, inode: u64, block: u32, value: Block) {
        let inode = self.inodes.entry(inode).or_default();
        match inode.blocks.get_mut(&block) {
            Some(versions) => versions.put(position, value, &self.retained),
            None => {
                inode.blocks.insert(block, Versions::One(position, value));
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
        // The writer sends all attributes before the first bare size, so a miss is damage that the check reports.
        if let Some(Some(known)) = self.attributes(inode, Position::MAX) {
            let attributes = Attributes { size, modified_ns, ..known.clone() };
            self.put_attributes(position, inode, Some(attributes));
        }
    }

    /// Whether an inode's end leaves nothing to remember: no ancestor and no retained point knows it.
    fn forgettable(&self, inode: u64, position: Position) -> bool {
        let created = inode_created(inode);
        created > self.base && !self.retained.sees(created, position)
    }

    fn put_name(&mut self, position: Position, directory: u64, name: &[u8], value: Option<Target>) {
        let own_directory = inode_created(directory) > self.base;
        let names = self.directories.entry(directory).or_default();
        if value.is_none() && own_directory {
            let unseen =
                |old: &Versions<_>| matches!(old, Versions::One(at, _) if !self.retained.sees(*at, position));
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
        let retained = &self.retained;
        let unseen = |at: Position| !retained.sees(at, position);
        inode.blocks.retain(|block, versions| {
            *block < from || matches!(versions, Versions::Many(_)) || !unseen(versions.newest().0)
        });
        while inode.cuts.last().is_some_and(|(at, older)| *older >= from && unseen(*at)) {
            inode.cuts.pop();
        }
        inode.cuts.push((position, from));
    }

    fn gone(&mut self, position: Position, inode: u64) {
        if self.forgettable(inode, position) {
            self.inodes.remove(&inode);
            self.directories.remove(&inode);
            return;
        }
        self.cut(position, inode, 0);
        self.put_attributes(position, inode, None);
    }

    /// Attributes as of `position`: `None` if this lane does not say, `Some(None)` if the inode is gone.
    pub fn attributes(&self, inode: u64, position: Position) -> Option<Option<&Attributes>> {
        let (_, value) = self.inodes.get(&inode)?.attributes.as_ref()?.at(position)?;
        Some(value.as_ref())
    }

    /// Whether this lane itself holds attributes of the inode.
    pub fn has_attributes(&self, inode: u64) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| inode.attributes.is_some())
    }

    /// Calls `found` with each block in `first..first + found_len` that this lane says something about.
    pub fn blocks(
        &self,
        inode: u64,
        blocks: std::ops::Range<u32>,
        position: Position,
        mut found: impl FnMut(u32, &Block),
    ) {
        let Some(inode) = self.inodes.get(&inode) else {
            return;
        };
        let cut = |block: u32| {
            inode.cuts.iter().rev().find(|(at, from)| *at <= position && *from <= block).map(|(at, _)| *at)
        };
        if inode.cuts.is_empty() {
            for (block, versions) in inode.blocks.range(blocks) {
                if let Some((_, value)) = versions.at(position) {
                    found(*block, value);
                }
            }
            return;
        }
        for block in blocks {
            let version = inode.blocks.get(&block).and_then(|versions| versions.at(position));
            match (version, cut(block)) {
                (Some((at, value)), cut) if cut.is_none_or(|cut| at >= cut) => found(block, value),
                (_, Some(_)) => found(block, &Block::Zeros),
                (_, None) => {}
            }
        }
    }

    /// What `name` leads to as of `position`: `None` if this lane does not say, `Some(None)` if nowhere.
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
mod tests {
    use super::*;

    fn page(position: Position, block: u32) -> (Position, Vec<Change>) {
        (position, vec![Change::Pages { inode: 9, block, crcs: vec![u32::try_from(position).unwrap()] }])
    }

    fn seen(index: &Index, position: Position) -> Vec<(u32, Option<u32>)> {
        let mut blocks = Vec::new();
        index.blocks(9, 0..10, position, |block, value| {
            blocks.push((block, if let Block::Page(at) = value { Some(at.crc) } else { None }));
        });
        blocks
    }

    #[test]
    fn a_retained_point_keeps_its_version_and_others_go() {
        let mut index = Index::default();
        for (position, changes) in [page(1, 0), page(2, 0)] {
            index.apply(position, &changes, 0, 64);
        }
        index.retain(3);
        for (position, changes) in [page(4, 0), page(5, 0)] {
            index.apply(position, &changes, 0, 64);
        }
        assert_eq!(seen(&index, 3), [(0, Some(2))]);
        assert_eq!(seen(&index, Position::MAX), [(0, Some(5))]);
        assert_eq!(seen(&index, 1), [], "version 1 was replaced, no point saw it");
        assert!(matches!(&index.inodes[&9].blocks[&0], Versions::Many(list) if list.len() == 2));
    }

    #[test]
    fn what_a_released_point_kept_goes_with_the_next_version() {
        let mut index = Index::default();
        for position in 1..=4 {
            index.apply(position * 10, &page(position * 10, 0).1, 0, 64);
            index.retain(position * 10 + 1);
        }
        assert_eq!(seen(&index, 21), [(0, Some(20))]);
        index.release(11);
        index.release(31);
        index.apply(50, &page(50, 0).1, 0, 64);
        for (at, expected) in [(21, 20), (41, 40), (Position::MAX, 50)] {
            assert_eq!(seen(&index, at), [(0, Some(expected))]);
        }
        assert!(matches!(&index.inodes[&9].blocks[&0], Versions::Many(list) if list.len() == 3));
    }

    #[test]
    fn a_regrown_file_never_shows_old_pages() {
        let mut index = Index::default();
        index.apply(1, &page(1, 3).1, 0, 64);
        index.retain(1);
        index.apply(2, &[Change::Zeros { inode: 9, block: 2, count: TO_END }], 0, 64);
        assert_eq!(seen(&index, 1), [(3, Some(1))]);
        assert!(seen(&index, Position::MAX).iter().all(|(block, page)| *block >= 2 && page.is_none()));
        index.apply(3, &page(3, 3).1, 0, 64);
        index.apply(4, &[Change::Zeros { inode: 9, block: 5, count: TO_END }], 0, 64);
        assert!(
            seen(&index, Position::MAX).contains(&(3, Some(3))),
            "the later, higher cut must not hide block 3"
        );
        assert!(seen(&index, Position::MAX).contains(&(2, None)));
    }

    #[test]
    fn what_only_this_timeline_knew_leaves_no_trace() {
        let mut index = Index::new(5, Retained::default());
        let target = Change::Name { directory: 7, name: b"t".to_vec(), inode: 9, kind: FileKind::File };
        index.apply(9, &[page(9, 0).1.remove(0), target], 0, 64);
        index.apply(
            10,
            &[Change::Gone { inode: 9 }, Change::NoName { directory: 7, name: b"t".to_vec() }],
            0,
            64,
        );
        assert!(index.inodes.is_empty() && index.directories[&7].is_empty());
        index.apply(
            11,
            &[Change::Gone { inode: 4 }, Change::NoName { directory: 3, name: b"t".to_vec() }],
            0,
            64,
        );
        assert_eq!(index.attributes(4, 11), Some(None), "an inherited inode must stay hidden");
        assert_eq!(index.name(3, b"t", 11), Some((11, None)), "an inherited name must stay hidden");
    }

    #[test]
    fn a_bare_size_changes_only_size_and_time() {
        let mut index = Index::default();
        let attributes = Attributes {
            kind: FileKind::File,
            mode: 0o600,
            uid: 1,
            gid: 2,
            links: 1,
            size: 0,
            modified_ns: 0,
            changed_ns: 7,
            target: Vec::new(),
        };
        index.apply(1, &[Change::Attributes { inode: 9, attributes: attributes.clone() }], 0, 64);
        index.apply(2, &[Change::Size { inode: 9, size: 10, modified_ns: 3 }], 0, 64);
        let expected = Attributes { size: 10, modified_ns: 3, ..attributes };
        assert_eq!(index.attributes(9, Position::MAX), Some(Some(&expected)));
        index.base = 9;
        index.apply(3, &[Change::Gone { inode: 9 }], 0, 64);
        assert_eq!(index.attributes(9, Position::MAX), Some(None));
    }
}
