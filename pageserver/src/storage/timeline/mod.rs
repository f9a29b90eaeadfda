//! One history of one data directory: two lanes with their indexes, and the ancestor for what they
//! do not hold.
//!
//! Everything is read at the head. A change takes a position, goes to its lane's log and enters the
//! index under one lock, so a lane is always in the order of positions. Lock order: data lane,
//! write-ahead lane, then those of the ancestor. After a failed write or sync the timeline is
//! latched: it refuses changes and syncs until it is opened anew, because nobody can know what
//! reached the disk.

pub mod commit;
pub(in crate::storage) mod files;
pub mod history;
pub(in crate::storage) mod parts;
pub(in crate::storage) mod read;
pub mod syncer;

use crate::error::{Error, Kind, Result};
use crate::locks::{read, write};
use crate::storage::catalog::{LaneRecord, LayerRecord};
use crate::storage::clock::Clock;
use crate::storage::disk::DiskFile;
use crate::storage::disk::slow::Watch;
use crate::storage::index::Index;
use crate::storage::index::versions::Retained;
use crate::storage::layer::{Layer, LayerId};
use crate::storage::log::Log;
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::{Change, LaneFileId, LaneKind};
use crate::storage::log::recovery::{self, Start};
use crate::storage::page::{HEAD, Position, TimelineId, WAL_CLASS};
use crate::storage::sabotage::{self, Defect};
use crate::storage::timeline::commit::{Commit, Gathered};
use crate::storage::timeline::parts::HotPage;
use crate::storage::timeline::syncer::{Done, SyncQueue, Syncer};
use crate::storage::upkeep::seal::Frozen;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// Unsynced bytes of a lane at which it is synced without being asked, so that a fork never waits
/// for much.
const MAX_UNSYNCED_BYTES: u64 = 16 << 20;

/// Unsynced bytes of a lane at which whoever has appended waits for a sync.
const WAIT_UNSYNCED_BYTES: u64 = 4 * MAX_UNSYNCED_BYTES;

/// The order of all records of a store.
pub struct Positions(AtomicU64);

impl Positions {
    /// Positions from `first` on.
    pub fn starting_at(first: Position) -> Self {
        Self(AtomicU64::new(first))
    }

    /// The position that will be taken next.
    pub fn next(&self) -> Position {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the next position.
    pub fn take(&self) -> Position {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// What timelines of a store share.
#[derive(Clone)]
pub struct Shared {
    /// Where lane files are.
    pub lane_files: Arc<LaneFiles>,
    /// The order of records.
    pub positions: Arc<Positions>,
    /// Who syncs.
    pub syncer: Syncer,
    /// What time it is.
    pub clock: Arc<Clock>,
    /// How long a moment can be gone back to, in nanoseconds; 0 for not at all.
    pub window_ns: Arc<AtomicI64>,
}

/// Where a timeline reads what it does not hold itself.
pub struct Ancestor {
    /// The timeline it was forked from.
    pub timeline: Arc<Timeline>,
    /// What it sees of the ancestor's lanes, by [`LaneKind`].
    pub at: [Position; 2],
}

pub(in crate::storage) struct LaneState {
    pub(in crate::storage) log: Log,
    pub(in crate::storage) index: Index,
    /// The page written last, if it is of the write-ahead lane.
    pub(in crate::storage) hot: Option<HotPage>,
    /// What is sealed, newest first. All of it is older than the log.
    pub(in crate::storage) layers: Vec<Arc<Layer>>,
    /// What the catalog says of it.
    pub(in crate::storage) record: LaneRecord,
    /// The part of the log that is being sealed, or whose sealing failed and is tried again.
    pub(in crate::storage) frozen: Option<Arc<Frozen>>,
}

pub(in crate::storage) struct Lane {
    pub(in crate::storage) state: RwLock<LaneState>,
    pub(in crate::storage) appended: AtomicU64,
    pub(in crate::storage) durable: AtomicU64,
    queue: SyncQueue,
    /// Position of the newest record when the lane was opened, if that says that all before it is
    /// synced.
    pub(in crate::storage) closed_at: Position,
}

/// One history. See the module.
pub struct Timeline {
    id: TimelineId,
    pub(in crate::storage) ancestor: Option<Ancestor>,
    pub(in crate::storage) shared: Shared,
    pub(in crate::storage) lanes: [Lane; 2],
    latch: OnceLock<Error>,
    /// Whether the data lane was synced since the newest mark that removals made.
    pub(in crate::storage) data_synced: AtomicBool,
    /// Position of the newest record that changed what it shows, as marks do not.
    pub(in crate::storage) changed: AtomicU64,
    /// Whether a name or a child needs it; an import in progress has no history.
    pub(in crate::storage) in_use: AtomicBool,
    /// Whether others may have its files open too, so that they must not be recycled.
    pub(in crate::storage) reopened: bool,
    /// The sum of file sizes, and the newest positions at which it was made.
    pub(in crate::storage) logical: Mutex<([Position; 2], [u64; 2])>,
}

/// What a timeline is opened with, from the catalog.
pub struct Opening {
    /// Which one.
    pub id: TimelineId,
    /// Where it was forked from.
    pub ancestor: Option<Ancestor>,
    /// Fork positions of its children, by lane.
    pub retained: [Retained; 2],
    /// Positions up to which its lanes are known to have been synced.
    pub required: [Position; 2],
    /// What of its lanes is sealed.
    pub lanes: [LaneRecord; 2],
    /// The files of its logs, in any order.
    pub files: Vec<LaneFileId>,
    /// Whether it was open before, in this run: a child may still read its files through what was
    /// open then.
    pub reopened: bool,
}

/// The lane an inode belongs to.
pub fn lane_of(inode: u64) -> LaneKind {
    if inode & WAL_CLASS == 0 { LaneKind::Data } else { LaneKind::Wal }
}

fn wait_for(sync: impl FnOnce(Done)) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    sync(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.recv().unwrap_or_else(|_| unreachable!("a sync always answers"))
}

/// Opens the layers of a lane, newest first, which follow one another without a gap.
pub(in crate::storage) fn open_layers(
    lane_files: &LaneFiles,
    (timeline, lane): (TimelineId, LaneKind),
    record: &LaneRecord,
) -> Result<Vec<Arc<Layer>>> {
    let mut layers: Vec<Arc<Layer>> = Vec::new();
    for LayerRecord { number, .. } in &record.layers {
        let id = LayerId { timeline, lane, number: *number };
        let layer = Layer::open(lane_files.disk(), lane_files.store(), id)?;
        let expected = layers.last().map_or(record.sealed, |newer| newer.from());
        if layer.to() != expected {
            let (name, to) = (id.path(), layer.to());
            return Err(Error::corrupt(format!(
                "{name} ends at position {to}, the catalog expects {expected}"
            )));
        }
        layers.push(Arc::new(layer));
    }
    Ok(layers)
}

impl Timeline {
    /// Replays the timeline's lanes.
    pub fn open(shared: Shared, mut opening: Opening) -> Result<Arc<Self>> {
        opening.files.sort_unstable();
        let changed = AtomicU64::new(0);
        let open_lane = |lane: LaneKind, retained: &Retained| -> Result<Lane> {
            let base = opening.ancestor.as_ref().map_or(0, |ancestor| ancestor.at[lane as usize]);
            let mut index = Index::new(base, retained.clone());
            let ids: Vec<LaneFileId> =
                opening.files.iter().filter(|id| id.lane == lane).copied().collect();
            let required = opening.required[lane as usize];
            let record = opening.lanes[lane as usize].clone();
            let layers = open_layers(&shared.lane_files, (opening.id, lane), &record)?;
            if let Some(newest) = layers.first() {
                let metadata = newest.metadata()?;
                metadata
                    .into_iter()
                    .for_each(|(position, change)| index.apply(position, &[change], 0, 0));
            }
            let start = Start { sealed: record.sealed, sequence: record.sequence };
            let mut closed_at = 0;
            let log = recovery::recover(
                &shared.lane_files,
                (opening.id, lane),
                &ids,
                (start, required),
                &mut |found, _| {
                    let offset = usize::try_from(found.offset).unwrap_or(usize::MAX);
                    index.apply(found.header.position, &found.changes, found.sequence, offset);
                    closed_at = if found.changes.is_empty() { found.header.position } else { 0 };
                    if found.changes.iter().any(|change| !change.is_of_marks()) {
                        changed.fetch_max(found.header.position, Ordering::SeqCst);
                    }
                    Ok(())
                },
            )?;
            let last = log.last();
            Ok(Lane {
                state: RwLock::new(LaneState {
                    log,
                    index,
                    hot: None,
                    layers,
                    record,
                    frozen: None,
                }),
                appended: AtomicU64::new(last),
                durable: AtomicU64::new(last),
                queue: SyncQueue::default(),
                closed_at,
            })
        };
        let data = open_lane(LaneKind::Data, &opening.retained[0])?;
        // The data lane's marks keep the other lane readable too.
        let mut retained = opening.retained[1].clone();
        read(&data.state).index.marks().all().iter().for_each(|mark| retained.add(mark.position));
        let lanes = [data, open_lane(LaneKind::Wal, &retained)?];
        if read(&lanes[0].state).index.marks().newest().is_none() {
            // Whatever it shows was never marked.
            for lane in &lanes {
                changed.fetch_max(lane.appended.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        }
        let logical = Mutex::new(([Position::MAX; 2], [0; 2]));
        let Opening { id, ancestor, reopened, .. } = opening;
        let (latch, data_synced, in_use) =
            (OnceLock::new(), AtomicBool::new(true), AtomicBool::new(false));
        Ok(Arc::new(Self {
            id,
            ancestor,
            shared,
            lanes,
            latch,
            data_synced,
            changed,
            in_use,
            reopened,
            logical,
        }))
    }

    /// What a reader at these positions of the lanes sees, for reading only. The caller keeps them
    /// readable.
    pub fn view(self: &Arc<Self>, at: [Position; 2]) -> Arc<Self> {
        let lane = |kind: LaneKind| {
            let start = Start { sealed: 0, sequence: 0 };
            let log = Log::new(Arc::clone(&self.shared.lane_files), self.id, kind, start);
            let index = Index::new(at[kind as usize], Retained::default());
            let (layers, record) = (Vec::new(), LaneRecord::default());
            Lane {
                state: RwLock::new(LaneState {
                    log,
                    index,
                    hot: None,
                    layers,
                    record,
                    frozen: None,
                }),
                appended: AtomicU64::new(0),
                durable: AtomicU64::new(0),
                queue: SyncQueue::default(),
                closed_at: 0,
            }
        };
        let error =
            Error::new(Kind::Latched, "read_only", format!("a moment of timeline {}", self.id));
        Arc::new(Self {
            id: self.id,
            ancestor: Some(Ancestor { timeline: Arc::clone(self), at }),
            shared: self.shared.clone(),
            lanes: LaneKind::ALL.map(lane),
            latch: OnceLock::from(error),
            data_synced: AtomicBool::new(false),
            changed: AtomicU64::new(0),
            in_use: AtomicBool::new(false),
            reopened: false,
            logical: Mutex::new(([Position::MAX; 2], [0; 2])),
        })
    }

    /// Its number.
    pub fn id(&self) -> TimelineId {
        self.id
    }

    /// The timeline it was forked from.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.ancestor.as_ref().map(|ancestor| &ancestor.timeline)
    }

    pub(in crate::storage) fn lane_files(&self) -> &Arc<LaneFiles> {
        &self.shared.lane_files
    }

    pub(in crate::storage) fn take_position(&self) -> Position {
        self.shared.positions.take()
    }

    /// Why it refuses changes, if it does.
    pub fn latched(&self) -> Option<&Error> {
        self.latch.get()
    }

    /// Bytes of its own files.
    pub fn own_bytes(&self) -> u64 {
        let bytes = |state: &LaneState| {
            state.log.bytes() + state.layers.iter().map(|layer| layer.bytes()).sum::<u64>()
        };
        self.lanes.iter().map(|lane| bytes(&read(&lane.state))).sum()
    }

    pub(in crate::storage) fn layers(&self, lane: LaneKind) -> Vec<Arc<Layer>> {
        read(&self.lane(lane).state).layers.clone()
    }

    /// Whether its logs are empty: all there is of it is in layers, or in its ancestor.
    pub(in crate::storage) fn is_sealed(&self) -> bool {
        self.lanes.iter().all(|lane| read(&lane.state).log.is_empty())
    }

    /// Newest positions of both lanes.
    pub fn last_positions(&self) -> [Position; 2] {
        [0, 1].map(|lane: usize| self.lanes[lane].appended.load(Ordering::SeqCst))
    }

    pub(in crate::storage) fn lane(&self, kind: LaneKind) -> &Lane {
        &self.lanes[kind as usize]
    }

    /// The timelines that hold what an inode made at `created` shows, newest first, with what is
    /// seen of each.
    pub(in crate::storage) fn chain(
        self: &Arc<Self>,
        lane: LaneKind,
        created: Position,
    ) -> impl Iterator<Item = (&Arc<Self>, Position)> {
        std::iter::successors(Some((self, HEAD)), move |(timeline, _)| {
            let ancestor = timeline.ancestor.as_ref()?;
            let at = ancestor.at[lane as usize];
            (created <= at).then_some((&ancestor.timeline, at))
        })
    }

    /// Makes the changes that `build` puts together from what it reads, as one record of the lane.
    /// An error of `build` leaves everything as it was; an error of the disk latches the timeline.
    pub fn commit<'p, T, E: From<Error>>(
        self: &Arc<Self>,
        kind: LaneKind,
        build: impl FnOnce(&mut Commit<'_, 'p>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lane = self.lane(kind);
        let mut state = write(&lane.state);
        // Under the lock, so that nothing is appended once `retire` has gone through.
        self.refuse_if_latched()?;
        let position = self.shared.positions.take();
        let mut commit = Commit::new(self, &state, kind, position);
        let value = build(&mut commit)?;
        let Gathered { changes, pages, hot } = commit.into_gathered();
        if changes.is_empty() {
            return Ok(value);
        }
        let slices: Vec<&[u8]> = pages.iter().map(|run| &**run).collect();
        let durable = lane.durable.load(Ordering::SeqCst);
        let appended = state.log.append(position, durable, &changes, &slices);
        let (sequence, offset) = appended.map_err(|error| self.latch(error))?;
        state.index.apply(position, &changes, sequence, offset);
        if hot.is_some() || changes.iter().any(Change::is_of_blocks) {
            state.hot = hot;
        }
        lane.appended.store(position, Ordering::SeqCst);
        self.changed.fetch_max(position, Ordering::SeqCst);
        let unsynced = state.log.unsynced_bytes();
        let file = (!slices.is_empty()).then(|| Arc::clone(state.log.file(sequence)));
        drop(state);
        self.keep_up(kind, file, unsynced)?;
        Ok(value)
    }

    /// Keeps a lane that was appended to from having too much in memory, or unsynced.
    fn keep_up(
        self: &Arc<Self>,
        kind: LaneKind,
        file: Option<Arc<dyn DiskFile>>,
        unsynced: u64,
    ) -> Result<()> {
        if let Some(file) = file {
            let failed = |e| self.latch(Error::io("append to a lane file", &e));
            file.catch_up().map_err(failed)?;
        }
        if unsynced > WAIT_UNSYNCED_BYTES {
            return wait_for(|done| self.sync(kind, done));
        }
        if unsynced > MAX_UNSYNCED_BYTES && self.joins_queue(kind, Box::new(|_| ())) {
            self.shared.syncer.serve_later(self, kind);
        }
        Ok(())
    }

    pub(in crate::storage) fn refuse_if_latched(&self) -> Result<()> {
        match self.latch.get() {
            None => Ok(()),
            Some(error) if error.kind == Kind::Full => Err(error.clone()),
            Some(error) => Err(Error::new(
                Kind::Latched,
                "latched",
                format!("timeline {} refuses changes since: {error}; restart the branch", self.id),
            )),
        }
    }

    /// Latches after a write that failed before it came to the log. The kernel has let go of what
    /// it wanted to write, so going on would lose it.
    pub fn latch_failed_write(&self, error: Error) -> Error {
        if self.latch.get().is_some() { error } else { self.latch(error) }
    }

    pub(in crate::storage) fn latch(&self, error: Error) -> Error {
        tracing::error!(
            timeline = %self.id, %error,
            "timeline latched: no more changes until it is opened anew"
        );
        self.latch.get_or_init(|| error).clone()
    }

    /// Whether anything was written that no sync has reached.
    pub fn is_dirty(&self, kind: LaneKind) -> bool {
        let lane = self.lane(kind);
        lane.durable.load(Ordering::SeqCst) < lane.appended.load(Ordering::SeqCst)
    }

    /// Makes a lane durable up to now, then calls `done`. With nothing new it does so at once.
    pub fn sync(self: &Arc<Self>, kind: LaneKind, done: Done) {
        if self.joins_queue(kind, done) {
            self.shared.syncer.serve(self, kind);
        }
    }

    /// Asks for a sync, which may be answered at once. Whether the caller has to bring the lane to
    /// who serves it.
    fn joins_queue(&self, kind: LaneKind, done: Done) -> bool {
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
    pub(in crate::storage) fn sync_queue(&self, kind: LaneKind) -> &SyncQueue {
        &self.lane(kind).queue
    }

    /// Whether a sync goes on, or waits.
    pub fn is_syncing(&self) -> bool {
        LaneKind::ALL.iter().any(|kind| self.sync_queue(*kind).is_running())
    }

    /// Serves the sync requests of a lane that wait now.
    pub(in crate::storage) fn run_sync(self: &Arc<Self>, kind: LaneKind) {
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
            lane.durable.fetch_max(reached, Ordering::SeqCst);
            Ok(())
        });
        for done in waiting {
            done(outcome.clone());
        }
    }

    /// Ends each lane with a record that says all before it is synced, so that damage to the last
    /// records is noticed at the next opening.
    pub fn close(self: &Arc<Self>) -> Result<()> {
        self.sync_and_wait()?;
        for kind in LaneKind::ALL {
            let lane = self.lane(kind);
            let mut state = write(&lane.state);
            if lane.appended.load(Ordering::SeqCst) == lane.closed_at || state.log.is_empty() {
                continue;
            }
            let position = self.shared.positions.take();
            let durable = lane.durable.load(Ordering::SeqCst);
            state.log.append(position, durable, &[], &[]).map_err(|error| self.latch(error))?;
            lane.appended.store(position, Ordering::SeqCst);
        }
        self.sync_and_wait()
    }

    /// Ends the timeline for good: nothing is appended any more. Returns its files with their
    /// lengths.
    pub fn retire(&self) -> Vec<(LaneFileId, u64)> {
        let error =
            Error::new(Kind::Latched, "dropped", format!("timeline {} was dropped", self.id));
        self.latch.get_or_init(|| error);
        // The write lock waits for a change that began before the latch. A sync may go on without
        // it, and the files are another timeline's next.
        self.lanes.iter().flat_map(|lane| write(&lane.state).log.give_up()).collect()
    }

    /// Its files with their lengths.
    pub fn files(&self) -> Vec<(LaneFileId, u64)> {
        // The write lock waits for a change that began before the latch.
        self.lanes.iter().flat_map(|lane| write(&lane.state).log.list()).collect()
    }

    /// Forgets what the operating system cached of its files, so that opening it anew reads what
    /// the disk has.
    pub fn drop_cache(&self) -> Result<()> {
        for lane in &self.lanes {
            for file in read(&lane.state).log.files.values() {
                file.drop_cache().map_err(|e| Error::io("drop the cache of a lane file", &e))?;
            }
        }
        Ok(())
    }
}
