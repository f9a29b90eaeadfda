//! The TPC-B load of pgbench on a branch, and the checks that its data came through a fork or a
//! crash whole.

use super::{Server, postgres_program};
use std::process::{Child, Command, Stdio};

/// What TPC-B keeps true at every commit: all four sums are the same, and each history row has its
/// account.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) \
    from pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select \
    coalesce(sum(delta), 0) from pgbench_history)";

/// Makes the tables of pgbench on a branch, and the extension that checks them.
pub fn initialize(server: &Server, branch: &str, scale: u32) {
    let mut command = Command::new(postgres_program("pgbench"));
    command.args(["--initialize", "--quiet", "--scale", &scale.to_string(), &server.url(branch)]);
    let output = command.output().expect("run pgbench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server
        .sql(branch, "create extension amcheck")
        .expect("create the extension amcheck (postgresql-contrib)");
}

/// A pgbench at work. Dropped, it is killed.
pub struct Load(Child);

impl Load {
    /// Starts TPC-B on a branch.
    pub fn start(server: &Server, branch: &str, clients: u32, seconds: u32) -> Self {
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        let mut command = Command::new(postgres_program("pgbench"));
        command.args([
            "--no-vacuum",
            "--jobs=2",
            "--client",
            &clients,
            "--time",
            &seconds,
            &server.url(branch),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("start pgbench"))
    }

    /// Whether it is still at work.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("look at pgbench").is_none()
    }

    /// Waits for its end; the transactions per second.
    pub fn finish(mut self) -> f64 {
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut text = String::new();
            pipe.expect("a pipe from pgbench")
                .read_to_string(&mut text)
                .expect("read from pgbench");
            text
        };
        // Both outputs are a few lines, so one pipe cannot fill up while the other is read.
        let out = read(self.0.stdout.as_mut().map(|pipe| pipe as _));
        let err = read(self.0.stderr.as_mut().map(|pipe| pipe as _));
        assert!(self.0.wait().expect("wait for pgbench").success(), "{out}{err}");
        let tps = out
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        tps.unwrap_or_else(|| panic!("pgbench reported no throughput:\n{out}{err}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Wakes a branch and checks every row, index entry and balance of it. Returns how many
/// transactions it has seen.
pub fn verify(server: &Server, branch: &str) -> u64 {
    let mut amcheck = Command::new(postgres_program("pg_amcheck"));
    amcheck.args(["--heapallindexed", "--parent-check", "--jobs=2", &server.url(branch)]);
    let output = amcheck.output().expect("run pg_amcheck");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(
        output.status.success() && said.concat().is_empty(),
        "pg_amcheck of {branch}: {}",
        said.concat()
    );
    let sums = server.sql(branch, SUMS).expect("add up the balances");
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(
        sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]),
        "the sums of {branch} differ: {sums:?}"
    );
    let count =
        server.sql(branch, "select count(*) from pgbench_history").expect("count the history");
    count.parse().expect("a count")
}

/// Suspends a branch and checks the checksum of every page of its data directory.
pub fn verify_checksums(server: &Server, branch: &str) {
    let timeline = server.client().suspend(branch).expect("suspend the branch").timeline;
    let directory = server.data().join("mount").join(timeline);
    let mut checksums = Command::new(postgres_program("pg_checksums"));
    let output = checksums.arg("--check").arg(directory).output().expect("run pg_checksums");
    let said = [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat();
    assert!(
        output.status.success() && said.contains("Bad checksums:  0"),
        "pg_checksums of {branch}: {said}"
    );
}
