//! One running Postgres: from spawning `postgres` itself (`pg_ctl` polls and would stand in
//! between) to the end of its last process.

use super::child::{self, OwnedChild, Surroundings};
use super::data_directory;
use super::installation::Installation;
use super::lines::{LAST_LINES_LIMIT, LINE_BYTES, read_long_lines, start_of};
use super::log::PostgresLog;
use super::log_files::{LOGGED_LINE_BYTES, LogSink};
use super::settings::{self, Situation};
use super::user::OsUser;
use super::{processes, tool};
use crate::error::{Error, Result};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often a starting Postgres is looked at; it needs 30 ms and more.
const READY_POLL: Duration = Duration::from_millis(1);
/// When, and how often, the file itself is looked at.
const UNSYNCED_AFTER: Duration = Duration::from_secs(1);
const UNSYNCED_POLL: Duration = Duration::from_millis(50);
/// Time for an immediate shutdown; after 5 s of it Postgres kills its own children.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(10);
/// Time for a killed process to go; only a stuck disk takes any.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A Postgres server process. Dropped while it runs, it is shut down immediately (as in a crash).
#[derive(Debug)]
pub(crate) struct Postgres {
    child: OwnedChild,
    log: PostgresLog,
    reader: JoinHandle<()>,
    data: PathBuf,
    uid: u32,
}

impl Postgres {
    /// Starts Postgres as `situation` says, and gives all that it logs to `sink`. It is not ready
    /// yet when this returns.
    pub(crate) async fn spawn(
        installation: &Installation,
        user: &OsUser,
        situation: &Situation<'_>,
        surroundings: Surroundings,
        sink: LogSink,
    ) -> Result<Self> {
        let mut command = tool::command(installation, "postgres");
        command.args(settings::arguments(situation));
        command.envs(libpq_defaults(user, situation));
        // SIGQUIT is Postgres's immediate shutdown: it ends all processes and removes the shared
        // memory.
        let child = child::spawn(command, user, Signal::SIGQUIT, surroundings).await;
        let mut child = child.map_err(|e| {
            Error::io(format_args!("run {}/postgres", installation.bin.display()), &e)
        })?;
        let log = PostgresLog::default();
        let (kept, stderr, timeline) = (log.clone(), child.take_stderr(), situation.timeline);
        let pid = child.pid();
        let reader = tokio::spawn(async move {
            if let Some(stderr) = stderr {
                read_long_lines(stderr, LOGGED_LINE_BYTES, |line, cut| {
                    sink.push(line, cut);
                    let line = start_of(line, LINE_BYTES);
                    if kept.push(pid, line) {
                        tracing::debug!(%timeline, "postgres: {line}");
                    }
                })
                .await;
            }
        });
        Ok(Self { child, log, reader, data: situation.data.to_owned(), uid: user.uid })
    }

    /// The operating-system user that it runs as.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Number of the postmaster process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Waits until connections are accepted; the error carries Postgres's own last lines.
    pub(crate) async fn ready(
        &mut self,
        limit: Duration,
        lock_file: impl Fn() -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<()> {
        let mut poll = Poll::start(self.data.clone(), self.pid(), lock_file);
        let ready = tokio::select! {
            biased;
            status = self.child.wait() => Err(self.died(status).await),
            ready = &mut poll.thread => ready.map_err(|e| {
                let detail = format!("looking at a starting Postgres failed: {e}");
                Error::unavailable("compute_failed", detail)
            }),
            () = tokio::time::sleep(limit) => Err(Error::unavailable(
                "compute_slow",
                format!(
                    "Postgres did not get ready within {} s. Its last lines:\n{}",
                    limit.as_secs(),
                    self.log.text()
                ),
            )),
        };
        self.log.opened_to_clients();
        ready
    }

    /// Waits until Postgres ends by itself, and says how. May be cancelled and called again.
    pub(crate) async fn died_by_itself(&mut self) -> Error {
        let status = self.child.wait().await;
        self.died(status).await
    }

    async fn died(&mut self, status: std::io::Result<ExitStatus>) -> Error {
        // Orphans may hold the pipe; the lines so far have to do then.
        let _late = tokio::time::timeout(LAST_LINES_LIMIT, &mut self.reader).await;
        let how = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        let detail = match self.log.text().as_str() {
            "" => format!("Postgres ended ({how}) and said nothing"),
            lines => format!("Postgres ended ({how}). Its last lines:\n{lines}"),
        };
        Error::unavailable("compute_failed", detail)
    }

    /// Shuts Postgres down: fast for `limit` or until `hurried`, then immediately, then by force.
    /// True if it was a clean shutdown.
    pub(crate) async fn stop(
        &mut self,
        limit: Duration,
        hurried: impl Future<Output = ()>,
    ) -> bool {
        self.child.signal(Signal::SIGINT);
        let ended = tokio::select! {
            status = tokio::time::timeout(limit, self.child.wait()) => status.ok(),
            () = hurried => None,
        };
        if let Some(status) = ended {
            return status.is_ok_and(|status| status.success());
        }
        for (signal, limit) in [(Signal::SIGQUIT, IMMEDIATE_LIMIT), (Signal::SIGKILL, KILL_LIMIT)] {
            self.child.signal(signal);
            if tokio::time::timeout(limit, self.child.wait()).await.is_ok() {
                return false;
            }
            tracing::warn!(
                data = %self.data.display(), pid = self.pid(),
                "Postgres does not end on {signal}"
            );
        }
        false
    }

    /// Kills what an unclean end left of it: after this nothing writes to the data directory any
    /// more. A segment of shared memory that a killed postmaster left is found and reused by the
    /// next start.
    pub(crate) async fn sweep(&self) {
        let data = self.data.clone();
        // It fails only when the runtime shuts down, and then the server's own end does the same.
        let _ended = tokio::task::spawn_blocking(move || sweep_directory(&data)).await;
    }
}

/// What makes libpq inside a Postgres, as in dblink, behave as where the user of Postgres has a
/// name on the system: it connects as the role of that name, and to this Postgres (PostgreSQL
/// manual, 34.15).
fn libpq_defaults<'a>(
    user: &'a OsUser,
    situation: &Situation<'a>,
) -> [(&'static str, &'a OsStr); 5] {
    let name = OsStr::new(user.name.split(' ').next().unwrap_or(&user.name));
    [
        ("PGUSER", name),
        ("USER", name),
        ("LOGNAME", name),
        ("HOME", situation.data.as_os_str()),
        ("PGHOST", situation.sockets.as_os_str()),
    ]
}

fn sweep_directory(data: &Path) {
    let real = data.canonicalize();
    processes::stop_all_in(real.as_deref().unwrap_or(data));
}

/// A thread that looks at the lock file of a starting Postgres: at what of it the server has, since
/// the kernel hands it over when Postgres syncs or closes it, and at the file itself only if that
/// takes long. A server that is killed while it has a file of its own mount open would wait for
/// itself, and so never end. On a thread of its own, since the file may be on a mount that hangs,
/// and ended when nobody waits for it any more.
struct Poll {
    thread: JoinHandle<()>,
    given_up: Arc<AtomicBool>,
}

impl Poll {
    fn start(
        data: PathBuf,
        pid: i32,
        lock_file: impl Fn() -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let given_up = Arc::new(AtomicBool::new(false));
        let stop = given_up.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let received = lock_file();
                if received.as_ref().is_some_and(|text| data_directory::says_ready(text, pid)) {
                    break;
                }
                if received.is_some() && began.elapsed() < UNSYNCED_AFTER {
                    std::thread::sleep(READY_POLL);
                    continue;
                }
                if data_directory::read_lock_file(&data)
                    .is_some_and(|text| data_directory::says_ready(&text, pid))
                {
                    break;
                }
                std::thread::sleep(if received.is_some() { UNSYNCED_POLL } else { READY_POLL });
            }
        });
        Self { thread, given_up }
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}
