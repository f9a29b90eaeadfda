//! Numbers of the FUSE protocol: the version, the codes of requests, the flags of the agreement.

/// Bytes of the header of a request.
pub(in crate::fs) const HEADER_BYTES: usize = 40;
/// The version of the protocol.
pub(in crate::fs) const VERSION: (u32, u32) = (7, 40);
/// The oldest version that the server speaks.
pub(super) const OLDEST_MINOR: u32 = 31;

/// Numbers of requests.
pub(super) mod code {
    pub(in crate::fs) const LOOKUP: u32 = 1;
    pub(in crate::fs) const FORGET: u32 = 2;
    pub(in crate::fs) const GETATTR: u32 = 3;
    pub(in crate::fs) const SETATTR: u32 = 4;
    pub(in crate::fs) const READLINK: u32 = 5;
    pub(in crate::fs) const SYMLINK: u32 = 6;
    pub(in crate::fs) const MKNOD: u32 = 8;
    pub(in crate::fs) const MKDIR: u32 = 9;
    pub(in crate::fs) const UNLINK: u32 = 10;
    pub(in crate::fs) const RMDIR: u32 = 11;
    pub(in crate::fs) const RENAME: u32 = 12;
    pub(in crate::fs) const LINK: u32 = 13;
    pub(in crate::fs) const READ: u32 = 15;
    pub(in crate::fs) const WRITE: u32 = 16;
    pub(in crate::fs) const STATFS: u32 = 17;
    pub(in crate::fs) const RELEASE: u32 = 18;
    pub(in crate::fs) const FSYNC: u32 = 20;
    pub(in crate::fs) const INIT: u32 = 26;
    pub(in crate::fs) const OPENDIR: u32 = 27;
    pub(in crate::fs) const READDIR: u32 = 28;
    pub(in crate::fs) const RELEASEDIR: u32 = 29;
    pub(in crate::fs) const FSYNCDIR: u32 = 30;
    pub(in crate::fs) const DESTROY: u32 = 38;
    pub(in crate::fs) const BATCH_FORGET: u32 = 42;
    pub(in crate::fs) const FALLOCATE: u32 = 43;
    pub(in crate::fs) const RENAME2: u32 = 45;
}

/// What the two sides agree on.
pub(in crate::fs) mod flag {
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
pub(in crate::fs) const RENAME_NOREPLACE: u32 = 1;
