//! Reads from sealed layers with nothing cached, against the same Postgres on the local file system, and what a sealed
//! database takes on disk.
//!
//! `cargo bench --bench cold`, as root: before each measurement Postgres is stopped and the kernel's caches are dropped.
//! `COPPICE_BENCH_SCALE` (30) and `COPPICE_BENCH_ROUNDS` (7) set the size of it.

use coppice::sides::{Native, Side, compare, number, ours};
use coppice::{Server, eventually};
use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const SCAN: &str = "set max_parallel_workers_per_gather = 0; select sum(abalance) from pgbench_accounts";

fn drop_caches() {
    assert!(Command::new("sync").status().expect("run sync").success());
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("drop the caches (as root)");
}

fn directory_mib(path: &Path) -> u64 {
    let output = Command::new("du").arg("-sm").arg(path).output().expect("run du");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a size")
}

fn main() {
    let (scale, rounds) = (number("COPPICE_BENCH_SCALE", 30).to_string(), number("COPPICE_BENCH_ROUNDS", 7));
    let server = Server::start_with(Default::default(), &["--seal-after", "1"]);
    let native = RefCell::new(Native::start());
    let sides = [ours(&server), native.borrow().side()];
    for side in &sides {
        side.pgbench(&["-i", "-q", "-s", &scale]);
        side.psql("vacuum analyze");
        side.psql("checkpoint");
    }
    server.client().suspend("main").expect("suspend");
    let lanes = server.data().join("store/lanes");
    eventually("everything is sealed", || {
        let files = std::fs::read_dir(&lanes).expect("list the lanes").flatten();
        files.filter(|file| !file.file_name().to_string_lossy().starts_with("spare")).count() == 0
    });
    let own = server.client().get("main").expect("the branch").own_bytes >> 20;
    let directory = directory_mib(&native.borrow().data());
    println!(
        "sealed {own} MiB, its past included; native data directory {directory} MiB; ratio {:.2}",
        own as f64 / directory as f64
    );
    let cold = |side: &Side| {
        if side.name == "native" {
            native.borrow_mut().restart(drop_caches);
        } else {
            server.client().suspend("main").expect("suspend");
            drop_caches();
            server.client().wake("main").expect("wake");
        }
    };
    compare("cold sequential scan", &sides, rounds, |side| {
        cold(side);
        let began = Instant::now();
        side.psql(SCAN);
        1e3 / began.elapsed().as_secs_f64()
    });
    compare("cold random reads", &sides, rounds, |side| {
        cold(side);
        side.tps(&["-n", "-S", "-M", "prepared", "-c", "1", "-t", "3000"])
    });
}
