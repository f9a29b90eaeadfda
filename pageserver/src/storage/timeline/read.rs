//! Reading blocks: finds each in the log, the layers or an ancestor, then reads neighbours with one
//! I/O.
//!
//! Within a timeline the newest version counts that the reader's position sees. If the file was cut
//! shorter after that version, the block reads as zeros. If a timeline says nothing of a block, its
//! ancestor answers, as of the fork.
//!
//! An example: a reader at the head asks for block 7. The log has no version of it. The newest
//! layer ends at position 80 and has none; the next one has block 7 at position 40. The index says
//! that the file was cut to 3 blocks at position 60. Version 40 is older than the cut, so block 7
//! is zeros, and no ancestor is asked. A child that was forked at position 50 reads as of 50: it
//! does not see the cut, and gets version 40. Had no layer a version and the index no cut, the
//! ancestor would answer as of the position at which this timeline was forked from it; if the file
//! is younger than that, the block is zeros without asking.

use crate::error::{Error, Result};
use crate::locks::read;
use crate::storage::disk::DiskFile;
use crate::storage::index::{Block, PageAt, Parts};
use crate::storage::layer::format::{LayerEntry, LayerPage};
use crate::storage::layer::{Access, Layer};
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::u32_of;
use crate::storage::log::record::LaneFileId;
use crate::storage::page::{PAGE_BYTES, Position, inode_created, lane_of};
use crate::storage::sabotage::{self, Defect};
use crate::storage::timeline::Timeline;
use crate::storage::timeline::lane::LaneState;
use crate::storage::timeline::parts;
use std::ops::Range;
use std::sync::Arc;

/// Where the bytes of a block are.
pub(in crate::storage) enum BlockSource {
    Zeros,
    /// In a lane file.
    Page(Arc<dyn DiskFile>, LaneFileId, PageAt),
    /// In several places of lane files; the last of them is named.
    Parts(Vec<Arc<dyn DiskFile>>, LaneFileId, Box<Parts>),
    Layer(Arc<Layer>, LayerEntry, LayerPage),
}

impl Timeline {
    /// Fills `buffer`, whole pages, with the blocks of `inode` from `first` on.
    pub fn read_blocks(self: &Arc<Self>, inode: u64, first: u32, buffer: &mut [u8]) -> Result<()> {
        assert!(buffer.len().is_multiple_of(PAGE_BYTES), "a part of a page: {}", buffer.len());
        let sources = {
            let state = read(&self.lane(lane_of(inode)).state);
            self.resolve(&state, inode, first, buffer.len() / PAGE_BYTES)?
        };
        fetch(inode, first, &sources, buffer)
    }

    /// Finds the blocks, one pass over each timeline of the chain. The caller holds this timeline's
    /// lane.
    pub(in crate::storage) fn resolve(
        self: &Arc<Self>,
        own: &LaneState,
        inode: u64,
        first: u32,
        count: usize,
    ) -> Result<Vec<Option<BlockSource>>> {
        let kind = lane_of(inode);
        let range: Range<u32> =
            first..first.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let mut sources: Vec<Option<BlockSource>> = (0..count).map(|_| None).collect();
        for (timeline, at) in self.chain(kind, inode_created(inode)) {
            if Arc::ptr_eq(timeline, self) {
                own.find(inode, &range, at, &mut sources)?;
            } else {
                read(&timeline.lane(kind).state).find(inode, &range, at, &mut sources)?;
            }
            if sources.iter().all(Option::is_some) {
                break;
            }
        }
        Ok(sources)
    }
}

impl LaneState {
    /// Fills in what this lane says of the blocks of `range` that have no source yet, to a reader
    /// at `at`.
    fn find(
        &self,
        inode: u64,
        range: &Range<u32>,
        at: Position,
        sources: &mut [Option<BlockSource>],
    ) -> Result<()> {
        let nth = |block: u32| (block - range.start) as usize;
        let mut found: Vec<Option<(Position, BlockSource)>> =
            sources.iter().map(|_| None).collect();
        self.index.blocks(inode, range.clone(), at, |block, position, value| {
            if found[nth(block)].is_none() {
                found[nth(block)] = Some((position, self.source(value)));
            }
        });
        for layer in self.layers.iter().filter(|layer| layer.from() < at) {
            if found
                .iter()
                .zip(&*sources)
                .all(|(found, source)| found.is_some() || source.is_some())
            {
                break;
            }
            layer.find(inode, range.clone(), at, |entry| {
                if found[nth(entry.block)].is_none() {
                    let source =
                        entry.page.map(|page| BlockSource::Layer(Arc::clone(layer), entry, page));
                    found[nth(entry.block)] =
                        Some((entry.position, source.unwrap_or(BlockSource::Zeros)));
                }
            })?;
        }
        let cuts = self.index.has_cuts(inode);
        for ((found, source), block) in found.into_iter().zip(sources).zip(range.clone()) {
            if source.is_some() {
                continue;
            }
            let cut = if cuts { self.index.cut_at(inode, block, at) } else { None };
            *source = match (found, cut) {
                (Some((position, found)), cut) if cut.is_none_or(|cut| position >= cut) => {
                    Some(found)
                }
                (_, Some(_)) => Some(BlockSource::Zeros),
                (_, None) => None,
            };
        }
        Ok(())
    }

    fn source(&self, block: &Block) -> BlockSource {
        match block {
            Block::Zeros => BlockSource::Zeros,
            Block::Page(page) => BlockSource::Page(
                Arc::clone(self.log.file(page.sequence)),
                self.log.id(page.sequence),
                *page,
            ),
            Block::Parts(at) => {
                let files =
                    parts::files(at).map(|sequence| Arc::clone(self.log.file(sequence))).collect();
                let last = at.parts[at.parts.len() - 1].sequence;
                BlockSource::Parts(files, self.log.id(last), at.clone())
            }
        }
    }
}

/// Reads `bytes`, pages from that at `at` on, out of a lane file.
pub(in crate::storage) fn read_pages(
    file: &dyn DiskFile,
    id: LaneFileId,
    at: &PageAt,
    bytes: &mut [u8],
) -> Result<()> {
    let failed = |e| Error::io(format!("read {} at {}", LaneFiles::describe(id), at.offset), &e);
    file.read_exact_at(bytes, u64::from(at.offset)).map_err(failed)
}

/// Refuses a page of file `id` that is not what was written of a block of an inode.
pub(in crate::storage) fn check_page(
    page: &[u8],
    id: LaneFileId,
    at: &PageAt,
    (inode, block): (u64, u32),
) -> Result<()> {
    if crc32fast::hash(page) == at.crc || sabotage::active(Defect::PageChecksum) {
        return Ok(());
    }
    let (name, offset) = (LaneFiles::describe(id), at.offset);
    Err(Error::corrupt(format!(
        "{name} at {offset}: block {block} of inode {inode:#x} is not what was written"
    )))
}

/// Reads and checks what was found; neighbours in a file with one I/O.
pub(in crate::storage) fn fetch(
    inode: u64,
    first: u32,
    sources: &[Option<BlockSource>],
    buffer: &mut [u8],
) -> Result<()> {
    assert_eq!(buffer.len(), sources.len() * PAGE_BYTES, "a page for each block");
    let mut at = 0;
    while at < sources.len() {
        let rest = &sources[at..];
        let block = first + u32_of(at);
        let count = match &rest[0] {
            Some(BlockSource::Page(file, _, page)) => {
                let next_to = |(nth, source): &(usize, &Option<BlockSource>)| {
                    let offset = page.offset as usize + nth * PAGE_BYTES;
                    matches!(source, Some(BlockSource::Page(other, _, next))
                        if Arc::ptr_eq(other, file) && next.offset as usize == offset)
                };
                rest.iter().enumerate().take_while(next_to).count()
            }
            Some(BlockSource::Layer(layer, _, page)) => groups_in_a_row(layer, page, rest),
            _ => 1,
        };
        assert!(count > 0, "block {block} of inode {inode:#x} leads nowhere");
        let bytes = &mut buffer[at * PAGE_BYTES..(at + count) * PAGE_BYTES];
        match &rest[0] {
            Some(BlockSource::Page(file, id, page)) => {
                read_pages(&**file, *id, page, bytes)?;
                for ((source, bytes), block) in
                    rest.iter().zip(bytes.chunks_exact(PAGE_BYTES)).zip(block..)
                {
                    if let Some(BlockSource::Page(_, id, expected)) = source {
                        check_page(bytes, *id, expected, (inode, block))?;
                    }
                }
            }
            Some(BlockSource::Layer(layer, ..)) => fetch_from_layer(layer, &rest[..count], bytes)?,
            Some(BlockSource::Parts(files, id, parts)) => {
                parts::read(files, *id, parts, (inode, block), bytes)?
            }
            Some(BlockSource::Zeros) | None => bytes.fill(0),
        }
        at += count;
    }
    Ok(())
}

/// How many sources from the first on are in the same layer, in its group or the one behind the one
/// before.
fn groups_in_a_row(
    layer: &Arc<Layer>,
    first: &LayerPage,
    sources: &[Option<BlockSource>],
) -> usize {
    let mut group = first.group;
    let in_a_row = |source: &&Option<BlockSource>| match source {
        Some(BlockSource::Layer(other, _, page)) => {
            let near =
                Arc::ptr_eq(other, layer) && (page.group == group || page.group == group + 1);
            group = page.group;
            near
        }
        _ => false,
    };
    sources.iter().take_while(in_a_row).count()
}

/// Most blocks of a read that is not taken for part of a scan.
const FEW_BLOCKS: usize = 8;

fn fetch_from_layer(
    layer: &Layer,
    sources: &[Option<BlockSource>],
    buffer: &mut [u8],
) -> Result<()> {
    let wanted: Vec<(&LayerEntry, &LayerPage)> = sources
        .iter()
        .filter_map(|source| {
            if let Some(BlockSource::Layer(_, entry, page)) = source {
                Some((entry, page))
            } else {
                None
            }
        })
        .collect();
    let (first, last) = (wanted[0].1.group, wanted[wanted.len() - 1].1.group);
    assert!(first <= last, "groups {first} to {last} of {}", layer.id().path());
    let (mut nth, mut outcome) = (0, Ok(()));
    let access = if sources.len() > FEW_BLOCKS { Access::InOrder } else { Access::Scattered };
    layer.read_groups(first..last + 1, access, |group, pages| {
        while nth < wanted.len() && wanted[nth].1.group == group {
            let page = &mut buffer[nth * PAGE_BYTES..(nth + 1) * PAGE_BYTES];
            let taken = layer.take_page(&pages, wanted[nth].0, page);
            if outcome.is_ok() {
                outcome = taken;
            }
            nth += 1;
        }
    })?;
    outcome
}
