//! Which lines of a Postgres's log this server's own log and answers may show.
//!
//! Statements of clients hold passwords and personal data. So once clients can connect, nothing is
//! shown but what the postmaster says of itself, and a `PANIC`, which ends Postgres. Before that no
//! client has said anything, and all lines are shown.

use super::lines::OutputTail;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What every line begins with (PostgreSQL manual, 20.8.2): time and process, as by default.
pub(crate) const LINE_PREFIX: &str = "%m [%p] ";
/// What of the postmaster is shown. `DETAIL` names the statement of a process that died.
const SHOWN: [&str; 5] = ["LOG", "WARNING", "FATAL", "PANIC", "HINT"];

/// The last lines of one Postgres that may be shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct PostgresLog {
    tail: OutputTail,
    /// Whether clients may have connected.
    has_clients: Arc<AtomicBool>,
}

impl PostgresLog {
    /// Clients may connect from now on.
    pub(crate) fn opened_to_clients(&self) {
        self.has_clients.store(true, Ordering::SeqCst);
    }

    /// Keeps a line of postmaster `pid` or its processes, if it may be shown; whether it may.
    pub(crate) fn push(&self, pid: i32, line: &str) -> bool {
        let shown = !self.has_clients.load(Ordering::SeqCst) || is_of_the_server(pid, line);
        if shown {
            self.tail.push(line);
        }
        shown
    }

    /// The kept lines, oldest first.
    pub(crate) fn text(&self) -> String {
        self.tail.text()
    }
}

/// Whether a line is of the postmaster, or a `PANIC`, and no statement. A line that goes on from
/// the one before has a tab in place of the prefix.
fn is_of_the_server(pid: i32, line: &str) -> bool {
    let parts = || {
        let (time, rest) = line.split_once(" [")?;
        let (process, message) = rest.split_once("] ")?;
        let (tag, _) = message.split_once(":  ")?;
        let is_time = time.starts_with(|first: char| first.is_ascii_digit());
        is_time.then_some((process.parse::<i32>().ok()?, tag))
    };
    parts().is_some_and(|(process, tag)| tag == "PANIC" || (process == pid && SHOWN.contains(&tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_client_said_is_shown() {
        let log = PostgresLog::default();
        log.push(7, "2026-11-20 10:00:00.000 UTC [9] DETAIL:  before anybody connects");
        log.opened_to_clients();
        let time = "2026-11-20 10:00:01.123 UTC";
        for line in [
            format!("{time} [12] ERROR:  role \"nosuch\" does not exist"),
            format!("{time} [12] STATEMENT:  alter role nosuch"),
            "\tpassword 'leakme'".to_owned(),
            format!("{time} [12] LOG:  statement: select 'leakme'"),
            format!("{time} [7] DETAIL:  Failed process was running: select 'leakme'"),
            "leakme [7] LOG:  said by a program".to_owned(),
            "leakme".to_owned(),
        ] {
            log.push(7, &line);
        }
        log.push(7, &format!("{time} [12] PANIC:  could not write to file"));
        log.push(7, &format!("{time} [7] LOG:  server process (PID 12) was terminated"));
        let expected = [
            "2026-11-20 10:00:00.000 UTC [9] DETAIL:  before anybody connects".to_owned(),
            format!("{time} [12] PANIC:  could not write to file"),
            format!("{time} [7] LOG:  server process (PID 12) was terminated"),
        ];
        assert_eq!(log.text(), expected.join("\n"));
    }
}
