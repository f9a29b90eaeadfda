//! The sync that stands still, as the world holds it.

use pageserver::error::Error;
use pageserver::fs::tree::Tree;
use pageserver::storage::disk::sim::SimDisk;
use pageserver::storage::page::{Position, TimelineId};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

/// What a sync that was asked for and is not answered yet makes durable.
pub(crate) struct Asked {
    /// Lanes, and what they show by then.
    pub(crate) lanes: Vec<(usize, Arc<crate::model::Image>)>,
    pub(crate) moments: Vec<(TimelineId, Position)>,
}

/// The sync that stands still, and those that wait for it.
pub(crate) struct Slow {
    pub(crate) tree: Arc<Tree>,
    pub(crate) disk: SimDisk,
    pub(crate) worker: Option<JoinHandle<Result<(), Error>>>,
    pub(crate) first: Asked,
    pub(crate) others: Vec<(Asked, Receiver<Result<(), Error>>)>,
    /// Operations until it ends.
    pub(crate) left: u64,
}

impl Slow {
    pub(crate) fn timeline(&self) -> TimelineId {
        self.tree.timeline().id()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.disk.end_stall();
        // What came of it matters to nobody.
        if let Some(worker) = self.worker.take() {
            drop(worker.join());
        }
    }
}
