//! The numbers by which the kernel knows inodes.
//!
//! A number stands for an inode of one tree and is never given twice, so two timelines never share
//! what the kernel caches, and a branch that was reset never sees stale contents. A number lives
//! until the kernel forgets it.

use crate::fs::tree::Tree;
use crate::locks::{read, write};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

/// The kernel's number of the mount's own directory.
pub const MOUNT_ROOT: u64 = 1;

/// What a number stands for.
#[derive(Clone)]
pub struct Node {
    /// The tree.
    pub tree: Arc<Tree>,
    /// The inode in it.
    pub inode: u64,
}

struct Known {
    node: Node,
    lookups: u64,
}

/// Both ways between numbers and inodes.
#[derive(Default)]
struct NodeTable {
    by_number: HashMap<u64, Known>,
    by_inode: HashMap<(usize, u64), u64>,
    newest: u64,
}

/// All numbers that the kernel holds.
#[derive(Default)]
pub struct Nodes(RwLock<NodeTable>);

fn key(node: &Node) -> (usize, u64) {
    // The address is unique as long as the node keeps the tree alive.
    (Arc::as_ptr(&node.tree) as usize, node.inode)
}

impl Nodes {
    /// What a number stands for; `None` if the kernel was not given it.
    pub fn get(&self, number: u64) -> Option<Node> {
        read(&self.0).by_number.get(&number).map(|known| known.node.clone())
    }

    /// The number of an inode, for a reply that the kernel counts as a lookup.
    pub fn look_up(&self, node: Node) -> u64 {
        let mut table = write(&self.0);
        if let Some(number) = table.by_inode.get(&key(&node)).copied() {
            if let Some(known) = table.by_number.get_mut(&number) {
                known.lookups += 1;
            }
            return number;
        }
        table.newest = table.newest.max(MOUNT_ROOT) + 1;
        let number = table.newest;
        table.by_inode.insert(key(&node), number);
        table.by_number.insert(number, Known { node, lookups: 1 });
        number
    }

    /// Takes back `lookups`; returns the node if the kernel has forgotten it.
    pub fn forget(&self, number: u64, lookups: u64) -> Option<Node> {
        let mut table = write(&self.0);
        let known = table.by_number.get_mut(&number)?;
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return None;
        }
        let known = table.by_number.remove(&number)?;
        table.by_inode.remove(&key(&known.node));
        Some(known.node)
    }
}
