//! Whole sessions: authentication, cancelling, many at once, bulk data, and every way to end.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proxy::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::postgres::{GUEST, PASSWORD, PATIENCE};
use crate::world::{World, fatal, read_all, read_message, startup, until};

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_checked_by_the_branch() {
    let world = World::start().await;
    let client = world.connect("app", PASSWORD).await.unwrap();
    let row = client
        .query_one("select rolpassword from pg_authid where rolname = 'postgres'", &[])
        .await
        .unwrap();
    assert!(row.get::<_, String>(0).starts_with("SCRAM-SHA-256$"));
    let error = world.connect("app", "wrong").await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD));
    let metrics = &world.metrics;
    assert_eq!(metrics.connections_total.load(Ordering::Relaxed), 2);
    assert_eq!(metrics.refused_total.load(Ordering::Relaxed), 0, "Postgres refused, not the proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_reaches_the_right_query() {
    let limits = Limits { sessions: 2, ..Limits::default() };
    let world = World::with(limits).await;
    let sleepers = [
        world.connect("app", PASSWORD).await.unwrap(),
        world.connect("app@feature/x", PASSWORD).await.unwrap(),
    ];
    let tokens = sleepers.each_ref().map(|client| client.cancel_token());
    let [first, second] = sleepers.map(|client| {
        tokio::spawn(async move { client.batch_execute("select pg_sleep(600)").await.unwrap_err() })
    });
    let (mut requests, began) = (0, Instant::now());
    for (token, mut query) in tokens.into_iter().zip([first, second]).rev() {
        assert!(!query.is_finished(), "only its own request cancels a query");
        // Postgres ignores a request that comes before the query has begun.
        let ended = loop {
            timeout(PATIENCE, token.cancel_query(NoTls)).await.unwrap().unwrap();
            requests += 1;
            if let Ok(ended) = timeout(Duration::from_secs(1), &mut query).await {
                break ended;
            }
            assert!(began.elapsed() < PATIENCE, "the query never ends");
        };
        assert_eq!(ended.unwrap().code(), Some(&SqlState::QUERY_CANCELED));
    }
    assert_eq!(world.metrics.cancels_total.load(Ordering::Relaxed), requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_cancel_key_is_ignored() {
    let world = World::start().await;
    let request = [&16_u32.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), &[7; 8]].concat();
    assert_eq!(world.exchange(&request).await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_at_once() {
    let world = World::start().await;
    let mut clients = JoinSet::new();
    let port = world.address.port();
    for number in 0..200 {
        clients.spawn(async move {
            let mut config = tokio_postgres::Config::new();
            config
                .host("127.0.0.1")
                .port(port)
                .user("postgres")
                .dbname("app@feature/x")
                .password(PASSWORD);
            let (client, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            let row = client.query_one("select $1::int4", &[&number]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), number);
            client
        });
    }
    let open = timeout(PATIENCE, clients.join_all()).await.expect("all get their row");
    assert_eq!(world.branches.leases.load(Ordering::SeqCst), 200);
    drop(open);
    until("all leases given back", || world.branches.leases.load(Ordering::SeqCst) == 0).await;
    until("all connections closed", || world.metrics.connections_now.load(Ordering::Relaxed) == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_data_arrives_unchanged() {
    const ROWS: usize = 40_000;
    let world = World::start().await;
    let line: String = ('a'..='z').cycle().take(500).collect();
    let rows: String = (0..ROWS).map(|row| format!("{row}{line}\n")).collect();
    let script = format!(
        "create temp table t (x text);\ncopy t from stdin;\n{rows}\\.\ncopy t to stdout;\n"
    );
    for sslmode in ["disable", "require"] {
        let output = world.psql(&format!("sslmode={sslmode}"), &script).await;
        assert!(output.status.success(), "{sslmode}");
        assert!(
            output.stdout == rows.as_bytes(),
            "{sslmode}: {} bytes of {}",
            output.stdout.len(),
            rows.len()
        );
    }
    let minimum = 2 * rows.len() as u64;
    assert!(world.metrics.bytes_from_clients_total.load(Ordering::Relaxed) > minimum);
    assert!(world.metrics.bytes_to_clients_total.load(Ordering::Relaxed) > minimum);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_postgres_reach_the_client() {
    let world = World::start().await;
    let client = world.connect("app", PASSWORD).await.unwrap();
    let error =
        client.batch_execute("select pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    until("the lease given back", || world.branches.leases.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_sending_still_gets_its_answer() {
    let world = World::start().await;
    let mut socket = world.dial().await;
    socket.write_all(&startup(0, &[("user", GUEST), ("database", "app")])).await.unwrap();
    while read_message(&mut socket).await.0 != b'Z' {}
    let query = b"select 'late ' || pg_sleep(0.3) || 'answer'\0";
    let length = u32::try_from(query.len() + 4).unwrap();
    socket.write_all(&[b"Q", &length.to_be_bytes()[..], query].concat()).await.unwrap();
    socket.shutdown().await.unwrap();
    let rest = read_all(&mut socket).await;
    assert!(rest.windows(11).any(|window| window == b"late answer"), "{}", rest.escape_ascii());
    until("the lease given back", || world.branches.leases.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_too_many_is_refused() {
    let limits = Limits { sessions: 1, ..Limits::default() };
    let world = World::with(limits).await;
    let first = world.connect("app", PASSWORD).await.unwrap();
    let error = world.connect("app", PASSWORD).await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    drop(first);
    until("the first session over", || world.metrics.connections_now.load(Ordering::Relaxed) == 0)
        .await;
    world.connect("app", PASSWORD).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_for_a_client_that_left() {
    let world = World::start().await;
    let waiting = || world.branches.waiting.load(Ordering::SeqCst);
    let mut socket = world.dial().await;
    socket.write_all(&startup(0, &[("user", GUEST), ("database", "app@asleep")])).await.unwrap();
    until("it waits", || waiting() == 1).await;
    drop(socket);
    until("it stopped waiting", || waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_cannot_be_reached_is_reported() {
    let limits = Limits { wake: Duration::from_secs(1), ..Limits::default() };
    let world = World::with(limits).await;
    for (branch, text) in
        [("broken", "cannot reach the Postgres of the branch"), ("asleep", "not ready within 1s")]
    {
        let database = format!("app@{branch}");
        let bytes = world.exchange(&startup(0, &[("user", GUEST), ("database", &database)])).await;
        let (sqlstate, message) = fatal(&bytes);
        assert_eq!(sqlstate, "57P03");
        assert!(message.contains(text), "{message}");
    }
    assert_eq!(world.metrics.refused_total.load(Ordering::Relaxed), 2);
    assert_eq!(world.branches.leases.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_closes_what_is_left_after_the_grace_period() {
    let grace = Duration::from_secs(5);
    let mut world = World::with(Limits { grace, ..Limits::default() }).await;
    let mut session = world.dial().await;
    session.write_all(&startup(0, &[("user", GUEST), ("database", "app")])).await.unwrap();
    while read_message(&mut session).await.0 != b'Z' {}
    let mut waking = world.dial().await;
    waking.write_all(&startup(0, &[("user", GUEST), ("database", "app@asleep")])).await.unwrap();
    let mut silent = world.dial().await;
    until("it waits", || world.branches.waiting.load(Ordering::SeqCst) == 1).await;
    until("all are accepted", || world.metrics.connections_now.load(Ordering::Relaxed) == 3).await;
    let started = Instant::now();
    let stopped = world.stop();
    assert_eq!(fatal(&read_all(&mut waking).await).0, "57P01");
    assert_eq!(fatal(&read_all(&mut silent).await).0, "57P01");
    let word = timeout(Duration::from_millis(10), session.read_u8()).await;
    assert!(word.is_err(), "clients without a session are told before the session ends");
    let mut rest = Vec::new();
    timeout(PATIENCE, session.read_to_end(&mut rest))
        .await
        .expect("the session is closed")
        .unwrap();
    assert!(started.elapsed() >= grace, "it had its time");
    drop(session);
    timeout(PATIENCE, stopped).await.expect("the proxy ends").unwrap();
    assert!(tokio::net::TcpStream::connect(world.address).await.is_err());
    assert_eq!(world.branches.leases.load(Ordering::SeqCst), 0);
}
