//! Making the lanes of a timeline durable.

use crate::error::Result;
use crate::locks::write;
use crate::storage::disk::slow::Watch;
use crate::storage::page::LaneKind;
use crate::storage::sabotage::{self, Defect};
use crate::storage::timeline::Timeline;
use crate::storage::timeline::syncer::{Done, SyncQueue};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn wait_for(sync: impl FnOnce(Done)) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    sync(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.recv().unwrap_or_else(|_| unreachable!("a sync always answers"))
}

impl Timeline {
    /// Whether anything was written that no sync has reached.
    pub fn is_dirty(&self, kind: LaneKind) -> bool {
        let lane = self.lane(kind);
        lane.durable.load(Ordering::SeqCst) < lane.appended.load(Ordering::SeqCst)
    }

    /// Makes a lane durable up to now, then calls `done`. With nothing new it does so at once.
    pub fn sync(self: &Arc<Self>, kind: LaneKind, done: Done) {
        if self.joins_queue(kind, done) {
            self.shared.syncer.serve(self.server(kind));
        }
    }

    /// Asks for a sync, which may be answered at once. Whether the caller has to bring the lane to
    /// who serves it.
    pub(super) fn joins_queue(&self, kind: LaneKind, done: Done) -> bool {
        if let Err(error) = self.refuse_if_latched() {
            done(Err(error));
            return false;
        }
        if kind == LaneKind::Data {
            self.data_synced.store(true, Ordering::SeqCst);
        }
        if !self.is_dirty(kind) {
            done(Ok(()));
            return false;
        }
        self.lane(kind).queue.add(done)
    }

    /// Makes both lanes durable up to now, then calls `done`.
    pub fn sync_both(self: &Arc<Self>, done: Done) {
        let timeline = Arc::clone(self);
        self.sync(
            LaneKind::Data,
            Box::new(move |outcome| match outcome {
                Ok(()) => timeline.sync(LaneKind::Wal, done),
                Err(error) => done(Err(error)),
            }),
        );
    }

    /// Makes both lanes durable and waits for it.
    pub fn sync_and_wait(self: &Arc<Self>) -> Result<()> {
        wait_for(|done| self.sync_both(done))
    }

    /// Makes the data lane durable and waits for it.
    pub(in crate::storage) fn sync_data_and_wait(self: &Arc<Self>) -> Result<()> {
        wait_for(|done| self.sync(LaneKind::Data, done))
    }

    /// The sync requests of a lane.
    fn sync_queue(&self, kind: LaneKind) -> &SyncQueue {
        &self.lane(kind).queue
    }

    /// What serves the sync requests of a lane that wait; whether that were all.
    pub(super) fn server(self: &Arc<Self>, kind: LaneKind) -> impl Fn() -> bool + use<> {
        let timeline = Arc::clone(self);
        move || {
            timeline.run_sync(kind);
            timeline.sync_queue(kind).end_turn()
        }
    }

    /// Whether a sync goes on, or waits.
    pub fn is_syncing(&self) -> bool {
        LaneKind::ALL.iter().any(|kind| self.sync_queue(*kind).is_running())
    }

    /// Serves the sync requests of a lane that wait now.
    fn run_sync(self: &Arc<Self>, kind: LaneKind) {
        let lane = self.lane(kind);
        let waiting = lane.queue.take();
        let outcome = self.refuse_if_latched().and_then(|()| {
            let work = write(&lane.state).log.begin_sync();
            let _watch = Watch::new("sync of the disk");
            work.run(&self.shared.lane_files).map_err(|error| self.latch_failed_write(error))?;
            // An append that failed meanwhile may have lost what came before it, too.
            self.refuse_if_latched()?;
            let late = sabotage::active(Defect::SyncTarget);
            let reached = if late { lane.appended.load(Ordering::SeqCst) } else { work.target };
            let appended = lane.appended.load(Ordering::SeqCst);
            assert!(reached <= appended, "synced to {reached}, appended to {appended}");
            lane.durable.fetch_max(reached, Ordering::SeqCst);
            Ok(())
        });
        for done in waiting {
            done(outcome.clone());
        }
    }
}
