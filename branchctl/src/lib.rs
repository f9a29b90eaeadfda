//! `branchctl`: the command line of Coppice.
//!
//! It only translates: words into calls of the HTTP API ([`api::client`]), answers into a table or
//! JSON. Data goes to standard output, everything else to standard error, and the exit code tells a
//! script what happened ([`Exit`]).

mod args;
mod commands;
mod failure;
mod import;
mod logs;
mod output;
mod psql;

use std::process::ExitCode;

use clap::Parser;

pub use failure::Exit;

/// Runs the command line that this process was started with.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(&args) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("branchctl: {failure}");
            failure.exit().into()
        }
    }
}
