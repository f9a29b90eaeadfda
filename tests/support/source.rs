//! A Postgres server outside Coppice, from which imports copy. It goes, with its directory, when
//! dropped.

use super::{Directory, LIMIT, postgres_program};
use pageserver::compute::OsUser;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running Postgres server that is no branch.
pub struct Source {
    child: Child,
    user: OsUser,
    port: u16,
    directory: Directory,
}

impl Source {
    /// Password of its superuser `postgres`, and of that of an imported branch.
    pub const PASSWORD: &str = "s3cret-of-the-source";

    /// Makes a new cluster and starts it on a free port of the loopback interface.
    pub fn start() -> Self {
        Self::start_with(|_| None)
    }

    /// The same with a configuration outside of the data directory, as Debian has it, to which
    /// these lines are added.
    pub fn configured_elsewhere(lines: &str) -> Self {
        Self::start_with(|data| {
            let etc = data.with_extension("etc");
            fs::create_dir(&etc).expect("make a directory for the configuration");
            for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
                fs::copy(data.join(name), etc.join(name)).expect("copy the configuration");
                fs::set_permissions(etc.join(name), PermissionsExt::from_mode(0o644))
                    .expect("let the source read its configuration");
                fs::remove_file(data.join(name)).expect("remove the configuration");
            }
            let config = etc.join("postgresql.conf");
            let files = format!(
                "hba_file = '{0}/pg_hba.conf'\nident_file = '{0}/pg_ident.conf'\n",
                etc.display()
            );
            let before = fs::read_to_string(&config).expect("read the configuration");
            fs::write(&config, before + &files + lines).expect("write the configuration");
            Some(config)
        })
    }

    fn start_with(configure: impl FnOnce(&Path) -> Option<PathBuf>) -> Self {
        let (directory, user) =
            (Directory::new(), OsUser::resolve(None).expect("find the user of Postgres"));
        let port = free_port();
        let data = directory.path().join("source");
        own(&data, &user);
        let password = data.with_extension("password");
        fs::write(&password, Self::PASSWORD).expect("write the password");
        let mut initdb = as_user(&postgres_program("initdb"), &user);
        initdb.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--no-sync",
            "--pwfile",
        ]);
        let made = initdb.arg(&password).output().expect("run initdb");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let config = configure(&data);
        let child = launch(&data, &user, port, config.as_deref());
        let source = Self { child, user, port, directory };
        let deadline = Instant::now() + LIMIT;
        while source.sql("select 1").is_err() {
            assert!(Instant::now() < deadline, "the source did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        source
    }

    /// Where imports find it, with its password.
    pub fn url(&self) -> String {
        self.url_of("postgres", "postgres")
    }

    /// The same for another role, which has the same password, and another database.
    pub fn url_of(&self, role: &str, database: &str) -> String {
        format!("postgresql://{role}:{}@127.0.0.1:{}/{database}", Self::PASSWORD, self.port)
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    /// Runs SQL in it; the output, unaligned.
    pub fn sql(&self, sql: &str) -> Result<String, String> {
        self.sql_in("postgres", sql)
    }

    /// Runs SQL in one of its databases.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let psql = Command::new(postgres_program("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(self.url_of("postgres", database))
            .output()
            .expect("run psql");
        if psql.status.success() {
            return Ok(String::from_utf8_lossy(&psql.stdout).trim().to_owned());
        }
        Err(String::from_utf8_lossy(&psql.stderr).into_owned())
    }

    /// Makes an empty directory of its user beside its data directory.
    pub fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        own(&path, &self.user);
        path
    }

    /// Refuses copies from now on, while questions are still answered.
    pub fn refuse_copies(&self) {
        let hba = self.data().join("pg_hba.conf");
        fs::write(&hba, "host postgres all 127.0.0.1/32 scram-sha-256\n")
            .expect("write pg_hba.conf");
        self.sql("select pg_reload_conf()").expect("reload pg_hba.conf");
    }

    /// Waits until a part is copied, and lets the copy stand still there.
    pub fn freeze_copy(&self) {
        super::eventually("a part is copied", || self.signal_senders("-STOP", 8_000_000));
    }

    /// Lets copies that stand still go on.
    pub fn thaw_copy(&self) {
        assert!(self.signal_senders("-CONT", 0), "no copy stands still");
    }

    /// Signals whoever sends a copy and has sent more than so many bytes; whether there is anybody.
    fn signal_senders(&self, signal: &str, sent_bytes: u64) -> bool {
        let who = format!(
            "select pid from pg_stat_progress_basebackup where backup_streamed > {sent_bytes}"
        );
        let senders = self.sql(&who).expect("ask who copies");
        let signalled = senders
            .lines()
            .map(|pid| Command::new("kill").args([signal, pid]).status().expect("run kill"));
        signalled.filter(|status| status.success()).count() > 0
    }

    /// Ends it as a crash would.
    pub fn crash(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.crash();
    }
}

fn launch(data: &Path, user: &OsUser, port: u16, config: Option<&Path>) -> Child {
    let mut postgres = as_user(&postgres_program("postgres"), user);
    postgres.arg("-D").arg(data).args([
        "-p",
        &port.to_string(),
        "-c",
        "listen_addresses=127.0.0.1",
    ]);
    postgres.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]);
    if let Some(config) = config {
        postgres.arg("-c").arg(format!("config_file={}", config.display()));
    }
    postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    postgres.spawn().expect("start the source")
}

/// A command that runs as `user`, if we are root.
pub(super) fn as_user(program: &Path, user: &OsUser) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        command.uid(user.uid).gid(user.gid);
    }
    command.current_dir("/");
    command
}

/// Makes a directory that belongs to `user` alone.
pub(super) fn own(directory: &Path, user: &OsUser) {
    fs::create_dir(directory).expect("make a directory for the source");
    fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).expect("close the directory");
    lchown(directory, Some(user.uid), Some(user.gid))
        .expect("give the directory to the user of Postgres");
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind any port");
    listener.local_addr().expect("read the port").port()
}
