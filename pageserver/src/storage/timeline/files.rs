//! Names and attributes of files, and the sums of their sizes: what the lanes of a timeline say of
//! inodes, and its ancestors' where they say nothing.

use crate::locks::{lock, read};
use crate::storage::index::Target;
use crate::storage::log::format::Attributes;
use crate::storage::page::{HEAD, LaneKind, PerLane, Position, inode_created, lane_of};
use crate::storage::timeline::Timeline;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

impl Timeline {
    /// Attributes of an inode; `None` if it does not exist.
    pub fn attributes(self: &Arc<Self>, inode: u64) -> Option<Attributes> {
        let kind = lane_of(inode);
        let mut chain = self.chain(kind, inode_created(inode));
        chain.find_map(|(timeline, at)| {
            let state = read(&timeline.lane(kind).state);
            state.index.attributes(inode, at).map(|attributes| attributes.cloned())
        })?
    }

    /// What a name leads to.
    pub fn lookup(self: &Arc<Self>, directory: u64, name: &[u8]) -> Option<Target> {
        let kind = lane_of(directory);
        let mut chain = self.chain(kind, inode_created(directory));
        chain.find_map(|(timeline, at)| {
            let state = read(&timeline.lane(kind).state);
            state.index.name(directory, name, at).map(|(_, target)| target)
        })?
    }

    /// All names of a directory with a cookie each that stays the same as long as the name does.
    pub fn list(self: &Arc<Self>, directory: u64) -> Vec<(Position, Vec<u8>, Target)> {
        let kind = lane_of(directory);
        let mut seen: BTreeMap<Vec<u8>, (Position, Option<Target>)> = BTreeMap::new();
        for (timeline, at) in self.chain(kind, inode_created(directory)) {
            let state = read(&timeline.lane(kind).state);
            state.index.names(directory, at, |name, position, target| {
                seen.entry(name.to_vec()).or_insert((position, target));
            });
        }
        let present = seen
            .into_iter()
            .filter_map(|(name, (position, target))| Some((position, name, target?)));
        let mut names: Vec<_> = present.collect();
        names.sort_unstable_by_key(|(position, ..)| *position);
        names
    }

    /// Inodes of this timeline's own lanes that exist without a name.
    pub fn nameless(self: &Arc<Self>) -> Vec<u64> {
        let mut found = Vec::new();
        for lane in self.lanes.iter() {
            let state = read(&lane.state);
            let nameless = |inode: &u64| {
                let attributes = state.index.attributes(*inode, HEAD);
                matches!(attributes, Some(Some(attributes)) if attributes.links == 0)
            };
            found.extend(state.index.inodes().filter(nameless));
        }
        found
    }

    /// Bytes of all files of both lanes, as a user of them sees it.
    pub fn logical_bytes(self: &Arc<Self>) -> PerLane<u64> {
        let now = self.last_positions();
        let mut known = lock(&self.logical);
        if known.0 != now {
            *known = (now, PerLane::from_fn(|lane| self.sum_sizes(lane)));
        }
        known.1
    }

    /// All inodes of a lane that exist, inherited ones included.
    pub(in crate::storage) fn files_of_lane(
        self: &Arc<Self>,
        lane: LaneKind,
    ) -> BTreeMap<u64, Attributes> {
        let mut files: BTreeMap<u64, Option<Attributes>> = BTreeMap::new();
        for (timeline, at) in self.chain(lane, 0) {
            let state = read(&timeline.lane(lane).state);
            for inode in state.index.inodes() {
                if let Some(attributes) = state.index.attributes(inode, at) {
                    files.entry(inode).or_insert_with(|| attributes.cloned());
                }
            }
        }
        files.into_iter().filter_map(|(inode, attributes)| Some((inode, attributes?))).collect()
    }

    /// Adds up the sizes of a lane's inodes with a name; one pass over the chain.
    pub(in crate::storage) fn sum_sizes(self: &Arc<Self>, lane: LaneKind) -> u64 {
        let mut sizes: HashMap<u64, u64> = HashMap::new();
        for (timeline, at) in self.chain(lane, 0) {
            let state = read(&timeline.lane(lane).state);
            for inode in state.index.inodes() {
                if let Some(attributes) = state.index.attributes(inode, at) {
                    let size = attributes.map_or(0, |a| if a.links > 0 { a.size } else { 0 });
                    sizes.entry(inode).or_insert(size);
                }
            }
        }
        sizes.values().fold(0, |sum, size| sum.saturating_add(*size))
    }
}
