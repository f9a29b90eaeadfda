//! The only door from the page store to a file system.
//!
//! Names are relative to the store's directory and have at most one `/`. Every call either does all
//! it says or returns the error; of a write that may stay in memory, the next write or sync of the
//! file returns it. Nothing here retries a failed write or sync. [`crate::storage::disk::sim`] is
//! the twin that forgets unsynced bytes on command.

mod buffer;
mod cached;
mod direct;
pub mod local;
pub mod overlay;
pub mod random;
pub mod sim;
mod sim_contents;
mod sim_state;
pub mod slow;

use std::io;
use std::sync::Arc;

/// What direct I/O must be a multiple of, in memory and in the file: the largest block of common
/// disks.
pub(in crate::storage) const BLOCK_BYTES: usize = 4096;

/// How much is filled at a time: commits wait behind it.
const PIECE_BYTES: usize = 128 << 10;

#[repr(align(4096))]
struct Aligned([u8; PIECE_BYTES]);

static ALIGNED_ZEROS: Aligned = Aligned([0; PIECE_BYTES]);
/// Zeros in memory as direct I/O wants it.
pub(in crate::storage) static ZEROS: &[u8] = &ALIGNED_ZEROS.0;

/// Bytes of a file, as if in memory.
pub type Mapping = Box<dyn AsRef<[u8]> + Send + Sync>;

/// An open file of the store.
pub trait DiskFile: Send + Sync {
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// The same of a file that never changes again. If the medium has to be asked, it is for what
    /// lies around as well.
    fn read_around_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
    /// Has the medium begin to read what is wanted soon. Advice: what comes of it, the read shows.
    fn will_read(&self, offset: u64, length: u64) {
        let _ = (offset, length);
    }
    /// Writes `parts` one behind the other from `offset`.
    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Makes the contents, and the length if it changed, survive a power loss.
    fn sync(&self) -> io::Result<()>;
    /// Brings `length` bytes from `offset` to the medium now, so that the sync that is to follow
    /// has little left to do. By itself it makes nothing durable.
    fn write_out(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }
    /// Waits, if more of what was written is in memory than there should be, until it is on its way
    /// to the medium.
    fn catch_up(&self) -> io::Result<()> {
        Ok(())
    }
    /// Nothing more is written. What writing takes is freed when all that was written has been
    /// synced.
    fn finish(&self) {}
    /// What was written and not synced need not be kept. When it returns, nothing of it is on its
    /// way to the medium. False if a write that was on its way had failed.
    fn discard(&self) -> bool {
        true
    }
    /// Cuts the file or extends it with zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Shows `length` bytes from `offset`, a multiple of 4096, of a file that never changes again.
    fn map(&self, offset: u64, length: usize) -> io::Result<Mapping>;
    /// Forgets what is cached, so that the next read asks the medium: after a failed sync the cache
    /// may hold bytes that never reached it.
    fn drop_cache(&self) -> io::Result<()>;
}

/// Makes what is read of `file` from now on what survives a power loss.
pub(in crate::storage) fn settle(file: &dyn DiskFile) -> io::Result<()> {
    // The page cache may hold bytes that a failed sync never wrote, or bytes not synced yet. Sync
    // and drop the cache, so that the next read asks the medium.
    file.sync()?;
    file.drop_cache()
}

/// A directory tree for the store's files.
pub trait Disk: Send + Sync {
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file whose blocks have all been written before, to write to it in order
    /// from its beginning. What is written may stay in memory until the next sync.
    fn open_to_append(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open(name)
    }
    /// Makes a new, empty file; `AlreadyExists` if there is one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a new, empty file to write to it in order from its beginning; `AlreadyExists` if there
    /// is one. What is written may stay in memory until the next sync.
    fn create_to_append(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.create(name)
    }
    /// Makes a new file to fill it once: in whole blocks of 4096 bytes, from memory that begins at
    /// a multiple of that. After an error there may be an empty one.
    fn create_to_fill(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.create(name)
    }
    /// Gives a file another name, replacing what has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names and lengths of the files in `directory`, in no particular order.
    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>>;
    /// Makes creations, renames and removals in `directory` survive a power loss.
    fn sync_directory(&self, directory: &str) -> io::Result<()>;
    /// Bytes that can still be written.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Bytes of the whole medium.
    fn total_bytes(&self) -> io::Result<u64>;
}
