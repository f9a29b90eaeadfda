//! What a branch's Postgres logs is kept by the server, told to who may read it, and bounded.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{ComputeState, CreateBranch, UpdateBranch, UpdateSettings};
use coppice::{Server, eventually, program};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

/// The most lines that can be had.
const ALL: &str = "10000";

fn branch(server: &Server, name: &str) {
    let new = CreateBranch { name: name.into(), ..CreateBranch::default() };
    server.client().create(&new).unwrap();
}

fn branchctl(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(program("branchctl"));
    command.args(args).env("COPPICE_API", &server.api).env("COPPICE_TOKEN", server.token());
    command
}

/// What it printed; it must succeed.
#[track_caller]
fn prints(server: &Server, args: &[&str]) -> String {
    let output = branchctl(server, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn logs(server: &Server, name: &str) -> String {
    prints(server, &["logs", name, "-n", ALL])
}

/// The files of a timeline's log.
fn files(server: &Server, timeline: &str) -> Vec<String> {
    let entries = fs::read_dir(server.data().join("logs")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = names.filter(|name| name.starts_with(timeline)).collect();
    files.sort();
    files
}

fn timeline(server: &Server, name: &str) -> String {
    server.client().get(name).unwrap().timeline
}

/// A `branchctl logs -f` and the lines that it has printed.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(server: &Server, args: &[&str]) -> Self {
        let mut child = branchctl(server, args).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).for_each(|line| sender.send(line).unwrap_or(()))
        });
        Self { child, lines }
    }

    /// Waits for a line that has these words; those before it.
    #[track_caller]
    fn wait_for(&self, words: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(30));
            let line = line.unwrap_or_else(|_| panic!("no {words:?} after {before:#?}"));
            if line.contains(words) {
                return before;
            }
            before.push(line);
        }
    }

    /// Waits for its end; the exit code.
    #[track_caller]
    fn ends_within(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_log_of_a_branch_is_its_own_and_stays_while_it_sleeps() {
    let mut server = Server::start();
    branch(&server, "b");
    branch(&server, "c");
    assert_eq!(prints(&server, &["logs", "b"]), "", "it never ran");
    server.sql("c", "select 1").unwrap();
    let error = server.sql("b", "select 1/0 as mark_of_b").unwrap_err();
    assert!(error.contains("division by zero"), "{error}");
    let has_both = |log: &str| {
        log.contains("] ERROR:  division by zero\n")
            && log.contains("] STATEMENT:  select 1/0 as mark_of_b\n")
    };
    eventually("the error is in the log", || has_both(&logs(&server, "b")));
    assert!(logs(&server, "c").contains("ready to accept connections"));
    assert!(!logs(&server, "c").contains("division by zero"));
    assert!(!server.log().contains("mark_of_b"), "it is in the server's log");

    server.client().suspend("b").unwrap();
    assert!(has_both(&logs(&server, "b")), "it slept");
    assert!(server.stop().success());
    server.restart();
    let log = logs(&server, "b");
    assert!(has_both(&log), "the server was started anew");
    assert!(log.trim_end().ends_with("database system is shut down"), "{log}");
    assert_eq!(server.client().get("b").unwrap().state, ComputeState::Suspended, "it was woken");
    let last = prints(&server, &["logs", "b", "-n", "1"]);
    assert_eq!(
        last.lines().collect::<Vec<_>>(),
        log.lines().last().into_iter().collect::<Vec<_>>()
    );
    let json: Value = serde_json::from_str(&prints(&server, &["logs", "b", "-o", "json"])).unwrap();
    let lines: Vec<&str> =
        json["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert_eq!(lines, log.lines().collect::<Vec<_>>());

    // Nobody else may look, and what is gone leaves nothing.
    let directory = server.data().join("logs");
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    let old = timeline(&server, "b");
    let path = directory.join(format!("{old}.log"));
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    server.client().reset("b", &Default::default()).unwrap();
    assert_eq!(logs(&server, "b"), "", "it has a new history");
    eventually("the old log is removed", || files(&server, &old).is_empty());
    server.sql("b", "select 1").unwrap();
    let new = timeline(&server, "b");
    eventually("a new log is there", || !files(&server, &new).is_empty());
    server.client().delete("b").unwrap();
    eventually("the log is removed", || files(&server, &new).is_empty());
    for (args, exit) in [(&["logs", "b"][..], 3), (&["logs", "c", "-n", "10001"], 2)] {
        let output = branchctl(&server, args).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(exit), &b""[..]));
    }
}

#[test]
fn a_log_without_end_takes_a_mebibyte_and_has_the_newest_line() {
    let server = Server::start();
    branch(&server, "b");
    let sql = "do $$ begin for i in 1..40000 loop raise log 'line %', i; end loop; end $$";
    server.sql("b", sql).unwrap();
    eventually("the newest line is there", || logs(&server, "b").contains("LOG:  line 40000\n"));
    let of = timeline(&server, "b");
    let names = files(&server, &of);
    assert_eq!(names, [format!("{of}.log"), format!("{of}.log.1")]);
    let size = |name: &String| fs::metadata(server.data().join("logs").join(name)).unwrap().len();
    let bytes: u64 = names.iter().map(size).sum();
    assert!((512 << 10..=1 << 20).contains(&bytes), "{bytes}");
    let lines = logs(&server, "b").lines().count();
    assert!((3000..=10_000).contains(&lines), "{lines}");
    assert_eq!(prints(&server, &["logs", "b"]).lines().count(), 200);
    // A line longer than what is kept of one.
    server.sql("b", "do $$ begin raise log '%', repeat('x', 100000); end $$").unwrap();
    eventually("the line is cut", || logs(&server, "b").contains("more bytes were cut off)\n"));
    assert!(logs(&server, "b").lines().all(|line| line.len() < 66_000));
}

#[test]
fn a_log_is_followed_through_a_reset_until_the_branch_is_gone() {
    let mut server = Server::start();
    branch(&server, "b");
    server.sql("b", "select 1/0 as before").unwrap_err();
    eventually("the error is in the log", || logs(&server, "b").contains("as before"));
    let mut one = Following::start(&server, &["logs", "b", "--follow", "-n", "1"]);
    assert_eq!(one.wait_for("as before"), Vec::<String>::new());
    let mut main = Following::start(&server, &["logs", "main", "-f", "-n", "0", "-o", "json"]);
    server.sql("b", "select 1/0 as later").unwrap_err();
    assert!(one.wait_for("as later").iter().any(|line| line.ends_with("division by zero")));
    server.client().reset("b", &Default::default()).unwrap();
    server.sql("b", "select 1/0 as after_the_reset").unwrap_err();
    one.wait_for("as after_the_reset");
    let rename = UpdateBranch { name: Some("d".into()), ..Default::default() };
    server.client().update("b", &rename).unwrap();
    server.sql("d", "select 1/0 as renamed").unwrap_err();
    one.wait_for("as renamed");
    server.client().delete("d").unwrap();
    assert_eq!(one.ends_within(Duration::from_secs(10)), Some(0));

    server.sql("main", "select 1/0 as \"on main\"").unwrap_err();
    let before = main.wait_for(r#"select 1/0 as \"on main\"""#);
    assert!(before.iter().all(|line| line.starts_with('"') && !line.contains("later")));
    let began = Instant::now();
    assert!(server.stop().success());
    assert!(began.elapsed() < Duration::from_secs(8), "the server waited for who follows");
    assert_eq!(main.ends_within(Duration::from_secs(5)), Some(0));
    assert!(!server.log().contains("were cut off"), "{}", server.log());
}

#[test]
fn those_who_follow_are_bounded_and_leave_room() {
    let server = Server::start();
    branch(&server, "group/one");
    let head = format!("host: x\r\nauthorization: Bearer {}\r\n\r\n", server.token());
    let address = server.api.strip_prefix("http://").unwrap();
    let ask = || {
        // A plain slash in a name works here too.
        let path = "/v1/branches/group/one/logs?follow=true";
        let request = format!("GET {path} HTTP/1.1\r\n{head}");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8(status.to_vec()).unwrap())
    };
    let mut following = Vec::new();
    for nth in 0..128 {
        let (stream, status) = ask();
        assert_eq!(status, "HTTP/1.1 200", "{nth}");
        following.push(stream);
    }
    assert_eq!(ask().1, "HTTP/1.1 503");
    assert!(server.client().status().is_ok());
    drop(following);
    eventually("there is room again", || ask().1 == "HTTP/1.1 200");
}

#[test]
fn a_branch_that_cannot_start_says_why_to_its_owner_only() {
    let server = Server::start();
    let client = server.client();
    branch(&server, "x");
    let nosuch = UpdateSettings {
        set: [("shared_preload_libraries".to_owned(), "nosuch".to_owned())].into(),
        unset: Vec::new(),
    };
    client.set("x", &nosuch).unwrap();
    let refused = server.sql("x", "select 1").unwrap_err();
    assert!(refused.contains("FATAL:  branch \"x\" cannot start\n"), "{refused}");
    assert!(!refused.contains("nosuch"), "{refused}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(tokio_postgres::connect(&server.url("x"), NoTls)).err().unwrap();
    let told = error.as_db_error().unwrap();
    assert_eq!(told.code(), &SqlState::CANNOT_CONNECT_NOW);
    assert_eq!(told.hint(), Some("`branchctl show x` or `branchctl logs x` tells why"));
    assert!(!format!("{told:?}").contains("nosuch"), "{told:?}");
    let reason = "FATAL:  could not access file \"nosuch\": No such file or directory\n";
    let shown = prints(&server, &["show", "x"]);
    assert!(shown.contains("state:     failed\n") && shown.contains(reason), "{shown}");
    assert!(shown.ends_with("`branchctl logs x` has more\n"), "{shown}");
    assert!(logs(&server, "x").contains(reason));
    assert!(server.log().contains("could not access file"), "{}", server.log());
    let error = client.wake("x").unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (503, "compute_failed"));
    assert!(error.detail.contains("could not access file"), "{error:?}");
}
