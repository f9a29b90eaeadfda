//! What a file of the simulated disk holds: as it was written, and as it is on the medium.

use crate::storage::disk::random::Random;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// Unit that a power loss keeps or drops as a whole.
const SECTOR_BYTES: usize = 512;
/// Unit that two images share until one of them writes to it.
const CHUNK_BYTES: usize = 4096;

/// What a file is made of where nothing was written.
static ZEROS: LazyLock<Arc<[u8; CHUNK_BYTES]>> = LazyLock::new(|| Arc::new([0; CHUNK_BYTES]));

/// The bytes of a file. Copies are cheap: they share what none of them has changed.
#[derive(Clone, Default)]
pub(super) struct SectorImage {
    chunks: Vec<Arc<[u8; CHUNK_BYTES]>>,
    length: usize,
}

impl SectorImage {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The parts of chunks that a range of bytes is made of.
    fn parts(mut range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        std::iter::from_fn(move || {
            let (nth, start) = (range.start / CHUNK_BYTES, range.start % CHUNK_BYTES);
            let end = CHUNK_BYTES.min(start + range.len());
            range.start += end - start;
            (start < end).then_some((nth, start..end))
        })
    }

    /// Bytes past the end are not kept: a file that grows again has zeros there.
    pub(super) fn resize(&mut self, length: usize) {
        if length < self.length {
            let last = self.length.min(length.next_multiple_of(CHUNK_BYTES));
            self.put(length..last, |part, _| part.fill(0));
        }
        self.chunks.resize_with(length.div_ceil(CHUNK_BYTES), || Arc::clone(&ZEROS));
        self.length = length;
    }

    /// Lets `put` fill a range that is within the length, part by part, each with its offset in the
    /// range.
    fn put(&mut self, range: Range<usize>, mut put: impl FnMut(&mut [u8], usize)) {
        let mut done = 0;
        for (nth, part) in Self::parts(range) {
            let length = part.len();
            put(&mut Arc::make_mut(&mut self.chunks[nth])[part], done);
            done += length;
        }
    }

    /// Writes where the file already has room.
    fn write(&mut self, start: usize, bytes: &[u8]) {
        if self.holds(start, bytes) {
            return;
        }
        self.put(start..start + bytes.len(), |part, at| {
            part.copy_from_slice(&bytes[at..at + part.len()])
        });
    }

    /// Reads a range; false if the file ends before it does.
    pub(super) fn read(&self, start: usize, buffer: &mut [u8]) -> bool {
        let Some(end) = start.checked_add(buffer.len()).filter(|end| *end <= self.length) else {
            return false;
        };
        let mut done = 0;
        for (nth, part) in Self::parts(start..end) {
            buffer[done..done + part.len()].copy_from_slice(&self.chunks[nth][part.clone()]);
            done += part.len();
        }
        true
    }

    /// Whether it has these bytes already, as new files do that are filled with zeros.
    fn holds(&self, start: usize, bytes: &[u8]) -> bool {
        let mut done = 0;
        Self::parts(start..start + bytes.len()).all(|(nth, part)| {
            let wanted = &bytes[done..done + part.len()];
            done += part.len();
            self.chunks[nth][part] == *wanted
        })
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.read(0, &mut bytes);
        bytes
    }

    /// The bytes of a sector, as far as the file has it.
    fn sector(&self, nth: usize) -> &[u8] {
        let start = (nth * SECTOR_BYTES).min(self.length);
        let end = ((nth + 1) * SECTOR_BYTES).min(self.length);
        let within = start % CHUNK_BYTES;
        self.chunks
            .get(start / CHUNK_BYTES)
            .map_or(&[], |chunk| &chunk[within..within + end - start])
    }

    /// Puts a sector of another file into this one, as far as it has room for it.
    fn copy(&mut self, from: &Self, nth: usize) {
        let start = nth * SECTOR_BYTES;
        let bytes = from.sector(nth);
        let room = bytes.len().min(self.length.saturating_sub(start));
        self.write(start, &bytes[..room]);
    }
}

impl From<&[u8]> for SectorImage {
    fn from(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        image.resize(bytes.len());
        image.write(0, bytes);
        image
    }
}

/// A file as it was written and as it was synced.
#[derive(Clone, Default)]
pub(super) struct SimContents {
    pub(super) written: SectorImage,
    pub(super) synced: SectorImage,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
    /// Whether a sync failed, so that what was not synced will never be.
    failed: bool,
    /// Whether what is written stays for a while with whoever writes it.
    appended: bool,
}

impl SimContents {
    /// What is on the medium.
    pub(super) fn synced(image: SectorImage) -> Self {
        Self { written: image.clone(), synced: image, ..Self::default() }
    }

    pub(super) fn write(&mut self, start: usize, bytes: &[u8]) {
        self.written.resize(self.written.len().max(start + bytes.len()));
        self.written.write(start, bytes);
        self.dirty.extend(start / SECTOR_BYTES..(start + bytes.len()).div_ceil(SECTOR_BYTES));
    }

    /// From now on it is appended to, by one who keeps what is written in memory for a while.
    pub(super) fn begin_appending(&mut self) {
        self.appended = true;
    }

    /// Whoever appended to it has ended, and of what was not synced, in order, an end was only in
    /// memory.
    pub(super) fn lose_end(&mut self, seed: u64) {
        if !std::mem::take(&mut self.appended) {
            return;
        }
        let kept = usize::try_from(Random(seed).below(self.dirty.len() as u64 + 1)).unwrap_or(0);
        let Some(first) = self.dirty.iter().nth(kept).copied() else { return };
        let lost = self.dirty.split_off(&first);
        let length = self.synced.len().max((first * SECTOR_BYTES).min(self.written.len()));
        self.written.resize(length);
        for sector in lost {
            self.written.copy(&self.synced, sector);
        }
    }

    /// Changes the length. What is cut off may come back as zeros.
    pub(super) fn set_len(&mut self, length: usize) {
        self.dirty.extend(length / SECTOR_BYTES..self.written.len().div_ceil(SECTOR_BYTES));
        self.written.resize(length);
    }

    /// What is found after a power loss that keeps some of what was not synced.
    pub(super) fn mix(&self, random: &mut Random) -> SectorImage {
        let grown = self.written.len().saturating_sub(self.synced.len()) as u64;
        let length = self.synced.len() + usize::try_from(random.below(grown + 1)).unwrap_or(0);
        let mut image = self.synced.clone();
        image.resize(length);
        for sector in &self.dirty {
            if random.below(2) == 1 {
                image.copy(&self.written, *sector);
            }
        }
        image
    }

    /// What a sync that begins now has to reach.
    pub(super) fn begin_sync(&self) -> Vec<(usize, Vec<u8>)> {
        self.dirty.iter().map(|nth| (*nth, self.written.sector(*nth).to_vec())).collect()
    }

    /// Ends a sync. What was written since it began is no more on the medium than before.
    pub(super) fn end_sync(&mut self, begun: &[(usize, Vec<u8>)], length: usize) {
        self.synced.resize(self.synced.len().max(length));
        for (nth, bytes) in begun {
            self.synced.write(nth * SECTOR_BYTES, bytes);
            if self.written.sector(*nth) == bytes {
                self.dirty.remove(nth);
            }
        }
    }

    pub(super) fn sync(&mut self) {
        self.synced.resize(self.written.len());
        self.dirty.iter().for_each(|sector| self.synced.copy(&self.written, *sector));
        self.dirty.clear();
    }

    /// All, none or some of it is on the medium; the rest the system takes for written from now on.
    pub(super) fn fail(&mut self, seed: u64) {
        match seed % 4 {
            0 => self.sync(),
            1 => {}
            _ => self.synced = self.mix(&mut Random(seed)),
        }
        self.dirty.clear();
        self.failed = true;
    }

    /// After a failed sync the file is found as it is on the medium, and as it was written since.
    pub(super) fn drop_cache(&mut self) {
        if std::mem::take(&mut self.failed) {
            // The system knows the length without the medium.
            let mut found = self.synced.clone();
            found.resize(self.written.len());
            self.dirty.iter().for_each(|sector| found.copy(&self.written, *sector));
            self.written = found;
        }
    }
}
