//! The plain types of the page store: what identifies a page, a history and a point in it.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one page, the unit in which file contents are kept: Postgres's default block size.
pub const PAGE_BYTES: usize = 8192;

/// A point in the order of all records of a store: strictly increasing, never used twice.
pub type Position = u64;

/// A position after every record: reads at it see the head.
pub const HEAD: Position = Position::MAX;

/// One history of one data directory. Numbers are never used twice within a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TimelineId(pub u64);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(TimelineId)
    }
}

/// The two logs of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LaneKind {
    /// Everything but the write-ahead log.
    Data = 0,
    /// Everything below `pg_wal`.
    Wal = 1,
}

impl LaneKind {
    /// Both lanes, in the order in which their locks are taken.
    pub const ALL: [LaneKind; 2] = [LaneKind::Data, LaneKind::Wal];
}

/// Inode of a timeline's own directory.
pub const ROOT_INODE: u64 = 1;

/// Bit of an inode number that says it belongs to the write-ahead log: `pg_wal` and everything
/// below.
pub const WAL_CLASS: u64 = 1 << 63;

/// Position at which an inode was made: its number without the class bit, so that no number is used
/// twice.
pub fn inode_created(inode: u64) -> Position {
    inode & !WAL_CLASS
}

/// The lane an inode belongs to.
pub fn lane_of(inode: u64) -> LaneKind {
    if inode & WAL_CLASS == 0 { LaneKind::Data } else { LaneKind::Wal }
}

/// The order of all records of a store.
pub struct Positions(AtomicU64);

impl Positions {
    /// Positions from `first` on.
    pub fn starting_at(first: Position) -> Self {
        Self(AtomicU64::new(first))
    }

    /// The position that will be taken next.
    pub fn next(&self) -> Position {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the next position.
    pub fn take(&self) -> Position {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
