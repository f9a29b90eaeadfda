//! What the catalog says, in memory: its records, and who needs whom.

use crate::error::{Error, Result};
use crate::storage::catalog::change::CatalogChange;
use crate::storage::catalog::records::{
    BranchRecord, DEFAULT_BRANCH, LaneRecord, Record, Row, Stored, TimelineRecord, Update,
};
use crate::storage::page::TimelineId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most that a counter may say, so that counting on does not overflow.
pub(super) const MAX_NUMBER: u64 = u64::MAX >> 1;

/// All that the catalog says.
///
/// Invariants, held by [`CatalogState::set`]: `children` has an entry for each timeline with an
/// ancestor; `names` has, for each timeline that branches point at, what each of them keeps.
#[derive(Clone)]
pub(in crate::storage) struct CatalogState {
    pub(in crate::storage) branches: BTreeMap<String, BranchRecord>,
    pub(in crate::storage) timelines: HashMap<u64, TimelineRecord>,
    /// Records of all other kinds, by table and key.
    others: BTreeMap<&'static str, BTreeMap<String, Stored>>,
    pub(super) children: HashMap<u64, BTreeSet<u64>>,
    /// By timeline, `history_s` of each branch that points there.
    pub(in crate::storage) names: HashMap<u64, Vec<Option<u64>>>,
    /// How long moments are kept of branches that do not say, in nanoseconds.
    pub(super) default_window_ns: i64,
    /// Before this time, no moment can be gone back to: builds of before kept less then.
    pub(super) history_from_ns: i64,
    /// The next free number of each kind.
    pub(in crate::storage) next: BTreeMap<&'static str, u64>,
}

impl Default for CatalogState {
    fn default() -> Self {
        Self {
            branches: BTreeMap::new(),
            timelines: HashMap::new(),
            others: BTreeMap::new(),
            children: HashMap::new(),
            names: HashMap::new(),
            default_window_ns: 0,
            history_from_ns: 0,
            next: BTreeMap::from([("timeline", 1), ("branch", DEFAULT_BRANCH + 1)]),
        }
    }
}

fn gone(id: TimelineId) -> Error {
    Error::not_found("timeline_not_found", format!("timeline {id} does not exist any more"))
}

impl CatalogState {
    /// Whether both have the same records.
    pub(super) fn says_the_same(&self, other: &CatalogState) -> bool {
        self.branches == other.branches
            && self.timelines == other.timelines
            && self.others == other.others
    }

    /// The record of a kind other than branches and timelines.
    pub(super) fn other<R: Record>(&self, key: &str) -> Option<&R> {
        self.others.get(R::TABLE)?.get(key).and_then(R::from_stored)
    }

    /// All records of such a kind.
    pub(super) fn others<R: Record>(&self) -> impl Iterator<Item = (&String, &R)> {
        let records = self.others.get(R::TABLE).into_iter().flatten();
        records.filter_map(|(key, stored)| Some((key, R::from_stored(stored)?)))
    }

    /// Takes in a change.
    pub(in crate::storage) fn apply(&mut self, change: CatalogChange) {
        change.rows.into_iter().for_each(|row| self.set(row));
        let (timelines, names) = (self.timelines.len(), self.names.len());
        assert!(names <= timelines, "branches lead to {names} of {timelines} timelines");
        let parents = self.children.len();
        assert!(parents <= timelines, "{parents} of {timelines} timelines have children");
    }

    /// Takes in a row of a table: the only place where records change.
    pub(in crate::storage) fn set(&mut self, row: Row) {
        let timeline = row.timeline();
        let Row { table, key, record } = row;
        match record {
            Some(Stored::Timeline(record)) => self.set_timeline(timeline, Some(record)),
            None if table == TimelineRecord::TABLE => self.set_timeline(timeline, None),
            Some(Stored::Branch(record)) => self.set_branch(key, Some(record)),
            None if table == BranchRecord::TABLE => self.set_branch(key, None),
            #[allow(unreachable_patterns, reason = "there may be no other kind")]
            Some(record) => drop(self.others.entry(table).or_default().insert(key, record)),
            None => drop(self.others.entry(table).or_default().remove(&key)),
        }
    }

    fn set_timeline(&mut self, id: Option<TimelineId>, record: Option<TimelineRecord>) {
        let Some(TimelineId(id)) = id else { panic!("a row of timelines has no timeline's key") };
        let ancestor = record.as_ref().and_then(|record| Some(record.ancestor.as_ref()?.timeline));
        let old = match record {
            Some(record) => self.timelines.insert(id, record),
            None => self.timelines.remove(&id),
        };
        if let Some(ancestor) = old.and_then(|old| Some(old.ancestor?.timeline)) {
            let empty = self.children.get_mut(&ancestor).is_some_and(|children| {
                assert!(children.remove(&id), "timeline {ancestor:x} had no child {id:x}");
                children.is_empty()
            });
            if empty {
                self.children.remove(&ancestor);
            }
        }
        if let Some(ancestor) = ancestor {
            self.children.entry(ancestor).or_default().insert(id);
        }
    }

    fn set_branch(&mut self, name: String, record: Option<BranchRecord>) {
        let named = record.as_ref().map(|record| (record.timeline, record.history_s));
        let old = match record {
            Some(record) => self.branches.insert(name, record),
            None => self.branches.remove(&name),
        };
        if let Some((timeline, history_s)) = named {
            self.names.entry(timeline).or_default().push(history_s);
        }
        let Some(BranchRecord { timeline, history_s, .. }) = old else { return };
        let names = self.names.entry(timeline).or_default();
        let Some(at) = names.iter().position(|of_name| *of_name == history_s) else {
            panic!("timeline {timeline:x} had no name that keeps {history_s:?} s");
        };
        names.swap_remove(at);
        if names.is_empty() {
            self.names.remove(&timeline);
        }
    }

    /// The timelines that `update` adds or changes, as they are then.
    pub(in crate::storage) fn timelines_after(
        &self,
        update: &Update,
    ) -> Result<Vec<(TimelineId, TimelineRecord)>> {
        let mut timelines = update.add_timelines.clone();
        let ancestors = timelines.iter().filter_map(|(_, record)| record.ancestor.as_ref());
        for ancestor in ancestors.map(|ancestor| ancestor.timeline) {
            // It may have been dropped while the fork was prepared.
            if !self.timelines.contains_key(&ancestor) {
                return Err(gone(TimelineId(ancestor)));
            }
        }
        for (id, lane, record) in &update.put_lanes {
            let mut timeline = self.timelines.get(&id.0).cloned().ok_or_else(|| gone(*id))?;
            timeline.lanes[*lane] = record.clone();
            timelines.push((*id, timeline));
        }
        for (id, lanes) in &update.flatten {
            if !self.timelines.contains_key(&id.0) {
                return Err(gone(*id));
            }
            timelines.push((*id, TimelineRecord { ancestor: None, lanes: lanes.clone() }));
        }
        Ok(timelines)
    }

    /// The timelines that nothing needs once `update` is in, children before their ancestors.
    pub(in crate::storage) fn freed_by(&self, update: &Update) -> Vec<TimelineId> {
        let mut names: HashMap<u64, i64> = HashMap::new();
        let mut children: HashMap<u64, i64> = HashMap::new();
        let mut candidates: Vec<u64> = update.release.iter().map(|id| id.0).collect();
        for (name, record) in branches_after(update) {
            if let Some(old) = self.branches.get(name) {
                *names.entry(old.timeline).or_default() -= 1;
                candidates.push(old.timeline);
            }
            if let Some(record) = record {
                *names.entry(record.timeline).or_default() += 1;
            }
        }
        let added = update.add_timelines.iter();
        for ancestor in added.filter_map(|(_, record)| record.ancestor.as_ref()) {
            *children.entry(ancestor.timeline).or_default() += 1;
        }
        let flattened = update
            .flatten
            .iter()
            .filter_map(|(id, _)| self.timelines.get(&id.0)?.ancestor.as_ref());
        for ancestor in flattened {
            *children.entry(ancestor.timeline).or_default() -= 1;
            candidates.push(ancestor.timeline);
        }
        let mut freed = Vec::new();
        while let Some(id) = candidates.pop() {
            let named =
                self.names.get(&id).map_or(0, |of| of.len() as i64) + names.get(&id).unwrap_or(&0);
            let held = self.children.get(&id).map_or(0, |set| set.len() as i64)
                + children.get(&id).unwrap_or(&0);
            let Some(record) = self.timelines.get(&id) else { continue };
            if named > 0 || held > 0 || freed.contains(&TimelineId(id)) {
                continue;
            }
            freed.push(TimelineId(id));
            if let Some(ancestor) = &record.ancestor {
                *children.entry(ancestor.timeline).or_default() -= 1;
                candidates.push(ancestor.timeline);
            }
        }
        freed
    }

    /// Every reference leads somewhere, and no timeline is its own ancestor.
    pub(in crate::storage) fn check(&self) -> Result<()> {
        for (name, record) in &self.branches {
            if !self.timelines.contains_key(&record.timeline) {
                let timeline = TimelineId(record.timeline);
                return Err(Error::corrupt(format!(
                    "branch \"{name}\" points at timeline {timeline}, which does not exist"
                )));
            }
        }
        for (id, record) in &self.timelines {
            let bad = |what: &str| {
                Err(Error::corrupt(format!("timeline {} has {what}", TimelineId(*id))))
            };
            // An ancestor is always older, so a chain ends.
            if record
                .ancestor
                .as_ref()
                .is_some_and(|a| a.timeline >= *id || !self.timelines.contains_key(&a.timeline))
            {
                return bad("no sound ancestor");
            }
            if *id >= self.next["timeline"] {
                return bad("a number that was not given out yet");
            }
            if !record.lanes.iter().all(LaneRecord::is_sound) {
                return bad("layers or files that cannot be");
            }
        }
        if self.next.values().any(|next| *next > MAX_NUMBER) {
            return Err(Error::corrupt(format!("numbers are used up: {:?}", self.next)));
        }
        Ok(())
    }
}

/// What an update says last of each branch that it names: its record, or that it is gone.
fn branches_after(update: &Update) -> BTreeMap<&str, Option<&BranchRecord>> {
    let rows = update.rows.iter().filter(|row| row.table == BranchRecord::TABLE);
    rows.map(|row| (&*row.key, row.record.as_ref().and_then(<BranchRecord as Record>::from_stored)))
        .collect()
}
