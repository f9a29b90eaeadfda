//! Prints what a branch's Postgres logged.

use std::io::{self, ErrorKind, Write};
use std::ops::ControlFlow;

use api::client::Client;

use crate::args::Format;
use crate::failure::Failure;
use crate::output::log_line;

/// The lines as JSON.
#[derive(serde::Serialize)]
struct LogLines {
    lines: Vec<String>,
}

/// Prints the last lines.
pub(crate) fn last(
    client: &Client,
    format: Format,
    name: &str,
    lines: usize,
) -> Result<(), Failure> {
    let mut text = Vec::new();
    client.logs(name, lines, false, |line| {
        text.push(line.to_owned());
        ControlFlow::Continue(())
    })?;
    match format {
        Format::Table => print(&text.iter().map(|line| log_line(line) + "\n").collect::<String>()),
        Format::Json => serde_json::to_string_pretty(&LogLines { lines: text })
            .map_err(io::Error::from)
            .and_then(|json| print(&format!("{json}\n"))),
    }
    .or_else(unless_closed)
}

/// Prints the last lines, and then each as it comes. As JSON each line is a string.
pub(crate) fn follow(
    client: &Client,
    format: Format,
    name: &str,
    lines: usize,
) -> Result<(), Failure> {
    let mut printed = Ok(());
    client.logs(name, lines, true, |line| {
        let text = match format {
            Format::Table => Ok(log_line(line)),
            Format::Json => serde_json::to_string(line).map_err(io::Error::from),
        };
        printed = text.and_then(|text| print(&format!("{text}\n")));
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed.or_else(unless_closed)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// A pipe such as `| head` that closes is no failure.
fn unless_closed(error: io::Error) -> Result<(), Failure> {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::Local(format!("cannot write to standard output: {error}"))),
    }
}
