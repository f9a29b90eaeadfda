//! A stock Postgres on a directory of a local file system, as anybody would run it.

use super::sides::{DATABASE, SETTINGS, Side};
use super::source::{as_user, own};
use super::{LIMIT, postgres};
use pageserver::compute::{Installation, OsUser};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PASSWORD: &str = "s3cret-of-the-cluster";
/// How often is looked whether it is ready, which is in the time of a start.
const LOOK: Duration = Duration::from_millis(1);

/// A data directory, and the Postgres that runs on it. Dropped, it is stopped.
pub struct Cluster {
    data: PathBuf,
    installation: Installation,
    user: OsUser,
    settings: Vec<(String, String)>,
    child: Option<Child>,
}

impl Cluster {
    /// Makes a cluster in a new directory, with the database, the locale, the checksums and the
    /// passwords of a branch.
    pub fn initialize(data: &Path, more: &[(&str, &str)]) -> Self {
        let mut cluster = Self::at(data, more);
        own(data, &cluster.user);
        let password = data.with_extension("password");
        fs::write(&password, PASSWORD).expect("write the password");
        let mut initdb = as_user(&cluster.installation.program("initdb"), &cluster.user);
        initdb.arg("-D").arg(data).args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"]);
        initdb.args(["--data-checksums", "-A", "scram-sha-256", "--pwfile"]).arg(&password);
        let made = initdb.output().expect("run initdb");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::remove_file(password).expect("remove the password");
        cluster.start();
        cluster
            .side("a new cluster")
            .with_database("postgres")
            .sql(&format!("create database {DATABASE}"));
        cluster
    }

    /// The cluster in a directory that is the copy of another, not running yet.
    pub fn at(data: &Path, more: &[(&str, &str)]) -> Self {
        let settings = SETTINGS.iter().chain(more);
        let settings =
            settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let user = OsUser::resolve(None).expect("a user for Postgres");
        Self { data: data.to_owned(), installation: postgres(), user, settings, child: None }
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// How to reach it.
    pub fn side(&self, name: &str) -> Side {
        Side::socket(name, &self.data, PASSWORD)
    }

    /// Starts it, and waits until it accepts connections.
    pub fn start(&mut self) {
        let mut postgres = as_user(&self.installation.program("postgres"), &self.user);
        postgres
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(&self.data)
            .args(["-c", "listen_addresses="]);
        for (name, value) in &self.settings {
            postgres.arg("-c").arg(format!("{name}={value}"));
        }
        postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = postgres.spawn().expect("start postgres");
        let began = Instant::now();
        let lock_file = self.data.join("postmaster.pid");
        while !fs::read_to_string(&lock_file).is_ok_and(|text| text.contains("ready")) {
            let ended = child.try_wait().expect("look at postgres");
            assert!(
                ended.is_none() && began.elapsed() < LIMIT,
                "no start on {}",
                self.data.display()
            );
            std::thread::sleep(LOOK);
        }
        self.child = Some(child);
    }

    /// Stops it cleanly, if it runs.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        for signal in ["-INT", "-QUIT", "-KILL"] {
            let _ = Command::new("kill").args([signal, &child.id().to_string()]).status();
            let asked = Instant::now();
            while asked.elapsed() < LIMIT {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}
