//! The FUSE protocol, as far as it is spoken here: requests of the kernel are taken apart, and what
//! they are answered is put together. The shapes are those of `include/uapi/linux/fuse.h`, version
//! 7.31 and later, in the byte order of the machine.

use crate::storage::log::format::FileKind;
use crate::storage::page::PAGE_BYTES;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// What each request begins with.
pub(super) const HEADER_BYTES: usize = 40;
/// The version of the protocol.
pub(super) const VERSION: (u32, u32) = (7, 40);
/// The oldest that is spoken.
const OLDEST_MINOR: u32 = 31;
/// How long the kernel may keep what it was told, in seconds: as good as for ever.
const FOREVER_S: u64 = 365 * 24 * 3600;
/// Notification that a name is not what it was.
const NOTIFY_INVAL_ENTRY: i32 = 3;

/// Numbers of requests.
mod code {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const RENAME2: u32 = 45;
}

/// What the two sides agree on.
pub(super) mod flag {
    pub(in crate::fs) const ASYNC_READ: u64 = 1;
    pub(in crate::fs) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::fs) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(in crate::fs) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in crate::fs) const MAX_PAGES: u64 = 1 << 22;
    pub(in crate::fs) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in crate::fs) const INIT_EXT: u64 = 1 << 30;
    pub(in crate::fs) const OVER_IO_URING: u64 = 1 << 41;
}

/// A rename that must not replace anything.
pub(super) const RENAME_NOREPLACE: u32 = 1;

/// A request of the kernel.
pub(super) struct Request<'a> {
    /// By which the answer is known.
    pub(super) unique: u64,
    /// The inode that it is about, by the kernel's number.
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) operation: Operation<'a>,
}

/// What the kernel wants.
pub(super) enum Operation<'a> {
    Init(Offer),
    Destroy,
    LookUp {
        name: &'a OsStr,
    },
    /// Lookups of numbers that are taken back. Not answered.
    Forget(Vec<(u64, u64)>),
    GetAttributes,
    SetAttributes(Change),
    ReadLink,
    MakeLink {
        name: &'a OsStr,
        target: &'a Path,
    },
    MakeNode {
        name: &'a OsStr,
        mode: u32,
    },
    MakeDirectory {
        name: &'a OsStr,
        mode: u32,
    },
    Remove {
        name: &'a OsStr,
        directory: bool,
    },
    Rename {
        name: &'a OsStr,
        new_parent: u64,
        new_name: &'a OsStr,
        flags: u32,
    },
    Link {
        number: u64,
        name: &'a OsStr,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
    },
    Space,
    Sync {
        data_only: bool,
    },
    OpenDirectory,
    ReadDirectory {
        offset: u64,
        size: u32,
    },
    SyncDirectory,
    Allocate {
        offset: u64,
        length: u64,
        mode: i32,
    },
    /// What was opened is not used any more.
    Release,
    Unsupported,
}

/// What the kernel offers as the mount begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) max_readahead: u32,
    pub(super) flags: u64,
}

/// Attributes to be changed.
#[derive(Default)]
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) modified: Option<Time>,
    pub(super) changed: Option<Time>,
}

/// A time that the kernel gives.
pub(super) enum Time {
    Now,
    At { ns: i64 },
}

/// Takes numbers and names off the front of bytes.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    /// A name, which ends with a zero.
    fn name(&mut self) -> Option<&'a OsStr> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = OsStr::from_bytes(&self.0[..end]);
        self.0 = &self.0[end + 1..];
        Some(name)
    }
}

/// Bytes of the arguments that have a fixed place, of what stands before names and data.
fn fixed_bytes(code: u32) -> usize {
    match code {
        code::RENAME
        | code::LINK
        | code::MKDIR
        | code::OPENDIR
        | code::FORGET
        | code::BATCH_FORGET => 8,
        code::GETATTR | code::MKNOD | code::FSYNC | code::FSYNCDIR | code::RENAME2 => 16,
        code::RELEASE | code::RELEASEDIR => 24,
        code::FALLOCATE => 32,
        code::READ | code::READDIR | code::WRITE => 40,
        code::SETATTR => 88,
        _ => 0,
    }
}

/// Takes a request apart that is in one piece. `Err` has what it is known by, as far as that can be
/// told.
pub(super) fn decode(bytes: &[u8]) -> Result<Request<'_>, Option<u64>> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(None)?;
    let code = Cursor(&header[4..]).u32().ok_or(None)?;
    let fixed = fixed_bytes(code).min(rest.len());
    decode_parts(header, &rest[..fixed], &rest[fixed..])
}

/// The same for a request whose header, fixed arguments and the rest are apart.
pub(super) fn decode_parts<'a>(
    header: &[u8],
    fixed: &'a [u8],
    rest: &'a [u8],
) -> Result<Request<'a>, Option<u64>> {
    let mut header = Cursor(header);
    let mut fields = || {
        let (_length, code, unique) = (header.u32()?, header.u32()?, header.u64()?);
        Some((code, unique, header.u64()?, header.u32()?, header.u32()?))
    };
    let (code, unique, node, uid, gid) = fields().ok_or(None)?;
    let fixed = fixed.get(..fixed_bytes(code)).ok_or(Some(unique))?;
    let operation = operation(code, node, Cursor(fixed), Cursor(rest)).ok_or(Some(unique))?;
    Ok(Request { unique, node, uid, gid, operation })
}

fn operation<'a>(
    code: u32,
    node: u64,
    mut fixed: Cursor<'a>,
    mut rest: Cursor<'a>,
) -> Option<Operation<'a>> {
    Some(match code {
        code::LOOKUP => Operation::LookUp { name: rest.name()? },
        code::FORGET => Operation::Forget(vec![(node, fixed.u64()?)]),
        code::BATCH_FORGET => Operation::Forget(forgotten(fixed.u32()?, rest)?),
        code::GETATTR => Operation::GetAttributes,
        code::SETATTR => Operation::SetAttributes(change(fixed)?),
        code::READLINK => Operation::ReadLink,
        code::SYMLINK => {
            Operation::MakeLink { name: rest.name()?, target: Path::new(rest.name()?) }
        }
        code::MKNOD => Operation::MakeNode { mode: fixed.u32()?, name: rest.name()? },
        code::MKDIR => Operation::MakeDirectory { mode: fixed.u32()?, name: rest.name()? },
        code::UNLINK => Operation::Remove { name: rest.name()?, directory: false },
        code::RMDIR => Operation::Remove { name: rest.name()?, directory: true },
        code::RENAME | code::RENAME2 => Operation::Rename {
            new_parent: fixed.u64()?,
            flags: if code == code::RENAME2 { fixed.u32()? } else { 0 },
            name: rest.name()?,
            new_name: rest.name()?,
        },
        code::LINK => Operation::Link { number: fixed.u64()?, name: rest.name()? },
        code::READ => {
            let (offset, size) = place(fixed)?;
            Operation::Read { offset, size }
        }
        code::WRITE => {
            let (offset, size) = place(fixed)?;
            Operation::Write { offset, data: rest.0.get(..usize::try_from(size).ok()?)? }
        }
        code::READDIR => {
            let (offset, size) = place(fixed)?;
            Operation::ReadDirectory { offset, size }
        }
        code::STATFS => Operation::Space,
        code::FSYNC => {
            fixed.skip(8)?;
            Operation::Sync { data_only: fixed.u32()? & 1 != 0 }
        }
        code::FSYNCDIR => Operation::SyncDirectory,
        code::OPENDIR => Operation::OpenDirectory,
        code::RELEASE | code::RELEASEDIR => Operation::Release,
        code::FALLOCATE => {
            fixed.skip(8)?;
            let (offset, length) = (fixed.u64()?, fixed.u64()?);
            Operation::Allocate { offset, length, mode: i32::from_ne_bytes(fixed.take()?) }
        }
        code::INIT => Operation::Init(offer(rest)?),
        code::DESTROY => Operation::Destroy,
        _ => Operation::Unsupported,
    })
}

/// Offset and size of a read or write, behind the number of the open file.
fn place(mut fixed: Cursor<'_>) -> Option<(u64, u32)> {
    fixed.skip(8)?;
    Some((fixed.u64()?, fixed.u32()?))
}

fn forgotten(count: u32, mut rest: Cursor<'_>) -> Option<Vec<(u64, u64)>> {
    if rest.0.len() / 16 < usize::try_from(count).ok()? {
        return None;
    }
    (0..count).map(|_| Some((rest.u64()?, rest.u64()?))).collect()
}

fn change(mut fixed: Cursor<'_>) -> Option<Change> {
    const MODE: u32 = 1;
    const UID: u32 = 1 << 1;
    const GID: u32 = 1 << 2;
    const SIZE: u32 = 1 << 3;
    const MODIFIED: u32 = 1 << 5;
    const MODIFIED_NOW: u32 = 1 << 8;
    const CHANGED: u32 = 1 << 10;
    let valid = fixed.u32()?;
    fixed.skip(4 + 8)?;
    let size = fixed.u64()?;
    fixed.skip(8 + 8)?;
    let (modified_s, changed_s) = (fixed.u64()?, fixed.u64()?);
    fixed.skip(4)?;
    let (modified_ns, changed_ns) = (fixed.u32()?, fixed.u32()?);
    let mode = fixed.u32()?;
    fixed.skip(4)?;
    let (uid, gid) = (fixed.u32()?, fixed.u32()?);
    let at = |seconds: u64, ns: u32| Time::At {
        ns: seconds.cast_signed().saturating_mul(1_000_000_000).saturating_add(i64::from(ns)),
    };
    let given = |bit: u32| valid & bit != 0;
    Some(Change {
        mode: given(MODE).then_some(mode),
        uid: given(UID).then_some(uid),
        gid: given(GID).then_some(gid),
        size: given(SIZE).then_some(size),
        modified: if given(MODIFIED_NOW) {
            Some(Time::Now)
        } else {
            given(MODIFIED).then(|| at(modified_s, modified_ns))
        },
        changed: given(CHANGED).then(|| at(changed_s, changed_ns)),
    })
}

fn offer(mut rest: Cursor<'_>) -> Option<Offer> {
    let (major, minor, max_readahead) = (rest.u32()?, rest.u32()?, rest.u32()?);
    let low = u64::from(rest.u32()?);
    let high = if low & flag::INIT_EXT != 0 { u64::from(rest.u32()?) } else { 0 };
    let known = major == VERSION.0 && minor >= OLDEST_MINOR;
    known.then_some(Offer { max_readahead, flags: low | high << 32 })
}

/// What a request is answered with, but for its outcome.
#[derive(Default)]
pub(super) struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// What both sides agree on.
    pub(super) fn init(
        offer: &Offer,
        flags: u64,
        max_write: u32,
        background: u16,
        time_step: Duration,
    ) -> Self {
        let half = |flags: u64| u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0);
        let max_pages = u16::try_from(max_write.div_ceil(kernel_page_bytes())).unwrap_or(u16::MAX);
        Self::default()
            .u32(VERSION.0)
            .u32(VERSION.1)
            .u32(offer.max_readahead)
            .u32(half(flags))
            .u16(background)
            .u16(background / 4 * 3)
            .u32(max_write)
            .u32(u32::try_from(time_step.as_nanos()).unwrap_or(1))
            .u16(max_pages)
            .u16(0)
            .u32(half(flags >> 32))
            .bytes(&[0; 28])
    }

    /// An inode, found or made. With the number 0 there is none, and the kernel may remember that.
    pub(super) fn entry(shown: &Shown) -> Self {
        let body = Self::default().u64(shown.number).u64(0).u64(FOREVER_S).u64(FOREVER_S).u64(0);
        body.attributes(shown)
    }

    pub(super) fn attr(shown: &Shown) -> Self {
        Self::default().u64(FOREVER_S).u64(0).attributes(shown)
    }

    fn attributes(self, shown: &Shown) -> Self {
        let seconds = |ns: i64| ns.div_euclid(1_000_000_000).cast_unsigned();
        let rest = |ns: i64| u32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0);
        self.u64(shown.number)
            .u64(shown.size)
            .u64(shown.size.div_ceil(512))
            .u64(seconds(shown.modified_ns))
            .u64(seconds(shown.modified_ns))
            .u64(seconds(shown.changed_ns))
            .u32(rest(shown.modified_ns))
            .u32(rest(shown.modified_ns))
            .u32(rest(shown.changed_ns))
            .u32(file_type(shown.kind) << 12 | u32::from(shown.mode))
            .u32(shown.links)
            .u32(shown.owner.0)
            .u32(shown.owner.1)
            .u32(0)
            .u32(u32::try_from(PAGE_BYTES).unwrap_or(4096))
            .u32(0)
    }

    pub(super) fn written(length: u32) -> Self {
        Self::default().u32(length).u32(0)
    }

    /// A directory that was opened; whether the kernel may keep its names.
    pub(super) fn opened(cached: bool) -> Self {
        const KEEP_CACHE: u32 = 1 << 1;
        const CACHE_DIR: u32 = 1 << 3;
        Self::default().u64(0).u32(if cached { KEEP_CACHE | CACHE_DIR } else { 0 }).u32(0)
    }

    /// Free and all room, in blocks.
    pub(super) fn space(free: u64, total: u64, block: u32) -> Self {
        const FILES: u64 = 1 << 32;
        const NAME_BYTES: u32 = 255;
        let counts = Self::default().u64(total).u64(free).u64(free).u64(FILES).u64(FILES);
        counts.u32(block).u32(NAME_BYTES).u32(block).bytes(&[0; 28])
    }
}

/// What the kernel is told of an inode.
pub(super) struct Shown {
    pub(super) number: u64,
    pub(super) kind: FileKind,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) owner: (u32, u32),
    pub(super) modified_ns: i64,
    pub(super) changed_ns: i64,
}

/// Bytes of a page of the kernel, in which it counts what a request may carry.
fn kernel_page_bytes() -> u32 {
    use nix::unistd::{SysconfVar, sysconf};
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(4096)
}

/// As in a directory; shifted, as in a mode.
fn file_type(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => 8,
        FileKind::Directory => 4,
        FileKind::Symlink => 10,
    }
}

/// Names of a directory, as many as there is room for.
pub(super) struct Listing {
    body: Body,
    room: usize,
}

impl Listing {
    pub(super) fn new(size: u32) -> Self {
        Self { body: Body::default(), room: usize::try_from(size).unwrap_or(0) }
    }

    /// Adds a name, after which the list goes on at `cookie`; false if there is no room.
    pub(super) fn add(&mut self, number: u64, cookie: u64, kind: FileKind, name: &OsStr) -> bool {
        const FIXED_BYTES: usize = 24;
        let name = name.as_bytes();
        let whole = (FIXED_BYTES + name.len()).next_multiple_of(8);
        if self.body.0.len() + whole > self.room {
            return false;
        }
        let end = self.body.0.len() + whole;
        let length = u32::try_from(name.len()).unwrap_or(0);
        let body = std::mem::take(&mut self.body);
        self.body = body.u64(number).u64(cookie).u32(length).u32(file_type(kind)).bytes(name);
        self.body.0.resize(end, 0);
        true
    }

    pub(super) fn into_body(self) -> Body {
        self.body
    }
}

/// What stands before an answer.
pub(super) fn answer_header(unique: u64, error: Option<Errno>, length: usize) -> [u8; 16] {
    let length = u32::try_from(16 + length).unwrap_or(u32::MAX);
    header(length, error.map_or(0, |errno| -(errno as i32)), unique)
}

fn header(length: u32, error: i32, unique: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

/// Tells the kernel that a name in a directory is not what it was.
pub(super) fn forget_name(parent: u64, name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    let body = Body::default().u64(parent).u32(u32::try_from(name.len()).unwrap_or(0)).u32(0);
    let body = body.bytes(name).bytes(&[0]).into_bytes();
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    [&header(length, NOTIFY_INVAL_ENTRY, 0)[..], &body].concat()
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
