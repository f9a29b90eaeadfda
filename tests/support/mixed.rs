//! A load of all that changes files in Postgres's own ways, each kind with something that must hold
//! whenever it is looked at: bulk loads, truncations, tables made and dropped, indexes, rewrites,
//! large objects, prepared transactions, unlogged tables.

use super::Server;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

/// Rows of one bulk load and of one generation.
const ROWS: usize = 500;

const TABLES: &str = "create table pile (batch int, line text); create table swap (generation int, \
    i int); create table made (generation int primary key); create table documents (id oid primary \
    key, sum text); create table pairs (n int primary key); create unlogged table scratch (i int); \
    create table wide (i int primary key, t text); insert into wide select i, repeat(md5(i::text), \
    20) from generate_series(1, 400) i";

/// A kind of work: what it is called, and its statements for the `n`-th time. A statement that
/// begins with `;` runs outside of a transaction.
type Work = (&'static str, fn(i32) -> Vec<String>);

const WORKS: [Work; 8] = [
    ("load", |n| {
        vec![format!("insert into pile select {n}, md5(i::text) from generate_series(1, {ROWS}) i")]
    }),
    ("swap", |n| {
        vec![
            "truncate swap".into(),
            format!("insert into swap select {n}, i from generate_series(1, {ROWS}) i"),
        ]
    }),
    ("make", |n| {
        vec![
            format!(
                "create table made_{n} as select i, md5(i::text) t from generate_series(1, {ROWS}) \
                 i"
            ),
            format!("create index on made_{n} (t)"),
            "do $$ declare g int; begin for g in select generation from made loop \
             execute format('drop table made_%s', g); end loop; delete from made; end $$"
                .into(),
            format!("insert into made values ({n})"),
        ]
    }),
    ("rewrite", |n| {
        let kind = [
            "vacuum full wide",
            "reindex table wide",
            "vacuum wide",
            "cluster wide using wide_pkey",
        ];
        vec![
            format!(
                ";update wide set t = repeat(md5((i + {n})::text), 20) where i % 7 = {}",
                n % 7
            ),
            format!(";{}", kind[usize::try_from(n).unwrap_or(0) % kind.len()]),
        ]
    }),
    ("document", |n| {
        vec![format!(
            "with made as (select lo_from_bytea(0, convert_to(repeat(md5('{n}'), 2000), 'UTF8')) \
             id) insert into documents select id, md5(repeat(md5('{n}'), 2000)) from made"
        )]
    }),
    ("pair", |n| {
        vec![
            format!(";begin; insert into pairs values ({n}); prepare transaction 'pair {n}'"),
            format!(";commit prepared 'pair {n}'"),
        ]
    }),
    ("scratch", |n| vec![format!(";insert into scratch select {n} from generate_series(1, 100)")]),
    ("checkpoint", |_| vec![";checkpoint".into()]),
];

/// Makes the tables. Prepared transactions need a restart of the branch's Postgres.
pub fn initialize(server: &Server, branch: &str) {
    server.sql(branch, TABLES).expect("make the tables of the mixed load");
    server.sql(branch, "alter system set max_prepared_transactions = 20").expect("alter system");
    server.client().suspend(branch).expect("suspend");
}

/// The load at work.
pub struct Mixed {
    stop: Arc<AtomicBool>,
    /// The newest number of each kind that was acknowledged.
    done: Arc<Mutex<BTreeMap<&'static str, i32>>>,
    worker: Option<JoinHandle<()>>,
}

impl Mixed {
    /// Starts on a branch, with numbers from `first` on, and goes on until its connection breaks.
    pub fn start(server: &Server, branch: &str, first: i32) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeMap<_, _>>>::default());
        let (stopped, known, url) = (Arc::clone(&stop), Arc::clone(&done), server.url(branch));
        let worker = std::thread::spawn(move || {
            let runtime = Runtime::new().expect("start a runtime");
            runtime.block_on(async {
                let (client, connection) =
                    tokio_postgres::connect(&url, NoTls).await.expect("connect");
                tokio::spawn(connection);
                let mut n = first;
                while !stopped.load(Ordering::SeqCst) {
                    for (kind, statements) in WORKS {
                        if work(&client, &statements(n)).await.is_err() {
                            return;
                        }
                        known.lock().expect("the lock of the record").insert(kind, n);
                    }
                    n += 1;
                }
            });
        });
        Self { stop, done, worker: Some(worker) }
    }

    /// Ends it; the newest number of each kind that was acknowledged.
    pub fn finish(mut self) -> BTreeMap<&'static str, i32> {
        self.end();
        self.done.lock().expect("the lock of the record").clone()
    }

    /// What was acknowledged so far.
    pub fn so_far(&self) -> BTreeMap<&'static str, i32> {
        self.done.lock().expect("the lock of the record").clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(worker) = self.worker.take() {
            worker.join().expect("the mixed load ended");
        }
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

async fn work(client: &Client, statements: &[String]) -> Result<(), tokio_postgres::Error> {
    let (alone, together): (Vec<_>, Vec<_>) =
        statements.iter().partition(|text| text.starts_with(';'));
    if !together.is_empty() {
        client
            .batch_execute(&format!(
                "begin; {}; commit",
                together.iter().map(|s| s.as_str()).collect::<Vec<_>>().join("; ")
            ))
            .await?;
    }
    for statement in alone {
        client.batch_execute(&statement[1..]).await?;
    }
    Ok(())
}

/// What must hold on every branch at any moment, as SQL that gives true.
const INVARIANTS: [(&str, &str); 6] = [
    (
        "each bulk load is whole",
        "select coalesce(bool_and(c = 500), true) from (select count(*) c from pile group by \
         batch) x",
    ),
    (
        "one generation after a truncation",
        "select count(*) in (0, 500) and count(distinct generation) <= 1 from swap",
    ),
    (
        "the tables that are named are there",
        "select coalesce(bool_and(to_regclass('made_' || generation) is not null), true) and \
         (select count(*) from pg_class where relname ~ '^made_[0-9]+$') = (select count(*) from \
         made) from made",
    ),
    (
        "large objects are what was written",
        "select coalesce(bool_and(md5(lo_get(id)) = sum), true) from documents",
    ),
    (
        "a rewritten table has its rows",
        "select count(*) = 400 and bool_and(length(t) = 640) from wide",
    ),
    ("an unlogged table can be read", "select count(*) >= 0 from scratch"),
];

/// Checks a branch after a crash or a fork: what must hold, and, of the work that was acknowledged
/// by then, that it is there.
pub fn verify(
    server: &Server,
    branch: &str,
    acknowledged: &BTreeMap<&'static str, i32>,
    first: i32,
) {
    let prepared = server
        .sql(branch, "select gid from pg_prepared_xacts")
        .expect("list prepared transactions");
    for gid in prepared.lines() {
        server.sql(branch, &format!("commit prepared '{gid}'")).expect("commit what was prepared");
    }
    for (what, sql) in INVARIANTS {
        let holds =
            server.sql(branch, sql).unwrap_or_else(|error| panic!("{branch}: {what}: {error}"));
        assert_eq!(holds, "t", "{branch}: {what}");
    }
    let newest = |kind: &str, sql: &str| {
        let Some(n) = acknowledged.get(kind).filter(|n| **n >= first) else { return };
        let found = server.sql(branch, sql).expect("look for acknowledged work");
        assert!(
            found.parse::<i32>().is_ok_and(|found| found >= *n),
            "{branch} lost {kind} {n}: {found:?} is the newest"
        );
    };
    newest("load", "select max(batch) from pile");
    newest("swap", "select max(generation) from swap");
    newest("make", "select max(generation) from made");
    newest("pair", "select max(n) from pairs");
    if let Some(n) = acknowledged.get("pair") {
        let gaps = format!(
            "select count(*) = {} from pairs where n between {first} and {n}",
            n - first + 1
        );
        assert_eq!(
            server.sql(branch, &gaps).expect("count pairs"),
            "t",
            "{branch} lost a prepared transaction"
        );
    }
}
