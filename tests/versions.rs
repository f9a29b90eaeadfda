//! The server's main job on one version of Postgres: first start, branch, reset, crash, sleep,
//! past, import.
//!
//! `COPPICE_TEST_POSTGRES_BIN` names the directory of that version's programs; without it, it is
//! the newest of this machine. `tests/scripts/versions.sh` runs it on all versions.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{ComputeState, CreateBranch, CreateImport, ImportState, Moment, UpdateSettings};
use coppice::commits::{self, Acknowledged, Clients};
use coppice::{Server, Source, check, eventually, postgres, postgres_program, processes, tpcb};
use jiff::Timestamp;
use std::process::Command;
use std::time::Duration;

fn create(server: &Server, name: &str, parent: &str, at: Option<Moment>) {
    let request =
        CreateBranch { name: name.into(), parent: Some(parent.into()), at, history: None };
    server.client().create(&request).unwrap_or_else(|error| panic!("create {name}: {error}"));
}

/// Runs SQL that must work.
#[track_caller]
fn sql(server: &Server, branch: &str, sql: &str) -> String {
    server.sql(branch, sql).unwrap_or_else(|error| panic!("{branch}: {sql}: {error}"))
}

fn first_start(server: &Server) {
    let major: u32 = sql(server, "main", "show server_version_num").parse().unwrap();
    assert_eq!(major / 10_000, postgres().major);
    assert_eq!(server.client().status().unwrap().postgres_version, postgres().version);
    assert_eq!(sql(server, "main", "show data_checksums"), "on");
    assert_eq!(sql(server, "main", "select current_database(), current_user"), "app|postgres");
}

fn branch_and_reset(server: &Server) {
    sql(
        server,
        "main",
        "create table t as select generate_series(1, 1000) as a; create index on t (a)",
    );
    create(server, "child", "main", None);
    create(server, "grandchild", "child", None);
    sql(server, "child", "delete from t where a > 10; alter table t add b text default 'x'");
    sql(server, "child", "vacuum full t");
    sql(server, "grandchild", "drop table t");
    assert_eq!(sql(server, "main", "select count(*), sum(a) from t"), "1000|500500");
    assert_eq!(sql(server, "child", "select count(*), max(b) from t"), "10|x");
    sql(server, "main", "insert into t values (0)");
    for branch in ["child", "grandchild"] {
        server.client().reset(branch, &Default::default()).unwrap();
        assert_eq!(sql(server, branch, "select count(*) from t"), "1001");
    }
}

/// Kills the server under load.
fn crash(server: &mut Server) -> Acknowledged {
    tpcb::initialize(server, "main", 1);
    commits::initialize(server, "main");
    let branches = ["main", "loaded", "loaded/too"];
    create(server, "loaded", "main", None);
    create(server, "loaded/too", "loaded", None);
    let load = branches.map(|branch| tpcb::Load::start(server, branch, 2, 600));
    let clients = Clients::start(server, &branches, 2);
    branches.iter().for_each(|branch| clients.wait_for(branch, 50));
    let mut inherited = clients.so_far();
    create(server, "late", "loaded", None);
    let inherited = inherited.remove("loaded").unwrap();
    branches.iter().for_each(|branch| clients.wait_for(branch, 20));
    let running = processes::below(&server.data().join("mount"));
    server.kill();
    let mut acknowledged = clients.finish();
    acknowledged.insert("late".to_owned(), inherited);
    drop(load);
    server.restart();
    let left: Vec<_> = running.iter().filter(|process| process.is_alive()).collect();
    assert!(left.is_empty(), "processes of the killed server are left: {left:?}");
    verify(server, &acknowledged);
    acknowledged
}

/// Everything that was acknowledged is there, and each row and index entry is sound.
fn verify(server: &Server, acknowledged: &Acknowledged) {
    for (branch, numbers) in acknowledged {
        commits::verify(server, branch, numbers);
        tpcb::verify(server, branch);
    }
}

fn suspend_and_wake(server: &Server, acknowledged: &Acknowledged) {
    let mount = server.data().join("mount");
    for branch in server.client().list().unwrap() {
        let asleep = server.client().suspend(&branch.name).unwrap();
        assert_eq!(
            (asleep.state, asleep.failure),
            (ComputeState::Suspended, None),
            "{}",
            branch.name
        );
    }
    assert_eq!(processes::below(&mount), []);
    verify(server, acknowledged);
    assert_eq!(sql(server, "main", "select count(*) from t"), "1001");
}

/// Goes back to a time and to a place in the write-ahead log.
fn past(server: &Server) {
    let pause = || std::thread::sleep(Duration::from_millis(300));
    sql(server, "main", "create table past (n int); insert into past values (1)");
    pause();
    let time = Moment::Time(Timestamp::now());
    pause();
    sql(server, "main", "insert into past values (2)");
    let lsn = Moment::Lsn(sql(server, "main", "select pg_current_wal_lsn()"));
    sql(server, "main", "insert into past values (3)");
    // The log's last checkpoint is then one that says there is nothing to recover.
    server.client().suspend("main").unwrap();
    create(server, "at-time", "main", Some(time));
    create(server, "at-lsn", "main", Some(lsn));
    for (branch, rows) in [("main", "1,2,3"), ("at-time", "1"), ("at-lsn", "1,2")] {
        assert_eq!(
            sql(server, branch, "select string_agg(n::text, ',' order by n) from past"),
            rows
        );
        tpcb::verify(server, branch);
    }
}

fn import(server: &Server) {
    let source = Source::start();
    let far = source.make_directory("far");
    source.sql(&format!("create tablespace far location '{}'", far.display())).unwrap();
    source
        .sql("create table near as select generate_series(1, 1000) as a; create index on near (a)")
        .unwrap();
    source
        .sql("create table distant tablespace far as select generate_series(1, 5000) as a")
        .unwrap();
    source.sql("create extension amcheck").unwrap();
    let client = server.client();
    let request =
        CreateImport { name: "prod".into(), source: source.url(), mode: Default::default() };
    let id = client.start_import(&request).unwrap().id;
    eventually("the import ends", || client.import(&id).unwrap().state != ImportState::Running);
    let ended = client.import(&id).unwrap();
    assert_eq!((ended.state, ended.error), (ImportState::Done, None));
    create(server, "preview", "prod", None);
    sql(server, "preview", "drop table near; delete from distant where a > 10");
    let counts = "select (select count(*) from near), (select count(*) from distant)";
    assert_eq!(sql(server, "prod", counts), "1000|5000");
    assert_eq!(source.sql(counts).unwrap(), "1000|5000");
    client.reset("preview", &Default::default()).unwrap();
    for branch in ["preview", "prod"] {
        assert_eq!(sql(server, branch, counts), "1000|5000");
        sql(server, branch, "select bt_index_parent_check('near_a_idx', true)");
    }
}

/// A branch whose logins fail still lets the server in.
fn door(server: &Server) {
    let set = |value: &str| {
        let set = [("work_mem".to_owned(), value.to_owned())].into();
        server.client().set("child", &UpdateSettings { set, unset: Vec::new() })
    };
    if postgres().major >= 17 {
        let refuse = "create function refuse() returns event_trigger language plpgsql as $$ begin \
             if current_user = 'coppice' then raise 'nobody comes in'; end if; end $$; \
             create event trigger refuse on login execute function refuse(); \
             alter event trigger refuse enable always";
        for database in ["postgres", "template1"] {
            let url = server.client().connection("child", Some(database), None).unwrap().url;
            let mut psql = Command::new(postgres_program("psql"));
            let made = psql.args(["-XAtqc", refuse, &url]).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        }
    }
    assert_eq!(sql(server, "child", "select 1"), "1");
    assert_eq!(set("5MB").unwrap().at_next_start, Vec::<String>::new());
    assert_eq!(sql(server, "child", "show work_mem"), "5MB");
}

#[test]
fn the_main_job_is_done_on_this_version() {
    println!("Postgres {} of {}", postgres().version, postgres().bin.display());
    let began = std::time::Instant::now();
    let step = |name: &str| {
        println!("step {name}: ok, {:.1} s after the start", began.elapsed().as_secs_f64())
    };
    let mut server = Server::start();
    first_start(&server);
    step("first start");
    branch_and_reset(&server);
    step("branch and reset");
    door(&server);
    step("door");
    let acknowledged = crash(&mut server);
    step("crash");
    suspend_and_wake(&server, &acknowledged);
    step("suspend and wake");
    past(&server);
    step("past");
    let imports = postgres().program("pg_basebackup").is_file();
    if imports {
        import(&server);
        step("import");
    } else {
        let source = "postgresql://postgres@127.0.0.1/postgres".into();
        let request = CreateImport { name: "prod".into(), source, mode: Default::default() };
        let error = server.client().start_import(&request).unwrap_err();
        assert_eq!(error.code, "no_postgres", "{error}");
        println!("SKIPPED import: this Postgres has no pg_basebackup");
    }
    assert!(server.stop().success());
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 0, "{text}");
    step("check");
    server.restart();
    verify(&server, &acknowledged);
    if imports {
        assert_eq!(sql(&server, "prod", "select count(*) from distant"), "5000");
    }
    assert!(server.stop().success());
    step("stop and start");
}
