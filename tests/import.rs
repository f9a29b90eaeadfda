//! Imports from a running Postgres server, through the real mount.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{CreateBranch, CreateImport, Import, ImportState};
use coppice::{Directory, Server, Source, check, eventually, postgres_program, program};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

const SUMS: &str = "select (select sum(abalance) from pgbench_accounts) = (select \
    coalesce(sum(delta), 0) from pgbench_history) and (select sum(tbalance) from pgbench_tellers) \
    = (select sum(bbalance) from pgbench_branches) and (select sum(tbalance) from pgbench_tellers) \
    = (select coalesce(sum(delta), 0) from pgbench_history)";

/// A program of Postgres on the database `postgres` of an imported branch, whose roles are those of
/// its source.
fn on(server: &Server, branch: &str, name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(postgres_program(name));
    command.args(args).env("PGHOST", server.proxy.ip().to_string());
    command
        .env("PGPORT", server.proxy.port().to_string())
        .env("PGDATABASE", format!("postgres@{branch}"));
    let url = server.url(branch);
    let password = url.split([':', '@']).nth(2).unwrap();
    command.env("PGUSER", "postgres").env("PGPASSWORD", password).output().unwrap()
}

fn sql(server: &Server, branch: &str, sql: &str) -> String {
    let output = on(server, branch, "psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn pgbench(source: &Source, args: &[&str]) -> Command {
    let mut command = Command::new(postgres_program("pgbench"));
    command.args(args).arg(source.url()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_running_server_becomes_a_branch() {
    let mut server = Server::start();
    let source = Source::start();
    assert!(pgbench(&source, &["-i", "-s", "3", "-q"]).status().unwrap().success());
    let far = source.make_directory("far");
    source.sql("create extension amcheck").unwrap();
    source.sql(&format!("create tablespace far location '{}'", far.display())).unwrap();
    source.sql("create table distant tablespace far as select generate_series(1, 5000) i").unwrap();

    let mut load = pgbench(&source, &["-n", "-c", "2", "-T", "600"]).spawn().unwrap();
    eventually("the load runs", || {
        source.sql("select count(*) > 20 from pgbench_history").unwrap() == "t"
    });
    let mut import = Command::new(program("branchctl"));
    import.args(["import", "prod"]).env("COPPICE_IMPORT_URL", source.url());
    let import = import
        .env("COPPICE_API", &server.api)
        .env("COPPICE_TOKEN", server.token())
        .output()
        .unwrap();
    load.kill().unwrap();
    load.wait().unwrap();
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));

    assert_eq!(sql(&server, "prod", SUMS), "t");
    assert_eq!(sql(&server, "prod", "select count(*) > 20 from pgbench_history"), "t");
    let checked = on(&server, "prod", "pg_amcheck", &["--heapallindexed"]);
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat())
    );
    let timeline = server.client().get("prod").unwrap().timeline;
    let links =
        fs::read_dir(server.data().join("mount").join(&timeline).join("pg_tblspc")).unwrap();
    let links: Vec<_> = links.map(|link| fs::read_link(link.unwrap().path()).unwrap()).collect();
    assert_eq!(links.len(), 1);
    assert!(
        links[0]
            .components()
            .all(|part| matches!(part, Component::ParentDir | Component::Normal(_)))
    );

    let client = server.client();
    let child =
        CreateBranch { name: "pr".into(), parent: Some("prod".into()), ..Default::default() };
    client.create(&child).unwrap();
    sql(&server, "pr", "delete from distant; drop table pgbench_history");
    assert_eq!(sql(&server, "prod", "select count(*) from distant"), "5000");
    assert_eq!(source.sql("select count(*) from distant").unwrap(), "5000");
    client.reset("pr", &Default::default()).unwrap();
    assert_eq!(sql(&server, "pr", SUMS), "t");
    assert_eq!(sql(&server, "pr", "select count(*) from distant"), "5000");

    let again =
        CreateImport { name: "prod".into(), source: source.url(), mode: Default::default() };
    let refused = client.start_import(&again).unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (409, "branch_exists"), "{refused}");
    assert_eq!(sql(&server, "prod", SUMS), "t", "the branch that has the name is untouched");
    assert!(server.stop().success());
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 0, "{text}");
}

/// Timelines that have lane files.
fn timelines_on_disk(server: &Server) -> BTreeSet<String> {
    let files = fs::read_dir(server.data().join("store/lanes")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| !name.starts_with("spare"))
        .map(|name| name.split('.').next().unwrap().to_owned())
        .collect()
}

/// Whether any process has `directory` on its command line besides the server.
fn in_use(directory: &Path, server: &Server) -> bool {
    let directory = directory.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let others =
        processes.filter(|entry| entry.file_name().to_string_lossy() != server.pid().to_string());
    others
        .map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default())
        .any(|line| String::from_utf8_lossy(&line).contains(&directory))
}

/// A table that is not copied in a moment: 192 MB that do not compress away.
const BIG: &str = "create table big as select repeat(md5(i::text), 200) t from generate_series(1, \
    30000) i; alter table big alter t set storage external; insert into big select t || 'x' from \
    big";

#[test]
fn an_import_that_fails_in_the_middle_leaves_nothing() {
    let mut server = Server::start();
    let mut source = Source::start();
    source.sql(BIG).unwrap();
    let client = server.client();
    client.suspend("main").unwrap();
    let before = timelines_on_disk(&server);
    let request =
        CreateImport { name: "prod".into(), source: source.url(), mode: Default::default() };
    let import = client.start_import(&request).unwrap();
    let reserved =
        client.create(&CreateBranch { name: "prod".into(), ..Default::default() }).unwrap_err();
    assert_eq!(reserved.code, "branch_exists", "{reserved}");
    let now = || -> Import { client.import(&import.id).unwrap() };
    source.freeze_copy();
    assert_eq!(now().state, ImportState::Running, "the import was over before the source died");
    assert_ne!(timelines_on_disk(&server), before);
    source.crash();
    eventually("the import fails", || now().state == ImportState::Failed);
    let error = now().error.unwrap();
    assert!(error.contains("the copy failed") && !error.contains(Source::PASSWORD), "{error}");
    assert_eq!(client.get("prod").unwrap_err().code, "branch_not_found");
    assert!(!in_use(&server.data().join("mount"), &server), "a process is left");
    eventually("the files go", || timelines_on_disk(&server) == before);

    // Killed in the middle, the server tidies up at its next start.
    let source = Source::start();
    source.sql(BIG).unwrap();
    let request = CreateImport { source: source.url(), ..request };
    let import = client.start_import(&request).unwrap();
    source.freeze_copy();
    assert_eq!(client.import(&import.id).unwrap().state, ImportState::Running);
    assert_ne!(timelines_on_disk(&server), before);
    server.kill();
    source.thaw_copy();
    server.restart();
    let mount = server.data().join("mount");
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let there =
        mounts.lines().filter(|line| line.split(' ').nth(1).map(Path::new) == Some(&mount)).count();
    assert_eq!(there, 1, "the killed server's mount is still below");
    eventually("nobody copies", || !in_use(&server.data().join("mount"), &server));
    let client = server.client();
    assert_eq!(timelines_on_disk(&server), before);
    assert_eq!(client.list().unwrap().len(), 1);
    client.start_import(&request).unwrap();
    eventually("it can be started over", || client.get("prod").is_ok());
    assert_eq!(sql(&server, "prod", "select count(*) from big"), "60000");
}

/// Imports a source, and waits for the end.
fn imported(server: &Server, name: &str, source: String) -> Import {
    let client = server.client();
    let request = CreateImport { name: name.into(), source, mode: Default::default() };
    let id = client.start_import(&request).unwrap().id;
    eventually("the import ends", || client.import(&id).unwrap().state != ImportState::Running);
    client.import(&id).unwrap()
}

/// What decides the meaning of a query, and what its extensions need.
const CONFIGURATION: &str = "timezone = 'Asia/Tokyo'\ndatestyle = 'German'\n\
    search_path = '\"$user\", app'\nbytea_output = 'escape'\nwal_level = logical\n\
    app.tenant = 'it''s C:\\\\new'\nshared_preload_libraries = 'pg_stat_statements'\n\
    log_directory = '/nowhere'\nssl = off\n";
const SHOWN: &str = "select concat_ws('|', current_setting('timezone'), \
    timestamptz '2026-11-30 20:00+00', current_setting('search_path'), '\\x41ff'::bytea, \
    current_setting('wal_level'), current_setting('app.tenant', true), \
    current_setting('shared_preload_libraries', true))";

#[test]
fn settings_that_decide_what_a_query_means_come_along() {
    let server = Server::start();
    let source = Source::configured_elsewhere(CONFIGURATION);
    let shown = source.sql(SHOWN).unwrap();
    assert!(
        shown.starts_with("Asia/Tokyo|01.12.2026 05:00:00 JST|\"$user\", app|A\\377|"),
        "{shown}"
    );
    assert!(shown.ends_with("|logical|it's C:\\new|pg_stat_statements"), "{shown}");
    let import = imported(&server, "whole", source.url());
    assert_eq!((import.error, import.notes), (None, Vec::<String>::new()));
    assert_eq!(server.sql("whole", SHOWN).unwrap(), shown);

    // A role that may only copy, which lacks what it may not see, and is told how to see it.
    let copier = format!("create role copier replication login password '{}'", Source::PASSWORD);
    source.sql(&copier).unwrap();
    source.sql("create database shop").unwrap();
    let import = imported(&server, "part", source.url_of("copier", "shop"));
    assert_eq!((import.error, import.notes.len()), (None, 2), "{:?}", import.notes);
    assert!(
        import.notes[0].contains("GRANT pg_read_all_settings TO \"copier\""),
        "{:?}",
        import.notes
    );
    let (all_see, of_some) = SHOWN.rsplit_once(", current_setting(").unwrap();
    let expected = shown.strip_suffix("|it's C:\\new|pg_stat_statements").unwrap();
    assert_eq!(server.sql("part", &format!("{all_see})")).unwrap(), expected, "but for {of_some}");
    let grant = "grant pg_read_all_settings to copier; \
                 grant execute on function pg_show_all_file_settings() to copier";
    source.sql_in("shop", grant).unwrap();
    let import = imported(&server, "more", source.url_of("copier", "shop"));
    assert_eq!((import.error, import.notes), (None, Vec::<String>::new()));
    assert_eq!(server.sql("more", SHOWN).unwrap(), shown);
    // The URL is for the role and the database of the source, also on a branch.
    let who = "select current_user || ' ' || current_database()";
    server
        .client()
        .create(&CreateBranch {
            name: "pr".into(),
            parent: Some("more".into()),
            ..Default::default()
        })
        .unwrap();
    for branch in ["more", "pr"] {
        assert_eq!(server.sql(branch, who).unwrap(), "copier shop");
        let url = server.url(branch);
        assert!(!url.contains(Source::PASSWORD) && url.ends_with("/shop"), "{url}");
    }
}

#[test]
fn a_copy_that_cannot_start_is_not_imported() {
    let server = Server::start_with(Arc::new(Directory::new()), &["--branch-memory", "256MiB"]);
    let source = Source::start();
    // As much memory as a quarter of what a branch has.
    let import = imported(&server, "small", source.url());
    assert_eq!((import.error, import.notes.len()), (None, 1), "{:?}", import.notes);
    assert!(import.notes[0].starts_with("shared_buffers is 65536kB"), "{:?}", import.notes);
    assert_eq!(server.sql("small", "show shared_buffers").unwrap(), "64MB");

    let before = timelines_on_disk(&server);
    let fails = |why: &str| {
        let import = imported(&server, "broken", source.url());
        let error = import.error.expect("it fails");
        assert!(error.contains("the copy cannot be used") && error.contains(why), "{error}");
        assert_eq!(server.client().get("broken").unwrap_err().code, "branch_not_found");
        eventually("the files go", || timelines_on_disk(&server) == before);
    };
    // A locale that the machine lacks shows only once somebody connects.
    source.sql("create database shop").unwrap();
    source.sql("update pg_database set datcollate = 'xx_YY' where datname = 'shop'").unwrap();
    fails("database locale is incompatible");
    source.sql("update pg_database set datallowconn = false where datname = 'shop'").unwrap();
    let config = source.data().join("postgresql.conf");
    let text = fs::read_to_string(&config).unwrap();
    for (line, why) in [
        ("include '/nowhere/secret.conf'", "/nowhere/secret.conf"),
        ("shared_preload_libraries = 'nosuch'", "nosuch"),
        ("max_stack_depth = 1000MB", "max_stack_depth"),
    ] {
        fs::write(&config, format!("{text}\n{line}\n")).unwrap();
        fails(why);
    }
    fs::write(&config, text).unwrap();
    assert_eq!(imported(&server, "broken", source.url()).error, None);
}
