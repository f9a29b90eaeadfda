//! `branchctl` as a user or a script runs it: the real binary against a server.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

mod support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::Server;

struct Run {
    exit: i32,
    out: String,
    err: String,
}

/// The binary, with nothing of this process's environment but the search path.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_branchctl"));
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
    command.env("COPPICE_API", &server.url).env("COPPICE_TOKEN", &server.token);
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

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coppice-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_branch_lives_and_dies() {
    let server = Server::start();
    let table = ok(&server, &["create", "feature/login", "--parent", "main"]);
    assert!(table.starts_with("NAME ") && table.contains("\nfeature/login  main "), "{table}");
    fails(&server, &["create", "feature/login"], 4, "feature/login");
    ok(&server, &["ensure", "feature/login"]);
    ok(&server, &["ensure", "other", "--parent", "feature/login"]);
    assert_eq!(ok(&server, &["list"]).lines().count(), 4);
    ok(&server, &["reset", "feature/login"]);
    ok(&server, &["rename", "other", "third"]);
    fails(&server, &["show", "other"], 3, "other");
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
fn json_is_the_apis() {
    let server = Server::start();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&ok(&server, args)).unwrap() };
    assert_eq!(json(&["-o", "json", "create", "a"])["name"], "a");
    assert_eq!(json(&["list", "-o", "json"])["branches"].as_array().unwrap().len(), 2);
    assert_eq!(json(&["status", "-o", "json"])["default_branch"], "main");
    assert_eq!(ok(&server, &["-o", "json", "delete", "a"]), "");
}

#[test]
fn deleting_several_goes_on_past_a_failure() {
    let server = Server::start();
    ok(&server, &["create", "a"]);
    let run = run(&mut at(&server, &["delete", "none", "a", "main"]));
    assert_eq!((run.exit, run.out.as_str()), (3, "a deleted\n"));
    assert!(run.err.contains("branchctl: none: ") && run.err.contains("branchctl: main: "), "{}", run.err);
}

#[test]
fn exit_codes_tell_failures_apart() {
    let server = Server::start();
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
    assert_eq!(run(command(&["list"]).env("COPPICE_API", &server.url)).exit, 6);
}

#[test]
fn the_token_comes_from_flag_environment_or_file() {
    let server = Server::start();
    let dir = Dir::new("token");
    let (good, empty) = (dir.0.join("good"), dir.0.join("empty"));
    std::fs::write(&good, format!("{}\n", server.token)).unwrap();
    std::fs::write(&empty, "").unwrap();
    let exit = |args: &[&str], token: Option<&str>, file: Option<&PathBuf>| {
        let mut command = command(args);
        command.env("COPPICE_API", &server.url);
        token.map(|token| command.env("COPPICE_TOKEN", token));
        file.map(|file| command.env("COPPICE_TOKEN_FILE", file));
        run(&mut command).exit
    };
    let flag = ["list", "--token-file", good.to_str().unwrap()];
    assert_eq!(exit(&["list"], None, Some(&good)), 0);
    assert_eq!(exit(&["list"], Some(&server.token), Some(&empty)), 0);
    assert_eq!(exit(&flag, Some("wrong"), Some(&empty)), 0);
    assert_eq!(exit(&["list"], None, Some(&empty)), 6);
    assert_eq!(exit(&["list"], None, Some(&dir.0.join("missing"))), 6);
}

#[test]
fn psql_gets_the_password_in_its_environment_only() {
    let server = Server::start();
    let dir = Dir::new("psql");
    let psql = dir.0.join("psql");
    std::fs::write(&psql, "#!/bin/sh\nprintf '%s\\n' \"$PGPASSWORD\" \"$@\"\nexit 9\n").unwrap();
    std::fs::set_permissions(&psql, std::fs::Permissions::from_mode(0o755)).unwrap();
    let url = ok(&server, &["url", "main", "--database", "shop"]);
    let args = ["psql", "main", "-d", "shop", "--", "-c", "select 1"];
    let run = run(at(&server, &args).env("PATH", format!("{}:/usr/bin:/bin", dir.0.display())));
    assert_eq!(run.exit, 9, "psql's own exit code: {}", run.err);
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines[2..], ["-c", "select 1"]);
    assert!(!lines[0].is_empty() && lines[1].starts_with("postgresql://postgres@"), "{lines:?}");
    let (before, after) = lines[1].split_once('@').unwrap();
    assert!(url.starts_with(&format!("{before}:")) && url.trim_end().ends_with(after), "{url} {lines:?}");
}

#[test]
fn psql_that_is_missing_is_named() {
    let server = Server::start();
    let run = run(at(&server, &["psql", "main"]).env("PATH", "/nonexistent"));
    assert_eq!(run.exit, 1);
    assert!(run.err.contains("psql is not installed"), "{}", run.err);
}

#[test]
fn an_import_is_followed_and_its_failure_told() {
    let server = Server::start();
    let done = run(at(&server, &["import", "prod"]).env("COPPICE_IMPORT_URL", "postgresql://u:secret@h/d"));
    assert_eq!((done.exit, done.out.as_str()), (0, "prod imported, 30.0 MiB\n"));
    assert!(done.err.starts_with("prod: connecting, 0 B\nprod: 33% copying, "), "{}", done.err);
    assert!(!done.err.contains("secret"));
    let failed = run(&mut at(&server, &["import", "prod", "--from", "postgresql://h/fail"]));
    assert_eq!((failed.exit, failed.out.as_str()), (1, ""));
    assert!(failed.err.contains("prod was not imported: the source closed"), "{}", failed.err);
    fails(&server, &["import", "prod"], 2, "COPPICE_IMPORT_URL");
    fails(&server, &["import", "--follow", "none"], 3, "none");
}

#[test]
fn ctrl_c_says_that_the_import_goes_on() {
    let server = Server::start();
    let mut child = at(&server, &["import", "prod", "--from", "postgresql://h/d"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(250));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{err}");
    assert!(err.contains("goes on in the server") && err.contains("branchctl import --follow 1"), "{err}");
}

#[test]
fn help_documents_exit_codes_and_completions_complete() {
    let help = run(&mut command(&["--help"]));
    assert_eq!(help.exit, 0);
    assert!(help.out.contains("Exit codes:") && help.out.contains("COPPICE_TOKEN_FILE"), "{}", help.out);
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut command(&["completions", shell]));
        assert!(script.exit == 0 && script.out.contains("unprotect"), "{shell}");
    }
}
