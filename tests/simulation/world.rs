//! The store under test on its simulated disk, beside the model of what it must show.

use crate::branch::{Branch, Doubt};
use crate::model::{Directory, Image, Node};
use crate::stalled::Slow;
use pageserver::fs::tree::{NewInode, Tree};
use pageserver::storage::catalog::{BranchRecord, Update};
use pageserver::storage::check;
use pageserver::storage::disk::Disk;
use pageserver::storage::disk::sim::{SimDisk, Unsynced};
use pageserver::storage::log::format::FileKind;
use pageserver::storage::page::{LaneKind, PerLane, Position, ROOT_INODE, TimelineId};
use pageserver::storage::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How a store ends that nobody stopped.
#[derive(Clone, Copy)]
pub(crate) enum Crash {
    /// The system goes on, and has what was written.
    Killed,
    PowerLoss(Unsynced),
}

/// What went wrong, or nothing.
pub(crate) type Outcome<T = ()> = Result<T, String>;

pub(crate) const SECOND_NS: i64 = 1_000_000_000;
/// How long moments are kept, in seconds.
pub(crate) const WINDOW_S: i64 = 86_400;

/// A moment that was marked, and what was there.
#[derive(Clone)]
pub(crate) struct Moment {
    pub(crate) images: [Arc<Image>; 2],
    /// Whether its record is durable, and what the write-ahead lane showed then.
    pub(crate) durable: [bool; 2],
    /// Whether nobody has asked to let go of it.
    pub(crate) kept: bool,
}

pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) store: Arc<Store>,
    pub(crate) branches: Vec<Branch>,
    pub(crate) moments: BTreeMap<(TimelineId, Position), Moment>,
    /// The branches as they are if a publication of unknown outcome took place.
    pub(crate) alternative: Option<Vec<Branch>>,
    /// A sync that has begun and not ended.
    pub(crate) slow: Option<Slow>,
    /// Whether something goes on that waits for syncs, so that none may be slow.
    pub(crate) busy: bool,
    /// What there was since the disk may have lied.
    pub(crate) doubt: Option<Doubt>,
    pub(crate) now_s: i64,
    /// How many names were given.
    pub(crate) named: u64,
    /// Whether a failure of the disk may come.
    pub(crate) armed: bool,
    /// Whether one has come, so that a moment may be marked though it was said that it is not.
    pub(crate) struck: bool,
    /// Power losses and restarts so far.
    pub(crate) openings: u64,
}

pub(crate) fn record(timeline: TimelineId) -> BranchRecord {
    BranchRecord::root(timeline.0, timeline, 0)
}

pub(crate) fn new_inode(kind: FileKind, mode: u16, target: &[u8]) -> NewInode<'_> {
    NewInode { kind, mode, owner: (1, 1), target }
}

pub(crate) fn open(disk: &SimDisk, now_s: i64) -> Result<Arc<Store>, pageserver::error::Error> {
    let store = Store::open(Arc::new(disk.clone()), 5)?;
    store.clock().set(now_s * SECOND_NS);
    store.keep_history(Duration::from_secs(WINDOW_S.unsigned_abs()))?;
    Ok(Arc::new(store))
}

impl World {
    /// A store with the branch `main`, whose directories are durable.
    pub(crate) fn new() -> Self {
        let (disk, now_s) = (SimDisk::default(), 1_000_000);
        let store = open(&disk, now_s).expect("make a store");
        let id = store.create_root().expect("make a timeline");
        store.publish(Update::default().put("main", record(id))).expect("name it");
        let tree = Tree::new(store.timeline(id).expect("open it"));
        tree.make_root((1, 1), 0).expect("make the root directory");
        for name in [&b"base"[..], b"pg_wal"] {
            tree.make(ROOT_INODE, name, &new_inode(FileKind::Directory, 0o700, &[]), 0)
                .expect("make a directory");
        }
        tree.timeline().sync_and_wait().expect("sync");
        let branches = vec![Branch::new("main", Some(id), Default::default())];
        Self {
            disk,
            store,
            branches,
            moments: BTreeMap::new(),
            alternative: None,
            slow: None,
            busy: false,
            doubt: None,
            now_s,
            named: 0,
            armed: false,
            struck: false,
            openings: 0,
        }
    }

    pub(crate) fn index(&self, number: u64) -> usize {
        usize::try_from(number % self.branches.len() as u64).unwrap_or(0)
    }

    /// The tree of a branch, opened if need be.
    pub(crate) fn tree(&mut self, branch: usize) -> Result<Arc<Tree>, pageserver::error::Error> {
        let branch = &mut self.branches[branch];
        if let Some(tree) = &branch.tree {
            return Ok(Arc::clone(tree));
        }
        let id = branch.timeline.unwrap_or(TimelineId(0));
        self.store.reopen_if_latched(id)?;
        let tree = Arc::new(Tree::new(self.store.timeline(id)?));
        let reaped = tree.remove_nameless();
        reaped.map_err(|error| error.into_error("remove files without a name"))?;
        branch.tree = Some(Arc::clone(&tree));
        Ok(tree)
    }

    /// Takes an error of the store for what it is: allowed while the disk may fail, else the end of
    /// the run.
    pub(crate) fn failed(
        &mut self,
        branch: Option<usize>,
        what: &str,
        error: &dyn std::fmt::Display,
    ) -> Outcome {
        if let Some(branch) = branch {
            self.branches[branch].uncertain = true;
        }
        if self.armed { Ok(()) } else { Err(format!("{what}: {error}")) }
    }

    /// What an operation that publishes names came to: `after` are the branches if it took place.
    pub(crate) fn published<T, E: std::fmt::Display>(
        &mut self,
        what: &str,
        outcome: Result<T, E>,
        after: impl FnOnce(&T) -> Vec<Branch>,
        maybe: Vec<Branch>,
    ) -> Outcome<Option<T>> {
        match outcome {
            Ok(done) => {
                self.alternative = None;
                self.branches = after(&done);
                Ok(Some(done))
            }
            Err(error) => {
                self.failed(None, what, &error)?;
                // Behind one of unknown outcome the catalog takes no other until it has been asked.
                self.alternative.get_or_insert(maybe);
                if self.store.catalog().is_open() {
                    self.follow_catalog()?;
                }
                Ok(None)
            }
        }
    }

    /// Asks the catalog about a publication of unknown outcome, if it can be asked now.
    pub(crate) fn ask_catalog(&mut self) -> Outcome {
        if self.alternative.is_some() && self.store.catalog().require().is_ok() {
            return self.follow_catalog();
        }
        Ok(())
    }

    /// Takes over what the catalog says became of a publication of unknown outcome.
    fn follow_catalog(&mut self) -> Outcome {
        let found = self.store.catalog().branches();
        let fits = |branches: &[Branch]| {
            let known: Vec<u64> =
                self.branches.iter().filter_map(|branch| Some(branch.timeline?.0)).collect();
            branches.len() == found.len()
                && branches.iter().all(|branch| {
                    let Some(record) = found.get(&branch.name) else { return false };
                    branch
                        .timeline
                        .map_or(!known.contains(&record.timeline), |id| id.0 == record.timeline)
                })
        };
        if !fits(&self.branches) {
            let alternative = self.alternative.take().filter(|alternative| fits(alternative));
            let names: Vec<_> =
                found.iter().map(|(name, record)| (name, record.timeline)).collect();
            let expected: Vec<_> =
                self.branches.iter().map(|branch| (&branch.name, branch.timeline)).collect();
            self.branches = alternative
                .ok_or(format!("the catalog has {names:?}, expected were {expected:?}"))?;
            for branch in &mut self.branches {
                branch.timeline = found.get(&branch.name).map(|record| TimelineId(record.timeline));
            }
        }
        self.alternative = None;
        Ok(())
    }

    /// What a tree shows.
    pub(crate) fn observe(tree: &Tree) -> Outcome<[Image; 2]> {
        let mut images = [Image::default(), Image::default()];
        for directory in Directory::ALL {
            let Some(inode) = Self::directory(tree, directory) else {
                return Err(format!("there is no directory {directory:?}"));
            };
            let image = &mut images[directory.lane()];
            for (_, name, _) in tree.list(inode) {
                if directory == Directory::Root && (name == b"base" || name == b"pg_wal") {
                    continue;
                }
                let Ok((inode, attributes)) = tree.lookup(inode, &name) else { continue };
                let size = if attributes.kind == FileKind::File { attributes.size } else { 0 };
                let bytes = Self::bytes(tree, inode, size)?;
                let (kind, mode, links, target) =
                    (attributes.kind, attributes.mode, attributes.links, attributes.target);
                image.names.insert((directory, name), inode);
                image
                    .nodes
                    .insert(inode, Node { kind, mode, links, target, bytes: Arc::new(bytes) });
            }
        }
        Ok(images)
    }

    pub(crate) fn bytes(tree: &Tree, inode: u64, size: u64) -> Outcome<Vec<u8>> {
        let length = u32::try_from(size).map_err(|error| error.to_string())?;
        let (buffer, range) =
            tree.read(inode, 0, length).map_err(|error| format!("{:?}", error.errno()))?;
        Ok(buffer[range].to_vec())
    }

    /// The inode of a directory.
    pub(crate) fn directory(tree: &Tree, directory: Directory) -> Option<u64> {
        let name: &[u8] = match directory {
            Directory::Root => return Some(ROOT_INODE),
            Directory::Base => b"base",
            Directory::Wal => b"pg_wal",
        };
        tree.lookup(ROOT_INODE, name).ok().map(|(inode, _)| inode)
    }

    /// Reads everything. What can be read is right; all of it can unless something is damaged.
    pub(crate) fn verify(&mut self, damaged: bool) -> Outcome {
        for nth in 0..self.branches.len() {
            if self.branches[nth].uncertain {
                continue;
            }
            let tree = match self.tree(nth) {
                Ok(tree) => tree,
                Err(_) if damaged => continue,
                Err(error) => {
                    self.failed(Some(nth), "open a branch", &error)?;
                    continue;
                }
            };
            let branch = &self.branches[nth];
            let lenient = damaged || self.armed;
            match Self::observe(&tree) {
                Ok(images) => Self::compare(&branch.name, &images, &branch.newest())?,
                Err(_) if lenient => {}
                Err(error) => return Err(format!("{} cannot be read: {error}", branch.name)),
            }
            for (inode, node) in &branch.held {
                let bytes = Self::bytes(&tree, *inode, node.bytes.len() as u64);
                if !lenient && bytes.as_ref() != Ok(&*node.bytes)
                    || bytes.is_ok_and(|bytes| bytes != *node.bytes)
                {
                    return Err(format!(
                        "{}: open file {inode:x} without a name changed",
                        branch.name
                    ));
                }
            }
            self.verify_moments(nth, &tree, lenient)?;
        }
        Ok(())
    }

    fn compare(name: &str, seen: &[Image; 2], expected: &[Arc<Image>; 2]) -> Outcome {
        for lane in [0, 1] {
            if seen[lane] != *expected[lane] {
                return Err(format!(
                    "{name}, lane {lane}: {}",
                    seen[lane].difference(&expected[lane])
                ));
            }
        }
        Ok(())
    }

    fn verify_moments(&self, branch: usize, tree: &Tree, lenient: bool) -> Outcome {
        let branch = &self.branches[branch];
        let Some(id) = branch.timeline else { return Ok(()) };
        let marks: Vec<Position> =
            tree.timeline().marks().iter().map(|mark| mark.position).collect();
        for position in &marks {
            let Some(moment) = self.moments.get(&(id, *position)) else {
                return Err(format!("{} has a moment {position} that nobody marked", branch.name));
            };
            match Self::observe(&Tree::new(tree.timeline().view(PerLane::both(*position)))) {
                Ok(seen) => {
                    Self::compare(
                        &format!("{} at {position}", branch.name),
                        &seen,
                        &moment.images,
                    )?;
                }
                Err(_) if lenient => {}
                Err(error) => {
                    return Err(format!("{} at {position} cannot be read: {error}", branch.name));
                }
            }
        }
        let gone = |((timeline, position), moment): &(&(TimelineId, Position), &Moment)| {
            *timeline == id && moment.kept && moment.durable[0] && !marks.contains(position)
        };
        match self.moments.iter().find(gone) {
            Some(((_, position), _)) => Err(format!("{} lost the moment {position}", branch.name)),
            None => Ok(()),
        }
    }

    /// A lane of a branch is durable now, and so are the moments marked so far.
    pub(crate) fn synced(&mut self, branch: usize, lane: usize) {
        let asked = self.asked(branch, &[lane]);
        self.answered_well(branch, &asked);
    }

    /// Remembers what was there at the moments of a branch that are new.
    pub(crate) fn note_moments(&mut self, branch: usize, images: &[Arc<Image>; 2]) {
        let Some(id) = self.branches[branch].timeline else { return };
        let open = self.store.open_timelines().into_iter().find(|timeline| timeline.id() == id);
        for mark in open.iter().flat_map(|timeline| timeline.marks()) {
            self.moments.entry((id, mark.position)).or_insert_with(|| Moment {
                images: images.clone(),
                durable: [false; 2],
                kept: true,
            });
        }
    }

    /// The store ends without a word; what is found afterwards must be one of the things that may
    /// be.
    pub(crate) fn crash(&mut self, how: Crash) -> Outcome {
        self.struck |= self.disk.failed();
        let disk = match how {
            Crash::Killed => self.disk.after_kill(),
            Crash::PowerLoss(unsynced) => self.disk.after_power_loss(unsynced),
        };
        // Nobody was told that a sync that has not ended is done.
        self.slow = None;
        self.start_again(disk)
    }

    /// Opens the store that is on `disk` in place of the one that ran.
    pub(crate) fn start_again(&mut self, disk: SimDisk) -> Outcome {
        self.branches.iter_mut().for_each(Branch::close);
        self.alternative.iter_mut().flatten().for_each(Branch::close);
        self.armed = false;
        self.openings += 1;
        self.store =
            open(&disk, self.now_s).map_err(|error| format!("the store does not open: {error}"))?;
        self.disk = disk;
        self.follow_catalog()?;
        for nth in 0..self.branches.len() {
            self.settle(nth)?;
            // Whoever sees what was found may rely on it.
            self.synced(nth, 0);
            self.synced(nth, 1);
        }
        // The check is for a store that is stopped.
        let stopped = self.disk.after_power_loss(Unsynced::Kept);
        let faults = check::check(&(Arc::new(stopped) as Arc<dyn Disk>));
        let faults = faults.map_err(|error| format!("check: {error}"))?.faults;
        if faults.is_empty() { Ok(()) } else { Err(format!("check finds {faults:?}")) }
    }

    /// Opens a branch after something that may have lost the end of its lanes, and finds out what
    /// is left.
    pub(crate) fn settle(&mut self, nth: usize) -> Outcome {
        self.branches[nth].close();
        let name = self.branches[nth].name.clone();
        let tree = self.tree(nth).map_err(|error| format!("{name} does not open: {error}"))?;
        let images =
            Self::observe(&tree).map_err(|error| format!("{name} cannot be read: {error}"))?;
        let branch = &mut self.branches[nth];
        branch.uncertain = false;
        for lane in [0, 1] {
            if !branch.lanes[lane].settle(&images[lane]) {
                let why = images[lane].difference(branch.lanes[lane].newest());
                return Err(format!("{name}, lane {lane}, shows what it never may: {why}"));
            }
        }
        let Some(id) = branch.timeline else { return Ok(()) };
        let known: Vec<Position> =
            tree.timeline().marks().iter().map(|mark| mark.position).collect();
        let unknown = known.iter().filter(|position| !self.moments.contains_key(&(id, **position)));
        for position in unknown.filter(|_| self.struck).copied().collect::<Vec<_>>() {
            let images = Self::observe(&Tree::new(tree.timeline().view(PerLane::both(position))))?;
            if ![0, 1].iter().all(|lane| branch.lanes[*lane].ever_was(&images[*lane])) {
                return Err(format!(
                    "{name} at {position}, whose marking failed, shows what never was"
                ));
            }
            let moment = Moment { images: images.map(Arc::new), durable: [false; 2], kept: true };
            self.moments.insert((id, position), moment);
        }
        self.moments.retain(|(timeline, position), moment| {
            // One that was let go of comes back if a power loss takes the record of that.
            *timeline != id || known.contains(position) || !moment.kept || moment.durable[0]
        });
        for ((timeline, position), moment) in &mut self.moments {
            // What Postgres was never told to be durable may be lost to the moment, too.
            if *timeline == id && !moment.durable[1] && known.contains(position) {
                let seen =
                    Self::observe(&Tree::new(tree.timeline().view(PerLane::both(*position))))?;
                moment.images[1] = Arc::new(seen[1].clone());
            }
        }
        self.verify_moments(nth, &tree, false)
    }

    /// Opens anew whatever a failure left in doubt. The disk is sound again.
    pub(crate) fn mend(&mut self) -> Outcome {
        self.end_slow_sync()?;
        self.struck |= self.disk.failed();
        self.disk.fail_after(None);
        self.disk.fail_read_after(None);
        self.disk.set_capacity_bytes(None);
        self.armed = false;
        if !self.store.catalog().is_open() {
            return self.crash(Crash::PowerLoss(Unsynced::Lost));
        }
        for nth in 0..self.branches.len() {
            if self.branches[nth].uncertain {
                self.settle(nth)?;
            }
        }
        Ok(())
    }

    /// Stops in order, and starts again from what is durable.
    pub(crate) fn restart(&mut self) -> Outcome<SimDisk> {
        self.end_slow_sync()?;
        self.branches.iter_mut().for_each(Branch::close);
        // One that no name leads to any more may have failed unseen.
        for timeline in
            self.store.open_timelines().iter().filter(|timeline| timeline.latched().is_some())
        {
            self.store
                .reopen_if_latched(timeline.id())
                .map_err(|error| format!("open anew: {error}"))?;
        }
        self.store.close().map_err(|error| format!("stop: {error}"))?;
        for nth in 0..self.branches.len() {
            LaneKind::ALL.into_iter().for_each(|lane| self.synced(nth, lane as usize));
        }
        let disk = self.disk.after_power_loss(Unsynced::Lost);
        let stopped = disk.after_power_loss(Unsynced::Kept);
        self.start_again(disk)?;
        Ok(stopped)
    }

    /// Opens what was stopped after some of it was damaged: whatever it shows is right, but for the
    /// end of lanes if that may be lost.
    pub(crate) fn open_damaged(&self, disk: &SimDisk, end_lost: bool) -> Outcome {
        let Ok(store) = open(disk, self.now_s) else { return Ok(()) };
        for branch in &self.branches {
            let Some(record) = store.catalog().branch(&branch.name) else {
                return Err(format!("branch {} is not there", branch.name));
            };
            let Ok(timeline) = store.timeline(TimelineId(record.timeline)) else { continue };
            if let Ok(images) = Self::observe(&Tree::new(timeline)) {
                let ever_was = |lane: usize| branch.lanes[lane].ever_was(&images[lane]);
                if end_lost && ever_was(0) && ever_was(1) {
                    continue;
                }
                Self::compare(&format!("{}, damaged", branch.name), &images, &branch.newest())?;
            }
        }
        Ok(())
    }
}
