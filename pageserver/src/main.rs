//! The page server's command line.

use clap::{Parser, Subcommand};
use pageserver::config::Config;
use pageserver::error::{Error, Result};
use pageserver::server;
use pageserver::storage::check;
use pageserver::storage::disk::Disk;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Branches stock Postgres databases in constant time.
///
/// One process holds a Postgres database and its branches, serves them to every Postgres client
/// through one port, and creates, resets and deletes branches over an HTTP API and `branchctl`.
#[derive(Parser)]
#[command(name = "pageserver", version, after_long_help = EXAMPLES)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the server until SIGTERM or SIGINT.
    Serve(Box<Config>),
    /// Verifies the store of a stopped server, every record and page, and prints a line for each
    /// fault. It changes no byte.
    Check {
        /// The server's data directory.
        #[arg(long, env = "COPPICE_DATA", value_name = "DIR")]
        data: PathBuf,
    },
}

const EXAMPLES: &str = "\
A first server, with a new cluster as branch `main`:
  pageserver serve --data /var/lib/coppice

Then, on the same machine:
  export COPPICE_TOKEN_FILE=/var/lib/coppice/api-token
  branchctl create feature/login
  branchctl psql feature/login

Exit codes:
  0  stopped cleanly; no fault found
  1  could not start, run or stop; a fault was found
  2  wrong arguments

Logs go to stderr; RUST_LOG sets their level, such as RUST_LOG=debug.";

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // It would log statements, with passwords in them, and what branches answer.
    let quiet = "tokio_postgres=off".parse();
    let filter = quiet.map_or_else(|_| EnvFilter::new("info"), |off| filter.add_directive(off));
    // Colour codes would stand between the words of a log file. NO_COLOR turns them off on a
    // terminal too.
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(std::io::stderr);
    // Whoever read the log may go; that is no reason to stop.
    log.log_internal_errors(false).init();
    let outcome = match flags.command {
        Command::Serve(config) => serve(*config).map(|()| ExitCode::SUCCESS),
        Command::Check { data } => run_check(&data),
    };
    outcome.unwrap_or_else(|error| {
        tracing::error!(code = error.code, "{error}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn serve(config: Config) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("listen for signals", &e));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    server::run(config, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await
}

fn run_check(data: &Path) -> Result<ExitCode> {
    if !data.join("store").is_dir() {
        let detail =
            format!("{} holds no store: name the --data directory of a server", data.display());
        return Err(Error::not_found("no_store", detail));
    }
    let _lock = server::lock_data_if_used(data)?;
    let disk: Arc<dyn Disk> = server::open_disk_read_only(data)?;
    let report = check::check(&disk)?;
    for fault in &report.faults {
        println!("{fault}");
    }
    let (timelines, faults) = (report.timelines, report.faults.len());
    println!(
        "{timelines} timelines, {} records, {} pages: {faults} faults",
        report.records, report.pages
    );
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
