//! A lane file's header and a record: see [`pageserver::storage::property`] for what must hold.

use std::process::ExitCode;

fn main() -> ExitCode {
    coppice_fuzz::run("record", pageserver::storage::property::record)
}
