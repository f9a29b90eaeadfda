//! Between what the store keeps of a file and what the kernel is told.

use crate::fs::nodes::MOUNT_ROOT;
use crate::fs::owners::Owners;
use crate::storage::format::{Attributes, FileKind};
use crate::storage::page::PAGE_BYTES;
use fuser::{FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) use crate::storage::clock::machine_ns as now_ns;

pub(super) fn to_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

fn from_ns(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

pub(super) fn file_attr(number: u64, attributes: &Attributes, owners: &Owners) -> FileAttr {
    let (uid, gid) = owners.show((attributes.uid, attributes.gid));
    let modified = from_ns(attributes.modified_ns);
    FileAttr {
        ino: INodeNo(number),
        size: attributes.size,
        blocks: attributes.size.div_ceil(512),
        atime: modified,
        mtime: modified,
        ctime: from_ns(attributes.changed_ns),
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.links,
        uid,
        gid,
        rdev: 0,
        blksize: u32::try_from(PAGE_BYTES).unwrap_or(4096),
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
    }
}

pub(super) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// The mount's own directory.
pub(super) fn mount_root_attr(owner: (u32, u32)) -> FileAttr {
    let attributes = Attributes {
        kind: FileKind::Directory,
        mode: 0o711,
        uid: owner.0,
        gid: owner.1,
        links: 1,
        size: 0,
        modified_ns: 0,
        changed_ns: 0,
        target: Vec::new(),
    };
    file_attr(MOUNT_ROOT, &attributes, &Owners::default())
}
