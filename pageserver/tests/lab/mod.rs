//! A place with real Postgres for the tests of computes and imports: temporary directories, a
//! ready-made cluster that is copied for every timeline, and connections.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageserver::compute::{
    ComputeConfig, DataDirectories, Installation, OsUser, Supervisor, bootstrap, leftovers,
};
use pageserver::error::Result;
use pageserver::storage::page::TimelineId;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Data directories on an ordinary file system.
#[derive(Default)]
pub(crate) struct Directories {
    pub(crate) root: PathBuf,
    pub(crate) opened: AtomicUsize,
    pub(crate) closed: AtomicUsize,
    /// Whether no name leads to any of the timelines.
    pub(crate) unwanted: AtomicBool,
}

impl DataDirectories for Directories {
    fn open(&self, timeline: TimelineId) -> Result<PathBuf> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(self.root.join(timeline.to_string()))
    }

    fn closed(&self, _: TimelineId) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }

    fn is_wanted(&self, _: TimelineId) -> bool {
        !self.unwanted.load(Ordering::SeqCst)
    }
}

/// One test's directories; they and every Postgres in them go with it.
pub(crate) struct Lab {
    pub(crate) root: PathBuf,
    pub(crate) installation: Installation,
    pub(crate) user: OsUser,
    pub(crate) directories: Arc<Directories>,
}

/// The cluster that all timelines of a test binary are copied from, with the superuser's password.
static TEMPLATE: OnceCell<(PathBuf, String)> = OnceCell::const_new();

impl Lab {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let root =
            std::env::temp_dir().join(format!("coppice-lab-{}-{number}", std::process::id()));
        Self::at(root)
    }

    /// A lab in a given place, for a victim process.
    pub(crate) fn at(root: PathBuf) -> Self {
        let lab = Self {
            installation: Installation::find(None).unwrap(),
            user: OsUser::resolve(None).unwrap(),
            directories: Arc::new(Directories {
                root: root.join("data"),
                ..Directories::default()
            }),
            root,
        };
        for directory in [&lab.root, &lab.run_dir(), &lab.directories.root] {
            fs::create_dir_all(directory).unwrap();
            fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        }
        lab
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn data(&self, timeline: TimelineId) -> PathBuf {
        self.directories.root.join(timeline.to_string())
    }

    /// A directory of the user that Postgres runs as.
    pub(crate) fn owned_directory(&self, path: &Path) {
        fs::create_dir_all(path).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
        lchown(path, Some(self.user.uid), Some(self.user.gid)).unwrap();
    }

    /// A new timeline with a fresh cluster; returns the superuser's password.
    pub(crate) async fn timeline(&self, timeline: TimelineId) -> String {
        let (template, password) = TEMPLATE.get_or_init(|| self.make_template()).await;
        copy(template, &self.data(timeline));
        password.clone()
    }

    #[expect(clippy::zombie_processes, reason = "the child waits for us, not we for it")]
    async fn make_template(&self) -> (PathBuf, String) {
        let template =
            std::env::temp_dir().join(format!("coppice-template-{}", std::process::id()));
        self.owned_directory(&template);
        let made =
            bootstrap::initialize(&self.installation, &self.user, &template, &self.run_dir()).await;
        // Nobody runs at the end of a test binary, so the child of a shell waits for our end.
        let clean = format!(
            "while kill -0 {}; do sleep 1; done; rm -rf '{}'",
            std::process::id(),
            template.display()
        );
        Command::new("sh")
            .args(["-c", &clean])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        (template, made.unwrap())
    }

    pub(crate) fn config(&self) -> ComputeConfig {
        ComputeConfig::new(self.installation.clone(), self.user.clone(), self.run_dir())
    }

    pub(crate) fn supervisor(&self) -> Arc<Supervisor> {
        self.supervisor_with(self.config())
    }

    pub(crate) fn supervisor_with(&self, config: ComputeConfig) -> Arc<Supervisor> {
        Supervisor::new(config, self.directories.clone()).unwrap()
    }

    /// Postgres processes that work on a timeline.
    pub(crate) fn processes(&self, timeline: TimelineId) -> Vec<i32> {
        let data = self.data(timeline);
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data))
            .collect()
    }

    /// Number of the postmaster of a timeline, as its lock file says.
    pub(crate) fn postmaster(&self, timeline: TimelineId) -> i32 {
        let text = fs::read_to_string(self.data(timeline).join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// Runs one of Postgres's programs as its user; returns whether it succeeded, and all it
    /// printed.
    pub(crate) fn tool(
        &self,
        program: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> (bool, String) {
        let mut command = Command::new(self.installation.program(program));
        command.args(arguments).envs(environment.iter().copied()).current_dir("/");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, self.user.uid);
            std::os::unix::process::CommandExt::gid(&mut command, self.user.gid);
        }
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A victim process leaves its computes on purpose.
        if std::env::var_os("COPPICE_TEST_VICTIM").is_none() {
            leftovers::clean(&self.run_dir()).unwrap();
            fs::remove_dir_all(&self.root).unwrap();
        }
    }
}

/// Copies a directory with owners and modes.
pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Connects to a compute as superuser. The connection ends with the client.
pub(crate) async fn connect(socket: &Path, password: &str) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket.parent().unwrap()).user("postgres").password(password).dbname("app");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The first column of the first row, as text.
pub(crate) async fn ask(client: &tokio_postgres::Client, query: &str) -> String {
    let rows = client.simple_query(query).await.unwrap();
    let row = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.unwrap().get(0).unwrap_or_default().to_owned()
}

/// Waits until `condition` holds; fails the test, saying `what`, if it does not in time.
pub(crate) async fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}
