//! A full disk: Postgres reports it, nothing acknowledged is lost, and work goes on once there is
//! room.
//!
//! The store is on a small ext4 file system of its own, in a loop-mounted file, which needs root.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{Directory, Server, check, eventually};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

const DISK_BYTES: u64 = 512 << 20;

/// A file system of its own below a test's directory, at the place of a server's data.
struct SmallDisk(Arc<Directory>);

impl SmallDisk {
    fn new() -> Self {
        let disk = Self(Arc::new(Directory::new()));
        let (image, data) = (disk.0.path().join("image"), disk.0.path().join("data"));
        fs::File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        fs::create_dir(&data).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&data));
        fs::set_permissions(&data, PermissionsExt::from_mode(0o711)).unwrap();
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let data = self.0.path().join("data");
        for mount in ["mount", "mount-wal"] {
            let _ = Command::new("umount").arg("-l").arg(data.join(mount)).output();
        }
        let _ = Command::new("umount").arg(data).output();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Inserts a number, then much else, again and again until that fails. Returns the last number
/// acknowledged and what Postgres said.
fn fill(server: &Server, branch: &str) -> (u32, String) {
    for number in 1..10_000 {
        let small = server.sql(branch, &format!("insert into acknowledged values ({number})"));
        if let Err(error) = small {
            return (number - 1, error);
        }
        // Incompressible, and too long to be kept in the row, so that it becomes as many pages. The
        // checkpoint keeps short what a restart has to write again.
        let bulk = "insert into bulk select string_agg(md5(random()::text), '') \
                    from generate_series(1, 120000) i group by i % 60";
        if let Err(error) = server.sql(branch, bulk).and_then(|_| server.sql(branch, "checkpoint"))
        {
            return (number, error);
        }
    }
    panic!("the disk did not fill up");
}

#[test]
fn a_full_disk_is_reported_and_survived() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small disk");
        return;
    }
    let disk = SmallDisk::new();
    let mut server = Server::start_with(Arc::clone(&disk.0), &[]);
    let client = server.client();
    server
        .sql("main", "create table kept as select generate_series(1, 1000) i; checkpoint")
        .unwrap();
    for name in ["ballast", "filler"] {
        client
            .create(&api::types::CreateBranch { name: name.into(), ..Default::default() })
            .unwrap();
        server.sql(name, "create table acknowledged (i int); create table bulk (t text)").unwrap();
    }
    let much = "insert into bulk select string_agg(md5(random()::text), '') \
                from generate_series(1, 2000000) i group by i % 2000; checkpoint";
    server.sql("ballast", much).unwrap();

    let (acknowledged, error) = fill(&server, "filler");
    let reported = |text: &str| text.contains("No space left on device");
    // The client of a failed checkpoint is only told that Postgres crashed; the server logs
    // Postgres's own words.
    let logged = || server.log().lines().any(|line| line.contains("PANIC: ") && reported(line));
    eventually("Postgres reports the full disk", || reported(&error) || logged());
    assert!(acknowledged > 2, "{acknowledged} transactions fit: {error}");
    assert_eq!(server.sql("main", "select count(*), sum(i) from kept").unwrap(), "1000|500500");
    let refused =
        client.create(&api::types::CreateBranch { name: "more".into(), ..Default::default() });
    if let Err(error) = refused {
        assert_eq!((error.status, error.code.as_str()), (507, "disk_full"), "{error}");
    }
    let full = client.status().unwrap().free_bytes;

    client.delete("ballast").unwrap();
    eventually("space is freed", || client.status().unwrap().free_bytes > full + (32 << 20));
    let _ = client.suspend("filler");
    client.wake("filler").unwrap_or_else(|error| panic!("{error}"));
    let numbers = server.sql("filler", "select i from acknowledged").unwrap();
    let mut numbers: Vec<u32> = numbers.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    // The one that failed may be there too.
    let complete = (1..=acknowledged).eq(numbers.iter().copied().take(acknowledged as usize));
    assert!(complete && numbers.len() <= acknowledged as usize + 1, "{acknowledged}: {numbers:?}");
    server.sql("filler", "insert into acknowledged values (0); checkpoint").unwrap();
    server.sql("main", "create table after as select 1 as a").unwrap();
    client
        .create(&api::types::CreateBranch { name: "after".into(), ..Default::default() })
        .unwrap();
    assert_eq!(server.sql("after", "select a from after").unwrap(), "1");

    assert!(server.stop().success());
    let (exit, text) = check(&server.data());
    assert_eq!(exit, 0, "{text}");
    server.restart();
    let count = server.sql("filler", "select count(*) from acknowledged where i > 0").unwrap();
    assert_eq!(count.parse::<usize>().unwrap(), numbers.len());
}
