//! The machine that was measured on, in words.

use coppice::postgres;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Syncs of one page, of which the one in the middle is told.
const SYNCS: usize = 100;

/// What there is to know of the machine and of the file system that `directory` is on.
///
/// # Panics
/// If that is in memory, where nothing that is measured here costs what it costs on a disk.
pub(crate) fn describe(directory: &Path) -> Value {
    let (device, kind) = file_system(directory);
    assert!(
        kind != "tmpfs" && kind != "ramfs",
        "{} is in memory: set TMPDIR to a directory on a disk",
        directory.display()
    );
    json!({
        "cpu": cpu(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_gib": memory_gib(),
        "system": system(),
        "kernel": first_line(Command::new("uname").args(["-r"])),
        "file_system": kind,
        "device": device,
        "sync_ms": sync_ms(directory),
        "postgres": postgres().version,
        "coppice": env!("CARGO_PKG_VERSION"),
        "commit": first_line(Command::new("git").args(["describe", "--always", "--dirty"])),
        "btrfs": first_line(Command::new("mkfs.btrfs").arg("--version")),
        "xfs": first_line(Command::new("mkfs.xfs").arg("-V")),
        "pgbouncer": first_line(Command::new(crate::bouncer::PROGRAM).arg("--version")),
    })
}

/// What a program says of itself; nothing if it is not there.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(|line| line.trim().to_owned())
}

fn field(path: &str, name: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.split_once(separator).filter(|(key, _)| key.trim() == name));
    line.map(|(_, value)| value.trim().trim_matches('"').to_owned())
}

fn cpu() -> String {
    field("/proc/cpuinfo", "model name", ':').unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn system() -> String {
    field("/etc/os-release", "PRETTY_NAME", '=').unwrap_or_else(|| "Linux".to_owned())
}

fn memory_gib() -> Option<u64> {
    let kib: u64 = field("/proc/meminfo", "MemTotal", ':')?.split(' ').next()?.parse().ok()?;
    Some(kib.div_ceil(1 << 20))
}

/// Device and kind of the file system of a directory.
fn file_system(directory: &Path) -> (String, String) {
    let mounts = fs::read_to_string("/proc/mounts").expect("read the mounts");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let above = fields.filter(|fields| fields.len() > 2 && directory.starts_with(fields[1]));
    // Of those at the same place, the newest is seen.
    let own =
        above.max_by_key(|fields| fields[1].len()).expect("the directory is on some file system");
    (own[0].to_owned(), own[2].to_owned())
}

/// How long a page takes to become durable in a file that has it, in milliseconds.
fn sync_ms(directory: &Path) -> f64 {
    let path = directory.join("sync");
    let file = File::create(&path).expect("make a file");
    let mut times: Vec<f64> = (0..=SYNCS)
        .map(|_| {
            let began = Instant::now();
            file.write_all_at(&[1; 8192], 0).and_then(|()| file.sync_data()).expect("sync a page");
            began.elapsed().as_secs_f64() * 1e3
        })
        .skip(1)
        .collect();
    fs::remove_file(path).expect("remove the file");
    times.sort_by(f64::total_cmp);
    times[SYNCS / 2]
}
