//! Reads after Postgres was stopped and the kernel's caches were dropped, of more data than fits
//! into shared buffers.

use super::{Bench, What};
use crate::report::Better;
use std::process::Command;

/// Written to, it makes the kernel forget what it has cached.
const DROP: &str = "/proc/sys/vm/drop_caches";
const SCAN: &str = "select sum(abalance) from pgbench_accounts";

/// A sequential scan by one process, and rows by key.
pub(crate) fn run(bench: &mut Bench<'_>) {
    if let Err(error) = std::fs::OpenOptions::new().write(true).open(DROP) {
        let why = format!("the kernel's caches cannot be dropped: {error}");
        println!("!!! SKIPPED cold: {why}");
        bench.report.skip(vec![("cold".to_owned(), why)]);
        return;
    }
    let (rounds, reads) = (bench.config.rounds, bench.config.cold_reads.to_string());
    bench.compare(
        What { key: "scan.cold", what: SCAN, unit: "scans/s", better: Better::More },
        rounds,
        |system| {
            system.restart(&mut drop_caches);
            let session = system.side().connect();
            session.sql("set max_parallel_workers_per_gather = 0");
            let began = std::time::Instant::now();
            session.sql(SCAN);
            1.0 / began.elapsed().as_secs_f64()
        },
    );
    let args = ["-n", "-S", "-M", "prepared", "-c", "1", "-t", &reads];
    let what = format!("pgbench {}", args.join(" "));
    bench.compare(
        What { key: "select.cold", what: &what, unit: "tps", better: Better::More },
        rounds,
        |system| {
            system.restart(&mut drop_caches);
            system.side().tps(&args)
        },
    );
}

fn drop_caches() {
    assert!(Command::new("sync").status().expect("run sync").success());
    std::fs::write(DROP, "3").expect("drop the caches");
}
