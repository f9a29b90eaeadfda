//! A directory in the mount and one on the local file system that go through the same operations.

use super::mapped;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directories that every mirror has: those of the data lane, then those of the write-ahead lane.
const DIRECTORIES: [&[&str]; 2] = [&["", "a", "a/b"], &["pg_wal", "pg_wal/archive_status"]];
/// Names in each directory. Few, so that operations meet.
const NAMES: u64 = 7;
/// Longest file.
const MAX_BYTES: u64 = 160 << 10;
const MAX_WRITE_BYTES: u64 = 40 << 10;
/// Files held open over other operations, removal included.
const MAX_OPEN: usize = 4;

/// Numbers that look random and come from a seed.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// Bytes to write: noise, one byte, or zeros, which the store treats apart.
    pub fn bytes(&mut self, max: u64) -> Vec<u8> {
        let length = usize::try_from(self.below(max) + 1).expect("a short length");
        match self.below(4) {
            0 => vec![0; length],
            1 => vec![self.byte(); length],
            _ => (0..length).map(|_| self.byte()).collect(),
        }
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("a byte")
    }

    /// Mostly odd places, some on page boundaries.
    fn offset(&mut self) -> u64 {
        let offset = self.below(MAX_BYTES - MAX_WRITE_BYTES);
        if self.below(3) == 0 { offset / 8192 * 8192 } else { offset }
    }
}

/// The two directories, and the files open in both.
pub struct Mirror {
    mounted: PathBuf,
    local: PathBuf,
    open: Vec<[File; 2]>,
    random: Random,
}

/// What a file looks like from outside.
#[derive(PartialEq, Eq)]
struct Look {
    path: PathBuf,
    mode: u32,
    links: u64,
    contents: Vec<u8>,
}

impl Mirror {
    /// Mirrors two empty directories.
    pub fn new(mounted: &Path, local: &Path, seed: u64) -> Self {
        for root in [mounted, local] {
            for name in DIRECTORIES.concat().into_iter().filter(|name| !name.is_empty()) {
                fs::create_dir(root.join(name)).expect("make a directory of the mirror");
            }
        }
        Self::of(mounted, local, seed)
    }

    /// Mirrors two directories that hold the same already.
    pub fn of(mounted: &Path, local: &Path, seed: u64) -> Self {
        Self {
            mounted: mounted.into(),
            local: local.into(),
            open: Vec::new(),
            random: Random(seed),
        }
    }

    /// A mirror of a fork: `mounted` was forked from this one.
    pub fn fork(&self, mounted: &Path, local: &Path, seed: u64) -> Self {
        // With `cp`, because hard links have to stay hard links.
        let copied = Command::new("cp").arg("-a").arg(self.local.join(".")).arg(local).status();
        assert!(copied.expect("run cp").success());
        Self::of(mounted, local, seed)
    }

    /// Closes what is open, before the mount goes.
    pub fn close(&mut self) {
        self.open.clear();
    }

    /// Brings everything that the kernel holds back to the store.
    pub fn sync(&self) {
        for path in walk(&self.mounted) {
            if !metadata(&path).is_symlink() {
                File::open(&path).and_then(|file| file.sync_all()).expect("sync a file");
            }
        }
    }

    fn path(&mut self, lane: usize) -> PathBuf {
        let directories = DIRECTORIES[lane];
        let directory =
            directories[usize::try_from(self.random.below(directories.len() as u64)).unwrap_or(0)];
        Path::new(directory).join(format!("f{}", self.random.below(NAMES)))
    }

    /// Does the same on both sides; the outcomes must agree, down to the number of the error.
    #[track_caller]
    fn both<T: PartialEq + Debug>(&self, what: &str, operation: impl Fn(&Path) -> io::Result<T>) {
        let [mounted, local] = [&self.mounted, &self.local]
            .map(|root| operation(root).map_err(|error| error.raw_os_error()));
        assert_eq!(mounted, local, "{what}: the mount differs from the local file system");
    }

    /// Does the same with a file that is open on both sides.
    #[track_caller]
    fn both_open<T: PartialEq + Debug>(
        &mut self,
        what: &str,
        operation: impl Fn(&File) -> io::Result<T>,
    ) {
        if !self.open.is_empty() {
            let nth = usize::try_from(self.random.below(self.open.len() as u64)).unwrap_or(0);
            let [mounted, local] = self.open[nth]
                .each_ref()
                .map(|file| operation(file).map_err(|error| error.raw_os_error()));
            assert_eq!(
                mounted, local,
                "{what} of an open file: the mount differs from the local file system"
            );
        }
    }

    /// One operation by chance.
    pub fn step(&mut self) {
        let lane = usize::from(self.random.below(4) == 0);
        let path = &self.path(lane);
        match self.random.below(10) {
            0..=3 => self.change_contents(path),
            4..=5 => self.change_names(path, lane),
            6 => self.change_attributes(path),
            7 => self.look(path),
            _ => self.use_open(path),
        }
    }

    fn change_contents(&mut self, path: &Path) {
        let (bytes, offset) = (self.random.bytes(MAX_WRITE_BYTES), self.random.offset());
        let length = self.random.below(MAX_BYTES);
        let write = |root: &Path| OpenOptions::new().write(true).open(root.join(path));
        match self.random.below(7) {
            0 => self.both("create", |root| fs::write(root.join(path), &bytes)),
            1..=2 => self.both("write", |root| {
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(root.join(path))?
                    .write_all_at(&bytes, offset)
            }),
            3 => self.both("append", |root| {
                OpenOptions::new().append(true).open(root.join(path))?.write_all(&bytes)
            }),
            4 => self.both("truncate", |root| write(root)?.set_len(length)),
            5 => self.both("allocate", |root| allocate(&write(root)?, 0, offset, length)),
            _ => self.both("punch", |root| allocate(&write(root)?, PUNCH, offset, length)),
        }
    }

    fn change_names(&mut self, path: &Path, lane: usize) {
        let other = self.path(lane);
        match self.random.below(8) {
            0..=1 => self.both("remove", |root| fs::remove_file(root.join(path))),
            2..=3 => self.both("rename", |root| fs::rename(root.join(path), root.join(&other))),
            4 => self.both("link", |root| fs::hard_link(root.join(path), root.join(&other))),
            5 => {
                let target = other.file_name().expect("a name").to_owned();
                self.both("symlink", |root| symlink(&target, root.join(path)));
            }
            6 => self.both("make a directory", |root| fs::create_dir(root.join(path))),
            _ => self.both("remove a directory", |root| fs::remove_dir(root.join(path))),
        }
    }

    fn change_attributes(&mut self, path: &Path) {
        let mode = u32::try_from(self.random.below(0o1000)).unwrap_or(0);
        // Whole seconds are all that the mount keeps.
        let time =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(self.random.below(1 << 31));
        self.both("chmod", |root| {
            fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode))
        });
        self.both("utimens", |root| {
            let file = File::open(root.join(path))?;
            file.set_modified(time)?;
            file.metadata()?.modified()
        });
    }

    fn look(&mut self, path: &Path) {
        let (offset, length) = (self.random.offset(), self.random.below(MAX_WRITE_BYTES));
        self.both("read", |root| {
            let file = File::open(root.join(path))?;
            // What was synced is dropped from the kernel's cache, so that the store has to answer.
            file.sync_data()?;
            if file.metadata()?.is_file() {
                nix::fcntl::posix_fadvise(
                    &file,
                    0,
                    0,
                    nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
                )?;
            }
            read(&file, offset, length)
        });
    }

    fn use_open(&mut self, path: &Path) {
        let (bytes, offset) = (self.random.bytes(MAX_WRITE_BYTES), self.random.offset());
        let length = self.random.below(MAX_BYTES);
        match self.random.below(7) {
            0..=1 => {
                let open = |root: &PathBuf| {
                    OpenOptions::new().read(true).write(true).open(root.join(path))
                };
                if let [Ok(mounted), Ok(local)] = [&self.mounted, &self.local].map(open) {
                    self.open.push([mounted, local]);
                    let surplus = self.open.len().saturating_sub(MAX_OPEN);
                    self.open.drain(..surplus);
                }
            }
            2 => self.both_open("write", |file| file.write_all_at(&bytes, offset)),
            3 => self.both_open("truncate", |file| file.set_len(length)),
            4 => self.both_open("sync", File::sync_all),
            5 => self
                .both_open("write through a mapping", |file| mapped::write(file, offset, &bytes)),
            _ => self.both_open("read", |file| {
                Ok((read(file, 0, MAX_BYTES)?, file.metadata()?.nlink()))
            }),
        }
    }

    /// Compares every name, attribute and byte.
    #[track_caller]
    pub fn compare(&self) {
        let [mounted, local] = [&self.mounted, &self.local].map(|root| looks(root));
        let names = |looks: &[Look]| looks.iter().map(|look| look.path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&mounted), names(&local), "other names than on the local file system");
        for (mounted, local) in mounted.iter().zip(&local) {
            let path = local.path.display();
            assert_eq!(
                (mounted.mode, mounted.links),
                (local.mode, local.links),
                "mode and links of {path}"
            );
            let differ = mounted.contents.iter().zip(&local.contents).position(|(a, b)| a != b);
            let lengths = (mounted.contents.len(), local.contents.len());
            assert!(
                mounted.contents == local.contents,
                "{path} differs at {differ:?}, lengths {lengths:?}"
            );
        }
    }
}

const PUNCH: nix::libc::c_int = nix::libc::FALLOC_FL_PUNCH_HOLE | nix::libc::FALLOC_FL_KEEP_SIZE;

/// `fallocate`.
pub fn allocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    let flags = nix::fcntl::FallocateFlags::from_bits_truncate(mode);
    let (offset, length) = (offset.cast_signed(), length.max(1).cast_signed());
    Ok(nix::fcntl::fallocate(file, flags, offset, length)?)
}

fn read(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Everything below a directory, sorted.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("list a directory");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort_unstable();
    let below = paths.iter().filter(|path| metadata(path).is_dir()).flat_map(|path| walk(path));
    let below: Vec<PathBuf> = below.collect();
    paths.extend(below);
    paths
}

/// What a path is. The link to a write-ahead log that the mount shows apart counts as what it leads
/// to.
fn metadata(path: &Path) -> fs::Metadata {
    let apart = path.file_name().is_some_and(|name| name == "pg_wal");
    let metadata = if apart { path.metadata() } else { path.symlink_metadata() };
    metadata.expect("look at a file")
}

fn looks(root: &Path) -> Vec<Look> {
    let look = |path: PathBuf| {
        let metadata = metadata(&path);
        let contents = match metadata.file_type() {
            kind if kind.is_symlink() => {
                fs::read_link(&path).expect("read a link").into_os_string().into_encoded_bytes()
            }
            kind if kind.is_dir() => Vec::new(),
            _ => fs::read(&path).expect("read a file"),
        };
        assert!(
            metadata.is_dir() || metadata.len() == contents.len() as u64,
            "length of {}",
            path.display()
        );
        // How many links a directory has, file systems count in their own ways.
        let links = if metadata.is_dir() { 1 } else { metadata.nlink() };
        Look {
            path: path.strip_prefix(root).expect("a path below").into(),
            mode: metadata.mode(),
            links,
            contents,
        }
    };
    walk(root).into_iter().map(look).collect()
}
