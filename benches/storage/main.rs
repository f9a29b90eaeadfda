//! The page store in parts: appending, syncing, forking, sealing, merging, and reading through
//! layers and along chains.
//!
//! `cargo bench --bench storage`. What is written and read is chosen by the seed that is printed,
//! and everything read is held against what was written. The operating system has all of it cached,
//! so what is measured is the work of the store, but for the syncs, which reach the disk.

mod reads;
mod shape;
mod world;
mod writes;

use criterion::Criterion;
use std::time::Duration;

fn main() {
    println!("seed {}", world::SEED);
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    writes::all(&mut criterion);
    shape::all(&mut criterion);
    reads::all(&mut criterion);
    criterion.final_summary();
}
