//! A branch that nobody can use is made usable again without its history: settings that keep its
//! Postgres from starting, and roles that let nobody in.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{ComputeState, CreateBranch, NewPassword, UpdateSettings};
use coppice::{Server, postgres_program};
use std::process::Command;

fn change(set: &[(&str, &str)], unset: &[&str]) -> UpdateSettings {
    UpdateSettings {
        set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        unset: unset.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn branch(server: &Server, name: &str) {
    let new = CreateBranch { name: name.into(), ..CreateBranch::default() };
    server.client().create(&new).unwrap();
}

/// Runs a statement with exactly this URL.
fn sql_at(url: &str, sql: &str) -> Result<String, String> {
    let output =
        Command::new(postgres_program("psql")).args(["-XAtqc", sql, url]).output().unwrap();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn settings_change_whether_postgres_runs_rests_or_cannot_start() {
    let server = Server::start();
    let client = server.client();
    branch(&server, "b");
    // At rest, nothing starts for it.
    let outcome = client.set("b", &change(&[("work_mem", "5MB"), ("app.x", "it's")], &[])).unwrap();
    assert_eq!(outcome.at_next_start, ["app.x", "work_mem"]);
    assert_eq!(client.get("b").unwrap().state, ComputeState::Suspended);
    let shown = "select current_setting('work_mem'), current_setting('app.x')";
    assert_eq!(server.sql("b", shown).unwrap(), "5MB|it's");
    // While it runs, at once, but for what only a start changes.
    let outcome =
        client.set("b", &change(&[("work_mem", "6MB"), ("max_connections", "50")], &["app.x"]));
    assert_eq!(outcome.unwrap().at_next_start, ["max_connections"]);
    assert_eq!(server.sql("b", "show work_mem").unwrap(), "6MB");
    assert_eq!(server.sql("b", "show max_connections").unwrap(), "300");
    let error = client.set("b", &change(&[("work_mem", "many")], &[])).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (400, "bad_setting"));
    assert!(error.detail.contains("work_mem"), "{error:?}");
    client.suspend("b").unwrap();
    assert_eq!(server.sql("b", "show max_connections").unwrap(), "50");
    // One that keeps it from starting, and the way out.
    server.sql("b", "alter system set shared_preload_libraries = 'nosuch'").unwrap();
    client.suspend("b").unwrap();
    let error = server.sql("b", "select 1").unwrap_err();
    assert!(error.contains("branch \"b\" cannot start"), "{error}");
    client.set("b", &change(&[], &["shared_preload_libraries"])).unwrap();
    assert_eq!(server.sql("b", "show work_mem").unwrap(), "6MB");
    // Forced settings stay.
    client.set("b", &change(&[("listen_addresses", "*")], &[])).unwrap();
    client.suspend("b").unwrap();
    assert_eq!(server.sql("b", "show listen_addresses").unwrap(), "");
}

#[test]
fn a_password_lets_the_superuser_in_whatever_was_done_to_the_role() {
    let server = Server::start();
    let client = server.client();
    for (nth, harm) in [
        "alter role postgres nologin",
        "alter role postgres password 'forgotten'",
        "alter role postgres valid until '2000-01-01'",
        // Nobody renames the role that he is.
        "create role other superuser; set session authorization other; \
         alter role postgres rename to admin",
        "alter role postgres nologin; create role other superuser; \
         set session authorization other; drop role coppice",
        "alter role postgres nologin; alter role coppice nologin nosuperuser",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("b{nth}");
        branch(&server, &name);
        server.sql(&name, "create table kept as select 7 as n").unwrap();
        server.sql(&name, harm).unwrap();
        assert!(server.sql(&name, "select 1").is_err(), "{harm}");
        let url = client.password(&name, &NewPassword::default()).unwrap().url;
        assert_eq!(sql_at(&url, "select n from kept").unwrap(), "7", "{harm}");
        assert_eq!(server.url(&name), url, "the server knows the new password");
        assert_eq!(
            sql_at(&url, "select rolsuper from pg_roles where rolname = current_user").unwrap(),
            "t"
        );
    }
    // Its parent has its own.
    assert_eq!(server.sql("main", "select 1").unwrap(), "1");
    // Other roles get one too, if they are there.
    server.sql("main", "create role app_user nologin").unwrap();
    let new = NewPassword { role: Some("app_user".into()), password: None };
    let url = client.password("main", &new).unwrap().url;
    assert_eq!(sql_at(&url, "select current_user").unwrap(), "app_user");
    let missing = NewPassword { role: Some("nosuch".into()), password: None };
    assert_eq!(client.password("main", &missing).unwrap_err().code, "role_not_found");
    let own = NewPassword { role: Some("coppice".into()), password: None };
    assert_eq!(client.password("main", &own).unwrap_err().code, "bad_role");
    for secret in [url, server.url("b0")] {
        let password = secret.split([':', '@']).nth(2).unwrap().to_owned();
        assert!(!server.log().contains(&password), "the log has a password");
    }
}

#[test]
fn a_statement_is_in_no_log_when_postgres_dies() {
    let server = Server::start();
    branch(&server, "b");
    server.sql("b", "select 1").unwrap();
    for sql in ["alter role nosuch password 'leakme'", "select leakme from nowhere"] {
        server.sql("b", sql).unwrap_err();
    }
    let pid = server.sql("b", "select pg_backend_pid() from (select 'leakme') as x").unwrap();
    assert!(pid.parse::<i32>().is_ok());
    // A backend dies in the middle of a statement, and the postmaster says which.
    let sql = "do $$ begin perform 'leakme'; execute format('copy (select 1) to program %L', \
               'kill -9 ' || pg_backend_pid()); end $$";
    server.sql("b", sql).unwrap_err();
    coppice::eventually("the compute has died", || server.log().contains("compute died"));
    let log = server.log();
    assert!(log.contains("was terminated by signal 9"), "{log}");
    assert!(!log.contains("leakme"), "{log}");
    let branch = server.client().get("b").unwrap();
    assert!(!branch.failure.unwrap_or_default().contains("leakme"));
}
