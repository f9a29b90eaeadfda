//! Writes a sealed layer: pages in the order of their keys, then metadata, index, group table and
//! footer.
//!
//! The file gets its name only when it is whole and synced; until then it is `layers/new.NUMBER`,
//! which an opening of the store removes. It counts once the catalog names it.

use crate::error::{Error, Result};
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::layer::dictionary::{LEVEL, PAGES_TOGETHER, Packing};
use crate::storage::layer::format::{
    BLOCK_BYTES, BLOCK_ENTRIES, BLOCK_GROUPS, BLOCK_HEAD_BYTES, ENTRY_BYTES, Footer,
    GROUP_ENTRY_BYTES, GROUP_PAGES, HEADER_BYTES, LAYER_MAGIC, LAYERS_DIRECTORY, LayerEntry,
    LayerId, LayerPage, MAX_META_BYTES, encode_entry, seal_block,
};
use crate::storage::log::format::{self, Change};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position};
use crate::storage::sabotage::{self, Defect};
use crate::sys;
use std::sync::Arc;

/// Bytes gathered before they are written and brought to the medium. Were all of a layer brought
/// there at its end, or with a sync each time, the commits of others would wait behind that.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes after which it is synced all the same, for file systems on which the former does nothing.
const SYNC_BYTES: u64 = 32 << 20;
/// First part of the name of a layer in the making.
pub(in crate::storage) const UNFINISHED_PREFIX: &str = "new.";

/// A layer in the making.
pub(in crate::storage) struct LayerWriter<'d> {
    disk: &'d dyn Disk,
    id: LayerId,
    store: u64,
    range: (Position, Position),
    file: Arc<dyn DiskFile>,
    unfinished: String,
    packing: Packing,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    offset: u64,
    /// Before here all is synced.
    synced: u64,
    group: Vec<u8>,
    groups: Vec<u8>,
    group_count: u32,
    index: Vec<u8>,
    entries: u64,
    last: Option<(u64, u32, Position)>,
}

impl<'d> LayerWriter<'d> {
    /// Begins layer `id` of the store with this number, for what was appended after `from` up to
    /// `to`. The `samples` are pages as will be in it; none if there will be few.
    pub(in crate::storage) fn begin(
        disk: &'d dyn Disk,
        store: u64,
        id: LayerId,
        range: (Position, Position),
        samples: &[u8],
    ) -> Result<Self> {
        assert!(range.0 <= range.1, "{} from {} to {}", id.path(), range.0, range.1);
        let unfinished = format!("{LAYERS_DIRECTORY}/{UNFINISHED_PREFIX}{:016x}", id.number);
        let failed = |e| Error::io(format!("create {unfinished}"), &e);
        let packing =
            Packing::of(samples).map_err(|e| Error::io("prepare to compress pages", &e))?;
        let file = disk.create(&unfinished).map_err(failed)?;
        let mut buffer = LAYER_MAGIC.to_vec();
        buffer.resize(HEADER_BYTES, 0);
        buffer.extend_from_slice(&packing.dictionary);
        Ok(Self {
            disk,
            id,
            store,
            range,
            file,
            unfinished,
            packing,
            buffer,
            offset: 0,
            synced: 0,
            group: Vec::with_capacity(GROUP_PAGES * PAGE_BYTES),
            groups: Vec::new(),
            group_count: 0,
            index: Vec::new(),
            entries: 0,
            last: None,
        })
    }

    /// Puts up to `pages` in a group.
    #[cfg(test)]
    pub(in crate::storage) fn together(mut self, pages: usize) -> Self {
        assert!(pages <= GROUP_PAGES, "nobody would read groups of {pages}");
        self.packing.together = pages;
        self
    }

    /// The lane that it is of.
    pub(in crate::storage) fn lane(&self) -> LaneKind {
        self.id.lane
    }

    /// Adds a version of a block; `None` reads as zeros. Keys and then positions ascend.
    pub(in crate::storage) fn add(
        &mut self,
        (inode, block, position): (u64, u32, Position),
        page: Option<&[u8]>,
    ) -> Result<()> {
        let key = (inode, block, position);
        assert!(self.last.is_none_or(|last| last < key), "{key:?} after {:?}", self.last);
        self.last = Some(key);
        let page = match page {
            None => None,
            Some(bytes) => {
                assert!(bytes.len() == PAGE_BYTES, "a page of {} bytes", bytes.len());
                let slot = format::u32_of(self.group.len() / PAGE_BYTES);
                self.group.extend_from_slice(bytes);
                Some(LayerPage { group: self.group_count, slot, crc: crc32fast::hash(bytes) })
            }
        };
        put(&mut self.index, &encode_entry(&LayerEntry { inode, block, position, page }));
        self.entries += 1;
        if self.group.len() == self.packing.together * PAGE_BYTES {
            self.end_group()
        } else {
            Ok(())
        }
    }

    fn end_group(&mut self) -> Result<()> {
        if self.group.is_empty() {
            return Ok(());
        }
        let pages = self.group.len() / PAGE_BYTES;
        assert!(pages <= GROUP_PAGES, "{pages} pages in a group");
        let failed = |e| Error::io("compress a group of pages", &e);
        let compressed =
            sys::when_idle(|| self.packing.compressor.compress(&self.group)).map_err(failed)?;
        // Bytes that save little are kept as they are, which a read need not unpack.
        let raw = compressed.len() > self.group.len() / 8 * 7;
        let bytes = if raw { std::mem::take(&mut self.group) } else { compressed };
        let mut entry = [0; 16];
        entry[0..8].copy_from_slice(&(self.offset + self.buffer.len() as u64).to_le_bytes());
        entry[8..12].copy_from_slice(&format::u32_of(bytes.len()).to_le_bytes());
        entry[12..16].copy_from_slice(&u32::from(raw).to_le_bytes());
        put(&mut self.groups, &entry);
        self.group_count += 1;
        self.group.clear();
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all_at(&[&self.buffer], self.offset);
        written
            .map_err(|e| Error::io(format!("write {} at {}", self.unfinished, self.offset), &e))?;
        let length = self.buffer.len() as u64;
        let out = self.file.write_out(self.offset, length);
        out.map_err(|e| {
            Error::io(format!("write out {} at {}", self.unfinished, self.offset), &e)
        })?;
        self.offset += length;
        self.buffer.clear();
        if self.offset - self.synced >= SYNC_BYTES && !sabotage::active(Defect::LayerSync) {
            self.file.sync().map_err(|e| Error::io(format!("sync {}", self.unfinished), &e))?;
            self.synced = self.offset;
        }
        Ok(())
    }

    /// Ends the layer with the lane's metadata and makes it durable under its name. Returns its
    /// length.
    pub(in crate::storage) fn finish(mut self, metadata: &[(Position, Change)]) -> Result<u64> {
        let finished = self.finish_file(metadata);
        if finished.is_err() {
            // Useless, and on a full disk in the way; the next opening removes it otherwise.
            let _ = self.disk.remove(&self.unfinished);
            let _ = self.disk.remove(&self.id.path());
        }
        finished
    }

    fn finish_file(&mut self, metadata: &[(Position, Change)]) -> Result<u64> {
        self.end_group()?;
        assert!(metadata.is_sorted_by_key(|(at, _)| *at), "metadata of {}", self.id.path());
        let (newest, to) = (metadata.last().map_or(0, |(at, _)| *at), self.range.1);
        assert!(newest <= to, "metadata of {newest} in {}, which ends at {to}", self.id.path());
        let raw = format::encode_history(metadata);
        if raw.len() > MAX_META_BYTES {
            return Err(Error::unavailable(
                "too_many_files",
                format!("{} has too many files", self.id.path()),
            ));
        }
        let meta =
            zstd::bulk::compress(&raw, LEVEL).map_err(|e| Error::io("compress metadata", &e))?;
        let meta_offset = self.offset + self.buffer.len() as u64;
        self.write(&meta)?;
        let dictionary = std::mem::take(&mut self.packing.dictionary);
        self.write(&dictionary)?;
        let padding = (self.offset + self.buffer.len() as u64).next_multiple_of(BLOCK_BYTES as u64)
            - (self.offset + self.buffer.len() as u64);
        self.buffer.resize(self.buffer.len() + usize::try_from(padding).unwrap_or(0), 0);
        let index_offset = self.offset + self.buffer.len() as u64;
        assert!(index_offset.is_multiple_of(BLOCK_BYTES as u64), "an index at {index_offset}");
        let footer = Footer {
            store: self.store,
            id: self.id,
            from: self.range.0,
            to: self.range.1,
            meta_offset,
            meta_bytes: format::u32_of(meta.len()),
            meta_raw_bytes: format::u32_of(raw.len()),
            meta_crc: crc32fast::hash(&meta),
            dictionary_bytes: format::u32_of(dictionary.len()),
            dictionary_crc: if dictionary.is_empty() { 0 } else { crc32fast::hash(&dictionary) },
            groups: self.group_count,
            index_offset,
            entries: self.entries,
        };
        let index = std::mem::take(&mut self.index);
        let groups = std::mem::take(&mut self.groups);
        let mut tables = sealed(index, ENTRY_BYTES, BLOCK_ENTRIES);
        tables.extend(sealed(groups, GROUP_ENTRY_BYTES, BLOCK_GROUPS));
        self.flush()?;
        let failed = |e| Error::io(format!("finish {}", self.id.path()), &e);
        let footer = footer.encode();
        self.file
            .write_all_at(&[&tables, &tables, &footer, &footer], self.offset)
            .map_err(failed)?;
        self.offset += 2 * (tables.len() + footer.len()) as u64;
        if !sabotage::active(Defect::LayerSync) {
            self.file.sync().map_err(failed)?;
        }
        self.disk.rename(&self.unfinished, &self.id.path()).map_err(failed)?;
        self.disk.sync_directory(LAYERS_DIRECTORY).map_err(failed)?;
        Ok(self.offset)
    }

    /// Gives the layer up.
    pub(in crate::storage) fn discard(self) {
        // Left over it is removed at the next opening.
        let _ = self.disk.remove(&self.unfinished);
    }
}

/// Appends an entry, with room for the head of a block before its first.
fn put(blocks: &mut Vec<u8>, entry: &[u8]) {
    if blocks.len().is_multiple_of(BLOCK_BYTES) {
        blocks.resize(blocks.len() + BLOCK_HEAD_BYTES, 0);
    }
    blocks.extend_from_slice(entry);
}

/// Fills up the last block and seals all.
fn sealed(mut blocks: Vec<u8>, entry_bytes: usize, most: usize) -> Vec<u8> {
    let last = (blocks.len() % BLOCK_BYTES).saturating_sub(BLOCK_HEAD_BYTES) / entry_bytes;
    assert!(last <= most, "{last} entries in a block of {most}");
    let whole = blocks.len() / BLOCK_BYTES;
    blocks.resize(blocks.len().next_multiple_of(BLOCK_BYTES), 0);
    for (nth, block) in blocks.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        seal_block(block, if nth < whole { most } else { last });
    }
    blocks
}

const _: () = assert!(HEADER_BYTES < BUFFER_BYTES);
const _: () = assert!(PAGES_TOGETHER <= GROUP_PAGES);
