//! How computes run.

use super::groups::ComputeLimits;
use super::installation::Installation;
use super::room;
use super::user::OsUser;
use crate::storage::catalog::BranchNetwork;
use std::path::PathBuf;
use std::time::Duration;

/// How computes run.
#[derive(Clone, Debug)]
pub struct ComputeConfig {
    /// The Postgres that runs them.
    pub installation: Installation,
    /// The user that they run as, unless their data directory belongs to another.
    pub user: OsUser,
    /// Directory of sockets, managed configuration files and records, on a local file system, never
    /// inside the mount.
    pub run_dir: PathBuf,
    /// Directory of what the computes log; made if it is missing.
    pub log_dir: PathBuf,
    /// A compute without a client for this long is stopped; zero means never.
    pub suspend_after: Duration,
    /// Longest start, crash recovery included.
    pub start_limit: Duration,
    /// Longest fast shutdown, final checkpoint included, before it becomes an immediate one.
    pub stop_limit: Duration,
    /// Computes at the same time; zero is no limit.
    pub max_running: usize,
    /// Starts at the same time; more than the machine has cores only makes all of them late.
    pub parallel_starts: usize,
    /// The network of branches that are not told otherwise.
    pub network: BranchNetwork,
    /// What each compute may take of the machine.
    pub limits: ComputeLimits,
}

impl ComputeConfig {
    /// The default times and limits.
    pub fn new(installation: Installation, user: OsUser, run_dir: PathBuf) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            installation,
            user,
            log_dir: run_dir.join("logs"),
            run_dir,
            suspend_after: Duration::from_secs(300),
            start_limit: Duration::from_secs(600),
            stop_limit: Duration::from_secs(60),
            max_running: room::that_fit(),
            parallel_starts: cores * 2,
            network: BranchNetwork::None,
            limits: ComputeLimits { memory_bytes: room::memory_bytes() / 2, tasks: 1024 },
        }
    }

    /// Memory that one compute has.
    pub fn memory_bytes(&self) -> u64 {
        match self.limits.memory_bytes {
            0 => room::memory_bytes(),
            limit => limit,
        }
    }
}
