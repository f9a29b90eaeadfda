//! Looks at processes through `/proc`: which ones use a data directory.
//!
//! Every Postgres process works in its data directory, which is unique to a timeline, and each has
//! a session of its own, so neither process groups nor parents find the orphans of a killed
//! postmaster. Their directory does, and `pg_basebackup` has it among its arguments. Orphans
//! matter: one that is busy goes on writing beside the next start's processes, and corrupts the
//! data.

use crate::sys::process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long killed processes may take to disappear.
const GONE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Numbers of the processes of Postgres that work in `data` (without symbolic links) or copy to it.
pub(crate) fn in_directory(data: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| works_in(*pid, data))
        .collect()
}

fn works_in(pid: i32, data: &Path) -> bool {
    // An administrator's shell may be in the directory as well; only Postgres writes there.
    let link = |name| fs::read_link(format!("/proc/{pid}/{name}"));
    match link("exe").ok().as_deref().and_then(program_name) {
        Some("postgres") => link("cwd").is_ok_and(|cwd| cwd == data),
        Some("pg_basebackup") => {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| names(&line, data))
        }
        _ => false,
    }
}

/// The kernel adds ` (deleted)` to the program of a process that lived through an upgrade.
fn program_name(program: &Path) -> Option<&str> {
    Some(program.file_name()?.to_str()?.trim_end_matches(" (deleted)"))
}

/// Whether `data` is one of the arguments.
fn names(command_line: &[u8], data: &Path) -> bool {
    command_line.split(|byte| *byte == 0).any(|argument| argument == data.as_os_str().as_bytes())
}

/// Kills every such process and waits until all are gone; false if some are not.
pub(crate) fn stop_all_in(data: &Path) -> bool {
    let deadline = Instant::now() + GONE_LIMIT;
    loop {
        let found = in_directory(data);
        if found.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            tracing::error!(
                data = %data.display(), pids = ?found,
                "Postgres processes cannot be killed"
            );
            return false;
        }
        for pid in found {
            let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Signals `pid` if it is still the process that started at `started`, and waits up to `limit` for
/// its end.
pub(crate) fn stop_one(pid: i32, started: u64, signal: Signal, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let alive = || process::start_time(pid) == Some(started);
    if alive() {
        let _ended = kill(Pid::from_raw(pid), signal);
    }
    while alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    true
}

/// How many clients are connected to the Unix socket at `socket`, however they came there.
pub(crate) fn clients_of(socket: &Path) -> std::io::Result<usize> {
    let table = fs::read("/proc/net/unix")?;
    Ok(count_connected(&String::from_utf8_lossy(&table), &socket.to_string_lossy()))
}

/// The server's end of each connection carries the path of the listening socket and has state 03.
fn count_connected(table: &str, socket: &str) -> usize {
    let connected = |line: &&str| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(5) == Some("03")
            && line.ends_with(socket)
            && fields.nth(1) == socket.split_ascii_whitespace().next()
    };
    table.lines().filter(connected).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_by_socket() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1 /run/a/.s.PGSQL.5432\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 2 /run/a/.s.PGSQL.5432\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 3 /run/b/.s.PGSQL.5432\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 4 /x/run/b/.s.PGSQL.5432\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 5\n";
        assert_eq!(count_connected(table, "/run/a/.s.PGSQL.5432"), 1);
        assert_eq!(count_connected(table, "/run/b/.s.PGSQL.5432"), 1);
        assert_eq!(count_connected(table, "/run/c/.s.PGSQL.5432"), 0);
    }
}
