//! Stock Postgres on a Coppice branch against the same Postgres on the local file system, alternating in one run.
//!
//! `cargo bench --bench pgbench` prints each round and the ratio of the medians, ours over native, larger is better.
//! Both sides are reached over their Unix sockets, with the same settings. `COPPICE_BENCH_SCALE` (30),
//! `COPPICE_BENCH_SECONDS` (10) and `COPPICE_BENCH_ROUNDS` (5) set the size of it.

use coppice::Server;
use coppice::sides::{Native, Side, compare, number, ours};
use std::time::Instant;

const CTAS: &str = "create table bench_ctas as select i, md5(i::text) from generate_series(1, 3000000) i";

/// Rows a second, so that larger is better as with the others.
fn ctas(side: &Side) -> f64 {
    side.psql("drop table if exists bench_ctas");
    let began = Instant::now();
    side.psql(CTAS);
    3e6 / began.elapsed().as_secs_f64()
}

fn main() {
    let (scale, seconds, rounds) = (
        number("COPPICE_BENCH_SCALE", 30).to_string(),
        number("COPPICE_BENCH_SECONDS", 10).to_string(),
        number("COPPICE_BENCH_ROUNDS", 5),
    );
    let server = Server::start_with(Default::default(), &["--suspend-after", "0"]);
    let native = Native::start();
    let sides = [ours(&server), native.side()];
    compare("load (pgbench -i)", &sides, 1, |side| {
        let began = Instant::now();
        side.pgbench(&["-i", "-q", "-s", &scale]);
        1e3 / began.elapsed().as_secs_f64()
    });
    compare("tpc-b, 1 client", &sides, rounds, |side| side.tps(&["-T", &seconds, "-c", "1"]));
    compare("tpc-b, 4 clients", &sides, rounds, |side| side.tps(&["-T", &seconds, "-c", "4", "-j", "2"]));
    compare("select-only, 2 clients", &sides, rounds, |side| {
        side.tps(&["-S", "-T", &seconds, "-c", "2", "-j", "2"])
    });
    compare("create table as", &sides, rounds, ctas);
}
