//! Faults of the machine and the disk: each is named, with the remedy, and costs no more than it
//! must.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::CreateBranch;
use coppice::{Directory, Server, check, eventually, program, serve_command};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Runs a server that cannot start; what it says.
#[track_caller]
fn does_not_start(mut command: Command) -> String {
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.contains("ERROR")), "{log}");
    log
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in: {text}"));
}

fn serve(directory: &Directory, args: &[&str]) -> Command {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    serve_command(directory, &args)
}

#[test]
fn a_machine_that_lacks_something() {
    let directory = Directory::new();
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let log = does_not_start(serve(&directory, &["--postgres-bin", empty.to_str().unwrap()]));
    says(
        &log,
        &[
            "no_postgres",
            empty.to_str().unwrap(),
            "has no program postgres",
            "--postgres-bin",
            "apt-get",
        ],
    );
    let log = does_not_start(serve(&directory, &["--postgres-user", "nobody-such"]));
    says(&log, &["postgres_user", "nobody-such"]);

    if nix::unistd::geteuid().is_root() {
        // In a mount namespace of its own, so that only this server sees an empty file as the
        // device.
        let server = serve(&directory, &[]);
        let mut command = Command::new("unshare");
        let hide = "mount --bind \"$0\" /dev/fuse && exec \"$@\"";
        let nothing = directory.path().join("nothing");
        fs::write(&nothing, "").unwrap();
        command
            .args(["-m", "sh", "-c", hide])
            .arg(&nothing)
            .arg(server.get_program())
            .args(server.get_args());
        let log = does_not_start(command);
        says(&log, &["no_fuse", directory.path().join("data/mount").to_str().unwrap(), "fuse3"]);
    }
    let mut server = Server::start_with(Arc::new(directory), &[]);
    assert_eq!(
        server.sql("main", "select 1").unwrap(),
        "1",
        "nothing of the failed starts is in the way"
    );
    assert!(server.stop().success());
}

#[test]
fn places_that_are_taken() {
    let mut server = Server::start();
    let in_use = does_not_start(serve(&server.directory, &[]));
    says(&in_use, &["data_in_use", server.data().to_str().unwrap(), "another --data"]);
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 1);
    says(&text, &["data_in_use", server.data().to_str().unwrap()]);

    let other = Directory::new();
    let api = server.api.strip_prefix("http://").unwrap();
    says(&does_not_start(serve(&other, &["--api", api])), &["port_taken", "API", api, "--api"]);
    let proxy = server.proxy.to_string();
    says(
        &does_not_start(serve(&other, &["--proxy", &proxy])),
        &["port_taken", "proxy", &proxy, "--proxy"],
    );
    assert_eq!(server.sql("main", "select 1").unwrap(), "1", "the server that has them goes on");
    assert!(server.stop().success());

    let nothing = check(other.path());
    assert_eq!(nothing.0, 1);
    says(&nothing.1, &["no_store", other.path().to_str().unwrap()]);
    let usage =
        Command::new(program("pageserver")).args(["serve", "--api", "nonsense"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// The first file of a lane of a timeline.
fn lane_file(server: &Server, timeline: &str, lane: char) -> PathBuf {
    server.data().join(format!("store/lanes/{timeline}.{lane}.00000000"))
}

/// Changes one byte; the second call changes it back.
fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// Where the first page that holds `text` is in a file, and where the text is.
fn find(path: &Path, text: &[u8]) -> u64 {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text);
    at.unwrap_or_else(|| panic!("the text is not in {}", path.display())) as u64
}

#[test]
fn damaged_logs_are_noticed_and_stay_alone() {
    let mut server = Server::start();
    let client = server.client();
    let mut timelines = Vec::new();
    for name in ["head", "page", "sound"] {
        let made =
            client.create(&CreateBranch { name: name.into(), ..Default::default() }).unwrap();
        timelines.push(made.timeline);
        let row = format!("create table t as select 'needle of {name}' as a; checkpoint");
        server.sql(name, &row).unwrap();
    }
    assert!(server.stop().success());
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 0, "{text}");
    says(&text, &[" 0 faults"]);

    // The first record begins behind the file's header of 64 bytes.
    let head = lane_file(&server, &timelines[0], 'd');
    flip(&head, 64 + 20);
    let page = lane_file(&server, &timelines[1], 'd');
    let needle = find(&page, b"needle of page");
    flip(&page, needle);
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 1, "{text}");
    let (head_name, page_name) = (name_of(&head), name_of(&page));
    says(&text, &[&format!("{head_name} is damaged at offset 64"), " 2 faults"]);
    let fault = text.lines().find(|line| line.contains(&page_name)).unwrap();
    let offset: u64 =
        fault.split(" at ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    assert!((offset..offset + 8192).contains(&needle), "{fault}: {needle}");
    says(fault, &["block 0 of inode 0x", "is damaged"]);

    server.restart();
    let refused = server.sql("head", "select 1").unwrap_err();
    says(&refused, &["\"head\" did not start", &head_name, "damaged at offset 64", "backup"]);
    let error = server.client().wake("head").unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (500, "corrupt"), "{error}");
    let unreadable = server.sql("page", "select a from t").unwrap_err();
    says(&unreadable, &["could not read block 0", "Input/output error"]);
    // What the server says takes its time to get here.
    let place = format!("{page_name} at {offset}: block 0 of inode 0x");
    eventually("the log names the page", || {
        server
            .log()
            .lines()
            .any(|line| line.contains(&place) && line.contains("is not what was written"))
    });
    assert_eq!(
        server.sql("page", "select count(*) > 0 from pg_class").unwrap(),
        "t",
        "the rest can be read"
    );
    assert_eq!(server.sql("sound", "select a from t").unwrap(), "needle of sound");
    assert_eq!(server.sql("main", "select 1").unwrap(), "1");
    assert!(server.stop().success());

    // Nothing was lost: with the files restored, all is there.
    flip(&head, 64 + 20);
    flip(&page, needle);
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 0, "{text}");
    server.restart();
    for name in ["head", "page"] {
        assert_eq!(server.sql(name, "select a from t").unwrap(), format!("needle of {name}"));
    }
}

fn name_of(path: &Path) -> String {
    format!("lanes/{}", path.file_name().unwrap().to_string_lossy())
}
