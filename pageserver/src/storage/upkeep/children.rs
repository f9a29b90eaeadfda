//! What children of a timeline hold themselves, and so do not need of it any more.
//!
//! A child covers a block if whoever reads the child finds the block in the child's own layers.
//! Layers are durable, and a version of them goes only behind a newer one, so a block stays covered
//! as long as the child lives.

use crate::error::Result;
use crate::locks::lock;
use crate::storage::layer::Layer;
use crate::storage::page::{HEAD, LaneKind, Position, TimelineId};
use crate::storage::store::Store;
use crate::storage::timeline::lane::open_layers;
use std::sync::Arc;

/// Children that are looked at in one merge. Those beyond count as covering nothing.
const MAX_CHILDREN: usize = 64;

/// A child with layers of its own.
pub(super) struct Child {
    id: TimelineId,
    /// Where it was forked.
    at: Position,
    /// The oldest position at which it is read itself.
    oldest_reader: Position,
    layers: Vec<Arc<Layer>>,
}

impl Child {
    fn covers(&self, inode: u64, block: u32) -> Result<bool> {
        let mut covers = false;
        for layer in &self.layers {
            layer.find(inode, block..block + 1, self.oldest_reader, |_| covers = true)?;
        }
        Ok(covers)
    }
}

/// Fork positions of the children that cover a block, in order.
pub(super) fn covered(children: &[Child], inode: u64, block: u32) -> Result<Vec<Position>> {
    let mut positions = Vec::new();
    for child in children {
        if child.covers(inode, block)? {
            positions.push(child.at);
        }
    }
    positions.sort_unstable();
    Ok(positions)
}

impl Store {
    /// The children of a timeline that may cover blocks of a lane.
    pub(super) fn children(&self, id: TimelineId, lane: LaneKind) -> Result<Vec<Child>> {
        let mut children = Vec::new();
        for (id, ancestor) in self.catalog().children(id) {
            // Where it was forked can be gone back to, in its past and in the parent's, and there
            // it holds nothing.
            if self.is_recent(id, &ancestor) || children.len() >= MAX_CHILDREN {
                continue;
            }
            let Ok(slot) = self.slot(id) else { continue };
            let slot = lock(&slot);
            let record = &slot.lanes[lane];
            let marks = match &slot.timeline {
                _ if record.layers.is_empty() => continue,
                Some(timeline) => timeline.marks().first().map(|mark| mark.position),
                None if slot.lanes.data.newest_mark_ns > 0 || slot.has_log() => continue,
                None => None,
            };
            let forks = self.catalog().forks(id).into_iter().map(|fork| fork.at[lane]);
            let oldest_reader = forks.chain(marks).min().unwrap_or(HEAD);
            let layers = match &slot.timeline {
                Some(timeline) => timeline.layers(lane),
                // One that is damaged covers nothing.
                None => open_layers(self.lane_files(), (id, lane), record).unwrap_or_default(),
            };
            children.push(Child { id, at: ancestor.at[lane], oldest_reader, layers });
        }
        Ok(children)
    }

    /// Whether all of them still live.
    pub(super) fn still_live(&self, children: &[Child]) -> bool {
        children.iter().all(|child| self.catalog().timeline(child.id).is_some())
    }
}
