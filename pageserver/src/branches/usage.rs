//! Who takes how much of the disk.

use super::Branches;
use crate::error::Result;
use crate::storage::page::TimelineId;
use api::types::{BranchUsage, NamelessUsage, Usage};
use std::collections::BTreeMap;

impl Branches {
    /// Every byte of the store on disk, counted once.
    pub fn usage(&self) -> Result<Usage> {
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
            BranchUsage {
                name: name.clone(),
                logical_bytes: self.store.sizes(id).ok().and_then(|(_, logical)| logical),
                own_bytes: own(&id),
                freed_by_delete: catalog.freed_by_delete(name).iter().map(own).sum(),
            }
        });
        let nameless = nameless.into_iter().map(|(id, needed_by)| NamelessUsage {
            timeline: id.to_string(),
            own_bytes: own(&id),
            needed_by,
        });
        let total_bytes = found.reserve + found.timelines.values().sum::<u64>();
        let (branches, nameless) = (branches.collect(), nameless.collect());
        Ok(Usage { branches, nameless, reserve_bytes: found.reserve, total_bytes })
    }
}
