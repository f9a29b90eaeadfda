//! The first bytes of a connection: encryption requests, and everything that is wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proxy::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::postgres::{GUEST, PASSWORD};
use crate::world::{World, fatal, read_all, read_message, startup, until};

const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const GSS_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];

/// What a client does TLS with that verifies the proxy.
fn connector(world: &World, alpn: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&world.certificate).unwrap()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config).into()
}

/// Starts TLS without asking first.
async fn direct_tls(world: &World, host: &str, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    connector(world, alpn).connect(name, world.dial().await).await.unwrap()
}

/// Asks for TLS, starts it, and sends a startup packet; what comes back until the proxy closes.
async fn told_within_tls(proxy: SocketAddr, connector: TlsConnector) -> Vec<u8> {
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(SSL_REQUEST).await.unwrap();
    let answer = socket.read_u8().await.unwrap();
    assert_eq!(answer, b'S', "the answer to a request for TLS is {}", answer.escape_ascii());
    let name = ServerName::try_from("main.localhost").unwrap();
    let mut stream = connector.connect(name, socket).await.unwrap();
    stream.write_all(&startup(0, &[("user", GUEST), ("database", "app")])).await.unwrap();
    read_all(&mut stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_the_protocol_name() {
    let world = World::start().await;
    let packet = startup(0, &[("user", GUEST), ("database", "app")]);
    let mut stream = direct_tls(&world, "feature-x.localhost", &[b"postgresql"]).await;
    stream.write_all(&packet).await.unwrap();
    while read_message(&mut stream).await.0 != b'Z' {}
    stream.write_all(b"Q\0\0\0\x16show cluster_name\0").await.unwrap();
    let row = loop {
        if let (b'D', row) = read_message(&mut stream).await {
            break row;
        }
    };
    assert!(row.ends_with(b"feature"), "{}", row.escape_ascii());
    let mut stream = direct_tls(&world, "feature-x.localhost", &[]).await;
    // The refusal does not wait for the packet.
    let (sqlstate, message) = fatal(&read_all(&mut stream).await);
    assert_eq!(sqlstate, "08P01");
    assert!(message.contains("ALPN"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gss_encryption_is_declined_and_tls_offered() {
    let world = World::start().await;
    let mut socket = world.dial().await;
    for (request, answer) in [(GSS_REQUEST, b'N'), (SSL_REQUEST, b'S')] {
        socket.write_all(request).await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), answer);
    }
    let mut socket = world.dial().await;
    socket.write_all(&[GSS_REQUEST, GSS_REQUEST].concat()).await.unwrap();
    let answer = read_all(&mut socket).await;
    assert_eq!(answer[0], b'N');
    assert_eq!(fatal(&answer[1..]).0, "08P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_is_declined_on_the_same_machine() {
    let world = World::start().await;
    let path = world.dir.join(format!(".s.PGSQL.{}", world.address.port()));
    let mut socket = UnixStream::connect(&path).await.unwrap();
    for request in [SSL_REQUEST, GSS_REQUEST] {
        socket.write_all(request).await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'N');
    }
    socket.write_all(SSL_REQUEST).await.unwrap();
    assert_eq!(fatal(&read_all(&mut socket).await).0, "08P01");
    let mut socket = UnixStream::connect(&path).await.unwrap();
    // A TLS handshake without asking.
    socket.write_all(&[0x16, 3, 1, 0]).await.unwrap();
    assert_eq!(fatal(&read_all(&mut socket).await).0, "08P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_version_is_for_postgres_to_judge() {
    let world = World::start().await;
    let params = [("user", GUEST), ("database", "app")];
    let mut socket = world.dial().await;
    socket.write_all(&startup(2, &params)).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&b'Z') {
        kinds.push(read_message(&mut socket).await.0);
    }
    assert!(kinds.contains(&b'K'), "the session starts");
    let mut socket = world.dial().await;
    socket.write_all(&startup(99, &params)).await.unwrap();
    assert_eq!(read_message(&mut socket).await.0, b'v', "Postgres offers what it speaks instead");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_gets_a_postgres_error() {
    let world = World::start().await;
    let oversized = [&10_005_u32.to_be_bytes()[..], &[0; 10_001]].concat();
    let table: [(&str, &[u8], &str); 6] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "08P01"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", "08P01"),
        ("oversized", &oversized, "08P01"),
        ("too short", &[0, 0, 0, 7, 0, 3, 0, 0], "08P01"),
        ("protocol 2", &[0, 0, 0, 8, 0, 2, 0, 0], "0A000"),
        ("no user", &startup(0, &[("database", "app")]), "28000"),
    ];
    for (what, bytes, expected) in table {
        let (sqlstate, message) = fatal(&world.exchange(bytes).await);
        assert_eq!(sqlstate, expected, "{what}: {message}");
    }
    let http = fatal(&world.exchange(table[0].1).await).1;
    assert!(http.contains("This port speaks the Postgres protocol"), "{http}");
    assert_eq!(world.metrics.refused_total.load(Ordering::Relaxed), 7);
    world.connect("app", PASSWORD).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_cut_at_any_byte_gets_an_error() {
    let world = World::start().await;
    let whole = startup(0, &[("user", GUEST), ("database", "app"), ("options", "branch=main")]);
    for end in 1..whole.len() {
        let mut socket = world.dial().await;
        socket.write_all(&whole[..end]).await.unwrap();
        socket.shutdown().await.unwrap();
        let (sqlstate, message) = fatal(&read_all(&mut socket).await);
        assert_eq!(
            (sqlstate.as_str(), message.trim()),
            ("08P01", "incomplete startup packet"),
            "cut at {end}"
        );
    }
    assert_eq!(world.exchange_closed().await, b"", "who says nothing is told nothing");
}

impl World {
    /// Closes without a word.
    async fn exchange_closed(&self) -> Vec<u8> {
        let mut socket = self.dial().await;
        socket.shutdown().await.unwrap();
        read_all(&mut socket).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_told_and_closed() {
    // Long enough for a TLS handshake on a busy machine; so all clients are slow at the same time.
    let limits = Limits { startup: Duration::from_secs(2), ..Limits::default() };
    let world = World::with(limits).await;
    let packet = startup(0, &[("user", GUEST)]);
    let told = async |bytes: &[u8]| {
        let (sqlstate, message) = fatal(&world.exchange(bytes).await);
        assert_eq!(sqlstate, "08P01");
        assert!(message.contains("no complete startup packet within 2s"), "{message}");
    };
    let silent_within_tls = async {
        let mut stream = direct_tls(&world, "main.localhost", &[b"postgresql"]).await;
        fatal(&read_all(&mut stream).await).0
    };
    let (.., no_handshake, half_a_handshake, sqlstate) = tokio::join!(
        told(b""),
        told(b"\0"),
        told(&packet[..12]),
        world.exchange(SSL_REQUEST),
        world.exchange(&[0x16, 3, 1]),
        silent_within_tls,
    );
    assert_eq!(no_handshake, b"S", "a TLS handshake that never comes");
    assert_eq!(half_a_handshake, b"", "half a TLS handshake");
    assert_eq!(sqlstate, "08P01", "silence within TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_bounded() {
    let refusal = Duration::from_millis(500);
    let world = World::with(Limits { greetings: 2, refusal, ..Limits::default() }).await;
    let silent = [world.dial().await, world.dial().await];
    let mut third = world.dial().await;
    assert_eq!(fatal(&read_all(&mut third).await).0, "53300");
    drop(silent);
    until("they are gone", || world.metrics.connections_now.load(Ordering::Relaxed) == 0).await;
    // A session does not count among them.
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(world.connect("app", PASSWORD).await.unwrap());
    }
}

/// Limits under which only a test's own doing ends a wait.
fn patient(greetings: usize, refusals: usize) -> Limits {
    let wait = Duration::from_secs(600);
    Limits { greetings, refusals, startup: wait, refusal: wait, ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_one_too_many_is_told_so_within_tls() {
    const CLIENTS: usize = 50;
    let world = World::with(patient(2, CLIENTS)).await;
    let connector = connector(&world, &[b"postgresql"]);
    let silent = [world.dial().await, world.dial().await];
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(told_within_tls(world.address, connector.clone()));
    }
    for answer in clients.join_all().await {
        let (sqlstate, message) = fatal(&answer);
        assert_eq!(sqlstate, "53300", "{message}");
        assert!(message.contains("too many connections are starting"), "{message}");
    }
    let plain = startup(0, &[("user", GUEST), ("database", "app")]);
    assert_eq!(fatal(&world.exchange(&plain).await).0, "53300", "without TLS");
    let cancel = [&16_u32.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), &[7; 8]].concat();
    assert_eq!(world.exchange(&cancel).await, b"", "a request to cancel is taken all the same");
    drop(silent);
    until("they are gone", || world.metrics.connections_now.load(Ordering::Relaxed) == 0).await;
    world.connect("app", PASSWORD).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_refused_are_bounded() {
    let world = World::with(patient(1, 1)).await;
    let connector = connector(&world, &[b"postgresql"]);
    let _greeting = world.dial().await;
    let refused = world.dial().await;
    // The proxy says this at once, and does not wait for a word.
    assert_eq!(fatal(&world.exchange(b"").await).0, "53300");
    drop(refused);
    until("it is gone", || world.metrics.connections_now.load(Ordering::Relaxed) == 1).await;
    let answer = told_within_tls(world.address, connector).await;
    assert_eq!(fatal(&answer).0, "53300", "there is a place again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_all_sessions_taken_is_told_so_within_tls() {
    let world = World::with(Limits { sessions: 1, ..Limits::default() }).await;
    let connector = connector(&world, &[b"postgresql"]);
    let _session = world.connect("app", PASSWORD).await.unwrap();
    let (sqlstate, message) = fatal(&told_within_tls(world.address, connector).await);
    assert_eq!(sqlstate, "53300", "{message}");
    assert!(message.contains("all 1 connections of the proxy are in use"), "{message}");
}
