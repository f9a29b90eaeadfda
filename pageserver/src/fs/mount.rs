//! The mounts of a store, one for data directories and one for write-ahead logs, and the
//! directories of timelines in them.
//!
//! A timeline is reachable as `MOUNT/TIMELINE` while it is attached, and its write-ahead log, once
//! it has one, through the link `pg_wal` there. A timeline that had to be opened anew after a
//! failed write gets a new directory name, because the kernel may hold pages of the old one that
//! never reached the disk. Never call these functions from a thread that serves the mount.

use crate::error::{Error, Result};
use crate::fs::connection;
use crate::fs::device::{self, Mounted};
use crate::fs::fuse::{Adapter, Roots, Side, set_root};
use crate::fs::nodes::MOUNT_ROOT;
use crate::fs::owners::{self, Owner, Owners};
use crate::fs::ring;
use crate::fs::scratch::ScratchDir;
use crate::fs::session::Session;
use crate::fs::tree::Tree;
use crate::locks::{lock, read};
use crate::storage::clock::machine_ns;
use crate::storage::page::{ROOT_INODE, TimelineId};
use crate::storage::store::Store;
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How far the kernel reads ahead of a sequential reader. With 128 KiB, its default, there are four
/// times as many requests.
const READ_AHEAD_KIB: u32 = 512;
/// What the mount does when it attaches a timeline, for messages.
const PREPARE: &str = "prepare a data directory";
/// Bytes that [`Mount::received_file`] reads.
const FIRST_BYTES: u32 = 4096;
/// The server removes so many dead mounts on top of one another; with more, something else is
/// wrong.
const MAX_STALE: usize = 16;

/// How long threads take to see that the last mount is gone.
const COPY_PATIENCE: Duration = Duration::from_secs(1);
const COPY_STEP: Duration = Duration::from_millis(5);

/// When requests come over io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IoUring {
    /// If io_uring is switched on in the kernel.
    Auto,
    /// Switch io_uring on in the kernel, which only root may; it stays on for other mounts too. Do
    /// without if the kernel has none.
    On,
    /// Never.
    Off,
}

impl IoUring {
    /// Switches io_uring on for the machine if the setting asks for that. Returns whether requests
    /// can come over io_uring.
    pub fn prepare(self) -> bool {
        if self == Self::On
            && let Err(error) = ring::switch_on()
        {
            tracing::warn!(
                %error,
                "the kernel does not let FUSE use io_uring; requests are read from /dev/fuse"
            );
        }
        self != Self::Off && ring::is_possible()
    }
}

/// The directories that a mounted store takes beside its own.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Its data directories.
    pub data: &'a Path,
    /// Their write-ahead logs.
    pub wal: &'a Path,
    /// Where contents of their temporary files are, on a local file system.
    pub scratch: &'a Path,
}

/// The mounted store.
pub struct Mount {
    store: Arc<Store>,
    mountpoint: PathBuf,
    scratch: Option<Arc<ScratchDir>>,
    roots: Roots,
    served: Mutex<Vec<Served>>,
    /// A lock for each timeline, since opening one may take long.
    attached: Mutex<HashMap<TimelineId, Arc<Mutex<Attached>>>>,
    /// Owner of all files in the store.
    owner: Owner,
    /// The user id before that of the first compute, if each has one of its own.
    first_uid: Option<u32>,
}

#[derive(Default)]
struct Attached {
    name: Option<String>,
    /// How often the timeline had to be opened anew.
    renewals: u32,
    /// Since when nobody uses it.
    idle_since: Option<Instant>,
}

impl Mount {
    /// Mounts the store. New data directories will belong to `owner`; if that is somebody else than
    /// the user of this process, everybody may enter the mounts and the kernel checks permissions.
    /// With `first_uid`, which only root may give, each timeline is shown to belong to a user of
    /// its own. Where the kernel refuses io_uring, the mounts do without.
    pub fn new(
        store: Arc<Store>,
        places: Places<'_>,
        owner: Owner,
        first_uid: Option<u32>,
        io_uring: IoUring,
    ) -> Result<Self> {
        let (mountpoint, wal) = (make_mountpoint(places.data)?, make_mountpoint(places.wal)?);
        let roots = Roots::default();
        let ring = io_uring.prepare();
        let sides = [(Side::Wal, &wal), (Side::Data { wal: wal.clone() }, &mountpoint)];
        // If the second cannot be mounted, dropping the first unmounts it.
        let served = sides.map(|(side, at)| Served::new(side, &store, &roots, at, owner, ring));
        let served = served.into_iter().collect::<Result<Vec<_>>>()?;
        let (served, attached) = (Mutex::new(served), Mutex::default());
        let scratch = ScratchDir::prepare(places.scratch);
        Ok(Self { store, mountpoint, scratch, roots, served, attached, owner, first_uid })
    }

    /// Writes down what the next server has to end if this one is killed and cannot end.
    pub fn record(&self, record: &Path) -> Result<()> {
        let served = lock(&self.served);
        let places: Vec<_> = served.iter().map(|served| served.mounted.at()).collect();
        connection::record(record, &places)
            .map_err(|e| Error::io(format!("write {}", record.display()), &e))
    }

    /// Makes a timeline reachable; returns its directory. Opens a latched timeline anew.
    pub fn attach(&self, id: TimelineId) -> Result<PathBuf> {
        let entry = Arc::clone(lock(&self.attached).entry(id).or_default());
        let mut entry = lock(&entry);
        entry.idle_since = None;
        let healthy = |name: &String| {
            read(&self.roots).get(name).is_some_and(|tree| tree.timeline().latched().is_none())
        };
        if let Some(name) = entry.name.as_ref().filter(|name| healthy(name)) {
            return Ok(self.mountpoint.join(name));
        }
        if let Some(name) = entry.name.take() {
            entry.renewals += 1;
            self.hide(&name);
        }
        self.store.reopen_if_latched(id)?;
        let shown = self.first_uid.map(|first| owners::of_compute(first, id)).transpose()?;
        let owners = shown.map_or_else(Owners::default, |shown| Owners::showing(self.owner, shown));
        self.show(id, &mut entry, owners)
    }

    fn show(&self, id: TimelineId, entry: &mut Attached, owners: Owners) -> Result<PathBuf> {
        let tree = Tree::to_run(self.store.timeline(id)?, owners, self.scratch.clone());
        self.show_tree(id, entry, tree)
    }

    fn show_tree(&self, id: TimelineId, entry: &mut Attached, tree: Tree) -> Result<PathBuf> {
        tree.remove_nameless().map_err(|error| error.into_error(PREPARE))?;
        let name =
            if entry.renewals == 0 { id.to_string() } else { format!("{id}-{}", entry.renewals) };
        set_root(&self.roots, &name, Some(Arc::new(tree)));
        entry.name = Some(name.clone());
        Ok(self.mountpoint.join(name))
    }

    /// Gives a new root timeline its directory, and makes it reachable for the tools that fill it,
    /// with its write-ahead log inside. It belongs to the owner of all files until
    /// [`Mount::filled`].
    pub fn attach_new(&self, id: TimelineId) -> Result<PathBuf> {
        let tree = Tree::new(self.store.timeline(id)?);
        tree.make_root(self.owner, machine_ns()).map_err(|error| error.into_error(PREPARE))?;
        let entry = Arc::clone(lock(&self.attached).entry(id).or_default());
        self.show_tree(id, &mut lock(&entry), tree)
    }

    /// The tools are done with a new timeline: its directory is no longer reachable. They synced
    /// what they wrote. For the rest this asks the kernel, which may not wait for all of it.
    pub fn filled(&self, id: TimelineId) -> Result<()> {
        let failed = |e| Error::io(format!("sync {}", self.mountpoint.display()), &e);
        let directory = fs::File::open(&self.mountpoint).map_err(failed)?;
        nix::unistd::syncfs(directory).map_err(|errno| failed(errno.into()))?;
        self.detach(id);
        Ok(())
    }

    /// The store that the mounts show.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The timeline whose Postgres runs as this user, if each has one of its own.
    pub fn timeline_of_user(&self, uid: u32) -> Option<TimelineId> {
        let nth = uid.checked_sub(self.first_uid?)?;
        Some(TimelineId(u64::from(nth)))
    }

    /// Makes a timeline unreachable and lets the kernel forget it.
    pub fn detach(&self, id: TimelineId) {
        let entry = lock(&self.attached).remove(&id);
        if let Some(name) = entry.and_then(|entry| lock(&entry).name.take()) {
            self.hide(&name);
        }
    }

    /// The first bytes of a file in an attached timeline's directory, as far as the kernel has
    /// handed them over; empty if there is no such file. Does not go through the mount.
    pub fn received_file(&self, id: TimelineId, name: &[u8]) -> Option<Vec<u8>> {
        let entry = lock(&self.attached).get(&id).cloned()?;
        let directory = lock(&entry).name.clone()?;
        let tree = read(&self.roots).get(&directory).cloned()?;
        let Ok((inode, _)) = tree.lookup(ROOT_INODE, name) else { return Some(Vec::new()) };
        let (buffer, range) = tree.read(inode, 0, FIRST_BYTES).ok()?;
        Some(buffer[range].to_vec())
    }

    /// Notes that no process uses the timeline's directory any more. The directory stays, and with
    /// it what the kernel cached, so that coming back soon is cheap.
    pub fn leave(&self, id: TimelineId) {
        let entry = lock(&self.attached).get(&id).cloned();
        if let Some(entry) = entry {
            lock(&entry).idle_since = Some(Instant::now());
        }
    }

    /// Detaches the timelines whose directories no process has used for as long as `after`.
    pub fn release_idle(&self, after: Duration) {
        let entries: Vec<_> =
            lock(&self.attached).iter().map(|(id, entry)| (*id, Arc::clone(entry))).collect();
        for (id, entry) in entries {
            let mut entry = lock(&entry);
            if entry.idle_since.is_none_or(|since| since.elapsed() < after) {
                continue;
            }
            let Some(name) = entry.name.clone() else { continue };
            let tree = read(&self.roots).get(&name).cloned();
            if let Some(Err(error)) = tree.map(|tree| tree.put_all_times()) {
                // The timeline is latched now. Its next use opens it anew.
                tracing::error!(timeline = %id, %error, "times of files are lost");
            }
            self.hide(&name);
            (entry.name, entry.idle_since) = (None, None);
            tracing::info!(timeline = %id, "idle timeline detached");
        }
    }

    fn hide(&self, name: &str) {
        set_root(&self.roots, name, None);
        let notifiers: Vec<_> =
            lock(&self.served).iter().map(|served| served.session.notifier()).collect();
        for notifier in notifiers {
            notifier.forget_name(MOUNT_ROOT, OsStr::new(name));
        }
    }

    /// Unmounts. No process may use the mounts any more.
    pub fn unmount(&self) -> Result<()> {
        let served = std::mem::take(&mut *lock(&self.served));
        if served.is_empty() {
            return Ok(());
        }
        served.into_iter().rev().map(Served::unmount).fold(Ok(()), Result::and)?;
        // A latched timeline takes no more changes, and its failure is in the log.
        let trees = read(&self.roots);
        let healthy = trees.values().filter(|tree| tree.timeline().latched().is_none());
        healthy.map(|tree| tree.put_all_times()).fold(Ok(()), Result::and)
    }
}

/// One mount that is served.
struct Served {
    mounted: Mounted,
    session: Session,
    adapter: Arc<Adapter>,
}

impl Served {
    fn new(
        side: Side,
        store: &Arc<Store>,
        roots: &Roots,
        at: &Path,
        owner: Owner,
        ring: bool,
    ) -> Result<Self> {
        let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let adapter =
            Arc::new(Adapter::new(side, Arc::clone(store), Arc::clone(roots), at.to_owned(), me));
        // If no session starts, dropping `mounted` unmounts.
        let mount = || device::mount_at(at, owner != me).map_err(|error| cannot_mount(at, &error));
        let (device, mounted) = mount()?;
        let started = match Session::start(&adapter, device, ring) {
            Err(error) if ring => {
                tracing::warn!(mount = %at.display(), %error, "tried again without io_uring");
                drop(mounted);
                let (device, mounted) = mount()?;
                Session::start(&adapter, device, false).map(|session| (mounted, session))
            }
            session => session.map(|session| (mounted, session)),
        };
        let (mounted, session) = started.map_err(|error| cannot_mount(at, &error))?;
        let served = Self { mounted, session, adapter };
        if let Err(error) = read_ahead(at) {
            tracing::debug!(mount = %at.display(), %error, "the kernel's readahead stays as it is");
        }
        tracing::info!(mount = %at.display(), io_uring = served.session.over_io_uring(), "mounted");
        Ok(served)
    }

    /// Unmounts. A process that uses the mount does not hold up the end, and neither does a copy of
    /// the mount in another mount namespace: they see an input/output error from then on.
    fn unmount(self) -> Result<()> {
        let Self { mut mounted, session, adapter } = self;
        let at = mounted.at().to_owned();
        let failed = |e: io::Error| Error::io(format!("unmount {}", at.display()), &e);
        if !session.is_over() {
            // The kernel writes out what it holds back when the last mount goes, which may be a
            // copy.
            let directory = fs::File::open(&at).map_err(failed)?;
            nix::unistd::syncfs(directory).map_err(|errno| failed(errno.into()))?;
        }
        mounted.unmount(|| session.is_over())?;
        let deadline = Instant::now() + COPY_PATIENCE;
        while !session.is_over() && Instant::now() < deadline {
            std::thread::sleep(COPY_STEP);
        }
        if session.is_over() {
            return session.join().map_err(failed);
        }
        adapter.close();
        tracing::warn!(
            mount = %at.display(),
            "processes still have the mount open, or a copy of it in a mount namespace of their \
             own, as a container has; it is closed to them"
        );
        Ok(())
    }
}

/// Has the kernel read further ahead, which only root may ask for. A mount itself can only ask for
/// less.
fn read_ahead(mountpoint: &Path) -> io::Result<()> {
    use nix::sys::stat::{major, minor, stat};
    let device = stat(mountpoint)?.st_dev;
    let setting = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
    fs::write(setting, READ_AHEAD_KIB.to_string())
}

fn make_mountpoint(path: &Path) -> Result<PathBuf> {
    clear_stale(path)?;
    let made = fs::create_dir_all(path).and_then(|()| path.canonicalize());
    made.map_err(|e| Error::io(format!("make the directory of the mount, {}", path.display()), &e))
}

fn cannot_mount(mountpoint: &Path, error: &io::Error) -> Error {
    let remedy = if !Path::new("/dev/fuse").exists() {
        "this machine has no /dev/fuse: load the kernel module with `modprobe fuse`, or give the \
         container the device"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "this user may not use FUSE: open /dev/fuse to it (mode 0666) or start the server as root"
    } else if error.kind() == io::ErrorKind::NotFound {
        "fusermount3 is missing: install the package fuse3"
    } else {
        "check that fuse3 is installed and the directory is not in use"
    };
    Error::unavailable(
        "no_fuse",
        format!("cannot mount at {}: {error}; {remedy}", mountpoint.display()),
    )
}

/// Removes the mounts that killed servers left behind, whose every use fails with "not connected".
fn clear_stale(mountpoint: &Path) -> Result<()> {
    for _ in 0..MAX_STALE {
        // Not the attributes of the directory, which the kernel still has in its cache.
        if statvfs(mountpoint).err() != Some(Errno::ENOTCONN) {
            return Ok(());
        }
        tracing::info!(mount = %mountpoint.display(), "removing the mount of a killed server");
        if !device::unmount_lazily(mountpoint) {
            break;
        }
    }
    Err(still_there(mountpoint))
}

fn still_there(mountpoint: &Path) -> Error {
    let detail = format!(
        "a dead mount is at {0}: remove it with `fusermount3 -uz {0}`",
        mountpoint.display()
    );
    Error::unavailable("stale_mount", detail)
}
