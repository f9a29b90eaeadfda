//! Bad input: each gets an error that names the thing and says what to do, and loses nothing.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::client::{Client, Error};
use api::types::{CreateBranch, CreateImport, UpdateBranch};
use coppice::{LIMIT, Server, Source, eventually, postgres_program};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

fn branch(name: &str, parent: Option<&str>) -> CreateBranch {
    CreateBranch {
        name: name.to_owned(),
        parent: parent.map(str::to_owned),
        at: None,
        history: None,
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>, status: u16, code: &str, words: &[&str]) {
    let error = outcome.unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (status, code), "{error}");
    words.iter().for_each(|word| assert!(error.detail.contains(word), "{word} is not in: {error}"));
}

#[test]
fn names_that_cannot_be_branches() {
    let server = Server::shared();
    let client = server.client();
    for name in ["", "-a", "a b", "a@{b", "a..b", "../x", "a\nb", &"x".repeat(245)] {
        refused(client.create(&branch(name, None)), 400, "bad_branch_name", &["that git takes"]);
    }
    let taken = client.create(&branch("main", None));
    refused(taken, 409, "branch_exists", &["main", "another name"]);
    client.create(&branch("to-rename", None)).unwrap();
    let rename = UpdateBranch { name: Some("main".into()), ..UpdateBranch::default() };
    refused(client.update("to-rename", &rename), 409, "branch_exists", &["main"]);
    refused(
        client.create(&branch("y", Some("no-parent"))),
        404,
        "branch_not_found",
        &["no-parent"],
    );
    refused(
        client.create(&branch("y", Some("mein"))),
        404,
        "branch_not_found",
        &["did you mean \"main\""],
    );
    refused(client.delete("main"), 409, "default_branch", &["main", "stays"]);
    refused(client.reset("main", &Default::default()), 409, "no_parent", &["main"]);
    client.delete("to-rename").unwrap();
    assert_eq!(server.sql("main", "select 1").unwrap(), "1");
}

#[test]
fn clients_that_may_not_or_do_not_find() {
    let server = Server::shared();
    let token = Client::new(&server.api, Some("x".repeat(32))).unwrap();
    refused(token.list(), 401, "unauthorized", &[]);
    let psql = |url: &str| {
        let output = Command::new(postgres_program("psql"))
            .args(["-XAtqc", "select 1"])
            .arg(url)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let url = server.url("main");
    let (exit, error) = psql(&url.replacen("main", "mian", 1));
    assert_eq!(exit, Some(2));
    assert!(error.contains("none has the label \"mian\"") && !error.contains("main"), "{error}");
    let (before, rest) = url.split_once("postgres.main:").unwrap();
    let (_, after) = rest.split_once('@').unwrap();
    let (exit, error) = psql(&format!("{before}postgres.main:wrong@{after}"));
    assert_eq!(exit, Some(2));
    assert!(error.contains("password authentication failed for user \"postgres\""), "{error}");
    assert_eq!(psql(&url), (Some(0), String::new()));
}

/// What the proxy answers to `bytes`, until it hangs up.
fn greet(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.proxy).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // The proxy may hang up while there is more to send.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("no answer: {error}")
        }
        _ => answer,
    }
}

fn startup(length: u32, rest: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes()[..], rest].concat()
}

#[test]
fn startup_packets_that_are_none() {
    let server = Server::shared();
    let whole = startup(33, b"user\0postgres\0database\0\0\0");
    for cut in [0, 3, 4, 8, 20] {
        let answer = greet(&server, &whole[..cut]);
        assert!(answer.is_empty() || answer[0] == b'E', "cut at {cut}: {answer:?}");
    }
    let oversized =
        String::from_utf8_lossy(&greet(&server, &startup(1 << 30, &[b'x'; 100_000]))).into_owned();
    assert!(oversized.starts_with('E') && oversized.contains("FATAL"), "{oversized}");
    let mut random = pageserver::storage::disk::random::Random(0x5eed);
    for _ in 0..200 {
        let length = usize::try_from(random.below(300)).unwrap();
        let bytes: Vec<u8> =
            (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        let answer = greet(&server, &bytes);
        // 0x15 is a TLS alert, for bytes that begin like a TLS handshake.
        assert!(answer.is_empty() || b"ENS\x15".contains(&answer[0]), "{bytes:?}: {answer:?}");
        let waited = String::from_utf8_lossy(&answer).contains("no complete startup packet");
        assert!(!waited, "{bytes:?}: the proxy waited for more from a client that had shut down");
    }
    assert_eq!(server.sql("main", "select 1").unwrap(), "1", "the proxy goes on");
}

/// A remote peer that says it is Postgres of another major version, and answers each query with one
/// column.
fn other_version() -> (u16, Arc<std::sync::atomic::AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A peer that goes away ends only its own conversation.
            let _ = pretend(stream, &seen);
        }
    });
    (port, asked)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[kind], &length[..], body].concat()
}

fn pretend(mut stream: TcpStream, asked: &std::sync::atomic::AtomicBool) -> std::io::Result<()> {
    let read = |stream: &mut TcpStream, with_kind: bool| -> std::io::Result<Vec<u8>> {
        let mut head = vec![0; if with_kind { 5 } else { 4 }];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        stream.read_exact(&mut body)?;
        Ok(body)
    };
    while read(&mut stream, false)?[..4] != 196_608_u32.to_be_bytes() {
        stream.write_all(b"N")?;
    }
    let answer =
        br#"{"version_num": 90624, "version": "9.6.24", "role": "postgres", "may_copy": true,
        "database": "postgres", "tablespaces": {}, "settings": {"kept": {}, "memory": {},
        "sees_all": true, "reads_files": false}}"#;
    let mut row = vec![0, 1];
    row.extend(u32::try_from(answer.len()).unwrap().to_be_bytes());
    row.extend(answer);
    let described = [
        &[0, 1][..],
        b"j\0",
        &[0; 6],
        &25_u32.to_be_bytes(),
        &[255, 255, 255, 255, 255, 255, 0, 0],
    ];
    let greeting =
        [message(b'R', &[0; 4]), message(b'S', b"server_version\x009.6.24\0"), message(b'Z', b"I")];
    stream.write_all(&greeting.concat())?;
    read(&mut stream, true)?;
    asked.store(true, std::sync::atomic::Ordering::SeqCst);
    let rows = [
        message(b'T', &described.concat()),
        message(b'D', &row),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ];
    stream.write_all(&rows.concat())?;
    read(&mut stream, true).map(drop)
}

#[test]
fn sources_that_cannot_be_imported() {
    let server = Server::shared();
    let client = server.client();
    let import = |source: &str| {
        client.start_import(&CreateImport {
            name: "imported".into(),
            source: source.to_owned(),
            mode: Default::default(),
        })
    };
    refused(import("mysql://h/d"), 400, "invalid_source", &["postgresql://"]);
    let unreachable =
        import(&format!("postgresql://postgres:s3cret@127.0.0.1:{}/d", coppice::free_port()));
    refused(unreachable, 503, "import_unreachable", &["Connection refused"]);
    let (port, asked) = other_version();
    let other = import(&format!("postgresql://postgres@127.0.0.1:{port}/d?sslmode=disable"));
    refused(other, 400, "import_version", &["9.6.24", "same major version", "--postgres-bin"]);
    assert!(asked.load(std::sync::atomic::Ordering::SeqCst));
    let source = Source::start();
    let wrong = import(&source.url().replace("s3cret", "wr0ng"));
    refused(wrong, 503, "import_unreachable", &["password authentication failed"]);
    source.sql("create role reader login password 'reader'").unwrap();
    let (_, place) =
        source.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    refused(
        import(&format!("postgresql://reader:reader@{place}")),
        400,
        "import_role",
        &["reader", "REPLICATION"],
    );
    let taken =
        CreateImport { name: "main".into(), source: source.url(), mode: Default::default() };
    refused(client.start_import(&taken), 409, "branch_exists", &["main"]);
    refused(client.get("imported"), 404, "branch_not_found", &[]);
    eventually("no import is left", || client.status().unwrap().connections == 0);
    assert!(!server.log().contains("s3cret"));
}
