//! The plain types of the page store: what identifies a page, a history and a point in it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Index, IndexMut};
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

/// One of each for the two lanes of a timeline. As JSON, a list of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLane<T> {
    /// That of the data lane.
    pub data: T,
    /// That of the write-ahead lane.
    pub wal: T,
}

impl<T> PerLane<T> {
    /// What `make` gives for each lane, the data lane first.
    pub fn from_fn(mut make: impl FnMut(LaneKind) -> T) -> Self {
        Self { data: make(LaneKind::Data), wal: make(LaneKind::Wal) }
    }

    /// The same for both.
    pub fn both(value: T) -> Self
    where
        T: Copy,
    {
        Self { data: value, wal: value }
    }

    /// Both, the data lane's first.
    pub fn iter(&self) -> std::array::IntoIter<&T, 2> {
        [&self.data, &self.wal].into_iter()
    }
}

impl<T> Index<LaneKind> for PerLane<T> {
    type Output = T;

    fn index(&self, lane: LaneKind) -> &T {
        match lane {
            LaneKind::Data => &self.data,
            LaneKind::Wal => &self.wal,
        }
    }
}

impl<T> IndexMut<LaneKind> for PerLane<T> {
    fn index_mut(&mut self, lane: LaneKind) -> &mut T {
        match lane {
            LaneKind::Data => &mut self.data,
            LaneKind::Wal => &mut self.wal,
        }
    }
}

impl<T: Serialize> Serialize for PerLane<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [&self.data, &self.wal].serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PerLane<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [data, wal] = Deserialize::deserialize(deserializer)?;
        Ok(Self { data, wal })
    }
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
