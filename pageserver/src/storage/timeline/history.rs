//! Forks, marks, and forgetting them.
//!
//! A *retained point* is a position that both lanes keep readable: a child's fork, or a mark.
//! Invariant: forgetting a mark is a durable record before any version is dropped that only the
//! mark saw, so no recovery brings the mark back without its data.

use crate::error::{Error, Result};
use crate::locks::{read, write};
use crate::storage::index::marks::Mark;
use crate::storage::log::format::{Change, MAX_CHANGES_BYTES};
use crate::storage::page::{LaneKind, PerLane, Position};
use crate::storage::sabotage::{self, Defect};
use crate::storage::timeline::Timeline;
use crate::storage::timeline::lane::LaneState;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Marks that one record forgets.
const MAX_FORGOTTEN: usize = MAX_CHANGES_BYTES / 16;

impl Timeline {
    /// Takes a position that sees everything so far and keeps it readable. Returns it with the time
    /// and the newest positions of the lanes, which are durable up to it afterwards.
    pub fn fork_point(self: &Arc<Self>) -> Result<(Position, i64, PerLane<Position>)> {
        let (position, time_ns, last) = {
            let mut data = write(&self.lanes.data.state);
            let mut wal = write(&self.lanes.wal.state);
            let position = self.take_position();
            data.index.retain(position);
            wal.index.retain(position);
            let newest_ns = data.index.marks().newest().map_or(i64::MIN, |newest| newest.time_ns);
            let last = PerLane { data: data.log.last(), wal: wal.log.last() };
            let newest = last.data.max(last.wal);
            assert!(newest < position, "a fork at {position} does not see {newest}");
            (position, self.shared.clock.now_ns().max(newest_ns), last)
        };
        if !sabotage::active(Defect::ForkSync) {
            self.sync_and_wait().inspect_err(|_| self.release(PerLane::both(position)))?;
        }
        Ok((position, time_ns, last))
    }

    /// Keeps what a reader at retained points sees for one more of them. Returns the newest
    /// positions of the lanes, as [`Timeline::fork_point`] does.
    pub fn fork_point_at(self: &Arc<Self>, at: PerLane<Position>) -> Result<PerLane<Position>> {
        let last = {
            let mut lanes = PerLane::from_fn(|lane| write(&self.lanes[lane].state));
            let readable = |lane: LaneKind| {
                at[lane] <= self.begin() || lanes[lane].index.retained().has(at[lane])
            };
            if !LaneKind::ALL.into_iter().all(readable) {
                let detail = "the moment was let go of meanwhile; ask for the history again";
                return Err(Error::not_found("moment_gone", detail));
            }
            LaneKind::ALL.into_iter().for_each(|lane| lanes[lane].index.retain(at[lane]));
            PerLane::from_fn(|lane| lanes[lane].log.last())
        };
        self.sync_and_wait().inspect_err(|_| self.release(at))?;
        Ok(last)
    }

    /// A position at which it shows what it was forked from, or nothing.
    pub fn begin(&self) -> Position {
        self.ancestor.as_ref().map_or(0, |ancestor| ancestor.at.data.max(ancestor.at.wal))
    }

    /// A child that was forked at these positions is gone.
    pub fn release(&self, at: PerLane<Position>) {
        for lane in LaneKind::ALL {
            write(&self.lanes[lane].state).index.release(at[lane]);
        }
    }

    /// The moments that can be gone back to, oldest first.
    pub fn marks(&self) -> Vec<Mark> {
        read(&self.lanes.data.state).index.marks().all().to_vec()
    }

    /// Marks the moment if something changed and the newest mark is older than `age_ns`.
    pub(in crate::storage) fn mark_if_older(&self, age_ns: i64) -> Result<()> {
        let newest = read(&self.lanes.data.state).index.marks().newest();
        let now_ns = self.shared.clock.now_ns();
        // A clock that was set back would take long to get beyond the newest.
        let due = |newest: Mark| {
            newest.time_ns > now_ns || now_ns.saturating_sub(newest.time_ns) >= age_ns
        };
        if newest.is_none_or(due) {
            self.mark(false)?;
        }
        Ok(())
    }

    /// Marks this moment if anything changed since the last one, and forgets those that are due.
    /// Returns the newest.
    pub fn mark(&self, kept: bool) -> Result<Option<Mark>> {
        let mut data = write(&self.lanes.data.state);
        let mut wal = write(&self.lanes.wal.state);
        // Under both locks, so that the mark has all that was appended before this time, and
        // nothing that came later.
        let now_ns = self.shared.clock.now_ns();
        self.refuse_if_latched()?;
        let newest = data.index.marks().newest();
        let unchanged =
            newest.map_or(0, |newest| newest.position) >= self.changed.load(Ordering::SeqCst);
        if unchanged && (!kept || newest.is_some_and(|newest| newest.kept)) {
            return Ok(newest);
        }
        // Clocks may be set back; moments stay in order.
        let time_ns = newest.map_or(now_ns, |newest| now_ns.max(newest.time_ns));
        let mut due = data.index.marks().due(now_ns, self.window_ns());
        due.truncate(MAX_FORGOTTEN);
        let position = self.take_position();
        let mut changes: Vec<Change> =
            due.iter().map(|mark| Change::NoMark { mark: *mark }).collect();
        changes.push(Change::Mark { time_ns, kept });
        self.append_marks(&mut data, position, &changes)?;
        due.iter().for_each(|mark| wal.index.release(*mark));
        wal.index.retain(position);
        let newest = data.index.marks().newest();
        assert_eq!(newest.map(|mark| mark.position), Some(position), "the newest mark");
        Ok(newest)
    }

    /// Marks the beginning of a past, before anything else is marked.
    pub fn mark_begin(&self) -> Result<()> {
        let mut data = write(&self.lanes.data.state);
        let mut wal = write(&self.lanes.wal.state);
        self.refuse_if_latched()?;
        assert!(data.index.marks().newest().is_none(), "timeline {} has marks", self.id());
        let (position, time_ns) = (self.take_position(), self.shared.clock.now_ns());
        self.append_marks(&mut data, position, &[Change::Mark { time_ns, kept: false }])?;
        wal.index.retain(position);
        Ok(())
    }

    /// Forgets these marks.
    pub fn forget_marks(&self, marks: &[Position]) -> Result<()> {
        for some in marks.chunks(MAX_FORGOTTEN) {
            let mut data = write(&self.lanes.data.state);
            let mut wal = write(&self.lanes.wal.state);
            self.refuse_if_latched()?;
            let known =
                |mark: &&Position| data.index.marks().all().iter().any(|m| m.position == **mark);
            let known: Vec<Position> = some.iter().filter(known).copied().collect();
            let changes: Vec<Change> =
                known.iter().map(|mark| Change::NoMark { mark: *mark }).collect();
            let position = self.take_position();
            if !changes.is_empty() {
                self.append_marks(&mut data, position, &changes)?;
            }
            known.iter().for_each(|mark| wal.index.release(*mark));
            data.index.sweep();
            wal.index.sweep();
        }
        Ok(())
    }

    /// The marks that are too old, or closer together than their age allows.
    pub(in crate::storage) fn due(&self) -> Vec<Position> {
        let now_ns = self.shared.clock.now_ns();
        read(&self.lanes.data.state).index.marks().due(now_ns, self.window_ns())
    }

    /// The marks to forget while nothing is written.
    pub(in crate::storage) fn due_at_rest(&self) -> Vec<Position> {
        let now_ns = self.shared.clock.now_ns();
        read(&self.lanes.data.state).index.marks().due_at_rest(now_ns, self.window_ns())
    }

    fn append_marks(
        &self,
        data: &mut LaneState,
        position: Position,
        changes: &[Change],
    ) -> Result<()> {
        assert!(changes.len() <= MAX_FORGOTTEN + 1, "{} changes of marks", changes.len());
        let lane = &self.lanes.data;
        let durable = lane.durable.load(Ordering::SeqCst);
        let (sequence, offset) =
            data.log.append(position, durable, changes, &[]).map_err(|error| self.latch(error))?;
        data.index.apply(position, changes, sequence, offset);
        lane.appended.store(position, Ordering::SeqCst);
        Ok(())
    }

    /// Called before write-ahead files are removed, which means that a checkpoint was completed:
    /// marks the moment before the first removal since the data lane was synced. So the files that
    /// some mark needs are there at the next one.
    pub fn mark_before_removal(&self) -> Result<()> {
        if self.window_ns() > 0
            && self.in_use.load(Ordering::SeqCst)
            && self.data_synced.swap(false, Ordering::SeqCst)
        {
            self.mark(true)?;
        }
        Ok(())
    }

    /// A name or a child needs it: what happens to it from now on is its history.
    pub(in crate::storage) fn begin_history(&self) {
        self.in_use.store(true, Ordering::SeqCst);
    }

    /// How long its moments can be gone back to, in nanoseconds; 0 for not at all.
    pub(in crate::storage) fn window_ns(&self) -> i64 {
        self.window_ns.load(Ordering::Relaxed)
    }
}
