//! A day's worth of churn in small: TPC-B without a pause, a branch created and another deleted
//! every second, and branches made at random moments of the past, with a short history and small
//! limits.
//!
//! `cargo bench --bench churn` prints, for each minute, transactions, the slowest of them, the
//! store's size and the server's memory; then whether the disk levelled off, how slow transactions
//! got and whether the server saw a slow file operation or disk then, and that each branch holds
//! what it should. `COPPICE_BENCH_MINUTES` (30), `COPPICE_BENCH_SCALE` (20) and
//! `COPPICE_BENCH_MOMENTS` (50) set the size of it.

use api::types::{CreateBranch, Moment};
use coppice::commits::{self, Clients};
use coppice::{Directory, Server, postgres_program, tpcb};
use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Branches that live at the same time.
const LIVING: usize = 10;
/// Seconds of history.
const WINDOW: i64 = 300;
/// A transaction that takes longer is a stall, in microseconds.
const STALL_US: u64 = 250_000;
/// Seconds over which the store's size is averaged: it goes up and down within minutes.
const SPAN: usize = 600;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A pgbench that writes down, for each second, how many transactions there were and how slow the
/// slowest was.
struct Load {
    child: Child,
    directory: Directory,
}

impl Load {
    fn start(server: &Server, seconds: u64) -> Self {
        let directory = Directory::new();
        let mut command = Command::new(postgres_program("pgbench"));
        command.args([
            "-n",
            "-M",
            "prepared",
            "-c",
            "4",
            "-j",
            "1",
            "-l",
            "--aggregate-interval=1",
        ]);
        command.arg("-T").arg(seconds.to_string()).arg(server.url("main"));
        command
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self { child: command.spawn().expect("start pgbench"), directory }
    }

    /// Waits for its end. For each second since the epoch: transactions, and the slowest in
    /// microseconds.
    fn finish(mut self) -> Vec<(i64, u64, u64)> {
        assert!(self.child.wait().expect("wait for pgbench").success());
        let files = std::fs::read_dir(self.directory.path()).expect("list pgbench's log");
        let lines = files.flatten().filter_map(|file| std::fs::read_to_string(file.path()).ok());
        let parse = |line: &str| {
            let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
            Some((fields.first()?.cast_signed(), *fields.get(1)?, *fields.get(5)?))
        };
        let mut seconds: Vec<_> =
            lines.flat_map(|text| text.lines().filter_map(parse).collect::<Vec<_>>()).collect();
        seconds.sort_unstable();
        seconds
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resident_mib(pid: u32) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read the server's status");
    let line =
        status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line with the memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") >> 10
}

/// Makes a branch at a random moment of the history, and holds it against what the clients saw.
fn visit(server: &Server, clients: &Clients, began: Timestamp, nth: u64) -> Duration {
    // Not within the oldest seconds, which the window may leave behind meanwhile.
    let now = Timestamp::now();
    let oldest = (now - SignedDuration::from_secs(WINDOW - 30)).max(began);
    let span = u64::try_from(now.as_microsecond() - oldest.as_microsecond()).expect("a span");
    let after =
        nth.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) % span;
    let moment = Timestamp::from_microsecond(oldest.as_microsecond() + after.cast_signed())
        .expect("a moment");
    let name = format!("moment/{nth}");
    let asked = Instant::now();
    let request = CreateBranch {
        name: name.clone(),
        parent: None,
        at: Some(Moment::Time(moment)),
        history: None,
    };
    let client = server.client();
    client.create(&request).unwrap_or_else(|error| panic!("branch at {moment}: {error}"));
    let took = asked.elapsed();
    commits::verify_moment(server, &name, &clients.commits(), moment);
    client.delete(&name).expect("delete");
    took
}

/// The seconds since the epoch in which the server said that something others wait for took long,
/// and its words.
fn slow_seconds(server: &Server) -> Vec<(i64, String)> {
    let parse = |line: &str| {
        let (time, rest) = line.trim_start().split_once(' ')?;
        rest.contains("took long")
            .then_some((time.parse::<Timestamp>().ok()?.as_second(), rest.trim().to_owned()))
    };
    server.log().lines().filter_map(parse).collect()
}

/// Prints how slow transactions got, and what the server saw of it.
fn report_stalls(server: &Server, seconds: &[(i64, u64, u64)]) {
    let slow = slow_seconds(server);
    let stalls: Vec<_> = seconds.iter().filter(|(_, _, slowest)| *slowest > STALL_US).collect();
    let mut seen = 0;
    for (second, _, slowest) in &stalls {
        // A stall counts for the second in which it ends.
        let words: Vec<&str> = slow
            .iter()
            .filter(|(at, _)| (at - second).abs() <= 1)
            .map(|(_, words)| words.as_str())
            .collect();
        seen += usize::from(!words.is_empty());
        println!(
            "stall of {} ms at {second}: {}",
            slowest / 1000,
            if words.is_empty() { "the server saw nothing" } else { words[0] }
        );
    }
    println!(
        "{} of {} seconds had a transaction over {} ms; in {seen} of them a file operation or the \
         disk took over 200 ms",
        stalls.len(),
        seconds.len(),
        STALL_US / 1000
    );
}

fn report_minute(server: &Server, minute: u64, store_mib: u64) {
    let memory = resident_mib(server.pid());
    let own = server.sql("main", "select pg_database_size('app') >> 20").expect("ask for the size");
    println!(
        "minute {minute:>2}: store {store_mib:>5} MiB, server {memory:>3} MiB, database {own} MiB"
    );
}

/// How much the store grew from one span to the next.
fn report_growth(sizes: &[u64]) {
    if sizes.len() > SPAN {
        let (first, last) = sizes[sizes.len().saturating_sub(2 * SPAN)..]
            .split_at(sizes.len().min(2 * SPAN) - SPAN);
        let mean = |part: &[u64]| part.iter().sum::<u64>() as f64 / part.len() as f64;
        let (before, after) = (mean(first), mean(last));
        println!(
            "store, mean of the last ten minutes against the ten before: {before:.0} to {after:.0} \
             MiB, {:+.1}%",
            (after / before - 1.0) * 100.0
        );
    }
}

fn main() {
    let (minutes, moments) =
        (number("COPPICE_BENCH_MINUTES", 30), number("COPPICE_BENCH_MOMENTS", 50));
    let window = WINDOW.to_string();
    let limits = ["--history", &window, "--log-limit", "64", "--seal-after", "5"];
    let server = Server::start_with(Default::default(), &limits);
    let scale = u32::try_from(number("COPPICE_BENCH_SCALE", 20)).expect("a scale");
    tpcb::initialize(&server, "main", scale);
    commits::initialize(&server, "main");
    let client = server.client();
    let clients = Clients::start(&server, &["main"], 1);
    let load = Load::start(&server, minutes * 60);
    let (began, started) = (Timestamp::now(), Instant::now());
    let (mut living, mut sizes, mut visits) = (VecDeque::new(), Vec::new(), Vec::new());
    for second in 0..minutes * 60 {
        std::thread::sleep(Duration::from_secs(second).saturating_sub(started.elapsed()));
        let name = format!("churn/{second}");
        client
            .create(&CreateBranch { name: name.clone(), ..CreateBranch::default() })
            .expect("create");
        living.push_back(name);
        if living.len() > LIVING
            && let Some(name) = living.pop_front()
        {
            client.delete(&name).expect("delete");
        }
        if second >= 30 && (second - 29) * moments / (minutes * 60 - 30) > visits.len() as u64 {
            visits.push(visit(&server, &clients, began, visits.len() as u64));
        }
        sizes.push(client.status().expect("status").store_bytes >> 20);
        if second % 60 == 59 {
            report_minute(&server, second / 60 + 1, sizes[sizes.len() - 1]);
        }
    }
    let seconds = load.finish();
    for (nth, minute) in seconds.chunks(60).enumerate() {
        println!(
            "minute {:>2}: {:>6} transactions, slowest {:>4} ms",
            nth + 1,
            minute.iter().map(|(_, count, _)| count).sum::<u64>(),
            minute.iter().map(|(_, _, slowest)| slowest / 1000).max().unwrap_or(0),
        );
    }
    report_stalls(&server, &seconds);
    visits.sort_unstable();
    println!(
        "{} branches at random moments had just the commits of then; made in p50 {:.0} ms, max \
         {:.0} ms",
        visits.len(),
        visits[visits.len() / 2].as_secs_f64() * 1e3,
        visits[visits.len() - 1].as_secs_f64() * 1e3
    );
    report_growth(&sizes);
    let all: Vec<String> = living.into_iter().chain(["main".to_owned()]).collect();
    for name in &all {
        tpcb::verify(&server, name);
    }
    println!("{} branches are whole", all.len());
}
