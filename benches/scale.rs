//! Ten thousand branches of one parent: what the last costs as against the first, and what they
//! leave behind.
//!
//! `cargo bench --bench scale` prints the times of creation and deletion in milliseconds, the
//! server's memory, the time of a restart, and the store's size before and after, and keeps them
//! for `make bench-docs`.
//! `COPPICE_BENCH_BRANCHES` (10,000) sets how many there are. One in a hundred is woken and written
//! to, so that there is something to give back.

use api::types::CreateBranch;
use coppice::Server;
use coppice::figures::Figures;
use std::time::{Duration, Instant};

const WRITTEN: usize = 100;

fn resident_mib(pid: u32) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read the server's status");
    let line =
        status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line with the memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") >> 10
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn main() {
    let count = std::env::var("COPPICE_BENCH_BRANCHES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000);
    let mut server = Server::start();
    let client = server.client();
    let bytes = || client.status().expect("status").store_bytes >> 20;
    client.suspend("main").expect("suspend");
    let mut figures = Figures::new("scale");
    let sizes = |bytes: u64, pid| format!("{bytes} MiB, {} MiB", resident_mib(pid));
    figures.fact("store, server's memory, 1 branch", &sizes(bytes(), server.pid()));
    let name = |nth: usize| format!("branch-{nth}");
    let create = |nth: usize| {
        let request = CreateBranch { name: name(nth), ..CreateBranch::default() };
        timed(|| drop(client.create(&request).expect("create")))
    };
    let creates: Vec<Duration> = (0..count).map(create).collect();
    let part = count.min(1000);
    figures.times("create, the first", &creates[..part]);
    figures.times("create, the last", &creates[count - part..]);
    for nth in (0..count).step_by(WRITTEN) {
        server
            .sql(&name(nth), "create table t as select generate_series(1, 20000)")
            .expect("write");
        client.suspend(&name(nth)).expect("suspend");
    }
    let list = |_| timed(|| assert_eq!(client.list().expect("list").len(), count + 1));
    figures.times("list all", &(0..20).map(list).collect::<Vec<_>>());
    let all = format!("store, server's memory, {count} branches");
    figures.fact(&all, &sizes(bytes(), server.pid()));
    assert!(server.stop().success());
    figures.times("restart to ready", &[timed(|| server.restart())]);
    let client = server.client();
    let bytes = || client.status().expect("status").store_bytes >> 20;
    figures.fact("store, server's memory, after it", &sizes(bytes(), server.pid()));
    let began = Instant::now();
    let delete = |nth: usize| timed(|| client.delete(&name(nth)).expect("delete"));
    let deletes: Vec<Duration> = (0..count).map(delete).collect();
    figures.times("delete", &deletes);
    figures.times("delete all", &[began.elapsed()]);
    std::thread::sleep(Duration::from_secs(2));
    figures.fact("store, server's memory, without them", &sizes(bytes(), server.pid()));
    assert!(server.stop().success());
    figures.save();
}
