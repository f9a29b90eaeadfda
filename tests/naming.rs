//! How a session names its branch, and that no tool on the way leads it to another one.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{CreateBranch, UpdateBranch};
use coppice::{Directory, Server, postgres_program};
use std::process::{Command, Output};
use std::sync::Arc;

/// Makes branches, in each of which a table says where one is.
fn branches(server: &Server, names: &[&str]) {
    for name in names {
        let new = CreateBranch { name: (*name).to_owned(), ..CreateBranch::default() };
        server.client().create(&new).unwrap();
        let sql = format!("create table place as select '{name}' as name");
        server.sql(name, &sql).unwrap();
    }
}

/// The password that all branches have.
fn password(server: &Server) -> String {
    let url = server.url("main");
    url.split([':', '@']).nth(2).unwrap().to_owned()
}

fn run(server: &Server, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(postgres_program(program));
    command.args(args).env("PGPASSWORD", password(server)).env("PGSSLMODE", "prefer");
    command.env("PGHOST", server.proxy.ip().to_string());
    command.env("PGPORT", server.proxy.port().to_string());
    command.output().unwrap()
}

/// What `psql` prints for a connection string, or the error.
fn ask(server: &Server, conninfo: &str, sql: &str) -> Result<String, String> {
    let output = run(server, "psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, conninfo]);
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

const PLACE: &str = "select name from place";

#[test]
fn every_name_that_git_takes_is_reached_in_every_way() {
    let server = Server::start();
    let long = format!("dependabot/nuget/DotNetty.Handlers-and-{}-0.7.6", "x".repeat(180));
    let names = [
        "fix/a",
        "fix-a",
        "FIX_A",
        "renovate/@types/node-20.x",
        "fix/#1234",
        "Füße/neu",
        "日本",
        "100%25",
        &long,
    ];
    branches(&server, &names);
    for name in names {
        let branch = server.client().get(name).unwrap();
        let label = &branch.host;
        assert!(label.len() <= 63, "{label}");
        assert_eq!(
            server.client().get(label).unwrap().name,
            match label.as_str() {
                // The name of another branch goes before the label of this one.
                "fix-a" => "fix-a",
                _ => name,
            }
        );
        assert_eq!(server.sql(name, PLACE).unwrap(), name, "its URL: {}", server.url(name));
        let quoted = name.replace('\\', "\\\\").replace('\'', "\\'");
        for conninfo in [
            format!("user=postgres.{label} dbname=app"),
            format!("user=postgres dbname='app@{quoted}'"),
            format!("user=postgres dbname=app options='-c branch={quoted}'"),
            format!("user=postgres.{label} dbname='app@{quoted}' options='branch={quoted}'"),
            format!("user=postgres dbname=app host={label}.localhost hostaddr=127.0.0.1"),
            format!(
                "user=postgres dbname='app@{quoted}' host={label}.localhost hostaddr=127.0.0.1"
            ),
        ] {
            assert_eq!(ask(&server, &conninfo, PLACE).as_deref(), Ok(name), "{conninfo}");
        }
    }
    // A label stays when the branch is renamed.
    let label = server.client().get("fix/a").unwrap().host;
    let rename = UpdateBranch { name: Some("fix/b".into()), ..UpdateBranch::default() };
    assert_eq!(server.client().update("fix/a", &rename).unwrap().host, label);
    assert_eq!(ask(&server, &format!("user=postgres.{label} dbname=app"), PLACE).unwrap(), "fix/a");
}

#[test]
fn tools_that_make_databases_stay_on_their_branch() {
    let server = Server::start();
    branches(&server, &["b"]);
    server.sql("main", "create table place as select 'main' as name").unwrap();
    let databases = "select string_agg(datname, ' ' order by datname) from pg_database";
    let main = server.sql("main", databases).unwrap();
    // \c keeps the role.
    let there = "\\c postgres\ncreate table here ();\n\\c app\nselect name from place";
    let script = server.directory.path().join("script.sql");
    std::fs::write(&script, there).unwrap();
    let args = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", script.to_str().unwrap()];
    let output = run(&server, "psql", &[&args[..], &["user=postgres.b dbname=app"]].concat());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "b", "{output:?}");
    // createdb, and a dump that is restored with --create.
    let output = run(&server, "createdb", &["-U", "postgres.b", "made"]);
    assert!(output.status.success(), "{output:?}");
    let dump = server.directory.path().join("dump");
    let file = dump.to_str().unwrap();
    let args = ["-U", "postgres.b", "-Fc", "-f", file, "made"];
    assert!(run(&server, "pg_dump", &args).status.success());
    assert!(run(&server, "dropdb", &["-U", "postgres.b", "made"]).status.success());
    let args = ["-U", "postgres.b", "-d", "postgres", "-C", file];
    let output = run(&server, "pg_restore", &args);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.sql("b", databases).unwrap(), "app made postgres template0 template1");
    assert_eq!(server.sql("main", databases).unwrap(), main, "nothing came to main");
    // A database that is called like one of another branch leads nowhere.
    server.sql("b", "create database \"x@main\"").unwrap();
    let error = ask(&server, "user=postgres.b dbname=x@main", "select 1").unwrap_err();
    assert!(error.contains("names two branches: \"b\" behind the role and \"main\""), "{error}");
    server.sql("b", "create database \"x@nosuch\"").unwrap();
    let name = "select current_database()";
    assert_eq!(ask(&server, "user=postgres.b dbname=x@nosuch", name).unwrap(), "x@nosuch");
    assert_eq!(ask(&server, "user=postgres dbname=x@main@b", name).unwrap(), "x@main");
}

#[test]
fn nobody_lands_on_a_branch_unasked() {
    let directory = Arc::new(Directory::new());
    let mut server = Server::start_with(Arc::clone(&directory), &[]);
    branches(&server, &["b"]);
    for conninfo in [
        "user=postgres dbname=app",
        "user=postgres dbname=app sslmode=disable",
        "user=postgres.nosuch dbname=app",
        // A host name that no TLS carries to the server.
        "user=postgres dbname=app host=b.localhost hostaddr=127.0.0.1 sslmode=disable",
        "user=postgres dbname=app@nosuch",
        "user=postgres dbname=app options=branch=nosuch",
    ] {
        let error = ask(&server, conninfo, "select 1").unwrap_err();
        assert!(error.contains("names no branch") || error.contains("does not exist"), "{error}");
        assert!(!error.contains("main"), "no name is told: {error}");
    }
    let error = ask(&server, "user=postgres dbname=app", "select 1").unwrap_err();
    assert!(error.contains("HINT") && error.contains("postgres.BRANCH"), "{error}");
    assert!(server.stop().success());
    drop(server);
    let server = Server::start_with(directory, &["--default-branch", "b"]);
    assert_eq!(ask(&server, "user=postgres dbname=app", PLACE).unwrap(), "b");
    let error = ask(&server, "user=postgres dbname=app@nosuch", "select 1").unwrap_err();
    assert!(error.contains("branch \"nosuch\" does not exist"), "{error}");
}

#[test]
fn a_role_keeps_its_dots_and_an_md5_password_is_refused_behind_a_label() {
    let server = Server::start();
    branches(&server, &["b", "reader"]);
    let own = "set password_encryption = 'md5'; create role old login password 'secret'; \
               set password_encryption = 'scram-sha-256'; \
               create role \"tenant.x\" login password 'secret'; \
               create role \"tenant.reader\" login password 'secret'";
    server.sql("b", own).unwrap();
    let ask = |conninfo: &str| ask(&server, &format!("{conninfo} password=secret"), "select user");
    assert_eq!(ask("user=tenant.x dbname=app@b").unwrap(), "tenant.x");
    assert_eq!(ask("user=tenant.x.b dbname=app").unwrap(), "tenant.x");
    // A role that ends like the label of a branch has to be written with both.
    assert_eq!(ask("user=tenant.reader.b dbname=app").unwrap(), "tenant.reader");
    let error = ask("user=tenant.reader dbname=app@b").unwrap_err();
    assert!(error.contains("names two branches"), "{error}");
    assert_eq!(ask("user=old dbname=app@b").unwrap(), "old");
    let error = ask("user=old.b dbname=app").unwrap_err();
    assert!(error.contains("MD5 password") && error.contains("branchctl password"), "{error}");
    for role in ["coppice.b", "coppice"] {
        let error = ask(&format!("user={role} dbname=app@b")).unwrap_err();
        assert!(error.contains("the server's own"), "{error}");
    }
}

#[test]
fn the_address_of_a_client_is_in_its_applications_name_if_asked_for() {
    let args = ["--application-name-add-host"];
    let server = Server::start_with(Arc::new(Directory::new()), &args);
    let shown = "user=postgres.main dbname=app application_name=tool";
    let name = ask(&server, shown, "show application_name").unwrap();
    assert!(name.starts_with("tool - 127.0.0.1:"), "{name}");
}

#[test]
fn with_a_domain_the_url_has_the_host_name() {
    let args = ["--domain", "db.example.com"];
    let server = Server::start_with(Arc::new(Directory::new()), &args);
    let new = CreateBranch { name: "feature/x".into(), ..CreateBranch::default() };
    server.client().create(&new).unwrap();
    let url = server.url("feature/x");
    let host = format!("@feature-x.db.example.com:{}/app?", server.proxy.port());
    assert!(url.starts_with("postgresql://postgres:") && url.contains(&host), "{url}");
    let made = "create table here as select 7 as n; select n from here";
    assert_eq!(ask(&server, &format!("{url}&hostaddr=127.0.0.1"), made).unwrap(), "7");
    let by_label = "user=postgres.feature-x dbname=app";
    assert_eq!(ask(&server, by_label, "select n from here").unwrap(), "7");
}
