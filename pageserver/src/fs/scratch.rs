//! Contents of temporary files, which no start of Postgres reads.
//!
//! What a sort, a hash or the building of an index has no memory for, Postgres writes to files in directories
//! `pgsql_tmp`, reads once more, and removes; what a crash leaves there, its next start removes unread. Names and lengths of these files
//! are in the timeline, as of any other. Their contents are in files of the server's own, which have no name: so they come into no
//! log, layer or branch, no sync writes them, and they go with their tree. A branch finds zeros in their place.

use crate::locks::lock;
use nix::libc::O_TMPFILE;
use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Name of a directory of temporary files, and what the names in it begin with.
const PREFIX: &[u8] = b"pgsql_tmp";

/// What is temporary in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Temporary {
    /// What Postgres would remove: names with the prefix.
    Prefixed,
    /// All, since the directory is temporary itself.
    All,
}

/// The temporary files of a tree.
#[derive(Default)]
pub(super) struct Scratch {
    /// Where their contents are; if nowhere, they are where those of other files are.
    place: Option<PathBuf>,
    directories: Mutex<HashMap<u64, Temporary>>,
    files: Mutex<HashMap<u64, Arc<File>>>,
}

impl Scratch {
    /// With contents in nameless files in the directory `place`, if there is one.
    pub(super) fn in_directory(place: Option<PathBuf>) -> Self {
        Self { place, ..Self::default() }
    }

    /// Learns that `name` in `directory` is the directory `inode`.
    pub(super) fn meet_directory(&self, directory: u64, name: &[u8], inode: u64) {
        let temporary = if self.takes(directory, name) {
            Temporary::All
        } else if self.place.is_some() && name == PREFIX {
            Temporary::Prefixed
        } else {
            return;
        };
        lock(&self.directories).insert(inode, temporary);
    }

    /// Whether what gets this name is temporary.
    pub(super) fn takes(&self, directory: u64, name: &[u8]) -> bool {
        match lock(&self.directories).get(&directory) {
            Some(Temporary::All) => true,
            Some(Temporary::Prefixed) => name.starts_with(PREFIX),
            None => false,
        }
    }

    /// Whether the inode may get this name: what is temporary must not become anything else.
    pub(super) fn lets_move(&self, inode: u64, directory: u64, name: &[u8]) -> bool {
        let is_temporary = lock(&self.directories).contains_key(&inode) || self.file(inode).is_some();
        !is_temporary || self.takes(directory, name)
    }

    /// Makes a file for contents.
    pub(super) fn make(&self) -> io::Result<File> {
        nameless(self.place.as_ref().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Has `file` keep the contents of the inode.
    pub(super) fn keep(&self, inode: u64, file: File) {
        lock(&self.files).insert(inode, Arc::new(file));
    }

    /// What keeps the contents of the inode, if it is a temporary file.
    pub(super) fn file(&self, inode: u64) -> Option<Arc<File>> {
        lock(&self.files).get(&inode).cloned()
    }

    /// Lets go of what is known of an inode.
    pub(super) fn forget(&self, inode: u64) {
        lock(&self.files).remove(&inode);
        lock(&self.directories).remove(&inode);
    }
}

/// Makes the directory `place`; none if the file system there has no nameless files.
pub(super) fn prepare(place: &Path) -> Option<PathBuf> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(place).and_then(|()| nameless(place));
    match made {
        Ok(_) => Some(place.to_owned()),
        Err(error) => {
            tracing::warn!(place = %place.display(), %error, "temporary files of queries go to the store, and its history");
            None
        }
    }
}

fn nameless(place: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(O_TMPFILE).open(place)
}

/// Fills `buffer` from `offset`, with zeros where nothing was written.
pub(super) fn read(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> Scratch {
        Scratch::in_directory(Some(std::env::temp_dir()))
    }

    #[test]
    fn temporary_is_what_postgres_removes_unread() {
        let scratch = scratch();
        scratch.meet_directory(5, b"base", 6);
        scratch.meet_directory(6, b"pgsql_tmp", 7);
        scratch.meet_directory(7, b"pgsql_tmp81.0.fileset", 8);
        scratch.meet_directory(7, b"other", 9);
        assert!(!scratch.takes(6, b"pgsql_tmp81.0"), "not in the directory");
        assert!(scratch.takes(7, b"pgsql_tmp81.0") && !scratch.takes(7, b"1.0"));
        assert!(scratch.takes(8, b"1.0") && !scratch.takes(9, b"1.0"));
        let nowhere = Scratch::default();
        nowhere.meet_directory(6, b"pgsql_tmp", 7);
        assert!(!nowhere.takes(7, b"pgsql_tmp81.0"));
    }

    #[test]
    fn what_is_temporary_stays_so() {
        let scratch = scratch();
        scratch.meet_directory(6, b"pgsql_tmp", 7);
        scratch.keep(20, nameless(&std::env::temp_dir()).unwrap());
        assert!(scratch.lets_move(20, 7, b"pgsql_tmp1") && !scratch.lets_move(20, 7, b"kept"));
        assert!(!scratch.lets_move(20, 6, b"pgsql_tmp1") && !scratch.lets_move(7, 6, b"kept"));
        assert!(scratch.lets_move(21, 6, b"kept"));
        scratch.forget(20);
        assert!(scratch.file(20).is_none() && scratch.lets_move(20, 6, b"kept"));
    }

    #[test]
    fn nothing_was_written_reads_as_zeros() {
        let file = nameless(&std::env::temp_dir()).unwrap();
        file.write_all_at(b"abc", 10).unwrap();
        let mut found = [9; 20];
        read(&file, &mut found, 2).unwrap();
        assert_eq!(found, *b"\0\0\0\0\0\0\0\0abc\0\0\0\0\0\0\0\0\0");
    }
}
