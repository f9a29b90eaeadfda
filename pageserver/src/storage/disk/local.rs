//! A directory of a local file system as a disk.

use crate::storage::disk::cached::LocalFile;
use crate::storage::disk::direct::{self, DirectFile, Writers};
use crate::storage::disk::{Disk, DiskFile};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// [overlay](crate::storage::disk::overlay).
    pub fn open_read_only(root: &Path) -> io::Result<Self> {
        Ok(Self { root: root.to_path_buf(), writers: Writers::start()?, read_only: true })
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
}
