//! The catalog: which branches and timelines exist. Every operation on branches is published by one
//! transaction here.
//!
//! The catalog is a `redb` database in the store's file `catalog`, with a journal of its newest
//! changes beside it. Its values are JSON objects, which `docs/format.md` describes. All of it is
//! also in memory, one small record for each branch and timeline. Memory changes only after a
//! transaction is durable. After a transaction that failed nobody knows whether it happened: the
//! database and the journal are opened anew at once, and memory follows what they say.

pub(in crate::storage) mod change;
mod database;
pub(in crate::storage) mod file;
mod journal;
mod migrate;
pub mod records;
pub(in crate::storage) mod state;
pub(in crate::storage) mod tables;
mod windows;
mod witness;

use crate::error::{Error, Kind, Result};
use crate::locks::{lock, read, write};
use crate::storage::catalog::change::CatalogChange;
use crate::storage::catalog::database::Opened;
pub use crate::storage::catalog::records::{
    Allowance, AncestorRecord, BranchNetwork, BranchRecord, DEFAULT_BRANCH, LaneRecord,
    LayerRecord, Login, Record, TimelineRecord, Update,
};
use crate::storage::catalog::state::CatalogState;
use crate::storage::catalog::tables::CATALOG_FILE;
use crate::storage::catalog::windows::Windows;
use crate::storage::catalog::witness::Witness;
use crate::storage::clock::Clock;
use crate::storage::disk::overlay::Overlay;
use crate::storage::disk::{Disk, DiskFile, settle};
use crate::storage::page::TimelineId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// The open catalog.
pub struct Catalog {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    /// Held while something is published. None after a failure that a new opening could not settle.
    database: Mutex<Option<Opened>>,
    /// Whether there is one, for those who may not wait.
    available: AtomicBool,
    state: RwLock<CatalogState>,
    windows: Windows,
    witness: Witness,
    clock: Arc<Clock>,
    store: u64,
    run: u64,
}

impl Catalog {
    /// Opens or makes the catalog and begins a new run of the server. `new_store` numbers a new
    /// store.
    pub fn open(disk: &Arc<dyn Disk>, new_store: u64) -> Result<Self> {
        let file = match disk.open(CATALOG_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made =
                    disk.create(CATALOG_FILE).map_err(|e| Error::io("create the catalog", &e))?;
                disk.sync_directory("").map_err(|e| Error::io("create the catalog", &e))?;
                made
            }
            opened => opened.map_err(|e| Error::io("open the catalog", &e))?,
        };
        let witness = Witness::open(disk)?;
        settle(&*file).map_err(|e| Error::io("open the catalog", &e))?;
        let mut opened = Opened::open(disk, &file)?;
        witness.check(opened.store()?, opened.changes)?;
        if opened.is_older()? {
            Self::rehearse(disk)?;
        }
        let (store, run) = opened.begin_run(new_store)?;
        let state = opened.load()?;
        witness.begin(store, opened.changes);
        let (disk, database, state) =
            (Arc::clone(disk), Mutex::new(Some(opened)), RwLock::new(state));
        let (available, windows, clock) =
            (AtomicBool::new(true), Windows::default(), Arc::default());
        Ok(Self { disk, file, database, available, state, windows, witness, clock, store, run })
    }

    /// Takes a copy in memory to today's format: a catalog that cannot be loaded afterwards keeps
    /// the format that the build before this one reads.
    fn rehearse(disk: &Arc<dyn Disk>) -> Result<()> {
        let overlay: Arc<dyn Disk> = Arc::new(Overlay::new(Arc::clone(disk)));
        let file = overlay.open(CATALOG_FILE).map_err(|e| Error::io("open the catalog", &e))?;
        let mut opened = Opened::open(&overlay, &file)?;
        opened.fold()?;
        opened.load().map(drop)
    }

    /// The store's own random number.
    pub fn store(&self) -> u64 {
        self.store
    }

    /// How many times the store was opened, this time included.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// What time it is.
    pub(in crate::storage) fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// A number for a new timeline. It is used up when a timeline with it or a later one is
    /// published.
    pub fn new_timeline(&self) -> TimelineId {
        TimelineId(self.number("timeline"))
    }

    /// A number for a new branch.
    pub fn new_branch(&self) -> u64 {
        self.number("branch")
    }

    fn number(&self, of: &'static str) -> u64 {
        let mut state = write(&self.state);
        let Some(next) = state.next.get_mut(of) else { panic!("there are no numbers of a {of}") };
        *next += 1;
        *next - 1
    }

    /// A branch by name.
    pub fn branch(&self, name: &str) -> Option<BranchRecord> {
        read(&self.state).branches.get(name).cloned()
    }

    /// All branches by name.
    pub fn branches(&self) -> BTreeMap<String, BranchRecord> {
        read(&self.state).branches.clone()
    }

    /// The record of a kind other than branches and timelines.
    pub fn record<R: Record>(&self, key: &str) -> Option<R> {
        read(&self.state).other(key).cloned()
    }

    /// All records of such a kind, by key.
    pub fn records<R: Record>(&self) -> Vec<(String, R)> {
        let state = read(&self.state);
        state.others().map(|(key, record)| (key.clone(), R::clone(record))).collect()
    }

    /// Runs `look` on all branches without copying them.
    pub fn with_branches<T>(&self, look: impl FnOnce(&BTreeMap<String, BranchRecord>) -> T) -> T {
        look(&read(&self.state).branches)
    }

    /// A timeline.
    pub fn timeline(&self, id: TimelineId) -> Option<TimelineRecord> {
        read(&self.state).timelines.get(&id.0).cloned()
    }

    /// All timelines.
    pub fn timelines(&self) -> Vec<TimelineId> {
        read(&self.state).timelines.keys().map(|id| TimelineId(*id)).collect()
    }

    /// Whether a branch leads to the timeline.
    pub fn is_named(&self, id: TimelineId) -> bool {
        read(&self.state).names.contains_key(&id.0)
    }

    /// Whether a compute may run on the timeline: a name leads to it, or it is held without one, as
    /// for a visit. One whose name was taken away is out of the catalog, unless children need it.
    pub fn may_run(&self, id: TimelineId) -> bool {
        let state = read(&self.state);
        state.names.contains_key(&id.0)
            || state.timelines.contains_key(&id.0) && !state.children.contains_key(&id.0)
    }

    /// Whether a name or a child needs the timeline. An import in progress has neither.
    pub fn is_needed(&self, id: TimelineId) -> bool {
        let state = read(&self.state);
        state.names.contains_key(&id.0) || state.children.contains_key(&id.0)
    }

    /// Whether timelines are forked from this one, or are likely to be: it is a root.
    pub fn is_a_parent(&self, id: TimelineId) -> bool {
        let state = read(&self.state);
        let is_root = |timeline: &TimelineRecord| timeline.ancestor.is_none();
        state.children.contains_key(&id.0) || state.timelines.get(&id.0).is_some_and(is_root)
    }

    /// The timelines that would be dropped with a branch's name.
    pub fn freed_by_delete(&self, name: &str) -> Vec<TimelineId> {
        read(&self.state).freed_by(&Update::default().remove::<BranchRecord>(name))
    }

    /// Where the children of a timeline were forked from it.
    pub fn forks(&self, id: TimelineId) -> Vec<AncestorRecord> {
        self.children(id).into_iter().map(|(_, fork)| fork).collect()
    }

    /// The children of a timeline, and where they were forked from it.
    pub fn children(&self, id: TimelineId) -> Vec<(TimelineId, AncestorRecord)> {
        let state = read(&self.state);
        let children = state.children.get(&id.0).into_iter().flatten();
        let fork =
            |child: &u64| Some((TimelineId(*child), state.timelines.get(child)?.ancestor.clone()?));
        children.filter_map(fork).collect()
    }

    /// Publishes `update`, removes timelines that no name and no child needs any more, and returns
    /// those.
    pub fn publish(&self, update: Update) -> Result<Vec<TimelineId>> {
        self.with_database(|slot| self.publish_in(slot, update))
    }

    /// Runs work on the database, and notes whether it is still there.
    fn with_database<T>(&self, work: impl FnOnce(&mut Option<Opened>) -> Result<T>) -> Result<T> {
        let mut slot = lock(&self.database);
        let outcome = work(&mut slot);
        self.available.store(slot.is_some(), Ordering::SeqCst);
        outcome
    }

    fn publish_in(&self, slot: &mut Option<Opened>, update: Update) -> Result<Vec<TimelineId>> {
        let adds =
            !update.add_timelines.is_empty() || update.rows.iter().any(|row| row.record.is_some());
        let (freed, change, windows) = {
            let state = read(&self.state);
            let (freed, timelines) = (state.freed_by(&update), state.timelines_after(&update)?);
            let mut change = CatalogChange::new(update, timelines, &freed, &state.next);
            let windows = state.windows_changed_by(&change.rows);
            state.cut_off(&mut change, &windows, self.clock.now_ns());
            (freed, change, windows)
        };
        self.commit(slot, change, adds)?;
        self.windows.follow(&read(&self.state), &windows);
        Ok(freed)
    }

    /// Makes a change durable, and then visible.
    fn commit(&self, slot: &mut Option<Opened>, change: CatalogChange, adds: bool) -> Result<()> {
        let mut opened = match slot.take() {
            Some(opened) => opened,
            None => self.reopen()?,
        };
        if adds && let Err(error) = opened.file.reserve() {
            *slot = Some(opened);
            return Err(Error::io("reserve room for the catalog", &error));
        }
        match opened.commit(self.store, change.clone()) {
            Ok(()) => {
                self.witness.note(self.store, opened.changes);
                *slot = Some(opened);
            }
            Err(error) => {
                drop(opened);
                let (opened, found) = self.open_anew().map_err(|_| error.clone())?;
                let changes = opened.changes;
                *slot = Some(opened);
                let mut wanted = read(&self.state).clone();
                wanted.apply(change.clone());
                if !found.says_the_same(&wanted) {
                    return Err(error);
                }
                self.witness.note(self.store, changes);
                tracing::warn!(
                    %error,
                    "a change of the catalog was reported as failed, but happened"
                );
            }
        }
        write(&self.state).apply(change);
        Ok(())
    }

    /// Remembers how long moments are kept from now on of branches that do not say.
    pub fn note_window(&self, window_ns: i64) -> Result<()> {
        let closed = || Error::unavailable("catalog", "the catalog is closed; restart the server");
        self.with_database(|slot| {
            let before_ns = slot.as_ref().ok_or_else(closed)?.window()?;
            let all: BTreeSet<u64> = read(&self.state).timelines.keys().copied().collect();
            if let Some(before_ns) = before_ns.filter(|before_ns| *before_ns < window_ns) {
                let mut change = CatalogChange { rows: Vec::new(), next: BTreeMap::new() };
                write(&self.state).default_window_ns = before_ns;
                read(&self.state).cut_off(&mut change, &all, self.clock.now_ns());
                if !change.rows.is_empty() {
                    self.commit(slot, change, false)?;
                }
            }
            // If it fails nobody knows whether it happened, and the next change must not take its
            // number.
            let mut opened = slot.take().ok_or_else(closed)?;
            opened.note_window(window_ns)?;
            self.witness.note(self.store, opened.changes);
            *slot = Some(opened);
            write(&self.state).default_window_ns = window_ns;
            self.windows.follow(&read(&self.state), &all);
            Ok(())
        })
    }

    /// How long moments of the timeline can be gone back to, in nanoseconds; 0 for not at all.
    pub fn window_ns(&self, id: TimelineId) -> i64 {
        read(&self.state).window_ns(id)
    }

    /// How many seconds of its past a branch keeps.
    pub fn history_s(&self, record: &BranchRecord) -> u64 {
        read(&self.state).history_s(record.history_s)
    }

    /// As [`Catalog::window_ns`], for those who may not wait: it follows each change.
    pub(in crate::storage) fn window(&self, id: TimelineId) -> Arc<AtomicI64> {
        self.windows.of(&read(&self.state), id)
    }

    /// Before this time, no moment of the timeline can be gone back to, in nanoseconds since 1970.
    pub fn oldest_ns(&self, id: TimelineId) -> i64 {
        read(&self.state).oldest_ns(id, self.clock.now_ns())
    }

    /// Makes it survive a power loss how new the catalog is.
    pub fn sync_witness(&self) {
        self.witness.sync();
    }

    /// Whether the database can be asked. Never waits for a change that is under way.
    pub fn is_open(&self) -> bool {
        self.available.load(Ordering::SeqCst)
    }

    /// Makes sure that the database can be asked.
    pub fn require(&self) -> Result<()> {
        self.with_database(|slot| {
            if slot.is_none() {
                *slot = Some(self.reopen()?);
            }
            Ok(())
        })
    }

    fn open_anew(&self) -> Result<(Opened, CatalogState)> {
        // After a failed sync the cache may hold what never reached the disk.
        self.file.drop_cache().map_err(|e| Error::io("reopen the catalog", &e))?;
        let mut opened = Opened::open(&self.disk, &self.file)?;
        opened.fold()?;
        let found = opened.load()?;
        Ok((opened, found))
    }

    /// Opens the database after a failed change, which must not be in it: the caller was told that
    /// it did not happen.
    fn reopen(&self) -> Result<Opened> {
        let (opened, found) = self.open_anew()?;
        if found.says_the_same(&read(&self.state)) {
            tracing::info!("the catalog was opened anew after a failed change");
            return Ok(opened);
        }
        let detail =
            "the catalog holds a change whose writing failed; restart the server to take it in";
        Err(Error::new(Kind::Io, "catalog", detail))
    }

    /// Removes timelines without a name or child, such as that of an import that a crash cut off.
    pub fn remove_unneeded(&self) -> Result<Vec<TimelineId>> {
        let release = self.timelines();
        self.publish(Update { release, ..Update::default() })
    }
}

#[cfg(test)]
mod tests;
