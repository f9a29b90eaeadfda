//! The measurements, a file for each kind.

mod branches;
mod bulk;
mod cold;
mod load;
mod proxy;
pub(crate) mod storage;

use crate::config::Config;
use crate::report::{Better, Measure, Report};
use crate::systems::System;
use coppice::Directory;
use coppice::sides::{Side, turns};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// What the sections work on.
pub(crate) struct Bench<'a> {
    /// Sizes and rounds.
    pub(crate) config: &'a Config,
    /// Ours first.
    pub(crate) systems: Vec<Box<dyn System>>,
    /// What was measured.
    pub(crate) report: &'a mut Report,
}

/// What is measured, before it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct What<'a> {
    /// What the keys of the ratios begin with.
    pub(crate) key: &'a str,
    /// As a command or a statement.
    pub(crate) what: &'a str,
    /// Unit of the figures.
    pub(crate) unit: &'static str,
    /// Which way they are better.
    pub(crate) better: Better,
}

/// Runs the sections that share a base.
pub(crate) fn run_all(bench: &mut Bench<'_>, directory: &Directory) {
    run(
        bench,
        "branches",
        "branches of a base that rests: made, asked for a row, woken",
        branches::run,
    );
    run(bench, "cold", "reads with nothing cached", cold::run);
    run(bench, "select", "rows read by key, cached by the system", load::select);
    run(bench, "bulk", "bulk loads", |bench| bulk::run(bench, directory));
    run(bench, "checkpoint", "a checkpoint of many dirty pages", bulk::checkpoint);
    run(bench, "tpcb", "TPC-B", load::tpcb);
    run(bench, "proxy", "the proxy", |bench| proxy::run(bench, directory));
}

fn run(bench: &mut Bench<'_>, name: &str, title: &str, section: impl FnOnce(&mut Bench<'_>)) {
    if bench.config.runs(name) {
        bench.report.section(title);
        section(bench);
    }
}

impl Bench<'_> {
    /// Measures every system in its turn, when none works in the background, and adds that to the
    /// report.
    pub(crate) fn compare(
        &mut self,
        what: What<'_>,
        rounds: u64,
        mut measure: impl FnMut(&mut dyn System) -> f64,
    ) {
        let all: Vec<usize> = (0..self.systems.len()).collect();
        let mut values = vec![Vec::new(); all.len()];
        for round in 0..rounds {
            for nth in turns(usize::try_from(round).unwrap_or(0), all.len()) {
                self.begin_turn(what.key, round, rounds, nth);
                values[nth].push(measure(self.systems[nth].as_mut()));
            }
        }
        let names = self.systems.iter().map(|system| system.name().to_owned());
        let values = names.zip(values).collect();
        self.add(what, values);
    }

    /// The same, of a running Postgres. Before and after each turn it is given a checkpoint, so
    /// that nobody pays for what another left.
    pub(crate) fn compare_running(
        &mut self,
        what: What<'_>,
        rounds: u64,
        mut measure: impl FnMut(&Side) -> f64,
    ) {
        self.compare(what, rounds, |system| {
            let side = system.side();
            side.sql("checkpoint");
            let value = measure(&side);
            side.sql("checkpoint");
            value
        });
    }

    /// Says whose turn it is, and waits until nobody works in the background.
    pub(crate) fn begin_turn(&mut self, key: &str, round: u64, rounds: u64, nth: usize) {
        assert!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
        let name = self.systems[nth].name();
        progress(&format!(
            "[{}] {key}: round {} of {rounds}, {name}",
            self.report.clock(),
            round + 1
        ));
        self.systems.iter_mut().for_each(|system| system.settle());
    }

    /// Adds a measure to the report.
    pub(crate) fn add(&mut self, what: What<'_>, values: Vec<(String, Vec<f64>)>) {
        progress("");
        let What { key, what, unit, better } = what;
        self.report.add(Measure {
            key: key.to_owned(),
            what: what.to_owned(),
            unit,
            better,
            values,
        });
    }
}

/// Shows a line that the next one replaces, where somebody looks.
pub(crate) fn progress(line: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{line}");
        let _ = err.flush();
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on a signal to end is a panic at the next turn, which leaves nothing mounted or
/// running.
pub(crate) fn watch_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start a runtime");
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        let watch = |kind| signal(kind).expect("watch for signals");
        (watch(SignalKind::interrupt()), watch(SignalKind::terminate()))
    };
    std::thread::spawn(move || {
        let name = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
        eprintln!("\n{name}: cleaning up at the next turn");
    });
}
