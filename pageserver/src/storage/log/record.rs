//! Encoding and decoding of lane files: the header of a file and that of a record.
//!
//! `docs/format.md` is the description of every byte; this module is its only implementation.
//! Decoding trusts nothing: each length is checked against its limit and against what is there
//! before it is used.

use crate::storage::log::format::{
    Change, MAX_CHANGES_BYTES, MAX_PAGES, Reader, decode_change, encode_change, encoded_bytes,
    u32_of,
};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, TimelineId};

/// Version of the lane file format, in every file header.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a lane file's header; the first record follows it.
pub const FILE_HEADER_BYTES: usize = 64;
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 48;
/// Records start at multiples of this.
pub const RECORD_ALIGNMENT: usize = 8;
/// First bytes of each record.
pub const RECORD_MAGIC: [u8; 4] = *b"CREC";
const FILE_MAGIC: [u8; 8] = *b"COPPICEL";

/// Which file of which log this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneFileId {
    /// The timeline that writes it.
    pub timeline: TimelineId,
    /// The lane of the timeline.
    pub lane: LaneKind,
    /// Place in the lane, from 0.
    pub sequence: u32,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Checksum over the rest of the header and the changes, begun with the file's salt.
    pub crc: u32,
    /// Place in the order of the store.
    pub position: Position,
    /// Position of the record before it in this lane; 0 for the first.
    pub previous: Position,
    /// This lane was synced up to here when the record was written.
    pub durable: Position,
    /// Bytes of changes behind the header.
    pub changes_bytes: usize,
    /// Pages behind the changes.
    pub pages: usize,
}

impl RecordHeader {
    /// Offset of the first page from the start of the record.
    pub fn pages_offset(&self) -> usize {
        RECORD_HEADER_BYTES + self.changes_bytes
    }

    /// Bytes of the record; the changes are padded, so that the next record is aligned.
    pub fn total_bytes(&self) -> usize {
        self.pages_offset() + self.pages * PAGE_BYTES
    }
}

/// The value that begins each checksum of a file, so that records of an earlier use of a recycled
/// file do not check.
pub fn salt(store: u64, file: LaneFileId) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store.to_le_bytes());
    hasher.update(&file.timeline.0.to_le_bytes());
    hasher.update(&(file.lane as u32).to_le_bytes());
    hasher.update(&file.sequence.to_le_bytes());
    hasher.finalize()
}

/// Encodes a lane file's header.
pub fn encode_file_header(store: u64, file: LaneFileId) -> [u8; FILE_HEADER_BYTES] {
    let mut bytes = [0; FILE_HEADER_BYTES];
    bytes[0..8].copy_from_slice(&FILE_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&store.to_le_bytes());
    bytes[24..32].copy_from_slice(&file.timeline.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&(file.lane as u32).to_le_bytes());
    bytes[36..40].copy_from_slice(&file.sequence.to_le_bytes());
    let crc = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Why a lane file's header is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// A sound header of a format that this build does not know.
    Version(u32),
    /// Not the header of this file: never written, torn, of an earlier use, or damaged.
    Damaged,
}

/// Whether `bytes` are the header of `file`.
pub fn check_file_header(bytes: &[u8], store: u64, file: LaneFileId) -> Result<(), HeaderFault> {
    let expected = encode_file_header(store, file);
    if bytes.len() < FILE_HEADER_BYTES
        || bytes[0..8] != FILE_MAGIC
        || bytes[12..64] != expected[12..]
    {
        return Err(HeaderFault::Damaged);
    }
    let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if version == FORMAT_VERSION { Ok(()) } else { Err(HeaderFault::Version(version)) }
}

/// Encodes a record's header and changes; the pages follow them unchanged.
pub fn encode_record(
    salt: u32,
    position: Position,
    previous: Position,
    durable: Position,
    changes: &[Change],
    pages: usize,
) -> Vec<u8> {
    assert!(pages <= MAX_PAGES, "{pages} pages in a record");
    assert!(
        position > previous && previous >= durable,
        "{position} {previous} {durable} out of order"
    );
    let mut bytes = vec![0; RECORD_HEADER_BYTES];
    for change in changes {
        let before = bytes.len();
        encode_change(change, &mut bytes);
        assert_eq!(bytes.len() - before, encoded_bytes(change), "length of an encoded change");
    }
    // Padded, so that pages and the next record keep the alignment.
    bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGNMENT), 0);
    let changes_bytes = bytes.len() - RECORD_HEADER_BYTES;
    assert!(changes_bytes <= MAX_CHANGES_BYTES, "{changes_bytes} bytes of changes");
    bytes[0..4].copy_from_slice(&RECORD_MAGIC);
    bytes[8..16].copy_from_slice(&position.to_le_bytes());
    bytes[16..24].copy_from_slice(&previous.to_le_bytes());
    bytes[24..32].copy_from_slice(&durable.to_le_bytes());
    bytes[32..36].copy_from_slice(&u32_of(changes_bytes).to_le_bytes());
    bytes[36..40].copy_from_slice(&u32_of(pages).to_le_bytes());
    let crc = record_crc(salt, &bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads the fixed part of a record; `None` if this cannot be one.
pub fn decode_header(bytes: &[u8]) -> Option<RecordHeader> {
    if bytes.len() < RECORD_HEADER_BYTES || bytes[0..4] != RECORD_MAGIC {
        return None;
    }
    let mut reader = Reader(&bytes[4..]);
    let header = RecordHeader {
        crc: reader.u32()?,
        position: reader.u64()?,
        previous: reader.u64()?,
        durable: reader.u64()?,
        changes_bytes: reader.u32()? as usize,
        pages: reader.u32()? as usize,
    };
    let sound = header.changes_bytes <= MAX_CHANGES_BYTES
        && header.changes_bytes.is_multiple_of(RECORD_ALIGNMENT)
        && header.pages <= MAX_PAGES
        && header.position > header.previous
        && header.previous >= header.durable;
    sound.then_some(header)
}

/// Whether the header and changes in `bytes` are what was written under `salt`.
pub fn record_checks(header: &RecordHeader, salt: u32, bytes: &[u8]) -> bool {
    bytes.len() >= header.pages_offset()
        && record_crc(salt, &bytes[..header.pages_offset()]) == header.crc
}

fn record_crc(salt: u32, header_and_changes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(&header_and_changes[8..]);
    hasher.finalize()
}

/// Reads the changes of a record, or says what is wrong with them.
pub fn decode_changes(header: &RecordHeader, bytes: &[u8]) -> Result<Vec<Change>, String> {
    let mut reader = Reader(bytes);
    let mut changes = Vec::new();
    let (mut pages, mut marks) = (0, 0);
    while let Some(tag) = reader.u8() {
        // The padding behind the last change.
        if tag == 0 {
            break;
        }
        let change =
            decode_change(tag, &mut reader).ok_or_else(|| format!("bad change of kind {tag}"))?;
        match &change {
            Change::Pages { crcs, .. } => pages += crcs.len(),
            Change::Mark { .. } => marks += 1,
            _ => {}
        }
        changes.push(change);
    }
    if marks > 1 {
        return Err(format!("changes make {marks} marks of one position"));
    }
    if pages != header.pages {
        return Err(format!("changes name {pages} pages, the record holds {}", header.pages));
    }
    Ok(changes)
}

const _: () = assert!(RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGNMENT));
const _: () = assert!(FILE_HEADER_BYTES.is_multiple_of(RECORD_ALIGNMENT));
const _: () = assert!(PAGE_BYTES.is_multiple_of(RECORD_ALIGNMENT));

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
