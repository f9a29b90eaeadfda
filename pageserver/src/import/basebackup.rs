//! Runs `pg_basebackup` into the directory of a new timeline and reads its progress.

use super::check::Facts;
use super::source::SourceServer;
use crate::compute::child::{self, OwnedChild, Surroundings};
use crate::compute::lines::{OutputTail, read_lines, until};
use crate::compute::{Installation, OsUser, door, tool};
use crate::error::{Error, Result};
use nix::sys::signal::Signal;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Without a line for this long the copy is given up. It has to cover the source's checkpoint and
/// the final sync of a large copy, which are silent.
const STALL_LIMIT: Duration = Duration::from_secs(3600);

/// What a running copy tells.
pub(super) enum Progress {
    /// It does something else now.
    Step(String),
    /// Bytes received, and what the source expects in total.
    Bytes { done: u64, total: u64 },
}

/// One copy.
pub(super) struct BackupJob<'a> {
    pub(super) installation: &'a Installation,
    pub(super) user: &'a OsUser,
    pub(super) source: &'a SourceServer,
    pub(super) facts: &'a Facts,
    /// Empty, and of the user that Postgres runs as.
    pub(super) directory: &'a Path,
    /// Memory that the copy will have.
    pub(super) memory_bytes: u64,
}

impl BackupJob<'_> {
    /// Copies the source; what of its settings is not as there. When it returns, nothing writes to
    /// the directory any more.
    pub(super) async fn run(
        &self,
        cancelled: impl Future<Output = ()>,
        report: impl Fn(Progress),
    ) -> Result<Vec<String>> {
        let spawned =
            child::spawn(self.command(), self.user, Signal::SIGKILL, Surroundings::ours());
        let mut child = spawned.await.map_err(|e| Error::io("run pg_basebackup", &e))?;
        let tail = OutputTail::default();
        let ended = tokio::select! {
            ended = self.follow(&mut child, &tail, &report) => ended,
            () = cancelled => Err("the server is shutting down".to_owned()),
        };
        // The process that receives WAL can outlive the one we waited for.
        child.stop_group().await;
        ended.map_err(|why| {
            let lines = self.source.redact(&tail.text());
            Error::unavailable("import_failed", format!("the copy failed ({why}): {lines}"))
        })?;
        // The source may be a branch of another server.
        door::forget_made(self.directory, self.user)?;
        let Facts { settings, role, database, .. } = self.facts;
        let came_along = self.user.with_rights(|| self.keep_settings()).map_err(|e| {
            Error::io(format_args!("write {}/postgresql.conf", self.directory.display()), &e)
        })?;
        let (fitted, mut notes) = settings.fitted(self.memory_bytes);
        fitted.write(self.directory, self.user)?;
        if !came_along {
            notes.extend(settings.left_out(role, database));
        }
        Ok(notes)
    }

    fn command(&self) -> tokio::process::Command {
        let mut command = tool::command(self.installation, "pg_basebackup");
        self.source.address(&mut command);
        command.arg("-D").arg(self.directory);
        command.args(["--wal-method=stream", "--checkpoint=fast", "--progress", "--verbose"]);
        if self.installation.major >= 13 {
            // It describes the copy as received; the branch changes at its first start.
            command.arg("--no-manifest");
        }
        for (number, place) in &self.facts.tablespaces {
            let inside = self.directory.join("tablespaces").join(number);
            command.arg("-T").arg(mapping(OsStr::new(place), inside.as_os_str()));
        }
        command
    }

    async fn follow(
        &self,
        child: &mut OwnedChild,
        tail: &OutputTail,
        report: &impl Fn(Progress),
    ) -> std::result::Result<(), String> {
        let lines = AtomicU64::new(0);
        let stderr = child.take_stderr();
        let read = async {
            if let Some(stderr) = stderr {
                read_lines(stderr, |line| {
                    lines.fetch_add(1, Ordering::Relaxed);
                    self.line(line, tail, report);
                })
                .await;
            }
        };
        tokio::select! {
            status = until(child.wait(), read) => match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(status.to_string()),
                Err(error) => Err(error.to_string()),
            },
            () = stalled(&lines) => Err(format!("no progress for {} s", STALL_LIMIT.as_secs())),
        }
    }

    fn line(&self, line: &str, tail: &OutputTail, report: &impl Fn(Progress)) {
        if let Some((done, total)) = parse_progress(line) {
            return report(Progress::Bytes { done, total });
        }
        let line = self.source.redact(line);
        tail.push(&line);
        if let Some(step) = line.strip_prefix("pg_basebackup: ") {
            report(Progress::Step(step.to_owned()));
        }
    }

    /// Gives a copy that came without a configuration file the settings of its source; whether it
    /// came with one.
    fn keep_settings(&self) -> std::io::Result<bool> {
        let path = self.directory.join("postgresql.conf");
        if path.symlink_metadata().is_ok() {
            return Ok(true);
        }
        std::fs::write(&path, self.facts.settings.file(self.installation.major))?;
        std::fs::File::open(&path)?.sync_all()?;
        Ok(false)
    }
}

/// Returns once no line came for [`STALL_LIMIT`] (and before twice that time).
async fn stalled(lines: &AtomicU64) {
    let mut seen = None;
    loop {
        let now = lines.load(Ordering::Relaxed);
        if seen == Some(now) {
            return;
        }
        seen = Some(now);
        tokio::time::sleep(STALL_LIMIT).await;
    }
}

/// `OLD=NEW`, where an equals sign in a path is escaped.
fn mapping(old: &OsStr, new: &OsStr) -> OsString {
    let escape = |path: &OsStr| {
        path.as_bytes()
            .iter()
            .flat_map(|byte| match byte {
                b'=' => vec![b'\\', b'='],
                other => vec![*other],
            })
            .collect::<Vec<u8>>()
    };
    let mut mapping = escape(old);
    mapping.push(b'=');
    mapping.extend(escape(new));
    OsString::from_vec(mapping)
}

/// Reads `  23456/78900 kB (29%), 0/1 tablespace (...)` into bytes.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.trim_start().split_once(" kB (")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |kilobytes: &str| kilobytes.parse::<u64>().ok()?.checked_mul(1024);
    // The total is an estimate of a moving target.
    let (done, total) = (bytes(done)?, bytes(total)?);
    Some((done, total.max(done)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_bytes() {
        let line = "  7190/22829 kB (31%), 0/2 tablespaces (/x/base/5/1249                    )";
        assert_eq!(parse_progress(line), Some((7190 * 1024, 22829 * 1024)));
        assert_eq!(parse_progress("9/8 kB (100%), 1/1 tablespace"), Some((9216, 9216)));
        assert_eq!(parse_progress("pg_basebackup: syncing data to disk ..."), None);
        assert_eq!(parse_progress("99999999999999999999/1 kB (1%)"), None);
    }

    #[test]
    fn equals_signs_in_tablespaces_are_escaped() {
        assert_eq!(mapping(OsStr::new("/a=b"), OsStr::new("/c")), OsStr::new("/a\\=b=/c"));
    }
}
