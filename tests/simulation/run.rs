//! One run: what is done to branches, moments, layers and the disk, one thing after another, from a
//! list of operations.

use crate::branch::Branch;
use crate::files::length;
use crate::operation::Operation;
use crate::world::{Crash, Outcome, SECOND_NS, WINDOW_S, World, record};
use pageserver::error::Error;
use pageserver::storage::catalog::{BranchRecord, Update};
use pageserver::storage::disk::sim::{SimDisk, Unsynced};
use pageserver::storage::page::{LaneKind, PerLane, Position, TimelineId};
use pageserver::storage::store::{Origin, Past};
use pageserver::storage::upkeep::pace::Pace;
use std::sync::Arc;

/// Branches at the same time.
const MAX_BRANCHES: usize = 10;
/// What a disk loses as a whole.
const SECTOR_BYTES: usize = 512;
/// Operations for which an armed fault may wait.
const PATIENCE: usize = 12;

/// What a run went through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    pub(crate) openings: u64,
}

struct Run<'o> {
    world: World,
    operations: &'o [Operation],
    next: usize,
    /// What happens when the disk has failed.
    stop: Option<Crash>,
    /// Operations until armed faults are taken back.
    patience: usize,
    ended: bool,
}

/// Does `operations` to a new store; what was wrong, if anything.
pub(crate) fn run(operations: &[Operation]) -> Outcome<Tally> {
    let mut run =
        Run { world: World::new(), operations, next: 0, stop: None, patience: 0, ended: false };
    while let Some(operation) = run.take() {
        run.step(operation).map_err(|error| format!("{operation}: {error}"))?;
        if run.ended {
            break;
        }
    }
    if !run.ended {
        run.calm()?;
        run.world.verify(false)?;
        run.world.restart()?;
        run.world.verify(false)?;
    }
    Ok(Tally { operations: run.next as u64, openings: run.world.openings })
}

fn crash(number: u64) -> Crash {
    if number % 5 == 4 { Crash::Killed } else { Crash::PowerLoss(unsynced(number / 5)) }
}

fn unsynced(number: u64) -> Unsynced {
    match number % 4 {
        0 => Unsynced::Lost,
        1 => Unsynced::Kept,
        _ => Unsynced::Mixed(number),
    }
}

impl Run<'_> {
    fn take(&mut self) -> Option<Operation> {
        let operation = self.operations.get(self.next).copied();
        self.next += usize::from(operation.is_some());
        operation
    }

    fn step(&mut self, operation: Operation) -> Outcome {
        self.go_on_with_slow_sync(operation)?;
        if !self.world.file_operation(operation)? && !self.branch_operation(operation)? {
            self.disk_operation(operation)?;
        }
        if let Some(how) = self.stop.filter(|_| self.world.disk.failed()) {
            self.stop = None;
            return self.world.crash(how);
        }
        self.patience = self.patience.saturating_sub(1);
        if self.world.armed && self.patience == 0 { self.calm() } else { Ok(()) }
    }

    /// Ends a sync that stands still in time, and before what cannot go on beside it.
    fn go_on_with_slow_sync(&mut self, operation: Operation) -> Outcome {
        use Operation::*;
        let Some(slow) = &mut self.world.slow else { return Ok(()) };
        slow.left = slow.left.saturating_sub(1);
        let alone = matches!(
            operation,
            Seal { .. }
                | Merge { .. }
                | Flatten
                | CloseUnused
                | Flip { .. }
                | FlipAtRest { .. }
                | FlipCatalog { .. }
                | Misdirect { .. }
                | Lie { .. }
        );
        if slow.left == 0 || alone { self.world.end_slow_sync() } else { Ok(()) }
    }

    /// Takes armed faults back.
    fn calm(&mut self) -> Outcome {
        match self.stop.take() {
            Some(how) => self.world.crash(how),
            None => self.world.mend(),
        }
    }

    fn arm(&mut self) {
        (self.world.armed, self.patience) = (true, PATIENCE);
    }

    /// Does one of the operations that follow, while another goes on.
    fn meanwhile(&mut self) -> Outcome {
        let Some(operation) = self.operations.get(self.next).copied() else { return Ok(()) };
        if matches!(operation, Operation::Seal { .. } | Operation::Merge { .. }) {
            return Ok(());
        }
        if self.world.file_operation(operation)? || self.branch_operation(operation)? {
            self.next += 1;
        }
        Ok(())
    }

    /// Operations on branches and what they are made of; false if it is something else.
    fn branch_operation(&mut self, operation: Operation) -> Outcome<bool> {
        use Operation::*;
        let world = &mut self.world;
        match operation {
            Fork { parent, newest } => {
                let parent = if newest { world.branches.len() - 1 } else { world.index(parent) };
                self.fork(parent, None, None)?;
            }
            ForkAt { branch, mark } => {
                let branch = world.index(branch);
                if let Some(position) = self.moment(branch, mark)? {
                    self.fork(branch, Some(position), None)?;
                }
            }
            Reset { branch, parent } => {
                let (branch, parent) = (world.index(branch), world.index(parent));
                if branch != parent {
                    self.fork(parent, None, Some((branch, false)))?;
                }
            }
            Restore { branch, mark } => {
                let branch = world.index(branch);
                if let Some(position) = self.moment(branch, mark)? {
                    self.fork(branch, Some(position), Some((branch, true)))?;
                }
            }
            RenameBranch { branch } => {
                let branch = world.index(branch);
                self.rename(branch)?;
            }
            Delete { branch } => {
                let branch = world.index(branch);
                self.delete(branch)?;
            }
            Mark { branch } => {
                let branch = world.index(branch);
                self.mark(branch)?;
            }
            LetGo { branch, mark } => {
                let branch = world.index(branch);
                if let Some(position) = self.moment(branch, mark)? {
                    self.forget_marks(branch, position)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// One of the moments of a branch that can be gone back to, if it is sound and has any.
    fn moment(&mut self, branch: usize, number: u64) -> Outcome<Option<Position>> {
        if self.world.branches[branch].uncertain {
            return Ok(None);
        }
        match self.world.tree(branch) {
            Ok(tree) => {
                let marks = tree.timeline().marks();
                let nth = length(number) % marks.len().max(1);
                Ok(marks.get(nth).map(|mark| mark.position))
            }
            Err(error) => self.world.failed(Some(branch), "open a branch", &error).map(|()| None),
        }
    }

    /// Forks from a branch or a moment of it: as a new branch, or in place of one, whose old state
    /// is kept under a new name if that is wanted.
    fn fork(
        &mut self,
        parent: usize,
        at: Option<Position>,
        replaces: Option<(usize, bool)>,
    ) -> Outcome {
        let world = &mut self.world;
        world.ask_catalog()?;
        if world.is_slow(parent) {
            world.end_slow_sync()?;
        }
        if world.branches[parent].uncertain
            || (replaces.is_none_or(|(_, keep)| keep) && world.branches.len() >= MAX_BRANCHES)
        {
            return Ok(());
        }
        let Some(timeline) = world.branches[parent].timeline else { return Ok(()) };
        let images = match at {
            None => world.branches[parent].newest(),
            Some(position) => match world.moments.get(&(timeline, position)) {
                Some(moment) => moment.images.clone(),
                None => return Err(format!("nobody marked {position}")),
            },
        };
        world.named += 1;
        let fresh = format!("b{}", world.named);
        let old = replaces.map(|(branch, _)| world.branches[branch].clone());
        let name = old.as_ref().map_or(&fresh, |old| &old.name).clone();
        let mut maybe = world.branches.clone();
        if let Some((branch, keep)) = replaces {
            let mut kept = maybe.remove(branch);
            kept.name.clone_from(&fresh);
            maybe.extend(keep.then_some(kept));
        }
        let kept = replaces.is_some_and(|(_, keep)| keep).then_some(old.as_ref()).flatten();
        let put_old = kept.and_then(|old| old.timeline).map(|id| (fresh.clone(), record(id)));
        maybe.push(Branch::new(&name, None, images));
        let after = maybe.clone();
        let past = at.map(|position| Past { at: PerLane::both(position), time_ns: 0 });
        let store = Arc::clone(&world.store);
        let outcome = store.fork(Origin { timeline, past, unfinished: false }, |id| {
            let put = |update: Update, (name, record): (String, _)| update.put(&name, record);
            put_old.into_iter().fold(Update::default().put(&name, record(id)), put)
        });
        let forked = |(id, _): &(TimelineId, Vec<TimelineId>)| {
            let mut after = after;
            after
                .iter_mut()
                .filter(|branch| branch.timeline.is_none())
                .for_each(|branch| branch.timeline = Some(*id));
            after
        };
        let done = world.published("fork", outcome, forked, maybe)?;
        if let Some((_, freed)) = done {
            if at.is_none() {
                for nth in 0..world.branches.len() {
                    if world.branches[nth].timeline == Some(timeline) {
                        world.synced(nth, 0);
                        world.synced(nth, 1);
                    }
                }
            }
            self.free(&freed);
        } else if self
            .world
            .store
            .timeline(timeline)
            .is_ok_and(|timeline| timeline.latched().is_some())
            && let Some(branch) =
                self.world.branches.iter_mut().find(|branch| branch.timeline == Some(timeline))
        {
            branch.uncertain = true;
        }
        Ok(())
    }

    fn free(&mut self, freed: &[TimelineId]) {
        self.world.moments.retain(|(timeline, _), _| !freed.contains(timeline));
        self.world.store.free(freed);
    }

    fn rename(&mut self, branch: usize) -> Outcome {
        let world = &mut self.world;
        world.ask_catalog()?;
        let Some(id) = world.branches[branch].timeline else { return Ok(()) };
        world.named += 1;
        let mut after = world.branches.clone();
        after[branch].name = format!("r{}", world.named);
        let update = Update::default()
            .remove::<BranchRecord>(&world.branches[branch].name)
            .put(&after[branch].name, record(id));
        let outcome = world.store.publish(update);
        let maybe = after.clone();
        world.published("rename a branch", outcome, |_| after, maybe).map(drop)
    }

    fn delete(&mut self, branch: usize) -> Outcome {
        let world = &mut self.world;
        world.ask_catalog()?;
        if world.branches.len() == 1 {
            return Ok(());
        }
        // Nobody has it open any more, also if it stays.
        world.branches[branch].close();
        let mut after = world.branches.clone();
        let gone = after.remove(branch);
        let outcome = world.store.publish(Update::default().remove::<BranchRecord>(&gone.name));
        let maybe = after.clone();
        if let Some(freed) = world.published("delete a branch", outcome, |_| after, maybe)? {
            self.free(&freed);
        }
        Ok(())
    }

    fn mark(&mut self, branch: usize) -> Outcome {
        self.world.now_s += 1;
        self.world.store.clock().set(self.world.now_s * SECOND_NS);
        if self.world.branches[branch].uncertain {
            return Ok(());
        }
        let tree = match self.world.tree(branch) {
            Ok(tree) => tree,
            Err(error) => return self.world.failed(Some(branch), "open a branch", &error),
        };
        let outcome = tree.timeline().mark(false);
        let newest = self.world.branches[branch].newest();
        self.world.note_moments(branch, &newest);
        outcome.map(drop).or_else(|error| self.world.failed(Some(branch), "mark", &error))
    }

    fn forget_marks(&mut self, branch: usize, position: Position) -> Outcome {
        let Ok(tree) = self.world.tree(branch) else { return Ok(()) };
        let key = (tree.timeline().id(), position);
        self.world.moments.entry(key).and_modify(|moment| moment.kept = false);
        match tree.timeline().forget_marks(&[position]) {
            Ok(()) => Ok(()),
            Err(error) => self.world.failed(Some(branch), "let go of a moment", &error),
        }
    }

    /// Operations on layers, the clock and the disk.
    fn disk_operation(&mut self, operation: Operation) -> Outcome {
        use Operation::*;
        match operation {
            Seal { branch, lane, meanwhile } => self.seal(branch, lane, meanwhile),
            Merge { branch, lane, first, meanwhile } => {
                self.merge((branch, lane), first, meanwhile)
            }
            Flatten => self.flatten(),
            CloseUnused => {
                self.let_go_of_trees();
                self.world.store.close_unused();
                Ok(())
            }
            Tick => self.tick(),
            Age => {
                self.world.now_s += WINDOW_S + 1000;
                self.world.store.clock().set(self.world.now_s * SECOND_NS);
                self.world.moments.values_mut().for_each(|moment| moment.kept = false);
                Ok(())
            }
            Verify => self.world.verify(false),
            Crash { how } => self.world.crash(crash(how)),
            Restart => {
                self.calm()?;
                self.world.restart().map(drop)
            }
            other => self.fault(other),
        }
    }

    fn fault(&mut self, operation: Operation) -> Outcome {
        use Operation::*;
        if self.world.armed {
            return Ok(());
        }
        let disk = self.world.disk.clone();
        match operation {
            StopAfter { count, how } => {
                disk.stop_after(count);
                self.stop = Some(crash(how));
                self.arm();
            }
            FailOnce { count } => {
                disk.fail_once_after(count);
                self.arm();
            }
            FailCatalog { count } => {
                disk.fail_once_in(catalog_file(count), count / 2);
                self.arm();
            }
            FailReadOnce { count } => {
                disk.fail_read_after(Some(count));
                self.arm();
            }
            Full { room } => {
                disk.set_capacity_bytes(Some(disk.used_bytes() + room));
                self.arm();
            }
            Flip { file, bit } => {
                if let Some((name, bit)) = some_bit(&disk, file, bit) {
                    flip(&disk, &name, bit);
                    let outcome = self.world.verify(true);
                    flip(&disk, &name, bit);
                    // What could not be opened with it can now.
                    outcome.map_err(|error| format!("{error} (bit {bit} of {name})"))?;
                    self.world.branches.iter_mut().for_each(|branch| branch.uncertain = false);
                }
            }
            FlipAtRest { file, bit, sector } => {
                let stopped = self.world.restart()?;
                if let Some((name, bit)) = some_bit(&stopped, file, bit) {
                    self.open_damaged((&stopped, false), &name, bit, sector)?;
                }
            }
            FlipCatalog { bit, sector, killed } => {
                let found = if killed { disk.after_kill() } else { self.world.restart()? };
                let file = catalog_file(bit);
                let bit = used_bit(&found, file, bit / 2);
                self.open_damaged((&found, killed), file, bit, sector)?;
            }
            Lie { count, meanwhile, unsynced } => self.lie(count, meanwhile, unsynced)?,
            Misdirect { count } => {
                disk.misdirect_after(count);
                self.arm();
                self.ended = true;
                while disk.will_misdirect() {
                    let Some(operation) = self.take() else { return Ok(()) };
                    if !self.world.file_operation(operation)? {
                        self.branch_operation(operation)?;
                    }
                }
                self.world.verify(true)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Opens a disk, of a server that was killed or ended in order, with a damage.
    fn open_damaged(
        &self,
        (disk, killed): (&SimDisk, bool),
        name: &str,
        bit: usize,
        sector: bool,
    ) -> Outcome {
        if sector {
            disk.alter(name, |bytes| {
                let start = bit / 8 / SECTOR_BYTES * SECTOR_BYTES;
                let end = bytes.len().min(start + SECTOR_BYTES);
                bytes[start..end].fill(0);
            });
        } else {
            flip(disk, name, bit);
        }
        let what = if sector { "the sector of bit" } else { "bit" };
        // The last sector of a lane is as if it had never been written, and what was not synced
        // ends with a killed server.
        let end_lost = killed || sector && name.starts_with("lanes/");
        self.world
            .open_damaged(disk, end_lost)
            .map_err(|error| format!("{error} ({what} {bit} of {name})"))
    }

    /// Goes on while one sync is none, and loses the power.
    fn lie(&mut self, count: u64, meanwhile: u64, unsynced: u64) -> Outcome {
        let disk = self.world.disk.clone();
        disk.lie_after(count);
        (self.ended, self.world.busy) = (true, true);
        self.world.begin_doubt();
        let mut left = meanwhile;
        while disk.will_lie() || left > 0 {
            left = left.saturating_sub(u64::from(!disk.will_lie()));
            let Some(operation) = self.take() else { return Ok(()) };
            if operation.is_fault() {
                continue;
            }
            self.step(operation)?;
            self.world.remember();
        }
        self.world.open_after_lie(&disk.after_power_loss(self::unsynced(unsynced)))
    }

    fn seal(&mut self, branch: u64, lane: u64, meanwhile: u64) -> Outcome {
        let Some((id, lane)) = self.lane(branch, lane) else { return Ok(()) };
        let store = Arc::clone(&self.world.store);
        self.keep_in_shape("seal", id, meanwhile, |pace| store.seal(id, lane, pace))
    }

    fn merge(&mut self, (branch, lane): (u64, u64), first: u64, meanwhile: u64) -> Outcome {
        let Some((id, lane)) = self.lane(branch, lane) else { return Ok(()) };
        let store = Arc::clone(&self.world.store);
        let layers =
            store.catalog().timeline(id).map_or(0, |record| record.lanes[lane].layers.len());
        // A closed timeline is not worked on.
        let nth = self.world.index(branch);
        if layers == 0 || self.world.tree(nth).is_err() {
            return Ok(());
        }
        let start = length(first) % layers;
        let range = start..start + 1 + length(first / 1009) % (layers - start);
        self.keep_in_shape("merge", id, meanwhile, |pace| store.merge(id, lane, range, pace))
    }

    fn lane(&self, branch: u64, lane: u64) -> Option<(TimelineId, LaneKind)> {
        let branch = &self.world.branches[self.world.index(branch)];
        Some((branch.timeline.filter(|_| !branch.uncertain)?, LaneKind::ALL[length(lane) % 2]))
    }

    /// Seals or merges, with up to `left` of the operations that follow done between its steps. It
    /// may fail with the disk, or because the branch is gone meanwhile.
    fn keep_in_shape(
        &mut self,
        what: &str,
        id: TimelineId,
        mut left: u64,
        work: impl FnOnce(&mut Pace<'_>) -> Result<bool, Error>,
    ) -> Outcome {
        let mut within = Ok(());
        let busy = std::mem::replace(&mut self.world.busy, true);
        let outcome = work(&mut |_| {
            if left > 0 && within.is_ok() {
                left -= 1;
                within = self.meanwhile();
            }
            Ok(())
        });
        self.world.busy = busy;
        within?;
        let Err(error) = outcome else { return Ok(()) };
        let branch = self.world.branches.iter().position(|branch| branch.timeline == Some(id));
        match branch {
            None => Ok(()),
            branch => self.world.failed(branch, what, &error),
        }
    }

    /// Nobody has a branch open any more, but where a file without a name is.
    fn let_go_of_trees(&mut self) {
        for branch in self.world.branches.iter_mut().filter(|branch| branch.held.is_empty()) {
            branch.tree = None;
        }
    }

    fn flatten(&mut self) -> Outcome {
        self.let_go_of_trees();
        (0..MAX_BRANCHES).for_each(|_| self.world.store.close_unused());
        match self.world.store.flatten_deep(&mut |_| Ok(())) {
            Ok(_) => Ok(()),
            Err(error) => self.world.failed(None, "flatten", &error),
        }
    }

    fn tick(&mut self) -> Outcome {
        self.world.now_s += 1;
        self.world.store.clock().set(self.world.now_s * SECOND_NS);
        self.world.store.tick();
        let open = self.world.store.open_timelines();
        for nth in 0..self.world.branches.len() {
            let id = self.world.branches[nth].timeline;
            let Some(timeline) = open.iter().find(|timeline| Some(timeline.id()) == id) else {
                continue;
            };
            let newest = self.world.branches[nth].newest();
            self.world.note_moments(nth, &newest);
            if self.world.is_slow(nth) {
                continue;
            }
            if timeline.latched().is_some() {
                self.world.failed(Some(nth), "tick", &"the timeline is latched")?;
                continue;
            }
            self.world.synced(nth, 0);
            self.world.synced(nth, 1);
        }
        Ok(())
    }
}

/// A bit of a file with contents, the catalog left out while the store runs on it.
fn some_bit(disk: &SimDisk, file: u64, bit: u64) -> Option<(String, usize)> {
    let files: Vec<_> =
        disk.files().into_iter().filter(|(name, bytes)| *bytes > 0 && name.contains('/')).collect();
    let (name, bytes) = files.get(length(file) % files.len().max(1))?;
    Some((name.clone(), length(bit) % (bytes * 8)))
}

/// A bit of a page of a file that is not all zeros; of its first one, which says what counts, every
/// other time.
fn used_bit(disk: &SimDisk, name: &str, bit: u64) -> usize {
    const PAGE_BYTES: usize = 4096;
    let mut used = Vec::new();
    disk.after_power_loss(Unsynced::Kept).alter(name, |bytes| {
        let pages = bytes.chunks(PAGE_BYTES).enumerate();
        used = pages
            .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            .map(|(nth, _)| nth)
            .collect();
    });
    if bit.is_multiple_of(2) {
        used.truncate(1);
    }
    let nth = length(bit / 2) % (used.len() * PAGE_BYTES * 8).max(1);
    used.get(nth / (PAGE_BYTES * 8)).copied().unwrap_or(0) * PAGE_BYTES * 8 + nth % (PAGE_BYTES * 8)
}

/// One of the two files of which the catalog is.
fn catalog_file(draw: u64) -> &'static str {
    if draw.is_multiple_of(2) { "journal" } else { "catalog" }
}

fn flip(disk: &SimDisk, name: &str, bit: usize) {
    disk.alter(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
}
