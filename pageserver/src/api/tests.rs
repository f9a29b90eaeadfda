//! What every route gets, over real connections: a few toy routes stand for the rest.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::extract::{BODY_BYTES_MAX, Body, Name};
use super::metrics::Metrics;
use super::router::wrap;
use super::serve::serve;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Toy {
    word: String,
}

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server with toy routes. `begun` is told when the handler of `/slow` begins, `slow` when its
/// work is done.
struct Server {
    address: std::net::SocketAddr,
    metrics: Arc<Metrics>,
    begun: Arc<Notify>,
    slow: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, slow) = (Arc::new(Metrics::new()), Arc::new(Notify::new()));
        let begun = Arc::new(Notify::new());
        let (begins, done) = (Arc::clone(&begun), Arc::clone(&slow));
        let work = move || async move {
            begins.notify_one();
            tokio::time::sleep(Duration::from_millis(300)).await;
            done.notify_one();
            "done"
        };
        let name = |action| move |Name(name): Name| async move { format!("{action} {name}") };
        let routes = Router::new()
            .route("/echo", post(|Body(toy): Body<Toy>| async move { toy.word }))
            .route("/slow", get(work))
            .route("/v1/branches/{name}", get(name("show")))
            .route("/v1/branches/{name}/reset", get(name("reset")));
        let router = wrap(routes, Arc::clone(&metrics));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, router, async { drop(stopped.await) }));
        Self { address, metrics, begun, slow, stop, task }
    }

    /// Sends bytes and reads until the server closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn get(&self, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
    }

    async fn echo(&self, content_type: &str, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: \
             {content_type}\r\ncontent-length: {length}\r\n\r\n"
        );
        self.raw(format!("{head}{body}").as_bytes()).await
    }
}

#[track_caller]
fn assert_fault(answer: &str, status: u16, code: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
}

#[tokio::test]
async fn bodies_are_checked() {
    let server = Server::start().await;
    let good = server.echo("Application/JSON; charset=utf-8", r#"{"word":"hi"}"#).await;
    assert!(good.starts_with("HTTP/1.1 200 ") && good.ends_with("hi"), "{good}");
    assert_fault(&server.echo("application/json", "{").await, 400, "bad_json");
    assert_fault(&server.echo("application/json", "").await, 400, "bad_json");
    assert_fault(&server.echo("application/json", r#"{"word":1}"#).await, 422, "bad_field");
    assert_fault(&server.echo("application/json", r#"{"word":"a","x":1}"#).await, 422, "bad_field");
    assert_fault(
        &server.echo("text/plain", r#"{"word":"hi"}"#).await,
        415,
        "unsupported_media_type",
    );
    let deep = "[".repeat(60_000);
    assert_fault(&server.echo("application/json", &deep).await, 422, "bad_field");
}

#[tokio::test]
async fn a_large_body_gets_its_answer() {
    let server = Server::start().await;
    let exact = format!("{{\"word\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX - 11));
    assert_eq!(exact.len(), BODY_BYTES_MAX);
    assert!(server.echo("application/json", &exact).await.starts_with("HTTP/1.1 200 "));
    assert_fault(
        &server.echo("application/json", &format!("{exact} ")).await,
        413,
        "body_too_large",
    );
    assert_fault(
        &server.echo("application/json", &"x".repeat(10 << 20)).await,
        413,
        "body_too_large",
    );
}

#[tokio::test]
async fn what_no_route_takes_is_a_problem_too() {
    let server = Server::start().await;
    assert_fault(&server.get("/nothing").await, 404, "not_found");
    assert_fault(&server.get("/v1/branches/").await, 404, "not_found");
    let answer = server.get("/echo").await;
    assert_fault(&answer, 405, "method_not_allowed");
    assert!(answer.contains("allow: POST"), "{answer}");
    assert_fault(&server.get("/v1/branches/%ff").await, 400, "bad_path");
}

#[tokio::test]
async fn a_slash_in_a_name_may_be_plain_or_encoded() {
    let server = Server::start().await;
    for (path, expected) in [
        ("/v1/branches/a%2Fb", "show a/b"),
        ("/v1/branches/a/b", "show a/b"),
        ("/v1/branches/a/b/c?x=1", "show a/b/c"),
        ("/v1/branches/a%2Fb/reset", "reset a/b"),
        ("/v1/branches/a/b/reset", "reset a/b"),
        ("/v1/branches/a/reset", "reset a"),
        ("/v1/branches/a%2Freset", "show a/reset"),
        ("/v1/branches/reset", "show reset"),
    ] {
        let answer = server.get(path).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{expected}")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_request_is_counted_by_its_route_and_status() {
    let server = Server::start().await;
    server.get("/v1/branches/a").await;
    server.get("/nothing").await;
    let text = server.metrics.render();
    for line in [
        r#"coppice_http_requests_total{route="/v1/branches/{name}",method="GET",status="200"} 1"#,
        r#"coppice_http_requests_total{route="unmatched",method="GET",status="404"} 1"#,
        r#"coppice_http_request_seconds_count{route="/v1/branches/{name}"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn work_goes_on_when_the_client_hangs_up() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    timeout(PATIENCE, server.begun.notified()).await.expect("the handler begins");
    drop(stream);
    timeout(PATIENCE, server.slow.notified()).await.expect("the handler was dropped");
}

#[tokio::test]
async fn shutdown_lets_requests_finish_and_closes_idle_connections() {
    let server = Server::start().await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    timeout(PATIENCE, server.begun.notified()).await.expect("the handler begins");
    server.stop.send(()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("done"), "{answer}");
    timeout(PATIENCE, server.task).await.expect("serve did not return").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "still accepts");
}

#[tokio::test]
async fn garbage_is_refused_and_the_server_lives() {
    let server = Server::start().await;
    assert!(server.raw(b"\0\x01\x02\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    assert!(server.get("/slow").await.ends_with("done"));
}
