//! The page store on a simulated disk and clock, against a plain model, with everything drawn from
//! one seed.
//!
//! Without arguments the simulation runs a fixed set of seeds. `--seconds N` runs fresh seeds for
//! so long, `--runs N` runs so many, and `--seed N` replays one. When a seed fails, the simulation
//! prints the shortest list of operations that still fails. The seed alone determines what a run
//! does, and in which order the work of the store and that of its users interleave.
//!
//! With `--expect-failure` the seeds count from 1, and the simulation succeeds when one of them
//! fails. So a build with a deliberate defect (feature `sabotage`) shows that the simulation finds
//! the defect, after the same number of runs on every machine.

mod branch;
mod files;
mod lie;
mod model;
mod operation;
mod run;
mod slow;
mod stalled;
mod world;

use crate::operation::{Operation, draw};
use crate::run::{Tally, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Operations of a run.
const OPERATIONS: usize = 250;
/// Seeds that are always tried.
const FIXED: u64 = 30;
/// How long a failing run is shortened.
const SHORTEN: Duration = Duration::from_secs(30);

/// A run that went wrong.
struct Failure {
    seed: u64,
    reason: String,
}

fn try_run(operations: &[Operation]) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| run(operations))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Leaves out whatever is not needed for a run to fail.
fn shorten(mut operations: Vec<Operation>) -> (Vec<Operation>, String) {
    let (began, mut reason) = (Instant::now(), String::new());
    let mut size = operations.len().div_ceil(2);
    while size > 0 && began.elapsed() < SHORTEN {
        let (mut at, before) = (0, operations.len());
        while at < operations.len() && began.elapsed() < SHORTEN {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + size).min(fewer.len()));
            match try_run(&fewer) {
                Ok(_) => at += size,
                Err(why) => (operations, reason) = (fewer, why),
            }
        }
        if size > 1 || operations.len() == before {
            size /= 2;
        }
    }
    (operations, reason)
}

/// Runs seeds until `done` says so; the first that fails.
fn search(
    seeds: impl Fn(u64) -> u64 + Sync,
    done: impl Fn(u64) -> bool + Sync,
) -> (u64, Tally, Option<Failure>) {
    let (next, failure, total) =
        (AtomicU64::new(0), Mutex::new(None::<Failure>), Mutex::new((0, Tally::default())));
    let work = || {
        loop {
            let nth = next.fetch_add(1, Ordering::SeqCst);
            if done(nth) || failure.lock().expect("a lock").is_some() {
                return;
            }
            let seed = seeds(nth);
            match try_run(&draw(seed, OPERATIONS)) {
                Ok(tally) => {
                    let (runs, sum) = &mut *total.lock().expect("a lock");
                    *runs += 1;
                    sum.operations += tally.operations;
                    sum.openings += tally.openings;
                }
                Err(reason) => *failure.lock().expect("a lock") = Some(Failure { seed, reason }),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let (runs, tally) = *total.lock().expect("a lock");
    (runs, tally, failure.into_inner().expect("a lock"))
}

fn report(failure: &Failure) -> ExitCode {
    let Failure { seed, reason } = failure;
    println!("seed {seed} fails: {reason}\nshortening it for at most {} s ...", SHORTEN.as_secs());
    let (operations, reason) = shorten(draw(*seed, OPERATIONS));
    operations.iter().for_each(|operation| println!("  {operation}"));
    println!(
        "these {} operations fail: {reason}\nreplay: make simulate SEED={seed}",
        operations.len()
    );
    ExitCode::FAILURE
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    // A failure is found by its panic too; each is reported once, at the end.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let expected = arguments.iter().any(|argument| argument == "--expect-failure");
    let fresh =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) << 20;
    let first = if expected { 1 } else { fresh() };
    let (runs, tally, failure) = match (number("--seed"), number("--runs"), number("--seconds")) {
        (Some(seed), ..) => search(|_| seed, |nth| nth > 0),
        (None, Some(runs), _) => search(|nth| first + nth, |nth| nth >= runs),
        (None, None, Some(seconds)) => {
            search(|nth| first + nth, |_| began.elapsed().as_secs() >= seconds)
        }
        (None, None, None) => search(|nth| nth + 1, |nth| nth >= FIXED),
    };
    let Tally { operations, openings } = tally;
    println!(
        "simulation: {runs} runs held, {operations} operations, {openings} power losses and \
         restarts, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    match failure {
        Some(Failure { seed, reason }) if expected => {
            println!("the defect was found with seed {seed}: {reason}");
            ExitCode::SUCCESS
        }
        Some(failure) => report(&failure),
        None if expected => {
            println!("the defect was not found");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}
