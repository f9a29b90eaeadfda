//! The pages of a file that an operation changes: a write split at the boundaries of pages, and the
//! end of a file that is cut off.
//!
//! A *page write* is what one write does to one page or to a run of pages. A *part* is something
//! else: the piece of a write-ahead page that the store logs in place of the whole page
//! (`storage::timeline::parts`).

use crate::fs::error::TreeResult;
use crate::storage::log::format::{Change, TO_END};
use crate::storage::page::PAGE_BYTES;
use crate::storage::timeline::append::RecordBuilder;
use nix::errno::Errno;
use std::borrow::Cow;

const PAGE: u64 = PAGE_BYTES as u64;

/// What a write does to one page, or to a run of pages.
pub(super) enum PageWrite<'a> {
    /// Changes some bytes of a page.
    Within { block: u32, start: usize, bytes: &'a [u8] },
    /// Makes a run of pages zeros.
    Zeros { block: u32, count: u32 },
    /// Replaces a run of pages.
    Whole { block: u32, crcs: Vec<u32>, bytes: &'a [u8] },
}

/// Splits a write of `data` at `offset` at the boundaries of pages, and computes the checksums.
pub(super) fn split_at_pages(offset: u64, data: &[u8]) -> TreeResult<Vec<PageWrite<'_>>> {
    let mut writes = Vec::new();
    let (mut block, mut rest) = (block_number(offset / PAGE)?, data);
    let start = bytes_len(offset % PAGE)?;
    if start > 0 {
        let (bytes, behind) = rest.split_at(rest.len().min(PAGE_BYTES - start));
        writes.push(PageWrite::Within { block, start, bytes });
        (block, rest) = (block + 1, behind);
    }
    // A run of pages is one page write as long as the pages are all zeros or all not.
    while rest.len() >= PAGE_BYTES {
        let zeros = is_zeros(&rest[..PAGE_BYTES]);
        let count =
            rest.chunks_exact(PAGE_BYTES).take_while(|page| is_zeros(page) == zeros).count();
        let (bytes, behind) = rest.split_at(count * PAGE_BYTES);
        let blocks = block_number(count as u64)?;
        writes.push(if zeros {
            PageWrite::Zeros { block, count: blocks }
        } else {
            PageWrite::Whole {
                block,
                crcs: bytes.chunks_exact(PAGE_BYTES).map(crc32fast::hash).collect(),
                bytes,
            }
        });
        (block, rest) = (block + blocks, behind);
    }
    if !rest.is_empty() {
        writes.push(PageWrite::Within { block, start: 0, bytes: rest });
    }
    Ok(writes)
}

fn is_zeros(page: &[u8]) -> bool {
    // A comparison of slices stops at the first word that differs, which in a page in use is its
    // header.
    *page == [0; PAGE_BYTES]
}

/// A block as a record names it.
pub(super) fn block_number(block: u64) -> TreeResult<u32> {
    u32::try_from(block).map_err(|_| Errno::EFBIG.into())
}

/// A length in memory.
pub(super) fn bytes_len(length: u64) -> TreeResult<usize> {
    usize::try_from(length).map_err(|_| Errno::EFBIG.into())
}

/// Makes the bytes beyond `size` zeros, in whole blocks and within the last block that stays.
pub(super) fn shorten(record: &mut RecordBuilder<'_, '_>, inode: u64, size: u64) -> TreeResult<()> {
    let kept = size.div_ceil(PAGE);
    let rest = bytes_len(size % PAGE)?;
    if rest > 0 {
        let block = block_number(kept - 1)?;
        let mut page = record.read_block(inode, block)?;
        if page[rest..].iter().any(|byte| *byte != 0) {
            page[rest..].fill(0);
            record.push_pages(inode, block, vec![crc32fast::hash(&page)], Cow::Owned(page));
        }
    }
    record.push(Change::Zeros { inode, block: block_number(kept)?, count: TO_END });
    Ok(())
}

/// Writes some bytes of a page.
pub(super) fn write_within(
    record: &mut RecordBuilder<'_, '_>,
    inode: u64,
    block: u32,
    start: usize,
    bytes: &[u8],
) -> TreeResult<()> {
    let mut page = record.read_block(inode, block)?;
    page[start..start + bytes.len()].copy_from_slice(bytes);
    record.push_pages(inode, block, vec![crc32fast::hash(&page)], Cow::Owned(page));
    Ok(())
}
