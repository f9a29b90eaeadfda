//! How large the run is: sizes and rounds, from the environment or by default.

use coppice::sides::number;
use serde_json::{Value, json};

/// The sections, in the order in which they run: what reads a fresh branch comes before what
/// changes it.
pub(crate) const SECTIONS: [&str; 8] =
    ["branches", "cold", "select", "bulk", "checkpoint", "tpcb", "proxy", "storage"];
/// What the names of all variables begin with.
const PREFIX: &str = "COPPICE_BENCH_";

/// Sizes and rounds.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Tiny sizes, which show that everything works and measure nothing.
    pub(crate) quick: bool,
    /// Scale of pgbench: 15 MB each.
    pub(crate) scale: u64,
    /// Rounds of most measurements.
    pub(crate) rounds: u64,
    /// Rounds of those that take long, or that are sums of many.
    pub(crate) long_rounds: u64,
    /// Seconds of TPC-B in a round.
    pub(crate) tpcb_seconds: u64,
    /// Seconds of other loads in a round.
    pub(crate) seconds: u64,
    /// Branches created for the time of a creation.
    pub(crate) creates: u64,
    /// Branches created and woken for the times to the first row.
    pub(crate) wakes: u64,
    /// Rows loaded by `COPY`, and half as many again by `CREATE TABLE AS`.
    pub(crate) rows: u64,
    /// Megabytes that are dirty before a checkpoint.
    pub(crate) dirty_mb: u64,
    /// Rows read by key from a cold disk.
    pub(crate) cold_reads: u64,
    /// Scale of the database whose branches are weighed.
    pub(crate) storage_scale: u64,
    /// How many branches there are when they are weighed.
    pub(crate) storage_branches: Vec<u64>,
    /// Whether to measure ext4 on a loop device too, which shows what the device costs the others.
    pub(crate) control: bool,
    /// More mount options for btrfs.
    pub(crate) btrfs_options: String,
    /// The sections to run.
    only: Vec<String>,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Panics
    /// If a variable says what cannot be.
    pub(crate) fn read() -> Self {
        let quick = variable("QUICK", 0) != 0;
        let sized = |name, full, tiny| variable(name, if quick { tiny } else { full });
        let branches = if quick { vec![1, 5, 10] } else { vec![1, 10, 100] };
        let only = std::env::var(format!("{PREFIX}ONLY")).unwrap_or_default();
        let only: Vec<String> = only
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        for name in &only {
            assert!(
                SECTIONS.contains(&name.as_str()),
                "no section is called {name}; there are {SECTIONS:?}"
            );
        }
        Self {
            quick,
            scale: sized("SCALE", 30, 2),
            rounds: sized("ROUNDS", 5, 1),
            long_rounds: sized("LONG_ROUNDS", 4, 1),
            tpcb_seconds: sized("TPCB_SECONDS", 5, 1),
            seconds: sized("SECONDS", 3, 1),
            creates: sized("CREATES", 100, 10),
            wakes: sized("WAKES", 15, 2),
            rows: sized("ROWS", 2_000_000, 100_000),
            dirty_mb: sized("DIRTY_MB", 500, 32),
            cold_reads: sized("COLD_READS", 3000, 200),
            storage_scale: sized("STORAGE_SCALE", 5, 1),
            storage_branches: branches,
            control: variable("CONTROL", 0) != 0,
            btrfs_options: std::env::var(format!("{PREFIX}BTRFS_OPTIONS")).unwrap_or_default(),
            only,
        }
    }

    /// Whether a section is to run.
    pub(crate) fn runs(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == section)
    }

    /// Bytes of the file under each loop device: the base, a branch that changes all of it, bulk
    /// loads, write-ahead log.
    pub(crate) fn volume_bytes(&self) -> u64 {
        let database = self.scale * (16 << 20);
        let bulk = (self.rows * 600).max(self.dirty_mb << 21);
        2 * database + bulk + (3 << 30)
    }

    /// The same for the branches that are weighed.
    pub(crate) fn storage_volume_bytes(&self) -> u64 {
        let branches = self.storage_branches.iter().max().copied().unwrap_or(0);
        2 * self.storage_scale * (16 << 20) + branches * (24 << 20) + (1 << 29)
    }

    /// All of it, for the results.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "scale": self.scale,
            "rounds": self.rounds,
            "long_rounds": self.long_rounds,
            "tpcb_seconds": self.tpcb_seconds,
            "seconds": self.seconds,
            "creates": self.creates,
            "wakes": self.wakes,
            "rows": self.rows,
            "dirty_mb": self.dirty_mb,
            "cold_reads": self.cold_reads,
            "storage_scale": self.storage_scale,
            "storage_branches": self.storage_branches,
            "btrfs_options": self.btrfs_options,
        })
    }
}

fn variable(name: &str, default: u64) -> u64 {
    number(&format!("{PREFIX}{name}"), default)
}

/// The variables that were given, as they would be typed.
pub(crate) fn given() -> String {
    let mut given: Vec<String> = std::env::vars()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    given.sort();
    given.join(" ")
}
