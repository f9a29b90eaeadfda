//! A pool of lane files whose blocks have been written.
//!
//! A sync into such a file needs no journal commit of the file system, so the write-ahead lane,
//! which syncs at every commit, takes its files from here. Files of sealed and dropped timelines
//! come back. How many are kept ready follows how many were missed.

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::disk::{Disk, ZEROS};
use crate::storage::log::names::{SPARE_PREFIX, WAL_FILE_BYTES, path};
use crate::storage::log::record::{FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Spare files kept ready at rest, but for one that may be on loan: a wake takes one until its log
/// is sealed, and a busy branch takes one every 16 MiB of log.
pub(super) const SPARES: usize = 3;
/// Spare files kept ready at most, when lanes found none.
const MAX_SPARES: usize = 32;
/// Syncs for each file of a lane, on an average, that tell commits from a bulk load.
const COMMITS_PER_FILE: usize = 64;
/// Refills in a row that found no file begun after which half as many spare files are enough.
const QUIET_REFILLS: usize = 240;
/// How long the disk is left to others at most, when a piece of a spare file was written.
const SPARE_REST: Duration = Duration::from_millis(2);

/// The spare files.
pub(super) struct SparePool {
    disk: Arc<dyn Disk>,
    /// Names of those that are ready.
    ready: Mutex<Vec<String>>,
    next: AtomicU64,
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

impl SparePool {
    /// A pool of the spare files that were `found` with their lengths.
    pub(super) fn open(disk: Arc<dyn Disk>, found: Vec<(String, u64)>) -> Result<Self> {
        let (mut ready, mut next) = (Vec::new(), 0);
        for (name, length) in found {
            let number = name.strip_prefix(SPARE_PREFIX).and_then(|number| number.parse().ok());
            next = next.max(number.unwrap_or(0_u64).saturating_add(1));
            // One cut short by a crash is made anew, and so is one that the disk will not have
            // cleared.
            if length == WAL_FILE_BYTES && clear(&*disk, &name) {
                ready.push(name);
            } else {
                disk.remove(&path(&name)).map_err(|e| Error::io(format!("remove {name}"), &e))?;
            }
        }
        Ok(Self {
            disk,
            ready: Mutex::new(ready),
            next: AtomicU64::new(next),
            begun: AtomicUsize::new(0),
            synced: AtomicUsize::new(0),
            wanted: AtomicUsize::new(SPARES),
            filling: AtomicBool::new(true),
            quiet: AtomicUsize::new(0),
        })
    }

    /// Whether none is ready.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.ready).is_empty()
    }

    /// A lane begins a file: the name of a spare one, if one is ready.
    pub(super) fn take(&self) -> Option<String> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let spare = lock(&self.ready).pop();
        if spare.is_none() {
            let double = |wanted: usize| Some((wanted * 2).min(MAX_SPARES));
            let _always = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, double);
        }
        spare
    }

    /// Takes in the file at this path, or removes it if there are enough.
    pub(super) fn put(&self, from: &str) -> io::Result<()> {
        let mut ready = lock(&self.ready);
        if ready.len() >= self.wanted.load(Ordering::Relaxed) {
            return self.disk.remove(from);
        }
        let spare = self.new_name();
        self.disk.rename(from, &path(&spare))?;
        ready.push(spare);
        assert!(ready.len() <= MAX_SPARES, "{} spare files", ready.len());
        Ok(())
    }

    /// A lane was synced.
    pub(super) fn count_sync(&self) {
        self.synced.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes out a spare file if too few are ready; true if it made one. How many there should be
    /// follows how many were missed. Not during a bulk load, which goes through files quickly and
    /// syncs rarely: the writing would take the disk from it.
    pub(super) fn refill(&self) -> Result<bool> {
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
        let name = self.new_name();
        let made = self.write_spare(&path(&name));
        if let Err(error) = made {
            // A half-written spare is useless, and on a full disk it is in the way.
            let _ = self.disk.remove(&path(&name));
            return Err(Error::io(format!("write out {name}"), &error));
        }
        lock(&self.ready).push(name);
        Ok(true)
    }

    /// Whether one is to be written now. At rest the first one that goes is waited for.
    fn decide_to_fill(&self) -> bool {
        let ready = lock(&self.ready).len();
        let wanted = self.wanted.load(Ordering::Relaxed);
        assert!((SPARES..=MAX_SPARES).contains(&wanted), "{wanted} spare files are wanted");
        let waits = wanted == SPARES && !self.filling.load(Ordering::Relaxed);
        let filling = ready < wanted - usize::from(waits);
        self.filling.store(filling, Ordering::Relaxed);
        filling
    }

    /// Removes spare files that were not needed for a while.
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
            let mut spares = lock(&self.ready);
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

    fn new_name(&self) -> String {
        format!("{SPARE_PREFIX}{}", self.next.fetch_add(1, Ordering::Relaxed))
    }
}
