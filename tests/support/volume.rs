//! A store mounted in this process, for tests of the file system without Postgres.
//!
//! Nothing works in the background here: what is synced is what the test asked for.

use super::{Directory, LIMIT};
use pageserver::branches::Branches;
pub use pageserver::fs::mount::IoUring;
use pageserver::fs::mount::{Mount, Places};
use pageserver::server::{open_disk, random_number};
use pageserver::storage::catalog::{BranchRecord, Update};
use pageserver::storage::page::{LaneKind, TimelineId};
use pageserver::storage::store::Store;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A mounted store with one timeline. Dropped, it is unmounted.
pub struct Volume {
    store: Arc<Store>,
    mount: Mount,
    timeline: TimelineId,
    root: PathBuf,
    directory: Directory,
    io_uring: IoUring,
}

impl Volume {
    /// Makes a store and mounts it, served over io_uring if this machine can.
    pub fn new() -> Self {
        Self::served(IoUring::On)
    }

    /// Makes a store and mounts it.
    pub fn served(io_uring: IoUring) -> Self {
        Self::open(Directory::new(), io_uring)
    }

    /// Opens or makes the store in `directory`, and mounts it.
    fn open(directory: Directory, io_uring: IoUring) -> Self {
        let data = directory.path().join("data");
        std::fs::create_dir_all(&data).expect("make the data directory");
        let number = random_number().expect("draw a number");
        let disk = open_disk(&data).expect("open the store's directory");
        let store = Arc::new(Store::open(disk, number).expect("open the store"));
        let made = std::fs::metadata(&data).expect("look at the data directory");
        let me = (made.uid(), made.gid());
        let [at, wal, scratch] = ["mount", "mount-wal", "scratch"].map(|name| data.join(name));
        let places = Places { data: &at, wal: &wal, scratch: &scratch };
        let mount =
            Mount::new(Arc::clone(&store), places, me, None, io_uring).expect("mount the store");
        let known = store.catalog().timelines().into_iter().min_by_key(|id| id.0);
        let (timeline, root) = known.map_or_else(
            || {
                let timeline = store.create_root().expect("make a timeline");
                let root = mount.attach_new(timeline).expect("attach the timeline");
                let record = Branches::first_record(timeline, None);
                store.publish(Update::default().put("main", record)).expect("name the timeline");
                (timeline, root)
            },
            |timeline| (timeline, mount.attach(timeline).expect("attach the timeline")),
        );
        Self { store, mount, timeline, root, directory, io_uring }
    }

    /// The timeline's directory in the mount.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Forks the timeline; the child's directory in the mount.
    pub fn fork(&self) -> PathBuf {
        let name = |timeline| {
            let id = self.store.catalog().new_branch();
            let record = BranchRecord { id, ..Branches::first_record(timeline, None) };
            Update::default().put(&timeline.to_string(), record)
        };
        let (child, _) = self.store.fork(self.timeline, name).expect("fork the timeline");
        self.mount.attach(child).expect("attach the child")
    }

    /// Seals all, and lets go of all that nobody uses; the files of the store that are open then.
    pub fn close_idle(&self) -> Vec<PathBuf> {
        let timelines = self.store.catalog().timelines();
        timelines.iter().for_each(|id| self.mount.leave(*id));
        self.mount.release_idle(Duration::ZERO);
        for id in timelines {
            for lane in LaneKind::ALL {
                self.store.seal(id, lane, &mut |_| Ok(())).expect("seal a lane");
            }
        }
        // The kernel forgets what it knew of the directories in its own time.
        let deadline = Instant::now() + LIMIT;
        while !self.store.open_timelines().is_empty() && Instant::now() < deadline {
            self.store.close_unused();
            std::thread::sleep(Duration::from_millis(10));
        }
        let open = std::fs::read_dir("/proc/self/fd").expect("list open files").flatten();
        let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let (lanes, layers) = (self.store_path("lanes"), self.store_path("layers"));
        open.filter(|path| path.starts_with(&lanes) || path.starts_with(&layers)).collect()
    }

    fn store_path(&self, directory: &str) -> PathBuf {
        self.directory.path().join("data/store").join(directory)
    }

    /// Makes the timeline reachable again.
    pub fn attach(&self) {
        assert_eq!(self.mount.attach(self.timeline).expect("attach the timeline"), self.root);
    }

    /// Unmounts, closes the store, and opens everything anew.
    pub fn reopen(self) -> Self {
        let Self { store, mount, directory, io_uring, .. } = self;
        mount.unmount().expect("unmount");
        store.close().expect("close the store");
        drop((mount, store));
        Self::open(directory, io_uring)
    }

    /// The files of the data lane with their lengths now.
    pub fn data_lane(&self) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(self.directory.path().join("data/store/lanes"))
            .expect("list the lanes");
        let files = entries.flatten().map(|entry| {
            let length = entry.metadata().expect("look at a lane file").len();
            (entry.file_name().into_string().expect("a plain name"), length)
        });
        files.filter(|(name, _)| name.contains(".d.")).collect()
    }

    /// Opens a copy of the store as it is on disk at this moment, as after a crash. `cut` shortens
    /// files of the copy.
    pub fn crash_image(&self, cut: &[(String, u64)]) -> Self {
        let copy = Directory::new();
        let (from, to) = (self.directory.path().join("data/store"), copy.path().join("data/store"));
        for directory in ["", "lanes", "layers"] {
            std::fs::create_dir_all(to.join(directory)).expect("make the copy's directory");
            for entry in std::fs::read_dir(from.join(directory)).expect("list the store").flatten()
            {
                if entry.path().is_file() {
                    let target = to.join(directory).join(entry.file_name());
                    std::fs::copy(entry.path(), target).expect("copy a file of the store");
                }
            }
        }
        for (name, length) in cut {
            let file = std::fs::OpenOptions::new().write(true).open(to.join("lanes").join(name));
            file.and_then(|file| file.set_len(*length)).expect("cut a lane file");
        }
        Self::open(copy, self.io_uring)
    }
}

impl Default for Volume {
    fn default() -> Self {
        Self::new()
    }
}
