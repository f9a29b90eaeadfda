//! How long the moments of each timeline are kept: its window.
//!
//! The window of a timeline is that of the branch whose name leads to it. A timeline that has no
//! name and is kept for those made from it has the longest of their windows, since their past goes
//! through it. One without a name and without a child is held for somebody: nothing of it is
//! dropped until it has a name, or is gone.
//!
//! Invariant: a longer window brings nothing back. Once a fork is older than the window of its
//! timeline, nobody can go back to it, and a merge may leave out what only the fork saw. A change
//! by which a window may grow takes the times off such forks, in the same transaction, and without
//! them no window reaches the fork.

use crate::locks::lock;
use crate::storage::catalog::change::CatalogChange;
use crate::storage::catalog::records::{BranchRecord, Record, Row, Stored, TimelineRecord};
use crate::storage::catalog::state::CatalogState;
use crate::storage::page::TimelineId;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

const SECOND_NS: i64 = 1_000_000_000;

/// The windows of the timelines that were opened, for those who may not wait for the catalog.
#[derive(Default)]
pub(super) struct Windows(Mutex<HashMap<u64, Arc<AtomicI64>>>);

impl Windows {
    /// The window of a timeline, which follows the catalog from now on. The caller holds the state.
    pub(super) fn of(&self, state: &CatalogState, id: TimelineId) -> Arc<AtomicI64> {
        let new = || Arc::new(AtomicI64::new(state.window_ns(id)));
        Arc::clone(lock(&self.0).entry(id.0).or_insert_with(new))
    }

    /// Brings the windows of these timelines up to date. The caller holds the state, so that a
    /// later change is not overtaken.
    pub(super) fn follow(&self, state: &CatalogState, changed: &BTreeSet<u64>) {
        let (mut windows, mut known) = (lock(&self.0), HashMap::new());
        // Those that were forked later come first: what an older one keeps follows from them.
        for id in changed.iter().rev() {
            if !state.timelines.contains_key(id) {
                windows.remove(id);
                continue;
            }
            let window_ns = state.window_from(*id, &known);
            known.insert(*id, window_ns);
            if let Some(window) = windows.get(id) {
                window.store(window_ns, Ordering::Relaxed);
            }
        }
    }
}

impl CatalogState {
    /// How long moments of the timeline can be gone back to, in nanoseconds; 0 for not at all.
    pub(super) fn window_ns(&self, id: TimelineId) -> i64 {
        self.window_from(id.0, &HashMap::new())
    }

    /// As [`CatalogState::window_ns`], if some windows are known.
    fn window_from(&self, id: u64, known: &HashMap<u64, i64>) -> i64 {
        let (mut longest_ns, mut next) = (0, vec![id]);
        while let Some(id) = next.pop() {
            let window_ns = match (known.get(&id), self.names.get(&id), self.children.get(&id)) {
                (Some(known_ns), ..) => *known_ns,
                (None, Some(names), _) => {
                    names.iter().map(|history_s| self.kept_ns(*history_s)).max().unwrap_or(0)
                }
                (None, None, Some(children)) => {
                    next.extend(children);
                    continue;
                }
                (None, None, None) if self.timelines.contains_key(&id) => i64::MAX,
                (None, None, None) => 0,
            };
            longest_ns = longest_ns.max(window_ns);
        }
        longest_ns
    }

    fn kept_ns(&self, history_s: Option<u64>) -> i64 {
        let ns = |seconds| i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(SECOND_NS);
        history_s.map_or(self.default_window_ns, ns)
    }

    /// How many seconds a branch keeps whose record says this.
    pub(super) fn history_s(&self, of_record: Option<u64>) -> u64 {
        of_record.unwrap_or(self.default_window_ns.unsigned_abs() / SECOND_NS.unsigned_abs())
    }

    /// Before this time, no moment of the timeline can be gone back to.
    pub(super) fn oldest_ns(&self, id: TimelineId, now_ns: i64) -> i64 {
        now_ns.saturating_sub(self.window_ns(id)).max(self.history_from_ns)
    }

    /// The timelines whose windows may be others once these rows are in.
    pub(super) fn windows_changed_by(&self, rows: &[Row]) -> BTreeSet<u64> {
        let mut changed = BTreeSet::new();
        let ancestor = |record: &TimelineRecord| Some(record.ancestor.as_ref()?.timeline);
        let nameless = |id: &u64| !self.names.contains_key(id);
        for row in rows {
            if row.table == BranchRecord::TABLE {
                let named = |record: &BranchRecord| (record.timeline, record.history_s);
                let before = self.branches.get(&row.key).map(named);
                let after = row.record.as_ref().and_then(BranchRecord::from_stored).map(named);
                if before != after {
                    changed.extend([before, after].into_iter().flatten().map(|(id, _)| id));
                }
            } else if let Some(TimelineId(id)) = timeline_of(row) {
                let before = self.timelines.get(&id).map(ancestor);
                let after = row.record.as_ref().and_then(TimelineRecord::from_stored).map(ancestor);
                if before != after {
                    let ancestors = [before, after].into_iter().flatten().flatten();
                    changed.extend(ancestors.filter(nameless).chain([id]));
                }
            }
        }
        // What has no name goes by those made from it.
        let mut next: Vec<u64> = changed.iter().copied().collect();
        while let Some(id) = next.pop() {
            let parent = self.timelines.get(&id).and_then(ancestor).filter(nameless);
            next.extend(parent.filter(|parent| changed.insert(*parent)));
        }
        changed
    }

    /// Takes the times off the forks of these timelines that are out of reach, with a change.
    pub(super) fn cut_off(&self, change: &mut CatalogChange, of: &BTreeSet<u64>, now_ns: i64) {
        for id in of.iter().copied().map(TimelineId) {
            let Some(record) = self.timelines.get(&id.0) else { continue };
            let oldest_ns = self.oldest_ns(id, now_ns);
            let there = change.rows.iter_mut().rfind(|row| timeline_of(row) == Some(id));
            match there.map(|row| &mut row.record) {
                Some(Some(Stored::Timeline(record))) => {
                    take_times_off(record, oldest_ns);
                }
                Some(_) => {}
                None => {
                    let mut record = record.clone();
                    if take_times_off(&mut record, oldest_ns) {
                        change.rows.push(Row::put(&Row::timeline_key(id), record));
                    }
                }
            }
        }
    }
}

/// Takes off a fork the times that are before `oldest_ns`; false if there are none.
fn take_times_off(record: &mut TimelineRecord, oldest_ns: i64) -> bool {
    let times =
        record.ancestor.iter_mut().flat_map(|fork| [&mut fork.time_ns, &mut fork.begins_ns]);
    let old = times.filter(|time_ns| **time_ns != 0 && **time_ns < oldest_ns);
    old.map(|time_ns| *time_ns = 0).count() > 0
}

fn timeline_of(row: &Row) -> Option<TimelineId> {
    Some(row).filter(|row| row.table == TimelineRecord::TABLE)?.timeline()
}
