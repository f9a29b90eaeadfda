//! Support for the tests on real Postgres: a real server process with its own directory and free
//! ports.
//!
//! A [`Server`] that is dropped, also by a failing test, stops its process, removes its mount and
//! its directory.

pub mod cluster;
pub mod commits;
pub mod figures;
pub mod loop_volume;
pub mod mapped;
pub mod mirror;
pub mod mixed;
pub mod processes;
pub mod sides;
pub mod tpcb;
pub mod volume;

use api::client::Client;
use pageserver::compute::Installation;
use pageserver::compute::groups::remove_groups;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime};

mod source;

pub use source::{Source, free_port};

/// How long a server may take to become ready or to stop.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A directory of a test's own, removed when dropped.
pub struct Directory(PathBuf);

impl Directory {
    /// Makes a directory whose short path leaves room for sockets, and which other users may pass
    /// through.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("coppice-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("make a directory for the test");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, open).expect("open the test's directory");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        unmount(&self.0.join("data/mount"));
        unmount(&self.0.join("data/mount-wal"));
        remove_groups(&self.0.join("data/run"));
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn unmount(mountpoint: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(mountpoint)) {
        let _ = Command::new("fusermount3").arg("-uz").arg(mountpoint).status();
    }
}

/// A program of this workspace, built beside the tests.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("find the test's own program");
    let built = test.ancestors().map(|directory| directory.join(name)).find(|path| path.is_file());
    built.unwrap_or_else(|| panic!("{name} is not built: run `cargo build --workspace` first"))
}

/// Directory of the programs of the Postgres to test, if it is not the one that the server finds by
/// itself.
fn named_postgres() -> Option<PathBuf> {
    std::env::var_os("COPPICE_TEST_POSTGRES_BIN").map(PathBuf::from)
}

/// The Postgres that is tested: the one that `COPPICE_TEST_POSTGRES_BIN` names, or else the newest
/// of this machine.
pub fn postgres() -> Installation {
    Installation::find(named_postgres().as_deref()).expect("Postgres is installed")
}

/// A program of the Postgres that is tested. One that it does not have, such as a client, is this
/// machine's own.
pub fn postgres_program(name: &str) -> PathBuf {
    let program = postgres().program(name);
    if program.is_file() {
        return program;
    }
    Installation::find(None).expect("Postgres is installed").program(name)
}

/// A running server.
pub struct Server {
    child: Child,
    args: Vec<String>,
    wrapper: Vec<String>,
    log: Arc<Mutex<Vec<String>>>,
    /// URL of the API.
    pub api: String,
    /// Address of the proxy.
    pub proxy: SocketAddr,
    /// Where everything of it is; the server's data directory is `data` in it.
    pub directory: Arc<Directory>,
}

struct Started {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    api: String,
    proxy: SocketAddr,
}

impl Server {
    /// Starts a server on an empty directory.
    pub fn start() -> Self {
        Self::start_with(Arc::new(Directory::new()), &[])
    }

    /// The server that the tests of this program share: it lives as long as any of them holds it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// Starts a server on a directory with more flags.
    pub fn start_with(directory: Arc<Directory>, args: &[&str]) -> Self {
        Self::start_wrapped(directory, args, &[])
    }

    /// Starts a server through a command that ends by becoming the one in its last arguments, such
    /// as `env`.
    pub fn start_wrapped(directory: Arc<Directory>, args: &[&str], wrapper: &[String]) -> Self {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let wrapper = wrapper.to_vec();
        let Started { child, log, api, proxy } = launch(&directory, &args, &wrapper);
        Self { child, args, wrapper, log, api, proxy, directory }
    }

    /// The server's data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log's lock").join("\n")
    }

    /// The API's bearer token.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.data().join("api-token"))
            .expect("read the token")
            .trim()
            .to_owned()
    }

    /// A client of its API.
    pub fn client(&self) -> Client {
        Client::new(&self.api, Some(self.token())).expect("make a client")
    }

    /// The URL of a database of a branch.
    pub fn url(&self, branch: &str) -> String {
        self.client().connection(branch, None, None).expect("ask for a connection").url
    }

    /// Runs SQL with `psql` through the proxy; the output, unaligned.
    pub fn sql(&self, branch: &str, sql: &str) -> Result<String, String> {
        let output = self.psql(branch, &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs `psql` through the proxy.
    pub fn psql(&self, branch: &str, args: &[&str]) -> Output {
        let psql = Command::new(postgres_program("psql")).args(args).arg(self.url(branch)).output();
        psql.expect("run psql")
    }

    /// Kills the server as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the server");
        self.child.wait().expect("wait for the server");
    }

    /// Starts it again on the same directory after [`Server::kill`] or [`Server::stop`].
    pub fn restart(&mut self) {
        let started = launch(&self.directory, &self.args, &self.wrapper);
        (self.child, self.log) = (started.child, started.log);
        (self.api, self.proxy) = (started.api, started.proxy);
    }

    /// Asks it to stop and waits.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = nix_pid(&self.child);
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the server") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn nix_pid(child: &Child) -> String {
    child.id().to_string()
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("kill").args(["-TERM", &nix_pid(&self.child)]).status();
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Verifies the store of a stopped server with `pageserver check`: its exit code and what it
/// printed.
///
/// # Panics
/// If the check changed a file of the data directory, unless a server uses it.
pub fn check(data: &Path) -> (i32, String) {
    let before = fingerprint(data);
    let output = Command::new(program("pageserver")).arg("check").arg("--data").arg(data).output();
    let output = output.expect("run the check");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let served = text.contains("in use by another server");
    assert!(served || fingerprint(data) == before, "the check changed something: {text}");
    (output.status.code().expect("an exit code"), text)
}

/// Each file below a directory: its path, its length, the time of its last change, and the
/// checksum of its contents.
fn fingerprint(directory: &Path) -> BTreeMap<PathBuf, (u64, SystemTime, u32)> {
    let (mut found, mut directories) = (BTreeMap::new(), vec![directory.to_path_buf()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("list a directory") {
            let path = entry.expect("an entry of a directory").path();
            let metadata = path.symlink_metadata().expect("look at a file");
            if metadata.is_dir() {
                directories.push(path);
            } else if metadata.is_file() {
                let bytes = std::fs::read(&path).expect("read a file");
                let changed = metadata.modified().expect("the time of a file's last change");
                found.insert(path, (metadata.len(), changed, crc32fast::hash(&bytes)));
            }
        }
    }
    found
}

/// Waits until `condition` holds; fails the test, saying `what`, if it does not in time.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The command that starts a server, for tests that start it in their own way. Requests to the
/// mount come the same way on each machine, unless `COPPICE_TEST_IO_URING` says another.
pub fn serve_command(directory: &Directory, args: &[String]) -> Command {
    let mut command = Command::new(program("pageserver"));
    command.arg("serve").arg("--data").arg(directory.path().join("data"));
    let io_uring = std::env::var("COPPICE_TEST_IO_URING");
    let io_uring = io_uring.as_deref().unwrap_or("off");
    for (flag, value) in
        [("--api", "127.0.0.1:0"), ("--proxy", "127.0.0.1:0"), ("--io-uring", io_uring)]
    {
        if !args.iter().any(|arg| arg == flag) {
            command.args([flag, value]);
        }
    }
    if let Some(bin) = named_postgres().filter(|_| !args.iter().any(|arg| arg == "--postgres-bin"))
    {
        command.arg("--postgres-bin").arg(bin);
    }
    command
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn launch(directory: &Directory, args: &[String], wrapper: &[String]) -> Started {
    let mut command = serve_command(directory, args);
    if let [first, rest @ ..] = wrapper {
        let mut wrapped = Command::new(first);
        wrapped.args(rest).arg(command.get_program()).args(command.get_args());
        wrapped.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command = wrapped;
    }
    let mut child = command.spawn().expect("start the server");
    let log = Arc::new(Mutex::new(Vec::new()));
    let stderr = child.stderr.take().expect("the server's log");
    let (sender, ready) = mpsc::channel();
    let lines = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let addresses = (field(&line, "api="), field(&line, "proxy="));
            if let (true, (Some(api), Some(proxy))) = (line.contains(" ready "), addresses) {
                let _ = sender.send((format!("http://{api}"), proxy));
            }
            lines.lock().expect("the log's lock").push(line);
        }
    });
    match ready.recv_timeout(LIMIT) {
        Ok((api, proxy)) => {
            Started { child, log, api, proxy: proxy.parse().expect("the proxy's address") }
        }
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not start:\n{}", log.lock().expect("the log's lock").join("\n"));
        }
    }
}

fn field(line: &str, name: &str) -> Option<String> {
    line.split(' ').find_map(|word| word.strip_prefix(name)).map(str::to_owned)
}
