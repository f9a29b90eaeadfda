//! The past of a timeline: its own retained points, and those of the timelines it comes from, up to
//! where each was forked.

use crate::error::Result;
use crate::storage::index::marks::Mark;
use crate::storage::page::{PerLane, Position, TimelineId};
use crate::storage::store::{Past, Store};
use crate::storage::timeline::Timeline;
use std::sync::Arc;

/// The part of a past that one timeline has.
pub(super) struct Span {
    pub(super) timeline: Arc<Timeline>,
    /// Oldest first. The last one is the head of the lineage's newest timeline, or where the next
    /// one was forked.
    pub(super) points: Vec<Past>,
    /// Whether it is that of the lineage's newest timeline, which goes on.
    pub(super) head: bool,
}

impl Span {
    /// The newest point at or before `time_ns` and the one after it.
    pub(super) fn around(&self, time_ns: i64) -> Option<(Past, Option<Past>)> {
        let behind = self.points.partition_point(|point| point.time_ns <= time_ns);
        let (mut nth, mut after) = (behind.checked_sub(1)?, self.points.get(behind).copied());
        if !is_image(&self.points[nth]) {
            // The log of it goes further than the moment that was forked there: it has to be ended
            // again.
            after = Some(self.points[nth]).filter(|point| point.time_ns == time_ns);
            nth = nth.checked_sub(1)?;
            after?;
        }
        let before = self.points[nth];
        // Behind the end of a span there may be a gap.
        (self.head || after.is_some() || before.time_ns == time_ns).then_some((before, after))
    }

    /// The points at which both lanes are as of one moment.
    pub(super) fn images(&self) -> impl DoubleEndedIterator<Item = &Past> {
        self.points.iter().filter(|point| is_image(point))
    }

    /// The newest point at or before `position`.
    pub(super) fn before(&self, position: Position) -> Option<Past> {
        let before = *self.images().rev().find(|point| point.at.data <= position)?;
        let last = self.points.last().is_some_and(|last| last.at.data < position);
        (self.head || !last).then_some(before)
    }
}

/// Whether the point is a moment as it is. Where an exact moment was forked, the lanes are as of
/// two.
pub(super) fn is_image(point: &Past) -> bool {
    point.at.data == point.at.wal
}

/// The spans of a timeline's past, newest first; each with a point at least. The moment is marked
/// first.
pub(super) fn spans(store: &Store, id: TimelineId) -> Result<Vec<Span>> {
    let newest = store.timeline(id)?;
    // A latched one takes no mark any more, but what it had is there.
    if newest.latched().is_none() && store.catalog().window_ns(id) > 0 {
        newest.mark(false)?;
    }
    let (mut spans, mut next) = (Vec::new(), Some((newest, None::<Past>)));
    let mut oldest_ns = 1;
    while let Some((timeline, end)) = next.take() {
        // Each timeline on the way keeps what its own window has, and no more is asked for.
        oldest_ns = store.catalog().oldest_ns(timeline.id()).max(oldest_ns);
        // What ended before the window began is no past any more.
        if end.is_some_and(|end: Past| end.time_ns < oldest_ns) {
            break;
        }
        let record = store.catalog().timeline(timeline.id()).and_then(|record| record.ancestor);
        let limit: Position = end.map_or(Position::MAX, |end| end.at.data);
        let begin = record.as_ref().filter(|record| record.begins_ns >= oldest_ns);
        let begin = begin
            .map(|record| Past { at: PerLane::both(timeline.begin()), time_ns: record.begins_ns });
        // The newest mark before the window is what was when it began.
        let marks: Vec<Mark> =
            timeline.marks().into_iter().filter(|mark| mark.position <= limit).collect();
        let first = marks.partition_point(|mark| mark.time_ns <= oldest_ns).saturating_sub(1);
        let point = |mark: Mark| Past {
            at: PerLane::both(mark.position),
            time_ns: mark.time_ns.max(oldest_ns),
        };
        let marks = marks.into_iter().skip(first).map(point);
        let points: Vec<Past> = begin.into_iter().chain(marks).chain(end).collect();
        next = record.and_then(|record| {
            let end = Past { at: record.at, time_ns: record.time_ns };
            Some((Arc::clone(timeline.parent()?), Some(end)))
        });
        if !points.is_empty() {
            spans.push(Span { timeline, points, head: end.is_none() });
        }
    }
    Ok(spans)
}
