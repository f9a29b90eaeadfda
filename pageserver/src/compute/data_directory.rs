//! What is done in a data directory before Postgres starts on it, and how its state is read while
//! it starts.
//!
//! Every file is touched with the rights of the user that Postgres runs as, never with root's.

use super::user::OsUser;
use super::{door, processes};
use crate::error::{Error, Result};
use crate::storage::page::TimelineId;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Names the timeline that last started here. A copy carries the name of its origin, and so is
/// known to be a copy.
const OWNER_FILE: &str = "coppice.timeline";

/// Left by another life of this data, or of the cluster it was copied from. `backup_label` is no
/// such thing: without it a base backup would recover from the wrong checkpoint. A lock file would
/// not only be wrong: on a mount its contents are gone (`fs::scratch`), and Postgres does not start
/// on one without.
const STALE_FILES: [&str; 4] = [LOCK_FILE, "postmaster.opts", "standby.signal", "recovery.signal"];

/// What a start needs to know of a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    /// Whether it has a `postgresql.conf`.
    pub(crate) has_config: bool,
    /// Whether nothing was started on this timeline before.
    pub(crate) is_new: bool,
    /// Whether the role of [`super::door`] was made, here or where this was copied from.
    pub(crate) has_door: bool,
}

/// Makes `data` ready for a start on `timeline`.
///
/// Replication slots go with the first start of a copied directory only: a slot that was made on
/// the branch itself is its owner's and outlives a suspend.
pub(crate) fn prepare(
    data: &Path,
    timeline: TimelineId,
    major: u32,
    user: &OsUser,
) -> Result<Prepared> {
    check_version(data, major, user)?;
    let stale_lock = user.with_rights(|| data.join(LOCK_FILE).symlink_metadata().is_ok());
    if stale_lock {
        check_unused(data)?;
    }
    user.with_rights(|| clean(data, timeline))
        .map_err(|e| Error::io(format_args!("prepare data directory {}", data.display()), &e))
}

fn check_version(data: &Path, major: u32, user: &OsUser) -> Result<()> {
    let path = data.join("PG_VERSION");
    let text = user
        .with_rights(|| read_start(&path))
        .map_err(|e| Error::io(format_args!("read {}", path.display()), &e))?;
    let found = text.trim();
    // Up to 9.6 the major version had two parts; this server knows none of those.
    if found != major.to_string() {
        return Err(Error::invalid(
            "postgres_version",
            format!(
                "data directory {} is of Postgres {found}, but the server runs Postgres {major}; \
                 install Postgres {found} and name it with --postgres-bin",
                data.display()
            ),
        ));
    }
    Ok(())
}

/// Removing the lock file disarms Postgres's own check against two servers on one directory, so
/// this one comes first.
fn check_unused(data: &Path) -> Result<()> {
    let real = data
        .canonicalize()
        .map_err(|e| Error::io(format_args!("resolve {}", data.display()), &e))?;
    match processes::in_directory(&real).first() {
        None => Ok(()),
        Some(pid) => Err(Error::conflict(
            "data_directory_in_use",
            format!("process {pid} runs Postgres on {}; end it first", data.display()),
        )),
    }
}

fn clean(data: &Path, timeline: TimelineId) -> io::Result<Prepared> {
    for name in STALE_FILES {
        if_there(fs::remove_file(data.join(name)))?;
    }
    let owner = data.join(OWNER_FILE);
    let own_name = timeline.to_string();
    // On a timeline that has lived, a failure must not pass for a first start, at which nothing is
    // synced.
    let is_new = match read_start(&owner) {
        Ok(name) => name != own_name,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => true,
        Err(error) => return Err(error),
    };
    if is_new {
        remove_slots(&data.join("pg_replslot"))?;
        if_there(fs::remove_file(&owner))?;
        let mut file = File::create_new(&owner)?;
        file.write_all(own_name.as_bytes())?;
        // Lost in a crash, it would cost a slot that was made since.
        file.sync_data()?;
    }
    let (has_config, has_door) = (data.join("postgresql.conf").exists(), door::is_made(data));
    Ok(Prepared { has_config, is_new, has_door })
}

fn remove_slots(slots: &Path) -> io::Result<()> {
    for slot in fs::read_dir(slots)? {
        let slot = slot?;
        if slot.file_type()?.is_dir() {
            fs::remove_dir_all(slot.path())?;
        } else {
            fs::remove_file(slot.path())?;
        }
    }
    Ok(())
}

fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The first bytes of a small file. Neither a symbolic link nor a pipe that somebody put there is
/// followed or waited for.
fn read_start(path: &Path) -> io::Result<String> {
    read_text(&open_plainly(path)?)
}

/// Opens a file that the branch's owner may have put there: neither a symbolic link is followed nor
/// a pipe waited for.
pub(super) fn open_plainly(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    File::options().read(true).custom_flags(flags.bits()).open(path)
}

fn read_text(file: &File) -> io::Result<String> {
    // postmaster.pid is by far the longest of these files: seven short lines and the path of the
    // data directory.
    let mut buffer = [0; 4096 + 512];
    let count = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// Where a starting Postgres says that it accepts connections.
pub(crate) const LOCK_FILE: &str = "postmaster.pid";

/// The lock file on `data`, if there is one.
pub(crate) fn read_lock_file(data: &Path) -> Option<Vec<u8>> {
    read_start(&data.join(LOCK_FILE)).ok().map(String::into_bytes)
}

/// Whether by its lock file the postmaster with number `pid` accepts connections.
pub(crate) fn says_ready(lock_file: &[u8], pid: i32) -> bool {
    ready_line(&String::from_utf8_lossy(lock_file), pid)
}

/// Line 1 is the process number, line 8 the state; these are what `pg_ctl` goes by too.
fn ready_line(text: &str, pid: i32) -> bool {
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_line_eight_of_our_own_process() {
        let text = "123\n/data\n1700000000\n5432\n/run\n\n  1 2\nready   \n";
        assert!(ready_line(text, 123));
        assert!(!ready_line(text, 124));
        assert!(!ready_line(&text.replace("ready   ", "starting"), 123));
        assert!(!ready_line("123\n/data\n", 123));
    }

    #[test]
    fn slots_go_from_a_copy_and_stay_on_the_own_timeline() {
        let data = std::env::temp_dir().join(format!("coppice-prepare-{}", std::process::id()));
        let slot = data.join("pg_replslot/mine");
        let make = || {
            fs::create_dir_all(&slot).unwrap();
            fs::write(slot.join("state"), "x").unwrap();
            fs::write(data.join("standby.signal"), "").unwrap();
        };
        make();
        assert!(clean(&data, TimelineId(1)).unwrap().is_new);
        assert!(!slot.exists() && !data.join("standby.signal").exists());
        make();
        assert!(!clean(&data, TimelineId(1)).unwrap().is_new);
        assert!(slot.exists() && !data.join("standby.signal").exists());
        let prepared = clean(&data, TimelineId(2)).unwrap();
        assert!(!slot.exists() && !prepared.has_config && prepared.is_new);
        fs::remove_dir_all(&data).unwrap();
    }
}
