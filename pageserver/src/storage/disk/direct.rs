//! Files of a local disk that are written past the operating system's page cache: those that are
//! appended to, and those that are filled with zeros beforehand.
//!
//! Bytes are copied into a buffer. A thread in the background writes full buffers, so appending
//! waits for the disk only when it outruns the thread. The rest stays in memory until the next
//! sync. For a file whose blocks were written before, a sync is one system call. The page cache
//! would cost fresh memory for each page, keep a second copy of what the mount above caches as
//! well, and be searched again at write-back.
//!
//! Invariants: writes go to the end. The buffers in `leaving`, oldest first, and `filling` hold all
//! of the file from where the first of them begins; the disk has what lies before. A last block
//! that is not full is written again together with what comes next. Its first bytes are the same
//! then, so a write that is cut short leaves them as they were.

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;

use crate::locks::lock;
use crate::storage::disk::buffer::{Buffer, distance};
use crate::storage::disk::cached::LocalFile;
use crate::storage::disk::slow::Watch;
use crate::storage::disk::{BLOCK_BYTES, DiskFile, Mapping, ZEROS};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

/// Threads that write full buffers. A file is written by one at a time.
const WRITERS: usize = 2;
/// Full buffers of a file that may be in memory. An append helps to write more.
const MAX_LEAVING: usize = 4;

/// Opens a file to write to it past the page cache, in whole blocks, and clears its first one;
/// `None` if the file system has no direct I/O.
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

/// The threads that write full buffers, files in turns; they end when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Writers(Arc<mpsc::Sender<Arc<Appended>>>);

impl Writers {
    /// Starts the threads.
    pub(in crate::storage) fn start() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Arc<Appended>>();
        let (sender, receiver) = (Arc::new(sender), Arc::new(Mutex::new(receiver)));
        for nth in 0..WRITERS {
            let (receiver, again) = (Arc::clone(&receiver), Arc::downgrade(&sender));
            let run = move || {
                // The guard is gone before the file is written.
                while let Ok(file) = { lock(&receiver).recv() } {
                    if file.write_behind()
                        && let Some(sender) = again.upgrade()
                    {
                        // This thread receives, so it is not closed.
                        let _ = sender.send(file);
                    }
                }
            };
            std::thread::Builder::new().name(format!("write-{nth}")).spawn(run)?;
        }
        Ok(Self(sender))
    }
}

/// What became of the first write or sync that failed.
struct FirstFailure(io::ErrorKind, String);

#[derive(Default)]
struct AppendState {
    /// Takes what is written; `None` once all is on the disk and nothing more comes.
    filling: Option<Buffer>,
    /// Whether `filling` has bytes that were never on their way to the disk.
    unwritten: bool,
    /// On their way to the disk, oldest first.
    leaving: VecDeque<Arc<Buffer>>,
    /// Whether a thread is to write them.
    called: bool,
    /// Whether nothing is written any more.
    finished: bool,
    /// Why something was lost that was to be written, so that nobody may be told that it is on the
    /// disk.
    failed: Option<FirstFailure>,
}

impl AppendState {
    fn refuse_if_failed(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(FirstFailure(kind, why)) => {
                Err(io::Error::new(*kind, format!("{why} (an earlier write to the file)")))
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed.get_or_insert_with(|| FirstFailure(error.kind(), error.to_string()));
    }

    /// Lets `filling` leave.
    fn turn_over(&mut self) {
        let Some(mut full) = self.filling.take() else { return };
        let end = self.leaving.back().map_or(full.start(), |last| last.end());
        assert!(full.start() <= end, "nothing from {end} to {} is in memory", full.start());
        self.filling = Some(Buffer::following(&full));
        self.unwritten = false;
        full.fill_last_block();
        self.leaving.push_back(Arc::new(full));
    }

    /// Frees all memory once nothing needs it.
    fn tidy(&mut self) {
        if self.finished && !self.unwritten && self.leaving.is_empty() {
            self.filling = None;
        }
    }
}

/// What a [`DirectFile`] shares with the threads that write it.
struct Appended {
    direct: File,
    /// Whether a write is durable only after a sync, because it may have made the file grow.
    grows: bool,
    state: Mutex<AppendState>,
    /// Held while writing; taken before `state`.
    writing: Mutex<()>,
}

impl Appended {
    /// Writes as many of the buffers that are leaving, oldest first, as `count` says once it is
    /// this one's turn.
    fn write_out(&self, count: impl FnOnce(&mut AppendState) -> usize) -> io::Result<()> {
        let _turn = lock(&self.writing);
        let count = {
            let mut state = lock(&self.state);
            state.refuse_if_failed()?;
            count(&mut state)
        };
        for _ in 0..count {
            // Only the holder of the turn takes one away.
            let Some(leaving) = lock(&self.state).leaving.front().map(Arc::clone) else { break };
            let written = self.direct.write_all_at(leaving.blocks(), leaving.start());
            let mut state = lock(&self.state);
            if let Err(error) = written {
                // What is in memory can still be read.
                state.fail(&error);
                return Err(error);
            }
            state.leaving.pop_front();
            state.tidy();
        }
        Ok(())
    }

    /// Writes one full buffer; whether there are more. The next append or sync returns an
    /// error.
    fn write_behind(&self) -> bool {
        let watch = Watch::new("write of a log");
        let written = self.write_out(|state| state.leaving.len().min(1));
        drop(watch);
        let mut state = lock(&self.state);
        state.called = written.is_ok() && !state.leaving.is_empty();
        state.called
    }

    /// Writes until there is room again for what is appended. A sync has written it, or waits for
    /// its turn.
    fn catch_up(&self) -> io::Result<()> {
        while lock(&self.state).leaving.len() > MAX_LEAVING {
            self.write_out(|state| usize::from(state.leaving.len() > MAX_LEAVING))?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.write_out(|state| {
            if state.unwritten {
                state.turn_over();
            }
            state.leaving.len()
        })?;
        if self.grows {
            self.direct.sync_data().inspect_err(|error| lock(&self.state).fail(error))?;
        }
        Ok(())
    }
}

/// A file that is appended to. See the module.
pub(super) struct DirectFile {
    /// For all but appending.
    cached: LocalFile,
    appended: Arc<Appended>,
    writers: Writers,
}

impl DirectFile {
    /// Opens a file whose blocks have been written before, to append to it from its beginning;
    /// `None` if the file system has no direct I/O.
    pub(super) fn open(path: &Path, writers: &Writers) -> io::Result<Option<Self>> {
        let file = Self::open_with(path, nix::libc::O_DSYNC, writers)?;
        if let Some(file) = &file {
            // With pages of it cached each write would have to look for them.
            file.cached.drop_cache()?;
        }
        Ok(file)
    }

    /// The same of a file that is empty.
    pub(super) fn open_empty(path: &Path, writers: &Writers) -> io::Result<Option<Self>> {
        Self::open_with(path, 0, writers)
    }

    fn open_with(path: &Path, flags: i32, writers: &Writers) -> io::Result<Option<Self>> {
        let cached = LocalFile(OpenOptions::new().read(true).write(true).open(path)?);
        let Some(direct) = open(path, flags)? else { return Ok(None) };
        let state =
            Mutex::new(AppendState { filling: Some(Buffer::new()), ..AppendState::default() });
        let appended = Appended { direct, grows: flags == 0, state, writing: Mutex::default() };
        Ok(Some(Self { cached, appended: Arc::new(appended), writers: writers.clone() }))
    }

    /// Appends what fits the buffer. Returns how much that was.
    fn push(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = lock(&self.appended.state);
        state.refuse_if_failed()?;
        let Some(filling) = &mut state.filling else {
            return Err(io::Error::other("a file that is not written to any more"));
        };
        assert_eq!(offset, filling.end(), "only the end can be written to");
        let taken = filling.push(bytes);
        if !filling.is_full() {
            state.unwritten |= taken > 0;
            return Ok(taken);
        }
        state.turn_over();
        if !std::mem::replace(&mut state.called, true) {
            // The threads live as long as a sender does, and this is one.
            let sent = self.writers.0.send(Arc::clone(&self.appended));
            assert!(sent.is_ok(), "the writing threads ended before their sender");
        }
        Ok(taken)
    }
}

/// What nobody can ask for any more is not written either.
impl Drop for DirectFile {
    fn drop(&mut self) {
        self.discard();
    }
}

impl DiskFile for DirectFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let in_memory = {
            let state = lock(&self.appended.state);
            let held = state.leaving.iter().map(|leaving| &**leaving).chain(state.filling.as_ref());
            // Of a block that two hold the newer one has more.
            held.map(|held| (held.copy_to(buffer, offset), held.start()).1).min()
        };
        let on_disk = in_memory
            .map_or(buffer.len(), |start| distance(offset, start.max(offset)).min(buffer.len()));
        self.cached.read_exact_at(&mut buffer[..on_disk], offset)
    }

    fn will_read(&self, offset: u64, length: u64) {
        self.cached.will_read(offset, length);
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let taken = self.push(rest, at)?;
                at += taken as u64;
                rest = &rest[taken..];
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.appended.sync()
    }

    fn catch_up(&self) -> io::Result<()> {
        self.appended.catch_up()
    }

    fn finish(&self) {
        let mut state = lock(&self.appended.state);
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

    fn discard(&self) -> bool {
        let _nobody_writes = lock(&self.appended.writing);
        let mut state = lock(&self.appended.state);
        let given_up =
            FirstFailure(io::ErrorKind::Other, "what was not on the disk was given up".to_owned());
        let before = std::mem::replace(
            &mut *state,
            AppendState { failed: Some(given_up), ..AppendState::default() },
        );
        before.failed.is_none()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.discard();
        self.cached.drop_cache()
    }
}
