//! The catalog's file, as `redb` wants it, with room written out ahead.
//!
//! `redb` doubles its file when it has no free page left, shrinks it when much of it is free, and
//! refuses everything after one failed write. On a full disk a deletion would fail, though it is
//! what frees space. So would the next opening, which folds in the journal. Two rules prevent that:
//!
//! - Either the file has as many free pages as it takes to write all others once more and fold the
//!   journal, or a reserve as long as the file is written out behind it.
//! - A change that adds something is refused while there is no room for the reserve.
//!
//! The file on disk never shrinks. An opening hands all that is written out to `redb`.
//!
//! `redb` never reads from its header that its newest change is to be trusted, so it checks every
//! checksum before it believes a page.

use crate::locks::lock;
use crate::storage::catalog::journal::JOURNAL_BYTES;
use crate::storage::disk::DiskFile;
use crate::storage::sabotage::{self, Defect};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const ZEROS_BYTES: usize = 1 << 20;
/// What `redb` counts the length of its file in.
const PAGE_BYTES: u64 = 4096;
/// What a full journal adds at most, in pages of which half are full.
const FOLD_BYTES: u64 = 2 * JOURNAL_BYTES as u64;
/// Where the header of `redb`, at the file's start, says how the file was left.
pub(in crate::storage) const STATE_AT: usize = 9;
/// Its newest change took two syncs, so that `redb` reads it before, or without, looking at
/// checksums.
pub(in crate::storage) const TRUSTED: u8 = 4;

/// What `redb` reads and writes.
///
/// Invariant: `believed <= written`, the whole pages of the file. After an opening both are the
/// same.
pub(super) struct CatalogFile {
    file: Arc<dyn DiskFile>,
    lengths: Mutex<Lengths>,
    /// Whether it stays as it is from now on.
    refuses: AtomicBool,
}

struct Lengths {
    believed: u64,
    written: u64,
    /// What should be written out.
    wanted: u64,
}

impl CatalogFile {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        // A crash while the file grew may have left a part of a page at its end, with which `redb`
        // would refuse it.
        let written = file.len_bytes()? / PAGE_BYTES * PAGE_BYTES;
        let lengths = Mutex::new(Lengths { believed: written, written, wanted: written });
        Ok(Self { file, lengths, refuses: AtomicBool::new(false) })
    }

    /// Lets nothing be changed any more.
    pub(super) fn refuse_writes(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    fn require_open(&self) -> io::Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            Err(io::Error::other("the catalog is closed"))
        } else {
            Ok(())
        }
    }

    /// Learns how many pages are in use. If those that are not are too few to write all of these
    /// once more, and what a journal holds, there is to be a reserve in which `redb` can double its
    /// file.
    pub(super) fn want_reserve(&self, used_pages: u64) {
        let mut lengths = lock(&self.lengths);
        if lengths.believed < 2 * used_pages * PAGE_BYTES + FOLD_BYTES {
            lengths.wanted =
                lengths.wanted.max(lengths.believed + lengths.believed.max(FOLD_BYTES));
        }
    }

    /// Makes sure that there is room in reserve.
    pub(super) fn reserve(&self) -> io::Result<()> {
        let mut lengths = lock(&self.lengths);
        let wanted = lengths.wanted;
        if wanted > lengths.written { self.write_out(&mut lengths, wanted) } else { Ok(()) }
    }

    /// Lengthens the file to `length`, with blocks that the disk has really given.
    fn write_out(&self, lengths: &mut Lengths, length: u64) -> io::Result<()> {
        assert!(length > lengths.written, "{length} bytes after {}", lengths.written);
        let grown = self.file.set_len(length).and_then(|()| {
            let zeros = vec![0; ZEROS_BYTES];
            let mut offset = lengths.written;
            while offset < length {
                let count =
                    usize::try_from(length - offset).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
                self.file.write_all_at(&[&zeros[..count]], offset)?;
                offset += count as u64;
            }
            self.file.sync()
        });
        if grown.is_ok() {
            lengths.written = length;
        } else {
            // What was not all given is given back; if that fails too, the file is longer than
            // needed.
            let _ = self.file.set_len(lengths.written);
        }
        grown
    }
}

impl std::fmt::Debug for CatalogFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("catalog")
    }
}

/// The part of the file's owner that `redb` holds.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<CatalogFile>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0.lengths).believed)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.file.read_exact_at(out, offset)?;
        if offset == 0
            && let Some(state) = out.get_mut(STATE_AT)
        {
            *state &= !TRUSTED;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.require_open()?;
        let mut lengths = lock(&self.0.lengths);
        if length > lengths.written {
            self.0.write_out(&mut lengths, length)?;
        }
        lengths.believed = length;
        assert!(length <= lengths.written, "{length} bytes, {} written", lengths.written);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.require_open()?;
        if sabotage::active(Defect::CatalogSync) { Ok(()) } else { self.0.file.sync() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.require_open()?;
        self.0.file.write_all_at(&[data], offset)
    }
}
