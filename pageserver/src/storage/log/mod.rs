//! One lane: an append-only log in a row of files.
//!
//! The log appends records and says which files a sync must reach; it keeps no index and takes no
//! locks. Bytes once appended never change, so a reader needs only the file. Recovery of a log is
//! in [`crate::storage::log::recovery`].

pub mod files;
pub mod format;
pub mod names;
pub mod record;
pub mod recovery;
mod spares;

use crate::error::{Error, Result};
use crate::storage::disk::DiskFile;
use crate::storage::log::files::{LaneFiles, Leaving};
use crate::storage::log::format::Change;
use crate::storage::log::names::{DATA_FILE_BYTES, WAL_FILE_BYTES};
use crate::storage::log::record::{FILE_HEADER_BYTES, LaneFileId, RECORD_ALIGNMENT};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, TimelineId};
use crate::storage::sabotage::{self, Defect};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a lane's log begins: behind what is sealed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// Position of the newest record that is sealed, 0 for none.
    pub sealed: Position,
    /// First file of the log.
    pub sequence: u32,
}

/// Where the next record goes.
struct LogTail {
    sequence: u32,
    file: Arc<dyn DiskFile>,
    salt: u32,
    offset: u64,
    /// Whether the file was written out before its use.
    written_out: bool,
}

/// What must be synced for everything appended so far to be durable.
pub struct SyncWork {
    files: Vec<Arc<dyn DiskFile>>,
    directory: bool,
    /// Durable up to here afterwards.
    pub target: Position,
}

impl SyncWork {
    /// Syncs contents first, then the names that lead to them.
    pub fn run(&self, lane_files: &LaneFiles) -> Result<()> {
        lane_files.count_sync();
        for file in self.files.iter().filter(|_| !sabotage::active(Defect::LaneSync)) {
            file.sync().map_err(|e| Error::io("sync a lane file", &e))?;
        }
        if self.directory && !sabotage::active(Defect::DirectorySync) {
            lane_files.sync_directory()
        } else {
            Ok(())
        }
    }
}

/// The log of one lane.
///
/// Invariants: positions strictly increase; `tail` is the file of the highest sequence; files but
/// the tail are full.
pub struct Log {
    lane_files: Arc<LaneFiles>,
    timeline: TimelineId,
    pub(in crate::storage) lane: LaneKind,
    pub(in crate::storage) files: BTreeMap<u32, Arc<dyn DiskFile>>,
    tail: Option<LogTail>,
    last: Position,
    /// First file that counts; those before are sealed and gone.
    first: u32,
    /// Files before the tail with bytes that no sync has reached.
    unsynced: Vec<Arc<dyn DiskFile>>,
    tail_unsynced: bool,
    directory_unsynced: bool,
    unsynced_bytes: u64,
}

impl Log {
    /// The log of a lane that has no files yet and begins at `start`.
    pub fn new(
        lane_files: Arc<LaneFiles>,
        timeline: TimelineId,
        lane: LaneKind,
        start: Start,
    ) -> Self {
        Self {
            lane_files,
            timeline,
            lane,
            files: BTreeMap::new(),
            tail: None,
            last: start.sealed,
            first: start.sequence,
            unsynced: Vec::new(),
            tail_unsynced: false,
            directory_unsynced: false,
            unsynced_bytes: 0,
        }
    }

    /// Position of the newest record, 0 if there is none.
    pub fn last(&self) -> Position {
        self.last
    }

    /// Bytes appended since the last sync began.
    pub fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// Bytes of all files of the lane, with the room that was made beforehand, without what is only
    /// in memory so far.
    pub fn bytes(&self) -> u64 {
        self.list().iter().map(|(_, length)| length).sum()
    }

    /// Bytes that were appended, as if all files but the tail were full.
    pub fn appended_bytes(&self) -> u64 {
        let length = match self.lane {
            LaneKind::Wal => WAL_FILE_BYTES,
            LaneKind::Data => DATA_FILE_BYTES,
        };
        let others = self.files.len() - usize::from(self.tail.is_some());
        others as u64 * length + self.tail.as_ref().map_or(0, |tail| tail.offset)
    }

    /// All files with their lengths.
    pub fn list(&self) -> Vec<(LaneFileId, u64)> {
        // A length that cannot be read keeps the file out of the pool and of sums.
        self.files
            .iter()
            .map(|(sequence, file)| (self.id(*sequence), file.len_bytes().unwrap_or(0)))
            .collect()
    }

    /// Gives up what is not on the disk. Returns all files with their lengths, as 0 that of one to
    /// which a write failed, so that nobody uses it again.
    pub fn retire(&self) -> Vec<(LaneFileId, u64)> {
        let mut files = self.list();
        for ((_, length), file) in files.iter_mut().zip(self.files.values()) {
            if !file.discard() {
                *length = 0;
            }
        }
        files
    }

    /// The file with this sequence number, which an index entry of this log named.
    pub fn file(&self, sequence: u32) -> &Arc<dyn DiskFile> {
        &self.files[&sequence]
    }

    pub(in crate::storage) fn id(&self, sequence: u32) -> LaneFileId {
        LaneFileId { timeline: self.timeline, lane: self.lane, sequence }
    }

    /// Path of the file with this sequence number, for messages.
    pub fn describe(&self, sequence: u32) -> String {
        LaneFiles::describe(self.id(sequence))
    }

    /// Appends a record of `changes` and the `pages` they name, each a whole page or a run of them.
    /// Returns the file and the offset of the record. After an error nothing more may be appended.
    pub fn append(
        &mut self,
        position: Position,
        durable: Position,
        changes: &[Change],
        pages: &[&[u8]],
    ) -> Result<(u32, usize)> {
        assert!(position > self.last, "position {position} after {}", self.last);
        let page_bytes: usize = pages.iter().map(|run| run.len()).sum();
        assert!(page_bytes.is_multiple_of(PAGE_BYTES), "{page_bytes} bytes are no whole pages");
        let id = self.tail.as_ref().map(|tail| tail.salt);
        let encode = |salt| {
            record::encode_record(
                salt,
                position,
                self.last,
                durable,
                changes,
                page_bytes / PAGE_BYTES,
            )
        };
        let length = |head: &[u8]| (head.len() + page_bytes) as u64;
        let mut head = id.map(encode).unwrap_or_default();
        if head.is_empty() || !self.tail_holds(length(&head)) {
            let sequence = self.next_sequence();
            head = encode(record::salt(self.lane_files.store(), self.id(sequence)));
            self.begin_file(sequence)?;
        }
        let Some(tail) = &mut self.tail else { unreachable!("a file was begun above") };
        let (sequence, offset) = (tail.sequence, tail.offset);
        assert!(offset.is_multiple_of(RECORD_ALIGNMENT as u64), "a record at {offset}");
        let mut parts = Vec::with_capacity(1 + pages.len());
        parts.push(head.as_slice());
        parts.extend_from_slice(pages);
        if let Err(error) = tail.file.write_all_at(&parts, offset) {
            return Err(Error::io(
                format!("append to {} at {offset}", self.describe(sequence)),
                &error,
            ));
        }
        tail.offset += length(&head);
        self.unsynced_bytes += length(&head);
        self.tail_unsynced = true;
        self.last = position;
        Ok((sequence, usize::try_from(offset).unwrap_or(usize::MAX)))
    }

    fn next_sequence(&self) -> u32 {
        self.files.keys().next_back().map_or(self.first, |last| last + 1)
    }

    /// Ends the tail, so that what is appended from now on goes to other files. Returns all files
    /// so far, and where the log goes on.
    pub fn freeze(&mut self) -> (BTreeMap<u32, Arc<dyn DiskFile>>, Start) {
        self.leave_tail();
        (self.files.clone(), Start { sealed: self.last, sequence: self.next_sequence() })
    }

    /// Forgets the files before `start`, which are sealed; returns them with their lengths.
    pub fn forget_before(&mut self, start: Start) -> Vec<Leaving> {
        let (first, last) = (self.first, self.last);
        assert!(start.sequence >= first, "forgets before {start:?}, begins at file {first}");
        assert!(start.sealed <= last, "forgets before {start:?}, ends at {last}");
        let kept = self.files.split_off(&start.sequence);
        let gone = std::mem::replace(&mut self.files, kept);
        self.first = start.sequence;
        // The layer is durable, so these need no sync any more.
        self.unsynced.retain(|file| !gone.values().any(|gone| Arc::ptr_eq(file, gone)));
        let with_length = |(sequence, file): (u32, Arc<dyn DiskFile>)| {
            (self.id(sequence), file.len_bytes().unwrap_or(0), file)
        };
        gone.into_iter().map(with_length).collect()
    }

    /// Whether there is nothing behind what is sealed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn tail_holds(&self, length: u64) -> bool {
        let limit = match self.lane {
            LaneKind::Wal => WAL_FILE_BYTES,
            LaneKind::Data => DATA_FILE_BYTES,
        };
        // A write-ahead lane gets away from a file that grows, where each sync is dear, as soon as
        // it can.
        let stay = |tail: &LogTail| {
            self.lane == LaneKind::Data || tail.written_out || !self.lane_files.has_spare()
        };
        self.tail.as_ref().is_some_and(|tail| tail.offset + length <= limit && stay(tail))
    }

    /// The tail is not written to any more.
    fn leave_tail(&mut self) {
        let Some(old) = self.tail.take() else { return };
        old.file.finish();
        if std::mem::take(&mut self.tail_unsynced) {
            self.unsynced.push(old.file);
        }
    }

    fn begin_file(&mut self, sequence: u32) -> Result<()> {
        let id = self.id(sequence);
        let (file, written_out) = self.lane_files.create_file(id)?;
        let store = self.lane_files.store();
        let header = record::encode_file_header(store, id);
        if let Err(error) = file.write_all_at(&[&header], 0) {
            // The timeline is latched now; its next opening must not find half a file of it in the
            // way.
            let _ = self.lane_files.remove(id);
            return Err(Error::io(format!("begin {}", LaneFiles::describe(id)), &error));
        }
        let newest = self.files.keys().next_back();
        assert!(newest.is_none_or(|newest| *newest < sequence), "file {sequence} after {newest:?}");
        self.leave_tail();
        self.directory_unsynced = true;
        self.tail_unsynced = true;
        self.files.insert(sequence, Arc::clone(&file));
        let salt = record::salt(store, id);
        self.tail =
            Some(LogTail { sequence, file, salt, offset: FILE_HEADER_BYTES as u64, written_out });
        Ok(())
    }

    /// What a sync of everything appended so far has to reach; counts as begun. If it fails the
    /// caller must stop using the log: what did not become durable is not remembered here.
    pub fn begin_sync(&mut self) -> SyncWork {
        assert!(!self.tail_unsynced || self.tail.is_some(), "bytes of no file are to be synced");
        let mut files = std::mem::take(&mut self.unsynced);
        if let Some(tail) = &self.tail
            && self.tail_unsynced
        {
            files.push(Arc::clone(&tail.file));
        }
        self.tail_unsynced = false;
        self.unsynced_bytes = 0;
        SyncWork {
            files,
            directory: std::mem::take(&mut self.directory_unsynced),
            target: self.last,
        }
    }
}
