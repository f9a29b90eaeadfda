//! Who takes how much of the disk.

use super::Branches;
use crate::error::Result;
use crate::storage::page::TimelineId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every byte of the store on disk, counted once.
#[derive(Clone, Debug)]
pub struct DiskUsage {
    /// What each branch's own timeline holds.
    pub branches: Vec<BranchBytes>,
    /// Timelines without a name.
    pub nameless: Vec<NamelessBytes>,
    /// Files that no timeline uses.
    pub reserve_bytes: u64,
    /// The sum of all.
    pub total_bytes: u64,
}

/// What a branch takes.
#[derive(Clone, Debug)]
pub struct BranchBytes {
    /// Its name.
    pub name: String,
    /// Bytes of its data directory; none if a killed server left that to be found out.
    pub logical_bytes: Option<u64>,
    /// Bytes on disk of its own timeline.
    pub own_bytes: u64,
    /// Bytes on disk that deleting it would free.
    pub freed_by_delete: u64,
}

/// What a timeline without a name takes.
#[derive(Clone, Debug)]
pub struct NamelessBytes {
    /// The timeline.
    pub timeline: TimelineId,
    /// Bytes on disk that it holds.
    pub own_bytes: u64,
    /// Branches that need it.
    pub needed_by: Vec<String>,
}

impl Branches {
    /// Every byte of the store on disk, counted once.
    pub async fn usage(self: &Arc<Self>) -> Result<DiskUsage> {
        self.blocking(Self::usage_now).await
    }

    fn usage_now(&self) -> Result<DiskUsage> {
        let catalog = self.store.catalog();
        let branches = catalog.branches();
        let found = self.store.usage()?;
        let own = |id: &TimelineId| found.timelines.get(id).copied().unwrap_or(0);
        let mut nameless: BTreeMap<TimelineId, Vec<String>> =
            found.timelines.keys().map(|id| (*id, Vec::new())).collect();
        for record in branches.values() {
            nameless.remove(&TimelineId(record.timeline));
        }
        for (name, record) in &branches {
            let mut ancestor =
                catalog.timeline(TimelineId(record.timeline)).and_then(|record| record.ancestor);
            while let Some(record) = ancestor {
                let id = TimelineId(record.timeline);
                nameless.entry(id).and_modify(|names| names.push(name.clone()));
                ancestor = catalog.timeline(id).and_then(|record| record.ancestor);
            }
        }
        let branches = branches.iter().map(|(name, record)| {
            let id = TimelineId(record.timeline);
            BranchBytes {
                name: name.clone(),
                logical_bytes: self.store.sizes(id).ok().and_then(|(_, logical)| logical),
                own_bytes: own(&id),
                freed_by_delete: catalog.freed_by_delete(name).iter().map(own).sum(),
            }
        });
        let nameless = nameless.into_iter().map(|(timeline, needed_by)| NamelessBytes {
            timeline,
            own_bytes: own(&timeline),
            needed_by,
        });
        let total_bytes = found.reserve + found.timelines.values().sum::<u64>();
        let (branches, nameless) = (branches.collect(), nameless.collect());
        Ok(DiskUsage { branches, nameless, reserve_bytes: found.reserve, total_bytes })
    }
}
