//! Control groups (cgroups(7)): what one compute may take of the machine, whatever runs in it.
//!
//! Each compute has a group of its own, all of them below one of this server's, so that they share
//! processors alike. Both versions of the interface are used: version 2 where it has the
//! controllers, else version 1. What a compute leaves, such as programs that its Postgres started,
//! ends with its group.

use crate::locks::lock;
use crate::storage::page::TimelineId;
use crate::sys::mounts;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is needed of the kernel.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// List of a group's processes, in both versions.
const MEMBERS: &str = "cgroup.procs";
/// How long killed processes may take to disappear.
const GONE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What one compute may take at most; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeLimits {
    /// Bytes of memory, with what the kernel caches of its files.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub tasks: u64,
}

/// The groups of all computes.
#[derive(Debug)]
pub(crate) struct Groups {
    hierarchies: Hierarchies,
    limits: ComputeLimits,
    /// The computes that have one.
    made: Mutex<HashSet<TimelineId>>,
}

/// Where groups are made.
#[derive(Debug, PartialEq, Eq)]
enum Hierarchies {
    /// One directory for each of [`CONTROLLERS`], in their order.
    One([PathBuf; 3]),
    Two(PathBuf),
}

/// The group of one compute.
#[derive(Debug)]
struct Group(Vec<PathBuf>);

/// Name of the control group of all computes of a server, by its run directory, which no other
/// server has.
pub fn group_name(run_dir: &Path) -> String {
    let path = run_dir.as_os_str().as_bytes();
    // In two containers the same path may be two directories.
    let (device, inode) = fs::metadata(run_dir).map_or((0, 0), |about| (about.dev(), about.ino()));
    format!("coppice-{:08x}-{device:x}-{inode:x}", crc32fast::hash(path))
}

/// Ends what runs in the groups of a server that was killed, and removes them.
pub fn remove_groups(run_dir: &Path) {
    let text = |name| fs::read_to_string(name).unwrap_or_default();
    let OwnGroups { one, two } = find(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"));
    let places = one.into_iter().flatten().chain(two.into_iter().flat_map(<[PathBuf; 2]>::from));
    for place in places.map(|place| place.join(group_name(run_dir))) {
        let entries = fs::read_dir(&place).into_iter().flatten().flatten();
        for left in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
            Group(vec![left]).end();
        }
        // It is there only if the server made it here.
        let _removed = fs::remove_dir(place);
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for place in self.places() {
            // It stays while a compute is in it, for the next server of that name.
            let _in_use = fs::remove_dir(place);
        }
    }
}

impl Groups {
    /// Prepares the groups of a server, below one called `name`.
    pub(crate) fn prepare(name: &str, limits: ComputeLimits) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let found = find(&mounts, &own);
        let hierarchies = match found.two.map(|(root, own)| delegate(&root, &own)) {
            Some(Ok(parent)) => Hierarchies::Two(parent.join(name)),
            two => {
                let why_not = two.and_then(Result::err).unwrap_or_else(none);
                let one = found.one.ok_or(why_not)?;
                Hierarchies::One(one.map(|own| own.join(name)))
            }
        };
        let groups = Self { hierarchies, limits, made: Mutex::default() };
        for place in groups.places() {
            make(place)?;
        }
        if let Hierarchies::Two(place) = &groups.hierarchies {
            enable(place)?;
        }
        Ok(groups)
    }

    fn places(&self) -> &[PathBuf] {
        match &self.hierarchies {
            Hierarchies::One(places) => places,
            Hierarchies::Two(place) => std::slice::from_ref(place),
        }
    }

    fn group(&self, timeline: TimelineId) -> Group {
        Group(self.places().iter().map(|at| at.join(timeline.to_string())).collect())
    }

    /// Makes the group of a compute, and moves a process into it.
    pub(crate) fn make(&self, timeline: TimelineId, pid: i32) -> io::Result<()> {
        let group = self.group(timeline);
        lock(&self.made).insert(timeline);
        group.0.iter().try_for_each(|at| make(at))?;
        self.limit(&group)?;
        group.0.iter().try_for_each(|at| fs::write(at.join(MEMBERS), pid.to_string()))
    }

    /// Ends every process in the group of a compute, and removes the group.
    pub(crate) fn end(&self, timeline: TimelineId) {
        if lock(&self.made).remove(&timeline) {
            self.group(timeline).end();
        }
    }

    fn limit(&self, group: &Group) -> io::Result<()> {
        let ComputeLimits { memory_bytes, tasks } = self.limits;
        let (memory, pids, names) = match &self.hierarchies {
            Hierarchies::One(_) => (&group.0[0], &group.0[1], ["memory.limit_in_bytes", "-1"]),
            Hierarchies::Two(_) => (&group.0[0], &group.0[0], ["memory.max", "max"]),
        };
        let or = |limit: u64, none: &str| match limit {
            0 => none.to_owned(),
            limit => limit.to_string(),
        };
        fs::write(memory.join(names[0]), or(memory_bytes, names[1]))?;
        fs::write(pids.join("pids.max"), or(tasks, "max"))
    }
}

impl Group {
    /// Ends every process of the group, and removes it.
    fn end(&self) {
        let deadline = Instant::now() + GONE_LIMIT;
        while self.0.iter().any(|at| is_populated(at)) {
            if Instant::now() > deadline {
                return tracing::error!(group = ?self.0, "processes of a branch cannot be killed");
            }
            self.0.iter().for_each(|at| kill_members(at));
            std::thread::sleep(LOOK_AGAIN);
        }
        for at in &self.0 {
            match fs::remove_dir(at) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(group = %at.display(), %error, "a control group stays");
                }
                _ => {}
            }
        }
    }
}

fn members(at: &Path) -> Vec<i32> {
    let text = fs::read_to_string(at.join(MEMBERS)).unwrap_or_default();
    // Processes of other namespaces have the number 0 here.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn is_populated(at: &Path) -> bool {
    !members(at).is_empty()
}

fn kill_members(at: &Path) {
    // Nobody is born meanwhile. Only one of the directories has this file.
    let _elsewhere = fs::write(at.join("pids.max"), "0");
    for pid in members(at) {
        let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn make(at: &Path) -> io::Result<()> {
    match fs::create_dir(at) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn none() -> io::Error {
    let detail = "there is no control group with the controllers memory, pids and cpu";
    io::Error::new(ErrorKind::NotFound, detail)
}

/// Lets groups below `group` be limited (version 2).
fn enable(group: &Path) -> io::Result<()> {
    let all: Vec<_> = CONTROLLERS.iter().map(|name| format!("+{name}")).collect();
    fs::write(group.join("cgroup.subtree_control"), all.join(" "))
}

/// Where groups can be made: below our own, which must then have no process itself, so that we move
/// into a group beside theirs (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process
/// Constraint"); or else, for root, below the root.
fn delegate(root: &Path, own: &Path) -> io::Result<PathBuf> {
    let names = fs::read_to_string(root.join("cgroup.controllers"))?;
    if !CONTROLLERS.iter().all(|name| names.split_whitespace().any(|other| other == *name)) {
        return Err(none());
    }
    if enable(own).is_ok() {
        return Ok(own.to_owned());
    }
    let alone = members(own) == [i32::try_from(std::process::id()).map_err(io::Error::other)?];
    if alone && own != root {
        let server = own.join("server");
        make(&server)?;
        fs::write(server.join(MEMBERS), "0")?;
        if enable(own).is_ok() {
            return Ok(own.to_owned());
        }
    }
    enable(root).map(|()| root.to_owned())
}

/// The groups that this process is in.
#[derive(Debug, Default, PartialEq, Eq)]
struct OwnGroups {
    /// Of version 1, for each of [`CONTROLLERS`].
    one: Option<[PathBuf; 3]>,
    /// Of version 2: the root, and its own.
    two: Option<(PathBuf, PathBuf)>,
}

/// Reads `mountinfo` and `cgroup` of a process (proc(5), cgroups(7)).
fn find(mounted: &str, own: &str) -> OwnGroups {
    let mount = |kind: &str, controller: Option<&str>| {
        mounts::parse(mounted).find(|mount| {
            mount.kind == kind && controller.is_none_or(|name| mount.has_option(name))
        })
    };
    let path = |controller: &str| {
        own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|name| name == controller).then_some(path)
        })
    };
    let one = CONTROLLERS.map(|name| Some(mount("cgroup", Some(name))?.place(path(name)?)));
    let two = mount("cgroup2", None);
    let two = two.and_then(|mount| Some((mount.place(mount.root), mount.place(path("")?))));
    let [memory, pids, cpu] = one;
    let one = memory.zip(pids).zip(cpu).map(|((memory, pids), cpu)| [memory, pids, cpu]);
    OwnGroups { one, two }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        39 31 0:36 /docker/a /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
    const TWO: &str = "41 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

    #[test]
    fn own_groups_are_found_in_both_versions() {
        let own = "8:pids:/docker/a/b\n4:memory:/api/7\n2:cpu,cpuacct:/\n0::/system.slice/x\n";
        let one = ["memory/api/7", "pids/b", "cpu,cpuacct"];
        let one = one.map(|path| Path::new("/sys/fs/cgroup").join(path));
        let two = (PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/sys/fs/cgroup/system.slice/x"));
        assert_eq!(find(ONE, own), OwnGroups { one: Some(one.clone()), two: None });
        assert_eq!(find(TWO, own), OwnGroups { one: None, two: Some(two.clone()) });
        let both = format!("{ONE}{TWO}");
        assert_eq!(find(&both, own), OwnGroups { one: Some(one), two: Some(two) });
        assert_eq!(find(&both, "4:memory:/\n"), OwnGroups::default());
        assert_eq!(find("nonsense\n", own), OwnGroups::default());
    }
}
