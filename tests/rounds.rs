//! Rounds of a mixed load that end in a crash of one kind or another, after each of which every
//! branch is looked at.
//!
//! `COPPICE_TEST_ROUNDS` sets how many (4, one of each kind); `make rounds` does 200.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{CreateBranch, ResetBranch};
use coppice::commits::{self, Acknowledged, Clients};
use coppice::mixed::{self, Mixed};
use coppice::{Directory, Server, processes, tpcb};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Limits that seal and merge all the time.
const FLAGS: [&str; 4] = ["--log-limit", "8", "--seal-after", "1"];

/// So often main is made small again, since a round looks at every row.
const TRIM_EVERY: usize = 20;
/// What was seen to be there goes; all that must hold still does.
const TRIM: &str = "begin; select lo_unlink(id) from documents; truncate documents, pile, commits, \
    pairs, pgbench_history; update pgbench_accounts set abalance = 0 where abalance <> 0; update \
    pgbench_tellers set tbalance = 0; update pgbench_branches set bbalance = 0; commit";

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A disk of its own for a server, whose bytes can be copied as a power cut would leave them.
struct Disk {
    directory: Arc<Directory>,
    image: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let directory = Arc::new(Directory::new());
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(4 << 30).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"])
            .arg(&image));
        let disk = Self { directory, image };
        disk.mount();
        disk
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn mount(&self) {
        fs::create_dir_all(self.data()).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(self.data()));
        fs::set_permissions(self.data(), PermissionsExt::from_mode(0o711)).unwrap();
    }

    fn unmount(&self) {
        let data = self.data();
        for mount in ["mount", "mount-wal"] {
            let _ = Command::new("umount").arg("-l").arg(data.join(mount)).output();
        }
        // The computes of a killed server may take a moment to end.
        for _ in 0..100 {
            let outcome = Command::new("umount").arg(&data).output();
            if outcome.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(std::thread::panicking(), "{} cannot be unmounted", data.display());
    }

    /// What is on the disk at this moment, without what the system has not written to it yet, takes
    /// its place.
    fn cut(&self, server: &mut Server) {
        let pid = server.pid().to_string();
        let copy = self.directory.path().join("copy");
        // The server stands still, and so does the disk but for what the system writes of itself.
        run(Command::new("kill").args(["-STOP", &pid]));
        run(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy));
        // Killed where it stands: it may not acknowledge anything that the copy lacks.
        server.kill();
        self.unmount();
        fs::rename(&copy, &self.image).unwrap();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

#[derive(Clone, Copy, Debug)]
enum Crash {
    Server,
    Postmaster,
    Backend,
    Disk,
}

const CRASHES: [Crash; 4] = [Crash::Server, Crash::Disk, Crash::Postmaster, Crash::Backend];

impl Crash {
    fn happen(self, server: &mut Server, disk: &Disk) {
        match self {
            Self::Server => {
                server.kill();
                server.restart();
            }
            Self::Disk => {
                disk.cut(server);
                server.restart();
            }
            Self::Postmaster => {
                let found = processes::postmasters(server, processes::of_branch(server, "main"));
                found.iter().for_each(processes::Process::kill);
            }
            Self::Backend => {
                let postmaster =
                    processes::postmasters(server, processes::of_branch(server, "main"));
                let mut all = processes::of_branch(server, "main");
                all.retain(|process| !postmaster.contains(process));
                if let Some(backend) = all.last() {
                    backend.kill();
                    // Until the postmaster has noticed, it takes connections that end with it.
                    coppice::eventually("Postgres ends with its backend", || {
                        let now =
                            processes::postmasters(server, processes::of_branch(server, "main"));
                        !now.iter().any(|process| postmaster.contains(process))
                    });
                }
            }
        }
        // Who comes before the server has noticed is told to connect again.
        coppice::eventually("main can be reached again", || server.sql("main", "select 1").is_ok());
    }
}

/// What is known to be on the branches.
#[derive(Default)]
struct Known {
    commits: Acknowledged,
    mixed: BTreeMap<String, BTreeMap<&'static str, i32>>,
}

/// Loads `main`, makes, resets and deletes branches meanwhile, and lets it crash.
fn round(server: &mut Server, disk: &Disk, nth: usize, first: i32) -> Known {
    let client = server.client();
    let load = tpcb::Load::start(server, "main", 2, 600);
    let clients = Clients::start(server, &["main"], 2);
    let mixed = Mixed::start(server, "main", first);
    let mut known = Known::default();
    clients.wait_for("main", 20);
    for (step, name) in ["a", "b", "c"].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(200 + 150 * (nth as u64 % 5)));
        // What was acknowledged before the request is on the branch.
        let (commits, work) = (clients.so_far().remove("main").unwrap_or_default(), mixed.so_far());
        if nth > 0 && step == 1 {
            client.reset(name, &ResetBranch::default()).unwrap();
        } else {
            if nth > 0 {
                client.delete(name).unwrap();
            }
            client.create(&CreateBranch { name: name.into(), ..CreateBranch::default() }).unwrap();
        }
        known.commits.insert(name.into(), commits);
        known.mixed.insert(name.into(), work);
        if step == 0 {
            server.sql(name, "update wide set t = t; checkpoint").unwrap();
        }
    }
    clients.wait_for("main", 20);
    let crash = CRASHES[nth % CRASHES.len()];
    crash.happen(server, disk);
    known.commits.insert("main".into(), clients.finish().remove("main").unwrap_or_default());
    known.mixed.insert("main".into(), mixed.finish());
    drop(load);
    println!("round {nth}: {crash:?} after {:?}", known.mixed["main"]);
    known
}

#[test]
fn every_branch_is_whole_after_each_crash() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount a disk of its own");
        return;
    }
    let rounds: usize =
        std::env::var("COPPICE_TEST_ROUNDS").map_or(CRASHES.len(), |text| text.parse().unwrap());
    let disk = Disk::new();
    let mut server = Server::start_with(Arc::clone(&disk.directory), &FLAGS);
    tpcb::initialize(&server, "main", 2);
    commits::initialize(&server, "main");
    mixed::initialize(&server, "main");
    let mut total = 0;
    for nth in 0..rounds {
        let first = i32::try_from(1 + nth * 100_000).unwrap();
        let known = round(&mut server, &disk, nth, first);
        std::thread::scope(|scope| {
            for (branch, numbers) in &known.commits {
                let (server, known) = (&server, &known);
                scope.spawn(move || {
                    commits::verify(server, branch, numbers);
                    mixed::verify(server, branch, &known.mixed[branch], first);
                    tpcb::verify(server, branch);
                });
            }
        });
        total += known.commits["main"].len();
        if nth % TRIM_EVERY == TRIM_EVERY - 1 {
            server.sql("main", TRIM).unwrap();
        }
        if nth % 8 == 7 {
            tpcb::verify_checksums(&server, "main");
        }
    }
    println!("{rounds} rounds, {total} acknowledged commits, all there");
    tpcb::verify_checksums(&server, "main");
    assert!(server.stop().success());
    let (code, said) = coppice::check(Path::new(&disk.data()));
    assert_eq!(code, 0, "{said}");
    drop(server);
}
