//! Moments of the past: which there are, and a new timeline that shows one of them.
//!
//! A position is answered with the newest retained point at or before it. A time or an LSN is
//! answered to the commit: the new timeline takes the data from the retained point before and the
//! write-ahead log from the one after, and the log is ended where the moment is. Postgres then
//! recovers as from any crash, and finds neither what came later nor a trace of it.

mod control;
mod lineage;
mod types;
pub mod wal;

use crate::error::{Error, Result};
use crate::fs::tree::Tree;
use crate::storage::catalog::Update;
use crate::storage::page::{PerLane, Position, ROOT_INODE, TimelineId};
use crate::storage::store::{Origin, Past, Store};
use control::Control;
use jiff::Timestamp;
use lineage::Span;
pub use types::{History, HistoryRange, Moment};
use wal::{Lsn, Stop, Wal, WalEnd};

/// Microseconds between 1970 and 2000, from where Postgres counts.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A moment that was found.
struct FoundMoment<'s> {
    span: &'s Span,
    /// The retained point before.
    from: Past,
    /// The one after, and where to stop on the way to it; none if `from` is the moment.
    until: Option<(Past, Stop)>,
    time_ns: i64,
}

/// Makes a timeline that shows `moment` of the past of `timeline`, held until a name is given to
/// it. `branch` names the past in errors.
pub fn fork(
    store: &Store,
    timeline: TimelineId,
    moment: &Moment,
    branch: &str,
) -> Result<TimelineId> {
    if store.catalog().window_ns(timeline) == 0 {
        let detail = format!(
            "branch \"{branch}\" keeps no history: `branchctl history {branch} --keep 1h` has it \
             kept from then on"
        );
        return Err(Error::conflict("no_history", detail));
    }
    let spans = lineage::spans(store, timeline)?;
    let found = match moment {
        Moment::Time(time) => at_time(store, &spans, *time),
        Moment::Position(position) => at_position(store, &spans, *position),
        Moment::Lsn(text) => {
            let bad = || {
                let detail = format!("{moment} is none: Postgres prints them as 0/16B3748");
                Error::invalid("invalid_moment", detail)
            };
            at_lsn(&spans, Lsn::parse(text).ok_or_else(bad)?)
        }
    };
    let Some(found) = found? else { return Err(outside(store, branch, moment, &spans)) };
    let at = found.until.map_or(found.from.at, |(until, _)| PerLane {
        data: found.from.at.data,
        wal: until.at.wal,
    });
    let past = Some(Past { at, time_ns: found.time_ns });
    let origin =
        Origin { timeline: found.span.timeline.id(), past, unfinished: found.until.is_some() };
    let (held, _) = store.fork(origin, |_| Update::default())?;
    let outcome = found.until.map_or(Ok(()), |(_, stop)| end_at(store, held, &found, stop));
    match outcome {
        Ok(()) => Ok(held),
        Err(error) => {
            release(store, held);
            Err(error)
        }
    }
}

/// As [`fork`], and transactions on it are read-only unless they ask to write.
pub fn fork_for_reading(
    store: &Store,
    timeline: TimelineId,
    moment: &Moment,
    branch: &str,
) -> Result<TimelineId> {
    let held = fork(store, timeline, moment, branch)?;
    let outcome = store.timeline(held).and_then(|timeline| make_read_only(&Tree::new(timeline)));
    outcome.map(|()| held).inspect_err(|_| release(store, held))
}

/// Adds to the settings that `ALTER SYSTEM` keeps.
fn make_read_only(tree: &Tree) -> Result<()> {
    let missing =
        |_| Error::unavailable("no_settings", "the data directory has no postgresql.auto.conf");
    let (inode, attributes) = tree.lookup(ROOT_INODE, b"postgresql.auto.conf").map_err(missing)?;
    let written = tree.write(inode, attributes.size, b"\ndefault_transaction_read_only = on\n");
    written.map_err(wal::below("write postgresql.auto.conf"))
}

/// Removes a timeline that [`fork`] made and no name was given to.
pub fn release(store: &Store, held: TimelineId) {
    match store.release(held) {
        Ok(freed) => store.free(&freed),
        Err(error) => {
            tracing::error!(
                timeline = %held, %error,
                "a timeline without a name stays until the next start"
            )
        }
    }
}

/// The moments that can be gone back to.
pub fn history(store: &Store, timeline: TimelineId) -> Result<History> {
    let window_ns = store.catalog().window_ns(timeline);
    let spans = if window_ns > 0 { lineage::spans(store, timeline)? } else { Vec::new() };
    let window_s = window_ns.unsigned_abs() / 1_000_000_000;
    Ok(History { ranges: ranges(&spans, store.clock().now_ns()), window_s })
}

/// A time of the store as the API shows it.
pub(crate) fn timestamp(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn at_time<'s>(
    store: &Store,
    spans: &'s [Span],
    time: Timestamp,
) -> Result<Option<FoundMoment<'s>>> {
    let Ok(time_ns) = i64::try_from(time.as_nanosecond()) else { return Ok(None) };
    if time_ns > store.clock().now_ns() {
        return Ok(None);
    }
    let stop = Stop::Time(time_ns.div_euclid(1_000) - POSTGRES_EPOCH_US);
    let around = |span: &'s Span| {
        let (from, until) = span.around(time_ns)?;
        Some(FoundMoment { span, from, until: until.map(|until| (until, stop)), time_ns })
    };
    Ok(spans.iter().find_map(around))
}

fn at_position<'s>(
    store: &Store,
    spans: &'s [Span],
    position: Position,
) -> Result<Option<FoundMoment<'s>>> {
    if position >= store.newest_position() {
        return Ok(None);
    }
    let before = |span: &'s Span| {
        let from = span.before(position)?;
        Some(FoundMoment { span, from, until: None, time_ns: from.time_ns })
    };
    Ok(spans.iter().find_map(before))
}

fn at_lsn<'s>(spans: &'s [Span], lsn: Lsn) -> Result<Option<FoundMoment<'s>>> {
    for span in spans {
        // The first point that has more than the log up to there; those before it end the sooner.
        let (mut ends, mut behind) = (0, span.points.len());
        while ends < behind {
            let middle = ends + (behind - ends) / 2;
            if end_of_log(span, span.points[middle])? <= lsn {
                ends = middle + 1
            } else {
                behind = middle
            }
        }
        let before = behind.checked_sub(1).map(|before| span.points[before]);
        let Some(from) = before.filter(lineage::is_image) else { continue };
        let until = span.points.get(behind).map(|until| (*until, Stop::Lsn(lsn)));
        let reached = until.is_some() || end_of_log(span, from)? == lsn;
        let found = FoundMoment {
            span,
            from,
            until,
            time_ns: until.map_or(from.time_ns, |(until, _)| until.time_ns),
        };
        return Ok(reached.then_some(found));
    }
    Ok(None)
}

fn end_of_log(span: &Span, point: Past) -> Result<Lsn> {
    Wal::open(&Tree::new(span.timeline.view(point.at)))?.end()
}

/// Ends the write-ahead log of `held` where the moment is, and sees to it that Postgres recovers up
/// to there.
fn end_at(store: &Store, held: TimelineId, found: &FoundMoment<'_>, stop: Stop) -> Result<()> {
    let older = Tree::new(found.span.timeline.view(found.from.at));
    let from = Wal::open(&older)?.near_end()?;
    let tree = Tree::new(store.timeline(held)?);
    let (wal, control) = (Wal::open(&tree)?, Control::read(&tree)?);
    let outcome = wal.find(from, stop)?;
    let (Ok(end) | Err(WalEnd { at: end, .. })) = outcome;
    let read = outcome.as_ref().map_or_else(|end| end.is_last, |_| true);
    // A base backup that never ran begins elsewhere; Postgres says itself if something is missing
    // there.
    let begun = tree.lookup(ROOT_INODE, b"backup_label").is_ok() || wal.covers(control.redo(), end);
    if !(read && begun) {
        let detail = "the write-ahead log on the way there is not complete; choose a position from \
                      the history instead";
        return Err(Error::not_found("moment_outside_history", detail));
    }
    let now_ns = store.clock().now_ns();
    if outcome.is_ok() {
        wal.cut(end, now_ns)?;
    }
    control.ask_for_recovery(&tree)?;
    let timeline = tree.timeline();
    timeline.mark_begin()?;
    timeline.sync_and_wait()
}

fn ranges(spans: &[Span], now_ns: i64) -> Vec<HistoryRange> {
    let mut ranges: Vec<HistoryRange> = Vec::new();
    for span in spans.iter().rev() {
        let (Some(first), Some(last)) = (span.images().next(), span.images().next_back()) else {
            continue;
        };
        let end_ns = span.points.last().filter(|_| !span.head).map_or(now_ns, |end| end.time_ns);
        // What cannot be read is not named; the range is there all the same.
        let lsn = |point: &Past| end_of_log(span, *point).ok();
        let (from, to) = (timestamp(first.time_ns), timestamp(end_ns));
        match ranges.last_mut() {
            Some(range) if range.to >= from => {
                (range.to, range.to_position, range.to_lsn) = (to, last.at.data, lsn(last));
                range.points += span.points.len() as u64;
            }
            _ => ranges.push(HistoryRange {
                from,
                to,
                from_position: first.at.data,
                to_position: last.at.data,
                from_lsn: lsn(first),
                to_lsn: lsn(last),
                points: span.points.len() as u64,
            }),
        }
    }
    ranges
}

fn outside(store: &Store, branch: &str, moment: &Moment, spans: &[Span]) -> Error {
    let text = |range: &HistoryRange| {
        let lsn =
            |lsn: &Option<Lsn>| lsn.as_ref().map_or(String::new(), |lsn| format!(", LSN {lsn}"));
        format!(
            "{} (position {}{}) to {} (position {}{})",
            range.from,
            range.from_position,
            lsn(&range.from_lsn),
            range.to,
            range.to_position,
            lsn(&range.to_lsn)
        )
    };
    let known: Vec<String> = ranges(spans, store.clock().now_ns()).iter().map(text).collect();
    let known = if known.is_empty() { "nothing yet".to_owned() } else { known.join(", and ") };
    let detail =
        format!("{moment} is outside of the history of branch \"{branch}\", which has: {known}");
    Error::not_found("moment_outside_history", detail)
}
