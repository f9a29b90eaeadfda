//! What a simulated disk knows, and which of its operations fail.

use crate::storage::disk::random::Random;
use crate::storage::disk::sim_contents::SimContents;
use std::collections::BTreeMap;
use std::io;

/// All that a simulated disk knows.
#[derive(Default)]
pub(super) struct SimState {
    pub(super) contents: BTreeMap<u64, SimContents>,
    pub(super) names: BTreeMap<String, u64>,
    pub(super) synced_names: BTreeMap<String, u64>,
    pub(super) next_file: u64,
    /// Which writes and syncs fail, after so many more that do not.
    pub(super) failure: Option<(SimFailure, u64)>,
    pub(super) struck: bool,
    /// Reads left before one fails.
    pub(super) read_failure_after: Option<u64>,
    /// Writes of lanes and layers left before one goes elsewhere.
    pub(super) misdirection_after: Option<u64>,
    /// Syncs left before one says that it was done, and was not.
    pub(super) lie_after: Option<u64>,
    pub(super) stall: Stall,
    pub(super) capacity_bytes: Option<u64>,
    /// What was done, one line each, for golden tests of the order of durability.
    pub(super) trace: Vec<String>,
}

/// Writes and syncs that fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SimFailure {
    All,
    One,
    /// One of this file.
    OneOf(&'static str),
    /// All, because the process that asks is as good as dead; the disk is sound.
    Stop,
}

/// A sync that takes its time.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stall {
    /// None does.
    #[default]
    Not,
    /// The next one of a lane's file will.
    Next,
    /// One has begun.
    Begun,
}

impl SimState {
    pub(super) fn misdirects(&mut self) -> bool {
        let now = self.misdirection_after == Some(0);
        self.misdirection_after = self.misdirection_after.and_then(|left| left.checked_sub(1));
        now
    }

    pub(super) fn lies(&mut self) -> bool {
        let now = self.lie_after == Some(0);
        self.lie_after = self.lie_after.and_then(|left| left.checked_sub(1));
        now
    }

    /// Notes what is done to a file or directory, and says whether it fails.
    pub(super) fn step(&mut self, verb: &str, name: &str, how: &str) -> io::Result<()> {
        self.trace.push(format!("{verb} {name}{}{how}", if how.is_empty() { "" } else { " " }));
        let Some((failure, left)) = &mut self.failure else { return Ok(()) };
        match failure {
            SimFailure::OneOf(only) if *only != name => return Ok(()),
            _ if *left > 0 => {
                *left -= 1;
                return Ok(());
            }
            SimFailure::One | SimFailure::OneOf(_) => self.failure = None,
            SimFailure::All | SimFailure::Stop => {}
        }
        self.struck = true;
        Err(io::Error::other("simulated I/O failure"))
    }
}

/// The names in each directory, as they are or as they were synced.
pub(super) fn mix_names(state: &SimState, random: &mut Random) -> BTreeMap<String, u64> {
    let directory =
        |name: &str| name.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
    let mut survived = BTreeMap::new();
    for name in state.names.keys().chain(state.synced_names.keys()) {
        survived.entry(directory(name)).or_insert_with(|| random.below(2) == 1);
    }
    let kept = |names: &BTreeMap<String, u64>, as_is: bool| {
        let chosen = names.iter().filter(|(name, _)| survived[&directory(name)] == as_is);
        chosen.map(|(name, number)| (name.clone(), *number)).collect::<Vec<_>>()
    };
    kept(&state.names, true).into_iter().chain(kept(&state.synced_names, false)).collect()
}
