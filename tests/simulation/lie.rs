//! A disk that says it synced and did not: what may be found after a power loss is any state there
//! ever was, or damage that is noticed, and never what was not.

use crate::branch::{Branch, Doubt};
use crate::world::{Outcome, World, open};
use pageserver::fs::tree::Tree;
use pageserver::storage::disk::sim::SimDisk;
use pageserver::storage::page::TimelineId;

impl World {
    /// From now on nothing counts as durable.
    pub(crate) fn begin_doubt(&mut self) {
        self.doubt = Some(Doubt::default());
        self.remember();
    }

    /// Remembers the branches as they are now.
    pub(crate) fn remember(&mut self) {
        if let Some(Doubt(known)) = &mut self.doubt {
            known.push(self.branches.clone());
        }
    }

    /// Looks at what a power loss left on a disk that lied.
    pub(crate) fn open_after_lie(&self, disk: &SimDisk) -> Outcome {
        let Some(Doubt(known)) = &self.doubt else { return Ok(()) };
        // Refused: it was noticed.
        let Ok(store) = open(disk, self.now_s) else { return Ok(()) };
        let found = store.catalog().branches();
        let same = |branches: &&Vec<Branch>| {
            branches.len() == found.len()
                && branches.iter().all(|branch| {
                    found.get(&branch.name).map(|record| TimelineId(record.timeline))
                        == branch.timeline
                })
        };
        if !known.iter().any(|branches| same(&branches)) {
            let names: Vec<_> =
                found.iter().map(|(name, record)| (name, record.timeline)).collect();
            return Err(format!("the catalog has {names:?}, which never was"));
        }
        for (name, record) in &found {
            let id = TimelineId(record.timeline);
            let of_timeline = |branch: &&Branch| branch.timeline == Some(id);
            let Some(branch) = known.iter().rev().flatten().find(of_timeline) else { continue };
            let Ok(timeline) = store.timeline(id) else { continue };
            let Ok(images) = Self::observe(&Tree::new(timeline)) else { continue };
            for lane in [0, 1] {
                if !branch.lanes[lane].ever_was(&images[lane]) {
                    let why = images[lane].difference(branch.lanes[lane].newest());
                    return Err(format!("{name}, lane {lane}, shows what it never did: {why}"));
                }
            }
        }
        Ok(())
    }
}
