//! What must hold for any bytes of a sealed layer's file.
//!
//! Invariants checked: nothing panics; entries, groups and pages are bounded by the file; a page
//! that is given out has the checksum of its entry; metadata that decodes encodes to the same, and
//! an index takes it in; after one flipped bit each part is what it was or an error.

use super::bits::{STORE, flip_a_bit};
use crate::error::Result;
use crate::storage::disk::Disk;
use crate::storage::disk::sim::SimDisk;
use crate::storage::index::Index;
use crate::storage::index::versions::Retained;
use crate::storage::layer::format::{
    BLOCK_BYTES, ENTRY_BYTES, FOOTER_BYTES, Footer, GROUP_PAGES, HEADER_BYTES, LayerEntry, LayerId,
    seal_block,
};
use crate::storage::layer::{Access, Layer};
use crate::storage::log::format::{self, Change};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, TimelineId};

/// Most pages that are read of a layer, so that no input takes long.
const PAGES_MAX: usize = 16;
const ID: LayerId = LayerId { timeline: TimelineId(3), lane: LaneKind::Data, number: 5 };

/// What a layer says, each part as far as it can be read.
struct LayerContents {
    entries: Vec<Result<LayerEntry>>,
    /// Of entries all over the layer.
    pages: Vec<Option<Vec<u8>>>,
    metadata: Option<Vec<(Position, Change)>>,
}

/// Checks all of it on `bytes`, as they are and with the checksums put right, or few mutants would
/// get further.
///
/// # Panics
/// If something does not hold.
pub fn layer(bytes: &[u8]) {
    look(bytes);
    let mut sealed = bytes.to_vec();
    if seal(&mut sealed).is_none() {
        return;
    }
    let Some(contents) = look(&sealed) else { return };
    let bit = flip_a_bit(&mut sealed, bytes);
    let Some(damaged) = look(&sealed) else { return };
    if damaged.entries.len() == contents.entries.len() {
        for (was, is) in contents.entries.iter().zip(&damaged.entries) {
            let (Ok(was), Ok(is)) = (was, is) else { continue };
            assert_eq!(was, is, "bit {bit} passed unnoticed");
        }
        for (was, is) in contents.pages.iter().zip(&damaged.pages) {
            assert!(
                was.is_none() || is.is_none() || was == is,
                "bit {bit} of a page passed unnoticed"
            );
        }
    } else {
        assert!(damaged.entries.iter().any(Result::is_err), "bit {bit} lost an entry");
    }
    if let (Some(was), Some(is)) = (&contents.metadata, &damaged.metadata) {
        assert_eq!(was, is, "bit {bit} of the metadata passed unnoticed");
    }
}

/// Reads all that a layer of these bytes has; none if it does not open.
fn look(bytes: &[u8]) -> Option<LayerContents> {
    let disk = SimDisk::default();
    drop(disk.create(&ID.path()).expect("the disk is empty"));
    disk.alter(&ID.path(), |file| *file = bytes.to_vec());
    let layer = Layer::open(&disk, STORE, ID).ok()?;
    assert_eq!((layer.id(), layer.bytes()), (ID, bytes.len() as u64));
    assert!(layer.from() <= layer.to(), "{} to {}", layer.from(), layer.to());
    let entries: Vec<Result<LayerEntry>> = layer.scan().collect();
    assert!(entries.len() <= bytes.len() / ENTRY_BYTES, "{} entries", entries.len());
    let step = entries.len().div_ceil(PAGES_MAX).max(1);
    let pages =
        entries.iter().step_by(step).map(|entry| page(&layer, entry.as_ref().ok()?)).collect();
    find(&layer, &entries);
    let metadata = layer.metadata().ok();
    if let Some(changes) = &metadata {
        let again = format::decode_history(&format::encode_history(changes));
        assert_eq!(again.as_ref(), Ok(changes));
        apply(changes);
    }
    Some(LayerContents { entries, pages, metadata })
}

/// Takes the metadata in, as an opening of the timeline does, and sweeps it.
fn apply(changes: &[(Position, Change)]) {
    let mut index = Index::new(0, Retained::default());
    for (position, change) in changes {
        index.apply(*position, std::slice::from_ref(change), 0, 0);
    }
    index.sweep();
    assert!(index.metadata().is_sorted_by_key(|(position, _)| *position));
}

/// The page of an entry as it is read on the way to Postgres.
fn page(layer: &Layer, entry: &LayerEntry) -> Option<Vec<u8>> {
    let mut page = vec![0xee; PAGE_BYTES];
    let Some(at) = entry.page else {
        layer.take_page(&Ok(&[]), entry, &mut page).expect("zeros need no group");
        assert!(page.iter().all(|byte| *byte == 0));
        return Some(page);
    };
    let mut taken = None;
    let mut take = |group, pages: Result<&[u8]>| {
        assert!(pages.as_ref().map_or(0, |pages| pages.len()) <= GROUP_PAGES * PAGE_BYTES);
        if group == at.group {
            taken = layer.take_page(&pages, entry, &mut page).ok();
        }
    };
    // With the one before, which lies in front of it in a sound file.
    layer.read_groups(at.group.saturating_sub(1)..at.group + 1, Access::InOrder, &mut take).ok();
    layer.read_groups(at.group..at.group + 1, Access::Scattered, take).ok()?;
    taken?;
    assert_eq!(crc32fast::hash(&page), at.crc, "a page that does not check was given out");
    Some(page)
}

/// What is found is among what is there, at or before the position asked for.
fn find(layer: &Layer, entries: &[Result<LayerEntry>]) {
    let Some(Ok(middle)) = entries.get(entries.len() / 2) else { return };
    let blocks = middle.block.saturating_sub(2)..middle.block.saturating_add(2);
    let mut found = Vec::new();
    if layer.find(middle.inode, blocks.clone(), middle.position, |entry| found.push(entry)).is_err()
    {
        return;
    }
    for entry in found {
        assert!(entry.inode == middle.inode && blocks.contains(&entry.block), "{entry:?}");
        assert!(entry.position <= middle.position, "{entry:?} is later than {}", middle.position);
        let known = entries.iter().flatten().any(|known| *known == entry);
        // A scan keeps back what is out of order.
        assert!(known || entries.iter().any(Result::is_err), "{entry:?} is not in the layer");
    }
}

/// Makes the footer that of this layer, and puts right all checksums but those of pages; the copies
/// become what they are copies of.
fn seal(bytes: &mut [u8]) -> Option<()> {
    let end = bytes.len().checked_sub(2 * FOOTER_BYTES)?;
    let field = |at: usize| {
        Some(usize::try_from(u64::from_le_bytes(*bytes[end + at..].first_chunk()?)).ok())
    };
    let (meta, index) = (field(64)??, field(88)??);
    let length = u32::from_le_bytes(*bytes[end + 72..].first_chunk()?) as usize;
    let meta_crc = crc32fast::hash(bytes.get(meta..meta.checked_add(length)?)?);
    let copy = meta + length;
    let length = u32::from_le_bytes(*bytes[end + 84..].first_chunk()?) as usize;
    let dictionary = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?.to_vec();
    let dictionary_crc = if length == 0 { 0 } else { crc32fast::hash(&dictionary) };
    bytes.get_mut(copy..copy.checked_add(length)?)?.copy_from_slice(&dictionary);
    let tables = bytes.get_mut(index..end)?;
    let (first, second) = tables.split_at_mut(tables.len() / 2);
    for block in first.chunks_exact_mut(BLOCK_BYTES) {
        let count = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        seal_block(block, count as usize);
    }
    if first.len() == second.len() {
        second.copy_from_slice(first);
    }
    let footer = Footer::of(&bytes[end..end + FOOTER_BYTES], ID)?;
    let footer = Footer { store: STORE, meta_crc, dictionary_crc, ..footer }.encode();
    bytes[end..end + FOOTER_BYTES].copy_from_slice(&footer);
    bytes[end + FOOTER_BYTES..].copy_from_slice(&footer);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;
    use crate::storage::layer::dictionary::PAGES_TOGETHER;
    use crate::storage::layer::writer::LayerWriter;
    use crate::storage::page::ROOT_INODE;

    /// The bytes of a layer with `blocks` of a file, some of them zeros and some of them twice.
    fn made(blocks: u32, seed: u64) -> Vec<u8> {
        made_of_groups(PAGES_TOGETHER, blocks, seed)
    }

    /// The same with up to `pages` in a group.
    fn made_of_groups(pages: usize, blocks: u32, seed: u64) -> Vec<u8> {
        made_with(&[], pages, blocks, seed)
    }

    /// A layer whose pages have a dictionary.
    fn made_with_dictionary(blocks: u32, seed: u64) -> Vec<u8> {
        let mut random = Random(seed);
        let samples: Vec<u8> = (0..64).flat_map(|_| random.rows(PAGE_BYTES)).collect();
        made_with(&samples, 1, blocks, seed)
    }

    fn made_with(samples: &[u8], pages: usize, blocks: u32, seed: u64) -> Vec<u8> {
        let disk = SimDisk::default();
        let mut random = Random(seed);
        let mut writer =
            LayerWriter::begin(&disk, STORE, ID, (10, 1000), samples).unwrap().together(pages);
        for block in 0..blocks {
            for position in 0..1 + u64::from(block % 2) {
                let page = random.rows(PAGE_BYTES);
                let page = (block % 5 != 3).then_some(&page[..]);
                writer.add((9, block, 20 + position), page).unwrap();
            }
        }
        let metadata = [
            (
                11,
                Change::Size {
                    inode: 9,
                    size: u64::from(blocks) * PAGE_BYTES as u64,
                    modified_ns: 4,
                },
            ),
            (
                12,
                Change::Name {
                    directory: ROOT_INODE,
                    name: b"f".to_vec(),
                    inode: 9,
                    kind: format::FileKind::File,
                },
            ),
        ];
        writer.finish(&metadata).unwrap();
        let mut bytes = Vec::new();
        disk.alter(&ID.path(), |file| bytes = file.clone());
        bytes
    }

    /// As they were written once, four pages, or as they may be written one day.
    #[test]
    fn groups_of_one_to_four_pages_are_read() {
        for pages in [1, 2, 3, 4] {
            for blocks in [1, 6, 300] {
                let found = look(&made_of_groups(pages, blocks, 1)).expect("a sound layer");
                assert!(
                    found.pages.iter().all(Option::is_some),
                    "{blocks} blocks, {pages} in a group"
                );
                assert!(found.pages == look(&made(blocks, 1)).expect("a sound layer").pages);
            }
        }
    }

    #[test]
    fn pages_with_a_dictionary_are_read() {
        let (plain, with) = (made(300, 1), made_with_dictionary(300, 1));
        assert_eq!(
            (plain[plain.len() - FOOTER_BYTES + 8], with[with.len() - FOOTER_BYTES + 8]),
            (1, 2)
        );
        let (plain, with) =
            (look(&plain).expect("a sound layer"), look(&with).expect("a sound layer"));
        assert!(with.pages.iter().all(Option::is_some));
        assert!(with.pages == plain.pages);
    }

    /// Either copy of the dictionary will do, and without both no page is given out.
    #[test]
    fn a_dictionary_is_there_twice() {
        let whole = made_with_dictionary(10, 1);
        let end = whole.len() - 2 * FOOTER_BYTES;
        let footer = Footer::of(&whole[end..end + FOOTER_BYTES], ID).unwrap();
        let first = HEADER_BYTES;
        let copy = usize::try_from(footer.meta_offset).unwrap() + footer.meta_bytes as usize;
        let pages = look(&whole).unwrap().pages;
        for (damaged, read) in
            [(&[first][..], true), (&[copy][..], true), (&[first, copy + 9][..], false)]
        {
            let mut bytes = whole.clone();
            damaged.iter().for_each(|at| bytes[*at] ^= 4);
            let found = look(&bytes).unwrap();
            if read {
                assert!(found.pages == pages, "{damaged:?}");
            } else {
                assert!(found.entries.iter().zip(&found.pages).all(|(entry, page)| {
                    entry.as_ref().is_ok_and(|entry| entry.page.is_none()) == page.is_some()
                }));
            }
        }
    }

    #[test]
    fn holds_for_damaged_layers() {
        let mut random = Random(7);
        for (dictionary, blocks) in
            [(false, 0), (false, 1), (false, 6), (false, 300), (true, 6), (true, 300)]
        {
            let whole = if dictionary { made_with_dictionary(blocks, 1) } else { made(blocks, 1) };
            assert!(look(&whole).is_some_and(|found| found.pages.iter().all(Option::is_some)));
            layer(&whole);
            let (table, rounds) = (whole.len() / 2, if blocks > 100 { 20 } else { 400 });
            for _ in 0..rounds {
                let mut bytes = whole.clone();
                for _ in 0..1 + random.below(4) {
                    let length = (bytes.len() - table) as u64;
                    let at = table + usize::try_from(random.below(length)).unwrap();
                    bytes[at] = [0, 1, 0x7f, 0xff][usize::try_from(random.below(4)).unwrap()];
                }
                // Where the pages are.
                let at = usize::try_from(random.below(256)).unwrap();
                bytes[HEADER_BYTES + at] ^= 1 << random.below(8);
                layer(&bytes);
            }
            layer(&whole[..whole.len() - 1]);
            layer(&whole[1..]);
        }
    }

    /// A table that names groups beyond all numbers, or out of order.
    #[test]
    fn holds_for_groups_that_are_nowhere() {
        let whole = made(40, 3);
        let end = whole.len() - 2 * FOOTER_BYTES;
        let tables = end - 4 * BLOCK_BYTES;
        for (at, value) in [(32, u64::MAX), (32, 1 << 40), (48, 0), (48, u64::MAX - 3)] {
            let mut bytes = whole.clone();
            bytes[tables + BLOCK_BYTES + at..][..8].copy_from_slice(&value.to_le_bytes());
            layer(&bytes);
        }
        for group in [u32::MAX, 1000] {
            let mut bytes = whole.clone();
            bytes[tables + 32 + 24..][..4].copy_from_slice(&group.to_le_bytes());
            seal(&mut bytes).unwrap();
            assert!(look(&bytes).is_none(), "the index names group {group}");
        }
    }

    fn opened(bytes: &[u8]) -> Result<Layer> {
        let disk = SimDisk::default();
        drop(disk.create(&ID.path()).unwrap());
        disk.alter(&ID.path(), |file| *file = bytes.to_vec());
        Layer::open(&disk, STORE, ID)
    }

    #[test]
    fn an_index_that_does_not_ascend_is_refused() {
        let whole = made(300, 1);
        let footer = whole.len() - 2 * FOOTER_BYTES;
        let index =
            usize::try_from(Footer::of(&whole[footer..][..FOOTER_BYTES], ID).unwrap().index_offset)
                .unwrap();
        // Two entries of a block, then two blocks.
        let mut bytes = whole.clone();
        bytes[index + 32 + ENTRY_BYTES..][..2 * ENTRY_BYTES].rotate_left(ENTRY_BYTES);
        seal(&mut bytes).unwrap();
        let error = opened(&bytes).unwrap().scan().find_map(Result::err).unwrap();
        assert!(error.detail.contains("does not ascend"), "{error}");
        let mut bytes = whole;
        bytes[index..][..2 * BLOCK_BYTES].rotate_left(BLOCK_BYTES);
        seal(&mut bytes).unwrap();
        let error = opened(&bytes).err().unwrap();
        assert!(error.detail.contains("do not ascend"), "{error}");
    }

    #[test]
    fn metadata_that_is_newer_than_its_layer_is_refused() {
        let mut bytes = made(1, 1);
        let footer = bytes.len() - 2 * FOOTER_BYTES;
        bytes[footer + 56..][..8].copy_from_slice(&11_u64.to_le_bytes());
        seal(&mut bytes).unwrap();
        let error = opened(&bytes).unwrap().metadata().unwrap_err();
        assert!(error.detail.contains("newer than the layer"), "{error}");
    }

    #[test]
    fn a_layer_of_a_later_version_is_refused_by_name() {
        let mut bytes = made(1, 1);
        let footers = bytes.len() - 2 * FOOTER_BYTES;
        (bytes[footers + 8], bytes[footers + FOOTER_BYTES + 8]) = (3, 3);
        let error = opened(&bytes).err().unwrap();
        assert!(error.detail.contains("use the build that wrote it, or newer"), "{error}");
    }

    /// Writes the kept corpus of the fuzz target `layer` to the directory `COPPICE_CORPUS`.
    #[test]
    #[ignore = "writes files"]
    fn write_corpus() {
        let directory =
            std::path::PathBuf::from(std::env::var_os("COPPICE_CORPUS").expect("COPPICE_CORPUS"));
        for (name, blocks) in
            [("empty", 0), ("page", 1), ("group", 4), ("groups", 11), ("two-blocks", 90)]
        {
            std::fs::write(directory.join(format!("seed-{name}")), made(blocks, 1)).unwrap();
        }
        std::fs::write(directory.join("seed-dictionary"), made_with_dictionary(3, 1)).unwrap();
    }
}
