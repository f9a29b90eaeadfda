//! Stock Postgres on a Coppice branch and on the local file system, with the same settings, for benchmarks.

use super::{Directory, Server, postgres_program};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Settings of both sides.
const SETTINGS: [&str; 4] =
    ["max_connections=300", "shared_buffers=256MB", "max_wal_size=4GB", "checkpoint_timeout=15min"];

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One Postgres, reached over a socket with a password.
pub struct Side {
    /// What it is called in the results.
    pub name: &'static str,
    socket: PathBuf,
    password: String,
}

impl Side {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(postgres_program(program));
        command.arg("-h").arg(&self.socket).args(["-U", "postgres"]).env("PGPASSWORD", &self.password);
        command
    }

    /// Runs SQL.
    pub fn psql(&self, sql: &str) {
        let output = self.command("psql").args(["-Xq", "-d", "app", "-c", sql]).output().expect("run psql");
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
    }

    /// Runs pgbench; what it printed.
    pub fn pgbench(&self, args: &[&str]) -> String {
        let output = self.command("pgbench").args(args).arg("app").output().expect("run pgbench");
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs pgbench; transactions per second.
    pub fn tps(&self, args: &[&str]) -> f64 {
        let output = self.pgbench(args);
        let line = output.lines().find_map(|line| line.strip_prefix("tps = ")).expect("a line with tps");
        line.split(' ').next().and_then(|tps| tps.parse().ok()).expect("a number")
    }
}

/// Postgres on the local file system.
pub struct Native {
    child: Child,
    directory: Directory,
}

impl Native {
    /// Makes a cluster and starts it.
    pub fn start() -> Self {
        let directory = Directory::new();
        let user = pageserver::compute::OsUser::resolve(None).expect("a user for Postgres");
        let data = directory.path().join("native");
        std::fs::create_dir(&data).expect("make a directory");
        std::os::unix::fs::chown(&data, Some(user.uid), Some(user.gid)).expect("give it to Postgres");
        let as_user = |program: &str| {
            let mut command = Command::new(postgres_program(program));
            command.uid(user.uid).gid(user.gid).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let mut initdb = as_user("initdb");
        initdb.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--data-checksums",
        ]);
        assert!(initdb.args(["-A", "trust"]).status().expect("run initdb").success());
        let child = spawn(&data);
        Self { child, directory }
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("native")
    }

    /// Stops it cleanly, calls `between`, and starts it again.
    pub fn restart(&mut self, between: impl FnOnce()) {
        self.stop();
        between();
        self.child = spawn(&self.data());
    }

    fn stop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }

    /// How to reach its database.
    pub fn side(&self) -> Side {
        let side =
            Side { name: "native", socket: self.directory.path().join("native"), password: String::new() };
        let output = side.command("createdb").arg("app").output().expect("run createdb");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        side
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(data: &Path) -> Child {
    let user = pageserver::compute::OsUser::resolve(None).expect("a user for Postgres");
    let mut postgres = Command::new(postgres_program("postgres"));
    postgres.uid(user.uid).gid(user.gid).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    postgres.arg("-D").arg(data).arg("-k").arg(data).args(["-c", "listen_addresses="]);
    for setting in SETTINGS {
        postgres.args(["-c", setting]);
    }
    let child = postgres.spawn().expect("start postgres");
    let deadline = Instant::now() + Duration::from_secs(30);
    let ready =
        || std::fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| text.contains("ready"));
    while !ready() {
        assert!(Instant::now() < deadline, "native Postgres did not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// The main branch with the settings of both sides, awake.
pub fn ours(server: &Server) -> Side {
    for setting in SETTINGS {
        let (name, value) = setting.split_once('=').expect("a setting");
        server.sql("main", &format!("alter system set {name} = '{value}'")).expect("alter system");
    }
    server.client().suspend("main").expect("suspend");
    let socket = server.client().wake("main").expect("wake").socket.expect("a socket");
    let url = server.url("main");
    let password = url.split([':', '@']).nth(2).expect("a password").to_owned();
    let socket = Path::new(&socket).parent().expect("the socket's directory").to_path_buf();
    Side { name: "coppice", socket, password }
}

/// Measures both sides in alternating order, and prints the ratio of the medians, ours over native.
pub fn compare(what: &str, sides: &[Side; 2], rounds: u64, mut measure: impl FnMut(&Side) -> f64) {
    let mut results = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        // Who goes first changes, so that a trend of the machine favours nobody.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        order.into_iter().for_each(|nth| results[nth].push(measure(&sides[nth])));
    }
    let median = |values: &Vec<f64>| {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let (ours, native) = (median(&results[0]), median(&results[1]));
    let show = |values: &Vec<f64>| values.iter().map(|v| format!("{v:.0}")).collect::<Vec<_>>().join(" ");
    println!(
        "{what:<24} ratio {:.3}   coppice {}   native {}",
        ours / native,
        show(&results[0]),
        show(&results[1])
    );
}
