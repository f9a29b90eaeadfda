//! Decodes requests of the kernel.

use crate::fs::protocol::numbers::{HEADER_BYTES, OLDEST_MINOR, VERSION, code, flag};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A request of the kernel.
pub(in crate::fs) struct Request<'a> {
    /// The number by which the kernel knows the answer.
    pub(in crate::fs) unique: u64,
    /// The inode that the request is about, by the kernel's number.
    pub(in crate::fs) node: u64,
    pub(in crate::fs) uid: u32,
    pub(in crate::fs) gid: u32,
    pub(in crate::fs) operation: Operation<'a>,
}

/// What the kernel asks for.
pub(in crate::fs) enum Operation<'a> {
    Init(Offer),
    Destroy,
    LookUp {
        name: &'a OsStr,
    },
    /// Numbers, and how many lookups of each the kernel takes back. Not answered.
    Forget(Vec<(u64, u64)>),
    GetAttributes,
    SetAttributes(AttributeChange),
    ReadLink,
    Symlink {
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
    HardLink {
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
    /// Closes a file or directory.
    Release,
    Unsupported,
}

/// The abilities that the kernel offers as the mount begins.
#[derive(Clone, Copy, Debug)]
pub(in crate::fs) struct Offer {
    pub(in crate::fs) max_readahead: u32,
    pub(in crate::fs) flags: u64,
}

/// Attributes to be changed.
#[derive(Default)]
pub(in crate::fs) struct AttributeChange {
    pub(in crate::fs) mode: Option<u32>,
    pub(in crate::fs) uid: Option<u32>,
    pub(in crate::fs) gid: Option<u32>,
    pub(in crate::fs) size: Option<u64>,
    pub(in crate::fs) modified: Option<Time>,
    pub(in crate::fs) changed: Option<Time>,
}

/// A time that the kernel gives.
pub(in crate::fs) enum Time {
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

/// Bytes of the fixed arguments, which stand before names and data.
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

/// Decodes a request that is in one piece. `Err` has the number of the request, if that can be
/// read.
pub(in crate::fs) fn decode(bytes: &[u8]) -> Result<Request<'_>, Option<u64>> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(None)?;
    let code = Cursor(&header[4..]).u32().ok_or(None)?;
    let fixed = fixed_bytes(code).min(rest.len());
    decode_parts(header, &rest[..fixed], &rest[fixed..])
}

/// The same for a request whose header, fixed arguments and the rest are apart.
pub(in crate::fs) fn decode_parts<'a>(
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
        code::SYMLINK => Operation::Symlink { name: rest.name()?, target: Path::new(rest.name()?) },
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
        code::LINK => Operation::HardLink { number: fixed.u64()?, name: rest.name()? },
        code::READ => {
            let (offset, size) = offset_and_size(fixed)?;
            Operation::Read { offset, size }
        }
        code::WRITE => {
            let (offset, size) = offset_and_size(fixed)?;
            Operation::Write { offset, data: rest.0.get(..usize::try_from(size).ok()?)? }
        }
        code::READDIR => {
            let (offset, size) = offset_and_size(fixed)?;
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
fn offset_and_size(mut fixed: Cursor<'_>) -> Option<(u64, u32)> {
    fixed.skip(8)?;
    Some((fixed.u64()?, fixed.u32()?))
}

fn forgotten(count: u32, mut rest: Cursor<'_>) -> Option<Vec<(u64, u64)>> {
    if rest.0.len() / 16 < usize::try_from(count).ok()? {
        return None;
    }
    (0..count).map(|_| Some((rest.u64()?, rest.u64()?))).collect()
}

fn change(mut fixed: Cursor<'_>) -> Option<AttributeChange> {
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
    Some(AttributeChange {
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
