//! A timeline as a tree of files: names, inodes, sizes, attributes, contents. Knows nothing of
//! FUSE.
//!
//! Each operation is one record of the timeline, so a crash leaves it done or not done. Invariants:
//! bytes of a page beyond the file's length are zeros; an inode without a name has 0 links and goes
//! when the kernel forgets it. The kernel serialises changes of a directory and its inodes, so an
//! operation may look before it commits.

use crate::error::{Error, Kind};
use crate::fs::links;
use crate::fs::owners::Owners;
use crate::fs::pieces::{Piece, block_number, bytes_len, pieces, shorten, write_part};
use crate::fs::scratch::{Place, Scratch};
use crate::locks::lock;
use crate::storage::index::Target;
use crate::storage::log::format::{
    Attributes, Change, FileKind, MAX_NAME_BYTES, MAX_TARGET_BYTES, MAX_ZEROS,
};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, ROOT_INODE, WAL_CLASS, lane_of};
use crate::storage::timeline::Timeline;
use crate::storage::timeline::append::RecordBuilder;
use crate::storage::timeline::syncer::Done;
use nix::errno::Errno;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

/// Name in a timeline's root directory that begins the write-ahead log class.
const WAL_DIRECTORY: &[u8] = b"pg_wal";
const PAGE: u64 = PAGE_BYTES as u64;
/// Longest file: as many blocks as a block number counts, the last one kept free for "to the end".
const MAX_FILE_BYTES: u64 = (u32::MAX as u64 - 1) * PAGE;

/// Most bytes that one call may turn into a hole.
const MAX_PUNCH_BYTES: u64 = MAX_ZEROS as u64 * PAGE;

/// Why an operation did not happen.
#[derive(Debug)]
pub enum TreeError {
    /// What the caller of the file system did wrong.
    Errno(Errno),
    /// What went wrong below.
    Store(Error),
}

impl From<Error> for TreeError {
    fn from(error: Error) -> Self {
        TreeError::Store(error)
    }
}

impl From<Errno> for TreeError {
    fn from(errno: Errno) -> Self {
        TreeError::Errno(errno)
    }
}

impl TreeError {
    /// The error as one of the server, which wanted to do this.
    pub fn into_error(self, doing: &str) -> Error {
        match self {
            TreeError::Store(error) => error,
            TreeError::Errno(errno) => Error::io(doing, &errno.into()),
        }
    }

    /// The error as a system call reports it.
    pub fn errno(&self) -> Errno {
        match self {
            TreeError::Errno(errno) => *errno,
            TreeError::Store(error) if error.kind == Kind::Full => Errno::ENOSPC,
            TreeError::Store(_) => Errno::EIO,
        }
    }
}

/// Result of a file system operation.
pub type Result<T> = std::result::Result<T, TreeError>;

/// What a new inode is to be.
pub struct NewInode<'a> {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Target of a symbolic link, else empty.
    pub target: &'a [u8],
}

/// Attributes to change; `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Modification time.
    pub modified_ns: Option<i64>,
    /// Time of the change of attributes.
    pub changed_ns: Option<i64>,
}

impl Wanted {
    fn times_only(&self) -> bool {
        let Self { mode, uid, gid, size, .. } = self;
        mode.is_none() && uid.is_none() && gid.is_none() && size.is_none()
    }

    fn apply(&self, attributes: &mut Attributes) {
        attributes.mode = self.mode.unwrap_or(attributes.mode);
        attributes.uid = self.uid.unwrap_or(attributes.uid);
        attributes.gid = self.gid.unwrap_or(attributes.gid);
        attributes.size = self.size.unwrap_or(attributes.size);
        attributes.modified_ns = self.modified_ns.unwrap_or(attributes.modified_ns);
        attributes.changed_ns = self.changed_ns.unwrap_or(attributes.changed_ns);
    }
}

/// The tree of one open timeline.
pub struct Tree {
    timeline: Arc<Timeline>,
    /// Times that the kernel reported for written files. They go to the log with the next full sync
    /// of the file: `fdatasync` at each commit does not ask for them.
    times: Mutex<HashMap<u64, (i64, i64)>>,
    owners: Owners,
    /// The directory of the write-ahead log, if that is shown elsewhere.
    wal_apart: Option<u64>,
    scratch: Scratch,
}

impl Tree {
    /// The tree of `timeline`.
    pub fn new(timeline: Arc<Timeline>) -> Self {
        let (times, owners, scratch) = (Mutex::default(), Owners::default(), Scratch::default());
        Self { timeline, times, owners, wal_apart: None, scratch }
    }

    /// The tree of `timeline` for a running Postgres: its files are shown to belong to others than
    /// the store says, its write-ahead log, if it has one, is shown apart, and contents of
    /// temporary files are in `scratch`, if there is one.
    pub fn to_run(timeline: Arc<Timeline>, owners: Owners, scratch: Option<Arc<Place>>) -> Self {
        let wal = timeline.lookup(ROOT_INODE, WAL_DIRECTORY);
        let wal = wal.filter(|target| {
            target.kind == FileKind::Directory && lane_of(target.inode) == LaneKind::Wal
        });
        let (wal_apart, scratch) = (wal.map(|target| target.inode), Scratch::at(scratch));
        Self { owners, wal_apart, scratch, ..Self::new(timeline) }
    }

    /// The directory of the write-ahead log, if that is shown apart.
    pub fn wal_apart(&self) -> Option<u64> {
        self.wal_apart
    }

    /// How the owners of its files are shown.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Its timeline.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Makes the root directory of a new timeline.
    pub fn make_root(&self, owner: (u32, u32), now_ns: i64) -> Result<()> {
        let new = NewInode { kind: FileKind::Directory, mode: 0o700, owner, target: &[] };
        self.timeline.append(LaneKind::Data, |record| {
            record
                .push(Change::Attributes { inode: ROOT_INODE, attributes: new.attributes(now_ns) });
            Ok(())
        })
    }

    /// Removes files that were open without a name when the server stopped.
    pub fn remove_nameless(&self) -> Result<()> {
        for inode in self.timeline.nameless() {
            self.reap(inode)?;
        }
        Ok(())
    }

    /// Attributes of an inode that the kernel holds.
    pub fn attributes(&self, inode: u64) -> Result<Attributes> {
        let mut attributes = self.timeline.attributes(inode).ok_or(Errno::ESTALE)?;
        if let Some((modified_ns, changed_ns)) = lock(&self.times).get(&inode) {
            (attributes.modified_ns, attributes.changed_ns) = (*modified_ns, *changed_ns);
        }
        Ok(attributes)
    }

    /// The inode that `name` leads to.
    pub fn lookup(&self, directory: u64, name: &[u8]) -> Result<(u64, Attributes)> {
        let target = self.timeline.lookup(directory, name).ok_or(Errno::ENOENT)?;
        // A name can outlive its inode only if a crash came between the two lanes' records: then it
        // is not there.
        let attributes = self.attributes(target.inode).map_err(|_| Errno::ENOENT)?;
        if target.kind == FileKind::Directory {
            self.scratch.meet_directory(directory, name, target.inode);
        }
        Ok((target.inode, attributes))
    }

    /// All names of a directory, each with a cookie to go on behind it.
    pub fn list(&self, directory: u64) -> Vec<(Position, Vec<u8>, Target)> {
        self.timeline.list(directory)
    }

    /// Makes an inode and gives it a name.
    pub fn make(
        &self,
        directory: u64,
        name: &[u8],
        new: &NewInode<'_>,
        now_ns: i64,
    ) -> Result<(u64, Attributes)> {
        self.check_new_name(directory, name)?;
        if new.target.len() > MAX_TARGET_BYTES {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let wal = lane_of(directory) == LaneKind::Wal
            || (directory == ROOT_INODE && name == WAL_DIRECTORY);
        let (class, lane) = if wal { (WAL_CLASS, LaneKind::Wal) } else { (0, LaneKind::Data) };
        let attributes = new.attributes(now_ns);
        let kind = new.kind;
        let contents = match kind {
            FileKind::File => self.scratch.make(directory, name),
            _ => None,
        };
        let inode = self.timeline.append(lane, |record| -> Result<u64> {
            let inode = record.position() | class;
            record.push(Change::Attributes { inode, attributes: attributes.clone() });
            if lane == lane_of(directory) {
                put_name(record, directory, name, Target { inode, kind }, now_ns);
            }
            Ok(inode)
        })?;
        if lane != lane_of(directory) {
            self.timeline.append(lane_of(directory), |record| -> Result<()> {
                put_name(record, directory, name, Target { inode, kind }, now_ns);
                Ok(())
            })?;
        }
        if let Some(contents) = contents {
            self.scratch.keep(inode, contents);
        } else if kind == FileKind::Directory {
            self.scratch.meet_directory(directory, name, inode);
        }
        Ok((inode, attributes))
    }

    fn check_new_name(&self, directory: u64, name: &[u8]) -> Result<()> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Errno::ENAMETOOLONG.into());
        }
        if self.attributes(directory)?.links == 0 {
            return Err(Errno::ENOENT.into());
        }
        if self.lookup(directory, name).is_ok() { Err(Errno::EEXIST.into()) } else { Ok(()) }
    }

    /// Gives an inode another name.
    pub fn link(&self, inode: u64, directory: u64, name: &[u8], now_ns: i64) -> Result<Attributes> {
        self.check_new_name(directory, name)?;
        if lane_of(inode) != lane_of(directory) || !self.scratch.lets_move(inode, directory, name) {
            return Err(Errno::EXDEV.into());
        }
        self.timeline.append(lane_of(inode), |record| {
            let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
            attributes.links += 1;
            attributes.changed_ns = now_ns;
            let target = Target { inode, kind: attributes.kind };
            record.push(Change::Attributes { inode, attributes: attributes.clone() });
            put_name(record, directory, name, target, now_ns);
            Ok(attributes)
        })
    }

    /// Takes a name away, from a directory if `directories` or else from anything else.
    pub fn remove(
        &self,
        directory: u64,
        name: &[u8],
        directories: bool,
        now_ns: i64,
    ) -> Result<()> {
        let (inode, attributes) = self.lookup(directory, name)?;
        match (attributes.kind == FileKind::Directory, directories) {
            (true, false) => return Err(Errno::EISDIR.into()),
            (false, true) => return Err(Errno::ENOTDIR.into()),
            (true, true) if !self.list(inode).is_empty() => return Err(Errno::ENOTEMPTY.into()),
            _ => {}
        }
        if lane_of(inode) == LaneKind::Wal {
            self.timeline.mark_before_removal()?;
        }
        self.timeline.append(lane_of(directory), |record| -> Result<()> {
            take_name(record, directory, name, now_ns);
            if lane_of(inode) == lane_of(directory) {
                unlink(record, inode, now_ns)?;
            }
            Ok(())
        })?;
        if lane_of(inode) != lane_of(directory) {
            self.timeline.append(lane_of(inode), |record| unlink(record, inode, now_ns))?;
        }
        Ok(())
    }

    /// Gives what `name` leads to the name `new_name`, in place of what had it unless `keep`.
    pub fn rename(
        &self,
        (directory, name): (u64, &[u8]),
        (new_directory, new_name): (u64, &[u8]),
        keep: bool,
        now_ns: i64,
    ) -> Result<()> {
        if lane_of(directory) != lane_of(new_directory) {
            return Err(Errno::EXDEV.into());
        }
        let (inode, attributes) = self.lookup(directory, name)?;
        if !self.scratch.lets_move(inode, new_directory, new_name) {
            return Err(Errno::EXDEV.into());
        }
        if directory != new_directory && attributes.kind != FileKind::File {
            links::check_move(self, (inode, &attributes), new_directory)?;
        }
        let replaced = self.lookup(new_directory, new_name).ok();
        if let Some((other, other_attributes)) = &replaced {
            match (
                attributes.kind == FileKind::Directory,
                other_attributes.kind == FileKind::Directory,
            ) {
                _ if keep => return Err(Errno::EEXIST.into()),
                // Two names of one file: nothing to do, says rename(2).
                _ if *other == inode => return Ok(()),
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) if !self.list(*other).is_empty() => {
                    return Err(Errno::ENOTEMPTY.into());
                }
                _ => {}
            }
        }
        let lane = lane_of(directory);
        let (here, elsewhere): (Vec<u64>, Vec<u64>) =
            replaced.iter().map(|(other, _)| *other).partition(|other| lane_of(*other) == lane);
        self.timeline.append(lane, |record| -> Result<()> {
            take_name(record, directory, name, now_ns);
            here.iter().try_for_each(|other| unlink(record, *other, now_ns))?;
            put_name(
                record,
                new_directory,
                new_name,
                Target { inode, kind: attributes.kind },
                now_ns,
            );
            Ok(())
        })?;
        elsewhere.iter().try_for_each(|other| {
            self.timeline.append(lane_of(*other), |record| unlink(record, *other, now_ns))
        })
    }

    /// Changes attributes; returns them all.
    pub fn set_attributes(&self, inode: u64, wanted: &Wanted) -> Result<Attributes> {
        if wanted.size.is_some_and(|size| size > MAX_FILE_BYTES) {
            return Err(Errno::EFBIG.into());
        }
        if wanted.times_only() {
            let mut attributes = self.attributes(inode)?;
            wanted.apply(&mut attributes);
            lock(&self.times).insert(inode, (attributes.modified_ns, attributes.changed_ns));
            return Ok(attributes);
        }
        let contents = self.scratch.contents(inode);
        if let (Some(contents), Some(size)) = (&contents, wanted.size) {
            contents.set_length(size).map_err(temporary("cut"))?;
        }
        let times = lock(&self.times).remove(&inode);
        self.timeline.append(lane_of(inode), |record| {
            let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
            if let Some(times) = times {
                (attributes.modified_ns, attributes.changed_ns) = times;
            }
            if let Some(size) =
                wanted.size.filter(|size| *size < attributes.size && contents.is_none())
            {
                shorten(record, inode, size)?;
            }
            wanted.apply(&mut attributes);
            record.push(Change::Attributes { inode, attributes: attributes.clone() });
            Ok(attributes)
        })
    }

    /// Up to `length` bytes at `offset`; fewer at the end of the file.
    pub fn read(
        &self,
        inode: u64,
        offset: u64,
        length: u32,
    ) -> Result<(Vec<u8>, std::ops::Range<usize>)> {
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
    pub fn write(&self, inode: u64, offset: u64, data: &[u8]) -> Result<()> {
        let written = self.write_pieces(inode, offset, data);
        written.map_err(|error| match error {
            TreeError::Store(error) => TreeError::Store(self.timeline.latch_failed_write(error)),
            errno => errno,
        })
    }

    fn write_pieces(&self, inode: u64, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        if end > MAX_FILE_BYTES {
            return Err(Errno::EFBIG.into());
        }
        if let Some(contents) = self.scratch.contents(inode) {
            contents.write(data, offset).map_err(temporary("write"))?;
            return self.lengthen(inode, end);
        }
        // Checksums are computed before the lane's lock is taken.
        let pieces = pieces(offset, data)?;
        self.timeline.append(lane_of(inode), |record| {
            let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
            for piece in pieces {
                match piece {
                    Piece::Part { block, start, bytes } => {
                        write_part(record, inode, block, start, bytes)?
                    }
                    Piece::Zeros { block, count } => {
                        // Beyond the end everything reads as zeros already.
                        let end = block_number(attributes.size.div_ceil(PAGE))?;
                        let count = count.min(end.saturating_sub(block));
                        if count > 0 {
                            record.push(Change::Zeros { inode, block, count });
                        }
                    }
                    Piece::Pages { block, crcs, bytes } => {
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
    fn lengthen(&self, inode: u64, end: u64) -> Result<()> {
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
    pub fn extend(&self, inode: u64, end: u64) -> Result<()> {
        let size = self.attributes(inode)?.size;
        if end > size {
            self.set_attributes(inode, &Wanted { size: Some(end), ..Wanted::default() })?;
        }
        Ok(())
    }

    /// Makes `length` bytes at `offset` read as zeros without changing the file's length.
    pub fn punch(&self, inode: u64, offset: u64, length: u64) -> Result<()> {
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
                self.timeline.append(lane_of(inode), |record| -> Result<()> {
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
    pub fn reap(&self, inode: u64) -> Result<()> {
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

impl NewInode<'_> {
    fn attributes(&self, now_ns: i64) -> Attributes {
        Attributes {
            kind: self.kind,
            mode: self.mode,
            uid: self.owner.0,
            gid: self.owner.1,
            links: 1,
            size: self.target.len() as u64,
            modified_ns: now_ns,
            changed_ns: now_ns,
            target: self.target.to_vec(),
        }
    }
}

/// What went wrong with the contents of a temporary file.
fn temporary(doing: &'static str) -> impl Fn(io::Error) -> TreeError {
    move |error| Error::io(format!("{doing} a temporary file"), &error).into()
}

fn put_name(
    record: &mut RecordBuilder<'_, '_>,
    directory: u64,
    name: &[u8],
    target: Target,
    now_ns: i64,
) {
    let Target { inode, kind } = target;
    record.push(Change::Name { directory, name: name.to_vec(), inode, kind });
    touch(record, directory, now_ns);
}

fn take_name(record: &mut RecordBuilder<'_, '_>, directory: u64, name: &[u8], now_ns: i64) {
    record.push(Change::NoName { directory, name: name.to_vec() });
    touch(record, directory, now_ns);
}

fn touch(record: &mut RecordBuilder<'_, '_>, directory: u64, now_ns: i64) {
    if let Some(attributes) = record.attributes(directory) {
        record.push_size(
            directory,
            Attributes { modified_ns: now_ns, changed_ns: now_ns, ..attributes },
        );
    }
}

fn unlink(record: &mut RecordBuilder<'_, '_>, inode: u64, now_ns: i64) -> Result<()> {
    let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
    assert!(attributes.links > 0, "inode {inode:#x} lost a name it did not have");
    attributes.links -= 1;
    attributes.changed_ns = now_ns;
    record.push(Change::Attributes { inode, attributes });
    Ok(())
}
