//! Runs the programs that come with Postgres (`initdb`, `psql`, `pg_basebackup`) to their end.

use super::child::{self, OwnedChild, Surroundings};
use super::installation::Installation;
use super::lines::{OutputTail, read_lines, until};
use super::user::OsUser;
use crate::error::{Error, Result};
use nix::sys::signal::Signal;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Bytes that are read of a program's output; more than any of them prints.
const OUTPUT_BYTES: u64 = 1 << 20;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) success: bool,
    /// Standard output, cut at a limit.
    pub(crate) output: String,
    /// The last lines of standard error.
    pub(crate) complaints: String,
}

/// One of the installation's programs, with an environment in which nothing of ours is left.
pub(crate) fn command(installation: &Installation, program: &str) -> Command {
    let mut command = Command::new(installation.program(program));
    command
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        // Its own working directory may be closed to the other user.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Runs `command` as `user` with `input`, for `limit` at most; it is killed if this future is
/// dropped.
pub(crate) async fn run(
    command: Command,
    user: &OsUser,
    input: &str,
    limit: Duration,
) -> Result<Outcome> {
    run_in(command, user, input, limit, Surroundings::ours()).await
}

/// The same in other surroundings.
pub(crate) async fn run_in(
    mut command: Command,
    user: &OsUser,
    input: &str,
    limit: Duration,
    surroundings: Surroundings,
) -> Result<Outcome> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child::spawn(command, user, Signal::SIGKILL, surroundings)
        .await
        .map_err(|e| Error::io(format_args!("run {name}"), &e))?;
    let group = KillGroup(&mut child);
    match tokio::time::timeout(limit, finish(&mut *group.0, input)).await {
        Ok(outcome) => outcome.map_err(|e| Error::io(format_args!("run {name}"), &e)),
        Err(_) => Err(Error::unavailable(
            "tool_timeout",
            format!("{name} did not end within {} s and was killed", limit.as_secs()),
        )),
    }
}

/// Kills the whole process group: `initdb` has children of its own.
struct KillGroup<'a>(&'a mut OwnedChild);

impl Drop for KillGroup<'_> {
    fn drop(&mut self) {
        self.0.kill_group();
    }
}

async fn finish(child: &mut OwnedChild, input: &str) -> std::io::Result<Outcome> {
    let (stdin, stdout, stderr) = (child.take_stdin(), child.take_stdout(), child.take_stderr());
    let (tail, mut output) = (OutputTail::default(), Vec::new());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that stops reading tells why on standard error.
            let _closed = stdin.write_all(input.as_bytes()).await;
        }
    };
    let answer = async {
        if let Some(stdout) = stdout {
            // An error of the pipe cuts the output short, and how the program ended is known
            // anyway.
            let _cut = stdout.take(OUTPUT_BYTES).read_to_end(&mut output).await;
        }
    };
    let complaints = async {
        if let Some(stderr) = stderr {
            read_lines(stderr, |line| tail.push(line)).await;
        }
    };
    let pipes = async {
        tokio::join!(feed, answer, complaints);
    };
    let status = until(child.wait(), pipes).await?;
    Ok(Outcome {
        success: status.success(),
        output: String::from_utf8_lossy(&output).into_owned(),
        complaints: tail.text(),
    })
}
