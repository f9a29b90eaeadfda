//! The files of all lanes: makes, opens and recycles them.
//!
//! A write-ahead lane takes its files from the pool of spare ones, if one is ready. Files of sealed
//! and dropped timelines go back to it, if they were not there at the start. The data lane syncs
//! at checkpoints and grows its files instead. A directory entry is durable after the lane's next
//! sync.

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::log::names::{
    LANES_DIRECTORY, SPARE_PREFIX, WAL_FILE_BYTES, file_name, parse_file_name, path,
};
use crate::storage::log::record::LaneFileId;
use crate::storage::log::spares::SparePool;
use crate::storage::page::{LaneKind, TimelineId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

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
    spares: SparePool,
    /// Files of lanes that were there at the start. They are not recycled: a crash may have lost
    /// the name under which they were another lane's last, and in the same place of that lane they
    /// would bring back records that were seen to be lost.
    found: HashSet<LaneFileId>,
    /// Files that are out of their lanes, but may still be read.
    leaving: Mutex<Vec<Leaving>>,
}

impl LaneFiles {
    /// The lane files of the store with this number, and what is there: each timeline's files with
    /// their lengths.
    pub fn open(disk: Arc<dyn Disk>, store: u64) -> Result<(Self, FilesByTimeline)> {
        let mut spares = Vec::new();
        let mut found = FilesByTimeline::new();
        let listed =
            disk.list(LANES_DIRECTORY).map_err(|e| Error::io("list the lane files", &e))?;
        for (name, length) in listed {
            if name.starts_with(SPARE_PREFIX) {
                spares.push((name, length));
            } else if let Some(id) = parse_file_name(&name) {
                // A server that was killed after a failed sync leaves in the cache what never
                // reached the medium.
                let dropped = disk.open(&path(&name)).and_then(|file| file.drop_cache());
                dropped.map_err(|e| Error::io(format!("drop the cache of {name}"), &e))?;
                found.entry(id.timeline).or_default().push((id, length));
            }
        }
        let files = Self {
            spares: SparePool::open(Arc::clone(&disk), spares)?,
            disk,
            store,
            found: found.values().flatten().map(|(id, _)| *id).collect(),
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
        !self.spares.is_empty()
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
            LaneKind::Wal => self.spares.take(),
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
        let recyclable =
            id.lane == LaneKind::Wal && length == WAL_FILE_BYTES && !self.found.contains(&id);
        let outcome = if recyclable { self.spares.put(&name) } else { self.disk.remove(&name) };
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
        {
            let mut leaving = lock(&self.leaving);
            let again = leaving.iter().find(|(left, ..)| files.iter().any(|(id, ..)| id == left));
            assert!(again.is_none(), "{:?} leaves its lane twice", again.map(|(id, ..)| id));
            leaving.extend(files);
        }
        self.retire_unread();
    }

    /// Retires those of the leaving files that nobody reads any more.
    pub fn retire_unread(&self) {
        let mut leaving = lock(&self.leaving);
        let (unread, read): (Vec<_>, Vec<_>) = std::mem::take(&mut *leaving)
            .into_iter()
            .partition(|(.., file)| Arc::strong_count(file) == 1);
        *leaving = read;
        drop(leaving);
        for (id, length, file) in unread {
            // What was never written is in the layer, and the file may soon be another lane's.
            let gone = if file.discard() { self.retire(id, length) } else { self.remove(id) };
            if let Err(error) = gone {
                tracing::error!(%error, "a sealed lane file stays until the next start");
            }
        }
    }

    /// A lane was synced.
    pub(super) fn count_sync(&self) {
        self.spares.count_sync();
    }

    /// Writes out a spare file if too few are ready; true if it made one.
    pub fn refill(&self) -> Result<bool> {
        self.spares.refill()
    }

    /// Makes creations and removals of lane files survive a power loss.
    pub fn sync_directory(&self) -> Result<()> {
        let synced = self.disk.sync_directory(LANES_DIRECTORY);
        synced.map_err(|e| Error::io("sync the directory of the lane files", &e))
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
