//! What a store must show, kept as plainly as can be: for each lane of each branch a map of names
//! and a map of files.

use pageserver::storage::log::format::FileKind;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A directory that files are in. Each is there from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Directory {
    Root,
    Base,
    Wal,
}

impl Directory {
    pub(crate) const ALL: [Self; 3] = [Self::Root, Self::Base, Self::Wal];

    /// The number of the lane that its names are in.
    pub(crate) fn lane(self) -> usize {
        usize::from(self == Self::Wal)
    }
}

/// A file, an empty directory or a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: FileKind,
    pub(crate) mode: u16,
    pub(crate) links: u32,
    pub(crate) target: Vec<u8>,
    pub(crate) bytes: Arc<Vec<u8>>,
}

/// What one lane of a branch shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) names: BTreeMap<(Directory, Vec<u8>), u64>,
    pub(crate) nodes: BTreeMap<u64, Node>,
}

impl Image {
    pub(crate) fn find(&self, directory: Directory, name: &[u8]) -> Option<u64> {
        self.names.get(&(directory, name.to_vec())).copied()
    }

    /// Adds a name for a node.
    pub(crate) fn name(&mut self, directory: Directory, name: &[u8], inode: u64) {
        self.names.insert((directory, name.to_vec()), inode);
    }

    /// Takes a name away; the node, if that was its last.
    pub(crate) fn unlink(&mut self, directory: Directory, name: &[u8]) -> Option<(u64, Node)> {
        let inode = self.names.remove(&(directory, name.to_vec()))?;
        let node = self.nodes.get_mut(&inode)?;
        node.links -= 1;
        if node.links > 0 { None } else { self.nodes.remove(&inode).map(|node| (inode, node)) }
    }

    /// Changes the bytes of a file.
    pub(crate) fn change(&mut self, inode: u64, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            change(Arc::make_mut(&mut node.bytes));
        }
    }

    /// The first thing that is not as in `other`, in words.
    pub(crate) fn difference(&self, other: &Self) -> String {
        if self.names != other.names {
            let names = |image: &Self| {
                let of = |((directory, name), inode): (&(Directory, Vec<u8>), &u64)| {
                    format!("{directory:?}/{}={inode:x}", String::from_utf8_lossy(name))
                };
                image.names.iter().map(of).collect::<Vec<_>>().join(" ")
            };
            return format!("names [{}] instead of [{}]", names(self), names(other));
        }
        for (inode, node) in &self.nodes {
            let Some(expected) = other.nodes.get(inode) else { continue };
            if node.bytes.len() != expected.bytes.len() {
                return format!(
                    "inode {inode:x} has {} bytes instead of {}",
                    node.bytes.len(),
                    expected.bytes.len()
                );
            }
            if let Some(at) =
                (0..node.bytes.len()).find(|at| node.bytes[*at] != expected.bytes[*at])
            {
                return format!(
                    "inode {inode:x}: byte {at} is {} instead of {}",
                    node.bytes[at], expected.bytes[at]
                );
            }
            if node != expected {
                return format!(
                    "inode {inode:x}: {:?} {:o} {} links",
                    node.kind, node.mode, node.links
                );
            }
        }
        "nothing".to_owned()
    }
}

/// What a lane may show: any version from the one that is durable on. The newest is what it shows
/// while the store runs. Those before are what a disk that lies may leave.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    all: Vec<Arc<Image>>,
    durable: usize,
}

impl Versions {
    pub(crate) fn of(image: Arc<Image>) -> Self {
        Self { all: vec![image], durable: 0 }
    }

    pub(crate) fn newest(&self) -> &Arc<Image> {
        &self.all[self.all.len() - 1]
    }

    pub(crate) fn push(&mut self, image: Image) {
        self.all.push(Arc::new(image));
    }

    /// What a sync that begins now makes durable when it ends.
    pub(crate) fn mark(&self) -> Arc<Image> {
        Arc::clone(self.newest())
    }

    /// All up to a mark is durable, if that is still among what it may show.
    pub(crate) fn sync(&mut self, mark: &Arc<Image>) {
        let found = self.all.iter().rposition(|version| Arc::ptr_eq(version, mark));
        self.durable = self.durable.max(found.unwrap_or(0));
    }

    /// A power loss or a reopening left `image`. It is the newest from now on, and no more durable
    /// than before. False if it may not be.
    pub(crate) fn settle(&mut self, image: &Image) -> bool {
        let Some(found) = self.all.iter().rposition(|version| version.may_be(image)) else {
            return false;
        };
        if found < self.durable {
            return false;
        }
        self.all.truncate(found.max(self.durable + 1));
        self.all.push(Arc::new(image.clone()));
        true
    }

    /// Whether it has ever been `image`.
    pub(crate) fn ever_was(&self, image: &Image) -> bool {
        self.all.iter().any(|version| version.may_be(image))
    }
}

/// The number of a file whose making failed, as nobody was told which it would have had.
pub(crate) const UNKNOWN: u64 = u64::MAX;

impl Image {
    /// Whether it is `found`, if the file of unknown number is given the one that is found at its
    /// name.
    fn may_be(&self, found: &Self) -> bool {
        let mut known = self.clone();
        if let Some(node) = known.nodes.remove(&UNKNOWN) {
            let Some(name) =
                self.names.iter().find(|(_, inode)| **inode == UNKNOWN).map(|(name, _)| name)
            else {
                return false;
            };
            let Some(inode) = found.names.get(name) else { return false };
            known.names.insert(name.clone(), *inode);
            known.nodes.insert(*inode, node);
        }
        known == *found
    }
}
