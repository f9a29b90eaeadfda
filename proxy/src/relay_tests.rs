//! Each way a session can end, over real sockets, and what it holds meanwhile; for encrypted
//! sessions and for others.

use std::future::{pending, ready};
use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::*;
use crate::end::close;
use crate::tls::Tls;

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a client speaks to the proxy.
#[derive(Clone, Copy, Debug)]
enum By {
    Plain,
    Tls,
}

const BOTH: [By; 2] = [By::Plain, By::Tls];

/// What encrypts, on either side.
static TLS: LazyLock<(Tls, TlsConnector)> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("coppice-relay-{}", std::process::id()));
    let tls = Tls::with_authority(&directory, None).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.crt")).unwrap()).unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    (tls, Arc::new(config).into())
});

/// A client's end of a session.
trait Client: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Client for T {}

/// A session between two sockets, of which the test holds the other ends.
struct Running {
    client: Box<dyn Client>,
    server: UnixStream,
    ended: tokio::task::JoinHandle<(End, Monitor)>,
}

async fn start(by: By, shutdown: impl Future<Output = ()> + Send + 'static) -> Running {
    let (client, near_client) = connect().await;
    let (client, near_client) = speak(by, client, near_client).await;
    let (server, ended) = copy(near_client, shutdown).await;
    Running { client, server, ended }
}

/// A connection of a client, and its end at the proxy.
async fn connect() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

type Near = (OwnedFd, Option<ServerConnection>);

async fn speak(by: By, client: TcpStream, near: TcpStream) -> (Box<dyn Client>, Near) {
    match by {
        By::Plain => (Box::new(client), (near.into_std().unwrap().into(), None)),
        By::Tls => {
            let (client, near) = encrypt(client, near).await;
            (Box::new(client), near)
        }
    }
}

async fn encrypt(client: TcpStream, near: TcpStream) -> (TlsStream<TcpStream>, Near) {
    let name = ServerName::try_from("localhost").unwrap();
    let (client, near) = tokio::join!(TLS.1.connect(name, client), TLS.0.accept(near));
    let (socket, tls) = near.unwrap().stream.into_inner();
    (client.unwrap(), (socket.into_std().unwrap().into(), Some(tls)))
}

/// Has the relay copy between a client and what is returned.
async fn copy(
    client: Near,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> (UnixStream, tokio::task::JoinHandle<(End, Monitor)>) {
    let (server, near_server) = UnixStream::pair().unwrap();
    let ended = tokio::spawn(async move {
        let relay = Relay::start().unwrap();
        let near_server = near_server.into_std().unwrap().into();
        let cut = async {
            shutdown.await;
            End::Shutdown
        };
        let copied =
            relay.copy(client, near_server, Monitor::default(), std::future::pending(), cut);
        let (end, client, monitor) = copied.await.unwrap();
        close(&mut UnixStream::from_std(client.into()).unwrap()).await;
        (end, monitor)
    });
    (server, ended)
}

async fn all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_client_that_stops_sending_gets_the_rest() {
    for by in BOTH {
        let Running { mut client, mut server, ended } = start(by, pending()).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(all(&mut server).await, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(all(&mut client).await, b"answer");
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Client)));
    }
}

/// No event of the socket tells of what came along with what was read, nor of what came before the
/// session.
#[tokio::test]
async fn a_goodbye_that_comes_along_with_a_question_counts() {
    for early in [false, true] {
        let (client, near) = connect().await;
        let (mut client, (socket, mut tls)) = encrypt(client, near).await;
        let say = |client: &mut TlsStream<TcpStream>| {
            let tls = client.get_mut().1;
            std::io::Write::write_all(&mut tls.writer(), b"question").unwrap();
            tls.send_close_notify();
        };
        if early {
            say(&mut client);
            client.flush().await.unwrap();
            let tls = tls.as_mut().unwrap();
            let mut socket = std::net::TcpStream::from(socket.try_clone().unwrap());
            socket.set_nonblocking(false).unwrap();
            while tls.process_new_packets().unwrap().plaintext_bytes_to_read() < b"question".len() {
                assert!(tls.read_tls(&mut socket).unwrap() > 0);
            }
        }
        let (mut server, ended) = copy((socket, tls), pending()).await;
        if !early {
            say(&mut client);
            client.flush().await.unwrap();
        }
        let question = tokio::time::timeout(PATIENCE, all(&mut server)).await;
        assert_eq!(question.expect("the end is passed on"), b"question", "early: {early}");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let (mut reader, _writer) = tokio::io::split(client);
        assert_eq!(all(&mut reader).await, b"answer");
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Client)));
    }
}

#[tokio::test]
async fn what_is_no_tls_when_the_session_begins_is_the_clients_failure() {
    let (client, near) = connect().await;
    let (mut client, (socket, mut tls)) = encrypt(client, near).await;
    client.get_mut().0.write_all(&[0xff; 64]).await.unwrap();
    let mut raw = std::net::TcpStream::from(socket.try_clone().unwrap());
    raw.set_nonblocking(false).unwrap();
    assert!(tls.as_mut().unwrap().read_tls(&mut raw).unwrap() > 0);
    let (mut server, ended) = copy((socket, tls), pending()).await;
    assert_eq!(all(&mut server).await, b"");
    drop(client);
    assert!(matches!(ended.await.unwrap().0, End::Failed(Side::Client, _)));
}

#[tokio::test]
async fn last_words_arrive_after_postgres_stopped_reading() {
    for by in BOTH {
        let Running { mut client, mut server, ended } = start(by, pending()).await;
        shutdown(server.as_raw_fd(), Shutdown::Read).unwrap();
        client.write_all(&[0; 100]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.write_all(b"last words").await.unwrap();
        drop(server);
        client.write_all(&[0; 100]).await.unwrap();
        assert_eq!(all(&mut client).await, b"last words");
        drop(client);
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Server)));
    }
}

/// A Postgres that crashes is no branch that was reset.
#[tokio::test]
async fn the_end_of_a_postgres_is_not_taken_for_a_reset() {
    for by in BOTH {
        let Running { mut client, mut server, ended } = start(by, pending()).await;
        server.write_all(b"Z\0\0\0\x05I").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        drop(server);
        assert_eq!(all(&mut client).await, b"", "{by:?}");
        drop(client);
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Server)), "{by:?}");
    }
}

/// Some clients say goodbye, and take what comes until Postgres has closed.
#[tokio::test]
async fn a_client_that_says_goodbye_is_told_nothing_more() {
    for by in BOTH {
        let Running { mut client, mut server, ended } = start(by, pending()).await;
        server.write_all(b"Z\0\0\0\x05I").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        client.write_all(b"X\0\0\0\x04").await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut [0; 5]).await.unwrap();
        drop(server);
        assert_eq!(all(&mut client).await, b"", "{by:?}");
        drop(client);
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Server)), "{by:?}");
    }
}

#[tokio::test]
async fn a_reset_names_its_side() {
    for by in BOTH {
        let (client, near) = connect().await;
        let at_once = linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&client, sockopt::Linger, &at_once).unwrap();
        let (client, near) = speak(by, client, near).await;
        let (mut server, ended) = copy(near, pending()).await;
        drop(client);
        assert_eq!(all(&mut server).await, b"", "the other side is closed");
        assert!(matches!(ended.await.unwrap().0, End::Failed(Side::Client, _)));

        let Running { mut client, server, ended } = start(by, pending()).await;
        client.write_all(b"never read").await.unwrap();
        server.readable().await.unwrap();
        drop(server);
        let words = all(&mut client).await;
        assert!(words.starts_with(b"E"), "the proxy says why: {words:?}");
        drop(client);
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Server)));
    }
}

#[tokio::test]
async fn a_shutdown_closes_both_sides() {
    for by in BOTH {
        let Running { mut client, mut server, ended } = start(by, ready(())).await;
        assert_eq!(all(&mut client).await, b"");
        assert_eq!(all(&mut server).await, b"");
        drop(client);
        assert!(matches!(ended.await.unwrap().0, End::Shutdown));
    }
}

/// Sends `bytes` from one end and takes them slowly from the other.
async fn passes(
    from: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncRead + Unpin),
    bytes: &[u8],
) {
    let send = async {
        from.write_all(bytes).await.unwrap();
        // TLS keeps what the socket did not take at once.
        from.flush().await.unwrap();
    };
    let receive = async {
        let (mut received, mut some) = (Vec::new(), vec![0; 7919]);
        while received.len() < bytes.len() {
            let count = to.read(&mut some).await.unwrap();
            assert!(count > 0, "closed after {} bytes", received.len());
            received.extend_from_slice(&some[..count]);
            if received.len() % 5 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(received == bytes, "what came is not what was sent");
    };
    tokio::join!(send, receive);
}

#[tokio::test]
async fn nothing_is_lost_when_both_sides_send_more_than_the_other_takes() {
    for by in BOTH {
        let Running { client, server, ended } = start(by, pending()).await;
        let bytes = |seed: u32| {
            (0..8 << 20)
                .map(|nth: u32| (nth.wrapping_mul(seed) >> 11).to_le_bytes()[0])
                .collect::<Vec<_>>()
        };
        let (question, answer) = (bytes(2_654_435_761), bytes(40_503));
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = server.into_split();
        let up = passes(&mut to_client, &mut from_server, &question);
        let down = passes(&mut to_server, &mut from_client, &answer);
        let both = async { tokio::join!(up, down) };
        tokio::time::timeout(PATIENCE, both).await.expect("all of it comes");
        drop((from_client, to_client, from_server, to_server));
        let (end, monitor) = ended.await.unwrap();
        assert!(matches!(end, End::Closed(_)), "{by:?}: {end}");
        assert_eq!((monitor.bytes_in, monitor.bytes_out), (8 << 20, 8 << 20), "{by:?}");
    }
}

#[tokio::test]
async fn what_is_not_taken_is_not_read() {
    for by in BOTH {
        let Running { client, server, ended } = start(by, pending()).await;
        let mut sent = 0;
        while let Ok(count) = tokio::time::timeout(Duration::from_millis(300), async {
            server.writable().await.unwrap();
            server.try_write(&[1; 1 << 16]).or_else(|error| {
                if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) }
            })
        })
        .await
        {
            sent += count.unwrap();
            assert!(sent < 64 << 20, "{by:?} reads on for a client that reads nothing");
        }
        // The session goes on where it stood.
        let (mut reader, _writer) = tokio::io::split(client);
        drop(server);
        assert_eq!(all(&mut reader).await.len(), sent, "{by:?}");
        assert!(matches!(ended.await.unwrap().0, End::Closed(Side::Server)), "{by:?}");
    }
}

#[tokio::test]
async fn a_session_that_nobody_waits_for_is_let_go() {
    let Running { mut client, mut server, ended } = start(By::Plain, pending()).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    ended.abort();
    assert_eq!(all(&mut client).await, b"");
    assert_eq!(all(&mut server).await, b"");
}
