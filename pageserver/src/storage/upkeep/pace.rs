//! How long background work goes on between rests.
//!
//! One thread works for all lanes, so the next lane waits for the one at hand. Work rests less the
//! further any lane is behind: a client that writes so fast is slowed down before the disk is full.

use crate::error::{Error, Kind, Result};
use crate::storage::page::{Position, Positions};
use crate::sys;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes worked on between two looks at who else wants the machine.
const SLICE_BYTES: u64 = 1 << 20;
/// While others append, the work rests for so many times as long as it works, so that they hardly
/// notice.
const REST: u32 = 4;
/// How long work waits for idle cores, when there is no hurry.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often long work looks whether there is a hurry.
const LOOK_AFTER: Duration = Duration::from_millis(250);
/// Longest rest, so that a slow disk does not keep the server from stopping.
const MAX_REST: Duration = Duration::from_secs(1);

/// Called now and then with the bytes worked on since the last call; an error ends the work.
pub type Pace<'a> = dyn FnMut(u64) -> Result<()> + 'a;

/// Code of the error that ends work when the server stops.
pub(super) const STOPPING: &str = "stopping";

/// Work in slices, with rests in between while others append.
pub(super) struct Slices<'a> {
    positions: &'a Positions,
    stop: &'a AtomicBool,
    /// How many times over its limit a lane is.
    excess: &'a dyn Fn() -> u64,
    /// When all of the work began, when the slice did, and when it was last looked for a hurry.
    since: Instant,
    began: Instant,
    looked: Option<Instant>,
    worked: u64,
    seen: Position,
    rest: u32,
}

impl<'a> Slices<'a> {
    /// Work until `stop` is set, which rests less the higher `excess` is. Others append if
    /// `positions` are taken.
    pub(super) fn new(
        positions: &'a Positions,
        stop: &'a AtomicBool,
        excess: &'a dyn Fn() -> u64,
    ) -> Self {
        let (now, seen) = (Instant::now(), positions.next());
        sys::be_patient(true);
        Self {
            positions,
            stop,
            excess,
            since: now,
            began: now,
            looked: None,
            worked: 0,
            seen,
            rest: REST,
        }
    }

    /// To be called with the bytes worked on; an error ends the work.
    pub(super) fn worked(&mut self, bytes: u64) -> Result<()> {
        self.worked += bytes;
        if self.worked < SLICE_BYTES {
            return Ok(());
        }
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Unavailable, STOPPING, "the server stops"));
        }
        if self.looked.is_none_or(|looked| looked.elapsed() > LOOK_AFTER) {
            self.look();
        }
        let newest = self.positions.next();
        if newest != self.seen {
            std::thread::sleep((self.began.elapsed() * self.rest).min(MAX_REST));
        }
        (self.began, self.worked, self.seen) = (Instant::now(), 0, newest);
        Ok(())
    }

    /// Looks whether there is a hurry, which it otherwise does after the first slice.
    pub(super) fn look(&mut self) {
        self.rest = REST >> (self.excess)().min(u64::from(REST));
        assert!(self.rest <= REST, "rests {} times as long as it works", self.rest);
        self.looked = Some(Instant::now());
        sys::be_patient(self.rest == REST && self.since.elapsed() <= PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::SimDisk;
    use crate::storage::tests::new_store;
    use std::cell::Cell;

    #[test]
    fn work_rests_less_the_further_behind_a_lane_is() {
        let ((store, _), stop, behind) =
            (new_store(&SimDisk::default()), AtomicBool::new(false), Cell::new(0));
        let excess = || behind.get();
        let mut pace = Slices::new(store.positions(), &stop, &excess);
        for (excess, rest) in
            [(0, REST), (1, REST / 2), (2, REST / 4), (3, 0), (u64::MAX, 0), (0, REST)]
        {
            (pace.looked, pace.rest) = (None, REST);
            behind.set(excess);
            pace.worked(SLICE_BYTES - 1).unwrap();
            assert_eq!(pace.rest, REST, "in the middle of a slice");
            pace.worked(1).unwrap();
            assert_eq!(pace.rest, rest, "{excess} times over");
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(pace.worked(SLICE_BYTES).unwrap_err().code, STOPPING);
    }
}
