//! The first packet of a connection to the proxy: see [`proxy::property`] for what must hold.

use std::process::ExitCode;

fn main() -> ExitCode {
    coppice_fuzz::run("startup", proxy::property::startup_packet)
}
