//! Child processes that never outlive the server.
//!
//! The kernel sends the parent-death signal when the *thread* that forked ends, and threads of the
//! async runtime come and go. So one thread that never ends spawns every child.

use super::user::OsUser;
use crate::sys::child::{Network, Preparation, prepare};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

const GROUP_POLL: Duration = Duration::from_millis(2);
const GROUP_LIMIT: Duration = Duration::from_secs(10);

type SpawnJob = Box<dyn FnOnce() + Send>;

/// A process of ours. Dropped while it runs, it gets the signal it was spawned with; the runtime
/// reaps it.
#[derive(Debug)]
pub(crate) struct OwnedChild {
    child: Child,
    pid: Pid,
    death: Signal,
}

/// Where a child runs.
pub(crate) struct Surroundings {
    /// Its network.
    pub(crate) network: Network,
    /// How much sooner than others it is ended when memory runs out.
    pub(crate) oom_score: Option<&'static str>,
    /// A list of users that it sees in place of the system's.
    pub(crate) users: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn ours() -> Self {
        Self { network: Network::Shared, oom_score: None, users: None }
    }
}

/// Spawns `command` as `user` in a process group of its own, with a clean environment apart from
/// what `command` sets. The child gets `death` when the server dies or when its owner is dropped.
pub(crate) async fn spawn(
    mut command: Command,
    user: &OsUser,
    death: Signal,
    Surroundings { network, oom_score, users }: Surroundings,
) -> io::Result<OwnedChild> {
    let identity = user.is_other().then_some((user.uid, user.gid));
    command.process_group(0);
    prepare(command.as_std_mut(), Preparation { oom_score, network, users, identity, death });
    let runtime = tokio::runtime::Handle::current();
    let (reply, answer) = oneshot::channel();
    let job = Box::new(move || {
        let _runtime = runtime.enter();
        let spawned = command.spawn().and_then(|child| OwnedChild::new(child, death));
        // A caller that is gone drops the child here, which ends it.
        drop(reply.send(spawned));
    });
    spawner()?.send(job).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

fn spawner() -> io::Result<&'static mpsc::Sender<SpawnJob>> {
    static SPAWNER: OnceLock<Option<mpsc::Sender<SpawnJob>>> = OnceLock::new();
    let sender = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<SpawnJob>();
        let run = move || jobs.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name("spawner".to_owned()).spawn(run);
        thread.is_ok().then_some(sender)
    });
    sender.as_ref().ok_or_else(gone)
}

fn gone() -> io::Error {
    io::Error::other("the thread that spawns processes is not there")
}

impl OwnedChild {
    fn new(child: Child, death: Signal) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let pid = id.map(Pid::from_raw).ok_or_else(gone)?;
        Ok(Self { child, pid, death })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits for the end; may be cancelled and called again.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Signals the process, unless it was already waited for (then its number may belong to another
    /// one).
    pub(crate) fn signal(&self, signal: Signal) {
        if self.child.id().is_some() {
            // It can only fail for a process that has ended, which is what every caller wants.
            let _ended = kill(self.pid, signal);
        }
    }

    /// Kills the process, unless it was waited for, with every one that stayed in its group.
    pub(crate) fn kill_group(&self) {
        if self.child.id().is_some() {
            let _ended = killpg(self.pid, Signal::SIGKILL);
        }
    }

    /// Kills the process group and waits until it is empty, so that nothing writes to its files any
    /// more.
    pub(crate) async fn stop_group(&mut self) {
        // The group keeps its number while it has a member, so this cannot hit another one.
        let _empty = killpg(self.pid, Signal::SIGKILL);
        let gone = async {
            let _status = self.child.wait().await;
            while killpg(self.pid, None).is_ok() {
                tokio::time::sleep(GROUP_POLL).await;
            }
        };
        if tokio::time::timeout(GROUP_LIMIT, gone).await.is_err() {
            tracing::error!(pid = self.pid(), "a process group cannot be killed");
        }
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        self.signal(self.death);
    }
}
