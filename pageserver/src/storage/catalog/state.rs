//! What the catalog says, in memory: branches, timelines, and who needs whom.

use crate::error::{Error, Result};
use crate::storage::catalog::{AncestorRecord, BranchRecord, TimelineRecord, Update};
use crate::storage::page::TimelineId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All that the catalog says.
#[derive(Clone, Default)]
pub(in crate::storage) struct State {
    pub(in crate::storage) branches: BTreeMap<String, BranchRecord>,
    pub(in crate::storage) timelines: HashMap<u64, TimelineRecord>,
    pub(in crate::storage) children: HashMap<u64, BTreeSet<u64>>,
    /// How many names point at each timeline.
    pub(in crate::storage) names: HashMap<u64, u32>,
    pub(in crate::storage) next: BTreeMap<&'static str, u64>,
}

fn gone(id: TimelineId) -> Error {
    Error::not_found("timeline_not_found", format!("timeline {id} does not exist any more"))
}

impl State {
    pub(in crate::storage) fn says_the_same(&self, other: &State) -> bool {
        self.branches == other.branches && self.timelines == other.timelines
    }

    pub(in crate::storage) fn apply(&mut self, update: Update, freed: &[TimelineId]) {
        for (id, lane, record) in update.put_lanes {
            if let Some(timeline) = self.timelines.get_mut(&id.0) {
                timeline.lanes[lane as usize] = record;
            }
        }
        for (id, lanes) in update.detach {
            let Some(timeline) = self.timelines.get_mut(&id.0) else { continue };
            timeline.lanes = lanes;
            if let Some(ancestor) = timeline.ancestor.take()
                && let Some(children) = self.children.get_mut(&ancestor.timeline)
            {
                children.remove(&id.0);
            }
        }
        for (id, record) in update.add_timelines {
            if let Some(ancestor) = &record.ancestor {
                self.children.entry(ancestor.timeline).or_default().insert(id.0);
            }
            self.timelines.insert(id.0, record);
        }
        let removed = update
            .remove_branches
            .iter()
            .filter_map(|name| self.branches.remove(name))
            .collect::<Vec<_>>();
        for (name, record) in update.put_branches {
            *self.names.entry(record.timeline).or_default() += 1;
            let replaced = self.branches.insert(name, record);
            replaced.into_iter().for_each(|old| self.unname(old.timeline));
        }
        removed.into_iter().for_each(|old| self.unname(old.timeline));
        for id in freed {
            let record = self.timelines.remove(&id.0);
            if let Some(AncestorRecord { timeline, .. }) = record.and_then(|record| record.ancestor)
                && let Some(children) = self.children.get_mut(&timeline)
            {
                children.remove(&id.0);
            }
            self.children.remove(&id.0);
        }
    }

    fn unname(&mut self, timeline: u64) {
        let Some(names) = self.names.get_mut(&timeline) else {
            panic!("timeline {timeline:x} had no name")
        };
        *names -= 1;
        if *names == 0 {
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
            timeline.lanes[*lane as usize] = record.clone();
            timelines.push((*id, timeline));
        }
        for (id, lanes) in &update.detach {
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
        let put = update.put_branches.iter().map(|(name, _)| name);
        for record in
            update.remove_branches.iter().chain(put).filter_map(|name| self.branches.get(name))
        {
            *names.entry(record.timeline).or_default() -= 1;
            candidates.push(record.timeline);
        }
        for (_, record) in &update.put_branches {
            *names.entry(record.timeline).or_default() += 1;
        }
        for ancestor in
            update.add_timelines.iter().filter_map(|(_, record)| record.ancestor.as_ref())
        {
            *children.entry(ancestor.timeline).or_default() += 1;
        }
        let detached =
            update.detach.iter().filter_map(|(id, _)| self.timelines.get(&id.0)?.ancestor.as_ref());
        for ancestor in detached {
            *children.entry(ancestor.timeline).or_default() -= 1;
            candidates.push(ancestor.timeline);
        }
        let mut freed = Vec::new();
        while let Some(id) = candidates.pop() {
            let named =
                i64::from(self.names.get(&id).copied().unwrap_or(0)) + names.get(&id).unwrap_or(&0);
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
}

impl State {
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
            // An ancestor is always older, so a chain ends.
            if record
                .ancestor
                .as_ref()
                .is_some_and(|a| a.timeline >= *id || !self.timelines.contains_key(&a.timeline))
            {
                return Err(Error::corrupt(format!(
                    "timeline {} has no sound ancestor",
                    TimelineId(*id)
                )));
            }
        }
        Ok(())
    }
}
