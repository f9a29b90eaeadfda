//! Encoding and decoding of changes, which records and the metadata of layers hold.
//!
//! `docs/format.md` is the description of every byte; this module is its only implementation.
//! Decoding trusts nothing: each length is checked against its limit and against what is there
//! before it is used.

use crate::storage::page::{PAGE_BYTES, Position};

/// Most bytes of changes in a record.
pub const MAX_CHANGES_BYTES: usize = 1 << 16;
/// Most pages in a record.
pub const MAX_PAGES: usize = 512;
/// Longest file name.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest symbolic link target.
pub const MAX_TARGET_BYTES: usize = 4095;
/// Most blocks that a change turns to zeros, unless it means all to the end: 1 GiB.
pub const MAX_ZEROS: u32 = 1 << 17;
/// Longest part of a page that is written for itself; of a page that changed more, all is written.
pub const MAX_PART_BYTES: usize = PAGE_BYTES / 2;
/// A count of blocks that means "to the end of the file, however long it was".
pub const TO_END: u32 = u32::MAX;

/// Bytes of an encoded part before those of the page.
pub const PART_HEAD_BYTES: usize = 21;

/// Kind of a file system object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
}

/// What the store keeps of an inode besides its pages. Times are nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that lead here; 0 for a removed file that is still open.
    pub links: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the contents.
    pub modified_ns: i64,
    /// Last change of the attributes.
    pub changed_ns: i64,
    /// Target of a symbolic link, else empty.
    pub target: Vec<u8>,
}

/// One change to one key. The changes of a record take effect together, in order.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The next `crcs.len()` pages of the record's payload are blocks `block..` of `inode`.
    Pages { inode: u64, block: u32, crcs: Vec<u32> },
    /// `block` of `inode` is as before but for `bytes` at `start`; `crc` is the checksum of the
    /// whole page then.
    Part { inode: u64, block: u32, start: u16, crc: u32, bytes: Vec<u8> },
    /// Blocks `block..block + count` read as zeros; `count` may be [`TO_END`].
    Zeros { inode: u64, block: u32, count: u32 },
    /// All attributes of `inode`.
    Attributes { inode: u64, attributes: Attributes },
    /// Length and modification time of `inode`; the rest as before.
    Size { inode: u64, size: u64, modified_ns: i64 },
    /// `inode` is gone with all its pages.
    Gone { inode: u64 },
    /// `name` in `directory` leads to `inode`.
    Name { directory: u64, name: Vec<u8>, inode: u64, kind: FileKind },
    /// `name` in `directory` leads nowhere.
    NoName { directory: u64, name: Vec<u8> },
    /// At `time_ns` the timeline was what it is at this record's position, which can be gone back
    /// to; `kept` as long as the window.
    Mark { time_ns: i64, kept: bool },
    /// The mark of this position cannot be gone back to any more.
    NoMark { mark: Position },
}

impl Change {
    /// Whether it only says what can be gone back to.
    pub fn is_of_marks(&self) -> bool {
        matches!(self, Change::Mark { .. } | Change::NoMark { .. })
    }

    /// The file or directory that it is of; none of a mark.
    pub fn inode(&self) -> Option<u64> {
        match self {
            Change::Pages { inode, .. }
            | Change::Part { inode, .. }
            | Change::Zeros { inode, .. }
            | Change::Attributes { inode, .. }
            | Change::Size { inode, .. }
            | Change::Gone { inode } => Some(*inode),
            Change::Name { directory, .. } | Change::NoName { directory, .. } => Some(*directory),
            Change::Mark { .. } | Change::NoMark { .. } => None,
        }
    }

    /// Whether it changes the contents of a file.
    pub fn is_of_blocks(&self) -> bool {
        matches!(
            self,
            Change::Pages { .. } | Change::Part { .. } | Change::Zeros { .. } | Change::Gone { .. }
        )
    }
}

/// Bytes that a change takes in a record.
pub fn encoded_bytes(change: &Change) -> usize {
    match change {
        Change::Pages { crcs, .. } => 17 + 4 * crcs.len(),
        Change::Part { bytes, .. } => PART_HEAD_BYTES + bytes.len(),
        Change::Zeros { .. } => 17,
        Change::Attributes { attributes, .. } => 52 + attributes.target.len(),
        Change::Size { .. } => 25,
        Change::Gone { .. } => 9,
        Change::Name { name, .. } => 19 + name.len(),
        Change::NoName { name, .. } => 10 + name.len(),
        Change::Mark { .. } => 10,
        Change::NoMark { .. } => 9,
    }
}

pub(super) fn encode_change(change: &Change, out: &mut Vec<u8>) {
    match change {
        Change::Pages { inode, block, crcs } => {
            out.push(1);
            out.extend_from_slice(&inode.to_le_bytes());
            out.extend_from_slice(&block.to_le_bytes());
            out.extend_from_slice(&u32_of(crcs.len()).to_le_bytes());
            out.extend(crcs.iter().flat_map(|crc| crc.to_le_bytes()));
        }
        Change::Zeros { inode, block, count } => {
            out.push(2);
            out.extend_from_slice(&inode.to_le_bytes());
            out.extend_from_slice(&block.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        Change::Attributes { inode, attributes } => {
            out.push(3);
            out.extend_from_slice(&inode.to_le_bytes());
            encode_attributes(attributes, out);
        }
        Change::Size { inode, size, modified_ns } => {
            out.push(4);
            out.extend_from_slice(&inode.to_le_bytes());
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(&modified_ns.to_le_bytes());
        }
        Change::Gone { inode } => {
            out.push(5);
            out.extend_from_slice(&inode.to_le_bytes());
        }
        Change::Name { directory, name, inode, kind } => {
            out.push(6);
            out.extend_from_slice(&directory.to_le_bytes());
            out.extend_from_slice(&inode.to_le_bytes());
            out.push(*kind as u8);
            encode_name(name, out);
        }
        Change::NoName { directory, name } => {
            out.push(7);
            out.extend_from_slice(&directory.to_le_bytes());
            encode_name(name, out);
        }
        Change::Part { inode, block, start, crc, bytes } => {
            encode_part((*inode, *block), *start, *crc, bytes, out);
        }
        Change::Mark { time_ns, kept } => {
            out.push(9);
            out.extend_from_slice(&time_ns.to_le_bytes());
            out.push(u8::from(*kept));
        }
        Change::NoMark { mark } => {
            out.push(10);
            out.extend_from_slice(&mark.to_le_bytes());
        }
    }
}

fn encode_part((inode, block): (u64, u32), start: u16, crc: u32, bytes: &[u8], out: &mut Vec<u8>) {
    assert!((1..=MAX_PART_BYTES).contains(&bytes.len()), "a part of {} bytes", bytes.len());
    out.push(8);
    out.extend_from_slice(&inode.to_le_bytes());
    out.extend_from_slice(&block.to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn encode_attributes(attributes: &Attributes, out: &mut Vec<u8>) {
    assert!(
        attributes.target.len() <= MAX_TARGET_BYTES,
        "link target of {} bytes",
        attributes.target.len()
    );
    out.push(attributes.kind as u8);
    out.extend_from_slice(&attributes.mode.to_le_bytes());
    out.extend_from_slice(&attributes.uid.to_le_bytes());
    out.extend_from_slice(&attributes.gid.to_le_bytes());
    out.extend_from_slice(&attributes.links.to_le_bytes());
    out.extend_from_slice(&attributes.size.to_le_bytes());
    out.extend_from_slice(&attributes.modified_ns.to_le_bytes());
    out.extend_from_slice(&attributes.changed_ns.to_le_bytes());
    out.extend_from_slice(&u32_of(attributes.target.len()).to_le_bytes());
    out.extend_from_slice(&attributes.target);
}

fn encode_name(name: &[u8], out: &mut Vec<u8>) {
    assert!((1..=MAX_NAME_BYTES).contains(&name.len()), "name of {} bytes", name.len());
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name);
}

pub(super) fn decode_change(tag: u8, reader: &mut Reader<'_>) -> Option<Change> {
    Some(match tag {
        1 => {
            let (inode, block) = (reader.u64()?, reader.u32()?);
            let count = reader.u32()? as usize;
            if count > MAX_PAGES || u32::try_from(count).ok()?.checked_add(block).is_none() {
                return None;
            }
            let crcs = (0..count).map(|_| reader.u32()).collect::<Option<Vec<u32>>>()?;
            Change::Pages { inode, block, crcs }
        }
        2 => {
            let (inode, block, count) = (reader.u64()?, reader.u32()?, reader.u32()?);
            if count > MAX_ZEROS && count != TO_END {
                return None;
            }
            Change::Zeros { inode, block, count }
        }
        3 => Change::Attributes { inode: reader.u64()?, attributes: decode_attributes(reader)? },
        4 => Change::Size { inode: reader.u64()?, size: reader.u64()?, modified_ns: reader.i64()? },
        5 => Change::Gone { inode: reader.u64()? },
        6 => {
            let (directory, inode, kind) =
                (reader.u64()?, reader.u64()?, decode_kind(reader.u8()?)?);
            Change::Name { directory, name: decode_name(reader)?, inode, kind }
        }
        7 => Change::NoName { directory: reader.u64()?, name: decode_name(reader)? },
        8 => {
            let (inode, block, crc) = (reader.u64()?, reader.u32()?, reader.u32()?);
            let (start, length) =
                (u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?));
            let (first, length) = (usize::from(start), usize::from(length));
            if !(1..=MAX_PART_BYTES).contains(&length) || first + length > PAGE_BYTES {
                return None;
            }
            Change::Part { inode, block, start, crc, bytes: reader.take(length)?.to_vec() }
        }
        9 => Change::Mark { time_ns: reader.i64()?, kept: decode_flag(reader.u8()?)? },
        10 => Change::NoMark { mark: reader.u64()? },
        _ => return None,
    })
}

fn decode_attributes(reader: &mut Reader<'_>) -> Option<Attributes> {
    let mut attributes = Attributes {
        kind: decode_kind(reader.u8()?)?,
        mode: u16::from_le_bytes(reader.array()?),
        uid: reader.u32()?,
        gid: reader.u32()?,
        links: reader.u32()?,
        size: reader.u64()?,
        modified_ns: reader.i64()?,
        changed_ns: reader.i64()?,
        target: Vec::new(),
    };
    let length = reader.u32()? as usize;
    if length > MAX_TARGET_BYTES {
        return None;
    }
    attributes.target = reader.take(length)?.to_vec();
    Some(attributes)
}

fn decode_flag(byte: u8) -> Option<bool> {
    (byte <= 1).then_some(byte == 1)
}

fn decode_kind(byte: u8) -> Option<FileKind> {
    match byte {
        1 => Some(FileKind::File),
        2 => Some(FileKind::Directory),
        3 => Some(FileKind::Symlink),
        _ => None,
    }
}

fn decode_name(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let length = usize::from(reader.u8()?);
    (length > 0).then(|| reader.take(length).map(<[u8]>::to_vec))?
}

pub(in crate::storage) fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or_else(|_| panic!("length {length} was bounded before"))
}

/// Encodes changes with their positions, one behind the other.
pub fn encode_history(changes: &[(Position, Change)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (position, change) in changes {
        bytes.extend_from_slice(&position.to_le_bytes());
        encode_change(change, &mut bytes);
    }
    bytes
}

/// Reads what [`encode_history`] wrote, or says what is wrong with it. An index can take in what
/// comes out: positions ascend, no two marks share one, and no change refers to bytes of a log.
pub fn decode_history(bytes: &[u8]) -> Result<Vec<(Position, Change)>, &'static str> {
    let mut reader = Reader(bytes);
    let (mut newest, mut newest_mark) = (0, 0);
    let mut changes = Vec::new();
    while !reader.0.is_empty() {
        let next = |reader: &mut Reader<'_>| {
            let (position, tag) = (reader.u64()?, reader.u8()?);
            Some((position, decode_change(tag, reader)?))
        };
        let (position, change) = next(&mut reader).ok_or("a change of it cannot be read")?;
        if position < newest {
            return Err("its positions do not ascend");
        }
        match change {
            Change::Pages { .. } | Change::Part { .. } => {
                return Err("it refers to pages of a log");
            }
            Change::Mark { .. } if position <= newest_mark => {
                return Err("its marks do not ascend");
            }
            Change::Mark { .. } => newest_mark = position,
            _ => {}
        }
        newest = position;
        changes.push((position, change));
    }
    Ok(changes)
}

/// Takes values off the front of a slice; `None` when it is too short.
pub(in crate::storage) struct Reader<'a>(pub(in crate::storage) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(in crate::storage) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(in crate::storage) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

/// The largest change, a run of the most pages, fits a record.
const _: () = assert!(
    17 + 4 * MAX_PAGES + MAX_TARGET_BYTES + PART_HEAD_BYTES + MAX_PART_BYTES < MAX_CHANGES_BYTES
);

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
