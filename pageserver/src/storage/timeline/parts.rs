//! Pages written in parts: a page of the write-ahead log grows with every commit until it is full.
//!
//! The kernel hands over the whole page each time, though all but a few hundred bytes are as
//! before. The lane remembers the page that it was last given and logs only what changed, so a
//! commit writes about as many bytes as Postgres logged. After [`MAX_PARTS`] parts the page is
//! written whole, which bounds what a read gathers.

use crate::error::{Error, Result};
use crate::storage::disk::DiskFile;
use crate::storage::index::{Block, Index, Parts};
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::MAX_PART_BYTES;
use crate::storage::log::record::LaneFileId;
use crate::storage::page::PAGE_BYTES;
use std::ops::Range;
use std::sync::Arc;

/// Most parts that a read has to put together.
const MAX_PARTS: usize = 32;

/// A page as the lane holds it at the head.
pub(in crate::storage) struct HotPage {
    pub(super) inode: u64,
    pub(super) block: u32,
    pub(super) bytes: Vec<u8>,
}

/// What of `page`, the next contents of a block, has to be logged; `None` if all of it should be.
pub(super) fn changed(
    index: &Index,
    hot: Option<&HotPage>,
    (inode, block): (u64, u32),
    page: &[u8],
) -> Option<Range<usize>> {
    const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    assert_eq!(page.len(), PAGE_BYTES, "block {block} of inode {inode:#x}");
    // Recovery replays what is being sealed along with the log, so a part over nothing must have
    // nothing there either.
    if index.is_frozen(inode, block) {
        return None;
    }
    let before = match index.newest_block(inode, block) {
        // What an ancestor has does not count: the lane begins anew.
        None | Some(Block::Zeros) => &ZEROS[..],
        Some(Block::Parts(parts)) if parts.parts.len() >= MAX_PARTS => return None,
        Some(_) => &hot.filter(|hot| (hot.inode, hot.block) == (inode, block))?.bytes,
    };
    let range = difference(before, page);
    (1..=MAX_PART_BYTES).contains(&range.len()).then_some(range)
}

/// The range outside of which both are the same.
fn difference(before: &[u8], after: &[u8]) -> Range<usize> {
    const STEP: usize = 64;
    let same = |at: &usize| before[*at..at + STEP] == after[*at..at + STEP];
    let steps = || (0..PAGE_BYTES).step_by(STEP);
    let first = steps().take_while(same).count() * STEP;
    let last = PAGE_BYTES - steps().rev().take_while(same).count() * STEP;
    let first = (first..PAGE_BYTES).find(|at| before[*at] != after[*at]).unwrap_or(PAGE_BYTES);
    let last = (first..last).rev().find(|at| before[*at] != after[*at]).map_or(first, |at| at + 1);
    first..last
}

/// The files that hold a page's parts: that of its base, if it has one, then that of each part.
pub(in crate::storage) fn files(parts: &Parts) -> impl Iterator<Item = u32> {
    let base = parts.base.iter().map(|base| base.sequence);
    base.chain(parts.parts.iter().map(|part| part.sequence))
}

/// Reads and checks a page, a block of an inode, from its [`files`], of which `last` is the last.
pub(in crate::storage) fn read(
    files: &[Arc<dyn DiskFile>],
    last: LaneFileId,
    parts: &Parts,
    (inode, block): (u64, u32),
    page: &mut [u8],
) -> Result<()> {
    assert_eq!(files.len(), self::files(parts).count(), "a file for each part");
    let name = || LaneFiles::describe(last);
    let failed = |e| {
        Error::io(
            format!("read the parts of block {block} of inode {inode:#x} from {}", name()),
            &e,
        )
    };
    let mut files = files.iter();
    let mut fill = |offset: u32, bytes: &mut [u8]| match files.next() {
        Some(file) => file.read_exact_at(bytes, u64::from(offset)).map_err(failed),
        None => unreachable!("there is a file for each part"),
    };
    match &parts.base {
        Some(base) => fill(base.offset, page)?,
        None => page.fill(0),
    }
    for part in &parts.parts {
        let start = usize::from(part.start);
        fill(part.offset, &mut page[start..start + usize::from(part.length)])?;
    }
    if crc32fast::hash(page) == parts.crc {
        return Ok(());
    }
    let offset = parts.parts[parts.parts.len() - 1].offset;
    Err(Error::corrupt(format!(
        "{} at {offset}: block {block} of inode {inode:#x}, written in parts, is not what was \
         written",
        name()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_as_short_as_it_can_be() {
        let before = vec![7; PAGE_BYTES];
        assert!(difference(&before, &before).is_empty());
        for (start, end) in
            [(0, 1), (0, PAGE_BYTES), (63, 64), (63, 65), (64, 128), (100, 4000), (8191, 8192)]
        {
            let mut after = before.clone();
            (after[start], after[end - 1]) = (8, 9);
            assert_eq!(difference(&before, &after), start..end);
        }
    }
}
