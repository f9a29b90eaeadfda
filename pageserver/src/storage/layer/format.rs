//! Encoding and decoding of layers: the footer, blocks of entries, and entries.
//!
//! `docs/format.md` is the description of every byte; this module is its only implementation.

use crate::storage::layer::dictionary::MAX_DICTIONARY_BYTES;
use crate::storage::log::format::{self, Reader};
use crate::storage::page::{LaneKind, Position, TimelineId};

/// Directory of the layers in the store.
pub const LAYERS_DIRECTORY: &str = "layers";
/// Version of the layer format, in the footers of layers whose pages have a dictionary.
pub const LAYER_VERSION: u32 = 2;
/// Version in the footers of those without.
const PLAIN_VERSION: u32 = 1;
/// Bytes before the first group: the magic and zeros.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the footer, which ends the file, twice.
pub const FOOTER_BYTES: usize = 128;
/// Most pages in a group, which are compressed together.
pub const GROUP_PAGES: usize = 4;
/// Bytes of a block of the index or of the group table, each with a checksum of its own.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes before the entries of a block.
pub const BLOCK_HEAD_BYTES: usize = 32;
/// Bytes of an entry of the index.
pub const ENTRY_BYTES: usize = 32;
/// Entries in a block of the index.
pub const BLOCK_ENTRIES: usize = (BLOCK_BYTES - BLOCK_HEAD_BYTES) / ENTRY_BYTES;
/// Bytes of an entry of the group table.
pub const GROUP_ENTRY_BYTES: usize = 16;
/// Entries in a block of the group table.
pub const BLOCK_GROUPS: usize = (BLOCK_BYTES - BLOCK_HEAD_BYTES) / GROUP_ENTRY_BYTES;
/// Most bytes of metadata, uncompressed: some ten million files.
pub const MAX_META_BYTES: usize = 1 << 31;
/// First bytes of a layer.
pub const LAYER_MAGIC: [u8; 8] = *b"COPPICES";
/// First bytes of its footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"COPPICEF";
/// Slot of an entry that says the block reads as zeros.
pub const ZEROS_SLOT: u32 = u32::MAX;

/// Which layer this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId {
    /// The timeline it belongs to.
    pub timeline: TimelineId,
    /// The lane of the timeline.
    pub lane: LaneKind,
    /// Its number, never used twice in a store.
    pub number: u64,
}

impl LayerId {
    /// Path of the file in the store.
    pub fn path(&self) -> String {
        let lane = match self.lane {
            LaneKind::Data => 'd',
            LaneKind::Wal => 'w',
        };
        format!("{LAYERS_DIRECTORY}/{}.{lane}.{:016x}", self.timeline, self.number)
    }
}

/// One version of a block in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// File.
    pub inode: u64,
    /// Block of it.
    pub block: u32,
    /// When it was written.
    pub position: Position,
    /// Where its bytes are; `None` reads as zeros.
    pub page: Option<LayerPage>,
}

/// Where a page is in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPage {
    /// Group that holds it.
    pub group: u32,
    /// Place in the group.
    pub slot: u32,
    /// Checksum of the page.
    pub crc: u32,
}

/// The fixed end of a layer: what it is, and where its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Footer {
    pub(in crate::storage) store: u64,
    pub(in crate::storage) id: LayerId,
    pub(in crate::storage) from: Position,
    pub(in crate::storage) to: Position,
    pub(in crate::storage) meta_offset: u64,
    pub(in crate::storage) meta_bytes: u32,
    pub(in crate::storage) meta_raw_bytes: u32,
    pub(in crate::storage) meta_crc: u32,
    /// 0 if the pages have none.
    pub(in crate::storage) dictionary_bytes: u32,
    pub(in crate::storage) dictionary_crc: u32,
    pub(in crate::storage) groups: u32,
    pub(in crate::storage) index_offset: u64,
    pub(in crate::storage) entries: u64,
}

impl Footer {
    pub(in crate::storage) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[0..8].copy_from_slice(&FOOTER_MAGIC);
        let version = if self.dictionary_bytes == 0 { PLAIN_VERSION } else { LAYER_VERSION };
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.store.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.id.timeline.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&(self.id.lane as u32).to_le_bytes());
        bytes[36..40].copy_from_slice(&self.groups.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.id.number.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.from.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.to.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.meta_offset.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.meta_bytes.to_le_bytes());
        bytes[76..80].copy_from_slice(&self.meta_raw_bytes.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.meta_crc.to_le_bytes());
        bytes[84..88].copy_from_slice(&self.dictionary_bytes.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[96..104].copy_from_slice(&self.entries.to_le_bytes());
        bytes[104..108].copy_from_slice(&self.dictionary_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the footer of layer `id`, a file of `length` bytes, or says what is wrong with it.
    pub(super) fn decode(
        bytes: &[u8],
        store: u64,
        id: LayerId,
        length: u64,
    ) -> std::result::Result<Self, String> {
        let damaged = || "the footer is damaged".to_owned();
        let short = |at: usize| bytes.get(at..at + 4).and_then(|bytes| Reader(bytes).u32());
        let read = || Some((Self::of(bytes, id)?, short(8)?, short(12)?));
        let (footer, version, crc) = read().ok_or_else(damaged)?;
        if bytes.len() != FOOTER_BYTES
            || bytes[0..8] != FOOTER_MAGIC
            || crc32fast::hash(&bytes[16..]) != crc
        {
            return Err(damaged());
        }
        if !(PLAIN_VERSION..=LAYER_VERSION).contains(&version) {
            let known = format!("{PLAIN_VERSION} and {LAYER_VERSION}");
            return Err(format!(
                "the format version is {version}, this build reads {known}: use the build that \
                 wrote it, or newer"
            ));
        }
        if footer.store != store || footer.encode() != *bytes {
            return Err("it is another layer's file".to_owned());
        }
        if footer.fits(length).is_some() && footer.from <= footer.to {
            Ok(footer)
        } else {
            Err(damaged())
        }
    }

    /// What the bytes say, unchecked.
    pub(in crate::storage) fn of(bytes: &[u8], id: LayerId) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 8).and_then(|bytes| Reader(bytes).u64());
        let short = |at: usize| bytes.get(at..at + 4).and_then(|bytes| Reader(bytes).u32());
        Some(Footer {
            store: number(16)?,
            id,
            from: number(48)?,
            to: number(56)?,
            meta_offset: number(64)?,
            meta_bytes: short(72)?,
            meta_raw_bytes: short(76)?,
            meta_crc: short(80)?,
            dictionary_bytes: short(84)?,
            dictionary_crc: short(104)?,
            groups: short(36)?,
            index_offset: number(88)?,
            entries: number(96)?,
        })
    }

    fn fits(&self, length: u64) -> Option<()> {
        let tables = self.table_bytes()?.checked_mul(2)?;
        let end = self.index_offset.checked_add(tables)?.checked_add(2 * FOOTER_BYTES as u64)?;
        let sound = end == length
            && self.index_offset.is_multiple_of(BLOCK_BYTES as u64)
            && self.dictionary_bytes <= MAX_DICTIONARY_BYTES
            && HEADER_BYTES as u64 + u64::from(self.dictionary_bytes) <= self.meta_offset
            && self
                .meta_offset
                .checked_add(u64::from(self.meta_bytes) + u64::from(self.dictionary_bytes))?
                <= self.index_offset
            && self.meta_raw_bytes as usize <= MAX_META_BYTES;
        sound.then_some(())
    }

    pub(super) fn index_blocks(&self) -> u64 {
        self.entries.div_ceil(BLOCK_ENTRIES as u64)
    }

    /// Bytes of the index and the group table behind it.
    pub(super) fn table_bytes(&self) -> Option<u64> {
        let groups = u64::from(self.groups).div_ceil(BLOCK_GROUPS as u64);
        self.index_blocks().checked_add(groups)?.checked_mul(BLOCK_BYTES as u64)
    }
}

/// Seals a block of the index or the group table: its checksum and how many entries it has.
pub(in crate::storage) fn seal_block(bytes: &mut [u8], count: usize) {
    assert!(bytes.len() == BLOCK_BYTES, "a block of {} bytes", bytes.len());
    bytes[4..8].copy_from_slice(&format::u32_of(count).to_le_bytes());
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[0..4].copy_from_slice(&crc.to_le_bytes());
}

/// Entries of a block that checks.
pub(super) fn open_block(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut reader = Reader(bytes);
    let (crc, count) = (reader.u32()?, reader.u32()? as usize);
    (crc32fast::hash(&bytes[4..]) == crc).then(|| (count, &bytes[BLOCK_HEAD_BYTES..]))
}

pub(super) fn encode_entry(entry: &LayerEntry) -> [u8; ENTRY_BYTES] {
    assert!(entry.page.is_none_or(|page| page.slot != ZEROS_SLOT), "{entry:?} would be zeros");
    let page = entry.page.unwrap_or(LayerPage { group: 0, slot: ZEROS_SLOT, crc: 0 });
    let mut bytes = [0; ENTRY_BYTES];
    bytes[0..8].copy_from_slice(&entry.inode.to_le_bytes());
    bytes[8..12].copy_from_slice(&entry.block.to_le_bytes());
    bytes[12..16].copy_from_slice(&page.slot.to_le_bytes());
    bytes[16..24].copy_from_slice(&entry.position.to_le_bytes());
    bytes[24..28].copy_from_slice(&page.group.to_le_bytes());
    bytes[28..32].copy_from_slice(&page.crc.to_le_bytes());
    bytes
}

pub(super) fn decode_entry(bytes: &[u8]) -> Option<LayerEntry> {
    let mut reader = Reader(bytes);
    let (inode, block, slot) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let (position, group, crc) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let page = (slot != ZEROS_SLOT).then_some(LayerPage { group, slot, crc });
    Some(LayerEntry { inode, block, position, page })
}

const _: () = assert!(BLOCK_HEAD_BYTES + BLOCK_ENTRIES * ENTRY_BYTES == BLOCK_BYTES);
const _: () = assert!(BLOCK_HEAD_BYTES + BLOCK_GROUPS * GROUP_ENTRY_BYTES == BLOCK_BYTES);
