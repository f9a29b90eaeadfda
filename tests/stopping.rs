//! The server ends when it is told to, whoever has its mounts open, and starts again afterwards.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::Server;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that goes on until it is dropped.
struct Bystander(Child);

impl Bystander {
    /// Started by a shell; when this returns, the shell has become `sleep`.
    fn start(shell: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", shell]).stdin(Stdio::null()).stdout(Stdio::null());
        let bystander = Self(command.spawn().unwrap());
        let name = format!("/proc/{}/comm", bystander.0.id());
        coppice::eventually("the bystander sleeps", || {
            std::fs::read_to_string(&name).is_ok_and(|name| name.trim() == "sleep")
        });
        bystander
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_copy_of_the_mounts_in_another_namespace_does_not_hold_up_the_end() {
    if !is_root() {
        return eprintln!("NOT TESTED: only root makes mount namespaces");
    }
    let mut server = Server::start();
    server.sql("main", "create table kept as select 7 as n").unwrap();
    let file = server.data().join("mount");
    let _copy = Bystander::start("exec unshare --mount --propagation private sleep 1000");
    let began = Instant::now();
    assert!(server.stop().success(), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    assert_eq!(std::fs::read_dir(&file).unwrap().count(), 0, "nothing is mounted any more");
    server.restart();
    assert_eq!(server.sql("main", "select n from kept").unwrap(), "7");
    // The same after a crash.
    let _copy = Bystander::start("exec unshare --mount --propagation private sleep 1000");
    server.kill();
    server.restart();
    assert_eq!(server.sql("main", "select n from kept").unwrap(), "7");
    assert!(server.stop().success(), "{}", server.log());
}

#[test]
fn a_process_in_the_mount_does_not_hold_up_the_end() {
    let mut server = Server::start();
    server.sql("main", "create table kept as select 7 as n").unwrap();
    let mount = server.data().join("mount");
    let _inside = Bystander::start(&format!("cd '{}' && exec sleep 1000", mount.display()));
    let began = Instant::now();
    assert!(server.stop().success(), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert!(server.log().contains("processes still use the mount"), "{}", server.log());
    server.restart();
    assert_eq!(server.sql("main", "select n from kept").unwrap(), "7");
}
