//! A disk in memory that can lose what was not synced: the twin of
//! [`LocalDisk`](crate::storage::disk::local::LocalDisk) for tests.
//!
//! It keeps every file twice, as written and as synced, and every directory twice likewise. Faults
//! it injects: power loss that keeps all, none or a seeded subset of the unsynced 512-byte sectors
//! and changes of directories, a process that is killed, failure of the n-th write, sync or read, a
//! write that goes elsewhere, a sync that takes its time or only says that it was done, a full
//! disk, and bytes changed at rest. A write that fails leaves some of its bytes, from the front.
//! After a failed sync the cache shows what never reached the medium, as Linux does, until it is
//! dropped.

use crate::locks::lock;
use crate::storage::disk::random::Random;
use crate::storage::disk::sim_contents::{SectorImage, SimContents};
use crate::storage::disk::sim_state::{SimFailure, SimState, Stall, mix_names};
use crate::storage::disk::{BLOCK_BYTES, Disk, DiskFile, Mapping, ZEROS};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How far from where it should a write goes that is misdirected.
const MISDIRECTED_BY: usize = 4096;

/// What a power loss does to sectors written but not synced.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced {
    /// All of them reached the medium.
    Kept,
    /// None did.
    Lost,
    /// A subset drawn from the seed did.
    Mixed(u64),
}

/// The simulated disk; clones share it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<SimShared>);

#[derive(Default)]
struct SimShared {
    state: Mutex<SimState>,
    /// Told when a sync that takes its time may end.
    ended: Condvar,
}

struct SimFile {
    disk: SimDisk,
    number: u64,
    name: String,
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, SimState> {
        lock(&self.0.state)
    }

    /// The disk as it is found after a power loss.
    pub fn after_power_loss(&self, unsynced: Unsynced) -> SimDisk {
        let state = self.state();
        let mut survivor = SimState { next_file: state.next_file, ..SimState::default() };
        let mut random = Random(if let Unsynced::Mixed(seed) = unsynced { seed } else { 1 });
        let names = match unsynced {
            Unsynced::Kept => state.names.clone(),
            Unsynced::Lost => state.synced_names.clone(),
            Unsynced::Mixed(_) => mix_names(&state, &mut random),
        };
        for (name, number) in &names {
            let contents = &state.contents[number];
            let image = match unsynced {
                Unsynced::Kept => contents.written.clone(),
                Unsynced::Lost => contents.synced.clone(),
                Unsynced::Mixed(_) => contents.mix(&mut random),
            };
            survivor.contents.insert(*number, SimContents::synced(image));
            survivor.names.insert(name.clone(), *number);
        }
        survivor.synced_names = survivor.names.clone();
        SimDisk(Arc::new(SimShared { state: Mutex::new(survivor), ended: Condvar::new() }))
    }

    /// The disk as a process finds it that starts after another was killed: as that wrote it, and
    /// no more of it synced. Of what was appended, an end is lost with the memory that it was in.
    pub fn after_kill(&self) -> SimDisk {
        let state = self.state();
        let mut contents = state.contents.clone();
        for (number, contents) in &mut contents {
            contents.lose_end(state.trace.len() as u64 + number);
        }
        let survivor = SimState {
            contents,
            names: state.names.clone(),
            synced_names: state.synced_names.clone(),
            next_file: state.next_file,
            ..SimState::default()
        };
        SimDisk(Arc::new(SimShared { state: Mutex::new(survivor), ended: Condvar::new() }))
    }

    /// Lets `count` more writes and syncs succeed, then fails all; `None` for no more failures.
    pub fn fail_after(&self, count: Option<u64>) {
        self.state().failure = count.map(|count| (SimFailure::All, count));
    }

    /// Lets `count` more writes and syncs be done, and the process that asks for more be stopped in
    /// the midst of the next.
    pub fn stop_after(&self, count: u64) {
        self.state().failure = Some((SimFailure::Stop, count));
    }

    /// Lets `count` more writes and syncs succeed, fails one, and lets all others succeed.
    pub fn fail_once_after(&self, count: u64) {
        self.state().failure = Some((SimFailure::One, count));
    }

    /// The same, counting only what is done to one file.
    pub fn fail_once_in(&self, name: &'static str, count: u64) {
        self.state().failure = Some((SimFailure::OneOf(name), count));
    }

    /// Lets `count` more syncs be done, and one only say so. The next one of the same file or
    /// directory does it for both.
    pub fn lie_after(&self, count: u64) {
        self.state().lie_after = Some(count);
    }

    /// Whether a sync still waits to be none.
    pub fn will_lie(&self) -> bool {
        self.state().lie_after.is_some()
    }

    /// Lets the next sync of a lane's file take until [`SimDisk::end_stall`] is called. What is
    /// written meanwhile it does not reach.
    pub fn stall_next(&self) {
        self.state().stall = Stall::Next;
    }

    /// Whether a sync takes its time now.
    pub fn is_stalled(&self) -> bool {
        self.state().stall == Stall::Begun
    }

    /// Lets a sync that takes its time end, and the next one take none.
    pub fn end_stall(&self) {
        self.state().stall = Stall::Not;
        self.0.ended.notify_all();
    }

    /// Lets `count` more reads succeed, and fails one; `None` for no failure.
    pub fn fail_read_after(&self, count: Option<u64>) {
        self.state().read_failure_after = count;
    }

    /// Lets `count` more writes of lanes and layers go where they should, and one elsewhere.
    pub fn misdirect_after(&self, count: u64) {
        self.state().misdirection_after = Some(count);
    }

    /// Whether a write still waits to go elsewhere.
    pub fn will_misdirect(&self) -> bool {
        self.state().misdirection_after.is_some()
    }

    /// Names of all files with their lengths.
    pub fn files(&self) -> Vec<(String, usize)> {
        let state = self.state();
        state
            .names
            .iter()
            .map(|(name, number)| (name.clone(), state.contents[number].written.len()))
            .collect()
    }

    /// Sum of the lengths of all files.
    pub fn used_bytes(&self) -> u64 {
        self.state().contents.values().map(|contents| contents.written.len() as u64).sum()
    }

    /// Whether anything has failed.
    pub fn failed(&self) -> bool {
        self.state().struck
    }

    /// Limits the sum of file lengths.
    pub fn set_capacity_bytes(&self, capacity: Option<u64>) {
        self.state().capacity_bytes = capacity;
    }

    /// Changes the bytes of a file at rest, cutting or growing it as `change` does.
    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let number = state.names[name];
        let contents = state.contents.entry(number).or_default();
        let mut bytes = contents.written.to_vec();
        change(&mut bytes);
        *contents = SimContents::synced(SectorImage::from(bytes.as_slice()));
    }

    /// The operations since the last call, one line each.
    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trace)
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if let Some(left) = &mut state.read_failure_after {
            if *left == 0 {
                state.read_failure_after = None;
                return Err(io::Error::other("simulated failure of a read"));
            }
            *left -= 1;
        }
        let bytes = state.contents.get(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        if bytes.written.read(start, buffer) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut outcome = state.step("write", &self.name, &format!("{offset}+{length}"));
        let mut start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut room = length;
        if outcome.is_err() {
            room = usize::try_from(Random(state.trace.len() as u64).below(length as u64 + 1))
                .unwrap_or(0);
        }
        let used: usize = state.contents.values().map(|c| c.written.len()).sum();
        let capacity = state.capacity_bytes;
        let misdirected = self.name.contains('/') && state.misdirects();
        let contents = state.contents.entry(self.number).or_default();
        let grown = (start + length).saturating_sub(contents.written.len());
        let free = capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(used as u64));
        if grown as u64 > free {
            outcome = Err(io::ErrorKind::StorageFull.into());
            room = room.min(length - grown + usize::try_from(free).unwrap_or(usize::MAX));
        }
        if misdirected {
            start = if start >= MISDIRECTED_BY {
                start - MISDIRECTED_BY
            } else {
                start + MISDIRECTED_BY
            };
        }
        for part in parts {
            let count = part.len().min(room);
            if count > 0 {
                contents.write(start, &part[..count]);
            }
            start += count;
            room -= count;
        }
        outcome
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let outcome = state.step("sync", &self.name, "");
        let seed = state.trace.len() as u64;
        let lies = state.lies();
        let stalls = outcome.is_ok()
            && !lies
            && state.stall == Stall::Next
            && self.name.starts_with("lanes/");
        let stops = matches!(state.failure, Some((SimFailure::Stop, _)));
        let contents = state.contents.entry(self.number).or_default();
        match &outcome {
            Err(_) if stops => {}
            Err(_) => contents.fail(seed),
            Ok(()) if lies => {}
            Ok(()) if stalls => {
                let (begun, length) = (contents.begin_sync(), contents.written.len());
                state.stall = Stall::Begun;
                while state.stall == Stall::Begun {
                    state = self.disk.0.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.contents.entry(self.number).or_default().end_sync(&begun, length);
            }
            Ok(()) => contents.sync(),
        }
        outcome
    }

    fn discard(&self) -> bool {
        let mut state = self.disk.state();
        state.trace.push(format!("give-up {}", self.name));
        let seed = state.trace.len() as u64;
        state.contents.entry(self.number).or_default().lose_end(seed);
        true
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step("set-length", &self.name, &length.to_string())?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let used: usize = state.contents.values().map(|c| c.written.len()).sum();
        let capacity = state.capacity_bytes;
        let contents = state.contents.entry(self.number).or_default();
        let grown = length.saturating_sub(contents.written.len());
        if grown > 0 && capacity.is_some_and(|capacity| (used + grown) as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        contents.set_len(length);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().contents.get(&self.number).map_or(0, |c| c.written.len()) as u64)
    }

    fn map(&self, offset: u64, length: usize) -> io::Result<Mapping> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(Box::new(bytes))
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let seed = state.trace.len() as u64;
        let contents = state.contents.entry(self.number).or_default();
        contents.drop_cache();
        contents.lose_end(seed);
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let number = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), number, name: name.to_owned() }))
    }

    /// Clears the first block, as the local disk does when it tries direct I/O.
    fn open_to_append(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.open(name)?;
        let mut state = self.state();
        let number = state.names[name];
        if let Some(contents) = state.contents.get_mut(&number) {
            let length = contents.written.len().min(BLOCK_BYTES);
            contents.write(0, &ZEROS[..length]);
            contents.begin_appending();
        }
        drop(state);
        Ok(file)
    }

    /// Writes to the first block, as the local disk does when it tries direct I/O.
    fn create_to_append(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.create(name)?;
        let mut state = self.state();
        let number = state.names[name];
        let contents = state.contents.entry(number).or_default();
        contents.write(0, &ZEROS[..BLOCK_BYTES]);
        contents.begin_appending();
        drop(state);
        Ok(file)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.step("create", name, "")?;
        let number = state.next_file;
        state.next_file += 1;
        state.contents.insert(number, SimContents::default());
        state.names.insert(name.to_owned(), number);
        Ok(Arc::new(SimFile { disk: self.clone(), number, name: name.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step("rename", from, to)?;
        let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step("remove", name, "")?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        let files = state.names.iter().filter_map(|(name, number)| {
            let (parent, base) = name.rsplit_once('/').unwrap_or(("", name));
            (parent == directory)
                .then(|| (base.to_owned(), state.contents[number].written.len() as u64))
        });
        Ok(files.collect())
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step("sync-directory", directory, "")?;
        if state.lies() {
            return Ok(());
        }
        let inside =
            |name: &str| name.rsplit_once('/').map_or("", |(parent, _)| parent) == directory;
        let current: Vec<_> = state
            .names
            .iter()
            .filter(|(name, _)| inside(name))
            .map(|(n, f)| (n.clone(), *f))
            .collect();
        state.synced_names.retain(|name, _| !inside(name));
        state.synced_names.extend(current);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        let used: usize = state.contents.values().map(|c| c.written.len()).sum();
        Ok(state.capacity_bytes.unwrap_or(1 << 40).saturating_sub(used as u64))
    }

    fn total_bytes(&self) -> io::Result<u64> {
        Ok(self.state().capacity_bytes.unwrap_or(1 << 40))
    }
}
