//! The store: one directory with the catalog and the lane files. The facade of the page store.
//!
//! A timeline opens when it is first needed, with its ancestors. It closes when nothing uses it and
//! all of it is sealed: then it is an entry of the catalog and its layers. A fork takes a position,
//! syncs the parent up to it if the parent is open, and publishes one record: nothing is read and
//! no file is made.

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::catalog::{AncestorRecord, Catalog, TimelineRecord, Update};
use crate::storage::clock::{Clock, whole_ms};
use crate::storage::disk::Disk;
use crate::storage::index::versions::Retained;
use crate::storage::layer::format::LAYERS_DIRECTORY;
use crate::storage::leftovers::{
    layer_paths, remove_unnamed_layers, require_catalog, split_sealed,
};
use crate::storage::log::files::LaneFiles;
use crate::storage::log::names::LANES_DIRECTORY;
use crate::storage::page::{LaneKind, PerLane, Position, Positions, TimelineId};
use crate::storage::slot::TimelineSlot;
use crate::storage::timeline::open::Opening;
use crate::storage::timeline::syncer::Syncer;
use crate::storage::timeline::{Ancestor, Shared, Timeline};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Directories that a store needs in its own.
pub const STORE_DIRECTORIES: [&str; 2] = [LANES_DIRECTORY, LAYERS_DIRECTORY];

/// A timeline that changes is marked once in such a time.
const MARK_EVERY_NS: i64 = 1_000_000_000;

/// A position is the number of the run of the server above this many bits, and a counter below, so
/// that no position is taken twice even if a crash loses the newest records.
const COUNTER_BITS: u32 = 40;
/// Runs that fit above the counter and below the class bit of inode numbers.
const MAX_RUNS: u64 = 1 << (63 - COUNTER_BITS);

/// Where a new timeline begins.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The timeline it is forked from.
    pub timeline: TimelineId,
    /// A moment of it; now if none.
    pub past: Option<Past>,
    /// Whether the caller changes it before it has a past: that begins with its first mark then.
    pub unfinished: bool,
}

/// A moment of a timeline that can be gone back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Retained points, for the data lane and the write-ahead lane.
    pub at: PerLane<Position>,
    /// What time it was, in nanoseconds since 1970.
    pub time_ns: i64,
}

impl From<TimelineId> for Origin {
    fn from(timeline: TimelineId) -> Self {
        Self { timeline, past: None, unfinished: false }
    }
}

/// The open store.
pub struct Store {
    pub(super) disk: Arc<dyn Disk>,
    catalog: Catalog,
    shared: Shared,
    slots: Mutex<HashMap<TimelineId, Arc<Mutex<TimelineSlot>>>>,
    /// Sizes of timelines as they were last seen.
    pub(super) sizes: Mutex<HashMap<TimelineId, (u64, Option<u64>)>>,
    /// When the medium was last asked, and what became of it.
    pub(super) measured: Mutex<(Instant, Result<()>)>,
}

impl Store {
    /// Opens or makes the store on `disk`, and frees what a crash left half done. `new_store`
    /// numbers a new one.
    pub fn open(disk: Arc<dyn Disk>, new_store: u64) -> Result<Self> {
        require_catalog(&disk)?;
        let catalog = Catalog::open(&disk, new_store)?;
        if catalog.run() >= MAX_RUNS {
            return Err(Error::unavailable(
                "runs_used_up",
                "the store was started too often: import it into a new one",
            ));
        }
        let (lane_files, mut found) = LaneFiles::open(Arc::clone(&disk), catalog.store())?;
        let positions = Positions::starting_at(catalog.run() << COUNTER_BITS);
        let syncer = Syncer::start().map_err(|e| Error::io("start the sync threads", &e))?;
        let (lane_files, positions) = (Arc::new(lane_files), Arc::new(positions));
        let clock = Arc::clone(catalog.clock());
        let shared = Shared { lane_files, positions, syncer, clock };
        catalog.remove_unneeded()?;
        let (mut slots, mut layers) = (HashMap::new(), HashSet::new());
        for id in catalog.timelines() {
            let TimelineRecord { ancestor, lanes } = catalog.timeline(id).unwrap_or_default();
            let (files, sealed) = split_sealed(found.remove(&id).unwrap_or_default(), &lanes);
            found.entry(id).or_default().extend(sealed);
            layers.extend(layer_paths(id, &lanes));
            slots.insert(id, TimelineSlot::closed(ancestor, lanes, files));
        }
        for (id, length) in found.into_values().flatten() {
            shared.lane_files.retire(id, length)?;
        }
        shared.lane_files.sync_directory()?;
        remove_unnamed_layers(&*disk, &layers)?;
        let (slots, sizes) = (Mutex::new(slots), Mutex::default());
        let measured = Mutex::new((Instant::now(), Ok(())));
        Ok(Self { disk, catalog, shared, slots, sizes, measured })
    }

    /// The catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Makes an empty timeline that is held until a name is given to it or [`Store::release`] is
    /// called.
    pub fn create_root(&self) -> Result<TimelineId> {
        let id = self.catalog.new_timeline();
        let add_timelines = vec![(id, TimelineRecord::default())];
        self.add_slot(id, None);
        let published = self.catalog.publish(Update { add_timelines, ..Update::default() });
        self.keep_slot_if_ok(id, published)?;
        Ok(id)
    }

    /// Makes a timeline that starts from `origin`. `update` says what else to publish with it:
    /// without a name it is held as [`Store::create_root`] does. Returns the timeline and those
    /// that the update leaves unneeded, as [`Store::publish`] does.
    pub fn fork(
        &self,
        origin: impl Into<Origin>,
        update: impl FnOnce(TimelineId) -> Update,
    ) -> Result<(TimelineId, Vec<TimelineId>)> {
        let Origin { timeline: parent, past, unfinished } = origin.into();
        if past.is_some() {
            self.timeline(parent)?;
        }
        let slot = self.slot(parent)?;
        // A closed parent stays closed until the child is published, so that its opening knows of
        // the fork.
        let mut slot = lock(&slot);
        let (Past { at, time_ns }, synced) = match (&slot.timeline, past) {
            (Some(timeline), Some(past)) => (past, timeline.fork_point_at(past.at)?),
            (Some(timeline), None) => {
                let (position, time_ns, last) = timeline.fork_point()?;
                (Past { at: PerLane::both(position), time_ns }, last)
            }
            (None, None) => {
                let at = PerLane::both(self.shared.positions.take());
                (Past { at, time_ns: self.shared.clock.now_ns() }, PerLane::both(0))
            }
            (None, Some(_)) => {
                let detail = format!("timeline {parent} was closed meanwhile; try again");
                return Err(Error::unavailable("timeline_busy", detail));
            }
        };
        let id = self.catalog.new_timeline();
        let mut update = update(id);
        let begins_ns =
            if unfinished { 0 } else { past.map_or(time_ns, |_| self.shared.clock.now_ns()) };
        let logical_bytes = match (&slot.timeline, past) {
            (Some(timeline), Some(_)) => timeline.view(at).logical_bytes(),
            (Some(timeline), None) => timeline.logical_bytes(),
            (None, _) => slot.sealed_logical_bytes(),
        };
        let ancestor =
            AncestorRecord { timeline: parent.0, at, synced, time_ns, begins_ns, logical_bytes };
        self.add_slot(id, Some(ancestor.clone()));
        update
            .add_timelines
            .push((id, TimelineRecord { ancestor: Some(ancestor), ..TimelineRecord::default() }));
        let published = self.catalog.publish(update);
        match (&published, &slot.timeline) {
            (Err(_), Some(timeline)) => timeline.release(at),
            (Ok(_), Some(_)) => drop(slot.kept_for.insert(id)),
            (_, None) => {}
        }
        drop(slot);
        Ok((id, self.keep_slot_if_ok(id, published)?))
    }

    /// Publishes `update`. Returns the timelines that are out of the catalog with it; once nothing
    /// uses them any more, [`Store::free`] recycles or removes their files.
    pub fn publish(&self, update: Update) -> Result<Vec<TimelineId>> {
        self.catalog.publish(update)
    }

    /// Gives up a timeline that [`Store::create_root`] made.
    pub fn release(&self, id: TimelineId) -> Result<Vec<TimelineId>> {
        self.publish(Update { release: vec![id], ..Update::default() })
    }

    fn add_slot(&self, id: TimelineId, ancestor: Option<AncestorRecord>) {
        let slot = TimelineSlot::closed(ancestor, Default::default(), Vec::new());
        let before = lock(&self.slots).insert(id, slot);
        assert!(before.is_none(), "timeline {id} has a place already");
    }

    fn keep_slot_if_ok<T>(&self, id: TimelineId, published: Result<T>) -> Result<T> {
        published.inspect_err(|_| drop(lock(&self.slots).remove(&id)))
    }

    /// Recycles or removes the files of timelines that are out of the catalog. A failure leaves
    /// them to the next start.
    pub fn free(&self, freed: &[TimelineId]) {
        for id in freed {
            let Some(slot) = lock(&self.slots).remove(id) else { continue };
            lock(&self.sizes).remove(id);
            let mut slot = lock(&slot);
            if let Some(timeline) = slot.timeline.take() {
                slot.files = timeline.retire();
            }
            if let Some(ancestor) = slot.ancestor.take() {
                self.release_fork(*id, &ancestor);
            }
            for path in layer_paths(*id, &slot.lanes) {
                if let Err(error) = self.disk.remove(&path) {
                    tracing::error!(
                        timeline = %id, %error, path,
                        "a layer of a dropped timeline stays until the next start"
                    );
                }
            }
            for (file, length) in std::mem::take(&mut slot.files) {
                if let Err(error) = self.shared.lane_files.retire(file, length) {
                    tracing::error!(
                        timeline = %id, %error,
                        "a file of a dropped timeline stays until the next start"
                    );
                }
            }
        }
    }

    /// The ancestor keeps nothing for a timeline any more. A closed one learns that from the
    /// catalog, and one that was opened since has never heard of it.
    pub(super) fn release_fork(&self, id: TimelineId, ancestor: &AncestorRecord) {
        let Ok(parent) = self.slot(TimelineId(ancestor.timeline)) else { return };
        let mut parent = lock(&parent);
        if parent.kept_for.remove(&id)
            && let Some(parent) = &parent.timeline
        {
            parent.release(ancestor.at);
        }
    }

    pub(super) fn slot(&self, id: TimelineId) -> Result<Arc<Mutex<TimelineSlot>>> {
        let missing = || {
            Error::not_found("timeline_not_found", format!("timeline {id} does not exist any more"))
        };
        lock(&self.slots).get(&id).cloned().ok_or_else(missing)
    }

    /// The timeline, opened with its ancestors if it is not open yet.
    pub fn timeline(&self, id: TimelineId) -> Result<Arc<Timeline>> {
        // Oldest first, so that a long chain needs no recursion.
        let mut chain = vec![id];
        while let Some(TimelineRecord { ancestor: Some(ancestor), .. }) =
            self.catalog.timeline(chain[chain.len() - 1])
        {
            chain.push(TimelineId(ancestor.timeline));
        }
        let mut opened: Option<Arc<Timeline>> = None;
        while let Some(id) = chain.pop() {
            opened = Some(self.open_timeline(id, opened.take())?);
        }
        opened.ok_or_else(|| unreachable!("the chain begins with the timeline itself"))
    }

    fn open_timeline(
        &self,
        id: TimelineId,
        ancestor: Option<Arc<Timeline>>,
    ) -> Result<Arc<Timeline>> {
        let slot = self.slot(id)?;
        let mut slot = lock(&slot);
        if let Some(timeline) = &slot.timeline {
            return Ok(Arc::clone(timeline));
        }
        let record = self.catalog.timeline(id).and_then(|record| record.ancestor);
        let ancestor =
            record.zip(ancestor).map(|(record, timeline)| Ancestor { timeline, at: record.at });
        let (mut retained, mut required) = (PerLane::<Retained>::default(), PerLane::both(0));
        let children = self.catalog.children(id);
        slot.kept_for = children.iter().map(|(child, _)| *child).collect();
        for (_, fork) in children {
            for lane in LaneKind::ALL {
                retained[lane].add(fork.at[lane]);
                required[lane] = fork.synced[lane].max(required[lane]);
            }
        }
        if let Some(Ancestor { timeline, .. }) = &ancestor {
            let parent = timeline.id();
            assert!(parent < id, "timeline {id} comes from {parent}, which is younger");
        }
        let began = Instant::now();
        let files = slot.files.iter().map(|(file, _)| *file).collect();
        let lanes = slot.lanes.clone();
        let reopened = slot.reopened;
        let window_ns = self.catalog.window(id);
        let opening =
            Opening { id, ancestor, retained, required, lanes, files, window_ns, reopened };
        let opened = Timeline::open(self.shared.clone(), opening);
        if opened.is_err() {
            // One lane may have dropped its lost tail before the other one failed.
            slot.files = split_sealed(self.shared.lane_files.files_of(id)?, &slot.lanes).0;
        }
        let timeline = opened?;
        if self.catalog.is_needed(id) {
            timeline.begin_history();
        }
        let duration_ms = whole_ms(began.elapsed());
        tracing::info!(timeline = %id, files = slot.files.len(), duration_ms, "timeline opened");
        slot.timeline = Some(Arc::clone(&timeline));
        Ok(timeline)
    }

    /// Opens a latched timeline anew from what the disk really has. What has it open must let go of
    /// it before.
    pub fn reopen_if_latched(&self, id: TimelineId) -> Result<()> {
        let slot = self.slot(id)?;
        let mut slot = lock(&slot);
        if let Some(timeline) =
            slot.timeline.as_ref().filter(|timeline| timeline.latched().is_some())
        {
            timeline.drop_cache()?;
            // As the disk has them: what failed may have been the beginning of a file.
            slot.files = split_sealed(self.shared.lane_files.files_of(id)?, &slot.lanes).0;
            slot.reopened = true;
            slot.timeline = None;
        }
        Ok(())
    }

    /// The timeline if it is open and nobody is busy with its slot.
    pub fn if_open(&self, id: TimelineId) -> Option<Arc<Timeline>> {
        let slot = lock(&self.slots).get(&id).cloned()?;
        slot.try_lock().ok()?.timeline.clone()
    }

    /// The timelines that are open.
    pub fn open_timelines(&self) -> Vec<Arc<Timeline>> {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        // A slot that is busy is being opened or forked, and will be there the next time.
        slots.iter().filter_map(|slot| slot.try_lock().ok()?.timeline.clone()).collect()
    }

    /// Closes the timelines that nothing uses and whose logs are empty. They keep no file open and
    /// next to no memory.
    pub fn close_unused(&self) {
        for (id, slot) in self.slots() {
            let Ok(mut slot) = slot.try_lock() else { continue };
            let unused = |timeline: &Arc<Timeline>| {
                // Whoever else has it open, a child as well, has a clone; nobody gets one without
                // the slot's lock.
                Arc::strong_count(timeline) == 1
                    && timeline.latched().is_none()
                    && timeline.is_sealed()
            };
            if slot.timeline.as_ref().is_some_and(unused) {
                (slot.timeline, slot.files) = (None, Vec::new());
                tracing::info!(timeline = %id, "timeline closed");
            }
        }
    }

    pub(super) fn lane_files(&self) -> &LaneFiles {
        &self.shared.lane_files
    }

    /// All timelines' places.
    pub(super) fn slots(&self) -> Vec<(TimelineId, Arc<Mutex<TimelineSlot>>)> {
        lock(&self.slots).iter().map(|(id, slot)| (*id, Arc::clone(slot))).collect()
    }

    /// The position that will be taken next.
    pub fn newest_position(&self) -> Position {
        self.shared.positions.next()
    }

    /// The order of its records.
    pub(super) fn positions(&self) -> &Positions {
        &self.shared.positions
    }

    /// The store's clock.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Lets moments be gone back to for so long on branches that do not say how long. What a
    /// shorter window has forgotten does not come back with a longer one.
    pub fn keep_history(&self, window: Duration) -> Result<()> {
        self.catalog.note_window(i64::try_from(window.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Whether where a timeline was forked may be gone back to, now or if the clock is set back a
    /// little.
    pub(super) fn is_recent(&self, id: TimelineId, fork: &AncestorRecord) -> bool {
        const MARGIN_NS: i64 = 600_000_000_000;
        let time_ns = fork.begins_ns.max(fork.time_ns);
        time_ns > 0 && time_ns >= self.catalog.oldest_ns(id).saturating_sub(MARGIN_NS)
    }

    /// Work to be done now and then: marks the moment of timelines that changed, syncs what was not
    /// asked for, and keeps spare files ready.
    pub fn tick(&self) {
        for timeline in self.open_timelines() {
            let in_use = self.catalog.is_needed(timeline.id());
            if in_use {
                timeline.begin_history();
            }
            if timeline.window_ns() > 0
                && in_use
                && let Err(error) = timeline.mark_if_older(MARK_EVERY_NS)
            {
                // A failure of the disk has latched the timeline and is logged there.
                tracing::debug!(timeline = %timeline.id(), %error, "no mark was made");
            }
            for kind in LaneKind::ALL {
                // A failure latches the timeline and is logged there.
                timeline.sync(kind, Box::new(|_| ()));
            }
        }
        self.catalog.sync_witness();
        self.shared.lane_files.retire_unread();
        // One at a time: under a bulk load, writing out spare files would take the disk from the
        // load itself.
        if let Err(error) = self.shared.lane_files.refill() {
            tracing::warn!(%error, "no spare lane file could be written");
        }
    }

    /// Makes everything durable and marks it complete. All files must be out of use.
    pub fn close(&self) -> Result<()> {
        let mut outcome = Ok(());
        for timeline in self.open_timelines() {
            outcome = outcome.and(timeline.close());
        }
        self.catalog.sync_witness();
        outcome
    }
}
