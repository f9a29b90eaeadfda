//! Contents of temporary files, which no start of Postgres needs.
//!
//! Postgres writes what a sort, a hash or the building of an index has no memory for to files in
//! directories `pgsql_tmp`, reads the files once more, and removes them. Files that a crash leaves
//! there Postgres removes unread at its next start. The lock file of Postgres is about the process
//! that runs. The server removes it before each start, since Postgres refuses an empty one.
//!
//! Names and lengths of temporary files are in the timeline, as of any other file. Their contents
//! are in files of the server's own, which have no name. So the contents reach no log, layer or
//! branch, a sync of them writes nothing, and they go with their tree. A branch reads zeros in
//! their place.

use crate::locks::lock;
use crate::storage::page::ROOT_INODE;
use nix::libc::O_TMPFILE;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Name of a directory of temporary files, and what the names in it begin with.
const PREFIX: &[u8] = b"pgsql_tmp";

/// The lock file, which Postgres syncs six times while it starts.
pub(super) const LOCK_FILE: &[u8] = b"postmaster.pid";

/// The directory of the files that hold contents.
pub struct ScratchDir {
    path: PathBuf,
    /// Files that are open.
    open: AtomicU64,
    /// How many may be open: the process has other uses for file descriptors.
    most: u64,
}

/// A file without a name, which holds the contents of a temporary file.
pub(super) struct ScratchFile {
    file: File,
    dir: Arc<ScratchDir>,
}

/// What is temporary in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Temporary {
    /// Nothing but a directory with the prefix for a name, as Postgres has one for each tablespace.
    Nothing,
    /// What Postgres would remove: names with the prefix.
    Prefixed,
    /// All, since the directory is temporary itself.
    All,
}

/// The temporary files of a tree.
#[derive(Default)]
pub(super) struct Scratch {
    /// Without one, the store keeps the contents like those of other files.
    dir: Option<Arc<ScratchDir>>,
    directories: Mutex<HashMap<u64, Temporary>>,
    files: Mutex<HashMap<u64, Arc<ScratchFile>>>,
}

impl ScratchDir {
    /// Makes the directory `path` if it is missing. `None` if the file system there has no files
    /// without a name.
    pub fn prepare(path: &Path) -> Option<Arc<Self>> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .and_then(|()| nameless(path));
        let limit = made.and_then(|_| Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1));
        match limit {
            Ok(limit) => {
                let (path, open) = (path.to_owned(), AtomicU64::new(0));
                Some(Arc::new(Self { path, open, most: limit / 4 }))
            }
            Err(error) => {
                tracing::warn!(
                    place = %path.display(), %error,
                    "what queries spill goes to the store, and its history"
                );
                None
            }
        }
    }
}

fn nameless(directory: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(O_TMPFILE).open(directory)
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        self.dir.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ScratchFile {
    /// Makes a file; `None` if there are as many as may be.
    fn make(dir: &Arc<ScratchDir>) -> io::Result<Option<Self>> {
        if dir.open.fetch_add(1, Ordering::SeqCst) >= dir.most {
            dir.open.fetch_sub(1, Ordering::SeqCst);
            return Ok(None);
        }
        let file = nameless(&dir.path).inspect_err(|_| {
            dir.open.fetch_sub(1, Ordering::SeqCst);
        })?;
        Ok(Some(Self { file, dir: Arc::clone(dir) }))
    }

    /// Fills `buffer` from `offset`, with zeros where nothing was written.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer[done..].fill(0);
        Ok(())
    }

    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Cuts off what lies behind `length`.
    pub(super) fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
}

impl Scratch {
    /// With contents in `dir`, if there is one.
    pub(super) fn at(dir: Option<Arc<ScratchDir>>) -> Self {
        Self { dir, ..Self::default() }
    }

    /// Learns that `name` in `directory` is the directory `inode`.
    pub(super) fn meet_directory(&self, directory: u64, name: &[u8], inode: u64) {
        if self.dir.is_none() {
            return;
        }
        let mut known = lock(&self.directories);
        let temporary = match known.get(&directory) {
            Some(Temporary::All) => Temporary::All,
            Some(Temporary::Prefixed) if name.starts_with(PREFIX) => Temporary::All,
            Some(Temporary::Nothing) if name == PREFIX => Temporary::Prefixed,
            // The default tablespace, and the directory of this version of Postgres in any other.
            _ if (directory == ROOT_INODE && name == b"base") || name.starts_with(b"PG_") => {
                Temporary::Nothing
            }
            _ => return,
        };
        known.insert(inode, temporary);
    }

    /// Whether what gets this name is temporary.
    pub(super) fn takes(&self, directory: u64, name: &[u8]) -> bool {
        if directory == ROOT_INODE {
            return name == LOCK_FILE;
        }
        match lock(&self.directories).get(&directory) {
            Some(Temporary::All) => true,
            Some(Temporary::Prefixed) => name.starts_with(PREFIX),
            Some(Temporary::Nothing) | None => false,
        }
    }

    /// Whether the inode may get this name: what is temporary must not become anything else.
    pub(super) fn lets_move(&self, inode: u64, directory: u64, name: &[u8]) -> bool {
        let holds =
            lock(&self.directories).get(&inode).is_some_and(|holds| *holds != Temporary::Nothing);
        !(holds || self.contents(inode).is_some()) || self.takes(directory, name)
    }

    /// Makes the file for the contents of a new file of this name; `None` if the new file is not
    /// temporary, or if the store has to keep its contents.
    pub(super) fn make(&self, directory: u64, name: &[u8]) -> Option<ScratchFile> {
        let dir = self.dir.as_ref().filter(|_| self.takes(directory, name))?;
        ScratchFile::make(dir).unwrap_or_else(|error| {
            tracing::warn!(
                place = %dir.path.display(), %error,
                "no temporary file can be made: contents of one go to the store, and its history"
            );
            None
        })
    }

    /// Keeps the contents of the inode in this file from now on.
    pub(super) fn keep(&self, inode: u64, contents: ScratchFile) {
        lock(&self.files).insert(inode, Arc::new(contents));
    }

    /// The file with the contents of the inode, if the inode is a temporary file.
    pub(super) fn contents(&self, inode: u64) -> Option<Arc<ScratchFile>> {
        lock(&self.files).get(&inode).cloned()
    }

    /// Forgets an inode, and drops its contents.
    pub(super) fn forget(&self, inode: u64) {
        lock(&self.directories).remove(&inode);
        let gone = lock(&self.files).remove(&inode);
        // Not under the lock: closing a long file takes its time.
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::owners::Owners;
    use crate::fs::tree::{NewInode, Tree, Wanted};
    use crate::storage::disk::Disk;
    use crate::storage::disk::sim::SimDisk;
    use crate::storage::log::format::FileKind;
    use crate::storage::store::Store;
    use crate::storage::timeline::Timeline;
    use nix::errno::Errno;

    fn dir() -> Arc<ScratchDir> {
        ScratchDir::prepare(&std::env::temp_dir()).unwrap()
    }

    /// With a root, on the disk; the store has to live as long.
    fn tree() -> (SimDisk, Store, Arc<Timeline>, Tree) {
        let disk = SimDisk::default();
        let store = Store::open(Arc::new(disk.clone()) as Arc<dyn Disk>, 1).unwrap();
        let timeline = store.timeline(store.create_root().unwrap()).unwrap();
        let tree = Tree::to_run(Arc::clone(&timeline), Owners::default(), Some(dir()));
        tree.make_root((0, 0), 1).unwrap();
        (disk, store, timeline, tree)
    }

    /// With the directory 7 for temporary files.
    fn scratch() -> Scratch {
        let scratch = Scratch::at(Some(dir()));
        scratch.meet_directory(ROOT_INODE, b"base", 6);
        scratch.meet_directory(6, b"pgsql_tmp", 7);
        scratch
    }

    #[test]
    fn temporary_is_what_postgres_removes_unread() {
        let scratch = scratch();
        scratch.meet_directory(7, b"pgsql_tmp81.0.fileset", 8);
        scratch.meet_directory(7, b"other", 9);
        assert!(!scratch.takes(6, b"pgsql_tmp81.0"), "not in the directory");
        assert!(scratch.takes(7, b"pgsql_tmp81.0") && !scratch.takes(7, b"1.0"));
        assert!(scratch.takes(8, b"1.0") && !scratch.takes(9, b"1.0"));
        scratch.meet_directory(30, b"PG_15_202209061", 31);
        scratch.meet_directory(31, b"pgsql_tmp", 32);
        scratch.meet_directory(33, b"pgsql_tmp", 34);
        assert!(
            scratch.takes(32, b"pgsql_tmp1") && !scratch.takes(34, b"pgsql_tmp1"),
            "somebody's own"
        );
        let nowhere = Scratch::default();
        nowhere.meet_directory(ROOT_INODE, b"base", 6);
        nowhere.meet_directory(6, b"pgsql_tmp", 7);
        assert!(!nowhere.takes(7, b"pgsql_tmp81.0"));
    }

    #[test]
    fn there_are_only_so_many() {
        let dir =
            Arc::new(ScratchDir { most: 2, path: std::env::temp_dir(), open: AtomicU64::new(0) });
        let make = || ScratchFile::make(&dir).unwrap();
        let (first, second) = (make(), make());
        assert!(first.is_some() && second.is_some() && make().is_none());
        drop(first);
        assert!(make().is_some());
    }

    #[test]
    fn where_none_can_be_made_the_store_keeps_contents() {
        let path = std::env::temp_dir().join("coppice-scratch-that-somebody-removed");
        let dir = Arc::new(ScratchDir { most: 2, path, open: AtomicU64::new(0) });
        let scratch = Scratch::at(Some(Arc::clone(&dir)));
        assert!((0..3).all(|_| scratch.make(ROOT_INODE, LOCK_FILE).is_none()));
        assert_eq!(dir.open.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_tree_keeps_contents_apart_and_what_is_temporary_stays_so() {
        let (disk, _store, timeline, tree) = tree();
        let make = |directory: u64, name: &[u8], kind: FileKind| {
            tree.make(
                directory,
                name,
                &NewInode { kind, mode: 0o700, owner: (0, 0), target: &[] },
                1,
            )
            .unwrap()
            .0
        };
        let base = make(ROOT_INODE, b"base", FileKind::Directory);
        let directory = make(base, b"pgsql_tmp", FileKind::Directory);
        let file = make(directory, b"pgsql_tmp1.0", FileKind::File);
        let read = |tree: &Tree| {
            let (bytes, range) = tree.read(file, 0, 1 << 20).unwrap();
            bytes[range].to_vec()
        };
        disk.take_trace();
        tree.write(file, 100, &[7; 20_000]).unwrap();
        assert_eq!(read(&tree), [[0; 100].as_slice(), &[7; 20_000]].concat());
        let cut = |size| {
            tree.set_attributes(file, &Wanted { size: Some(size), ..Wanted::default() }).unwrap()
        };
        cut(5_000);
        cut(6_000);
        let expected = [[0; 100].as_slice(), &[7; 4_900], &[0; 1_000]].concat();
        assert_eq!(read(&tree), expected, "what was cut off came back");
        let written: usize = disk
            .take_trace()
            .iter()
            .filter_map(|line| line.rsplit('+').next()?.parse::<usize>().ok())
            .sum();
        assert!(written < 1_000, "{written} bytes went to the store");
        let refused = |outcome: crate::fs::error::TreeResult<()>| outcome.unwrap_err().errno();
        assert_eq!(refused(tree.punch(file, 0, 100)), Errno::EOPNOTSUPP);
        let (from, to) = ((directory, b"pgsql_tmp1.0".as_slice()), (base, b"kept".as_slice()));
        assert_eq!(refused(tree.rename(from, to, false, 2)), Errno::EXDEV);
        assert_eq!(refused(tree.rename((base, b"pgsql_tmp"), to, false, 2)), Errno::EXDEV);
        assert_eq!(refused(tree.hard_link(file, base, b"kept", 2).map(drop)), Errno::EXDEV);
        tree.rename(from, (directory, b"pgsql_tmp2.0"), false, 2).unwrap();
        assert_eq!(read(&tree), expected);
        assert_eq!(read(&Tree::new(Arc::clone(&timeline))), [0; 6_000], "as a branch has it");
        tree.remove(directory, b"pgsql_tmp2.0", false, 3).unwrap();
        assert_eq!(read(&tree), expected, "it is open");
        tree.reap(file).unwrap();
        assert_eq!(tree.read(file, 0, 1).unwrap_err().errno(), Errno::ESTALE);
    }

    #[test]
    fn the_lock_file_is_durable_nowhere_and_nothing_waits_for_it() {
        let (disk, _store, timeline, tree) = tree();
        let new = NewInode { kind: FileKind::File, mode: 0o600, owner: (0, 0), target: &[] };
        let syncs = |name: &[u8]| {
            let (inode, _) = tree.make(ROOT_INODE, name, &new, 1).unwrap();
            tree.write(inode, 0, b"4711\n").unwrap();
            disk.take_trace();
            let (done, outcome) = std::sync::mpsc::channel();
            tree.sync(inode, false, Box::new(move |result| done.send(result).unwrap()));
            outcome.recv().unwrap().unwrap();
            (inode, disk.take_trace().iter().filter(|line| line.contains("sync")).count())
        };
        let (inode, waited) = syncs(LOCK_FILE);
        assert_eq!(waited, 0);
        assert_ne!(syncs(b"postmaster.opts").1, 0);
        let read = |tree: &Tree| {
            let (bytes, range) = tree.read(inode, 0, 100).unwrap();
            bytes[range].to_vec()
        };
        assert_eq!((read(&tree), read(&Tree::new(timeline))), (b"4711\n".to_vec(), vec![0; 5]));
    }
}
