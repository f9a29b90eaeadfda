//! A timeline as a tree of files: names, inodes, sizes, attributes, contents. Knows nothing of
//! FUSE.
//!
//! Each operation is one record of the timeline, so a crash leaves it done or not done. Invariants:
//! bytes of a page beyond the file's length are zeros; an inode without a name has 0 links and goes
//! when the kernel forgets it. The kernel serialises changes of a directory and its inodes, so an
//! operation may look before it commits.

mod contents;
mod listing;
mod moves;
mod pages;

use crate::fs::error::{TreeResult, temporary};
use crate::fs::owners::Owners;
use crate::fs::scratch::{Scratch, ScratchDir};
use crate::fs::tree::listing::Listings;
use crate::fs::tree::pages::shorten;
use crate::locks::lock;
use crate::storage::index::Target;
use crate::storage::log::format::{Attributes, Change, FileKind, MAX_NAME_BYTES, MAX_TARGET_BYTES};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, ROOT_INODE, WAL_CLASS, lane_of};
use crate::storage::timeline::Timeline;
use crate::storage::timeline::append::RecordBuilder;
use nix::errno::Errno;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Name in a timeline's root directory that begins the write-ahead log class.
const WAL_DIRECTORY: &[u8] = b"pg_wal";
/// Longest file: as many blocks as a block number counts, the last one kept free for "to the end".
const MAX_FILE_BYTES: u64 = (u32::MAX as u64 - 1) * PAGE_BYTES as u64;

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
    listings: Listings,
}

impl Tree {
    /// The tree of `timeline`.
    pub fn new(timeline: Arc<Timeline>) -> Self {
        let (times, owners, scratch) = (Mutex::default(), Owners::default(), Scratch::default());
        Self { timeline, times, owners, wal_apart: None, scratch, listings: Listings::default() }
    }

    /// The tree of `timeline` for a running Postgres: its files are shown to belong to others than
    /// the store says, its write-ahead log, if it has one, is shown apart, and contents of
    /// temporary files are in `scratch`, if there is one.
    pub fn to_run(
        timeline: Arc<Timeline>,
        owners: Owners,
        scratch: Option<Arc<ScratchDir>>,
    ) -> Self {
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
    pub fn make_root(&self, owner: (u32, u32), now_ns: i64) -> TreeResult<()> {
        let new = NewInode { kind: FileKind::Directory, mode: 0o700, owner, target: &[] };
        self.timeline.append(LaneKind::Data, |record| {
            record
                .push(Change::Attributes { inode: ROOT_INODE, attributes: new.attributes(now_ns) });
            Ok(())
        })
    }

    /// Removes files that were open without a name when the server stopped.
    pub fn remove_nameless(&self) -> TreeResult<()> {
        for inode in self.timeline.nameless() {
            self.reap(inode)?;
        }
        Ok(())
    }

    /// Attributes of an inode that the kernel holds.
    pub fn attributes(&self, inode: u64) -> TreeResult<Attributes> {
        let mut attributes = self.timeline.attributes(inode).ok_or(Errno::ESTALE)?;
        if let Some((modified_ns, changed_ns)) = lock(&self.times).get(&inode) {
            (attributes.modified_ns, attributes.changed_ns) = (*modified_ns, *changed_ns);
        }
        Ok(attributes)
    }

    /// The inode that `name` leads to.
    pub fn lookup(&self, directory: u64, name: &[u8]) -> TreeResult<(u64, Attributes)> {
        let target = self.timeline.lookup(directory, name).ok_or(Errno::ENOENT)?;
        // A name can outlive its inode only if a crash came between the records of the two lanes.
        // Then there is no such file.
        let attributes = self.attributes(target.inode).map_err(|_| Errno::ENOENT)?;
        if target.kind == FileKind::Directory {
            self.scratch.meet_directory(directory, name, target.inode);
        }
        Ok((target.inode, attributes))
    }

    /// All names of a directory, each with a cookie behind which a listing goes on.
    pub fn list(&self, directory: u64) -> Vec<(Position, Vec<u8>, Target)> {
        self.timeline.list(directory)
    }

    /// Calls `each` with the names of a directory behind `cookie`, in the order of their cookies,
    /// until it returns false. Cookie 0 begins a listing.
    pub fn list_behind(
        &self,
        directory: u64,
        cookie: Position,
        each: impl FnMut(Position, &[u8], Target) -> bool,
    ) {
        self.listings.go_on(directory, cookie, || self.list(directory), each);
    }

    /// Makes an inode and gives it a name.
    pub fn make(
        &self,
        directory: u64,
        name: &[u8],
        new: &NewInode<'_>,
        now_ns: i64,
    ) -> TreeResult<(u64, Attributes)> {
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
        let inode = self.timeline.append(lane, |record| -> TreeResult<u64> {
            let inode = record.position() | class;
            record.push(Change::Attributes { inode, attributes: attributes.clone() });
            if lane == lane_of(directory) {
                put_name(record, directory, name, Target { inode, kind }, now_ns);
            }
            Ok(inode)
        })?;
        if lane != lane_of(directory) {
            self.timeline.append(lane_of(directory), |record| -> TreeResult<()> {
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

    fn check_new_name(&self, directory: u64, name: &[u8]) -> TreeResult<()> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Errno::ENAMETOOLONG.into());
        }
        if self.attributes(directory)?.links == 0 {
            return Err(Errno::ENOENT.into());
        }
        if self.lookup(directory, name).is_ok() { Err(Errno::EEXIST.into()) } else { Ok(()) }
    }

    /// Takes a name away, from a directory if `directories` or else from anything else.
    pub fn remove(
        &self,
        directory: u64,
        name: &[u8],
        directories: bool,
        now_ns: i64,
    ) -> TreeResult<()> {
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
        self.timeline.append(lane_of(directory), |record| -> TreeResult<()> {
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

    /// Changes attributes; returns them all.
    pub fn set_attributes(&self, inode: u64, wanted: &Wanted) -> TreeResult<Attributes> {
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

fn unlink(record: &mut RecordBuilder<'_, '_>, inode: u64, now_ns: i64) -> TreeResult<()> {
    let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
    assert!(attributes.links > 0, "inode {inode:#x} lost a name it did not have");
    attributes.links -= 1;
    attributes.changed_ns = now_ns;
    record.push(Change::Attributes { inode, attributes });
    Ok(())
}
