//! Clients that keep their own record of what Postgres acknowledged, to hold it against what is
//! there after a crash.

use super::Server;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

/// A commit as its client saw it.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Where.
    pub branch: String,
    /// What was committed.
    pub n: i64,
    /// When it was asked for.
    pub sent: Timestamp,
    /// When it was acknowledged.
    pub acknowledged: Timestamp,
}

/// Numbers by branch.
pub type Acknowledged = BTreeMap<String, BTreeSet<i64>>;

/// Makes the table that the clients write to.
pub fn initialize(server: &Server, branch: &str) {
    server
        .sql(branch, "create table commits (n bigint primary key)")
        .expect("make the table of commits");
}

/// Clients at work: each commits one number after the other through the proxy, until its connection
/// breaks.
pub struct Clients {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<Commit>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Clients {
    /// Connects `each` clients to each of `branches`.
    pub fn start(server: &Server, branches: &[&str], each: usize) -> Self {
        let runtime = Runtime::new().expect("start a runtime");
        let (stop, commits) = (Arc::default(), Arc::default());
        let mut clients = Self { runtime, stop, commits, tasks: Vec::new() };
        for branch in branches {
            let url = server.url(branch);
            for _ in 0..each {
                let connected = clients.runtime.block_on(tokio_postgres::connect(&url, NoTls));
                let (client, connection) = connected.expect("connect to the branch");
                clients.runtime.spawn(connection);
                let (stop, commits) = (Arc::clone(&clients.stop), Arc::clone(&clients.commits));
                let task = write(client, (*branch).to_owned(), stop, commits);
                clients.tasks.push(clients.runtime.spawn(task));
            }
        }
        clients
    }

    /// What was acknowledged so far.
    pub fn so_far(&self) -> Acknowledged {
        let mut so_far = Acknowledged::new();
        for commit in self.commits() {
            so_far.entry(commit.branch).or_default().insert(commit.n);
        }
        so_far
    }

    /// Each commit so far.
    pub fn commits(&self) -> Vec<Commit> {
        self.commits.lock().expect("the lock of the record").clone()
    }

    /// Waits until at least `count` more numbers are acknowledged on `branch`.
    pub fn wait_for(&self, branch: &str, count: usize) {
        let known = || self.so_far().get(branch).map_or(0, BTreeSet::len);
        let (goal, deadline) = (known() + count, std::time::Instant::now() + super::LIMIT);
        while known() < goal {
            assert!(std::time::Instant::now() < deadline, "no commits on {branch}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the clients; what was acknowledged.
    pub fn finish(mut self) -> Acknowledged {
        self.stop();
        self.so_far()
    }

    /// Ends the clients.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            self.runtime.block_on(task).expect("a client ended");
        }
    }
}

async fn write(
    client: tokio_postgres::Client,
    branch: String,
    stop: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<Commit>>>,
) {
    static NEXT: AtomicI64 = AtomicI64::new(1);
    while !stop.load(Ordering::SeqCst) {
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let sent = Timestamp::now();
        if client.execute("insert into commits values ($1)", &[&n]).await.is_err() {
            return;
        }
        // Only now: the commit was acknowledged.
        let acknowledged = Timestamp::now();
        let commit = Commit { branch: branch.clone(), n, sent, acknowledged };
        commits.lock().expect("the lock of the record").push(commit);
    }
}

/// Asserts that a branch holds just what was committed at `moment`: all that was acknowledged by
/// then, and nothing that was asked for later. Returns how many commits it holds.
pub fn verify_moment(
    server: &Server,
    branch: &str,
    commits: &[Commit],
    moment: Timestamp,
) -> usize {
    let there = numbers(server, branch);
    for commit in commits {
        if commit.acknowledged <= moment {
            assert!(there.contains(&commit.n), "{branch} at {moment} lacks {commit:?}");
        } else if commit.sent > moment {
            assert!(!there.contains(&commit.n), "{branch} at {moment} has {commit:?}");
        }
    }
    there.len()
}

/// The numbers on a branch.
pub fn numbers(server: &Server, branch: &str) -> BTreeSet<i64> {
    let there = server.sql(branch, "select n from commits").expect("read the commits");
    there.lines().map(|n| n.parse().expect("a number")).collect()
}

/// Asserts that every number is on the branch.
pub fn verify(server: &Server, branch: &str, acknowledged: &BTreeSet<i64>) {
    let there = numbers(server, branch);
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(
        lost.is_empty(),
        "{branch} lost {} of {} commits: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
}
