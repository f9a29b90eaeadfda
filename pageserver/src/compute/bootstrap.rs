//! The first data directory of a fresh store: made by `initdb`, with database `app`, and stopped
//! cleanly.

use super::door;
use super::installation::Installation;
use super::tool::{self, Outcome};
use super::user::OsUser;
use crate::error::{Error, Result};
use crate::secret;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Characters of the generated password: 192 bits.
const PASSWORD_CHARS: usize = 32;
/// Generous for a slow disk; `initdb` takes a second or two.
const TOOL_LIMIT: Duration = Duration::from_secs(600);
/// Runs as SQL in single-user mode, where nobody else can connect.
const CREATE_APP: &str = "CREATE DATABASE app;\nCREATE ROLE coppice SUPERUSER LOGIN;\n";
/// Many previews share one branch, and the default of 100 is soon used up by their pools.
const SETTINGS: &str =
    "\n# Added by the Coppice server when it made this database.\nmax_connections = 300\n";

/// Makes `data`, an empty directory that belongs to `user`, a database cluster with superuser
/// `postgres` and database `app`, and returns the superuser's password. `run_dir` holds the
/// password file for a moment, readable for `user` only. After a failure the directory may hold
/// half a cluster.
pub async fn initialize(
    installation: &Installation,
    user: &OsUser,
    data: &Path,
    run_dir: &Path,
) -> Result<String> {
    let password = secret::random_text(PASSWORD_CHARS)?;
    let file = PasswordFile::write(run_dir, &password, user)?;
    let mut made = initdb(installation, user, data, &file.path, "C.UTF-8").await?;
    if !made.success && made.complaints.contains("locale") {
        made = initdb(installation, user, data, &file.path, "C").await?;
    }
    drop(file);
    succeeded("initdb", &made)?;
    user.with_rights(|| append(&data.join("postgresql.conf")))
        .map_err(|e| Error::io(format_args!("write {}/postgresql.conf", data.display()), &e))?;
    create_app(installation, user, data).await?;
    door::note_made(data, user)?;
    Ok(password)
}

async fn initdb(
    installation: &Installation,
    user: &OsUser,
    data: &Path,
    password: &Path,
    locale: &str,
) -> Result<Outcome> {
    let mut command = tool::command(installation, "initdb");
    command.args(["--username=postgres", "--encoding=UTF8", "--data-checksums"]);
    command.args(["--auth=scram-sha-256", &format!("--locale={locale}")]);
    if installation.major >= 14 {
        command.arg("--no-instructions");
    }
    command.arg("--pwfile").arg(password).arg("-D").arg(data);
    tool::run(command, user, "", TOOL_LIMIT).await
}

async fn create_app(installation: &Installation, user: &OsUser, data: &Path) -> Result<()> {
    let mut command = tool::command(installation, "postgres");
    command.arg("--single").arg("-D").arg(data);
    // Without this a failed statement would be reported, and the program succeed.
    command.args(["-c", "exit_on_error=on", "postgres"]);
    let done = tool::run(command, user, CREATE_APP, TOOL_LIMIT).await?;
    succeeded("creating database app", &done)
}

fn append(config: &Path) -> std::io::Result<()> {
    let mut file = File::options().append(true).open(config)?;
    file.write_all(SETTINGS.as_bytes())?;
    file.sync_all()
}

fn succeeded(what: &str, outcome: &Outcome) -> Result<()> {
    if outcome.success {
        return Ok(());
    }
    Err(Error::unavailable("initdb_failed", format!("{what} failed: {}", outcome.complaints)))
}

/// A file that only `user` can read, gone with this value.
struct PasswordFile {
    path: PathBuf,
}

impl PasswordFile {
    fn write(directory: &Path, password: &str, user: &OsUser) -> Result<Self> {
        let path = directory.join(format!("password-{}", secret::random_text(12)?));
        let create = || File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file =
            create().map_err(|e| Error::io(format_args!("create {}", path.display()), &e))?;
        let made = Self { path };
        user.own(&made.path)?;
        file.write_all(password.as_bytes())
            .map_err(|e| Error::io(format_args!("write {}", made.path.display()), &e))?;
        Ok(made)
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::error!(
                path = %self.path.display(), error = %error,
                "cannot remove a password file; remove it"
            );
        }
    }
}
