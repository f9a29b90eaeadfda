//! Sealed layers: what a lane's log held up to a position, sorted, compressed and never changed
//! again.
//!
//! A layer is one file: groups of pages, the lane's metadata, an index entry for each version of a
//! block, a table of the groups, and a footer. The last three are there twice, as is the dictionary
//! of the pages of a layer that has many. `docs/format.md` describes the bytes, [`mod@format`]
//! implements them, and `writer.rs` writes them. The index is mapped, and checked block by block
//! when it is used; pages are read, so that a bad disk is an error.

pub(in crate::storage) mod dictionary;
pub mod format;
pub(in crate::storage) mod writer;

use crate::error::{Error, Result};
use crate::storage::disk::{Disk, DiskFile, Mapping};
use crate::storage::layer::format::{
    BLOCK_BYTES, BLOCK_ENTRIES, BLOCK_GROUPS, ENTRY_BYTES, FOOTER_BYTES, Footer, GROUP_ENTRY_BYTES,
    GROUP_PAGES, HEADER_BYTES, LayerEntry, LayerId, LayerPage, decode_entry, open_block,
};
use crate::storage::log::format::{Change, Reader, decode_history};
use crate::storage::page::{PAGE_BYTES, Position};
use crate::storage::sabotage::{self, Defect};
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use zstd::zstd_safe::DDict;

/// Where a reader of groups goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Behind what it read, which the system reads ahead by itself.
    InOrder,
    /// Anywhere; what lies around is brought as well.
    Scattered,
}

/// An open layer.
pub struct Layer {
    footer: Footer,
    file: Arc<dyn DiskFile>,
    /// The index, the group table behind it, and a copy of both.
    mapped: Mapping,
    /// First key of each block of the index.
    firsts: Vec<(u64, u32, Position)>,
    bytes: u64,
    /// Read when a group is first unpacked.
    dictionary: OnceLock<DDict<'static>>,
}

impl Layer {
    /// Opens a layer and checks all but its pages and metadata. Each fault names the file.
    pub fn open(disk: &dyn Disk, store: u64, id: LayerId) -> Result<Self> {
        let name = id.path();
        let missing = |e: std::io::Error| {
            let io = Error::io(format!("open layer {name}"), &e);
            if e.kind() != std::io::ErrorKind::NotFound {
                return io;
            }
            Error::corrupt(format!(
                "{name} is missing: restore the file from a backup of the store"
            ))
        };
        let file = disk.open(&name).map_err(missing)?;
        let failed = |e| Error::io(format!("read layer {name}"), &e);
        let bad = |what: &str| {
            Error::corrupt(format!("{name}: {what}; restore the file from a backup of the store"))
        };
        let bytes = file.len_bytes().map_err(failed)?;
        let end = bytes
            .checked_sub(2 * FOOTER_BYTES as u64)
            .ok_or_else(|| bad("the file is cut short"))?;
        let mut footers = [0; 2 * FOOTER_BYTES];
        file.read_exact_at(&mut footers, end).map_err(failed)?;
        let (first, second) = footers.split_at(FOOTER_BYTES);
        let footer = Footer::decode(first, store, id, bytes)
            .or_else(|_| Footer::decode(second, store, id, bytes))
            .map_err(|what| bad(&what))?;
        let length = usize::try_from(2 * footer.table_bytes().unwrap_or(0)).unwrap_or(0);
        let mapped = file.map(footer.index_offset, length).map_err(failed)?;
        let dictionary = OnceLock::new();
        let mut layer = Self { footer, file, mapped, firsts: Vec::new(), bytes, dictionary };
        layer.firsts = (0..usize::try_from(footer.index_blocks()).unwrap_or(0))
            .map(|nth| {
                let first = layer.entries_of(nth)?.next();
                let first = first.ok_or_else(|| bad("a block of the index is empty"))?;
                Ok((first.inode, first.block, first.position))
            })
            .collect::<Result<_>>()?;
        if !layer.firsts.is_sorted_by(|a, b| a < b) {
            return Err(bad("the blocks of its index do not ascend"));
        }
        Ok(layer)
    }

    /// Which layer it is.
    pub fn id(&self) -> LayerId {
        self.footer.id
    }

    /// It holds what was appended after this position.
    pub fn from(&self) -> Position {
        self.footer.from
    }

    /// It holds what was appended up to this position.
    pub fn to(&self) -> Position {
        self.footer.to
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many versions of blocks it holds.
    pub fn entries(&self) -> u64 {
        self.footer.entries
    }

    fn damaged(&self, offset: u64, what: &str) -> Error {
        Error::corrupt(format!("{} at {offset}: {what}", self.footer.id.path()))
    }

    /// The mapped block `nth`, of the index and then of the group table; its copy if it is damaged.
    fn block(&self, nth: usize) -> Result<(usize, &[u8])> {
        let mapped = (*self.mapped).as_ref();
        let bytes_at = |at: usize| mapped.get(at..at + BLOCK_BYTES).and_then(open_block);
        let (at, copy) = (nth * BLOCK_BYTES, mapped.len() / 2 + nth * BLOCK_BYTES);
        if let Some(block) = bytes_at(at) {
            return Ok(block);
        }
        let offset = self.footer.index_offset + at as u64;
        let what = "a block of the index is not what was written";
        let block = bytes_at(copy).ok_or_else(|| self.damaged(offset, what))?;
        tracing::warn!(file = self.footer.id.path(), offset, "{what}; its copy is used");
        Ok(block)
    }

    fn entries_of(&self, nth: usize) -> Result<impl Iterator<Item = LayerEntry>> {
        let (count, entries) = self.block(nth)?;
        let entries = entries.chunks_exact(ENTRY_BYTES).take(count).filter_map(decode_entry);
        let lost =
            |entry: LayerEntry| entry.page.is_some_and(|page| page.group >= self.footer.groups);
        if entries.clone().any(lost) {
            let offset = self.footer.index_offset + (nth * BLOCK_BYTES) as u64;
            return Err(self.damaged(offset, "the index names a group that is not there"));
        }
        Ok(entries)
    }

    /// The nth of all entries; `None` if there are fewer.
    pub fn entry(&self, nth: u64) -> Result<Option<LayerEntry>> {
        let nth = usize::try_from(nth).unwrap_or(usize::MAX);
        if nth / BLOCK_ENTRIES >= self.firsts.len() {
            return Ok(None);
        }
        Ok(self.entries_of(nth / BLOCK_ENTRIES)?.nth(nth % BLOCK_ENTRIES))
    }

    /// All entries, by inode, block and position; an error where they do not ascend.
    pub fn scan(&self) -> impl Iterator<Item = Result<LayerEntry>> {
        let entries = (0..self.firsts.len()).flat_map(|nth| {
            let (entries, failed) = match self.entries_of(nth) {
                Ok(entries) => (Some(entries), None),
                Err(error) => (None, Some(Err(error))),
            };
            entries.into_iter().flatten().map(Ok).chain(failed)
        });
        let mut last = None;
        entries.map(move |entry| {
            let entry: LayerEntry = entry?;
            let key = (entry.inode, entry.block, entry.position);
            if last.replace(key).is_some_and(|last| last >= key) {
                return Err(self.damaged(self.footer.index_offset, "its index does not ascend"));
            }
            Ok(entry)
        })
    }

    /// Calls `found` with the version that a reader at `at` sees of each of the `blocks` that the
    /// layer holds.
    pub fn find(
        &self,
        inode: u64,
        blocks: Range<u32>,
        at: Position,
        mut found: impl FnMut(LayerEntry),
    ) -> Result<()> {
        let start = self
            .firsts
            .partition_point(|first| *first < (inode, blocks.start, 0))
            .saturating_sub(1);
        let mut seen: Option<LayerEntry> = None;
        for nth in start..self.firsts.len() {
            if self.firsts[nth] >= (inode, blocks.end, 0) {
                break;
            }
            for entry in self.entries_of(nth)? {
                if entry.inode != inode || !blocks.contains(&entry.block) || entry.position > at {
                    continue;
                }
                if let Some(seen) = seen.replace(entry).filter(|seen| seen.block != entry.block) {
                    found(seen);
                }
            }
        }
        seen.into_iter().for_each(found);
        Ok(())
    }

    /// Where groups are in the file: offset, stored bytes, and whether they are compressed.
    fn places(&self, groups: Range<u32>) -> Result<Vec<(u64, usize, bool)>> {
        let outside =
            || self.damaged(self.footer.index_offset, "the index names a group that is not there");
        if groups.end > self.footer.groups {
            return Err(outside());
        }
        let tables = usize::try_from(self.footer.index_blocks()).unwrap_or(0);
        let (start, end) = (groups.start as usize, groups.end as usize);
        let mut places = Vec::with_capacity(groups.len());
        while start + places.len() < end {
            let nth = start + places.len();
            let (_, entries) = self.block(tables + nth / BLOCK_GROUPS)?;
            let entries =
                entries.chunks_exact(GROUP_ENTRY_BYTES).take(BLOCK_GROUPS).skip(nth % BLOCK_GROUPS);
            for entry in entries.take(end - nth) {
                places.push(self.place(entry).ok_or_else(outside)?);
            }
        }
        Ok(places)
    }

    fn place(&self, entry: &[u8]) -> Option<(u64, usize, bool)> {
        let mut reader = Reader(entry);
        let (offset, stored, raw) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let inside = offset.checked_add(u64::from(stored))? <= self.footer.meta_offset;
        let length = stored as usize;
        (inside && length <= GROUP_PAGES * PAGE_BYTES).then_some((offset, length, raw == 0))
    }

    /// The dictionary of its pages, if they have one.
    fn dictionary(&self) -> Result<Option<&DDict<'static>>> {
        let length = self.footer.dictionary_bytes as usize;
        if length == 0 || self.dictionary.get().is_some() {
            return Ok(self.dictionary.get());
        }
        let what = "the dictionary of its pages is not what was written";
        let (first, copy) =
            (HEADER_BYTES as u64, self.footer.meta_offset + u64::from(self.footer.meta_bytes));
        let bytes = match self.dictionary_at(first, length)? {
            Some(bytes) => Some(bytes),
            None => {
                tracing::warn!(
                    file = self.footer.id.path(),
                    offset = first,
                    "{what}; its copy is used"
                );
                self.dictionary_at(copy, length)?
            }
        };
        let made = bytes
            .and_then(|bytes| DDict::try_create(&bytes))
            .ok_or_else(|| self.damaged(first, what))?;
        Ok(Some(self.dictionary.get_or_init(|| made)))
    }

    /// The bytes of the dictionary at a place, if they check.
    fn dictionary_at(&self, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
        let failed = |e| Error::io(format!("read {} at {offset}", self.footer.id.path()), &e);
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok((crc32fast::hash(&bytes) == self.footer.dictionary_crc).then_some(bytes))
    }

    /// Reads groups `groups`, which lie one behind the other, with one I/O, and calls `take` with
    /// the pages of each.
    pub fn read_groups(
        &self,
        groups: Range<u32>,
        access: Access,
        mut take: impl FnMut(u32, Result<&[u8]>),
    ) -> Result<()> {
        let places = self.places(groups.clone())?;
        let Some((start, ..)) = places.first() else { return Ok(()) };
        let mut total = 0;
        for (offset, length, _) in &places {
            if *offset != start + total as u64 {
                return Err(
                    self.damaged(*offset, "a group of pages is not where the one before ends")
                );
            }
            total += length;
        }
        let mut stored = vec![0; total];
        let failed = |e| Error::io(format!("read {} at {start}", self.footer.id.path()), &e);
        let read = match access {
            Access::InOrder => self.file.read_exact_at(&mut stored, *start),
            Access::Scattered => self.file.read_around_at(&mut stored, *start),
        };
        read.map_err(failed)?;
        for (group, (offset, length, compressed)) in groups.zip(&places) {
            let from = usize::try_from(offset - start).unwrap_or(0);
            let bytes = &stored[from..from + length];
            let damaged = || self.damaged(*offset, "a group of pages is not what was written");
            if *compressed {
                let (dictionary, most) = (self.dictionary()?, GROUP_PAGES * PAGE_BYTES);
                dictionary::unpack(bytes, dictionary, most, |pages| {
                    take(group, pages.ok_or_else(damaged))
                });
            } else {
                take(group, Ok(bytes));
            }
        }
        Ok(())
    }

    /// Copies a page out of its group, if it is what was written of `inode` and `block`.
    pub fn take_page(
        &self,
        group: &Result<&[u8]>,
        entry: &LayerEntry,
        page: &mut [u8],
    ) -> Result<()> {
        let Some(LayerPage { group: number, slot, crc }) = entry.page else {
            page.fill(0);
            return Ok(());
        };
        let slot = slot as usize;
        let bytes = group
            .as_ref()
            .ok()
            .and_then(|pages| pages.get(slot * PAGE_BYTES..(slot + 1) * PAGE_BYTES));
        let sound =
            |bytes: &&[u8]| crc32fast::hash(bytes) == crc || sabotage::active(Defect::PageChecksum);
        if let Some(bytes) = bytes.filter(sound) {
            page.copy_from_slice(bytes);
            return Ok(());
        }
        let offset = self
            .places(number..number.saturating_add(1))?
            .first()
            .map_or(0, |(offset, ..)| *offset);
        let LayerEntry { inode, block, .. } = entry;
        Err(self
            .damaged(offset, &format!("block {block} of inode {inode:#x} is not what was written")))
    }

    /// All that the lane knew of files and names when the layer was made, as changes in order.
    pub fn metadata(&self) -> Result<Vec<(Position, Change)>> {
        let bad = |what: &str| self.damaged(self.footer.meta_offset, what);
        let damaged = || bad("the metadata is not what was written");
        let mut stored = vec![0; self.footer.meta_bytes as usize];
        let failed = |e| {
            Error::io(format!("read {} at {}", self.footer.id.path(), self.footer.meta_offset), &e)
        };
        self.file.read_exact_at(&mut stored, self.footer.meta_offset).map_err(failed)?;
        if crc32fast::hash(&stored) != self.footer.meta_crc {
            return Err(damaged());
        }
        // Grows with what comes out, so that the length that the footer names costs nothing by
        // itself.
        let (mut raw, length) = (Vec::new(), u64::from(self.footer.meta_raw_bytes));
        let unpacked = zstd::stream::read::Decoder::with_buffer(&stored[..])
            .and_then(|decoder| decoder.take(length + 1).read_to_end(&mut raw));
        if unpacked.is_err() || raw.len() as u64 != length {
            return Err(damaged());
        }
        let changes =
            decode_history(&raw).map_err(|what| bad(&format!("the metadata is wrong: {what}")))?;
        match changes.last() {
            Some((newest, _)) if *newest > self.footer.to => {
                Err(bad("the metadata is newer than the layer"))
            }
            _ => Ok(changes),
        }
    }
}
