//! Follows an import to its end: one changing line on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use api::client::{Client, Error};
use api::types::{Import, ImportState};

use crate::failure::{Exit, Failure};
use crate::output::size;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// Pause between two plain lines about the same step.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How many looks in a row may fail before giving up: a busy server may miss one.
const FAILURES_MAX: u32 = 10;
/// Characters in the bar.
const BAR_WIDTH: u64 = 24;

/// Waits until the import is done or failed, showing progress on standard error.
pub(crate) fn follow(client: &Client, mut import: Import) -> Result<Import, Failure> {
    explain_interrupt(&import)?;
    let mut progress = Progress::new(io::stderr().is_terminal());
    let mut failures = 0;
    while import.state == ImportState::Running {
        progress.show(&import);
        thread::sleep(PAUSE);
        match client.import(&import.id) {
            Ok(now) => (import, failures) = (now, 0),
            Err(error) if error.status == 0 && failures < FAILURES_MAX => failures += 1,
            Err(error) => {
                progress.end();
                return Err(lost(error, &import));
            }
        }
    }
    progress.end();
    Ok(import)
}

/// What the end of an import means for a script.
pub(crate) fn outcome(import: &Import) -> Result<Exit, Failure> {
    if import.state == ImportState::Done {
        return Ok(Exit::Done);
    }
    let why = import.error.as_deref().unwrap_or("the server gave no reason");
    let name = &import.name;
    Err(Failure::Local(format!(
        "{name} was not imported: {why}; nothing is left behind, so it can be started again"
    )))
}

/// A server that no longer knows the import was started again meanwhile, which ended it.
fn lost(error: Error, import: &Import) -> Failure {
    if error.status != 404 {
        return error.into();
    }
    let name = &import.name;
    Failure::Api(Error {
        detail: format!(
            "the server no longer knows import {}, so it was restarted meanwhile; `branchctl show \
             {name}` tells whether the import had finished, and if not, start it again",
            import.id
        ),
        ..error
    })
}

/// From now on Ctrl-C says, before it ends this process, that the server goes on without it.
fn explain_interrupt(import: &Import) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::Local(format!("cannot watch for Ctrl-C: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(cannot)?;
    let words = format!(
        "branchctl: the import goes on in the server; \
         `branchctl import --follow {}` shows it",
        import.id
    );
    // Installed before this returns, so that no Ctrl-C falls between.
    let mut interrupt = {
        let _context = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(cannot)?
    };
    thread::spawn(move || {
        if runtime.block_on(interrupt.recv()).is_some() {
            eprintln!("\n{words}");
            process::exit(i32::from(Exit::Interrupted as u8));
        }
    });
    Ok(())
}

/// What was last shown.
struct Progress {
    terminal: bool,
    step: String,
    shown_at: Option<Instant>,
}

impl Progress {
    fn new(terminal: bool) -> Self {
        Self { terminal, step: String::new(), shown_at: None }
    }

    fn show(&mut self, import: &Import) {
        let line = line(import, self.terminal);
        if self.terminal {
            // Clears to the end of the line, since the last text may have been longer.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        } else if self.step != import.step
            || self.shown_at.is_none_or(|at| at.elapsed() >= LINE_EVERY)
        {
            eprintln!("{line}");
        } else {
            return;
        }
        self.step.clone_from(&import.step);
        self.shown_at = Some(Instant::now());
    }

    fn end(&self) {
        if self.terminal && self.shown_at.is_some() {
            eprintln!();
        }
    }
}

/// One line of progress.
fn line(import: &Import, bar: bool) -> String {
    let (name, step, done) = (&import.name, &import.step, size(import.bytes_done));
    let Some(total) = import.bytes_total.filter(|total| *total > 0) else {
        return format!("{name}: {step}, {done}");
    };
    // The total is an estimate: what is done may exceed it.
    let part = import.bytes_done.min(total);
    let percent = u128::from(part) * 100 / u128::from(total);
    let bar = if bar {
        let full = usize::try_from(u128::from(part) * u128::from(BAR_WIDTH) / u128::from(total))
            .unwrap_or(0);
        let width = usize::try_from(BAR_WIDTH).unwrap_or(0);
        format!("[{:<width$}] ", "#".repeat(full))
    } else {
        String::new()
    };
    format!("{name}: {bar}{percent}% {step}, {done} of {}", size(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_is_known() {
        let mut import = Import {
            id: "1".to_owned(),
            name: "prod".to_owned(),
            state: ImportState::Running,
            step: "copying".to_owned(),
            bytes_done: 1 << 20,
            bytes_total: None,
            notes: Vec::new(),
            error: None,
        };
        assert_eq!(line(&import, true), "prod: copying, 1.0 MiB");
        import.bytes_total = Some(4 << 20);
        assert_eq!(line(&import, false), "prod: 25% copying, 1.0 MiB of 4.0 MiB");
        assert_eq!(
            line(&import, true),
            "prod: [######                  ] 25% copying, 1.0 MiB of 4.0 MiB"
        );
        import.bytes_done = 5 << 20;
        assert!(line(&import, false).starts_with("prod: 100% "));
    }
}
