//! The plain types of the page store: what identifies a page, a history and a point in it.

use std::fmt;
use std::str::FromStr;

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
