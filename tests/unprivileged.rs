//! The server started by an ordinary user, where `/dev/fuse` is open to users.
//!
//! The test needs root to become that user, and to open the device to it in a mount namespace of
//! its own, so that the machine stays as it is. A process holds the namespace, which otherwise
//! would go with a killed server and take the stale mount along.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{Directory, Server, eventually, program};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// The user `nobody`, who has no home either.
const NOBODY: u32 = 65534;

/// A mount namespace where everybody may open `/dev/fuse`.
struct Namespace {
    holder: Child,
    /// Where the server mounts.
    mountpoint: PathBuf,
}

impl Namespace {
    fn new(directory: &Directory) -> Self {
        let open = "mknod \"$0\" c 10 229 && chmod 666 \"$0\" && mount --bind \"$0\" /dev/fuse && \
                    echo ready && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["-m", "sh", "-c", open])
            .arg(directory.path().join("fuse"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the namespace was not made");
        Self { holder, mountpoint: directory.path().join("data/mount") }
    }

    /// Runs what follows in it as the ordinary user, with next to no environment.
    fn wrapper(&self) -> Vec<String> {
        let id = NOBODY.to_string();
        let words = [
            "nsenter",
            "-m",
            "-t",
            &self.holder.id().to_string(),
            "setpriv",
            "--reuid",
            &id,
            "--regid",
            &id,
        ];
        let end = ["--clear-groups", "env", "-i", "PATH=/usr/bin:/bin", "NO_COLOR=1"];
        words.into_iter().chain(end).map(str::to_owned).collect()
    }

    fn mounts(&self) -> String {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.holder.id())).unwrap();
        let here = |line: &&str| line.split(' ').nth(1).map(Path::new) == Some(&self.mountpoint);
        mounts.lines().filter(here).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The users of the processes with `directory` on their command line.
fn users(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let of_it = entries.filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("postgres\0") && line.contains(&*directory.to_string_lossy())
    });
    of_it.filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.uid())).collect()
}

#[test]
fn an_ordinary_user_can_do_it_all() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become another user and open /dev/fuse to it");
        return;
    }
    let directory = Arc::new(Directory::new());
    fs::create_dir(directory.path().join("data")).unwrap();
    chown(directory.path().join("data"), Some(NOBODY), Some(NOBODY)).unwrap();
    // The user may not be able to reach the directory where it was built.
    let copy = directory.path().join("pageserver");
    fs::copy(program("pageserver"), &copy).unwrap();
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let namespace = Namespace::new(&directory);
    // What the support passes as the program is replaced by the copy.
    let mut wrapper = namespace.wrapper();
    wrapper.extend(["sh", "-c", "program=$0; shift; exec \"$program\" \"$@\""].map(str::to_owned));
    wrapper.push(copy.display().to_string());

    let mut server = Server::start_wrapped(Arc::clone(&directory), &[], &wrapper);
    assert!(namespace.mounts().contains("user_id=65534"), "{}", namespace.mounts());
    let client = server.client();
    server.sql("main", "create table t as select 1 as a").unwrap();
    let running = users(&server.data());
    assert!(!running.is_empty() && running.iter().all(|user| *user == NOBODY), "{running:?}");
    client.create(&api::types::CreateBranch { name: "b".into(), ..Default::default() }).unwrap();
    server.sql("b", "update t set a = 2").unwrap();
    client.reset("b", &Default::default()).unwrap();
    assert_eq!(server.sql("b", "select a from t").unwrap(), "1");
    client.delete("b").unwrap();
    server.sql("main", "insert into t values (3)").unwrap();

    server.kill();
    eventually("Postgres dies with the server", || users(&server.data()).is_empty());
    assert!(!namespace.mounts().is_empty(), "the killed server left its mount");
    server.restart();
    assert!(server.log().contains("removing the mount of a killed server"), "{}", server.log());
    assert_eq!(namespace.mounts().lines().count(), 1, "{}", namespace.mounts());
    assert_eq!(server.sql("main", "select a from t order by a").unwrap(), "1\n3");
    assert!(server.stop().success());
    assert_eq!(namespace.mounts(), "");
    assert_eq!(users(&server.data()), Vec::<u32>::new());
}
