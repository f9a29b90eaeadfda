//! A server and its Postgres processes, as `/proc` shows them.

use super::{LIMIT, Server};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A server that uses no more of a core than this, in hundredths of a second, for so long is at
/// rest: it looks around once a second.
const REST_TICKS: u64 = 1;
const REST: Duration = Duration::from_millis(250);

/// A Postgres process. Its number and its start together name it for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since boot.
    pub start: u64,
    /// Number of its parent.
    pub parent: u32,
    /// Its data directory, which it works in.
    pub directory: PathBuf,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        if program.file_name()? != "postgres" {
            return None;
        }
        let directory = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
        let alive = fields[0] != "Z";
        alive.then_some(Self {
            pid,
            start: fields[19].parse().ok()?,
            parent: fields[1].parse().ok()?,
            directory,
        })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start == self.start)
    }

    /// Ends it as a crash would.
    pub fn kill(&self) {
        let killed = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        assert!(killed.expect("run kill").success(), "{self:?} is not there");
    }
}

/// All Postgres processes that work in `directory` or below.
pub fn below(directory: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read)
        .filter(|process| process.directory.starts_with(directory))
        .collect()
}

/// Those of one branch.
pub fn of_branch(server: &Server, branch: &str) -> Vec<Process> {
    let timeline = server.client().get(branch).expect("find the branch").timeline;
    below(&server.data().join("mount").join(timeline))
}

/// The postmasters among `processes`: the others are their children.
pub fn postmasters(server: &Server, mut processes: Vec<Process>) -> Vec<Process> {
    processes.retain(|process| process.parent == server.pid());
    processes
}

/// Waits until a server does nothing in the background any more.
pub fn wait_until_at_rest(server: &Server) {
    let began = Instant::now();
    let mut last = cpu_ticks(server.pid());
    loop {
        std::thread::sleep(REST);
        let now = cpu_ticks(server.pid());
        if now - last <= REST_TICKS {
            return;
        }
        assert!(began.elapsed() < LIMIT, "the server is at work without end:\n{}", server.log());
        last = now;
    }
}

/// What a process has used of the processors, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("look at the server");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}
