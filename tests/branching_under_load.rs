//! Branches are made while their parent works: each is whole, and the parent works on. How much
//! throughput branching costs is for the benchmarks to say.
//!
//! `COPPICE_TEST_BRANCHES` sets how many, 20 if it is not set.

use coppice::{Server, tpcb};
use std::time::{Duration, Instant};

/// Seconds of each measured run.
const SECONDS: u32 = 6;
/// Branches that are woken and checked while the parent goes on overwriting what they read from it.
const CHECKED_UNDER_LOAD: usize = 4;

fn branches() -> usize {
    std::env::var("COPPICE_TEST_BRANCHES")
        .map_or(20, |count| count.parse().expect("a number of branches"))
}

/// Makes `count` branches of `main`, evenly over most of a run.
fn branch(server: &Server, count: usize) -> Vec<String> {
    let client = server.client();
    let (began, span) = (Instant::now(), Duration::from_secs(u64::from(SECONDS)).mul_f64(0.8));
    let names = (0..count).map(|nth| format!("under-load/{nth}"));
    let create = |(nth, name): (usize, String)| {
        let due = span.mul_f64(nth as f64 / count as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let request = api::types::CreateBranch { name: name.clone(), ..Default::default() };
        client.create(&request).unwrap_or_else(|error| panic!("create {name}: {error}"));
        name
    };
    names.enumerate().map(create).collect()
}

#[test]
fn branches_of_a_busy_parent_are_whole() {
    // Logs are sealed and layers merged all the time.
    let server = Server::start_with(Default::default(), &["--log-limit", "8", "--seal-after", "1"]);
    tpcb::initialize(&server, "main", 5);
    let alone = tpcb::Load::start(&server, "main", 4, SECONDS).finish();
    let before = tpcb::verify(&server, "main");

    let load = tpcb::Load::start(&server, "main", 4, SECONDS);
    let names = branch(&server, branches());
    let branching = load.finish();
    let ratio = branching / alone;
    println!(
        "TPC-B on main: {alone:.0}/s alone, {branching:.0}/s while branched {} times, ratio \
         {ratio:.2}",
        names.len()
    );

    let (under_load, after) = names.split_at(CHECKED_UNDER_LOAD.min(names.len()));
    let load = tpcb::Load::start(&server, "main", 4, 600);
    let check = |name: &String| {
        let seen = tpcb::verify(&server, name);
        tpcb::verify_checksums(&server, name);
        server.client().delete(name).unwrap();
        seen
    };
    let mut seen: Vec<u64> = under_load.iter().map(check).collect();
    drop(load);
    seen.extend(after.iter().map(check));
    // Each branch holds what was committed when it was made, so the later ones hold more.
    assert!(seen.is_sorted() && seen[0] >= before, "{before} transactions, then {seen:?}");
    assert!(seen[0] < seen[seen.len() - 1], "no branch was made while transactions ran: {seen:?}");
    tpcb::verify(&server, "main");
    tpcb::verify_checksums(&server, "main");
    // Two runs of a few seconds on a busy machine tell no more than this.
    assert!(ratio >= 0.1, "the parent stood still: {ratio:.2} of its throughput was left");
}
