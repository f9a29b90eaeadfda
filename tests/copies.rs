//! A copy does not act on what it was copied from: its scheduled jobs rest, and its subscriptions
//! let go of the publisher's slots.

use api::types::{
    CreateBranch, CreateImport, ImportMode, ImportState, UpdateBranch, UpdateSettings,
};
use coppice::{Server, Source, eventually, postgres};

#[test]
fn subscriptions_of_a_copied_cluster_let_go_of_the_publisher() {
    let server = Server::start();
    let source = Source::start();
    // The publisher is nowhere, so that whoever asks for it fails.
    source
        .sql(
            "create subscription feed connection 'host=192.0.2.1 dbname=shop connect_timeout=2' \
             publication p with (connect = false, slot_name = 'slot_of_production')",
        )
        .unwrap();
    // The server's own role, as a branch of another server has it, is not taken for a client's.
    source.sql("create role coppice login password 'known'").unwrap();
    let import =
        CreateImport { name: "prod".into(), source: source.url(), mode: ImportMode::default() };
    let import = server.client().start_import(&import).unwrap();
    eventually("the import ends", || {
        server.client().import(&import.id).unwrap().state != ImportState::Running
    });
    let import = server.client().import(&import.id).unwrap();
    assert_eq!(import.state, ImportState::Done, "{import:?}");
    let shown = "select subenabled, subslotname is null from pg_subscription";
    assert_eq!(server.sql("prod", shown).unwrap(), "f|t");
    let role = "select rolsuper, rolcanlogin, rolpassword is null from pg_authid \
                where rolname = 'coppice'";
    assert_eq!(server.sql("prod", role).unwrap(), "t|t|t");
    let child = CreateBranch {
        name: "child".into(),
        parent: Some("prod".into()),
        ..CreateBranch::default()
    };
    server.client().create(&child).unwrap();
    assert_eq!(server.sql("child", shown).unwrap(), "f|t");
    assert_eq!(server.sql("child", "drop subscription feed; select 1").unwrap(), "1");
    // The source has kept what is its own.
    let kept = "select subslotname from pg_subscription";
    assert_eq!(source.sql(kept).unwrap(), "slot_of_production");
}

#[test]
fn jobs_of_pg_cron_rest_on_a_branch_unless_they_are_allowed() {
    let library = postgres().bin.join("../lib/pg_cron.so");
    let Ok(bytes) = std::fs::read(&library) else {
        return eprintln!("NOT TESTED: pg_cron is not installed ({})", library.display());
    };
    let setting = b"cron.launch_active_jobs";
    let is_old = !bytes.windows(setting.len()).any(|part| part == setting);
    let server = Server::start();
    let client = server.client();
    let new = CreateBranch { name: "b".into(), ..CreateBranch::default() };
    client.create(&new).unwrap();
    let set = [
        ("shared_preload_libraries", "pg_stat_statements, pg_cron"),
        ("cron.database_name", "app"),
    ];
    let set = set.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    client.set("b", &UpdateSettings { set, unset: Vec::new() }).unwrap();
    let libraries = "show shared_preload_libraries";
    let (with, without) = ("pg_stat_statements, pg_cron", "pg_stat_statements");
    assert_eq!(server.sql("b", libraries).unwrap(), if is_old { without } else { with });
    let launched = "select current_setting('cron.launch_active_jobs', true)";
    assert_eq!(server.sql("b", launched).unwrap(), "off");
    let allow = |jobs| UpdateBranch { scheduled_jobs: Some(jobs), ..UpdateBranch::default() };
    assert!(client.update("b", &allow(true)).unwrap().scheduled_jobs);
    assert_eq!(server.sql("b", libraries).unwrap(), with);
    server.sql("b", "create extension pg_cron").unwrap();
    let launcher = "select count(*) from pg_stat_activity where backend_type = 'pg_cron launcher'";
    eventually("the launcher runs", || server.sql("b", launcher).unwrap() == "1");
    client.update("b", &allow(false)).unwrap();
    assert_eq!(server.sql("b", libraries).unwrap(), if is_old { without } else { with });
    if is_old {
        assert_eq!(server.sql("b", launcher).unwrap(), "0");
    }
}
