//! Figures of a benchmark: printed as they come, and kept for `make bench-docs`.

use crate::postgres;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What a benchmark has measured so far.
pub struct Figures {
    name: &'static str,
    rows: Vec<Value>,
}

/// Where the benchmarks keep their results.
pub fn results(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| root.join("target")).join("bench").join(format!("{name}.json"))
}

/// The machine in a few words.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let gib = kib.unwrap_or(0).div_ceil(1 << 20);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: Vec<&str> = kernel.split('.').take(2).collect();
    let postgres = postgres().version;
    format!("{cores} cores, {gib} GiB, Linux {}, PostgreSQL {postgres}", kernel.join("."))
}

impl Figures {
    /// No figures yet.
    pub fn new(name: &'static str) -> Self {
        println!("{:<48} {:>8} {:>8} {:>8} {:>8}  milliseconds", "", "p50", "p90", "p99", "max");
        Self { name, rows: Vec::new() }
    }

    /// How long something took, each time.
    pub fn times(&mut self, what: &str, times: &[Duration]) {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let ms = |part: usize| sorted[(sorted.len() - 1) * part / 100].as_secs_f64() * 1e3;
        let (p50, p90, p99, max, count) = (ms(50), ms(90), ms(99), ms(100), sorted.len());
        println!("{what:<48} {p50:>8.2} {p90:>8.2} {p99:>8.2} {max:>8.2}  n={count}");
        self.rows.push(json!({"what": what, "p50": p50, "p99": p99, "max": max, "count": count}));
    }

    /// Something that is no time.
    pub fn fact(&mut self, what: &str, value: &str) {
        println!("{what:<48} {value}");
        self.rows.push(json!({"what": what, "value": value}));
    }

    /// Keeps the figures.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn save(&self) {
        let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output();
        let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let at = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        let commit = commit.unwrap_or_default();
        let kept = json!({"at": at, "commit": commit, "machine": machine(), "rows": self.rows});
        let path = results(self.name);
        std::fs::create_dir_all(path.with_file_name("")).expect("make the directory of results");
        std::fs::write(path, format!("{kept:#}\n")).expect("write the results");
    }
}
