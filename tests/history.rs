//! Moments of the past: branches are made at them and taken back to them, to the commit.
//!
//! `COPPICE_TEST_MOMENTS` sets how many moments of a load are tried, 12 if it is not set.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{CreateBranch, Moment, ResetBranch, RestoreBranch, UpdateBranch};
use coppice::commits::{self, Clients, Commit};
use coppice::{Server, eventually, tpcb};
use jiff::Timestamp;
use std::time::Duration;

fn create_at(
    server: &Server,
    name: &str,
    parent: &str,
    at: Moment,
) -> Result<(), api::client::Error> {
    let request = CreateBranch {
        name: name.into(),
        parent: Some(parent.into()),
        at: Some(at),
        history: None,
    };
    server.client().create(&request).map(drop)
}

fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Evenly spread moments between two.
fn spread(from: Timestamp, to: Timestamp, count: usize) -> impl Iterator<Item = Timestamp> {
    let span = to.as_nanosecond() - from.as_nanosecond();
    // Off the seconds at which marks are made.
    let at =
        move |nth: usize| from.as_nanosecond() + span * (2 * nth as i128 + 1) / (2 * count as i128);
    (0..count).map(move |nth| Timestamp::from_nanosecond(at(nth)).unwrap())
}

#[test]
fn a_branch_at_a_moment_has_just_the_commits_of_then() {
    // Logs are sealed and layers merged all the time, and checkpoints remove write-ahead files.
    let server = Server::start_with(Default::default(), &["--log-limit", "4", "--seal-after", "1"]);
    tpcb::initialize(&server, "main", 1);
    commits::initialize(&server, "main");
    for setting in ["max_wal_size = '48MB'", "min_wal_size = '32MB'", "checkpoint_timeout = '30s'"]
    {
        server.sql("main", &format!("alter system set {setting}")).unwrap();
    }
    server.sql("main", "select pg_reload_conf()").unwrap();
    let began = Timestamp::now();
    let load = tpcb::Load::start(&server, "main", 2, 600);
    let mut clients = Clients::start(&server, &["main"], 2);
    sleep(6_000);
    let lsn: String = server.sql("main", "select pg_current_wal_lsn()").unwrap();
    let at_lsn = Timestamp::now();
    sleep(6_000);
    let count = std::env::var("COPPICE_TEST_MOMENTS").map_or(12, |count| count.parse().unwrap());
    let moments: Vec<Timestamp> = spread(began, Timestamp::now(), count).collect();
    let mut seen = Vec::new();
    for (nth, moment) in moments.iter().enumerate() {
        // The first half while the load goes on.
        if nth == count / 2 {
            clients.stop();
        }
        let name = format!("at/{nth}");
        let asked = std::time::Instant::now();
        create_at(&server, &name, "main", Moment::Time(*moment))
            .unwrap_or_else(|e| panic!("{moment}: {e}"));
        let created = asked.elapsed();
        seen.push(commits::verify_moment(&server, &name, &clients.commits(), *moment));
        let woken = asked.elapsed();
        tpcb::verify(&server, &name);
        println!(
            "{name}: created after {created:.1?}, woken {woken:.1?}, verified {:.1?}",
            asked.elapsed()
        );
        server.client().delete(&name).unwrap();
    }
    drop(load);
    let commits = clients.commits();
    println!("{count} moments have {seen:?} of {} commits", commits.len());
    assert!(seen.is_sorted() && seen[0] < seen[count - 1], "{seen:?}");

    // What was acknowledged before the LSN was read, and nothing that was asked for afterwards.
    create_at(&server, "lsn", "main", Moment::Lsn(lsn)).unwrap();
    let there = commits::numbers(&server, "lsn");
    let before =
        |commit: &&Commit| commit.acknowledged < at_lsn - jiff::SignedDuration::from_secs(1);
    assert!(commits.iter().filter(before).all(|commit| there.contains(&commit.n)));
    assert!(
        commits
            .iter()
            .filter(|commit| commit.sent > at_lsn)
            .all(|commit| !there.contains(&commit.n))
    );
    tpcb::verify(&server, "lsn");
    tpcb::verify_checksums(&server, "lsn");
}

#[test]
fn a_restore_goes_back_and_can_be_undone() {
    let mut server = Server::start();
    let table = |branch: &str| server_rows(&server, branch);
    server.sql("main", "create table t (n int)").unwrap();
    server.sql("main", "insert into t values (1)").unwrap();
    sleep(1_200);
    let one = Timestamp::now();
    sleep(300);
    server.sql("main", "insert into t values (2)").unwrap();
    let client = server.client();
    client.create(&CreateBranch { name: "child".into(), ..Default::default() }).unwrap();
    sleep(300);
    let two = Timestamp::now();
    sleep(300);
    for branch in ["main", "child"] {
        server.sql(branch, "insert into t values (3)").unwrap();
    }
    let url = server.url("main");
    let restored = client
        .restore(
            "main",
            &RestoreBranch { at: Moment::Time(one), keep_as: Some("main/before".into()) },
        )
        .unwrap();
    assert!(restored.default && restored.name == "main");
    assert_eq!((table("main"), table("main/before")), ("1".to_owned(), "1,2,3".to_owned()));
    assert_eq!(server.url("main"), url);

    // Once more, with something in between that is to go.
    server.sql("main", "insert into t values (9)").unwrap();
    client.restore("main", &RestoreBranch { at: Moment::Time(one), keep_as: None }).unwrap();
    assert_eq!(table("main"), "1");
    create_at(&server, "again", "main", Moment::Time(one)).unwrap();
    assert_eq!(table("again"), "1");

    // What was then belongs to the branch that keeps it.
    let error = client
        .restore("main", &RestoreBranch { at: Moment::Time(two), keep_as: None })
        .unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (404, "moment_outside_history"), "{error}");
    create_at(&server, "two", "main/before", Moment::Time(two)).unwrap();
    assert_eq!(table("two"), "1,2");
    client.delete("main").unwrap_err();
    let kept = client.history("main/before").unwrap();
    assert_eq!(kept.ranges.len(), 1, "{kept:?}");

    // A child has a past of its own, and before that its parent's.
    for (at, rows) in [(two, "1,2"), (one, "1")] {
        client.restore("child", &RestoreBranch { at: Moment::Time(at), keep_as: None }).unwrap();
        assert_eq!(table("child"), rows);
    }
    client.reset("child", &ResetBranch { at: None }).unwrap();
    assert_eq!(table("child"), "1");
    server.sql("main", "insert into t values (4)").unwrap();
    let four = Timestamp::now();
    sleep(50);
    server.sql("main", "insert into t values (5)").unwrap();
    client.reset("child", &ResetBranch { at: Some(Moment::Time(four)) }).unwrap();
    assert_eq!(table("child"), "1,4");

    // Marks outlive the server, however it ends.
    server.kill();
    server.restart();
    create_at(&server, "late", "main", Moment::Time(four)).unwrap();
    assert_eq!(server_rows(&server, "late"), "1,4");
    create_at(&server, "early", "main/before", Moment::Time(one)).unwrap();
    assert_eq!(server_rows(&server, "early"), "1");
}

/// What `psql` prints through the proxy, with a moment in its startup options.
fn sql_at(server: &Server, branch: &str, at: &str, sql: &str) -> Result<String, String> {
    let url = server.url(branch);
    let mut psql = std::process::Command::new(coppice::postgres_program("psql"));
    let output = psql
        .env("PGOPTIONS", format!("at={at}"))
        .args(["-XAtq", "-c", sql, &url])
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn a_session_on_a_moment_reads_it_and_leaves_nothing() {
    let mut server = Server::start_with(Default::default(), &["--suspend-after", "1"]);
    server.sql("main", "create table t (n int); insert into t values (1)").unwrap();
    let one = Timestamp::now();
    sleep(50);
    server.sql("main", "insert into t values (2)").unwrap();
    let lsn = server.sql("main", "select pg_current_wal_lsn()").unwrap();
    server.sql("main", "insert into t values (3)").unwrap();
    let rows = "select string_agg(n::text, ',' order by n) from t";
    assert_eq!(sql_at(&server, "main", &one.to_string(), rows).unwrap(), "1");
    assert_eq!(sql_at(&server, "main", &lsn, rows).unwrap(), "1,2");
    assert_eq!(server_rows(&server, "main"), "1,2,3");
    let error = sql_at(&server, "main", &lsn, "insert into t values (4)").unwrap_err();
    assert!(error.contains("cannot execute INSERT in a read-only transaction"), "{error}");
    let error = sql_at(&server, "main", "2001-01-01T00:00:00Z", rows).unwrap_err();
    assert!(
        error.contains("is outside of the history of branch \"main\", which has: 20"),
        "{error}"
    );
    let error = sql_at(&server, "main", "yesterday", rows).unwrap_err();
    assert!(error.contains("\"yesterday\" is no moment"), "{error}");

    // Nobody sees the two timelines, and they go by themselves.
    assert_eq!(server.client().list().unwrap().len(), 1);
    let lanes = || {
        let files = std::fs::read_dir(server.data().join("store/lanes")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| !name.starts_with("00000001.") && !name.starts_with("spare."))
            .collect::<Vec<_>>()
    };
    assert!(!lanes().is_empty());
    eventually("the visited moments are gone", || lanes().is_empty());
    // With a server that is killed they go at its next start.
    sql_at(&server, "main", &lsn, rows).unwrap();
    assert!(!lanes().is_empty());
    server.kill();
    server.restart();
    assert_eq!(server_rows(&server, "main"), "1,2,3");
    let files = std::fs::read_dir(server.data().join("store/lanes")).unwrap();
    let left = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> =
        left.filter(|name| !name.starts_with("00000001.") && !name.starts_with("spare.")).collect();
    assert_eq!(left, [] as [&str; 0]);
}

fn server_rows(server: &Server, branch: &str) -> String {
    server.sql(branch, "select string_agg(n::text, ',' order by n) from t").unwrap()
}

#[test]
fn moments_outside_the_history_are_refused_with_what_there_is() {
    let server = Server::start_with(Default::default(), &["--history", "4", "--seal-after", "1"]);
    let before = Timestamp::now();
    sleep(50);
    server.sql("main", "create table t as select 1 as n").unwrap();
    let client = server.client();
    let refused = |at: Moment| {
        let error = create_at(&server, "never", "main", at).unwrap_err();
        assert!(!client.list().unwrap().iter().any(|branch| branch.name == "never"));
        (error.status, error.code, error.detail)
    };
    let outside = [
        Moment::Time("2001-01-01T00:00:00Z".parse().unwrap()),
        Moment::Time("2099-01-01T00:00:00Z".parse().unwrap()),
        Moment::Lsn("FF/0".into()),
        Moment::Lsn("0/1".into()),
        Moment::Position(1),
        Moment::Position(u64::MAX),
    ];
    for at in outside {
        let (status, code, detail) = refused(at.clone());
        assert_eq!((status, code.as_str()), (404, "moment_outside_history"), "{at:?}: {detail}");
        assert!(detail.contains("which has: 20") && detail.contains("LSN 0/"), "{at:?}: {detail}");
    }
    let (status, code, _) = refused(Moment::Lsn("yesterday".into()));
    assert_eq!((status, code.as_str()), (400, "invalid_moment"));

    // The window moves on.
    let early = Timestamp::now();
    eventually("the early moment is let go of", || {
        server.sql("main", "insert into t values (2)").unwrap();
        sleep(500);
        match create_at(&server, "early", "main", Moment::Time(early)) {
            Ok(()) => client.delete("early").is_err(),
            Err(error) => error.code == "moment_outside_history",
        }
    });
    assert!(Timestamp::now().duration_since(before).as_secs() >= 4);
    let history = client.history("main").unwrap();
    assert!(history.window_s == 4 && history.ranges[0].from > early, "{history:?}");
}

fn keep(server: &Server, branch: &str, history: &str) -> Result<String, api::client::Error> {
    let change = UpdateBranch { history: Some(history.into()), ..UpdateBranch::default() };
    server.client().update(branch, &change).map(|branch| branch.history.unwrap())
}

fn create_keeping(
    server: &Server,
    name: &str,
    parent: &str,
    history: Option<&str>,
) -> Result<String, api::client::Error> {
    let (parent, history) = (Some(parent.to_owned()), history.map(str::to_owned));
    let request = CreateBranch { name: name.into(), parent, at: None, history };
    server.client().create(&request).map(|branch| branch.history.unwrap())
}

#[test]
fn each_branch_keeps_as_much_of_its_past_as_it_says() {
    let mut server = Server::start();
    let client = server.client();
    let kept = |name: &str| client.get(name).unwrap().history.unwrap();
    assert_eq!(kept("main"), "24h");
    assert_eq!(create_keeping(&server, "pr", "main", None).unwrap(), "1h");
    assert_eq!(create_keeping(&server, "long", "main", Some("7d")).unwrap(), "7d");
    assert_eq!(create_keeping(&server, "long/child", "long", None).unwrap(), "1h", "of its own");
    assert_eq!(client.history("long").unwrap().window_s, 7 * 86_400);
    assert_eq!(client.history("long/child").unwrap().window_s, 3_600);
    for bad in ["soon", "", "1", "-1h", "1h30m", "11y", "4000d"] {
        let create = create_keeping(&server, "bad", "main", Some(bad)).unwrap_err();
        let ensure = CreateBranch { history: Some(bad.into()), ..CreateBranch::default() };
        let ensure = client.ensure("bad", &ensure).unwrap_err();
        for error in [create, ensure, keep(&server, "pr", bad).unwrap_err()] {
            assert_eq!((error.status, error.code.as_str()), (400, "bad_history"), "{error}");
            assert!(error.detail.contains(&format!("\"{bad}\" is ")), "{error}");
        }
    }
    assert!(client.list().unwrap().iter().all(|branch| branch.name != "bad"));
    assert_eq!(kept("pr"), "1h");
    let ensure = CreateBranch { history: Some("30m".into()), ..CreateBranch::default() };
    let (there, _) = client.ensure("pr", &ensure).unwrap();
    assert_eq!(there.history.unwrap(), "1h", "one that exists stays as it is");
    assert_eq!(client.ensure("made", &ensure).unwrap().0.history.unwrap(), "30m");

    // It stays the branch's own, whatever is done to its data, its name and the server.
    client.reset("long", &ResetBranch { at: None }).unwrap();
    assert_eq!(kept("long"), "7d");
    server.sql("long", "create table t as select 1 as n").unwrap();
    let at = Moment::Time(Timestamp::now());
    client.restore("long", &RestoreBranch { at, keep_as: Some("before".into()) }).unwrap();
    assert_eq!((kept("long"), kept("before")), ("7d".to_owned(), "7d".to_owned()));
    let rename = UpdateBranch { name: Some("longer".into()), ..UpdateBranch::default() };
    client.update("long", &rename).unwrap();
    assert_eq!(keep(&server, "longer", "4w").unwrap(), "4w");
    server.kill();
    server.restart();
    let client = server.client();
    let kept = |name: &str| client.get(name).unwrap().history.unwrap();
    let all = ["main", "pr", "longer", "before", "long/child"].map(kept);
    assert_eq!(all, ["24h", "1h", "4w", "7d", "1h"]);
}

#[test]
fn a_branch_that_keeps_nothing_frees_its_past_and_its_parent_keeps_its_own() {
    let server = Server::start_with(Default::default(), &["--seal-after", "1"]);
    let client = server.client();
    create_keeping(&server, "pr", "main", None).unwrap();
    let early = || Moment::Time(Timestamp::now());
    let mut moments = Vec::new();
    for branch in ["main", "pr"] {
        for setting in ["max_wal_size = '48MB'", "min_wal_size = '32MB'"] {
            server.sql(branch, &format!("alter system set {setting}")).unwrap();
        }
        server.sql(branch, "select pg_reload_conf()").unwrap();
        server.sql(branch, "create table t (n int, c text)").unwrap();
        for n in 1..=6 {
            let fill =
                format!("select {n}, md5(i::text || random()) from generate_series(1, 60000) i");
            server.sql(branch, &format!("truncate t; insert into t {fill}; checkpoint")).unwrap();
            if n == 2 {
                moments.push(early());
            }
            sleep(1_100);
        }
    }
    let own = |name: &str| client.get(name).unwrap().own_bytes;
    sleep(4_000);
    let before = (own("main"), own("pr"));
    let oldest = client.history("main").unwrap().ranges[0].from;

    assert_eq!(keep(&server, "pr", "0").unwrap(), "0");
    eventually("the past of the branch is freed", || own("pr") < before.1 / 2);
    let after = (own("main"), own("pr"));
    println!("own bytes: {before:?}, then {after:?}");
    let history = client.history("pr").unwrap();
    assert_eq!((history.window_s, history.ranges.len()), (0, 0), "{history:?}");
    let error = create_at(&server, "never", "pr", moments[1].clone()).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (409, "no_history"), "{error}");
    assert!(error.detail.contains("branchctl history pr --keep"), "{error}");
    assert_eq!(server.sql("pr", "select min(n) || ' ' || count(*) from t").unwrap(), "6 60000");

    // The parent has all of it still.
    assert!(after.0 > before.0 / 2, "{before:?}, then {after:?}");
    assert_eq!(client.history("main").unwrap().ranges[0].from, oldest);
    create_at(&server, "then", "main", moments[0].clone()).unwrap();
    assert_eq!(server.sql("then", "select min(n) || ' ' || count(*) from t").unwrap(), "2 60000");

    // A longer time brings nothing back, and begins anew.
    assert_eq!(keep(&server, "pr", "2h").unwrap(), "2h");
    let error = create_at(&server, "never", "pr", moments[1].clone()).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (404, "moment_outside_history"), "{error}");
    server.sql("pr", "insert into t values (7)").unwrap();
    sleep(1_100);
    let now = early();
    sleep(50);
    server.sql("pr", "insert into t values (8)").unwrap();
    create_at(&server, "now", "pr", now).unwrap();
    assert_eq!(server.sql("now", "select max(n) from t").unwrap(), "7");
}

#[test]
fn a_server_without_history_has_that_of_branches_that_say_so() {
    let server = Server::start_with(Default::default(), &["--history", "0"]);
    let client = server.client();
    assert_eq!(client.get("main").unwrap().history.unwrap(), "0");
    assert_eq!(create_keeping(&server, "none", "main", None).unwrap(), "0");
    assert_eq!(create_keeping(&server, "some", "main", Some("1h")).unwrap(), "1h");
    server.sql("main", "create table t as select 1 as n").unwrap();
    server.sql("some", "create table t as select 1 as n").unwrap();
    let at = Timestamp::now();
    sleep(50);
    server.sql("some", "insert into t values (2)").unwrap();
    let error = create_at(&server, "never", "main", Moment::Time(at)).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (409, "no_history"), "{error}");
    client.restore("some", &RestoreBranch { at: Moment::Time(at), keep_as: None }).unwrap();
    assert_eq!(server_rows(&server, "some"), "1");
    drop(server);
    let few = Server::start_with(Default::default(), &["--history", "60"]);
    assert_eq!(create_keeping(&few, "pr", "main", None).unwrap(), "1m", "no more than a root");
    drop(few);
    let more =
        Server::start_with(Default::default(), &["--history", "0", "--branch-history", "90"]);
    assert_eq!(create_keeping(&more, "pr", "main", None).unwrap(), "90s");
}
