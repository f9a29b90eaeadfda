//! Encodes answers for the kernel, and notifications.

use crate::fs::protocol::decode::Offer;
use crate::fs::protocol::numbers::VERSION;
use crate::storage::log::format::FileKind;
use crate::storage::page::PAGE_BYTES;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How long the kernel may cache an answer, in seconds: as good as for ever.
const FOREVER_S: u64 = 365 * 24 * 3600;
/// Notification that a name is not what it was.
const NOTIFY_INVAL_ENTRY: i32 = 3;

/// The body of an answer.
#[derive(Default)]
pub(in crate::fs) struct ReplyBody(Vec<u8>);

impl ReplyBody {
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(in crate::fs) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The abilities that both sides agree on.
    pub(in crate::fs) fn init(
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

    /// An inode, found or made. The number 0 tells the kernel to remember that there is none.
    pub(in crate::fs) fn entry(shown: &ShownInode) -> Self {
        let body = Self::default().u64(shown.number).u64(0).u64(FOREVER_S).u64(FOREVER_S).u64(0);
        body.attributes(shown)
    }

    pub(in crate::fs) fn attr(shown: &ShownInode) -> Self {
        Self::default().u64(FOREVER_S).u64(0).attributes(shown)
    }

    fn attributes(self, shown: &ShownInode) -> Self {
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

    pub(in crate::fs) fn written(length: u32) -> Self {
        Self::default().u32(length).u32(0)
    }

    /// A directory that was opened; whether the kernel may keep its names.
    pub(in crate::fs) fn opened(cached: bool) -> Self {
        const KEEP_CACHE: u32 = 1 << 1;
        const CACHE_DIR: u32 = 1 << 3;
        Self::default().u64(0).u32(if cached { KEEP_CACHE | CACHE_DIR } else { 0 }).u32(0)
    }

    /// Free and all room, in blocks.
    pub(in crate::fs) fn space(free: u64, total: u64, block: u32) -> Self {
        const FILES: u64 = 1 << 32;
        const NAME_BYTES: u32 = 255;
        let counts = Self::default().u64(total).u64(free).u64(free).u64(FILES).u64(FILES);
        counts.u32(block).u32(NAME_BYTES).u32(block).bytes(&[0; 28])
    }
}

/// An inode as the mount shows it to the kernel.
pub(in crate::fs) struct ShownInode {
    pub(in crate::fs) number: u64,
    pub(in crate::fs) kind: FileKind,
    pub(in crate::fs) mode: u16,
    pub(in crate::fs) size: u64,
    pub(in crate::fs) links: u32,
    pub(in crate::fs) owner: (u32, u32),
    pub(in crate::fs) modified_ns: i64,
    pub(in crate::fs) changed_ns: i64,
}

/// Bytes of a page of the kernel, which counts the largest request in pages.
fn kernel_page_bytes() -> u32 {
    use nix::unistd::{SysconfVar, sysconf};
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(4096)
}

/// The type of a file as a directory has it; shifted, as a mode has it.
fn file_type(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => 8,
        FileKind::Directory => 4,
        FileKind::Symlink => 10,
    }
}

/// Names of a directory, as many as there is room for.
pub(in crate::fs) struct Listing {
    body: ReplyBody,
    room: usize,
}

impl Listing {
    pub(in crate::fs) fn new(size: u32) -> Self {
        Self { body: ReplyBody::default(), room: usize::try_from(size).unwrap_or(0) }
    }

    /// Adds a name, after which the list goes on at `cookie`; false if there is no room.
    pub(in crate::fs) fn add(
        &mut self,
        number: u64,
        cookie: u64,
        kind: FileKind,
        name: &OsStr,
    ) -> bool {
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

    pub(in crate::fs) fn into_body(self) -> ReplyBody {
        self.body
    }
}

/// The header of an answer.
pub(in crate::fs) fn answer_header(unique: u64, error: Option<Errno>, length: usize) -> [u8; 16] {
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
pub(in crate::fs) fn forget_name(parent: u64, name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    let body = ReplyBody::default().u64(parent).u32(u32::try_from(name.len()).unwrap_or(0)).u32(0);
    let body = body.bytes(name).bytes(&[0]).into_bytes();
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    [&header(length, NOTIFY_INVAL_ENTRY, 0)[..], &body].concat()
}
