//! Two throw-away Postgres servers that stand for the branches `main` and `feature/x`.
//!
//! All tests that run at the same time share them. They are stopped and removed with the last of
//! these tests, and if the test process is killed, they die with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use proxy::locks::lock;

/// Longer than anything here takes unless it hangs, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Password of the role `postgres`, which has to authenticate with SCRAM.
pub(crate) const PASSWORD: &str = "correct horse";
/// Name of a role that needs no password, for tests that speak the protocol by hand.
pub(crate) const GUEST: &str = "guest";

/// The servers.
pub(crate) struct Cluster {
    dir: PathBuf,
    servers: Vec<Child>,
}

impl Cluster {
    /// The running servers, started if there are none.
    pub(crate) fn shared() -> Arc<Self> {
        static RUNNING: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut running = lock(&RUNNING);
        running.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Cluster::start());
            *running = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// The socket of `main` or `feature`.
    pub(crate) fn socket(&self, server: &str) -> PathBuf {
        self.dir.join(server).join(".s.PGSQL.5432")
    }

    fn start() -> Self {
        static STARTS: Mutex<u32> = Mutex::new(0);
        let mut starts = STARTS.lock().unwrap();
        *starts += 1;
        let dir =
            std::env::temp_dir().join(format!("coppice-proxy-{}-{starts}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        if let Some(user) = owner() {
            chown(&dir, Some(user.uid), Some(user.gid)).unwrap();
        }
        let mut cluster = Self { dir, servers: Vec::new() };
        cluster.initialize();
        for server in ["main", "feature"] {
            cluster.servers.push(spawn(cluster.postgres(server)));
        }
        for server in ["main", "feature"] {
            wait_for(&cluster.socket(server));
        }
        cluster.sql(&format!("create role {GUEST} login; create database app"));
        cluster
    }

    /// Makes the data directory of `main`, and that of `feature` as a copy.
    fn initialize(&self) {
        let main = self.dir.join("main");
        let passwords = self.dir.join("passwords");
        fs::write(&passwords, PASSWORD).unwrap();
        let mut initdb = as_owner(&bin("initdb"));
        initdb.args(["--no-sync", "--username=postgres", "--auth=scram-sha-256", "--pwfile"]);
        run(initdb.arg(&passwords).arg("-D").arg(&main));
        let hba = format!("local all {GUEST} trust\nlocal all postgres scram-sha-256\n");
        fs::write(main.join("pg_hba.conf"), hba).unwrap();
        run(as_owner(Path::new("cp")).arg("-a").arg(&main).arg(self.dir.join("feature")));
    }

    fn postgres(&self, server: &str) -> Command {
        let data = self.dir.join(server);
        let mut postgres = as_owner(&bin("postgres"));
        postgres.arg("-D").arg(&data).arg("-k").arg(&data);
        for setting in
            ["listen_addresses=", "fsync=off", "max_connections=250", "log_min_messages=panic"]
        {
            postgres.args(["-c", setting]);
        }
        postgres.args(["-c", &format!("cluster_name={server}")]);
        postgres.stdout(Stdio::null()).stderr(Stdio::null());
        postgres
    }

    /// Runs statements on both servers, past the proxy.
    fn sql(&self, statements: &str) {
        for server in ["main", "feature"] {
            let mut psql = Command::new(bin("psql"));
            psql.env("PGPASSWORD", PASSWORD)
                .args(["-qX", "-U", "postgres", "-d", "postgres", "-h"]);
            psql.arg(self.dir.join(server));
            statements.split("; ").for_each(|statement| {
                psql.args(["-c", statement]);
            });
            run(&mut psql);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGQUIT);
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Path of a program of the newest Postgres on this machine.
pub(crate) fn bin(program: &str) -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/postgresql").expect("the package `postgresql` is installed");
    let versions = versions.map(|entry| entry.unwrap().path());
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.filter(|path| path.join("bin/postgres").exists()).max_by_key(number);
    newest.expect("the package `postgresql` is installed").join("bin").join(program)
}

/// The user to run Postgres as: it refuses to run as root.
fn owner() -> Option<User> {
    Uid::effective()
        .is_root()
        .then(|| User::from_name("postgres").unwrap().expect("a user `postgres`"))
}

/// A command that runs as [`owner`], and ends when the thread that starts it does.
fn as_owner(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if owner().is_some() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).current_dir("/");
    command
}

/// Starts a server from a thread that lives as long as the test process, so that it is not a test's
/// end that ends it.
fn spawn(mut command: Command) -> Child {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        sender.send(command.spawn().unwrap()).unwrap();
        loop {
            std::thread::park();
        }
    });
    receiver.recv().unwrap()
}

fn run(command: &mut Command) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let errors: Vec<String> =
        BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success(), "{command:?}: {errors:?}");
}

fn wait_for(socket: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "no server at {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    // It listens a moment before it accepts sessions.
    let ready = || {
        Command::new(bin("pg_isready")).arg("-q").arg("-h").arg(socket.parent().unwrap()).status()
    };
    while !ready().unwrap().success() {
        assert!(Instant::now() < deadline, "no sessions at {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
