//! What is changed of a file's pages: a write, cut at page boundaries, and the cutting off of its
//! end.

use crate::fs::tree::Result;
use crate::storage::log::format::{Change, TO_END};
use crate::storage::page::PAGE_BYTES;
use crate::storage::timeline::append::RecordBuilder;
use nix::errno::Errno;
use std::borrow::Cow;

const PAGE: u64 = PAGE_BYTES as u64;

/// What is written to one page, or to some that follow one another.
pub(super) enum Piece<'a> {
    Part { block: u32, start: usize, bytes: &'a [u8] },
    Zeros { block: u32, count: u32 },
    Pages { block: u32, crcs: Vec<u32>, bytes: &'a [u8] },
}

/// The pieces of `data` at `offset`, with their checksums.
pub(super) fn pieces(offset: u64, data: &[u8]) -> Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let (mut block, mut rest) = (block_number(offset / PAGE)?, data);
    let start = bytes_len(offset % PAGE)?;
    if start > 0 {
        let (bytes, behind) = rest.split_at(rest.len().min(PAGE_BYTES - start));
        pieces.push(Piece::Part { block, start, bytes });
        (block, rest) = (block + 1, behind);
    }
    // A run of pages is one piece as long as they are all zeros or all not.
    while rest.len() >= PAGE_BYTES {
        let zeros = is_zeros(&rest[..PAGE_BYTES]);
        let count =
            rest.chunks_exact(PAGE_BYTES).take_while(|page| is_zeros(page) == zeros).count();
        let (bytes, behind) = rest.split_at(count * PAGE_BYTES);
        let blocks = block_number(count as u64)?;
        pieces.push(if zeros {
            Piece::Zeros { block, count: blocks }
        } else {
            Piece::Pages {
                block,
                crcs: bytes.chunks_exact(PAGE_BYTES).map(crc32fast::hash).collect(),
                bytes,
            }
        });
        (block, rest) = (block + blocks, behind);
    }
    if !rest.is_empty() {
        pieces.push(Piece::Part { block, start: 0, bytes: rest });
    }
    Ok(pieces)
}

fn is_zeros(page: &[u8]) -> bool {
    // A comparison of slices stops at the first word that differs, which in a page in use is its
    // header.
    *page == [0; PAGE_BYTES]
}

/// A block as a record names it.
pub(super) fn block_number(block: u64) -> Result<u32> {
    u32::try_from(block).map_err(|_| Errno::EFBIG.into())
}

/// A length in memory.
pub(super) fn bytes_len(length: u64) -> Result<usize> {
    usize::try_from(length).map_err(|_| Errno::EFBIG.into())
}

/// Drops what lies beyond `size`, in whole blocks and within the last one.
pub(super) fn shorten(record: &mut RecordBuilder<'_, '_>, inode: u64, size: u64) -> Result<()> {
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

/// Writes to a part of a page.
pub(super) fn write_part(
    record: &mut RecordBuilder<'_, '_>,
    inode: u64,
    block: u32,
    start: usize,
    bytes: &[u8],
) -> Result<()> {
    let mut page = record.read_block(inode, block)?;
    page[start..start + bytes.len()].copy_from_slice(bytes);
    record.push_pages(inode, block, vec![crc32fast::hash(&page)], Cow::Owned(page));
    Ok(())
}
