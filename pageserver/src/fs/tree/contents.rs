//! The contents of files: reading, writing, cutting off, and making durable.

use crate::fs::error::{TreeError, TreeResult, temporary};
use crate::fs::tree::pages::{PageWrite, block_number, bytes_len, split_at_pages, write_within};
use crate::fs::tree::{MAX_FILE_BYTES, Tree, Wanted};
use crate::locks::lock;
use crate::storage::log::format::{Attributes, Change, MAX_ZEROS};
use crate::storage::page::{PAGE_BYTES, lane_of};
use crate::storage::timeline::syncer::Done;
use nix::errno::Errno;
use std::borrow::Cow;

const PAGE: u64 = PAGE_BYTES as u64;

/// Most bytes that one call may turn into a hole.
const MAX_PUNCH_BYTES: u64 = MAX_ZEROS as u64 * PAGE;

impl Tree {
    /// Up to `length` bytes at `offset`; fewer at the end of the file.
    pub fn read(
        &self,
        inode: u64,
        offset: u64,
        length: u32,
    ) -> TreeResult<(Vec<u8>, std::ops::Range<usize>)> {
        let size = self.timeline.attributes(inode).ok_or(Errno::ESTALE)?.size;
        let end = offset.saturating_add(u64::from(length)).min(size);
        if offset >= end {
            return Ok((Vec::new(), 0..0));
        }
        if let Some(contents) = self.scratch.contents(inode) {
            let mut buffer = vec![0; bytes_len(end - offset)?];
            contents.read(&mut buffer, offset).map_err(temporary("read"))?;
            let length = buffer.len();
            return Ok((buffer, 0..length));
        }
        let (first, last) = (offset / PAGE, (end - 1) / PAGE);
        let mut buffer = vec![0; bytes_len((last - first + 1) * PAGE)?];
        self.timeline.read_blocks(inode, block_number(first)?, &mut buffer)?;
        let start = bytes_len(offset % PAGE)?;
        Ok((buffer, start..start + bytes_len(end - offset)?))
    }

    /// Writes `data` at `offset`.
    pub fn write(&self, inode: u64, offset: u64, data: &[u8]) -> TreeResult<()> {
        let written = self.write_pages(inode, offset, data);
        written.map_err(|error| match error {
            TreeError::Store(error) => TreeError::Store(self.timeline.latch_failed_write(error)),
            errno => errno,
        })
    }

    fn write_pages(&self, inode: u64, offset: u64, data: &[u8]) -> TreeResult<()> {
        let end = offset + data.len() as u64;
        if end > MAX_FILE_BYTES {
            return Err(Errno::EFBIG.into());
        }
        if let Some(contents) = self.scratch.contents(inode) {
            contents.write(data, offset).map_err(temporary("write"))?;
            return self.lengthen(inode, end);
        }
        // Checksums are computed before the lane's lock is taken.
        let writes = split_at_pages(offset, data)?;
        self.timeline.append(lane_of(inode), |record| {
            let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
            for write in writes {
                match write {
                    PageWrite::Within { block, start, bytes } => {
                        write_within(record, inode, block, start, bytes)?
                    }
                    PageWrite::Zeros { block, count } => {
                        // Beyond the end everything reads as zeros already.
                        let end = block_number(attributes.size.div_ceil(PAGE))?;
                        let count = count.min(end.saturating_sub(block));
                        if count > 0 {
                            record.push(Change::Zeros { inode, block, count });
                        }
                    }
                    PageWrite::Whole { block, crcs, bytes } => {
                        record.push_pages(inode, block, crcs, Cow::Borrowed(bytes));
                    }
                }
            }
            if end > attributes.size {
                attributes.size = end;
                record.push_size(inode, attributes);
            }
            Ok(())
        })
    }

    /// Notes that a file has contents up to `end`.
    fn lengthen(&self, inode: u64, end: u64) -> TreeResult<()> {
        if self.timeline.attributes(inode).ok_or(Errno::ESTALE)?.size >= end {
            return Ok(());
        }
        self.timeline.append(lane_of(inode), |record| {
            let attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
            record.push_size(inode, Attributes { size: end.max(attributes.size), ..attributes });
            Ok(())
        })
    }

    /// Makes sure the file is at least `end` bytes long. Space is not set aside: the log takes it
    /// when written.
    pub fn extend(&self, inode: u64, end: u64) -> TreeResult<()> {
        let size = self.attributes(inode)?.size;
        if end > size {
            self.set_attributes(inode, &Wanted { size: Some(end), ..Wanted::default() })?;
        }
        Ok(())
    }

    /// Makes `length` bytes at `offset` read as zeros without changing the file's length.
    pub fn punch(&self, inode: u64, offset: u64, length: u64) -> TreeResult<()> {
        let size = self.attributes(inode)?.size;
        let end = offset.saturating_add(length).min(size);
        // The index keeps an entry for each block, so the length is bounded: Postgres's files are
        // no longer.
        if end.saturating_sub(offset) > MAX_PUNCH_BYTES || self.scratch.contents(inode).is_some() {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let zeros = [0; PAGE_BYTES];
        let mut at = offset;
        while at < end {
            let whole = (end - at) / PAGE;
            if at.is_multiple_of(PAGE) && whole > 0 {
                let (block, count) = (block_number(at / PAGE)?, block_number(whole)?);
                self.timeline.append(lane_of(inode), |record| -> TreeResult<()> {
                    record.push(Change::Zeros { inode, block, count });
                    Ok(())
                })?;
                at += whole * PAGE;
            } else {
                let part = (PAGE - at % PAGE).min(end - at);
                self.write(inode, at, &zeros[..bytes_len(part)?])?;
                at += part;
            }
        }
        Ok(())
    }

    /// Makes a file's contents durable, and its times too unless `data_only`; calls `done` then. Of
    /// a temporary file there is nothing to make durable.
    pub fn sync(&self, inode: u64, data_only: bool, done: Done) {
        if self.scratch.contents(inode).is_some() {
            return done(Ok(()));
        }
        let lane = lane_of(inode);
        let times = if data_only { None } else { lock(&self.times).remove(&inode) };
        if let Some(times) = times
            && let Err(error) = self.put_times(inode, times)
        {
            return done(Err(error));
        }
        self.timeline.sync(lane, done);
    }

    fn put_times(
        &self,
        inode: u64,
        (modified_ns, changed_ns): (i64, i64),
    ) -> crate::error::Result<()> {
        self.timeline.append(lane_of(inode), |record| {
            // A removed file has no times to keep.
            if let Some(attributes) = record.attributes(inode) {
                let attributes = Attributes { modified_ns, changed_ns, ..attributes };
                record.push(Change::Attributes { inode, attributes });
            }
            Ok(())
        })
    }

    /// Puts all times that the kernel reported into the log, before a clean stop.
    pub fn put_all_times(&self) -> crate::error::Result<()> {
        let all = std::mem::take(&mut *lock(&self.times));
        all.into_iter().try_for_each(|(inode, times)| self.put_times(inode, times))
    }

    /// Ends an inode without a name that the kernel has forgotten.
    pub fn reap(&self, inode: u64) -> TreeResult<()> {
        lock(&self.times).remove(&inode);
        self.scratch.forget(inode);
        self.timeline.append(lane_of(inode), |record| {
            if record.attributes(inode).is_some_and(|attributes| attributes.links == 0) {
                record.push(Change::Gone { inode });
            }
            Ok(())
        })
    }
}
