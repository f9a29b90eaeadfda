//! A branch of the world, and what it may show.

use crate::model::{Image, Node, Versions};
use pageserver::fs::tree::Tree;
use pageserver::storage::page::TimelineId;
use std::sync::Arc;

/// A branch, and what it may show.
#[derive(Clone)]
pub(crate) struct Branch {
    pub(crate) name: String,
    /// None after a fork of unknown outcome, until the catalog says.
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) lanes: [Versions; 2],
    pub(crate) tree: Option<Arc<Tree>>,
    /// Files without a name that are still open.
    pub(crate) held: Vec<(u64, Node)>,
    /// Something failed: it must be opened anew before it is used again.
    pub(crate) uncertain: bool,
}

impl Branch {
    pub(crate) fn new(name: &str, timeline: Option<TimelineId>, images: [Arc<Image>; 2]) -> Self {
        let lanes = images.map(Versions::of);
        Self {
            name: name.to_owned(),
            timeline,
            lanes,
            tree: None,
            held: Vec::new(),
            uncertain: false,
        }
    }

    /// What it shows while the store runs.
    pub(crate) fn newest(&self) -> [Arc<Image>; 2] {
        self.lanes.each_ref().map(|lane| Arc::clone(lane.newest()))
    }

    pub(crate) fn close(&mut self) {
        self.tree = None;
        self.held.clear();
    }
}

/// The branches as they were, since nobody knows any more what is durable.
#[derive(Default)]
pub(crate) struct Doubt(pub(crate) Vec<Vec<Branch>>);
