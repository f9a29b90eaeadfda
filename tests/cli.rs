//! `branchctl` as a user or a script runs it: the real binary against a server.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{Directory, Server, Source, postgres_program, program};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

struct Run {
    exit: i32,
    out: String,
    err: String,
}

/// The binary, with nothing of this process's environment but the search path.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program("branchctl"));
    command.args(args).env_clear().env("PATH", std::env::var("PATH").unwrap()).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { exit: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// The binary, told where `server` is.
fn at(server: &Server, args: &[&str]) -> Command {
    let mut command = command(args);
    command.env("COPPICE_API", &server.api).env("COPPICE_TOKEN", server.token());
    command
}

#[track_caller]
fn ok(server: &Server, args: &[&str]) -> String {
    let run = run(&mut at(server, args));
    assert_eq!((run.exit, run.err.as_str()), (0, ""), "{args:?}");
    run.out
}

#[track_caller]
fn fails(server: &Server, args: &[&str], exit: i32, words: &str) {
    let run = run(&mut at(server, args));
    assert_eq!(run.exit, exit, "{args:?}: {}", run.err);
    assert_eq!(run.out, "", "{args:?} wrote to standard output");
    assert!(run.err.contains(words), "{args:?}: {}", run.err);
}

#[test]
fn a_branch_lives_and_dies() {
    let server = Server::shared();
    let table = ok(&server, &["create", "feature/login", "--parent", "main"]);
    assert!(table.starts_with("NAME ") && table.contains("\nfeature/login  main "), "{table}");
    fails(&server, &["create", "feature/login"], 4, "feature/login");
    ok(&server, &["ensure", "feature/login"]);
    ok(&server, &["ensure", "other", "--parent", "feature/login"]);
    let list = ok(&server, &["list"]);
    assert!(
        ["main ", "feature/login ", "other "]
            .iter()
            .all(|n| list.lines().any(|l| l.starts_with(n))),
        "{list}"
    );
    ok(&server, &["reset", "feature/login"]);
    ok(&server, &["rename", "other", "third"]);
    let other = ok(&server, &["show", "other"]);
    assert!(other.contains("third"), "it keeps its label: {other}");
    for verb in ["reset", "delete"] {
        fails(&server, &[verb, "other"], 3, "other");
    }
    ok(&server, &["protect", "third"]);
    fails(&server, &["delete", "third"], 4, "third");
    ok(&server, &["unprotect", "third"]);
    assert!(ok(&server, &["wake", "third"]).contains("running"));
    assert!(ok(&server, &["suspend", "third"]).contains("suspended"));
    assert!(ok(&server, &["show", "third"]).starts_with("name:      third\n"));
    let deleted = ok(&server, &["delete", "feature/login", "third"]);
    assert_eq!(deleted, "feature/login deleted\nthird deleted\n");
}

#[test]
fn a_branch_goes_back_and_forth_in_time() {
    let server = Server::start();
    server.sql("main", "create table t as select 1 as n").unwrap();
    let moment = jiff::Timestamp::now().to_string();
    std::thread::sleep(std::time::Duration::from_millis(50));
    server.sql("main", "insert into t values (2)").unwrap();
    ok(&server, &["create", "past", "--at", &moment]);
    assert_eq!(ok(&server, &["psql", "past", "--", "-XAtc", "select count(*) from t"]), "1\n");
    ok(&server, &["restore", "main", "--at", &moment, "--keep-as", "main-before"]);
    for (branch, rows) in [("main", "1\n"), ("main-before", "2\n")] {
        assert_eq!(
            ok(&server, &["psql", branch, "--", "-XAtc", "select count(*) from t"]),
            rows,
            "{branch}"
        );
    }
    let history = ok(&server, &["history", "main-before"]);
    let mut lines = history.lines();
    assert!(lines.next().unwrap().starts_with("FROM "), "{history}");
    assert!(lines.next().unwrap().starts_with("20") && history.contains("  0/"), "{history}");
    assert!(history.ends_with("kept for 1 day\n"), "{history}");
    fails(
        &server,
        &["restore", "main", "--at", "2001-01-01T00:00:00Z"],
        3,
        "is outside of the history of branch",
    );
    fails(&server, &["create", "never", "--at", "1h30m"], 3, "is outside of the history of branch");
    fails(
        &server,
        &["restore", "main", "--at", "yesterday"],
        2,
        "is no moment: give a time with its zone",
    );
    fails(&server, &["reset", "past", "--at", "1/2/3"], 2, "Postgres prints them as 0/16B3748");
    let kept = |name: &str| {
        let shown = ok(&server, &["show", name]);
        let line = shown.lines().find_map(|line| line.strip_prefix("history:"));
        line.unwrap_or_else(|| panic!("{shown}")).trim().to_owned()
    };
    assert_eq!(["main", "main-before", "past"].map(kept), ["24h", "24h", "1h"]);
    ok(&server, &["create", "week", "--history", "7d"]);
    ok(&server, &["ensure", "week", "--history", "90s"]);
    ok(&server, &["ensure", "hours", "--history", "180m"]);
    assert_eq!(["week", "hours"].map(kept), ["7d", "3h"]);
    let changed = ok(&server, &["history", "week", "--keep", "0"]);
    assert!(changed.starts_with("NAME ") && changed.contains("\nweek "), "{changed}");
    assert_eq!(kept("week"), "none");
    assert!(ok(&server, &["history", "week"]).ends_with("kept for 0 seconds\n"));
    fails(&server, &["restore", "week", "--at", "1m"], 4, "`branchctl history week --keep 1h`");
    let json: serde_json::Value =
        serde_json::from_str(&ok(&server, &["history", "week", "--keep", "30m", "-o", "json"]))
            .unwrap();
    assert_eq!(json["history"], "30m");
    fails(&server, &["history", "week", "--keep", "soon"], 2, "\"soon\" is no duration");
    fails(&server, &["create", "x", "--history", "11y"], 2, "\"11y\" is no duration");
    let du = ok(&server, &["du"]);
    assert!(
        du.starts_with("NAME ") && du.contains("\nmain-before ") && du.contains("\n(total) "),
        "{du}"
    );
}

#[test]
fn json_is_the_apis() {
    let server = Server::shared();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&ok(&server, args)).unwrap() };
    assert_eq!(json(&["-o", "json", "create", "as-json"])["name"], "as-json");
    assert!(json(&["list", "-o", "json"])["branches"].as_array().unwrap().len() >= 2);
    assert_eq!(json(&["status", "-o", "json"])["default_branch"], "main");
    assert_eq!(ok(&server, &["-o", "json", "delete", "as-json"]), "");
}

#[test]
fn deleting_several_goes_on_past_a_failure() {
    let server = Server::shared();
    ok(&server, &["create", "several"]);
    let run = run(&mut at(&server, &["delete", "none", "several", "main"]));
    assert_eq!((run.exit, run.out.as_str()), (3, "several deleted\n"));
    assert!(
        run.err.contains("branchctl: none: ") && run.err.contains("branchctl: main: "),
        "{}",
        run.err
    );
}

#[test]
fn exit_codes_tell_failures_apart() {
    let server = Server::shared();
    fails(&server, &["create", "a b"], 2, "a b");
    fails(&server, &["frobnicate"], 2, "Usage");
    fails(&server, &["create", "a", "--parent", "none"], 3, "none");
    fails(&server, &["list", "--api", "https://h"], 2, "https");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fails(&server, &["list", "--api", &format!("http://{gone}")], 5, "pageserver serve --data DIR");
    let unauthorized = run(at(&server, &["list"]).env("COPPICE_TOKEN", "wrong"));
    assert_eq!(unauthorized.exit, 6);
    assert!(unauthorized.err.contains("COPPICE_TOKEN_FILE"), "{}", unauthorized.err);
    assert_eq!(unauthorized.err.lines().count(), 1, "{}", unauthorized.err);
    assert_eq!(run(command(&["list"]).env("COPPICE_API", &server.api)).exit, 6);
}

#[test]
fn the_token_comes_from_flag_environment_or_file() {
    let server = Server::shared();
    let directory = Directory::new();
    let (good, empty) = (directory.path().join("good"), directory.path().join("empty"));
    let secret = server.token();
    std::fs::write(&good, format!("{secret}\n")).unwrap();
    std::fs::write(&empty, "").unwrap();
    let exit = |args: &[&str], token: Option<&str>, file: Option<&Path>| {
        let mut command = command(args);
        command.env("COPPICE_API", &server.api);
        token.map(|token| command.env("COPPICE_TOKEN", token));
        file.map(|file| command.env("COPPICE_TOKEN_FILE", file));
        run(&mut command).exit
    };
    let flag = ["list", "--token-file", good.to_str().unwrap()];
    assert_eq!(exit(&["list"], None, Some(&good)), 0);
    assert_eq!(exit(&["list"], Some(&secret), Some(&empty)), 0);
    assert_eq!(exit(&flag, Some("wrong"), Some(&empty)), 0);
    assert_eq!(exit(&["list"], None, Some(&empty)), 6);
    assert_eq!(exit(&["list"], None, Some(&directory.path().join("missing"))), 6);
}

#[test]
fn psql_gets_the_password_in_its_environment_only() {
    let server = Server::shared();
    let directory = Directory::new();
    let psql = directory.path().join("psql");
    std::fs::write(&psql, "#!/bin/sh\nprintf '%s\\n' \"$PGPASSWORD\" \"$@\"\nexit 9\n").unwrap();
    std::fs::set_permissions(&psql, std::fs::Permissions::from_mode(0o755)).unwrap();
    let url = ok(&server, &["url", "main", "--database", "shop"]);
    let args = ["psql", "main", "-d", "shop", "--", "-c", "select 1"];
    let run = run(
        at(&server, &args).env("PATH", format!("{}:/usr/bin:/bin", directory.path().display()))
    );
    assert_eq!(run.exit, 9, "psql's own exit code: {}", run.err);
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines[2..], ["-c", "select 1"]);
    assert!(
        !lines[0].is_empty() && lines[1].starts_with("postgresql://postgres.main@"),
        "{lines:?}"
    );
    let (before, after) = lines[1].split_once('@').unwrap();
    assert!(
        url.starts_with(&format!("{before}:")) && url.trim_end().ends_with(after),
        "{url} {lines:?}"
    );
}

#[test]
fn psql_that_is_missing_is_named() {
    let server = Server::shared();
    let run = run(at(&server, &["psql", "main"]).env("PATH", "/nonexistent"));
    assert_eq!(run.exit, 1);
    assert!(run.err.contains("psql is not installed"), "{}", run.err);
}

#[test]
fn psql_reaches_the_branch() {
    let server = Server::shared();
    ok(&server, &["create", "reached"]);
    let out = ok(&server, &["psql", "reached", "--", "-XAtqc", "select current_database()"]);
    assert_eq!(out, "app\n");
}

#[test]
fn an_import_is_followed_and_its_failure_told() {
    let server = Server::shared();
    let source = Source::start();
    let mut import = at(&server, &["import", "prod"]);
    let done = run(import.env("COPPICE_IMPORT_URL", source.url()));
    assert_eq!(done.exit, 0, "{}", done.err);
    let lines: Vec<&str> = done.out.lines().collect();
    let [imported, url] = lines[..] else { panic!("{lines:?}") };
    assert!(imported.starts_with("prod imported, ") && imported.ends_with(" MiB"), "{imported}");
    let psql = Command::new(postgres_program("psql")).args(["-XAtqc", "select 1", url]).output();
    assert_eq!(psql.unwrap().stdout, b"1\n", "{url}");
    assert!(done.err.starts_with("prod: starting, 0 B\n"), "{}", done.err);
    fails(&server, &["import", "prod", "--from", &source.url()], 4, "prod");
    source.refuse_copies();
    let failed = run(&mut at(&server, &["import", "prod2", "--from", &source.url()]));
    assert_eq!((failed.exit, failed.out.as_str()), (1, ""));
    assert!(failed.err.contains("prod2 was not imported: "), "{}", failed.err);
    assert!(failed.err.contains("no pg_hba.conf entry for replication"), "{}", failed.err);
    assert!(!(done.err + &failed.err).contains("s3cret"), "{}", failed.err);
    fails(&server, &["show", "prod2"], 3, "prod2");
    fails(&server, &["import", "prod"], 2, "COPPICE_IMPORT_URL");
    fails(&server, &["import", "--follow", "none"], 3, "none");
}

#[test]
fn ctrl_c_says_that_the_import_goes_on() {
    let server = Server::shared();
    let source = Source::start();
    let mut child = at(&server, &["import", "going", "--from", &source.url()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    err.read_line(&mut said).unwrap();
    assert_eq!(
        said, "going: starting, 0 B\n",
        "the first line comes once the interrupt is listened for"
    );
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    err.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("goes on in the server"), "{said}");
    let (_, command) =
        said.split_once("branchctl import --follow ").unwrap_or_else(|| panic!("{said}"));
    let id = command.split([' ', '`', '\n']).next().unwrap();
    assert!(ok_with_progress(&server, &["import", "--follow", id]).starts_with("going imported, "));
}

/// Succeeds, and may show progress meanwhile.
fn ok_with_progress(server: &Server, args: &[&str]) -> String {
    let run = run(&mut at(server, args));
    assert_eq!(run.exit, 0, "{args:?}: {}", run.err);
    run.out
}

#[test]
fn help_documents_exit_codes_and_completions_complete() {
    let help = run(&mut command(&["--help"]));
    assert_eq!(help.exit, 0);
    assert!(
        help.out.contains("Exit codes:") && help.out.contains("COPPICE_TOKEN_FILE"),
        "{}",
        help.out
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut command(&["completions", shell]));
        assert!(script.exit == 0 && script.out.contains("unprotect"), "{shell}");
    }
}
