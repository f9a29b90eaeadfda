//! Files of a local disk that are written past the operating system's page cache: one that is appended to, and those that are filled
//! with zeros for it.
//!
//! What is written stays in memory until the next sync, which then is one system call: it writes all of it and makes it
//! durable. Through the page cache a commit pays for a copy into fresh memory, for the write-back that its sync begins,
//! and for the end of that.
//!
//! Invariants: writes go to the end. `filling` begins at a whole block and holds all that was written from there on; what
//! lies before it, but for `leaving`, is on the disk. A last block that is not full is written again together with what
//! comes next; its first bytes are the same then, so that a write cut short leaves them as they were.

use crate::locks::lock;
use crate::storage::disk::{DiskFile, LocalFile, Mapping};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What direct I/O must be a multiple of, in memory and in the file: the largest block of common disks.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Bytes that are kept before they are written without being asked for: more than the kernel hands over at once, so that
/// appending, under the lane's lock, hardly ever waits for the disk.
const BUFFER_BYTES: usize = (1 << 20) + (128 << 10);

/// Memory as direct I/O wants it, for the part of a file from `start` on.
struct Buffer {
    memory: Vec<u8>,
    /// Where in `memory` the bytes begin.
    shift: usize,
    start: u64,
    length: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER_BYTES + BLOCK_BYTES];
        let shift = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, shift, start: 0, length: 0 }
    }

    fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.shift..][..self.length]
    }

    /// Its bytes and the zeros behind them that fill the last block.
    fn blocks(&self) -> &[u8] {
        &self.memory[self.shift..][..self.length.next_multiple_of(BLOCK_BYTES)]
    }

    /// Takes as many of `bytes` as there is room for.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(BUFFER_BYTES - self.length);
        self.memory[self.shift + self.length..][..count].copy_from_slice(&bytes[..count]);
        self.length += count;
        count
    }

    /// Goes on where `other` ends, with what is in its last block unless that is full.
    fn follow(&mut self, other: &Buffer) {
        let whole = other.length / BLOCK_BYTES * BLOCK_BYTES;
        (self.start, self.length) = (other.start + whole as u64, 0);
        self.push(&other.bytes()[whole..]);
    }

    fn fill_last_block(&mut self) {
        let rest = self.length.next_multiple_of(BLOCK_BYTES) - self.length;
        self.memory[self.shift + self.length..][..rest].fill(0);
    }

    /// Copies what it holds of the part of the file from `offset` on.
    fn copy_to(&self, target: &mut [u8], offset: u64) {
        let (from, to) = (offset.max(self.start), (offset + target.len() as u64).min(self.end()));
        if from < to {
            let count = distance(from, to);
            let bytes = &self.bytes()[distance(self.start, from)..][..count];
            target[distance(offset, from)..][..count].copy_from_slice(bytes);
        }
    }
}

/// Bytes between two offsets of what is in memory.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

/// How much is filled at a time: commits wait behind it.
const PIECE_BYTES: usize = 128 << 10;

#[repr(align(4096))]
struct Aligned([u8; PIECE_BYTES]);

static ALIGNED_ZEROS: Aligned = Aligned([0; PIECE_BYTES]);
/// Zeros in memory as direct I/O wants it.
pub(super) static ZEROS: &[u8] = &ALIGNED_ZEROS.0;

/// Opens a file to write to it past the page cache, in whole blocks, and clears its first one; `None` if the file system has no
/// direct I/O.
pub(super) fn open(path: &Path, flags: i32) -> io::Result<Option<File>> {
    let options = nix::libc::O_DIRECT | flags;
    // Some file systems take the flag, and then no write.
    let opened = OpenOptions::new().write(true).custom_flags(options).open(path);
    let probed = opened.and_then(|file| file.write_all_at(&ZEROS[..BLOCK_BYTES], 0).map(|()| file));
    match probed {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(None),
        probed => probed.map(Some),
    }
}

#[derive(Default)]
struct State {
    /// Takes what is written; `None` once all is on the disk and nothing more comes.
    filling: Option<Buffer>,
    /// Whether `filling` has bytes that were never on their way to the disk.
    unwritten: bool,
    /// On its way to the disk.
    leaving: Option<Arc<Buffer>>,
    /// For the next to leave.
    spare: Option<Buffer>,
    /// Whether nothing is written any more.
    finished: bool,
    /// Whether something was lost that was to be written, so that nobody may be told that it is on the disk.
    failed: bool,
}

impl State {
    fn refuse_if_failed(&self) -> io::Result<()> {
        if self.failed {
            Err(io::Error::other("an earlier write to the file failed, or was given up"))
        } else {
            Ok(())
        }
    }

    /// Lets go of all memory once it is needed for nothing.
    fn tidy(&mut self) {
        if self.finished && !self.unwritten && self.leaving.is_none() {
            (self.filling, self.spare) = (None, None);
        }
    }
}

/// The file. See the module.
pub(super) struct DirectFile {
    /// For all but appending.
    cached: LocalFile,
    /// A write to it is durable when it returns.
    direct: File,
    state: Mutex<State>,
    /// Held while writing; taken before `state`.
    writing: Mutex<()>,
}

impl DirectFile {
    /// Opens a file whose blocks have been written before, to append to it from its beginning; `None` if the file system has no
    /// direct I/O.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let cached = LocalFile(OpenOptions::new().read(true).write(true).open(path)?);
        let Some(direct) = open(path, nix::libc::O_DSYNC)? else { return Ok(None) };
        // With pages of it cached each write would have to look for them.
        cached.drop_cache()?;
        let state = State { filling: Some(Buffer::new()), ..State::default() };
        Ok(Some(Self { cached, direct, state: Mutex::new(state), writing: Mutex::default() }))
    }

    fn write_out(&self) -> io::Result<()> {
        let _turn = lock(&self.writing);
        let leaving = {
            let mut state = lock(&self.state);
            state.refuse_if_failed()?;
            if !std::mem::take(&mut state.unwritten) {
                return Ok(());
            }
            let mut next = state.spare.take().unwrap_or_else(Buffer::new);
            let Some(filling) = &mut state.filling else { return Ok(()) };
            next.follow(filling);
            let mut leaving = std::mem::replace(filling, next);
            leaving.fill_last_block();
            let leaving = Arc::new(leaving);
            state.leaving = Some(Arc::clone(&leaving));
            leaving
        };
        let written = self.direct.write_all_at(leaving.blocks(), leaving.start);
        let mut state = lock(&self.state);
        state.leaving = None;
        state.failed |= written.is_err();
        state.spare = Arc::into_inner(leaving);
        state.tidy();
        written
    }
}

impl DiskFile for DirectFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let in_memory = {
            let state = lock(&self.state);
            let held = state.leaving.as_deref().into_iter().chain(state.filling.as_ref());
            // Of a block that both hold the newer one has more.
            held.map(|held| (held.copy_to(buffer, offset), held.start).1).min()
        };
        let on_disk =
            in_memory.map_or(buffer.len(), |start| distance(offset, start.max(offset)).min(buffer.len()));
        self.cached.read_exact_at(&mut buffer[..on_disk], offset)
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let taken = {
                    let mut state = lock(&self.state);
                    state.refuse_if_failed()?;
                    let Some(filling) = &mut state.filling else {
                        return Err(io::Error::other("a file that is not written to any more"));
                    };
                    assert_eq!(at, filling.end(), "only the end can be written to");
                    let taken = filling.push(rest);
                    state.unwritten |= taken > 0;
                    taken
                };
                if taken < rest.len() {
                    self.write_out()?;
                }
                at += taken as u64;
                rest = &rest[taken..];
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.write_out()
    }

    fn finish(&self) {
        let mut state = lock(&self.state);
        state.finished = true;
        state.tidy();
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.cached.set_len(length)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.cached.len_bytes()
    }

    fn map(&self, offset: u64, length: usize) -> io::Result<Mapping> {
        self.cached.map(offset, length)
    }

    fn give_up(&self) {
        let _nobody_writes = lock(&self.writing);
        *lock(&self.state) = State { failed: true, ..State::default() };
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.give_up();
        self.cached.drop_cache()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Disk, LocalDisk};
    use crate::storage::sim_disk::Random;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    const FILE_BYTES: usize = 2 << 20;

    struct Lab {
        directory: PathBuf,
        disk: LocalDisk,
    }

    impl Lab {
        /// A file full of what its last life left, beside the test's own program: `/tmp` may have no direct I/O.
        fn new(test: &str) -> Self {
            let directory = std::env::current_exe()
                .unwrap()
                .with_file_name(format!("direct-{test}-{}", std::process::id()));
            std::fs::create_dir(&directory).unwrap();
            let disk = LocalDisk::open(&directory, &[]).unwrap();
            disk.create("file").unwrap().write_all_at(&[&vec![0xaa; FILE_BYTES]], 0).unwrap();
            Self { directory, disk }
        }

        fn open(&self) -> DirectFile {
            DirectFile::open(&self.directory.join("file")).unwrap().expect("direct I/O")
        }

        /// How the one handle that is open on a file was opened.
        fn flags_of(&self, name: &str) -> i32 {
            let path = self.directory.join(name);
            let of = |handle: std::fs::DirEntry| {
                let info = Path::new("/proc/self/fdinfo").join(handle.file_name());
                (std::fs::read_link(handle.path()).ok()? == path)
                    .then(|| std::fs::read_to_string(info).unwrap())
            };
            let infos: Vec<String> =
                std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|handle| of(handle.ok()?)).collect();
            let [info] = infos.as_slice() else { panic!("{} handles", infos.len()) };
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            i32::from_str_radix(flags.trim(), 8).unwrap()
        }

        fn on_disk(&self, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            self.disk.open("file").unwrap().read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    #[test]
    fn what_was_written_is_read_at_once_and_on_the_disk_after_a_sync() {
        for seed in 0..40 {
            let lab = Lab::new("model");
            let (file, mut random, mut model) = (lab.open(), Random(seed), Vec::<u8>::new());
            let below =
                |random: &mut Random, bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
            let mut synced = 0;
            loop {
                let longest = if random.below(20) == 0 { 400_000 } else { 20_000 };
                let parts: Vec<Vec<u8>> = (0..1 + random.below(3))
                    .map(|_| vec![u8::try_from(random.below(256)).unwrap(); below(&mut random, longest)])
                    .collect();
                if model.len() + parts.iter().map(Vec::len).sum::<usize>() > FILE_BYTES {
                    break;
                }
                let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                file.write_all_at(&slices, model.len() as u64).unwrap();
                model.extend(parts.concat());
                if random.below(3) == 0 {
                    file.sync().unwrap();
                    synced = model.len();
                    assert!(lab.on_disk(synced) == model, "seed {seed}: {synced} bytes synced");
                }
                let from = below(&mut random, model.len() + 1);
                let mut found = vec![0; below(&mut random, model.len() - from + 1)];
                file.read_exact_at(&mut found, from as u64).unwrap();
                assert!(
                    found == model[from..from + found.len()],
                    "seed {seed}: read {} from {from}",
                    found.len()
                );
            }
            assert!(synced > 0, "seed {seed} synced nothing");
            file.finish();
            file.sync().unwrap();
            assert!(lock(&file.state).filling.is_none() && lab.on_disk(model.len()) == model);
            // Behind the end are zeros up to a whole block, and then what was there before.
            let whole = model.len().next_multiple_of(BLOCK_BYTES);
            let behind = lab.on_disk((whole + BLOCK_BYTES).min(FILE_BYTES));
            assert!(behind[model.len()..whole].iter().all(|byte| *byte == 0));
            assert!(behind[whole..].iter().all(|byte| *byte == 0xaa));
        }
    }

    #[test]
    fn others_read_and_write_while_a_sync_goes_on() {
        let lab = Lab::new("threads");
        let file = lab.open();
        let lines = 4000;
        let line = |number: usize| format!("{number:>255}\n").into_bytes();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..lines).for_each(|n| file.write_all_at(&[&line(n)], n as u64 * 256).unwrap());
                done.store(true, Ordering::SeqCst);
            });
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    file.sync().unwrap();
                }
            });
            let mut random = Random(7);
            while !done.load(Ordering::SeqCst) {
                let written = lock(&file.state).filling.as_ref().unwrap().end() / 256;
                if written > 0 {
                    let number = random.below(written);
                    let mut found = vec![0; 256];
                    file.read_exact_at(&mut found, number * 256).unwrap();
                    assert_eq!(found, line(usize::try_from(number).unwrap()));
                }
            }
        });
        file.sync().unwrap();
        assert!(lab.on_disk(lines * 256) == (0..lines).flat_map(line).collect::<Vec<u8>>());
    }

    #[test]
    fn what_never_reached_the_disk_is_forgotten_on_demand() {
        let lab = Lab::new("forget");
        let file = lab.open();
        file.write_all_at(&[&[1; 100]], 0).unwrap();
        file.drop_cache().unwrap();
        let mut found = [0; 100];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [0; 100], "what was there when the file was opened");
        // What was lost may not be taken for written, however late somebody asks.
        assert!(file.sync().is_err());
        assert!(file.write_all_at(&[&[2; 10]], 100).is_err());
    }

    #[test]
    fn a_file_is_filled_past_the_page_cache() {
        let lab = Lab::new("fill");
        let file = lab.disk.create_to_fill("spare").unwrap();
        assert_ne!(lab.flags_of("spare") & nix::libc::O_DIRECT, 0, "it goes through the page cache");
        for offset in (0..4).map(|nth| nth * ZEROS.len() as u64) {
            file.write_all_at(&[ZEROS], offset).unwrap();
        }
        file.sync().unwrap();
        let filled = std::fs::read(lab.directory.join("spare")).unwrap();
        assert_eq!((filled.len(), filled.iter().max()), (4 * ZEROS.len(), Some(&0)));
    }

    #[test]
    fn after_a_failed_write_nothing_is_called_durable() {
        let lab = Lab::new("failed");
        // A file that may not be written to, as a medium that refuses.
        let file = DirectFile { direct: File::open(lab.directory.join("file")).unwrap(), ..lab.open() };
        file.write_all_at(&[&[1; 100]], 0).unwrap();
        assert!(file.sync().is_err());
        assert!(file.sync().is_err(), "the second time, too");
        file.finish();
        assert!(file.sync().is_err() && file.write_all_at(&[&[2; 10]], 100).is_err());
    }
}
