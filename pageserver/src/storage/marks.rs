//! Marks: the moments of a timeline that can be gone back to, and for how long.
//!
//! A mark is a record of the data lane that says what time it was; its position is a point at which both lanes stay
//! readable. Marks are thinned as they age: all of the last hour, then one for each minute, none beyond the window.

use crate::storage::page::Position;

/// Marks that are younger are all kept.
const FINE_NS: i64 = 3_600 * 1_000_000_000;
/// Of older ones, the first in each such span is.
const COARSE_NS: i64 = 60 * 1_000_000_000;

/// A moment of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What was appended up to here, it holds.
    pub position: Position,
    /// When it was, in nanoseconds since 1970.
    pub time_ns: i64,
    /// Stays as long as the window: write-ahead files were removed after it.
    pub kept: bool,
}

/// The marks of a timeline, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Marks(Vec<Mark>);

impl Marks {
    /// Adds a mark that is newer than all others.
    pub(super) fn add(&mut self, mark: Mark) {
        let newest = self.newest().map_or(0, |newest| newest.position);
        assert!(mark.position > newest, "mark {} after {newest}", mark.position);
        self.0.push(mark);
    }

    /// Removes the mark at this position; false if there is none.
    pub(super) fn remove(&mut self, position: Position) -> bool {
        let found = self.0.binary_search_by_key(&position, |mark| mark.position);
        found.map(|at| self.0.remove(at)).is_ok()
    }

    /// The newest mark.
    pub fn newest(&self) -> Option<Mark> {
        self.0.last().copied()
    }

    /// All of them, oldest first.
    pub fn all(&self) -> &[Mark] {
        &self.0
    }

    /// Those that need not be kept at `now_ns` if the window is so long.
    pub(super) fn due(&self, now_ns: i64, window_ns: i64) -> Vec<Position> {
        let mut kept_minute = None;
        let due = |mark: &&Mark| {
            let age = now_ns.saturating_sub(mark.time_ns);
            if age > window_ns {
                return true;
            }
            if age <= FINE_NS || mark.kept {
                return false;
            }
            let minute = Some(mark.time_ns.div_euclid(COARSE_NS));
            std::mem::replace(&mut kept_minute, minute) == minute
        };
        self.0.iter().filter(due).map(|mark| mark.position).collect()
    }

    /// When the next mark is due if no other is added; `None` without marks.
    pub(super) fn next_due_ns(&self, now_ns: i64, window_ns: i64) -> Option<i64> {
        let (oldest, newest) = (self.0.first()?, self.0.last()?);
        let thin = newest.time_ns.saturating_add(FINE_NS);
        let gone = oldest.time_ns.saturating_add(window_ns);
        // Thinned once, when the newest is old enough, rather than minute by minute.
        Some(if thin > now_ns && thin < newest.time_ns.saturating_add(window_ns) { thin } else { gone.max(now_ns) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn every_second(count: i64) -> Marks {
        let mark = |second: i64| Mark {
            position: second.unsigned_abs() + 1,
            time_ns: second * SECOND,
            kept: second == 90,
        };
        Marks((0..count).map(mark).collect())
    }

    #[test]
    fn marks_are_thinned_with_age_and_end_with_the_window() {
        let mut marks = every_second(4_000);
        let now = 4_000 * SECOND;
        let day = 86_400 * SECOND;
        for position in marks.due(now, day) {
            assert!(marks.remove(position));
        }
        // Older than an hour are the first 400 seconds: one for each minute, and the one that is kept.
        let old: Vec<i64> =
            marks.all().iter().map(|mark| mark.time_ns / SECOND).filter(|second| *second < 400).collect();
        assert_eq!(old, [0, 60, 90, 120, 180, 240, 300, 360]);
        assert_eq!(marks.all().len(), 8 + 3_600);
        assert_eq!(marks.due(now, day), [] as [Position; 0], "all is done");
        let due = marks.due(now, 1_000 * SECOND);
        assert_eq!(due.len(), marks.all().iter().filter(|mark| mark.time_ns < 3_000 * SECOND).count());
        assert_eq!(marks.due(now + 2 * day, day).len(), marks.all().len());
    }
}
