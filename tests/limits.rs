//! One branch cannot take the machine: what it may have of memory, processes and processors is
//! bounded, and the others go on.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::CreateBranch;
use coppice::{Directory, Server, eventually};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the others do to the machine, each on a branch of its own.
const HARM: [(&str, &str); 3] = [
    // Processes that make processes, until there may be no more.
    (
        "bomb",
        "copy harm from program 'f() { sleep 1000 & while f 2>/dev/null; do :; done; }; \
         for n in 1 2 3 4; do f & done; wait'",
    ),
    // Memory without end.
    ("memory", "copy harm from program 'perl -e ''while (1) { push @a, \"x\" x 1000000 }'''"),
    // Processors without end.
    ("spin", "do $$ begin loop perform 1; end loop; end $$"),
];

fn server() -> Server {
    let args = ["--branch-memory", "300MiB", "--branch-tasks", "200"];
    let server = Server::start_with(Arc::new(Directory::new()), &args);
    for name in HARM.iter().map(|(name, _)| *name).chain(["quiet"]) {
        let new = CreateBranch { name: name.into(), ..CreateBranch::default() };
        server.client().create(&new).unwrap();
        server.sql(name, "create table harm (line text)").unwrap();
    }
    server
}

fn psql(server: &Server, branch: &str, sql: &str) -> Child {
    let mut command = Command::new(coppice::postgres_program("psql"));
    command.args(["-XAtqc", sql, &server.url(branch)]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Processes of a branch's user.
fn processes_of(uid: u32) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let of_user = |entry: &std::fs::DirEntry| {
        use std::os::unix::fs::MetadataExt;
        entry.metadata().is_ok_and(|about| about.uid() == uid)
            && entry.file_name().to_string_lossy().parse::<u32>().is_ok()
    };
    entries.filter(of_user).count()
}

fn uid_of(server: &Server, branch: &str) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let socket = server.client().get(branch).unwrap().socket.unwrap();
    let directory = std::path::Path::new(&socket).parent().unwrap().to_owned();
    std::fs::metadata(directory).unwrap().uid()
}

/// Statements that a branch does in a while.
fn rate(server: &Server, branch: &str) -> f64 {
    let sql = "insert into harm select n from generate_series(1, 100) as n";
    let (began, mut count) = (Instant::now(), 0);
    let side = coppice::sides::Side::branch(branch, server, branch).connect();
    while began.elapsed() < Duration::from_secs(3) {
        side.sql(sql);
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// How long the server takes to say that it is well.
fn healthz(server: &Server) -> Duration {
    let address = server.api.trim_start_matches("http://");
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    began.elapsed()
}

#[test]
fn branches_that_take_all_they_can_get_leave_the_others_their_share() {
    let server = server();
    if server.log().contains("one branch can take all memory") {
        return eprintln!("NOT TESTED: there are no control groups here");
    }
    let alone = rate(&server, "quiet");
    let bomb = uid_of(&server, "bomb");
    let mut children: Vec<Child> =
        HARM.iter().map(|(branch, sql)| psql(&server, branch, sql)).collect();
    eventually("the bomb has gone off", || processes_of(bomb) > 150);
    assert!(processes_of(bomb) <= 200, "{} processes", processes_of(bomb));
    let mut healthy: Vec<Duration> = (0..21).map(|_| healthz(&server)).collect();
    healthy.sort();
    let beside = rate(&server, "quiet");
    println!("alone {alone:.0}/s, beside {beside:.0}/s, healthz {:?}", healthy[10]);
    // The machine may have other work too, which takes from both.
    assert!(beside > alone / 6.0, "{beside} of {alone} a second");
    assert!(healthy[10] < Duration::from_millis(500), "{healthy:?}");
    // The one that wanted memory was ended in its own group, and nothing else.
    eventually("memory ran out", || children[1].try_wait().unwrap().is_some());
    for child in &mut children {
        let _ended = child.kill();
        let _status = child.wait();
    }
    for (branch, _) in HARM {
        server.client().suspend(branch).unwrap();
        assert_eq!(server.sql(branch, "select count(*) from harm").unwrap(), "0", "{branch}");
    }
    // The system takes its time to bury so many.
    eventually("what the bomb left has ended with its Postgres", || processes_of(bomb) < 20);
    assert!(server.sql("quiet", "select count(*) > 0 from harm").unwrap() == "t");
}

#[test]
fn temporary_files_are_bounded_unless_the_branch_says_otherwise() {
    let server = Server::start();
    let shown = "select setting::bigint > 0, setting::bigint < 2147483647, source from pg_settings \
                 where name = 'temp_file_limit'";
    let by_default = server.sql("main", shown).unwrap();
    assert!(by_default.starts_with("t|"), "{by_default}");
    server.sql("main", "alter system set temp_file_limit = -1").unwrap();
    server.client().suspend("main").unwrap();
    assert_eq!(server.sql("main", "show temp_file_limit").unwrap(), "-1");
}
