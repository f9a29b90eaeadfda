//! What wakes a branch, what puts it to sleep, and that it shares nothing but the past with its
//! relatives.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{ComputeState, CreateBranch};
use coppice::{LIMIT, Server, processes};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;

fn create(server: &Server, name: &str, parent: &str) {
    let request =
        CreateBranch { name: name.into(), parent: Some(parent.into()), ..Default::default() };
    server.client().create(&request).unwrap_or_else(|error| panic!("create {name}: {error}"));
}

/// Runs SQL that must work.
#[track_caller]
fn sql(server: &Server, branch: &str, sql: &str) -> String {
    server.sql(branch, sql).unwrap_or_else(|error| panic!("{branch}: {sql}: {error}"))
}

/// Lane files that belong to timelines, with their lengths. Spare ones belong to nobody.
fn lane_files(server: &Server) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(server.data().join("store/lanes")).unwrap().map(Result::unwrap);
    let files = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()));
    files.filter(|(name, _)| !name.starts_with("spare.")).collect()
}

/// How many Postgres servers run.
fn running(server: &Server) -> usize {
    processes::postmasters(server, processes::below(&server.data().join("mount"))).len()
}

fn wait_for(server: &Server, branch: &str, state: ComputeState) {
    let deadline = Instant::now() + LIMIT;
    while server.client().get(branch).unwrap().state != state {
        assert!(Instant::now() < deadline, "{branch} is not {state:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Opens `count` connections at the same moment, and asks each for a row.
fn connect_at_once(server: &Server, branch: &str, count: usize) -> Vec<Result<i64, String>> {
    let url = server.url(branch);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let all_open = Arc::new(tokio::sync::Barrier::new(count));
        let ask = async |url: String, all_open: Arc<tokio::sync::Barrier>| {
            let connected = tokio_postgres::connect(&url, NoTls).await;
            let answer = match &connected {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{error:?}")),
            };
            let row = match connected {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    let row = client.query_one("select a from t", &[]).await;
                    // Every connection is open until all have had their row.
                    all_open.wait().await;
                    row.map(|row| row.get::<_, i64>(0)).map_err(|error| format!("{error:?}"))
                }
                Err(_) => {
                    all_open.wait().await;
                    Ok(0)
                }
            };
            answer.and(row)
        };
        let tasks: Vec<_> =
            (0..count).map(|_| tokio::spawn(ask(url.clone(), Arc::clone(&all_open)))).collect();
        let mut rows = Vec::new();
        for task in tasks {
            rows.push(task.await.unwrap());
        }
        rows
    })
}

#[test]
fn two_hundred_connections_wake_one_postgres() {
    const CONNECTIONS: usize = 200;
    let server = Server::start();
    sql(&server, "main", "create table t as select 17::bigint as a");
    // Postgres's own default is a hundred.
    sql(&server, "main", "alter system set max_connections = 250");
    server.client().suspend("main").unwrap();
    create(&server, "asleep", "main");
    assert_eq!(running(&server), 0);
    let timeline = server.client().get("asleep").unwrap().timeline;
    let ready = format!("compute ready timeline={timeline} ");
    let began = Instant::now();
    let rows = connect_at_once(&server, "asleep", CONNECTIONS);
    println!(
        "{CONNECTIONS} connections to a sleeping branch had their row after {:?}",
        began.elapsed()
    );
    let failed: Vec<_> = rows.iter().filter(|row| **row != Ok(17)).collect();
    assert!(failed.is_empty(), "{} of {CONNECTIONS} got no row: {:?}", failed.len(), failed[0]);
    assert_eq!(running(&server), 1);
    assert_eq!(server.log().lines().filter(|line| line.contains(&ready)).count(), 1);
}

#[test]
fn an_idle_branch_sleeps_and_keeps_its_data() {
    let server = Server::start_with(Arc::default(), &["--suspend-after", "1"]);
    sql(&server, "main", "create table t as select 1 as a");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = server.url("main");
    let (client, connection) = runtime.block_on(tokio_postgres::connect(&url, NoTls)).unwrap();
    runtime.spawn(connection);
    std::thread::sleep(Duration::from_secs(2));
    // A client that says nothing still keeps its branch awake, and its session with it.
    assert_eq!(server.client().get("main").unwrap().state, ComputeState::Running);
    runtime.block_on(client.execute("update t set a = 2", &[])).unwrap();
    drop(client);
    wait_for(&server, "main", ComputeState::Suspended);
    assert_eq!(running(&server), 0);
    assert_eq!(sql(&server, "main", "select a from t"), "2");
    wait_for(&server, "main", ComputeState::Suspended);
    // A branch of a sleeping parent wakes alone.
    create(&server, "child", "main");
    assert_eq!(sql(&server, "child", "select a from t"), "2");
    assert_eq!(server.client().get("main").unwrap().state, ComputeState::Suspended);
}

#[test]
fn a_branch_that_nobody_uses_costs_nothing() {
    let mut server = Server::start();
    sql(&server, "main", "create table t as select generate_series(1, 100000) as a");
    server.client().suspend("main").unwrap();
    // The first one waits until all that its parent wrote is on the disk.
    create(&server, "unused/0", "main");
    let before = lane_files(&server);
    assert!(!before.is_empty());
    for nth in 1..50 {
        create(&server, &format!("unused/{nth}"), if nth % 2 == 0 { "main" } else { "unused/0" });
    }
    assert_eq!(lane_files(&server), before);
    assert_eq!(processes::below(&server.data().join("mount")), []);
    // Nor does it after a restart, which opens nothing before somebody asks.
    assert!(server.stop().success());
    let stopped = lane_files(&server);
    server.restart();
    assert_eq!(lane_files(&server), stopped);
    assert_eq!(stopped.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!(processes::below(&server.data().join("mount")), []);
    assert_eq!(sql(&server, "unused/49", "select count(*) from t"), "100000");
    assert_ne!(lane_files(&server), stopped, "a branch that starts does write");
    assert_eq!(server.client().get("unused/48").unwrap().own_bytes, 0);
}

#[test]
fn relatives_share_the_past_only() {
    let mut server = Server::start();
    sql(&server, "main", "create table t as select generate_series(1, 1000) as a");
    create(&server, "child", "main");
    sql(&server, "child", "insert into t values (-1)");
    create(&server, "grandchild", "child");
    sql(&server, "grandchild", "insert into t values (-2)");
    create(&server, "great-grandchild", "grandchild");
    // Everybody goes on by himself, the oldest last.
    sql(&server, "great-grandchild", "delete from t where a = -1");
    sql(&server, "grandchild", "insert into t values (-3)");
    sql(&server, "child", "update t set a = 0 where a > 0");
    sql(&server, "main", "truncate t");
    let list = "select count(*), coalesce(min(a), 0), coalesce(max(a), 0) from t";
    let expect = |server: &Server, branches: &[(&str, &str)]| {
        for (branch, rows) in branches {
            assert_eq!(sql(server, branch, list), *rows, "{branch}");
        }
    };
    let all = [
        ("main", "0|0|0"),
        ("child", "1001|-1|0"),
        ("grandchild", "1003|-3|1000"),
        ("great-grandchild", "1001|-2|1000"),
    ];
    expect(&server, &all);

    // A parent that is reset or deleted leaves its children what they had.
    server.client().reset("child", &Default::default()).unwrap();
    expect(&server, &[("child", "0|0|0"), all[2], all[3]]);
    server.client().delete("child").unwrap();
    server.client().delete("grandchild").unwrap();
    expect(&server, &[all[0], all[3]]);
    assert!(server.client().get("great-grandchild").unwrap().parent.is_none());
    server.kill();
    server.restart();
    expect(&server, &[all[0], all[3]]);
    assert_eq!(server.client().list().unwrap().len(), 2);
}

/// What rewrites, shortens, and removes files, all of it after the fork on one side.
const REWRITE: &str = "
    delete from shortened where a > 10;
    vacuum shortened;
    vacuum full rewritten;
    update rewritten set b = repeat('z', 100);
    drop table dropped;
    select lo_unlink(1001);
    select lo_put(1002, 5000, 'other');
    create table added as select * from rewritten;
    reindex table shortened;
";

/// One line that tells everything about the tables of [`REWRITE`].
const STATE: &str = "select (select count(*) || '/' || sum(a) || '/' || \
    pg_relation_size('shortened') from shortened), (select md5(string_agg(a || b, ',' order by a)) \
    from rewritten), to_regclass('dropped'), to_regclass('added'), (select string_agg(loid || \
    md5(string_agg), ',' order by loid) from (select loid, string_agg(data, '' order by pageno) \
    from pg_largeobject group by loid) as objects)";

#[test]
fn files_shortened_rewritten_and_dropped_on_one_side_stay_on_the_other() {
    let server = Server::start();
    let prepare = "
        create extension amcheck;
        create table shortened as select generate_series(1, 50000) as a;
        create index on shortened (a);
        create table rewritten as select a, repeat('x', 100) as b from generate_series(1, 5000) as \
        a;
        delete from rewritten where a % 2 = 0;
        create table dropped as select generate_series(1, 50000) as a;
        select lo_from_bytea(1001, convert_to(repeat('one', 10000), 'UTF8'));
        select lo_from_bytea(1002, convert_to(repeat('two', 10000), 'UTF8'));";
    sql(&server, "main", prepare);
    create(&server, "child", "main");
    create(&server, "witness", "main");
    let before = sql(&server, "main", STATE);
    let rewrite = |branch: &str| {
        let statements =
            REWRITE.split(';').map(str::trim).filter(|statement| !statement.is_empty());
        statements.for_each(|statement| drop(sql(&server, branch, statement)));
        sql(&server, branch, STATE)
    };
    let after = rewrite("child");
    assert_ne!(after, before);
    assert_eq!(sql(&server, "main", STATE), before, "the child changed its parent");
    assert_eq!(sql(&server, "witness", STATE), before, "a child changed its sibling");
    create(&server, "late", "child");
    assert_eq!(rewrite("main"), after, "the same on the parent");
    // These two read from parents that have rewritten everything.
    assert_eq!(sql(&server, "witness", STATE), before, "the parent changed its child");
    assert_eq!(sql(&server, "late", STATE), after);
    sql(&server, "late", "insert into shortened select generate_series(1, 50000)");
    assert_eq!(sql(&server, "late", "select count(*) from shortened where a > 10"), "49990");
    for branch in ["main", "child", "witness", "late"] {
        let check = "select bt_index_parent_check(indexrelid, true) from pg_index join pg_class on \
                     oid = indexrelid where relam = (select oid from pg_am where amname = 'btree') \
                     and relpersistence = 'p'";
        sql(&server, branch, check);
        coppice::tpcb::verify_checksums(&server, branch);
    }
}

#[test]
fn prepared_transactions_and_unlogged_tables_go_through_forks_and_crashes() {
    let mut server = Server::start();
    sql(&server, "main", "alter system set max_prepared_transactions = 5");
    server.client().suspend("main").unwrap();
    sql(&server, "main", "create table t (a int)");
    sql(&server, "main", "create unlogged table u as select generate_series(1, 1000) as a");
    let prepare = "begin; insert into t values (1); prepare transaction 'first'";
    sql(&server, "main", prepare);
    create(&server, "crash-image", "main");
    // What was not logged is gone after a crash, says Postgres, and a fork of a running parent is
    // the image of one.
    assert_eq!(sql(&server, "crash-image", "select count(*) from u"), "0");
    sql(&server, "crash-image", "insert into u values (7)");
    assert_eq!(sql(&server, "crash-image", "select a from u"), "7");
    assert_eq!(sql(&server, "main", "select count(*) from u"), "1000", "the parent did not crash");
    server.client().suspend("main").unwrap();
    create(&server, "clean-image", "main");
    assert_eq!(sql(&server, "clean-image", "select count(*) from u"), "1000", "nor did this one");
    server.kill();
    server.restart();
    // Each branch decides for itself, and the other's decision is not its own.
    for (branch, end, rows) in
        [("main", "commit", "1"), ("crash-image", "rollback", "0"), ("clean-image", "commit", "1")]
    {
        assert_eq!(sql(&server, branch, "select gid from pg_prepared_xacts"), "first", "{branch}");
        assert_eq!(sql(&server, branch, "select count(*) from t"), "0", "{branch}");
        sql(&server, branch, &format!("{end} prepared 'first'"));
        assert_eq!(sql(&server, branch, "select count(*) from t"), rows, "{branch}");
    }
    assert_eq!(
        sql(&server, "crash-image", "select count(*) from u"),
        "0",
        "it crashed with the server"
    );
}

/// A directory that Postgres may write to, so that nothing but the refusal is in the way of a
/// tablespace there.
fn directory_outside(server: &Server) -> std::path::PathBuf {
    let outside = server.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let timeline = server.client().wake("main").unwrap().timeline;
    let mut chown = std::process::Command::new("chown");
    chown.arg("--reference").arg(server.data().join("mount").join(timeline)).arg(&outside);
    assert!(chown.status().unwrap().success());
    outside
}

#[test]
fn a_tablespace_is_inside_the_branch_and_private_or_refused() {
    let mut server = Server::start();
    let outside = directory_outside(&server);
    sql(&server, "main", "copy (select 1) to program 'mkdir -m 700 spaces'");
    // A place in the data directory would be that of the parent when a child replays the log.
    let inside =
        std::path::PathBuf::from(sql(&server, "main", "show data_directory")).join("spaces");
    for place in [&outside, &inside] {
        let create = format!("create tablespace away location '{}'", place.display());
        let error = server.sql("main", &create).unwrap_err();
        assert!(
            error.contains("could not create symbolic link") && error.contains("not permitted"),
            "{error}"
        );
        // The log comes through a pipe.
        coppice::eventually("the refusal is in the log", || {
            let (log, target) = (server.log(), format!("target={} ", place.display()));
            let mut refusals = log
                .lines()
                .filter(|line| line.contains("refused a symbolic link out of the branch"));
            refusals
                .any(|line| line.contains(&target) && line.contains("allow_in_place_tablespaces"))
        });
    }
    assert_eq!(
        sql(&server, "main", "select count(*) from pg_tablespace where spcname = 'away'"),
        "0"
    );

    let own =
        ["-c", "set allow_in_place_tablespaces = on", "-c", "create tablespace own location ''"];
    assert!(server.psql("main", &own).status.success());
    sql(&server, "main", "create table t tablespace own as select generate_series(1, 10000) as a");
    // The child replays the making of the tablespace.
    create(&server, "child", "main");
    sql(&server, "child", "update t set a = a + 1");
    sql(&server, "child", "create table only_here (a int) tablespace own");
    sql(&server, "main", "delete from t where a > 10");
    sql(&server, "main", "vacuum full t");
    for restarted in [false, true] {
        assert_eq!(sql(&server, "main", "select count(*), sum(a) from t"), "10|55", "{restarted}");
        assert_eq!(
            sql(&server, "child", "select count(*), sum(a) from t"),
            "10000|50015000",
            "{restarted}"
        );
        server.kill();
        server.restart();
    }
    sql(&server, "child", "drop table t, only_here");
    sql(&server, "child", "drop tablespace own");
    assert_eq!(sql(&server, "main", "select count(*) from t"), "10");
}

#[test]
fn a_starting_branch_is_watched_without_a_file_of_the_mount() {
    // A server that is killed while it has one open waits for itself, and never ends.
    let server = Server::start();
    let files = format!("/proc/{}/fd", server.pid());
    let mount = server.data().join("mount");
    let stop = Arc::new(AtomicBool::new(false));
    let (watched, watching) = (Arc::clone(&stop), mount.clone());
    let watch = std::thread::spawn(move || {
        let (mut looks, mut found) = (0, Vec::new());
        while !watched.load(Ordering::SeqCst) {
            let open = std::fs::read_dir(&files).unwrap().flatten();
            let open = open.filter_map(|file| std::fs::read_link(file.path()).ok());
            found.extend(
                open.filter(|path| path.starts_with(&watching) && path.ends_with("postmaster.pid")),
            );
            looks += 1;
        }
        (looks, found)
    });
    for _ in 0..10 {
        server.client().suspend("main").unwrap();
        server.client().wake("main").unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let (looks, found) = watch.join().unwrap();
    assert!(looks > 100, "only {looks} looks");
    assert_eq!(found.first(), None);
}

#[test]
fn a_client_of_the_same_machine_wakes_a_branch_through_a_socket() {
    let server = Server::shared();
    create(&server, "near", "main");
    server.client().suspend("near").unwrap();
    let password = server.url("near").split(['@', ':']).nth(2).unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let row = runtime.block_on(async {
        let mut config = tokio_postgres::Config::new();
        config.host_path(server.data().join("proxy")).port(server.proxy.port());
        config.user("postgres").password(&password).dbname("app@near");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client.query_one("select current_database()::text", &[]).await.unwrap().get::<_, String>(0)
    });
    assert_eq!(row, "app");
    assert_eq!(server.client().get("near").unwrap().state, ComputeState::Running);
    server.client().delete("near").unwrap();
}
