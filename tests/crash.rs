//! The server, a postmaster or a backend is killed under load: whatever was acknowledged is there
//! afterwards.
//!
//! `COPPICE_TEST_CRASHES` sets how often the server is killed, 3 times if it is not set.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{Branch, ComputeState, CreateBranch};
use coppice::commits::{self, Acknowledged, Clients};
use coppice::processes::{self, Process};
use coppice::{LIMIT, Server, tpcb};
use std::time::{Duration, Instant};

fn create(server: &Server, name: &str, parent: &str) {
    let request =
        CreateBranch { name: name.into(), parent: Some(parent.into()), ..Default::default() };
    server.client().create(&request).unwrap_or_else(|error| panic!("create {name}: {error}"));
}

fn add(all: &mut Acknowledged, more: Acknowledged) {
    for (branch, numbers) in more {
        all.entry(branch).or_default().extend(numbers);
    }
}

/// A child holds what its parent had acknowledged before the request to make it.
fn inherit(all: &mut Acknowledged, parent: &str, child: &str) {
    let inherited = all.get(parent).cloned().unwrap_or_default();
    all.insert(child.to_owned(), inherited);
}

/// What is mounted in the server's data directory.
fn mounts(server: &Server) -> usize {
    let table = std::fs::read_to_string("/proc/mounts").unwrap();
    let mount = server.data().join("mount");
    table.lines().filter(|line| line.split(' ').nth(1) == mount.to_str()).count()
}

/// Works on three branches for a while, makes a fourth one, and kills the server. Returns what was
/// acknowledged, and the processes that there were.
fn crash(server: &mut Server, round: usize, acknowledged: &mut Acknowledged) -> Vec<Process> {
    let branches = ["main", "a", "b"];
    let loads: Vec<_> =
        branches.iter().map(|branch| tpcb::Load::start(server, branch, 2, 600)).collect();
    let clients = Clients::start(server, &branches, 2);
    branches.iter().for_each(|branch| clients.wait_for(branch, 20));
    std::thread::sleep(Duration::from_millis(700 * (1 + round as u64 % 3)));

    add(acknowledged, clients.so_far());
    let (child, parent) = (format!("round/{round}"), branches[round % 3]);
    inherit(acknowledged, parent, &child);
    create(server, &child, parent);
    branches.iter().for_each(|branch| clients.wait_for(branch, 20));
    let processes = processes::below(&server.data().join("mount"));
    server.kill();
    add(acknowledged, clients.finish());
    drop(loads);
    processes
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    // Logs are sealed and layers merged all the time.
    let mut server =
        Server::start_with(Default::default(), &["--log-limit", "4", "--seal-after", "1"]);
    tpcb::initialize(&server, "main", 2);
    commits::initialize(&server, "main");
    create(&server, "a", "main");
    create(&server, "b", "a");
    let rounds = std::env::var("COPPICE_TEST_CRASHES").map_or(3, |rounds| rounds.parse().unwrap());
    let mut acknowledged = Acknowledged::new();
    for round in 0..rounds {
        let processes = crash(&mut server, round, &mut acknowledged);
        assert!(processes.len() > 3 * 5, "{processes:?}");
        let layers = std::fs::read_dir(server.data().join("store/layers")).unwrap().count();
        assert!(layers > 0, "nothing was sealed before the crash");
        assert_eq!(
            mounts(&server),
            1,
            "the mount of a killed server is there until the next start"
        );
        server.restart();
        let left: Vec<_> = processes.iter().filter(|process| process.is_alive()).collect();
        assert!(left.is_empty(), "processes of the killed server are left: {left:?}");
        assert_eq!(processes::below(&server.data().join("mount")), [], "nobody has connected yet");
        assert_eq!(mounts(&server), 1);
        for (branch, numbers) in &acknowledged {
            commits::verify(&server, branch, numbers);
            tpcb::verify(&server, branch);
        }
        let total: usize = acknowledged.values().map(std::collections::BTreeSet::len).sum();
        println!(
            "crash {round}: all {total} acknowledged commits are on their {} branches",
            acknowledged.len()
        );
        let child = format!("round/{round}");
        server.client().delete(&child).unwrap();
        acknowledged.remove(&child);
    }
    for branch in ["main", "a", "b"] {
        tpcb::verify_checksums(&server, branch);
    }
    assert!(server.stop().success());
    assert_eq!(mounts(&server), 0);
}

/// Waits until a branch is in `state`.
fn wait_for(server: &Server, branch: &str, state: ComputeState) -> Branch {
    let deadline = Instant::now() + LIMIT;
    loop {
        let shown = server.client().get(branch).unwrap();
        if shown.state == state {
            return shown;
        }
        assert!(Instant::now() < deadline, "{branch} is {:?}, not {state:?}", shown.state);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Picks the process to kill from those of a branch; the first is the postmaster.
type Victim = fn(&Server, &str) -> Process;

fn postmaster(server: &Server, branch: &str) -> Process {
    let found = processes::postmasters(server, processes::of_branch(server, branch));
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn process_of_type(server: &Server, branch: &str, kind: &str) -> Process {
    let query = format!(
        "select pid from pg_stat_activity where backend_type = '{kind}' and pid <> \
         pg_backend_pid() limit 1"
    );
    let pid: u32 = server.sql(branch, &query).unwrap().parse().unwrap();
    let found = processes::of_branch(server, branch).into_iter().find(|process| process.pid == pid);
    found.unwrap_or_else(|| panic!("no {kind} {pid} on {branch}"))
}

#[test]
fn a_branch_recovers_when_its_processes_are_killed() {
    let victims: [(&str, Victim); 3] = [
        ("postmaster", postmaster),
        ("client backend", |server, branch| process_of_type(server, branch, "client backend")),
        ("checkpointer", |server, branch| process_of_type(server, branch, "checkpointer")),
    ];
    let server = Server::start();
    tpcb::initialize(&server, "main", 1);
    commits::initialize(&server, "main");
    create(&server, "a", "main");
    let parent = postmaster(&server, "main");
    let mut acknowledged = Acknowledged::new();
    for (kind, victim) in victims {
        let load = tpcb::Load::start(&server, "a", 2, 600);
        let clients = Clients::start(&server, &["main", "a"], 2);
        clients.wait_for("a", 100);
        let before = processes::of_branch(&server, "a");
        victim(&server, "a").kill();
        let shown = wait_for(&server, "a", ComputeState::Failed);
        assert!(shown.failure.is_some_and(|why| !why.is_empty()), "killed {kind}");
        // Its parent works on as if nothing had happened.
        clients.wait_for("main", 20);
        assert!(parent.is_alive(), "killed {kind}");
        add(&mut acknowledged, clients.finish());
        drop(load);
        let left: Vec<_> = before.iter().filter(|process| process.is_alive()).collect();
        assert!(left.is_empty(), "killed {kind}, and these live on: {left:?}");
        for (branch, numbers) in &acknowledged {
            commits::verify(&server, branch, numbers);
            tpcb::verify(&server, branch);
        }
        assert_eq!(wait_for(&server, "a", ComputeState::Running).failure, None);
        println!("killed {kind}: {} commits of the branch are there", acknowledged["a"].len());
    }
}
