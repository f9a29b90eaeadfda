//! Marks: the moments of a timeline that can be gone back to, and for how long.
//!
//! A mark is a record of the data lane that says what time it was; its position is a point at which
//! both lanes stay readable. Marks are thinned as they age: all of the last hour, then one for each
//! minute, none beyond the window.

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

    /// Those that need not be kept at `now_ns` if the window is so long; all if there is none.
    pub(in crate::storage) fn due(&self, now_ns: i64, window_ns: i64) -> Vec<Position> {
        if window_ns == 0 {
            return self.0.iter().map(|mark| mark.position).collect();
        }
        let mut kept_minute = None;
        // The newest one from before the window is what was when it began.
        let outside =
            self.0.partition_point(|mark| now_ns.saturating_sub(mark.time_ns) > window_ns);
        let floor = outside.checked_sub(1).map(|floor| self.0[floor].position);
        let due = |mark: &&Mark| {
            let age = now_ns.saturating_sub(mark.time_ns);
            if age > window_ns {
                return Some(mark.position) != floor;
            }
            if age <= FINE_NS || mark.kept {
                return false;
            }
            let minute = Some(mark.time_ns.div_euclid(COARSE_NS));
            std::mem::replace(&mut kept_minute, minute) == minute
        };
        self.0.iter().filter(due).map(|mark| mark.position).collect()
    }

    /// Those to forget in a timeline that rests: thinned once when the newest is old enough, and
    /// all but the newest when all are too old; all at once if there is no window. In between each
    /// would cost it its rest.
    pub(in crate::storage) fn due_at_rest(&self, now_ns: i64, window_ns: i64) -> Vec<Position> {
        match self.newest().map(|newest| now_ns.saturating_sub(newest.time_ns)) {
            Some(age) if age > window_ns || window_ns == 0 => self.due(now_ns, window_ns),
            Some(age) if age > FINE_NS => self.due(now_ns, i64::MAX),
            _ => Vec::new(),
        }
    }

    /// From when on marks are forgotten at rest, if the newest is of this time.
    pub(in crate::storage) fn due_at_rest_ns(newest_ns: i64, window_ns: i64) -> i64 {
        newest_ns.saturating_add(FINE_NS.min(window_ns))
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
        // Older than an hour are the first 400 seconds: one for each minute, and the one that is
        // kept.
        let old: Vec<i64> = marks
            .all()
            .iter()
            .map(|mark| mark.time_ns / SECOND)
            .filter(|second| *second < 400)
            .collect();
        assert_eq!(old, [0, 60, 90, 120, 180, 240, 300, 360]);
        assert_eq!(marks.all().len(), 8 + 3_600);
        assert_eq!(marks.due(now, day), [] as [Position; 0], "all is done");
        let due = marks.due(now, 1_000 * SECOND);
        let outside = marks.all().iter().filter(|mark| mark.time_ns < 3_000 * SECOND).count();
        assert_eq!(due.len(), outside - 1, "what was when the window began stays");
        assert_eq!(marks.due(now + 2 * day, day).len(), marks.all().len() - 1);
        // Without a window none stays, also if the clock was set back.
        for now in [now, 0] {
            assert_eq!(marks.due(now, 0).len(), marks.all().len());
            assert_eq!(marks.due_at_rest(now, 0).len(), marks.all().len());
        }

        // At rest it happens twice: an hour later, and when the window has passed.
        let rest = every_second(4_000);
        assert_eq!(rest.due_at_rest(now + 3_000 * SECOND, day), [] as [Position; 0]);
        let thinned = rest.due_at_rest(now + 3_700 * SECOND, day).len();
        assert_eq!(thinned, 4_000 - 67 - 1, "one for each minute stays, and the one that is kept");
        assert_eq!(rest.due_at_rest(now + 90_000 * SECOND, day).len(), 3_999);
        assert_eq!(Marks::due_at_rest_ns(now, 10 * SECOND) - now, 10 * SECOND);
    }
}
