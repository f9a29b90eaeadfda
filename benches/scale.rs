//! Ten thousand branches of one parent: what the last costs as against the first, and what they
//! leave behind.
//!
//! `cargo bench --bench scale` prints the times of creation and deletion in milliseconds, the
//! server's memory, the time of a restart, and the store's size before and after.
//! `COPPICE_BENCH_BRANCHES` (10,000) sets how many there are. One in a hundred is woken and written
//! to, so that there is something to give back.

use api::types::CreateBranch;
use coppice::Server;
use std::time::{Duration, Instant};

const WRITTEN: usize = 100;

fn row(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let ms = |part: usize| sorted[(sorted.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<24} p50 {:>6.2}  p99 {:>6.2}  max {:>6.2} ms   n={}",
        ms(50),
        ms(99),
        ms(100),
        times.len()
    );
}

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
    println!("store {} MiB, server {} MiB resident, 1 branch", bytes(), resident_mib(server.pid()));
    let name = |nth: usize| format!("branch-{nth}");
    let create = |nth: usize| {
        let request = CreateBranch { name: name(nth), ..CreateBranch::default() };
        timed(|| drop(client.create(&request).expect("create")))
    };
    let creates: Vec<Duration> = (0..count).map(create).collect();
    let part = count.min(1000);
    row("create, the first", &creates[..part]);
    row("create, the last", &creates[count - part..]);
    for nth in (0..count).step_by(WRITTEN) {
        server
            .sql(&name(nth), "create table t as select generate_series(1, 20000)")
            .expect("write");
        client.suspend(&name(nth)).expect("suspend");
    }
    println!(
        "store {} MiB, server {} MiB resident, {count} branches",
        bytes(),
        resident_mib(server.pid())
    );
    assert!(server.stop().success());
    println!("restart to ready {:.2} s", timed(|| server.restart()).as_secs_f64());
    let client = server.client();
    let bytes = || client.status().expect("status").store_bytes >> 20;
    println!("store {} MiB, server {} MiB resident, after it", bytes(), resident_mib(server.pid()));
    let began = Instant::now();
    let delete = |nth: usize| timed(|| client.delete(&name(nth)).expect("delete"));
    let deletes: Vec<Duration> = (0..count).map(delete).collect();
    row("delete", &deletes);
    println!("deleted all in {:.1} s", began.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(2));
    println!("store {} MiB, server {} MiB resident, 1 branch", bytes(), resident_mib(server.pid()));
    assert!(server.stop().success());
}
