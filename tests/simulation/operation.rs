//! What happens in a run: drawn from the seed beforehand, so that any part can be left out and the
//! rest still means the same.

use pageserver::storage::disk::random::Random;
use std::fmt;

/// One thing that is done to the store or its disk. Numbers choose among what there is when it is
/// done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Make {
        branch: u64,
        place: u64,
        kind: u64,
    },
    Write {
        branch: u64,
        place: u64,
        at: u64,
        length: u64,
        fill: u64,
    },
    Resize {
        branch: u64,
        place: u64,
        size: u64,
    },
    Punch {
        branch: u64,
        place: u64,
        at: u64,
        length: u64,
    },
    Chmod {
        branch: u64,
        place: u64,
        mode: u64,
    },
    Rename {
        branch: u64,
        place: u64,
        to: u64,
        keep: bool,
    },
    Link {
        branch: u64,
        place: u64,
        to: u64,
    },
    Unlink {
        branch: u64,
        place: u64,
        held: bool,
    },
    /// The kernel forgets files that were open without a name.
    Reap {
        branch: u64,
    },
    Sync {
        branch: u64,
        place: u64,
    },
    SyncBoth {
        branch: u64,
    },
    /// A sync that takes until so many of the operations that follow are done, or one of them has
    /// to wait for it.
    SlowSync {
        branch: u64,
        place: u64,
        meanwhile: u64,
    },
    Fork {
        parent: u64,
        newest: bool,
    },
    ForkAt {
        branch: u64,
        mark: u64,
    },
    Reset {
        branch: u64,
        parent: u64,
    },
    Restore {
        branch: u64,
        mark: u64,
    },
    RenameBranch {
        branch: u64,
    },
    Delete {
        branch: u64,
    },
    Mark {
        branch: u64,
    },
    LetGo {
        branch: u64,
        mark: u64,
    },
    /// Seals, with so many of the operations that follow done meanwhile.
    Seal {
        branch: u64,
        lane: u64,
        meanwhile: u64,
    },
    Merge {
        branch: u64,
        lane: u64,
        first: u64,
        meanwhile: u64,
    },
    Flatten,
    CloseUnused,
    Tick,
    /// All that is marked so far is older than the window.
    Age,
    /// Reads everything.
    Verify,
    /// The power goes, or the server is killed.
    Crash {
        how: u64,
    },
    /// The same after so many more operations of the disk.
    StopAfter {
        count: u64,
        how: u64,
    },
    /// One of the next operations of the disk fails.
    FailOnce {
        count: u64,
    },
    /// The same, among those of one of the catalog's files.
    FailCatalog {
        count: u64,
    },
    FailReadOnce {
        count: u64,
    },
    /// One of the next syncs is none; after so many more operations the power goes, and the run
    /// ends.
    Lie {
        count: u64,
        meanwhile: u64,
        unsynced: u64,
    },
    Full {
        room: u64,
    },
    /// A bit of a file is flipped while everything is read, and then back.
    Flip {
        file: u64,
        bit: u64,
    },
    /// A bit is flipped, or a sector lost, with the store stopped and started in between.
    FlipAtRest {
        file: u64,
        bit: u64,
        sector: bool,
    },
    /// The same in the catalog, after a stop or as a killed server leaves it.
    FlipCatalog {
        bit: u64,
        sector: bool,
        killed: bool,
    },
    /// A write goes elsewhere, everything is read, and the run ends.
    Misdirect {
        count: u64,
    },
    Restart,
}

impl Operation {
    /// Whether it is something that the disk or the machine does, or ends a run of the store.
    pub(crate) fn is_fault(self) -> bool {
        use Operation::*;
        matches!(
            self,
            Crash { .. }
                | StopAfter { .. }
                | FailOnce { .. }
                | FailCatalog { .. }
                | FailReadOnce { .. }
                | Lie { .. }
                | Full { .. }
                | Flip { .. }
                | FlipAtRest { .. }
                | FlipCatalog { .. }
                | Misdirect { .. }
                | Restart
        )
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Draws the operations of a run. Every fourth run has no faults but power losses, so that long
/// histories are seen too.
pub(crate) fn draw(seed: u64, count: usize) -> Vec<Operation> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    // The first numbers of neighbouring seeds are alike.
    (0..8).for_each(|_| {
        random.below(2);
    });
    let calm = seed.is_multiple_of(4);
    // While a sync stands still, its branch is worked on. Once it is answered the store often
    // crashes, or the branch is synced first. It may crash, too, before anybody has looked at what
    // the disk refused.
    let (mut slow, mut refused, mut crashes) = (None, 0_u64, false);
    let next = |_| {
        let operation = match slow {
            _ if std::mem::take(&mut crashes) => Operation::Crash { how: random.below(1 << 20) },
            Some((branch, 1)) => match random.below(4) {
                0 => Operation::Crash { how: random.below(1 << 20) },
                1 => {
                    crashes = true;
                    Operation::SyncBoth { branch }
                }
                _ => one(&mut random, calm, Some(branch)),
            },
            None if refused > 0 && random.below(24) == 0 => {
                Operation::Crash { how: random.below(1 << 20) }
            }
            _ => one(&mut random, calm, slow.map(|(branch, _)| branch)),
        };
        slow = match (operation, slow) {
            (Operation::SlowSync { branch, meanwhile, .. }, None) => Some((branch, meanwhile)),
            (_, Some((branch, left))) if left > 1 => Some((branch, left - 1)),
            _ => None,
        };
        refused = match operation {
            Operation::FailOnce { .. } | Operation::FailCatalog { .. } => 12,
            Operation::Crash { .. } => 0,
            _ => refused.saturating_sub(1),
        };
        operation
    };
    (0..count).map(next).collect()
}

fn one(random: &mut Random, calm: bool, on: Option<u64>) -> Operation {
    use Operation::*;
    let mut r = || random.below(1 << 20);
    let (branch, place) = (r(), r());
    let branch = on.unwrap_or(branch);
    match r() % if calm { 92 } else { 100 } {
        0..8 => Make { branch, place, kind: r() },
        8..30 => Write { branch, place, at: r(), length: r(), fill: r() },
        30..34 => Resize { branch, place, size: r() },
        34..36 => Punch { branch, place, at: r(), length: r() },
        36 => Chmod { branch, place, mode: r() },
        37..40 => Rename { branch, place, to: r(), keep: r() % 4 == 0 },
        40..42 => Link { branch, place, to: r() },
        42..46 => Unlink { branch, place, held: r() % 2 == 0 },
        46 => Reap { branch },
        47..51 => Sync { branch, place },
        51..53 => SlowSync { branch, place, meanwhile: 1 + r() % 8 },
        53..55 => SyncBoth { branch },
        55..60 => Fork { parent: branch, newest: r() % 2 == 0 },
        60..62 => ForkAt { branch, mark: r() },
        62 => Reset { branch, parent: r() },
        63 => Restore { branch, mark: r() },
        64 => RenameBranch { branch },
        65..67 => Delete { branch },
        67..71 => Mark { branch },
        71 => LetGo { branch, mark: r() },
        72..78 => Seal { branch, lane: r(), meanwhile: r() % 4 },
        78..82 => Merge { branch, lane: r(), first: r(), meanwhile: r() % 4 },
        82 => Flatten,
        83..85 => CloseUnused,
        85..87 => Tick,
        87 => {
            if r() % 4 == 0 {
                Age
            } else {
                Tick
            }
        }
        88..90 => Verify,
        90 => Crash { how: r() },
        91 => Restart,
        92..95 => StopAfter { count: r() % 24, how: r() },
        95 => FailOnce { count: r() % 16 },
        96 => {
            if r() % 2 == 0 {
                FailOnce { count: r() % 16 }
            } else {
                FailCatalog { count: r() % 16 }
            }
        }
        97 => FailReadOnce { count: r() % 16 },
        98 => match r() % 16 {
            0 => Misdirect { count: r() % 8 },
            1 | 2 => Lie { count: r() % 8, meanwhile: r() % 24, unsynced: r() },
            _ => Flip { file: r(), bit: r() * (1 << 20) + r() },
        },
        _ => {
            let bit = r() * (1 << 20) + r();
            match r() % 4 {
                0 | 1 => Full { room: r() % (64 << 10) },
                2 => FlipAtRest { file: r(), bit, sector: r() % 4 == 0 },
                _ => FlipCatalog { bit, sector: r() % 4 == 0, killed: r() % 2 == 0 },
            }
        }
    }
}
