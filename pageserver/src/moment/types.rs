//! Moments, and what there is to go back to, as the services speak of them.

use super::wal::Lsn;
use crate::storage::page::Position;
use jiff::Timestamp;
use std::fmt;

/// A moment in a branch's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A point in time.
    Time(Timestamp),
    /// A place in the write-ahead log, as Postgres prints it. Whoever looks for it reads it.
    Lsn(String),
    /// A position of the page store.
    Position(Position),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "{time}"),
            Self::Lsn(lsn) => write!(f, "LSN {}", lsn.chars().take(40).collect::<String>()),
            Self::Position(position) => write!(f, "position {position}"),
        }
    }
}

/// The moments that can be gone back to.
#[derive(Clone, Debug)]
pub struct History {
    /// Ranges of moments, oldest first.
    pub ranges: Vec<HistoryRange>,
    /// How long moments can be gone back to, in seconds.
    pub window_s: u64,
}

/// A range in which every moment can be gone back to.
#[derive(Clone, Debug)]
pub struct HistoryRange {
    /// Its oldest moment.
    pub from: Timestamp,
    /// Its newest moment.
    pub to: Timestamp,
    /// Position at its beginning.
    pub from_position: Position,
    /// Position at its end.
    pub to_position: Position,
    /// Where the write-ahead log ended at its beginning, if that can be read.
    pub from_lsn: Option<Lsn>,
    /// Where the write-ahead log ended at its end.
    pub to_lsn: Option<Lsn>,
    /// Positions in it that are kept as they were.
    pub points: u64,
}
