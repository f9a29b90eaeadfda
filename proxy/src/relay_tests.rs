//! Each way a session can end, over real sockets.

use std::future::{pending, ready};
use std::os::fd::AsRawFd;

use nix::libc::linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::*;

/// A relay that runs between two sockets, of which the test holds the other ends.
struct Running {
    client: TcpStream,
    server: UnixStream,
    relay: tokio::task::JoinHandle<End>,
}

async fn start(shutdown: impl Future<Output = ()> + Send + 'static) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut near_client, _) = listener.accept().await.unwrap();
    let (server, mut near_server) = UnixStream::pair().unwrap();
    let relay = tokio::spawn(async move {
        let end = relay(&mut near_client, &mut near_server, |_| {}, |_| {}, shutdown).await;
        drop(near_server);
        close(&mut near_client).await;
        end
    });
    Running { client, server, relay }
}

async fn all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_client_that_stops_sending_gets_the_rest() {
    let Running { mut client, mut server, relay } = start(pending()).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(all(&mut server).await, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(all(&mut client).await, b"answer");
    assert!(matches!(relay.await.unwrap(), End::Closed(Side::Client)));
}

#[tokio::test]
async fn last_words_arrive_after_postgres_stopped_reading() {
    let Running { mut client, mut server, relay } = start(pending()).await;
    shutdown(server.as_raw_fd(), Shutdown::Read).unwrap();
    client.write_all(&[0; 100]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.write_all(b"last words").await.unwrap();
    drop(server);
    client.write_all(&[0; 100]).await.unwrap();
    assert_eq!(all(&mut client).await, b"last words");
    drop(client);
    assert!(matches!(relay.await.unwrap(), End::Closed(Side::Server)));
}

#[tokio::test]
async fn a_reset_names_its_side() {
    let Running { client, mut server, relay } = start(pending()).await;
    let at_once = linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&client, sockopt::Linger, &at_once).unwrap();
    drop(client);
    assert_eq!(all(&mut server).await, b"", "the other side is closed");
    assert!(matches!(relay.await.unwrap(), End::Failed(Side::Client, _)));

    let Running { mut client, server, relay } = start(pending()).await;
    client.write_all(b"never read").await.unwrap();
    server.readable().await.unwrap();
    drop(server);
    assert_eq!(all(&mut client).await, b"", "the other side is closed");
    drop(client);
    assert!(matches!(relay.await.unwrap(), End::Failed(Side::Server, _)));
}

#[tokio::test]
async fn a_shutdown_closes_both_sides() {
    let Running { mut client, mut server, relay } = start(ready(())).await;
    assert_eq!(all(&mut client).await, b"");
    assert_eq!(all(&mut server).await, b"");
    drop(client);
    assert!(matches!(relay.await.unwrap(), End::Shutdown));
}
