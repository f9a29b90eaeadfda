//! The files of all lanes: their names, and a pool of written-out spare ones.
//!
//! A lane file is `lanes/TIMELINE.d.SEQUENCE` or `lanes/TIMELINE.w.SEQUENCE`, numbers in
//! hexadecimal. Syncing into a file whose blocks were written before needs no journal commit, so
//! the write-ahead lane, which syncs at every commit, takes its files from the pool
//! `lanes/spare.N`. Files of sealed and dropped timelines go back to it, if they were not there at
//! the start. The data lane syncs at checkpoints and grows its files instead. A directory entry is
//! durable after the lane's next sync.

use crate::error::{Error, Result};
use crate::storage::disk::{Disk, DiskFile, ZEROS};
use crate::storage::log::format::{FILE_HEADER_BYTES, LaneFileId, LaneKind, RECORD_HEADER_BYTES};
use crate::storage::page::TimelineId;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Directory of the lane files in the store.
pub const LANES_DIRECTORY: &str = "lanes";
/// Length of a write-ahead lane's file.
pub const WAL_FILE_BYTES: u64 = 16 << 20;
/// Length at which the data lane begins its next file.
pub const DATA_FILE_BYTES: u64 = 64 << 20;
/// Spare files kept ready at rest, but for one that may be on loan: a wake takes one until its log
/// is sealed, and a busy branch takes one every 16 MiB of log.
const SPARES: usize = 3;
/// Spare files kept ready at most, when lanes found none.
const MAX_SPARES: usize = 32;
/// Syncs for each file of a lane, on an average, that tell commits from a bulk load.
const COMMITS_PER_FILE: usize = 64;
/// Refills in a row that found no file begun after which half as many spare files are enough.
const QUIET_REFILLS: usize = 240;

pub(in crate::storage) const SPARE_PREFIX: &str = "spare.";

/// Files of lanes with their lengths.
pub type Files = Vec<(LaneFileId, u64)>;

/// Each timeline's files with their lengths.
pub type FilesByTimeline = HashMap<TimelineId, Files>;

/// A file that is out of its lane, with its length.
pub type Leaving = (LaneFileId, u64, Arc<dyn DiskFile>);

/// Creates, opens and recycles lane files.
pub struct LaneFiles {
    disk: Arc<dyn Disk>,
    store: u64,
    spares: Mutex<Vec<String>>,
    /// Files of lanes that were there at the start. They are not recycled: a crash may have lost
    /// the name under which they were another lane's last, and in the same place of that lane they
    /// would bring back records that were seen to be lost.
    found: HashSet<LaneFileId>,
    next_spare: AtomicU64,
    /// Files that are out of their lanes, but may still be read.
    leaving: Mutex<Vec<Leaving>>,
    /// Files that write-ahead lanes began since the last refill, and syncs of lanes meanwhile.
    begun: AtomicUsize,
    synced: AtomicUsize,
    /// Spare files to keep ready.
    wanted: AtomicUsize,
    /// Whether they are being written, until all are there. One that a wake takes comes back when
    /// its log is sealed, so at rest the first one is not replaced.
    filling: AtomicBool,
    /// Refills since a file was begun.
    quiet: AtomicUsize,
}

/// How long the disk is left to others at most, when a piece of a spare file was written.
const SPARE_REST: Duration = Duration::from_millis(2);

fn path(name: &str) -> String {
    format!("{LANES_DIRECTORY}/{name}")
}

fn file_name(id: LaneFileId) -> String {
    let lane = match id.lane {
        LaneKind::Data => 'd',
        LaneKind::Wal => 'w',
    };
    format!("{}.{lane}.{:08x}", id.timeline, id.sequence)
}

fn parse_file_name(name: &str) -> Option<LaneFileId> {
    let mut parts = name.split('.');
    let timeline: TimelineId = parts.next()?.parse().ok()?;
    let lane = match parts.next()? {
        "d" => LaneKind::Data,
        "w" => LaneKind::Wal,
        _ => return None,
    };
    let sequence = u32::from_str_radix(parts.next()?, 16).ok()?;
    let id = LaneFileId { timeline, lane, sequence };
    (file_name(id) == name).then_some(id)
}

/// Takes away what a spare file begins with: like a lane's that is found at a start, it may be
/// another lane's whose name is lost. What is read there may not be what is on the medium, so
/// nobody looks. False if the disk refuses.
fn clear(disk: &dyn Disk, name: &str) -> bool {
    let cleared = disk.open(&path(name)).and_then(|file| {
        file.write_all_at(&[&ZEROS[..FILE_HEADER_BYTES + RECORD_HEADER_BYTES]], 0)?;
        file.sync()
    });
    if let Err(error) = &cleared {
        tracing::warn!(file = name, %error, "a spare file cannot be cleared and is removed");
    }
    cleared.is_ok()
}

impl LaneFiles {
    /// The lane files of the store with this number, and what is there: each timeline's files with
    /// their lengths.
    pub fn open(disk: Arc<dyn Disk>, store: u64) -> Result<(Self, FilesByTimeline)> {
        let (mut spares, mut next_spare) = (Vec::new(), 0);
        let mut found = FilesByTimeline::new();
        let listed =
            disk.list(LANES_DIRECTORY).map_err(|e| Error::io("list the lane files", &e))?;
        for (name, length) in listed {
            if let Some(number) = name.strip_prefix(SPARE_PREFIX) {
                next_spare = next_spare.max(number.parse().unwrap_or(0) + 1);
                // One cut short by a crash is made anew, and so is one that the disk will not have
                // cleared.
                if length == WAL_FILE_BYTES && clear(&*disk, &name) {
                    spares.push(name);
                } else {
                    disk.remove(&path(&name))
                        .map_err(|e| Error::io(format!("remove {name}"), &e))?;
                }
            } else if let Some(id) = parse_file_name(&name) {
                // A server that was killed after a failed sync leaves in the cache what never
                // reached the medium.
                let dropped = disk.open(&path(&name)).and_then(|file| file.drop_cache());
                dropped.map_err(|e| Error::io(format!("drop the cache of {name}"), &e))?;
                found.entry(id.timeline).or_default().push((id, length));
            }
        }
        let files = Self {
            disk,
            store,
            found: found.values().flatten().map(|(id, _)| *id).collect(),
            spares: Mutex::new(spares),
            next_spare: AtomicU64::new(next_spare),
            begun: AtomicUsize::new(0),
            synced: AtomicUsize::new(0),
            wanted: AtomicUsize::new(SPARES),
            filling: AtomicBool::new(true),
            quiet: AtomicUsize::new(0),
            leaving: Mutex::default(),
        };
        Ok((files, found))
    }

    /// Number of the store, part of every file's identity.
    pub fn store(&self) -> u64 {
        self.store
    }

    /// The disk below.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Path of a lane file in the store, for messages.
    pub fn describe(id: LaneFileId) -> String {
        path(&file_name(id))
    }

    /// Opens an existing lane file.
    pub fn open_file(&self, id: LaneFileId) -> Result<Arc<dyn DiskFile>> {
        let name = Self::describe(id);
        self.disk.open(&name).map_err(|e| Error::io(format!("open {name}"), &e))
    }

    /// Whether a file is ready that was written out.
    pub fn has_spare(&self) -> bool {
        !self.spares.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Makes a lane file: a spare one, which the second value tells, if there is one and the lane
    /// wants it, else an empty one.
    pub fn create_file(&self, id: LaneFileId) -> Result<(Arc<dyn DiskFile>, bool)> {
        let name = Self::describe(id);
        // A rename would replace a file that its lane did not know of.
        if self.disk.open(&name).is_ok() {
            return Err(Error::corrupt(format!(
                "{name} is there already: the lane does not know its own file"
            )));
        }
        let spare = match id.lane {
            LaneKind::Wal => {
                self.begun.fetch_add(1, Ordering::Relaxed);
                self.take_spare()
            }
            LaneKind::Data => None,
        };
        let written_out = spare.is_some();
        let made = match spare {
            Some(spare) => {
                let renamed = self.disk.rename(&path(&spare), &name);
                renamed.and_then(|()| self.disk.open_to_append(&name))
            }
            None => self.disk.create_to_append(&name),
        };
        let file = made.map_err(|e| Error::io(format!("create {name}"), &e))?;
        Ok((file, written_out))
    }

    fn take_spare(&self) -> Option<String> {
        let spare = self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if spare.is_none() {
            let double = |wanted: usize| Some((wanted * 2).min(MAX_SPARES));
            let _always = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, double);
        }
        spare
    }

    /// A lane was synced.
    pub(in crate::storage) fn count_sync(&self) {
        self.synced.fetch_add(1, Ordering::Relaxed);
    }

    /// The files of one timeline with their lengths, as the disk has them.
    pub fn files_of(&self, timeline: TimelineId) -> Result<Vec<(LaneFileId, u64)>> {
        let listed =
            self.disk.list(LANES_DIRECTORY).map_err(|e| Error::io("list the lane files", &e))?;
        let parsed =
            listed.into_iter().filter_map(|(name, length)| Some((parse_file_name(&name)?, length)));
        Ok(parsed.filter(|(id, _)| id.timeline == timeline).collect())
    }

    /// Removes a file that holds nothing.
    pub fn remove(&self, id: LaneFileId) -> Result<()> {
        let name = Self::describe(id);
        self.disk.remove(&name).map_err(|e| Error::io(format!("remove {name}"), &e))
    }

    /// Takes a file out of its lane: into the pool or away. The names are durable after the next
    /// directory sync.
    pub fn retire(&self, id: LaneFileId, length: u64) -> Result<()> {
        let name = Self::describe(id);
        let recycle = || {
            let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
            if spares.len() >= self.wanted.load(Ordering::Relaxed) {
                return self.disk.remove(&name);
            }
            let spare = self.spare_name();
            self.disk.rename(&name, &path(&spare)).map(|()| spares.push(spare))
        };
        let recyclable =
            id.lane == LaneKind::Wal && length == WAL_FILE_BYTES && !self.found.contains(&id);
        let outcome = if recyclable { recycle() } else { self.disk.remove(&name) };
        outcome.map_err(|e| Error::io(format!("recycle {name}"), &e))
    }

    /// Takes files out of their lanes as soon as nobody reads them any more: a recycled file would
    /// show a reader what it holds next. Unless `recycle` they are only removed, which no reader
    /// notices.
    pub fn retire_later(&self, files: Vec<Leaving>, recycle: bool) {
        if !recycle {
            let removed = files.iter().try_for_each(|(id, ..)| self.remove(*id));
            return removed.unwrap_or_else(|error| {
                tracing::error!(%error, "sealed lane files stay until the next start");
            });
        }
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(files);
        self.retire_unread();
    }

    /// Retires those of the leaving files that nobody reads any more.
    pub fn retire_unread(&self) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let (unread, read): (Vec<_>, Vec<_>) = std::mem::take(&mut *leaving)
            .into_iter()
            .partition(|(.., file)| Arc::strong_count(file) == 1);
        *leaving = read;
        drop(leaving);
        for (id, length, file) in unread {
            // What was never written is in the layer, and the file may soon be another lane's.
            let gone = if file.give_up() { self.retire(id, length) } else { self.remove(id) };
            if let Err(error) = gone {
                tracing::error!(%error, "a sealed lane file stays until the next start");
            }
        }
    }

    /// Writes out a spare file if too few are ready; true if it made one. How many there should be
    /// follows how many were missed. Not during a bulk load, which goes through files quickly and
    /// syncs rarely: the writing would take the disk from it.
    pub fn refill(&self) -> Result<bool> {
        let (begun, synced) =
            (self.begun.swap(0, Ordering::Relaxed), self.synced.swap(0, Ordering::Relaxed));
        if begun == 0 {
            self.keep_fewer()?;
        } else {
            self.quiet.store(0, Ordering::Relaxed);
        }
        if self.is_short_of_space()? {
            self.keep_at_most(SPARES)?;
            return Ok(false);
        }
        if synced < begun * COMMITS_PER_FILE || !self.decide_to_fill() {
            return Ok(false);
        }
        let name = self.spare_name();
        let made = self.write_spare(&path(&name));
        if let Err(error) = made {
            // A half-written spare is useless, and on a full disk it is in the way.
            let _ = self.disk.remove(&path(&name));
            return Err(Error::io(format!("write out {name}"), &error));
        }
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Ok(true)
    }

    /// Whether one is to be written now. At rest the first one that goes is waited for.
    fn decide_to_fill(&self) -> bool {
        let ready = self.spares.lock().unwrap_or_else(PoisonError::into_inner).len();
        let wanted = self.wanted.load(Ordering::Relaxed);
        let waits = wanted == SPARES && !self.filling.load(Ordering::Relaxed);
        let filling = ready < wanted - usize::from(waits);
        self.filling.store(filling, Ordering::Relaxed);
        filling
    }

    /// Lets go of spare files that were not needed for a while.
    fn keep_fewer(&self) -> Result<()> {
        if self.quiet.fetch_add(1, Ordering::Relaxed) < QUIET_REFILLS {
            return Ok(());
        }
        self.quiet.store(0, Ordering::Relaxed);
        let wanted = (self.wanted.load(Ordering::Relaxed) / 2).max(SPARES);
        self.wanted.store(wanted, Ordering::Relaxed);
        self.keep_at_most(wanted)
    }

    fn keep_at_most(&self, count: usize) -> Result<()> {
        let surplus = {
            let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = spares.len().min(count);
            spares.split_off(kept)
        };
        surplus.into_iter().try_for_each(|name| {
            self.disk.remove(&path(&name)).map_err(|e| Error::io(format!("remove {name}"), &e))
        })
    }

    /// Whether the space that spare files would take should be left to data.
    fn is_short_of_space(&self) -> Result<bool> {
        let failed = |e| Error::io("ask for the free space", &e);
        let (free, total) =
            (self.disk.free_bytes().map_err(failed)?, self.disk.total_bytes().map_err(failed)?);
        let wanted = self.wanted.load(Ordering::Relaxed) as u64;
        Ok(free < total / 50 + wanted * WAL_FILE_BYTES)
    }

    /// Writes a spare file a little at a time: commits wait behind what is on its way to the disk.
    fn write_spare(&self, path: &str) -> std::io::Result<()> {
        let file = self.disk.create_to_fill(path)?;
        for offset in (0..WAL_FILE_BYTES).step_by(ZEROS.len()) {
            let began = Instant::now();
            file.write_all_at(&[ZEROS], offset)?;
            file.write_out(offset, ZEROS.len() as u64)?;
            std::thread::sleep(began.elapsed().min(SPARE_REST));
        }
        file.sync()
    }

    fn spare_name(&self) -> String {
        format!("{SPARE_PREFIX}{}", self.next_spare.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes creations and removals of lane files survive a power loss.
    pub fn sync_directory(&self) -> Result<()> {
        let synced = self.disk.sync_directory(LANES_DIRECTORY);
        synced.map_err(|e| Error::io("sync the directory of the lane files", &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::{SimDisk, Unsynced};

    #[test]
    fn names_read_back_and_others_are_left_alone() {
        let id =
            LaneFileId { timeline: TimelineId(0x1_0000_0001), lane: LaneKind::Wal, sequence: 17 };
        assert_eq!(file_name(id), "100000001.w.00000011");
        assert_eq!(parse_file_name(&file_name(id)), Some(id));
        for name in
            ["", "x", "00000001.d", "00000001.q.00000000", "1.d.0", "00000001.d.00000000.old"]
        {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_write_ahead_file_comes_from_the_pool_and_goes_back() {
        let disk = SimDisk::default();
        let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
        while files.refill().unwrap() {}
        disk.take_trace();
        let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
        files.create_file(id).unwrap();
        files.retire(id, WAL_FILE_BYTES).unwrap();
        assert_eq!(
            disk.take_trace(),
            [
                "rename lanes/spare.2 lanes/00000002.w.00000000",
                "rename lanes/00000002.w.00000000 lanes/spare.3"
            ]
        );
    }

    /// What of it is still in memory would be written into another lane's.
    #[test]
    fn nothing_is_written_to_a_file_that_goes_back() {
        let disk = SimDisk::default();
        let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
        while files.refill().unwrap() {}
        let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
        let (file, _) = files.create_file(id).unwrap();
        let reader = Arc::clone(&file);
        disk.take_trace();
        files.retire_later(vec![(id, WAL_FILE_BYTES, file)], true);
        assert_eq!(disk.take_trace(), [""; 0], "it is read");
        drop(reader);
        files.retire_unread();
        assert_eq!(
            disk.take_trace(),
            ["give-up lanes/00000002.w.00000000", "rename lanes/00000002.w.00000000 lanes/spare.3"]
        );
    }

    #[test]
    fn a_file_that_comes_back_is_not_replaced_meanwhile() {
        let (files, _) = LaneFiles::open(Arc::new(SimDisk::default()), 1).unwrap();
        let fill = || {
            let written = (0..).take_while(|_| files.refill().unwrap());
            written.count()
        };
        let id = |sequence| LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence };
        assert_eq!(fill(), SPARES);
        files.create_file(id(0)).unwrap();
        // The first refill after a file was begun waits for what comes.
        assert_eq!((fill(), fill()), (0, 0));
        files.retire(id(0), WAL_FILE_BYTES).unwrap();
        (1..3).for_each(|sequence| drop(files.create_file(id(sequence)).unwrap()));
        assert_eq!((fill(), fill()), (0, 2), "two are gone");
        assert_eq!(fill(), 0);
        // Under a load each is replaced.
        (3..7).for_each(|sequence| drop(files.create_file(id(sequence)).unwrap()));
        assert_eq!((fill(), fill()), (0, 2 * SPARES));
        files.create_file(id(7)).unwrap();
        assert_eq!((fill(), fill()), (0, 1));
    }

    /// A crash may have lost the name under which it held another lane's first record, and kept
    /// this older one.
    #[test]
    fn a_file_that_was_there_at_the_start_is_not_recycled() {
        let disk = SimDisk::default();
        let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
        while files.refill().unwrap() {}
        let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
        files.create_file(id).unwrap();
        let (files, found) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
        assert_eq!(found[&id.timeline], [(id, WAL_FILE_BYTES)]);
        disk.take_trace();
        files.retire(id, WAL_FILE_BYTES).unwrap();
        assert_eq!(disk.take_trace(), ["remove lanes/00000002.w.00000000"]);
    }

    #[test]
    fn a_spare_file_that_was_a_lanes_before_a_crash_begins_with_nothing() {
        let disk = SimDisk::default();
        let open = |disk: &SimDisk| LaneFiles::open(Arc::new(disk.clone()), 1).unwrap().0;
        let files = open(&disk);
        while files.refill().unwrap() {}
        files.sync_directory().unwrap();
        let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
        let (file, _) = files.create_file(id).unwrap();
        file.write_all_at(&[&[7; 300]], 0).unwrap();
        let mut was_a_lanes = 0;
        for seed in 0..20 {
            let left = disk.after_power_loss(Unsynced::Mixed(seed));
            let mut first = [0; 300];
            let Ok(spare) = left.open("lanes/spare.2") else { continue };
            spare.read_exact_at(&mut first, 0).unwrap();
            was_a_lanes += usize::from(first[0] == 7);
            open(&left);
            let left = left.after_power_loss(Unsynced::Lost);
            left.open("lanes/spare.2").unwrap().read_exact_at(&mut first, 0).unwrap();
            assert_eq!(first[..112], [0; 112], "seed {seed}");
        }
        assert!(was_a_lanes > 0);
    }

    #[test]
    fn a_spare_file_that_cannot_be_cleared_is_removed() {
        let disk = SimDisk::default();
        let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
        while files.refill().unwrap() {}
        disk.fail_once_after(0);
        LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
        assert_eq!(disk.files().len(), SPARES - 1);
    }
}
