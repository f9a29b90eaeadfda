//! The adapter against a small HTTP server on a real socket that answers as the API does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Instant;

use super::*;

/// Short, so that the test is.
const INTERVAL: Duration = Duration::from_millis(300);
const MAIN: &str = r#"{"name":"main","host":"main","timeline":"1",
    "created_at":"2025-01-01T00:00:00Z",
    "forked_at":"2025-01-01T00:00:00Z","default":true,"protected":false,"state":"running",
    "socket":"/run/main/.s.PGSQL.5432","connections":0,"own_bytes":0}"#;
const ASLEEP: &str = r#"{"name":"team/A","host":"team-a","timeline":"2",
    "created_at":"2025-01-01T00:00:00Z",
    "forked_at":"2025-01-01T00:00:00Z","default":false,"protected":false,"state":"suspended",
    "connections":0,"own_bytes":0}"#;

/// Answers `requests` requests in a thread; returns the address and what will be the request lines.
fn serve(requests: usize) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || (0..requests).map(|_| answer(&listener)).collect());
    (url, thread)
}

/// Answers one request and returns its first line.
fn answer(listener: &TcpListener) -> String {
    let (mut socket, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).unwrap();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.to_ascii_lowercase();
        match header.split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    let (status, body) = match line.split(' ').nth(1).unwrap() {
        "/v1/branches" => (200, format!(r#"{{"branches":[{MAIN},{ASLEEP}]}}"#)),
        "/v1/branches/main" => (200, MAIN.to_owned()),
        // What is the label of a branch is the name of another one.
        "/v1/branches/team-a" => {
            (200, ASLEEP.replace(r#""team-a""#, r#""t""#).replace("team/A", "team-a"))
        }
        "/v1/branches/main/wake" => (200, MAIN.to_owned()),
        "/v1/branches/team%2FA/wake" => (200, ASLEEP.to_owned()),
        "/v1/branches/sick/wake" => (503, problem("start_failed", "branch sick: no space left")),
        "/v1/branches/broken/wake" => {
            (503, problem("compute_failed", "FATAL: a line of Postgres's log"))
        }
        _ => (404, problem(BRANCH_NOT_FOUND, "branch gone does not exist; near: main")),
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).unwrap();
    line.trim().to_owned()
}

fn problem(code: &str, detail: &str) -> String {
    format!(
        r#"{{"type":"about:blank","title":"x","status":404,"code":"{code}","detail":"{detail}"}}"#
    )
}

fn remote(url: &str) -> Remote {
    Remote::new(Client::new(url, None).unwrap(), INTERVAL)
}

fn target(branch: &str) -> Target {
    Target { branch: branch.to_owned(), at: None }
}

#[tokio::test]
async fn finds_and_wakes_a_branch() {
    let (url, requests) = serve(6);
    let remote = remote(&url);
    let label = |text: &str| Selector::Label(text.to_owned());
    let name = |text: &str| Selector::Name(text.to_owned());
    let selectors = vec![label("main"), name("main"), label("gone"), label("team-a")];
    let found = remote.find(selectors).await.unwrap();
    let main = Some("main".to_owned());
    assert_eq!(found, [main.clone(), main, None, Some("team/A".to_owned())]);
    let upstream = remote.acquire(&target("main")).await.unwrap();
    assert_eq!(upstream.branch, "main");
    assert_eq!(upstream.socket, Path::new("/run/main/.s.PGSQL.5432"));
    let expected = [
        "GET /v1/branches/main",
        "GET /v1/branches/main",
        "GET /v1/branches/gone",
        "GET /v1/branches/team-a",
        "GET /v1/branches",
        "POST /v1/branches/main/wake",
    ];
    assert_eq!(requests.join().unwrap(), expected.map(|line| format!("{line} HTTP/1.1")));
}

#[tokio::test]
async fn says_why_a_branch_is_not_there() {
    let (url, requests) = serve(4);
    let remote = remote(&url);
    let table = [
        ("gone", NO_SUCH_BRANCH, "the branch does not exist"),
        ("broken", CANNOT_CONNECT_NOW, "the branch cannot start"),
        ("sick", CANNOT_CONNECT_NOW, "branch sick: no space left"),
        ("team/A", CANNOT_CONNECT_NOW, "branch \"team/A\" was woken but has no socket"),
    ];
    for (name, sqlstate, message) in table {
        let refusal = remote.acquire(&target(name)).await.err().unwrap();
        assert_eq!((refusal.sqlstate, refusal.message.as_str()), (sqlstate, message));
    }
    requests.join().unwrap();
    let past = Target { at: Some("10m".into()), ..target("main") };
    let refusal = remote.acquire(&past).await.err().unwrap();
    assert_eq!(refusal.sqlstate, FEATURE_NOT_SUPPORTED);
    let refusal = remote.acquire(&target("main")).await.err().unwrap();
    assert_eq!(refusal, no_answer(), "the server is gone");
    let refusal = remote.find(vec![Selector::Name("main".into())]).await.err().unwrap();
    assert_eq!(refusal, no_answer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_a_branch_awake_while_a_session_lives() {
    let (url, requests) = serve(3);
    let remote = remote(&url);
    let name = target("main");
    let before = Instant::now();
    let first = remote.acquire(&name).await.unwrap();
    let second = remote.acquire(&name).await.unwrap();
    assert_eq!(remote.beats.lock().unwrap().len(), 1, "one beat for both");
    drop(first);
    let lines = tokio::task::spawn_blocking(|| requests.join().unwrap()).await.unwrap();
    assert_eq!(lines.last().unwrap(), "POST /v1/branches/main/wake HTTP/1.1");
    assert!(before.elapsed() >= INTERVAL / 2, "the third came from the beat");
    drop(second);
    assert_eq!(remote.beats.lock().unwrap()["main"].strong_count(), 0);
}
