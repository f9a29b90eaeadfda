//! What a killed server leaves: records of its computes and imports, found and cleaned up by the
//! next one.
//!
//! Their processes get a parent-death signal, so as a rule nothing is left but files. A postmaster
//! that hangs on the dead mount and a busy orphan of it can remain, and would go on writing; the
//! process of `pg_basebackup` that receives the log waits for it as long as its source has none,
//! and keeps the source from removing any. Each compute and each import therefore has a record, in
//! a directory that the user of Postgres cannot write to: a branch's superuser must not choose whom
//! a root server kills.

use super::groups::remove_groups;
use super::processes::{self, stop_one};
use super::settings::{PID_FILE, SOCKET_FILE};
use crate::error::{Error, Result};
use crate::storage::page::TimelineId;
use crate::sys::process;
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an immediate shutdown may take before the process is killed.
const QUIT_LIMIT: Duration = Duration::from_secs(6);
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The records of one server, in its run directory.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    pub(crate) fn open(run_dir: &Path) -> Result<Self> {
        let directory = run_dir.join("computes");
        let made = fs::create_dir_all(&directory)
            .and_then(|()| fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)));
        made.map_err(|e| Error::io(format_args!("make {}", directory.display()), &e))?;
        Ok(Self { directory })
    }

    /// Remembers that Postgres runs, or is about to (then without `pid`), on `data`, or that a copy
    /// is made there.
    pub(crate) fn write(&self, timeline: TimelineId, data: &Path, pid: Option<i32>) -> Result<()> {
        let (pid, started) =
            pid.and_then(|pid| Some((pid, process::start_time(pid)?))).unwrap_or_default();
        // Processes are found by this path, so it must be the one that the kernel shows.
        let real = data.canonicalize().unwrap_or_else(|_| data.to_owned());
        let mut text = format!("{pid} {started}\n").into_bytes();
        text.extend_from_slice(real.as_os_str().as_bytes());
        let path = self.path(timeline);
        fs::write(&path, text).map_err(|e| Error::io(format_args!("write {}", path.display()), &e))
    }

    pub(crate) fn remove(&self, timeline: TimelineId) {
        // A record too many costs the next server one look into /proc.
        let _there = fs::remove_file(self.path(timeline));
    }

    fn path(&self, timeline: TimelineId) -> PathBuf {
        self.directory.join(timeline.to_string())
    }
}

/// Ends every compute and copy that an earlier server with this run directory left, and removes its
/// sockets. Call it before a stale mount is removed, and only when no other server uses the run
/// directory. Returns how many records there were.
pub fn clean(run_dir: &Path) -> Result<usize> {
    remove_groups(run_dir);
    let directory = run_dir.join("computes");
    let records = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let records =
        records.map_err(|e| Error::io(format_args!("read {}", directory.display()), &e))?;
    for record in &records {
        let (path, name) = (record.path(), record.file_name());
        let text =
            fs::read(&path).map_err(|e| Error::io(format_args!("read {}", path.display()), &e))?;
        if let Some((pid, started, data)) = parse(&text) {
            stop(pid, started, &data)?;
        }
        if name.to_str().is_some_and(|name| name.parse::<TimelineId>().is_ok()) {
            remove_sockets(&run_dir.join(&name));
        }
        fs::remove_file(&path)
            .map_err(|e| Error::io(format_args!("remove {}", path.display()), &e))?;
    }
    Ok(records.len())
}

fn parse(record: &[u8]) -> Option<(i32, u64, PathBuf)> {
    let end = record.iter().position(|byte| *byte == b'\n')?;
    let (pid, started) = std::str::from_utf8(&record[..end]).ok()?.split_once(' ')?;
    let data = PathBuf::from(OsStr::from_bytes(&record[end + 1..]));
    Some((pid.parse().ok()?, started.parse().ok()?, data)).filter(|(_, _, data)| data.is_absolute())
}

fn stop(pid: i32, started: u64, data: &Path) -> Result<()> {
    // Process 0 would be our own group.
    let quit = pid <= 0
        || stop_one(pid, started, Signal::SIGQUIT, QUIT_LIMIT)
        || stop_one(pid, started, Signal::SIGKILL, KILL_LIMIT);
    if processes::stop_all_in(data) && quit {
        return Ok(());
    }
    Err(Error::unavailable(
        "leftover_processes",
        format!(
            "Postgres processes of an earlier server still use {} and cannot be killed; end them \
             (process {pid}) or restart the machine",
            data.display()
        ),
    ))
}

/// Removes a compute's socket directory.
pub(crate) fn remove_sockets(directory: &Path) {
    for name in [SOCKET_FILE.to_owned(), format!("{SOCKET_FILE}.lock"), PID_FILE.to_owned()] {
        let _there = fs::remove_file(directory.join(name));
    }
    // Whatever else somebody put there stays, with the directory, and harms nothing.
    let _empty = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_odd_paths_and_bad_ones_are_ignored() {
        let run_dir = std::env::temp_dir().join(format!("coppice-records-{}", std::process::id()));
        let records = Records::open(&run_dir).unwrap();
        let data = Path::new("/no where/da\nta");
        records.write(TimelineId(5), data, None).unwrap();
        let text = fs::read(records.path(TimelineId(5))).unwrap();
        assert_eq!(parse(&text), Some((0, 0, data.to_owned())));
        assert_eq!(parse(b"1 2"), None);
        assert_eq!(parse(b"1 2\nrelative"), None);
        fs::write(records.path(TimelineId(6)), "nonsense").unwrap();
        assert_eq!(clean(&run_dir).unwrap(), 2);
        assert_eq!(clean(&run_dir).unwrap(), 0);
        fs::remove_dir_all(&run_dir).unwrap();
    }

    #[test]
    fn a_reused_process_number_is_left_alone() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        let other_start = process::start_time(pid).unwrap() + 1;
        stop(pid, other_start, Path::new("/nowhere")).unwrap();
        assert!(sleeper.try_wait().unwrap().is_none());
        stop(pid, other_start - 1, Path::new("/nowhere")).unwrap();
        assert_eq!(sleeper.wait().unwrap().code(), None, "ended by a signal");
    }
}
