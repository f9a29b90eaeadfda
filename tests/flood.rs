//! Clients that are slow, silent, too many or too big: the server hangs up on each after its limit,
//! and serves the others.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{LIMIT, Server, eventually, postgres_program};
use nix::sys::socket::{setsockopt, sockopt};
use proxy::Limits;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the API allows, as docs/api.md says.
const API_CONNECTIONS: usize = 512;
const API_HEAD: Duration = Duration::from_secs(30);
const API_BODY: Duration = Duration::from_secs(10);
const API_UNREAD: Duration = Duration::from_secs(30);
/// Answers that nobody reads are at most in buffers of the kernel, which hold less than this.
const BUFFERED_BYTES: usize = 64 << 20;
/// The server gives up an unread answer so much after its limit, also on a busy machine.
const UNREAD_SLACK: Duration = Duration::from_secs(15);

fn api_address(server: &Server) -> SocketAddr {
    server.api.trim_start_matches("http://").parse().unwrap()
}

/// Sends `bytes` and then one byte a second of `drip`, until the other side hangs up: when, and
/// what it said.
fn drip(address: SocketAddr, bytes: &[u8], drip: &[u8]) -> (Duration, Vec<u8>) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(bytes).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (mut rest, mut said, mut buffer) = (drip.iter(), Vec::new(), [0; 4096]);
    while began.elapsed() < 2 * LIMIT {
        match stream.read(&mut buffer) {
            Ok(0) => return (began.elapsed(), said),
            Ok(length) => said.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if let Some(byte) = rest.next() {
                    // The other side may hang up at any moment.
                    let _ = stream.write_all(&[*byte]);
                }
            }
            Err(_) => return (began.elapsed(), said),
        }
    }
    panic!("nobody hung up; it said {:?}", String::from_utf8_lossy(&said));
}

/// Runs all at the same time. The server hangs up on each not much sooner than `limit` and not much
/// later than it has to, and tells each `words`, if any.
fn all_hung_up(address: SocketAddr, limit: Duration, clients: &[(&str, &[u8], &[u8], &str)]) {
    std::thread::scope(|scope| {
        for (what, first, slow, words) in clients {
            scope.spawn(move || {
                let (after, said) = drip(address, first, slow);
                let said = String::from_utf8_lossy(&said);
                let in_time = (limit.mul_f64(0.8)..limit + LIMIT).contains(&after);
                assert!(in_time && said.contains(words), "{what}: after {after:?}, told {said:?}");
            });
        }
    });
}

#[test]
fn slow_clients_of_the_proxy_are_hung_up_on() {
    let server = Server::shared();
    let startup = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let ssl = 80_877_103_u32.to_be_bytes();
    let ssl = [&8_u32.to_be_bytes()[..], &ssl[..]].concat();
    let hello = [&ssl[..], b"\x16\x03\x01\x02\x00\x01"].concat();
    let late = "no complete startup packet within 30s";
    all_hung_up(
        server.proxy,
        Limits::default().startup,
        &[
            ("silent", b"", b"", late),
            ("a byte a second", b"", &[&startup[..20], &[b'x'; 100]].concat(), late),
            ("half a packet", &startup[..20], b"", late),
            ("half a length", b"\0\0", b"", late),
            ("TLS asked for and left", &ssl, b"", "S"),
            ("half a TLS greeting", &hello, &[1; 100], "S"),
        ],
    );
    assert_eq!(server.sql("main", "select 1").unwrap(), "1");
}

#[test]
fn slow_clients_of_the_api_are_hung_up_on() {
    let server = Server::shared();
    let address = api_address(&server);
    let head = b"GET /healthz HTTP/1.1\r\nhost: x\r\n";
    let whole = [&head[..], b"\r\n"].concat();
    let authorized = format!(
        "POST /v1/branches HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: \
         application/json\r\n",
        server.token()
    );
    let counted = format!("{authorized}content-length: 60000\r\n\r\n{{");
    let chunked = format!("{authorized}transfer-encoding: chunked\r\n\r\n");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let slow: &[u8] = &[b'x'; 100];
            all_hung_up(
                address,
                API_HEAD,
                &[
                    ("silent", b"", b"", ""),
                    ("a byte a second", b"", slow, ""),
                    ("half a head", head, b"", ""),
                    ("a head without end", head, slow, ""),
                    ("idle after an answer", &whole, b"", "200 OK"),
                ],
            );
        });
        // The connection goes on after the answer, as the rest of the body may come still.
        for (what, first) in [("counted", &counted), ("chunked", &chunked)] {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let began = Instant::now();
                stream.write_all(first.as_bytes()).unwrap();
                stream.set_read_timeout(Some(API_BODY + LIMIT)).unwrap();
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"HTTP/1.1 408", "{what}");
                assert!(began.elapsed() > API_BODY / 2, "{what}: {:?}", began.elapsed());
            });
        }
    });
    assert_eq!(server.client().list().unwrap().len(), 1);
}

#[test]
fn heads_and_bodies_without_end_are_cut_off() {
    let server = Server::shared();
    let address = api_address(&server);
    let before = resident_bytes(server.pid());
    let piece = [b'x'; 64 << 10];
    let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece[..], b"\r\n"].concat();
    let start = |line: &str, token: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: \
             application/json\r\n"
        )
    };
    let body = format!(
        "{}transfer-encoding: chunked\r\n\r\n",
        start("POST /v1/branches", &server.token())
    );
    let stranger = format!("{}transfer-encoding: chunked\r\n\r\n", start("POST /v1/branches", "x"));
    let head = format!("{}x-long: ", start("GET /healthz", ""));
    for (what, first, piece, status, most) in [
        ("body", &body, &chunk[..], "413", 80 << 20),
        ("body of a stranger", &stranger, &chunk[..], "401", 16 << 20),
        ("head", &head, &piece[..], "431", 16 << 20),
        ("path", &"GET /".to_owned(), &piece[..], "431", 16 << 20),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        let mut sent = 0;
        while sent < 200 << 20 && stream.write_all(piece).is_ok() {
            sent += piece.len();
        }
        assert!(sent <= most, "{what}: {sent} bytes were taken");
        let mut answer = Vec::new();
        // A reset may come after the answer, or instead of it.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let told = answer.is_empty() || answer.contains(&format!("HTTP/1.1 {status}"));
        assert!(told, "{what}: {answer}");
    }
    let grown = resident_bytes(server.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "the server grew by {grown} bytes");
}

/// Opens so many connections that send nothing.
fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    proxy::server::raise_file_limit().unwrap();
    (0..count).map(|_| TcpStream::connect(address).unwrap()).collect()
}

#[test]
fn silent_connections_keep_nobody_out_of_the_proxy_for_long() {
    let server = Server::start();
    let Limits { greetings, startup, .. } = Limits::default();
    let mut session = psql(&server, "prefer", "select pg_sleep(5); select 'still here'");
    eventually("the session is there", || server.client().status().unwrap().connections == 1);
    let before = resident_bytes(server.pid());
    let began = Instant::now();
    let held = silent(server.proxy, greetings);
    let mut refused = String::new();
    TcpStream::connect(server.proxy).unwrap().read_to_string(&mut refused).unwrap();
    assert!(
        refused.contains("53300") && refused.contains("too many connections are starting"),
        "{refused}"
    );
    let grown = resident_bytes(server.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "{greetings} silent connections took {grown} bytes");
    tls_clients_are_told(&server, 100);
    let mut out = String::new();
    session.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(
        session.wait().unwrap().success() && out.contains("still here"),
        "a session goes on: {out}"
    );
    let kept_out = server.sql("main", "select 1").is_err();
    assert!(kept_out || began.elapsed() > startup, "silent connections kept nobody out");
    while server.sql("main", "select 1").is_err() {
        assert!(began.elapsed() < startup + LIMIT, "kept out for {:?}", began.elapsed());
        sleep(Duration::from_millis(200));
    }
    drop(held);
}

#[test]
fn idle_connections_keep_nobody_out_of_the_api_for_long() {
    let server = Server::start();
    let client = server.client();
    let began = Instant::now();
    let mut held = silent(api_address(&server), API_CONNECTIONS);
    for stream in held.iter_mut().step_by(2) {
        // Answered, and then kept open.
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    }
    while client.list().is_err() {
        assert!(began.elapsed() < API_HEAD + LIMIT, "kept out for {:?}", began.elapsed());
    }
    assert!(began.elapsed() > API_HEAD / 2, "the limit was not reached: {:?}", began.elapsed());
    assert_eq!(server.sql("main", "select 1").unwrap(), "1", "the proxy is another matter");
    drop(held);
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let server = Server::shared();
    let mut stream = TcpStream::connect(api_address(&server)).unwrap();
    setsockopt(&stream, sockopt::RcvBuf, &8192).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    // Asked for until the server waits for answers to be read before it reads on.
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let mut asked = 0;
    while stream.write_all(&request).is_ok() {
        asked += 1;
        assert!(asked < 1000, "the server reads on");
    }
    sleep(API_UNREAD + UNREAD_SLACK);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break true,
            Ok(count) => received += count,
            Err(error) => break error.kind() == ErrorKind::ConnectionReset,
        }
        if received > BUFFERED_BYTES {
            break false;
        }
    };
    assert!(ended, "the connection is still open, and {received} bytes came");
}

/// A `psql` whose output nobody has read yet.
fn psql(server: &Server, sslmode: &str, sql: &str) -> Child {
    let mut command = Command::new(postgres_program("psql"));
    command.args(["-XAtq", "-c", sql]).arg(server.url("main")).env("PGSSLMODE", sslmode);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Clients with TLS, so many at once, get the error of the server and not one of TLS.
fn tls_clients_are_told(server: &Server, count: usize) {
    let clients: Vec<Child> = (0..count).map(|_| psql(server, "require", "select 1")).collect();
    for client in clients {
        let output = client.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("FATAL:  too many connections are starting"), "{error}");
    }
}

/// Bytes of memory that a process has.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Bytes that the proxy has sent to clients.
fn sent_bytes(server: &Server) -> u64 {
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\n\r\n",
        server.token()
    );
    let mut stream = TcpStream::connect(api_address(server)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line =
        answer.lines().find(|line| line.starts_with("coppice_proxy_sent_bytes_total ")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn results_that_nobody_reads_stay_in_postgres() {
    let server = Server::start();
    let endless = "copy (select repeat('x', 1000000) from generate_series(1, 100000)) to stdout";
    let stall = |count: usize| -> Vec<Child> {
        let clients =
            (0..count).map(|nth| psql(&server, ["disable", "require"][nth % 2], endless)).collect();
        let mut sent = 0;
        eventually("all wait for their reader", || {
            sleep(Duration::from_millis(500));
            let connections = server.client().status().unwrap().connections;
            let before = std::mem::replace(&mut sent, sent_bytes(&server));
            connections >= count as u64 && sent > 0 && before == sent
        });
        clients
    };
    let mut clients = stall(2);
    let before = resident_bytes(server.pid());
    clients.extend(stall(12));
    let grown = resident_bytes(server.pid()).saturating_sub(before);
    assert!(grown < 8 << 20, "12 clients that never read took {grown} bytes");
    let began = Instant::now();
    assert_eq!(
        server.sql("main", "select sum(i) from generate_series(1, 1000) i").unwrap(),
        "500500"
    );
    assert!(began.elapsed() < LIMIT, "others waited {:?}", began.elapsed());
    for client in &mut clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    eventually("the sessions end", || server.client().status().unwrap().connections == 0);
}
