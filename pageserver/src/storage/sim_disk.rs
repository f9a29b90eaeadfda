//! A disk in memory that can lose what was not synced: the twin of [`LocalDisk`](crate::storage::disk::LocalDisk)
//! for tests.
//!
//! It keeps every file twice, as written and as synced, and every directory twice likewise. Faults it injects:
//! power loss that keeps all, none or a seeded subset of the unsynced 512-byte sectors, failure of the n-th write
//! or sync, a full disk, and bytes changed at rest.

use crate::storage::disk::{Disk, DiskFile, Mapping};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Unit that a power loss keeps or drops as a whole.
const SECTOR_BYTES: usize = 512;

#[derive(Default)]
struct Contents {
    written: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Default)]
struct State {
    contents: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    next_file: u64,
    /// Writes and syncs left before one fails; `None` for never.
    failure_after: Option<u64>,
    /// Whether only one fails.
    heals: bool,
    struck: bool,
    capacity_bytes: Option<u64>,
    /// What was done, one line each, for golden tests of the order of durability.
    trace: Vec<String>,
}

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
pub struct SimDisk(Arc<Mutex<State>>);

struct SimFile {
    disk: SimDisk,
    number: u64,
    name: String,
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as it is found after a power loss.
    pub fn after_power_loss(&self, unsynced: Unsynced) -> SimDisk {
        let state = self.state();
        let mut survivor = State { next_file: state.next_file, ..State::default() };
        let names = if matches!(unsynced, Unsynced::Kept) { &state.names } else { &state.synced_names };
        let mut random = Random(if let Unsynced::Mixed(seed) = unsynced { seed } else { 1 });
        for (name, number) in names {
            let contents = &state.contents[number];
            let image = match unsynced {
                Unsynced::Kept => contents.written.clone(),
                Unsynced::Lost => contents.synced.clone(),
                Unsynced::Mixed(_) => mix(contents, &mut random),
            };
            survivor.contents.insert(*number, Contents { written: image.clone(), synced: image });
            survivor.names.insert(name.clone(), *number);
        }
        survivor.synced_names = survivor.names.clone();
        SimDisk(Arc::new(Mutex::new(survivor)))
    }

    /// Lets `count` more writes and syncs succeed, then fails one; `None` for no more failures.
    pub fn fail_after(&self, count: Option<u64>) {
        let mut state = self.state();
        (state.failure_after, state.heals) = (count, false);
    }

    /// Lets `count` more writes and syncs succeed, fails one, and lets all others succeed.
    pub fn fail_once_after(&self, count: u64) {
        let mut state = self.state();
        (state.failure_after, state.heals) = (Some(count), true);
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
        change(&mut contents.written);
        contents.synced = contents.written.clone();
    }

    /// The operations since the last call, one line each.
    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trace)
    }
}

fn mix(contents: &Contents, random: &mut Random) -> Vec<u8> {
    let grown = contents.written.len().saturating_sub(contents.synced.len()) as u64;
    let length = contents.synced.len() + usize::try_from(random.below(grown + 1)).unwrap_or(0);
    let mut image = contents.synced.clone();
    image.resize(length, 0);
    for start in (0..length.min(contents.written.len())).step_by(SECTOR_BYTES) {
        let end = (start + SECTOR_BYTES).min(length).min(contents.written.len());
        if random.below(2) == 1 {
            image[start..end].copy_from_slice(&contents.written[start..end]);
        }
    }
    image
}

/// A small seeded generator (xorshift64*), so that a failure replays from its seed.
pub struct Random(pub u64);

impl Random {
    /// The next number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        let mut x = self.0 | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }
}

impl State {
    fn step(&mut self, what: String) -> io::Result<()> {
        self.trace.push(what);
        match &mut self.failure_after {
            Some(0) => {
                self.struck = true;
                if self.heals {
                    self.failure_after = None;
                }
                Err(io::Error::other("simulated I/O failure"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        let bytes = state.contents.get(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let source = bytes.written.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        state.step(format!("write {} {offset}+{length}", self.name))?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let used: usize = state.contents.values().map(|c| c.written.len()).sum();
        let capacity = state.capacity_bytes;
        let contents = state.contents.entry(self.number).or_default();
        let grown = (start + length).saturating_sub(contents.written.len());
        if capacity.is_some_and(|capacity| (used + grown) as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if contents.written.len() < start + length {
            contents.written.resize(start + length, 0);
        }
        let mut at = start;
        for part in parts {
            contents.written[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step(format!("sync {}", self.name))?;
        let contents = state.contents.entry(self.number).or_default();
        contents.synced = contents.written.clone();
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step(format!("set-length {} {length}", self.name))?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let used: usize = state.contents.values().map(|c| c.written.len()).sum();
        let capacity = state.capacity_bytes;
        let contents = state.contents.entry(self.number).or_default();
        let grown = length.saturating_sub(contents.written.len());
        if grown > 0 && capacity.is_some_and(|capacity| (used + grown) as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        contents.written.resize(length, 0);
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
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let number = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), number, name: name.to_owned() }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.step(format!("create {name}"))?;
        let number = state.next_file;
        state.next_file += 1;
        state.contents.insert(number, Contents::default());
        state.names.insert(name.to_owned(), number);
        Ok(Arc::new(SimFile { disk: self.clone(), number, name: name.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step(format!("rename {from} {to}"))?;
        let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step(format!("remove {name}"))?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        let files = state.names.iter().filter_map(|(name, number)| {
            let (parent, base) = name.rsplit_once('/').unwrap_or(("", name));
            (parent == directory).then(|| (base.to_owned(), state.contents[number].written.len() as u64))
        });
        Ok(files.collect())
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step(format!("sync-directory {directory}"))?;
        let inside = |name: &str| name.rsplit_once('/').map_or("", |(parent, _)| parent) == directory;
        let current: Vec<_> =
            state.names.iter().filter(|(name, _)| inside(name)).map(|(n, f)| (n.clone(), *f)).collect();
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
