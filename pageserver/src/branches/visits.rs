//! The moments that are visited, and their timelines.

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::page::TimelineId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Moments that may be visited at the same time.
const MAX_VISITS: usize = 100;

/// The branch's timeline, and what was asked for.
pub(super) type VisitKey = (TimelineId, String);

/// The moments that are visited.
#[derive(Default)]
pub(super) struct Visits(Mutex<HashMap<VisitKey, Arc<VisitedMoment>>>);

pub(super) struct VisitedMoment {
    /// Empty until the moment is found.
    pub(super) timeline: OnceCell<TimelineId>,
    asked: Mutex<Instant>,
}

impl Visits {
    /// The visit of a moment, begun if nobody has asked for it yet.
    pub(super) fn enter(&self, key: &VisitKey) -> Result<Arc<VisitedMoment>> {
        let mut visits = lock(&self.0);
        if let Some(visit) = visits.get(key) {
            *lock(&visit.asked) = Instant::now();
            return Ok(Arc::clone(visit));
        }
        if visits.len() >= MAX_VISITS {
            let detail =
                format!("{MAX_VISITS} moments are visited already; end some of those sessions");
            return Err(Error::unavailable("too_many_moments", detail));
        }
        let visit = Arc::new(VisitedMoment {
            timeline: OnceCell::new(),
            asked: Mutex::new(Instant::now()),
        });
        visits.insert(key.clone(), Arc::clone(&visit));
        Ok(visit)
    }

    /// Forgets a visit whose moment was not found, unless somebody else still looks for it.
    pub(super) fn leave(&self, key: &VisitKey, visit: Arc<VisitedMoment>) {
        let mut visits = lock(&self.0);
        drop(visit);
        let unused = |visit: &Arc<VisitedMoment>| {
            // Nobody gets another reference without the lock.
            Arc::strong_count(visit) == 1 && visit.timeline.get().is_none()
        };
        if visits.get(key).is_some_and(unused) {
            visits.remove(key);
        }
    }

    /// Takes out the visits that are over.
    pub(super) fn take_over(&self, over: impl Fn(TimelineId, Duration) -> bool) -> Vec<TimelineId> {
        let mut ended = Vec::new();
        lock(&self.0).retain(|_, visit| {
            let timeline = visit.timeline.get().copied();
            let timeline =
                timeline.filter(|timeline| over(*timeline, lock(&visit.asked).elapsed()));
            ended.extend(timeline);
            timeline.is_none()
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(moment: &str) -> VisitKey {
        (TimelineId(1), moment.to_owned())
    }

    #[test]
    fn those_who_ask_for_a_moment_share_its_visit_until_it_is_over() {
        let visits = Visits::default();
        let (one, two) = (visits.enter(&key("a")).unwrap(), visits.enter(&key("a")).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        one.timeline.set(TimelineId(7)).unwrap();
        visits.leave(&key("a"), one);
        visits.leave(&key("a"), two);
        assert_eq!(visits.take_over(|_, _| false), []);
        let again = visits.enter(&key("a")).unwrap();
        assert_eq!(again.timeline.get(), Some(&TimelineId(7)), "it was found");
        assert_eq!(visits.take_over(|timeline, _| timeline == TimelineId(7)), [TimelineId(7)]);
        assert!(visits.enter(&key("a")).unwrap().timeline.get().is_none());
    }

    #[test]
    fn a_moment_that_is_not_found_takes_no_place() {
        let visits = Visits::default();
        for nth in 0..3 * MAX_VISITS {
            let (one, two) = (visits.enter(&key("b")).unwrap(), visits.enter(&key("b")).unwrap());
            visits.leave(&key("b"), one);
            assert_eq!(lock(&visits.0).len(), 1, "{nth}: somebody still looks");
            visits.leave(&key("b"), two);
            assert_eq!(lock(&visits.0).len(), 0, "{nth}");
        }
        let all: Vec<_> = (0..MAX_VISITS).map(|n| visits.enter(&key(&n.to_string()))).collect();
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(visits.enter(&key("more")).err().unwrap().code, "too_many_moments");
    }
}
