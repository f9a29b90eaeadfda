//! How long branch operations and first rows take, measured from a client of a real server.
//!
//! `cargo bench --bench latency` prints a table of milliseconds and keeps it for `make bench-docs`.
//! `COPPICE_BENCH_MANY` sets how many branches there are in the second round (1,000),
//! `COPPICE_BENCH_SCALE` the pgbench scale of the large database (130, which is 2 GB; 0 leaves it
//! out). Server and Postgres are the ones of a user; times include HTTP and the Postgres protocol.

use api::client::Client;
use api::types::CreateBranch;
use coppice::figures::Figures;
use coppice::processes::wait_until_at_rest;
use coppice::{Server, postgres_program};
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 200;
const WAKES: usize = 30;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn branch(name: &str) -> CreateBranch {
    CreateBranch { name: name.to_owned(), ..CreateBranch::default() }
}

/// Create, reset and delete one branch after another.
fn operations(client: &Client, figures: &mut Figures, label: &str) {
    let (mut creates, mut resets, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
    for nth in 0..ROUNDS {
        let name = format!("op-{nth}");
        creates.push(timed(|| drop(client.create(&branch(&name)).expect("create"))));
        resets.push(timed(|| drop(client.reset(&name, &Default::default()).expect("reset"))));
        deletes.push(timed(|| client.delete(&name).expect("delete")));
    }
    figures.times(&format!("create, {label}"), &creates);
    figures.times(&format!("reset, {label}"), &resets);
    figures.times(&format!("delete, {label}"), &deletes);
}

/// From a request to the first row through the proxy.
fn first_rows(
    (server, client): (&Server, &Client),
    runtime: &tokio::runtime::Runtime,
    figures: &mut Figures,
    label: &str,
) {
    let one_row = |url: &str| {
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("connect");
            let connection = tokio::spawn(connection);
            client.query_one("select 1", &[]).await.expect("a row");
            drop(client);
            let _ = connection.await;
        });
    };
    let (mut running, mut firsts, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
    let url = |name: &str| server.url("main").replace("postgres.main", &format!("postgres.{name}"));
    let first_row = |name: &str| {
        timed(|| {
            client.create(&branch(name)).expect("create");
            one_row(&url(name));
        })
    };
    client.wake("main").expect("wake");
    for nth in 0..WAKES {
        let name = format!("row-{nth}");
        running.push(first_row(&name));
        client.suspend(&name).expect("suspend");
        client.delete(&name).expect("delete");
    }
    client.suspend("main").expect("suspend");
    wait_until_at_rest(server);
    for nth in 0..WAKES {
        let name = format!("row-{nth}");
        firsts.push(first_row(&name));
        client.suspend(&name).expect("suspend");
        wakes.push(timed(|| one_row(&url(&name))));
        client.delete(&name).expect("delete");
    }
    figures.times(&format!("create to first row, running parent, {label}"), &running);
    figures.times(&format!("create to first row, idle parent, {label}"), &firsts);
    figures.times(&format!("wake to first row, {label}"), &wakes);
}

fn main() {
    let (many, scale) = (number("COPPICE_BENCH_MANY", 1000), number("COPPICE_BENCH_SCALE", 130));
    let mut server = Server::start();
    let client = server.client();
    let runtime = tokio::runtime::Runtime::new().expect("start tokio");
    let mut figures = Figures::new("latency");
    for nth in 0..10 {
        client.create(&branch(&format!("few-{nth}"))).expect("create");
    }
    operations(&client, &mut figures, "10 branches");
    first_rows((&server, &client), &runtime, &mut figures, "empty");
    for nth in 0..many {
        client.create(&branch(&format!("many-{nth}"))).expect("create");
    }
    operations(&client, &mut figures, &format!("{many} branches"));
    if scale > 0 {
        let mut load = Command::new(postgres_program("pgbench"));
        load.args(["-i", "-q", "-s", &scale.to_string(), &server.url("main")]);
        let output = load.output().expect("run pgbench");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        client.suspend("main").expect("suspend");
        let size = client.get("main").expect("main").logical_bytes.unwrap_or(0) >> 20;
        operations(&client, &mut figures, &format!("{many} branches, {size} MiB"));
        first_rows((&server, &client), &runtime, &mut figures, &format!("{size} MiB"));
    }
    assert!(server.stop().success());
    figures.save();
}
