//! A sync that takes its time: it stands still in the disk, on a thread of its own, while other
//! operations go on.
//!
//! Only one of the threads ever works: the others wait for it, also for what was asked meanwhile,
//! which the store's own threads do. So a run still follows from its seed.

use crate::files::sync;
use crate::stalled::{Asked, Slow};
use crate::world::{Outcome, World};
use pageserver::fs::tree::Tree;
use pageserver::storage::page::{Position, TimelineId};
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// What takes longer does not end.
const NEVER: Duration = Duration::from_secs(120);

impl World {
    /// What a sync of these lanes of a branch makes durable if it begins now.
    pub(crate) fn asked(&self, branch: usize, lanes: &[usize]) -> Asked {
        let branch = &self.branches[branch];
        let of_branch =
            |(timeline, _): &&(TimelineId, Position)| Some(*timeline) == branch.timeline;
        Asked {
            lanes: lanes.iter().map(|lane| (*lane, branch.lanes[*lane].mark())).collect(),
            moments: self.moments.keys().filter(of_branch).copied().collect(),
        }
    }

    /// It is durable.
    pub(crate) fn answered_well(&mut self, branch: usize, asked: &Asked) {
        if self.doubt.is_some() {
            return;
        }
        for (lane, mark) in &asked.lanes {
            self.branches[branch].lanes[*lane].sync(mark);
            for key in &asked.moments {
                self.moments.entry(*key).and_modify(|moment| moment.durable[*lane] = true);
            }
        }
    }

    /// Whether a branch's sync stands still.
    pub(crate) fn is_slow(&self, branch: usize) -> bool {
        self.slow
            .as_ref()
            .is_some_and(|slow| Some(slow.timeline()) == self.branches[branch].timeline)
    }

    /// Begins a sync of a directory that stands still, if it has anything to do.
    pub(crate) fn begin_slow_sync(
        &mut self,
        branch: usize,
        tree: &Arc<Tree>,
        (inode, lane): (u64, usize),
        left: u64,
    ) -> Outcome {
        if self.slow.is_some() {
            return Ok(());
        }
        let (first, disk) = (self.asked(branch, &[lane]), self.disk.clone());
        disk.stall_next();
        let its = Arc::clone(tree);
        let worker = std::thread::spawn(move || sync(&its, inode));
        while !disk.is_stalled() && !worker.is_finished() {
            std::thread::yield_now();
        }
        let (worker, others) = (Some(worker), Vec::new());
        self.slow = Some(Slow { tree: Arc::clone(tree), disk, worker, first, others, left });
        if self.disk.is_stalled() { Ok(()) } else { self.end_slow_sync() }
    }

    /// Asks for a sync while one of the same timeline stands still.
    pub(crate) fn ask(
        &mut self,
        branch: usize,
        lanes: &[usize],
        request: impl FnOnce(pageserver::storage::timeline::syncer::Done),
    ) -> Outcome {
        let (sender, receiver) = sync_channel(1);
        let asked = self.asked(branch, lanes);
        request(Box::new(move |outcome| drop(sender.send(outcome))));
        match receiver.try_recv() {
            Ok(Ok(())) => self.answered_well(branch, &asked),
            Ok(Err(error)) => self.failed(Some(branch), "a sync", &error)?,
            Err(TryRecvError::Disconnected) => return Err("a sync was never answered".into()),
            Err(TryRecvError::Empty) => {
                if let Some(slow) = &mut self.slow {
                    slow.others.push((asked, receiver));
                }
            }
        }
        Ok(())
    }

    /// Lets the sync that stands still end, and takes in what became of it and of those that
    /// waited.
    pub(crate) fn end_slow_sync(&mut self) -> Outcome {
        let Some(mut slow) = self.slow.take() else { return Ok(()) };
        slow.disk.end_stall();
        let Some(worker) = slow.worker.take() else { return Ok(()) };
        let first = worker.join().map_err(|_| "a sync panicked")?;
        let began = Instant::now();
        while slow.tree.timeline().is_syncing() {
            if began.elapsed() > NEVER {
                return Err("a sync that waited is never done".into());
            }
            std::thread::yield_now();
        }
        // The branch may be gone, and with it what the sync was for.
        let Some(branch) =
            self.branches.iter().position(|branch| branch.timeline == Some(slow.timeline()))
        else {
            return Ok(());
        };
        let mut outcomes = vec![(&slow.first, first)];
        for (asked, receiver) in &slow.others {
            let outcome =
                receiver.try_recv().map_err(|_| "a sync that waited was never answered")?;
            outcomes.push((asked, outcome));
        }
        for (asked, outcome) in outcomes {
            match outcome {
                Ok(()) => self.answered_well(branch, asked),
                Err(error) => self.failed(Some(branch), "a slow sync", &error)?,
            }
        }
        Ok(())
    }
}
