//! A Postgres on a local file system, which branches it by a snapshot, by a copy that shares its
//! blocks, or not at all.

use crate::systems::{Base, System, load};
use coppice::cluster::Cluster;
use coppice::loop_volume::{FileSystem, LoopVolume, run};
use coppice::sides::Side;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// How a base becomes a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// A snapshot of its subvolume.
    Snapshot,
    /// A copy that shares all blocks.
    Reflink,
    /// A copy.
    Copy,
    /// None: the base itself is used.
    None,
}

/// The base rests in `base`; branches are beside it.
const BASE: &str = "base";
/// The branch under load.
const WORK: &str = "work";
/// The data directory in the directory of a base or branch.
const DATA: &str = "data";

/// A Postgres on a local file system.
pub(crate) struct Local {
    name: &'static str,
    method: Method,
    root: PathBuf,
    settings: &'static [(&'static str, &'static str)],
    /// Whether snapshots were deleted whose blocks may not be free yet.
    deleted: bool,
    /// The branch under load. Before the volume, which cannot go while it runs.
    work: Cluster,
    volume: Option<LoopVolume>,
}

impl Local {
    /// On the file system of `directory`.
    pub(crate) fn on_directory(directory: &Path, base: Base) -> Self {
        let root = directory.join("native");
        fs::create_dir(&root).expect("make a directory");
        Self::new("native", Method::None, root, None, base)
    }

    /// On a file system of its own with these options, whose file is in `directory`; an error says
    /// why there can be none.
    pub(crate) fn on_volume(
        (kind, options): (FileSystem, &str),
        method: Method,
        (directory, bytes): (&Path, u64),
        base: Base,
    ) -> Result<Self, String> {
        let volume = LoopVolume::make(kind, directory, bytes, options)?;
        let root = volume.root().to_owned();
        Ok(Self::new(kind.name(), method, root, Some(volume), base))
    }

    fn new(
        name: &'static str,
        method: Method,
        root: PathBuf,
        volume: Option<LoopVolume>,
        base: Base,
    ) -> Self {
        // As the manual of Postgres recommends for copy-on-write, and as a branch of ours has it.
        // The defaults are made for what overwrites in place.
        let settings: &[_] = if method == Method::Snapshot {
            &[("wal_recycle", "off"), ("wal_init_zero", "off")]
        } else {
            &[]
        };
        let base_directory = root.join(BASE);
        if method == Method::Snapshot {
            run(Command::new("btrfs").args(["subvolume", "create"]).arg(&base_directory))
                .expect("make a subvolume");
        } else {
            fs::create_dir(&base_directory).expect("make a directory");
        }
        let mut work = Cluster::initialize(&base_directory.join(DATA), settings);
        load(&work.side(name), base);
        if method != Method::None {
            work.stop();
            run(&mut Command::new("sync")).expect("sync");
            clone(method, &base_directory, &root.join(WORK));
            work = Cluster::at(&root.join(WORK).join(DATA), settings);
            work.start();
        }
        Self { name, method, root, settings, deleted: false, work, volume }
    }

    fn cluster(&self, branch: &str) -> Cluster {
        Cluster::at(&self.root.join(branch).join(DATA), self.settings)
    }
}

impl System for Local {
    fn name(&self) -> &'static str {
        self.name
    }

    fn side(&self) -> Side {
        self.work.side(self.name)
    }

    fn restart(&mut self, between: &mut dyn FnMut()) {
        self.work.stop();
        between();
        self.work.start();
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.deleted) {
            for command in [["filesystem", "sync"], ["subvolume", "sync"]] {
                run(Command::new("btrfs").args(command).arg(&self.root))
                    .expect("wait for btrfs to clean up");
            }
        }
    }

    fn branches(&self) -> bool {
        matches!(self.method, Method::Snapshot | Method::Reflink)
    }

    fn create(&mut self, branch: &str) -> f64 {
        let began = Instant::now();
        clone(self.method, &self.root.join(BASE), &self.root.join(branch));
        began.elapsed().as_secs_f64() * 1e3
    }

    fn remove(&mut self, branch: &str) {
        let path = self.root.join(branch);
        if self.method == Method::Snapshot {
            run(Command::new("btrfs").args(["subvolume", "delete"]).arg(path))
                .expect("delete a snapshot");
            self.deleted = true;
        } else {
            fs::remove_dir_all(path).expect("remove a copy");
        }
    }

    fn first_row(&mut self, branch: &str) -> f64 {
        let mut cluster = self.cluster(branch);
        let side = cluster.side(self.name);
        let began = Instant::now();
        clone(self.method, &self.root.join(BASE), &self.root.join(branch));
        cluster.start();
        side.sql("select 1");
        let ms = began.elapsed().as_secs_f64() * 1e3;
        cluster.stop();
        ms
    }

    fn wake(&mut self, branch: &str) -> f64 {
        let wake = |cluster: &mut Cluster| {
            let side = cluster.side(self.name);
            let began = Instant::now();
            cluster.start();
            side.sql("select 1");
            began.elapsed().as_secs_f64() * 1e3
        };
        if self.branches() {
            let mut cluster = self.cluster(branch);
            return wake(&mut cluster);
        }
        self.work.stop();
        wake(&mut self.work)
    }

    fn visit(&mut self, branch: &str, work: &mut dyn FnMut(&Side)) {
        let mut cluster = self.cluster(branch);
        cluster.start();
        work(&cluster.side(self.name));
        cluster.stop();
    }

    fn used_bytes(&mut self) -> u64 {
        self.work.stop();
        self.volume.as_ref().expect("a volume of its own").used_bytes()
    }
}

fn clone(method: Method, from: &Path, to: &Path) {
    let mut command = match method {
        Method::Snapshot => {
            let mut command = Command::new("btrfs");
            command.args(["subvolume", "snapshot"]);
            command
        }
        Method::Reflink | Method::Copy => {
            let mut command = Command::new("cp");
            command.args([
                "-a",
                if method == Method::Reflink { "--reflink=always" } else { "--reflink=never" },
            ]);
            command
        }
        Method::None => panic!("nothing makes a branch here"),
    };
    run(command.arg(from).arg(to)).expect("make a branch");
}
