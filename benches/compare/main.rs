//! Stock Postgres on a Coppice branch against the same Postgres, with the same settings, on the
//! local file system, on a snapshot of btrfs and on a copy of XFS that shares its blocks; and the
//! proxy against the bare socket and PgBouncer.
//!
//! `make bench`, or as root `cargo bench --bench compare` after `cargo build --release
//! --workspace`. The sides take turns, so that a noisy machine favours none; figures are medians.
//! All lie on the file system of the directory for temporary files (`TMPDIR`), btrfs and XFS in
//! files there. What the machine cannot is skipped, loudly. The results are in
//! `target/bench/results.json`, and `make bench-docs` makes the table and the plots of
//! docs/benchmarks.md of them.
//!
//! `COPPICE_BENCH_QUICK=1` tries everything with tiny sizes, `COPPICE_BENCH_ONLY=tpcb,proxy` runs
//! some sections of those in `config.rs`, where all the sizes are too.

mod bouncer;
mod charts;
mod config;
mod coppice_system;
mod docs;
mod local_system;
mod machine;
mod pages;
mod plot;
mod report;
mod results;
mod sections;
mod systems;

use config::Config;
use coppice::Directory;
use coppice::loop_volume::FileSystem;
use coppice_system::Coppice;
use local_system::{Local, Method};
use report::Report;
use sections::Bench;
use std::sync::Arc;
use systems::{Base, Skipped, System};

/// How full pgbench makes pages by default.
const FULL: u64 = 100;
/// Leaves room on each page for another version of a row, so that a change of it changes that page
/// alone.
const ROOMY: u64 = 90;

fn main() {
    // `cargo bench` passes its own flag on.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => measure(&Config::read()),
        ["--docs"] => docs::write(),
        other => panic!("unknown arguments {other:?}: there is only --docs"),
    }
}

fn measure(config: &Config) {
    sections::watch_signals();
    let directory = Arc::new(Directory::new());
    let machine = machine::describe(directory.path());
    println!("{machine:#}\n");
    let mut report = Report::new(config, machine);
    let parts = ["branches", "cold", "select", "bulk", "checkpoint", "tpcb", "proxy"];
    if parts.iter().any(|part| config.runs(part)) {
        let base = Base { scale: config.scale, fillfactor: FULL, seal_at_once: false };
        let (systems, skipped) = make_all(config, &directory, base, config.volume_bytes());
        report.skip(skipped);
        let mut bench = Bench { config, systems, report: &mut report };
        sections::run_all(&mut bench, &directory);
    }
    if config.runs("storage") {
        // A server and volumes of its own, when the others are gone.
        let directory = Arc::new(Directory::new());
        let base = Base { scale: config.storage_scale, fillfactor: ROOMY, seal_at_once: true };
        let (systems, skipped) = make_all(config, &directory, base, config.storage_volume_bytes());
        report.skip(skipped);
        let mut bench = Bench { config, systems, report: &mut report };
        sections::storage::run(&mut bench);
    }
    report.finish();
}

/// Makes all systems that this machine can run, ours first. Says loudly which it cannot run.
fn make_all(
    config: &Config,
    directory: &Arc<Directory>,
    base: Base,
    volume_bytes: u64,
) -> (Vec<Box<dyn System>>, Skipped) {
    let mut systems: Vec<Box<dyn System>> = Vec::new();
    let mut skipped = Vec::new();
    println!("preparing coppice");
    systems.push(Box::new(Coppice::new(directory, base)));
    println!("preparing native");
    systems.push(Box::new(Local::on_directory(directory.path(), base)));
    let mut volumes =
        vec![(FileSystem::Btrfs, Method::Snapshot), (FileSystem::Xfs, Method::Reflink)];
    if config.control {
        volumes.push((FileSystem::Ext4, Method::Copy));
    }
    for (kind, method) in volumes {
        println!("preparing {} on a loop device", kind.name());
        let options = if kind == FileSystem::Btrfs { config.btrfs_options.as_str() } else { "" };
        match Local::on_volume((kind, options), method, (directory.path(), volume_bytes), base) {
            Ok(local) => systems.push(Box::new(local)),
            Err(why) => {
                println!("!!! SKIPPED {}: {why}", kind.name());
                skipped.push((kind.name().to_owned(), why));
            }
        }
    }
    (systems, skipped)
}
