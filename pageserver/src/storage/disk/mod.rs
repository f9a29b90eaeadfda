//! The only door from the page store to a file system.
//!
//! Names are relative to the store's directory and have at most one `/`. Every call either does all
//! it says or returns the error; of a write that may stay in memory, the next write or sync of the
//! file returns it. Nothing here retries a failed write or sync. [`crate::storage::disk::sim`] is
//! the twin that forgets unsynced bytes on command.

mod buffer;
pub(in crate::storage) mod direct;
pub mod overlay;
pub mod sim;
mod sim_contents;
pub mod slow;

use crate::storage::disk::direct::{DirectFile, Writers};
use crate::sys;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Nothing more is written. What writing takes is let go of when all that was written has been
    /// synced.
    fn finish(&self) {}
    /// What was written and not synced need not be kept. When it returns, nothing of it is on its
    /// way to the medium. False if a write that was on its way had failed.
    fn give_up(&self) -> bool {
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

/// A directory of a local file system.
pub struct LocalDisk {
    root: PathBuf,
    writers: Writers,
    /// Whether files are opened for reading only.
    read_only: bool,
}

impl LocalDisk {
    /// The directory `root`, made if missing along with `directories` in it.
    pub fn open(root: &Path, directories: &[&str]) -> io::Result<Self> {
        for directory in directories {
            fs::create_dir_all(root.join(directory))?;
        }
        let (writers, read_only) = (Writers::start()?, false);
        let disk = Self { root: root.to_path_buf(), writers, read_only };
        disk.sync_directory("")?;
        Ok(disk)
    }

    /// The directory `root` as it is, to be looked at through an
    /// [`overlay`].
    pub fn open_read_only(root: &Path) -> io::Result<Self> {
        Ok(Self { root: root.to_path_buf(), writers: Writers::start()?, read_only: true })
    }
}

/// What is read together: of compressed pages, which lie close, the next that is wanted is likely
/// in it.
const AROUND_BYTES: u64 = 32 << 10;

/// A file through the page cache.
pub(in crate::storage) struct LocalFile(pub(in crate::storage) fs::File);

impl LocalFile {
    fn advise(&self, offset: u64, length: u64, advice: PosixFadviseAdvice) -> io::Result<()> {
        let (from, count) = (i64::try_from(offset), i64::try_from(length));
        let (from, count) = (from.map_err(io::Error::other)?, count.map_err(io::Error::other)?);
        Ok(posix_fadvise(&self.0, from, count, advice)?)
    }
}

impl DiskFile for LocalFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn read_around_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = offset / AROUND_BYTES * AROUND_BYTES;
        let end = (offset + buffer.len() as u64).next_multiple_of(AROUND_BYTES);
        self.will_read(start, end - start);
        self.read_exact_at(buffer, offset)
    }

    fn will_read(&self, offset: u64, length: u64) {
        let _ = self.advise(offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }

    fn write_all_at(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let at = i64::try_from(offset).map_err(io::Error::other)?;
            // An interrupted call wrote nothing; that is not a failure of the disk.
            let written = match nix::sys::uio::pwritev(&self.0, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write_out(&self, offset: u64, length: u64) -> io::Result<()> {
        sys::write_out(&self.0, offset, length)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn map(&self, offset: u64, length: usize) -> io::Result<Mapping> {
        // An empty mapping is an error of mmap(2).
        if length == 0 {
            Ok(Box::new(Vec::new()))
        } else {
            crate::sys::map(&self.0, offset, length)
        }
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.advise(0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
    }
}

impl Disk for LocalDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!self.read_only).open(self.root.join(name))?;
        Ok(Arc::new(LocalFile(file)))
    }

    fn open_to_append(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match DirectFile::open(&self.root.join(name), &self.writers)? {
            Some(file) => Ok(Arc::new(file)),
            None => self.open(name),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Arc::new(LocalFile(options.open(self.root.join(name))?)))
    }

    fn create_to_append(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let cached = self.create(name)?;
        match DirectFile::open_empty(&self.root.join(name), &self.writers) {
            Ok(Some(file)) => Ok(Arc::new(file)),
            Ok(None) => Ok(cached),
            Err(error) => {
                // Nobody knows of it yet. What matters is why it cannot be written to.
                let _ = self.remove(name);
                Err(error)
            }
        }
    }

    fn create_to_fill(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let cached = self.create(name)?;
        match direct::open(&self.root.join(name), 0)? {
            Some(file) => Ok(Arc::new(LocalFile(file))),
            None => Ok(cached),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(name))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.root.join(directory))? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        fs::File::open(self.root.join(directory))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.root)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    fn total_bytes(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.root)?;
        Ok(stat.blocks() * stat.fragment_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::Random;

    /// Bytes that this thread had the system read from a medium; `None` where that is not counted.
    fn asked_for() -> Option<u64> {
        let counts = fs::read_to_string("/proc/thread-self/io").ok()?;
        counts.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok())
    }

    #[test]
    fn what_is_removed_while_files_are_listed_is_not_listed() {
        let root = std::env::temp_dir().join(format!("coppice-list-{}", std::process::id()));
        let disk = LocalDisk::open(&root, &["d"]).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let listed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let names: Vec<_> = (0..50).map(|nth| root.join(format!("d/{nth}"))).collect();
                    names.iter().for_each(|name| fs::write(name, "x").unwrap());
                    names.iter().for_each(|name| fs::remove_file(name).unwrap());
                }
            });
            let listed: io::Result<Vec<_>> = (0..5000).map(|_| disk.list("d")).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            listed
        });
        fs::remove_dir_all(root).unwrap();
        listed.unwrap();
    }

    #[test]
    fn a_read_of_the_medium_brings_what_lies_around() {
        // Beside the test's own program: `/tmp` may be in memory.
        let name = format!("around-{}", std::process::id());
        let path = std::env::current_exe().unwrap().with_file_name(name);
        // Bytes that no file system can compress, which would read more at a time.
        let mut random = Random(1);
        let written: Vec<u8> =
            (0..4 * AROUND_BYTES + 100).map(|_| random.below(256).to_le_bytes()[0]).collect();
        fs::write(&path, &written).unwrap();
        let file = LocalFile(OpenOptions::new().read(true).open(&path).unwrap());
        fs::remove_file(&path).unwrap();
        file.sync().unwrap();
        let read = |at: u64, length: usize| {
            let (before, mut bytes) = (asked_for(), vec![0; length]);
            file.read_around_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, written[usize::try_from(at).unwrap()..][..length]);
            asked_for().zip(before).map_or(0, |(after, before)| after - before)
        };
        file.drop_cache().unwrap();
        if read(AROUND_BYTES + 5000, 100) == 0 {
            return println!("skipped: nothing was read from a medium, or it is not counted");
        }
        let near =
            [AROUND_BYTES, AROUND_BYTES + 20_000, 2 * AROUND_BYTES - 100].map(|at| read(at, 100));
        assert_eq!(near, [0; 3], "read once more");
        assert!(read(3 * AROUND_BYTES, 100) > 0, "read without being asked for");
        assert!(read(4 * AROUND_BYTES - 10, 110) > 0);
        read(0, written.len());
        let beyond = file.read_around_at(&mut [0; 6], written.len() as u64 - 5);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
