//! Recovery of a lane: replays its files up to the first record that does not check.
//!
//! What lies behind that record is the lost tail of a crash, unless something proves that it had
//! been synced: a newer record of this lane that says so, or a child that was forked from there.
//! Then acknowledged commits are damaged, and the lane refuses to open, naming file and offset.
//! Pages of records that were synced are checked when they are read; those of the unsynced tail are
//! checked here, because a crash may have torn them.

use crate::error::{Error, Result};
use crate::storage::disk::DiskFile;
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::{Change, MAX_CHANGES_BYTES};
use crate::storage::log::names::WAL_FILE_BYTES;
use crate::storage::log::record::{self, FILE_HEADER_BYTES, HeaderFault, LaneFileId, RecordHeader};
use crate::storage::log::{Log, LogTail, Start};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, TimelineId};
use crate::storage::sabotage::{self, Defect};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes read at once while scanning.
const WINDOW_BYTES: usize = 256 << 10;
/// Header and changes of the longest record.
const MAX_HEAD_BYTES: usize = record::RECORD_HEADER_BYTES + MAX_CHANGES_BYTES;

/// A record as found on disk.
pub struct FoundRecord {
    /// The fixed part.
    pub header: RecordHeader,
    /// What it changes.
    pub changes: Vec<Change>,
    /// File of the lane.
    pub sequence: u32,
    /// Where the record begins in the file.
    pub offset: u64,
}

impl FoundRecord {
    /// Where its first page is in the file.
    pub fn pages_offset(&self) -> usize {
        usize::try_from(self.offset).unwrap_or(usize::MAX) + self.header.pages_offset()
    }
}

/// Reads records of one file, front to back.
struct Scanner {
    file: Arc<dyn DiskFile>,
    salt: u32,
    length: u64,
    offset: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Scanner {
    /// `None` if the file has no valid header: then no sync has reached it, or
    /// [`Replay::refuse_loss`] finds out.
    fn open(lane_files: &LaneFiles, id: LaneFileId) -> Result<Option<Self>> {
        match Self::open_any(lane_files, id)? {
            (scanner, Ok(())) => Ok(Some(scanner)),
            (_, Err(HeaderFault::Version(version))) => Err(Error::corrupt(format!(
                "{} has format version {version}, this build reads {}: use the build that wrote \
                 it, or newer",
                LaneFiles::describe(id),
                record::FORMAT_VERSION
            ))),
            (_, Err(HeaderFault::Damaged)) => Ok(None),
        }
    }

    fn open_any(
        lane_files: &LaneFiles,
        id: LaneFileId,
    ) -> Result<(Self, std::result::Result<(), HeaderFault>)> {
        let file = lane_files.open_file(id)?;
        let length = file.len_bytes().map_err(|e| Error::io("measure a lane file", &e))?;
        if length > u64::from(u32::MAX) {
            let name = LaneFiles::describe(id);
            return Err(Error::corrupt(format!("{name} is longer than any lane file: {length}")));
        }
        let mut scanner = Scanner {
            file,
            salt: record::salt(lane_files.store(), id),
            length,
            offset: FILE_HEADER_BYTES as u64,
            window: Vec::new(),
            window_start: 0,
        };
        let header =
            record::check_file_header(scanner.bytes(0, FILE_HEADER_BYTES)?, lane_files.store(), id);
        Ok((scanner, header))
    }

    /// Up to `count` bytes at `offset`, fewer at the end of the file.
    fn bytes(&mut self, offset: u64, count: usize) -> Result<&[u8]> {
        let end = (offset + count as u64).min(self.length);
        let held = self.window_start..self.window_start + self.window.len() as u64;
        if !(held.contains(&offset) && end <= held.end) {
            let wanted = (self.length.saturating_sub(offset)).min(count.max(WINDOW_BYTES) as u64);
            self.window.resize(usize::try_from(wanted).unwrap_or(WINDOW_BYTES), 0);
            let read = self.file.read_exact_at(&mut self.window, offset);
            read.map_err(|e| Error::io("read a lane file", &e))?;
            self.window_start = offset;
        }
        let start = usize::try_from(offset - self.window_start).unwrap_or(0);
        Ok(&self.window[start..start + usize::try_from(end.saturating_sub(offset)).unwrap_or(0)])
    }

    /// The record at `offset` if one checks there.
    fn record_at(&mut self, offset: u64) -> Result<Option<(RecordHeader, Vec<u8>)>> {
        let Some(header) = record::decode_header(self.bytes(offset, record::RECORD_HEADER_BYTES)?)
        else {
            return Ok(None);
        };
        if offset + header.total_bytes() as u64 > self.length {
            return Ok(None);
        }
        let (salt, head) =
            (self.salt, self.bytes(offset, header.pages_offset().min(MAX_HEAD_BYTES))?);
        let checks = record::record_checks(&header, salt, head);
        Ok(checks.then(|| (header, head[record::RECORD_HEADER_BYTES..].to_vec())))
    }

    /// What the window holds from `offset` on, at least a record's header; reads on if it holds
    /// less.
    fn held_from(&mut self, offset: u64) -> Result<&[u8]> {
        self.bytes(offset, record::RECORD_HEADER_BYTES)?;
        let start = usize::try_from(offset - self.window_start).unwrap_or(0);
        Ok(&self.window[start..])
    }

    /// The newest position that any record from `offset` on claims was synced, of records newer
    /// than `last`.
    fn claim_beyond(&mut self, mut offset: u64, last: Position) -> Result<Position> {
        let mut claim = 0;
        while offset + (record::RECORD_HEADER_BYTES as u64) <= self.length {
            let chunk = self.held_from(offset)?;
            let starts = (0..chunk.len()).step_by(record::RECORD_ALIGNMENT);
            let magic = starts.clone().find(|at| chunk[*at..].starts_with(&record::RECORD_MAGIC));
            let Some(at) = magic else {
                offset += chunk.len().next_multiple_of(record::RECORD_ALIGNMENT) as u64;
                continue;
            };
            offset += at as u64;
            if let Some((header, _)) = self.record_at(offset)?
                && header.position > last
            {
                claim = claim.max(header.durable);
            }
            // What is searched next is mostly in the window already.
            offset += record::RECORD_ALIGNMENT as u64;
        }
        Ok(claim)
    }
}

/// Where the readable part of a lane ends.
#[derive(Clone, Copy)]
struct LogEnd {
    sequence: u32,
    offset: u64,
    last: Position,
}

/// What receives the records that count, in order, with the file they are in.
pub type Visitor<'a> = dyn FnMut(&FoundRecord, &Arc<dyn DiskFile>) -> Result<()> + 'a;

/// A pass over the files of a lane. Records wait in `pending` until a later one, or the caller,
/// proves them synced.
struct Replay<'a, 'v> {
    lane_files: &'a LaneFiles,
    visit: &'a mut Visitor<'v>,
    durable: Position,
    pending: VecDeque<(FoundRecord, Arc<dyn DiskFile>)>,
    end: LogEnd,
}

impl Replay<'_, '_> {
    /// Takes in the records of one file; false if the log does not go on in it.
    fn file(&mut self, id: LaneFileId) -> Result<bool> {
        let Some(mut scanner) = Scanner::open(self.lane_files, id)? else {
            return Ok(false);
        };
        let before = self.end.last;
        while let Some((header, changes)) = scanner.record_at(scanner.offset)? {
            if header.previous != self.end.last {
                break;
            }
            let offset = scanner.offset;
            let changes = record::decode_changes(&header, &changes).map_err(|reason| {
                Error::corrupt(format!("{} at {offset}: {reason}", LaneFiles::describe(id)))
            })?;
            self.durable = self.durable.max(header.durable);
            let found = FoundRecord { header, changes, sequence: id.sequence, offset };
            self.pending.push_back((found, Arc::clone(&scanner.file)));
            self.release()?;
            scanner.offset += header.total_bytes() as u64;
            self.end =
                LogEnd { sequence: id.sequence, offset: scanner.offset, last: header.position };
        }
        Ok(self.end.last != before)
    }

    /// Hands on the records that are known to be synced.
    fn release(&mut self) -> Result<()> {
        while self.pending.front().is_some_and(|(found, _)| found.header.position <= self.durable) {
            if let Some((found, file)) = self.pending.pop_front() {
                (self.visit)(&found, &file)?;
            }
        }
        Ok(())
    }

    /// Hands on the unsynced records up to the first whose pages do not check, and ends the log
    /// there.
    fn finish(&mut self) -> Result<()> {
        while let Some((found, file)) = self.pending.pop_front() {
            if first_bad_page(&found, &*file)?.is_some() {
                self.end = LogEnd {
                    sequence: found.sequence,
                    offset: found.offset,
                    last: found.header.previous,
                };
                self.pending.clear();
                return Ok(());
            }
            (self.visit)(&found, &file)?;
        }
        Ok(())
    }

    /// Refuses a lane that ends before what is known to have been synced.
    fn refuse_loss(
        &self,
        (timeline, lane): (TimelineId, LaneKind),
        ids: &[LaneFileId],
    ) -> Result<()> {
        let mut synced = self.durable;
        for id in ids.iter().filter(|id| id.sequence >= self.end.sequence) {
            let (mut scanner, _) = Scanner::open_any(self.lane_files, *id)?;
            let from = if id.sequence == self.end.sequence {
                self.end.offset
            } else {
                FILE_HEADER_BYTES as u64
            };
            synced = synced.max(scanner.claim_beyond(from, self.end.last)?);
        }
        if synced <= self.end.last || sabotage::active(Defect::LaneLoss) {
            return Ok(());
        }
        let id = LaneFileId { timeline, lane, sequence: self.end.sequence };
        Err(Error::corrupt(format!(
            "{} is damaged at offset {}: the log ends at position {} there, but was synced up to \
             {synced}; restore the file from a backup of the store",
            LaneFiles::describe(id),
            self.end.offset,
            self.end.last,
        )))
    }
}

/// Block index within the record of its first page that is not what was written, if any.
pub fn first_bad_page(found: &FoundRecord, file: &dyn DiskFile) -> Result<Option<usize>> {
    let crcs = found.changes.iter().filter_map(|change| match change {
        Change::Pages { crcs, .. } => Some(crcs),
        _ => None,
    });
    let mut page = vec![0; PAGE_BYTES];
    for (nth, crc) in crcs.flatten().enumerate() {
        let offset = (found.pages_offset() + nth * PAGE_BYTES) as u64;
        file.read_exact_at(&mut page, offset).map_err(|e| Error::io("read a lane file", &e))?;
        if crc32fast::hash(&page) != *crc {
            return Ok(Some(nth));
        }
    }
    Ok(None)
}

fn replay(
    lane_files: &LaneFiles,
    lane: (TimelineId, LaneKind),
    ids: &[LaneFileId],
    (start, required): (Start, Position),
    visit: &mut Visitor<'_>,
) -> Result<LogEnd> {
    let first = start.sequence;
    let end = LogEnd { sequence: first, offset: FILE_HEADER_BYTES as u64, last: start.sealed };
    let mut replay = Replay { lane_files, visit, durable: required, pending: VecDeque::new(), end };
    for (id, expected) in ids.iter().zip(first..) {
        if id.sequence != expected || !replay.file(*id)? {
            break;
        }
    }
    replay.finish()?;
    replay.refuse_loss(lane, ids)?;
    Ok(replay.end)
}

/// Reads a lane without changing anything on disk.
pub fn inspect(
    lane_files: &LaneFiles,
    lane: (TimelineId, LaneKind),
    ids: &[LaneFileId],
    from: (Start, Position),
    visit: &mut Visitor<'_>,
) -> Result<()> {
    replay(lane_files, lane, ids, from, visit).map(|_| ())
}

/// Takes away the head of a record that a crash tore. It could be made whole by what is written
/// over it: if that is torn as well, and the two end alike, what was lost would be there again.
fn wipe(file: &dyn DiskFile, offset: u64) -> Result<()> {
    let length = file.len_bytes().map_err(|e| Error::io("measure a lane file", &e))?;
    let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut head = vec![0; left.min(record::RECORD_HEADER_BYTES)];
    file.read_exact_at(&mut head, offset).map_err(|e| Error::io("read a lane file", &e))?;
    if head.iter().any(|byte| *byte != 0) {
        head.fill(0);
        file.write_all_at(&[&head], offset)
            .map_err(|e| Error::io("end a recovered lane file", &e))?;
    }
    Ok(())
}

/// Replays the files `ids` of a lane, sorted, into `visit`, drops the lost tail of a crash, and
/// returns the log, all of it durable, ready to append. The log begins at `start`. Refuses if it
/// ends before `required`, a position known to have been synced.
pub fn recover(
    lane_files: &Arc<LaneFiles>,
    (timeline, lane): (TimelineId, LaneKind),
    ids: &[LaneFileId],
    (start, required): (Start, Position),
    visit: &mut Visitor<'_>,
) -> Result<Log> {
    assert!(
        ids.is_sorted() && ids.iter().all(|id| (id.timeline, id.lane) == (timeline, lane)),
        "{ids:?}"
    );
    assert!(ids.iter().all(|id| id.sequence >= start.sequence), "{ids:?} before {start:?}");
    let mut log = Log::new(Arc::clone(lane_files), timeline, lane, start);
    if ids.is_empty() && required <= start.sealed {
        return Ok(log);
    }
    let end = replay(lane_files, (timeline, lane), ids, (start, required), visit)?;
    assert!(end.last >= start.sealed, "ends at {}, begins at {start:?}", end.last);
    assert!(end.sequence >= start.sequence, "ends in {}, begins at {start:?}", end.sequence);
    for id in ids {
        if id.sequence <= end.sequence && end.last > start.sealed {
            log.files.insert(id.sequence, lane_files.open_file(*id)?);
        } else {
            // Only a file that no sync had reached lies behind the end.
            lane_files.remove(*id)?;
        }
    }
    log.last = end.last;
    if let Some(file) = log.files.get(&end.sequence) {
        wipe(&**file, end.offset)?;
    }
    // The cache may hold bytes of any of the files that are not on the medium yet. The index relies
    // on them, so they become durable now.
    for file in log.files.values().filter(|_| !sabotage::active(Defect::RecoverySync)) {
        file.sync().map_err(|e| Error::io("sync a recovered lane file", &e))?;
    }
    if let Some(file) = log.files.get(&end.sequence) {
        let salt = record::salt(lane_files.store(), log.id(end.sequence));
        let length = file.len_bytes().map_err(|e| Error::io("measure a lane file", &e))?;
        log.tail = Some(LogTail {
            sequence: end.sequence,
            file: Arc::clone(file),
            salt,
            offset: end.offset,
            written_out: length == WAL_FILE_BYTES,
        });
    }
    lane_files.sync_directory()?;
    Ok(log)
}
