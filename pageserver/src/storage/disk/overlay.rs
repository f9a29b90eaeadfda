//! A disk that reads another one and keeps every change to itself.
//!
//! `pageserver check` opens a store through an overlay. The opening recovers, migrates and folds
//! as it does at every start, and the store keeps each of its bytes. Changes stay in memory, so an
//! overlay is for work that writes little.

use crate::locks::lock;
use crate::storage::disk::{Disk, DiskFile, Mapping};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};

const BLOCK_BYTES: usize = 4096;

/// The disk, over one that nobody changes meanwhile.
pub struct Overlay {
    base: Arc<dyn Disk>,
    /// Files that were opened, made or renamed; none for one that was removed.
    names: Mutex<HashMap<String, Option<Arc<OverlayFile>>>>,
}

/// A file of the base with the blocks that were changed since.
struct OverlayFile {
    /// None if the file was made here.
    base: Option<Arc<dyn DiskFile>>,
    contents: Mutex<OverlayContents>,
}

struct OverlayContents {
    length: u64,
    /// Bytes of the base that still show: a file that is cut shows zeros when it grows again.
    shown: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>,
}

impl Overlay {
    /// An overlay without changes.
    pub fn new(base: Arc<dyn Disk>) -> Self {
        Self { base, names: Mutex::default() }
    }

    fn find(&self, name: &str) -> io::Result<Arc<OverlayFile>> {
        let mut names = lock(&self.names);
        match names.get(name) {
            Some(Some(file)) => return Ok(Arc::clone(file)),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let base = self.base.open(name)?;
        let length = base.len_bytes()?;
        let contents = OverlayContents { length, shown: length, blocks: BTreeMap::new() };
        let file = Arc::new(OverlayFile { base: Some(base), contents: Mutex::new(contents) });
        names.insert(name.to_owned(), Some(Arc::clone(&file)));
        Ok(file)
    }
}

impl Disk for Overlay {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.find(name)?)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.find(name) {
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let contents = OverlayContents { length: 0, shown: 0, blocks: BTreeMap::new() };
        let file = Arc::new(OverlayFile { base: None, contents: Mutex::new(contents) });
        lock(&self.names).insert(name.to_owned(), Some(Arc::clone(&file)));
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let file = self.find(from)?;
        let mut names = lock(&self.names);
        names.insert(from.to_owned(), None);
        names.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.find(name)?;
        lock(&self.names).insert(name.to_owned(), None);
        Ok(())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let mut files: BTreeMap<String, u64> = self.base.list(directory)?.into_iter().collect();
        for (path, file) in &*lock(&self.names) {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            if parent != directory {
                continue;
            }
            match file {
                Some(file) => files.insert(name.to_owned(), lock(&file.contents).length),
                None => files.remove(name),
            };
        }
        Ok(files.into_iter().collect())
    }

    fn sync_directory(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.base.free_bytes()
    }

    fn total_bytes(&self) -> io::Result<u64> {
        self.base.total_bytes()
    }
}

impl OverlayFile {
    /// Runs `work` for each block that a range touches: its number, and what of the range is there.
    fn blocks(
        offset: u64,
        length: usize,
        mut work: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let within = usize::try_from(at % BLOCK_BYTES as u64).map_err(io::Error::other)?;
            let count = (BLOCK_BYTES - within).min(length - done);
            work(at / BLOCK_BYTES as u64, within..within + count, done..done + count)?;
            done += count;
        }
        Ok(())
    }

    /// What the base shows from `offset`, and zeros behind that.
    fn read_base(&self, shown: u64, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let there = usize::try_from(shown.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (there, missing) = buffer.split_at_mut(there.min(buffer.len()));
        missing.fill(0);
        match &self.base {
            Some(base) if !there.is_empty() => base.read_exact_at(there, offset),
            _ => {
                there.fill(0);
                Ok(())
            }
        }
    }
}

impl DiskFile for OverlayFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let contents = lock(&self.contents);
        if offset.saturating_add(buffer.len() as u64) > contents.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_base(contents.shown, buffer, offset)?;
        Self::blocks(offset, buffer.len(), |number, within, range| {
            if let Some(block) = contents.blocks.get(&number) {
                buffer[range].copy_from_slice(&block[within]);
            }
            Ok(())
        })
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let bytes = parts.concat();
        let mut contents = lock(&self.contents);
        let shown = contents.shown;
        Self::blocks(offset, bytes.len(), |number, within, range| {
            let block = match contents.blocks.entry(number) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(missing) => {
                    let mut block = Box::new([0; BLOCK_BYTES]);
                    self.read_base(shown, &mut block[..], number * BLOCK_BYTES as u64)?;
                    missing.insert(block)
                }
            };
            block[within].copy_from_slice(&bytes[range]);
            Ok(())
        })?;
        contents.length = contents.length.max(offset + bytes.len() as u64);
        Ok(())
    }

    /// What others wrote to the base reaches the medium, so that a read after [`Self::drop_cache`]
    /// asks the medium. Changes of the overlay stay in memory.
    fn sync(&self) -> io::Result<()> {
        self.base.as_ref().map_or(Ok(()), |base| base.sync())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut contents = lock(&self.contents);
        if length < contents.length {
            contents.shown = contents.shown.min(length);
            let last = length / BLOCK_BYTES as u64;
            contents.blocks.retain(|number, _| *number <= last);
            let kept = usize::try_from(length % BLOCK_BYTES as u64).map_err(io::Error::other)?;
            if let Some(block) = contents.blocks.get_mut(&last) {
                block[kept..].fill(0);
            }
        }
        contents.length = length;
        assert!(contents.shown <= length, "shows {} of {length} bytes", contents.shown);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.contents).length)
    }

    fn map(&self, offset: u64, length: usize) -> io::Result<Mapping> {
        match &self.base {
            Some(base) if lock(&self.contents).blocks.is_empty() => base.map(offset, length),
            _ => {
                let mut bytes = vec![0; length];
                self.read_exact_at(&mut bytes, offset)?;
                Ok(Box::new(bytes))
            }
        }
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.base.as_ref().map_or(Ok(()), |base| base.drop_cache())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;
    use crate::storage::disk::sim::SimDisk;

    #[test]
    fn an_overlay_shows_what_a_plain_disk_would_and_changes_nothing_below() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let base = SimDisk::default();
            for name in ["a", "b"] {
                let file = base.create(name).unwrap();
                file.write_all_at(&[&vec![seed.to_le_bytes()[0] | 1; 9000]], 0).unwrap();
            }
            let (before, plain) =
                (base.files(), base.after_power_loss(crate::storage::disk::sim::Unsynced::Kept));
            let overlay = Overlay::new(Arc::new(base.clone()));
            for nth in 0..60 {
                step(&mut random, nth, &overlay, &plain);
            }
            assert_eq!(base.files(), before, "seed {seed}");
            assert_eq!(whole(&base, "a").map(|bytes| bytes.len()), Some(9000));
        }
    }

    fn whole(disk: &dyn Disk, name: &str) -> Option<Vec<u8>> {
        let file = disk.open(name).ok()?;
        let mut bytes = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    /// Does the same to both, and compares all that they show.
    fn step(random: &mut Random, nth: u64, overlay: &dyn Disk, plain: &dyn Disk) {
        let name = ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()];
        let (choice, at) = (random.below(8), random.below(12_000));
        let bytes = vec![nth.to_le_bytes()[0]; usize::try_from(1 + random.below(6000)).unwrap()];
        let act = |disk: &dyn Disk| match choice {
            0 => disk.create(name).is_ok(),
            1 => disk.remove(name).is_ok(),
            2 => disk.open(name).is_ok() && disk.rename(name, "a").is_ok(),
            3 => disk.open(name).is_ok_and(|file| file.set_len(at).is_ok()),
            _ => disk.open(name).is_ok_and(|file| file.write_all_at(&[&bytes], at).is_ok()),
        };
        assert_eq!(act(overlay), act(plain), "step {nth}: {choice} of {name}");
        let listed = |disk: &dyn Disk| {
            let mut listed = disk.list("").unwrap();
            listed.sort();
            listed
        };
        assert_eq!(listed(overlay), listed(plain), "step {nth}: {choice} of {name}");
        for name in ["a", "b", "c"] {
            assert!(whole(overlay, name) == whole(plain, name), "step {nth}: contents of {name}");
        }
    }
}
