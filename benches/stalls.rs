//! How much slower transactions get while the store seals and merges, against a store that has
//! nothing to do.
//!
//! `cargo bench --bench stalls`. Two servers with the same database take turns under TPC-B with two
//! clients: one seals at every few megabytes, the other not at all. Told are the percentiles of the
//! transactions' times from pgbench's log, at a third of the greatest rate and without a limit, and
//! the ratio of the medians of all rounds. `COPPICE_BENCH_SCALE` (10), `COPPICE_BENCH_SECONDS` (15)
//! and `COPPICE_BENCH_ROUNDS` (5) set the size of it.

use coppice::sides::{Side, median, number, percentile, set_up_branch, turns};
use coppice::{Directory, Server, processes};
use std::sync::Arc;

/// Sealing and merging are told of at this level.
const LOG: &str = "RUST_LOG=info,pageserver::storage::upkeep=debug";
/// What seals without a pause under this load, and what does not seal before the end of the run.
const BUSY: [&str; 4] = ["--log-limit", "64", "--seal-after", "1"];
const IDLE: [&str; 4] = ["--log-limit", "100000", "--seal-after", "86400"];
const PERCENTS: [usize; 3] = [50, 99, 100];

struct Bench {
    server: Server,
    side: Side,
}

impl Bench {
    fn start(name: &str, limits: &[&str], scale: &str) -> Self {
        let args = [&["--suspend-after", "0"], limits].concat();
        let wrapper = ["env", LOG].map(str::to_owned);
        let server = Server::start_wrapped(Arc::new(Directory::new()), &args, &wrapper);
        set_up_branch(&server, "main");
        let side = Side::branch(name, &server, "main");
        side.pgbench(&["-i", "-q", "-s", scale]);
        Self { server, side }
    }

    /// How often a lane was sealed, and how often layers were merged.
    fn worked(&self) -> [usize; 2] {
        let log = self.server.log();
        ["plan=Seal", "plan=Merge"]
            .map(|plan| log.lines().filter(|line| line.contains(plan)).count())
    }

    /// Runs TPC-B; the transactions' times in milliseconds, each from when it was due.
    fn times(&self, seconds: &str, limit: &[String]) -> Vec<f64> {
        let directory = Directory::new();
        self.side.sql("checkpoint");
        let limit = limit.iter().map(String::as_str);
        let args: Vec<&str> =
            ["-n", "-l", "-c", "2", "-j", "1", "-T", seconds].into_iter().chain(limit).collect();
        self.side.pgbench_in(directory.path(), &args);
        let files = std::fs::read_dir(directory.path()).expect("list pgbench's logs").flatten();
        let texts =
            files.map(|file| std::fs::read_to_string(file.path()).expect("read pgbench's log"));
        let time = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok().map(|us| us / 1e3);
        let times: Vec<f64> = texts
            .flat_map(|text| text.lines().map(time).collect::<Vec<_>>())
            .map(|time| time.expect("a time"))
            .collect();
        assert!(!times.is_empty(), "pgbench wrote no log");
        times
    }
}

/// Measures both in turns at a limited rate, or at any. Returns the rate of the one that has
/// nothing to seal.
fn compare(
    benches: &[Bench; 2],
    what: &str,
    (rounds, seconds): (u64, u64),
    limit: &[String],
) -> f64 {
    // For each of the two, and each percentile, the values of all rounds.
    let mut values = [[(); 2]; PERCENTS.len()].map(|pair| pair.map(|()| Vec::new()));
    let mut counts = Vec::new();
    let before = benches[0].worked();
    for round in 0..rounds {
        for nth in turns(usize::try_from(round).unwrap_or(0), benches.len()) {
            // The other may still be sealing what its turn left.
            benches.iter().for_each(|bench| processes::wait_until_at_rest(&bench.server));
            let times = benches[nth].times(&seconds.to_string(), limit);
            for (percent, values) in PERCENTS.iter().zip(&mut values) {
                values[nth].push(percentile(&times, *percent));
            }
            if nth == 1 {
                counts.push(times.len() as f64 / seconds as f64);
            }
        }
    }
    let after = benches[0].worked();
    let [seals, merges] = [0, 1].map(|nth| after[nth] - before[nth]);
    println!("{what}: {seals} times sealed and {merges} times merged meanwhile");
    assert!(seals > 0 && merges > 0, "nothing was sealed or merged, so nothing was measured");
    assert_eq!(benches[1].worked(), [0, 0], "the store that should rest was at work");
    for (percent, [busy, idle]) in PERCENTS.iter().zip(&values) {
        let show = |values: &[f64]| {
            values.iter().map(|ms| format!("{ms:.2}")).collect::<Vec<_>>().join(" ")
        };
        let (ours, others) = (median(busy), median(idle));
        println!(
            "  p{percent:<3} sealing {ours:>7.2} ms, at rest {others:>7.2} ms, ratio {:.2}   ({} | \
             {})",
            ours / others,
            show(busy),
            show(idle)
        );
    }
    median(&counts)
}

fn main() {
    let scale = number("COPPICE_BENCH_SCALE", 10).to_string();
    let size = (number("COPPICE_BENCH_ROUNDS", 5), number("COPPICE_BENCH_SECONDS", 15));
    let benches = [Bench::start("sealing", &BUSY, &scale), Bench::start("at rest", &IDLE, &scale)];
    let most = compare(&benches, "TPC-B, 2 clients, no limit", size, &[]);
    let rate = (most / 3.0).max(1.0).floor();
    let limit = ["-R".to_owned(), rate.to_string()];
    compare(&benches, &format!("TPC-B, 2 clients, {rate} transactions a second"), size, &limit);
}
