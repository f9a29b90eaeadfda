//! What the server takes is bounded: computes in memory, and nothing is left of branches that came
//! and went.
//!
//! `COPPICE_ROUNDS` (40) and `COPPICE_BRANCHES` (30) set how long it goes on; `make soak` takes
//! 5,000 and 500.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::CreateBranch;
use coppice::{Directory, LIMIT, Server, eventually, processes};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn create(server: &Server, name: &str) {
    let request = CreateBranch { name: name.into(), ..CreateBranch::default() };
    server.client().create(&request).unwrap_or_else(|error| panic!("create {name}: {error}"));
}

/// How the user ids begin that no test beside this one has.
const OWN_UIDS: &str = " 19000";

fn running(server: &Server) -> usize {
    processes::postmasters(server, processes::below(&server.data().join("mount"))).len()
}

/// What a server and its computes take of the machine.
#[derive(Clone, Copy, Debug)]
struct Taken {
    files: usize,
    threads: usize,
    postgres: usize,
    mounts: usize,
    shared_memory: usize,
    memory_kib: usize,
    store_mib: usize,
}

/// Bytes of the files in a directory and below, but for spare lane files: those follow demand and
/// go by themselves, minutes later.
fn files_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => files_in(&entry.path()),
        Ok(found) if !entry.file_name().to_string_lossy().starts_with("spare.") => found.len(),
        // It may be gone since it was listed.
        _ => 0,
    });
    bytes.sum()
}

impl Taken {
    fn by(server: &Server) -> Self {
        let process = Path::new("/proc").join(server.pid().to_string());
        let count = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let below = server.data();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
        Self {
            files: count(&process.join("fd")),
            threads: count(&process.join("task")),
            postgres: processes::below(&below.join("mount")).len(),
            mounts: mounts.lines().filter(|line| line.contains(below.to_str().unwrap())).count(),
            shared_memory: segments.lines().filter(|line| line.contains(OWN_UIDS)).count(),
            memory_kib: memory.split_whitespace().next().unwrap().parse().unwrap(),
            store_mib: usize::try_from(files_in(&below.join("store")) >> 20).unwrap(),
        }
    }

    /// Whether nothing is left of so many rounds since `before`.
    fn is_within(&self, before: &Self, rounds: usize) -> bool {
        self.files <= before.files + 4
            && self.threads <= before.threads + 4
            && self.postgres <= before.postgres
            && (self.mounts, self.shared_memory) == (before.mounts, before.shared_memory)
            && self.memory_kib <= before.memory_kib + 16 * 1024 + rounds
            && self.store_mib <= before.store_mib + 64
    }
}

#[test]
fn nothing_is_left_of_branches_that_come_and_go() {
    let rounds = number("COPPICE_ROUNDS", 40);
    let server = Server::start_with(
        Arc::new(Directory::new()),
        &["--suspend-after", "0", "--seal-after", "2"],
    );
    let round = |nth: usize| {
        let name = format!("round/{nth}");
        create(&server, &name);
        let answer = server.sql(
            &name,
            "create table t as select generate_series(1, 1000) i; select sum(i) from t",
        );
        assert_eq!(answer.unwrap(), "500500");
        server.client().delete(&name).unwrap();
    };
    let rest = || {
        eventually("all computes but that of main are gone", || running(&server) <= 1);
        // The last timelines are sealed, closed and forgotten.
        std::thread::sleep(Duration::from_secs(5));
    };
    let warm = (rounds / 4).max(10);
    (0..warm).for_each(round);
    rest();
    let before = Taken::by(&server);
    for nth in warm..warm + rounds {
        round(nth);
        if (nth - warm + 1).is_multiple_of(500) {
            println!("after {} rounds: {:?}", nth - warm + 1, Taken::by(&server));
        }
    }
    rest();
    // On a busy machine the last of them take longer.
    let (mut after, deadline) = (Taken::by(&server), Instant::now() + LIMIT);
    while !after.is_within(&before, rounds) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
        after = Taken::by(&server);
    }
    println!("before {rounds} rounds: {before:?}\nafter: {after:?}");
    assert!(after.is_within(&before, rounds), "{before:?} grew to {after:?}");
}

#[test]
fn an_idle_branch_makes_room_for_the_next() {
    const PLACES: usize = 3;
    let branches = number("COPPICE_BRANCHES", 30);
    let server = Server::start_with(
        Arc::new(Directory::new()),
        &["--suspend-after", "0", "--max-running", &PLACES.to_string()],
    );
    for nth in 0..branches {
        create(&server, &format!("b{nth}"));
    }
    for nth in 0..branches {
        assert_eq!(server.sql(&format!("b{nth}"), "select 1").unwrap(), "1");
        assert!(running(&server) <= PLACES, "{} run after {nth}", running(&server));
    }
    // Those used last are the ones that run.
    let last: Vec<String> = (branches - PLACES..branches).map(|nth| format!("b{nth}")).collect();
    for name in &last {
        assert_eq!(
            server.client().get(name).unwrap().state,
            api::types::ComputeState::Running,
            "{name}"
        );
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut held = Vec::new();
        for name in &last {
            let (client, connection) =
                tokio_postgres::connect(&server.url(name), NoTls).await.unwrap();
            held.push((client, tokio::spawn(connection)));
        }
        let refused = tokio_postgres::connect(&server.url("b0"), NoTls).await.err().unwrap();
        let words = refused.as_db_error().unwrap().message().to_owned();
        assert!(words.contains("3 branches run") && words.contains("--max-running"), "{words}");
        for (client, _) in &held {
            assert_eq!(
                client.query_one("select 1", &[]).await.unwrap().get::<_, i32>(0),
                1,
                "nobody lost theirs"
            );
        }
        drop(held.pop());
        assert!(
            tokio_postgres::connect(&server.url("b0"), NoTls).await.is_ok(),
            "there is room again"
        );
    });
}
