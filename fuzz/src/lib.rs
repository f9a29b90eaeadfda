//! A small fuzzer for stable Rust: mutates kept inputs from a seed for a time, and keeps what breaks the property.
//!
//! `TARGET [SECONDS] [SEED]` runs (5 seconds and a fresh seed unless told otherwise) and prints its seed; the same
//! seed tries the same inputs again. `TARGET FILE` tries one input, such as one kept in `fuzz/artifacts`. It exits with
//! 1 when the property broke and 2 when it could not run. Without coverage to guide it, how far it gets depends on the
//! corpus: each kind of input worth mutating belongs there as a file.

mod mutate;

use std::error::Error;
use std::fs;
use std::panic::{UnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mutate::{Random, mutate};

/// Inputs tried between two looks at the clock.
const BATCH: u64 = 256;
/// How long to run unless told otherwise.
const SECONDS: u64 = 5;

/// Runs the target `name` as the command line says. A `property` that does not hold panics.
pub fn run(name: &str, property: fn(&[u8])) -> ExitCode {
    match try_run(name, property) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether the property held.
fn try_run(name: &str, property: fn(&[u8])) -> Result<bool, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).map(|text| text.parse::<u64>()).transpose();
    if let Some(file) = arguments.first().map(Path::new).filter(|file| file.is_file()) {
        let input = fs::read(file)?;
        return Ok(holds(|| property(&input)));
    }
    let usage = |error| format!("{error}; usage: {name} [SECONDS] [SEED], or {name} FILE");
    let seconds = number(0).map_err(usage)?.unwrap_or(SECONDS);
    let seed = match number(1).map_err(usage)? {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    search(name, property, Duration::from_secs(seconds), seed)
}

fn search(name: &str, property: fn(&[u8]), time: Duration, seed: u64) -> Result<bool, Box<dyn Error>> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = read_corpus(&home.join("corpus").join(name))?;
    let mut random = Random::new(seed);
    let end = Instant::now() + time;
    let mut tried = 0;
    println!("{name}: seed {seed}, {} kept inputs, {} seconds", corpus.len(), time.as_secs());
    let originals = corpus.iter().cloned();
    let mutants = std::iter::from_fn(|| {
        tried += 1;
        let go_on = tried % BATCH != 0 || Instant::now() < end;
        go_on.then(|| mutate(&corpus, &mut random))
    });
    let broken = originals.chain(mutants).find(|input| !holds(|| property(input)));
    println!("{name}: tried {tried} mutants");
    let Some(input) = broken else {
        return Ok(true);
    };
    let artifacts = home.join("artifacts");
    fs::create_dir_all(&artifacts)?;
    let kept = artifacts.join(format!("{name}-{seed}-{tried}"));
    fs::write(&kept, &input)?;
    eprintln!("{name}: broken by {}", input.escape_ascii());
    eprintln!("{name}: the input is kept in {}", kept.display());
    Ok(false)
}

/// The files of `dir`, by name, so that a seed means the same everywhere.
fn read_corpus(dir: &Path) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| format!("cannot read the corpus {}: {error}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("the corpus {} is empty: add an input to mutate", dir.display()).into());
    }
    Ok(files.into_iter().map(fs::read).collect::<Result<_, _>>()?)
}

/// Whether `check` returns instead of panicking.
fn holds(check: impl FnOnce() + UnwindSafe) -> bool {
    catch_unwind(check).is_ok()
}
