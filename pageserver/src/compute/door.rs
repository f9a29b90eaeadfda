//! The door: the server's own way to run SQL on a branch, and the only one.
//!
//! Each root has a role `coppice`, a superuser without a password. The managed `pg_hba.conf` lets
//! the role in by `peer`, from processes of the server's own operating-system user; computes run as
//! other users where the server may choose. The proxy connects as the server's user too, so it
//! refuses clients who ask for the role. Where the role is missing, as in the copy of a cluster, it
//! is made in single-user mode before the next start.
//!
//! Whoever owns a branch can change what its Postgres answers, so the answers are taken for what
//! they are: a branch's word about itself.

use super::child::Surroundings;
use super::installation::Installation;
use super::settings::{self, Situation};
use super::slot::Lease;
use super::tool;
use super::user::OsUser;
use crate::error::{Error, Result};
use crate::tasks;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, Join, Take, join};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Config, Connection, NoTls};

/// The role, which belongs to the server on every branch.
pub use api::names::DOOR_ROLE as ROLE;
/// Code of the error for a branch whose role is missing or was changed.
pub const DOOR_MISSING: &str = "door_missing";

/// Code of the error for a database that does not exist.
const NO_DATABASE: &str = "no_database";
/// Code of the error for a Postgres that cannot be reached or does not answer.
pub(crate) const CLOSED: &str = "door_closed";

/// Postgres recovers and writes a checkpoint in this time.
const MAKE_LIMIT: Duration = Duration::from_secs(600);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const STATEMENTS_LIMIT: Duration = Duration::from_secs(60);
/// Far more than all answers on one connection have.
const ANSWER_BYTES: u64 = 4 << 20;
/// Databases that the server connects to, the first that exists.
const DATABASES: [&str; 2] = ["postgres", "template1"];
/// Settings of the role, or of everybody, must not change what our statements mean.
const OPTIONS: &str = "-c search_path= -c log_statement=none -c log_min_duration_statement=-1 \
                       -c statement_timeout=0 -c lock_timeout=0 \
                       -c session_preload_libraries= -c local_preload_libraries=";

/// Since PostgreSQL 17 the owner of a branch can have a trigger refuse logins. Older ones do not
/// know the setting.
const NO_TRIGGERS: &str = "-c event_triggers=off";

/// What makes the role, in single-user mode, a statement a line. Subscriptions of a copied cluster
/// lose the slots of the publisher, which are not theirs: a copy neither moves nor drops them.
const MAKE: &str = "\
DO $$ BEGIN \
IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'coppice') \
THEN ALTER ROLE coppice SUPERUSER LOGIN CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD NULL; \
ELSE CREATE ROLE coppice SUPERUSER LOGIN; END IF; END $$;
DELETE FROM pg_catalog.pg_db_role_setting WHERE setrole = 'coppice'::pg_catalog.regrole;
UPDATE pg_catalog.pg_subscription SET subenabled = false, subslotname = NULL;
";

/// There once the role was made, in the data directory.
const MADE_FILE: &str = "coppice.door";

/// Whether the role was made in a data directory, or where the directory was copied from.
pub(super) fn is_made(data: &Path) -> bool {
    data.join(MADE_FILE).symlink_metadata().is_ok()
}

/// Notes that it was, durably.
pub(super) fn note_made(data: &Path, user: &OsUser) -> Result<()> {
    let note = || {
        forget(data)?;
        File::create_new(data.join(MADE_FILE))?.sync_all()
    };
    user.with_rights(note).map_err(|e| Error::io(format_args!("write to {}", data.display()), &e))
}

/// Has the next start make the role.
pub(crate) fn forget_made(data: &Path, user: &OsUser) -> Result<()> {
    user.with_rights(|| forget(data))
        .map_err(|e| Error::io(format_args!("remove a file from {}", data.display()), &e))
}

fn forget(data: &Path) -> io::Result<()> {
    match fs::remove_file(data.join(MADE_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes the role in a data directory that no Postgres uses.
pub(super) async fn make(
    installation: &Installation,
    user: &OsUser,
    situation: &Situation<'_>,
    surroundings: Surroundings,
    users: &Path,
) -> Result<()> {
    // In single-user mode Postgres wants a name for its user, which users of computes do not have.
    let surroundings = if user.has_name() {
        surroundings
    } else {
        let line = format!("{ROLE}:x:{}:{}::/:/bin/false\n", user.uid, user.gid);
        let path = users.to_owned();
        let write = move || {
            fs::write(&path, line)?;
            fs::set_permissions(&path, PermissionsExt::from_mode(0o644))
        };
        let written = tasks::blocking(write).await;
        written.map_err(|e| Error::io(format_args!("write {}", users.display()), &e))?;
        Surroundings { users: Some(users.to_owned()), ..surroundings }
    };
    let mut command = tool::command(installation, "postgres");
    command.arg("--single").args(settings::arguments(situation));
    command.args(["-c", "session_preload_libraries=", "-c", "local_preload_libraries="]);
    // Without this a failed statement would be reported, and the program succeed. The database is
    // the one that every cluster has.
    command.args(["-c", "exit_on_error=on", "template1"]);
    let done = tool::run_in(command, user, MAKE, MAKE_LIMIT, surroundings).await?;
    if done.success {
        return Ok(());
    }
    let detail = format!("the role {ROLE} cannot be made: {}", done.complaints);
    Err(Error::unavailable("compute_failed", detail))
}

/// A session of the server on a branch.
pub struct Door {
    client: Client,
    connection: JoinHandle<()>,
}

impl Door {
    /// Connects to the Postgres that a lease is of, to whichever database exists.
    pub(crate) async fn open(lease: &Lease) -> Result<Self> {
        let [first, other] = DATABASES;
        match Self::open_database(lease, first).await {
            Err(error) if error.code == NO_DATABASE => Self::open_database(lease, other).await,
            opened => opened,
        }
    }

    /// Connects to one database.
    pub(crate) async fn open_database(lease: &Lease, database: &str) -> Result<Self> {
        let opened = in_time(CONNECT_LIMIT, connect(lease, database, OPTIONS)).await;
        let opened = match opened {
            Err(error) if error.code == CLOSED => {
                let options = format!("{OPTIONS} {NO_TRIGGERS}");
                let again = in_time(CONNECT_LIMIT, connect(lease, database, &options)).await;
                again.map_err(|_| error)
            }
            opened => opened,
        };
        let (client, connection) = opened?;
        let connection = tokio::spawn(async move {
            // Whoever waits for an answer has the error too.
            let _ended = connection.await;
        });
        Ok(Self { client, connection })
    }

    /// Runs statements, which a branch may answer late or never.
    pub(crate) async fn limited<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
        in_time(STATEMENTS_LIMIT, work).await
    }

    /// The session.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::unavailable(CLOSED, "the branch's Postgres does not answer");
    tokio::time::timeout(limit, work).await.map_err(late)?
}

/// A connection that ends after so many bytes: a branch must not fill the server's memory.
type Bounded = Join<Take<OwnedReadHalf>, OwnedWriteHalf>;
type OpenDoor = (Client, Connection<Bounded, NoTlsStream>);

async fn connect(lease: &Lease, database: &str, options: &str) -> Result<OpenDoor> {
    let failed = |e| Error::io("connect to the branch's Postgres", &e);
    let stream = UnixStream::connect(lease.socket()).await.map_err(failed)?;
    // The branch may have put a link to somebody else there, who would take us for a friend.
    if stream.peer_cred().map_err(failed)?.uid() != lease.owner() {
        let detail = "another user than the branch's listens at its socket";
        return Err(Error::unavailable(CLOSED, detail));
    }
    let mut config = Config::new();
    config.user(ROLE).dbname(database).options(options).application_name("coppice");
    let (answers, statements) = stream.into_split();
    let stream = join(answers.take(ANSWER_BYTES), statements);
    config.connect_raw(stream, NoTls).await.map_err(|error| refused(&error))
}

fn refused(error: &tokio_postgres::Error) -> Error {
    let code = error.code();
    let by_role = [SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_PASSWORD];
    if code.is_some_and(|code| by_role.contains(code)) {
        let detail = format!(
            "the branch does not let the server in as role {ROLE} ({}); suspend the branch, and \
             its next start makes the role again",
            said(error)
        );
        return Error::unavailable(DOOR_MISSING, detail);
    }
    let code = if code == Some(&SqlState::INVALID_CATALOG_NAME) { NO_DATABASE } else { CLOSED };
    Error::unavailable(code, format!("cannot reach the branch's Postgres: {}", said(error)))
}

/// What Postgres answered, or why there was no answer.
pub(crate) fn said(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
