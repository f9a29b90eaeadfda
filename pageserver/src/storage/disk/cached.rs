//! A file through the operating system's page cache.

use crate::storage::disk::{DiskFile, Mapping};
use crate::sys;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;

/// What is read together: of compressed pages, which lie close, the next that is wanted is likely
/// in it.
const AROUND_BYTES: u64 = 32 << 10;

/// A file through the page cache.
pub(super) struct LocalFile(pub(super) fs::File);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;
    use std::fs::OpenOptions;

    /// Bytes that this thread had the system read from a medium; `None` where that is not counted.
    fn asked_for() -> Option<u64> {
        let counts = fs::read_to_string("/proc/thread-self/io").ok()?;
        counts.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok())
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
