//! Once a reset, a restore or a deletion has answered, nothing is acknowledged on what the branch
//! was before, and whoever connects meanwhile gets what it is now.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{CreateBranch, Moment, ResetBranch, RestoreBranch};
use coppice::{Server, eventually};
use nix::sys::socket::{MsgFlags, recv};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use tokio::io::{AsyncRead, ReadBuf, join};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Builder;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

/// Sessions that insert at the same time.
const SESSIONS: usize = 4;

/// An insert that was acknowledged.
#[derive(Clone, Copy)]
struct Insert {
    number: i64,
    /// The connection that it was made on, and how many bytes the connection had received with the
    /// acknowledgement.
    wire: usize,
    received: usize,
}

/// How many bytes each connection had received at some time.
type Received = Vec<usize>;

/// A connection that counts what it receives. A clock cannot tell whether a thread that the machine
/// kept waiting had its acknowledgement before the answer to somebody else; the bytes can.
struct Wire {
    stream: OwnedReadHalf,
    counted: Arc<Counted>,
}

struct Counted {
    /// None once the session has ended.
    socket: Mutex<Option<OwnedFd>>,
    read: Mutex<usize>,
}

impl Counted {
    /// What has arrived so far, read or not.
    fn received(&self) -> usize {
        let (socket, read) = (self.socket.lock().unwrap(), self.read.lock().unwrap());
        let Some(socket) = &*socket else { return *read };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let unread = recv(socket.as_raw_fd(), &mut [0; 65_536], flags).unwrap_or(0);
        *read + unread
    }

    /// Nobody reads any more: what has arrived by now is all that counts.
    fn end(&self) {
        let received = self.received();
        *self.read.lock().unwrap() = received;
        self.socket.lock().unwrap().take();
    }
}

impl Wire {
    /// What comes, and where requests go.
    async fn connect(to: SocketAddr) -> (Self, OwnedWriteHalf) {
        let stream = TcpStream::connect(to).await.unwrap();
        let socket = Mutex::new(Some(stream.as_fd().try_clone_to_owned().unwrap()));
        let counted = Arc::new(Counted { socket, read: Mutex::default() });
        let (stream, requests) = stream.into_split();
        (Self { stream, counted }, requests)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (this, before) = (self.get_mut(), buffer.filled().len());
        let mut read = this.counted.read.lock().unwrap();
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        *read += buffer.filled().len() - before;
        outcome
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicI64,
    inserts: Mutex<Vec<Insert>>,
    wires: Mutex<Vec<Arc<Counted>>>,
    /// Connections that were refused, other than with the word that the branch was taken away.
    refused: Mutex<Vec<String>>,
}

impl Shared {
    fn received(&self) -> Received {
        self.wires.lock().unwrap().iter().map(|wire| wire.received()).collect()
    }

    /// Connects, and calls `act` with the session and its number.
    async fn connect(&self, to: SocketAddr, config: &Config, act: impl AsyncFn(&Client, usize)) {
        let (wire, requests) = Wire::connect(to).await;
        let counted = Arc::clone(&wire.counted);
        let number = {
            let mut wires = self.wires.lock().unwrap();
            wires.push(Arc::clone(&counted));
            wires.len() - 1
        };
        match config.connect_raw(join(wire, requests), NoTls).await {
            Ok((client, connection)) => {
                let connection = tokio::spawn(connection);
                act(&client, number).await;
                connection.abort();
            }
            // It had begun to log in when the branch was taken away.
            Err(error) if error.code() == Some(&SqlState::ADMIN_SHUTDOWN) => {}
            // Between a deletion and the next creation there is none.
            Err(error) if error.code() == Some(&SqlState::INVALID_CATALOG_NAME) => {}
            Err(error) => self.refused.lock().unwrap().push(format!("{error:?}")),
        }
        counted.end();
    }

    fn acknowledged(&self, number: i64, wire: usize) {
        let received = *self.wires.lock().unwrap()[wire].read.lock().unwrap();
        self.inserts.lock().unwrap().push(Insert { number, wire, received });
    }
}

/// Sessions that go on with new connections when their own end.
struct Sessions {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Sessions {
    fn start(
        server: &Server,
        act: impl AsyncFn(&Shared, &Client, usize) + Copy + Send + 'static,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let threads = (0..SESSIONS).map(|_| {
            let (shared, to) = (Arc::clone(&shared), server.proxy);
            let config = server.url("b").parse::<Config>().unwrap();
            std::thread::spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                let act = async |client: &Client, wire| act(&shared, client, wire).await;
                runtime.block_on(async {
                    while !shared.stop.load(Ordering::SeqCst) {
                        shared.connect(to, &config, act).await;
                    }
                });
            })
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    fn inserts(&self) -> Vec<Insert> {
        self.shared.inserts.lock().unwrap().clone()
    }

    /// Waits until there are some answers more.
    fn go_on(&self) {
        let before = self.inserts().len();
        eventually("sessions go on", || self.inserts().len() >= before + 3 * SESSIONS);
    }

    fn finish(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*self.shared.refused.lock().unwrap(), Vec::<String>::new());
    }
}

/// Inserts one number after the other.
async fn insert(shared: &Shared, client: &Client, wire: usize) {
    while !shared.stop.load(Ordering::SeqCst) {
        let number = shared.next.fetch_add(1, Ordering::SeqCst);
        if client.batch_execute(&format!("insert into numbers values ({number})")).await.is_err() {
            return;
        }
        shared.acknowledged(number, wire);
    }
}

/// Asks for one row.
async fn visit(shared: &Shared, client: &Client, wire: usize) {
    if client.batch_execute("select 1").await.is_ok() {
        shared.acknowledged(0, wire);
    }
}

/// Numbers that a branch has.
fn numbers(server: &Server, branch: &str) -> BTreeSet<i64> {
    let text = server.sql(branch, "select n from numbers").unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Does something to the branch again and again, and looks each time whether all that was
/// acknowledged since the time before is there.
fn verify(server: &Server, rounds: usize, mut take_away: impl FnMut(usize)) {
    let sessions = Sessions::start(server, insert);
    let mut answered = Received::new();
    for round in 0..rounds {
        sessions.go_on();
        let inserts = sessions.inserts();
        let since = inserts
            .iter()
            .filter(|insert| insert.received > answered.get(insert.wire).copied().unwrap_or(0));
        let acknowledged: Vec<i64> = since.map(|insert| insert.number).collect();
        let there = numbers(server, "b");
        let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
        assert!(!acknowledged.is_empty());
        assert!(lost.is_empty(), "round {round}: {lost:?} were acknowledged after the answer");
        take_away(round);
        answered = sessions.shared.received();
    }
    sessions.finish();
}

fn server_with_branch() -> Server {
    let server = Server::start();
    server.sql("main", "create table numbers (n bigint)").unwrap();
    let new = CreateBranch { name: "b".into(), ..CreateBranch::default() };
    server.client().create(&new).unwrap();
    server
}

fn rounds(default: usize) -> usize {
    std::env::var("COPPICE_TEST_RESETS").map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nothing_is_acknowledged_after_the_answer_to_a_reset() {
    let server = server_with_branch();
    let client = server.client();
    verify(&server, rounds(40), |_| {
        client.reset("b", &ResetBranch::default()).unwrap();
    });
}

#[test]
fn whoever_connects_during_a_reset_gets_the_branch_as_it_is_now() {
    let server = server_with_branch();
    let client = server.client();
    let visitors = Sessions::start(&server, visit);
    for _ in 0..rounds(40) {
        visitors.go_on();
        client.reset("b", &ResetBranch::default()).unwrap();
    }
    visitors.finish();
}

#[test]
fn nothing_is_acknowledged_after_the_answer_to_a_restore_or_a_deletion() {
    let server = server_with_branch();
    let client = server.client();
    let before = jiff::Timestamp::now();
    verify(&server, rounds(12), |round| match round % 3 {
        0 => {
            let at = Moment::Time(before);
            let keep_as = Some(format!("kept-{round}"));
            client.restore("b", &RestoreBranch { at, keep_as }).unwrap();
        }
        1 => {
            client.delete("b").unwrap();
            let new = CreateBranch { name: "b".into(), ..CreateBranch::default() };
            client.create(&new).unwrap();
        }
        _ => {
            client.reset("b", &ResetBranch::default()).unwrap();
        }
    });
}

#[test]
fn a_session_that_rests_learns_why_it_ends() {
    let server = Server::start();
    let client = Arc::new(server.client());
    client.create(&CreateBranch { name: "b".into(), ..CreateBranch::default() }).unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // The farewell of Postgres itself may be faster on a busy machine.
    let learned = (0..20).any(|_| {
        let client = Arc::clone(&client);
        let error = runtime.block_on(async {
            let connected = tokio_postgres::connect(&server.url("b"), NoTls).await;
            let (session, connection) = connected.unwrap();
            let connection = tokio::spawn(connection);
            session.batch_execute("create table t ()").await.unwrap();
            let reset = move || client.reset("b", &ResetBranch::default());
            tokio::task::spawn_blocking(reset).await.unwrap().unwrap();
            connection.await.unwrap().unwrap_err()
        });
        let error = error.as_db_error().expect("an error of the server");
        assert_eq!(error.code(), &SqlState::ADMIN_SHUTDOWN);
        error.message().contains("the branch was reset")
    });
    assert!(learned);
}
