//! The number of the catalog's newest change, in a file beside it: the catalog cannot go back
//! unnoticed.
//!
//! `redb` and the journal make a change durable with one sync. If the newest change does not check
//! after a crash, they take it for one that the crash cut off, and show what was before. That is
//! right, unless the change was durable and something damaged it since. So the number of each
//! durable change is noted here, and an opening refuses a catalog that has fewer changes.
//!
//! A note costs a write and no sync. The sync follows within a second. A power loss in between can
//! lose notes: they say what there was at least.

use crate::error::{Error, Result};
use crate::storage::disk::{Disk, DiskFile, settle};
use crate::storage::sabotage::{self, Defect};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const WITNESS_FILE: &str = "witness";
const MAGIC: [u8; 8] = *b"COPPICEW";
const FORMAT: u32 = 1;
const CRC_OFFSET: usize = 12;
const STORE_OFFSET: usize = 16;
const NUMBER_OFFSET: usize = 24;
const NOTE_BYTES: usize = 32;
/// One place keeps the note that was made and synced when the store was opened, and the others take
/// turns: so one damaged sector leaves another note, and so does a write that fails before the
/// notes of others are synced. A place that a failed write left damaged is the next one to be
/// written to.
const PLACES: u64 = 3;
/// As far from one another as the sectors of any disk are long.
const PLACE_BYTES: u64 = 4096;

/// The open file.
pub(super) struct Witness {
    file: Arc<dyn DiskFile>,
    unsynced: AtomicBool,
    /// The place that is not written to.
    kept: AtomicU64,
    /// Notes that were written. One that could not be written wholly is written over by the next.
    turn: AtomicU64,
}

/// What is found at one of the places.
#[derive(Debug, PartialEq, Eq)]
enum Note {
    /// Nobody has written there.
    Empty,
    Sound {
        store: u64,
        number: u64,
    },
    Damaged,
}

fn encode(store: u64, number: u64) -> [u8; NOTE_BYTES] {
    let mut bytes = [0; NOTE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..CRC_OFFSET].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[STORE_OFFSET..NUMBER_OFFSET].copy_from_slice(&store.to_le_bytes());
    bytes[NUMBER_OFFSET..].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&bytes[STORE_OFFSET..]);
    bytes[CRC_OFFSET..STORE_OFFSET].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; NOTE_BYTES]) -> Note {
    let number_at = |at: usize| {
        let field: [u8; 8] = std::array::from_fn(|nth| bytes[at + nth]);
        u64::from_le_bytes(field)
    };
    let (store, number) = (number_at(STORE_OFFSET), number_at(NUMBER_OFFSET));
    if bytes.iter().all(|byte| *byte == 0) {
        Note::Empty
    } else if *bytes == encode(store, number) {
        Note::Sound { store, number }
    } else {
        Note::Damaged
    }
}

impl Witness {
    /// Opens or makes the file.
    pub(super) fn open(disk: &Arc<dyn Disk>) -> Result<Self> {
        let failed = |error: io::Error| Error::io(format!("open the file {WITNESS_FILE}"), &error);
        let file = match disk.open(WITNESS_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = disk.create(WITNESS_FILE).map_err(failed)?;
                disk.sync_directory("").map_err(failed)?;
                file
            }
            opened => opened.map_err(failed)?,
        };
        settle(&*file).map_err(failed)?;
        // The room is taken now, so that a full disk takes notes.
        let length = file.len_bytes().map_err(failed)?;
        let missing = usize::try_from((PLACES * PLACE_BYTES).saturating_sub(length)).unwrap_or(0);
        if missing > 0 {
            file.write_all_at(&[&vec![0; missing]], length).map_err(failed)?;
        }
        let (kept, turn) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { file, unsynced: AtomicBool::new(true), kept, turn })
    }

    /// Refuses a catalog of `store` with so many changes if there were more.
    pub(super) fn check(&self, store: Option<u64>, changes: u64) -> Result<()> {
        let mut notes = Vec::new();
        for nth in 0..PLACES {
            let mut bytes = [0; NOTE_BYTES];
            let read = self.file.read_exact_at(&mut bytes, nth * PLACE_BYTES);
            read.map_err(|error| Error::io(format!("read the file {WITNESS_FILE}"), &error))?;
            notes.push(decode(&bytes));
        }
        let sound = |(place, note): (u64, &Note)| {
            if let Note::Sound { store, number } = note {
                Some((*number, *store, place))
            } else {
                None
            }
        };
        let Some((newest, of, place)) = (0..).zip(&notes).filter_map(sound).max() else {
            if notes.contains(&Note::Damaged) {
                return Err(Error::corrupt(format!(
                    "the file {WITNESS_FILE}, which says how new the catalog is, is damaged or of \
                     another version; remove it if the file catalog was not put back from a backup"
                )));
            }
            return Ok(());
        };
        self.kept.store(place, Ordering::SeqCst);
        if store.is_some_and(|store| store != of) {
            return Err(Error::corrupt(format!(
                "the files catalog and {WITNESS_FILE} are of different stores"
            )));
        }
        if changes < newest && !sabotage::active(Defect::CatalogWitness) {
            return Err(Error::corrupt(format!(
                "the file catalog or journal is damaged or from an older backup: {newest} changes \
                 were made, and they know {changes}; put back the whole store from a backup"
            )));
        }
        if notes.contains(&Note::Damaged) {
            tracing::warn!("a note in the file {WITNESS_FILE} is damaged; another one is sound");
        }
        Ok(())
    }

    fn next_place(&self) -> u64 {
        let turn = self.turn.load(Ordering::SeqCst) % (PLACES - 1);
        let kept = self.kept.load(Ordering::SeqCst);
        let place = (kept + 1 + turn) % PLACES;
        assert_ne!(place, kept, "the note that is kept would be written over");
        place
    }

    /// Makes the first note after an opening, and keeps it.
    pub(super) fn begin(&self, store: u64, changes: u64) {
        let place = self.next_place();
        if self.note(store, changes) && self.sync() {
            self.kept.store(place, Ordering::SeqCst);
        }
    }

    /// Notes that so many changes are durable; false if that failed. Without the note nothing is
    /// lost, so it is no error.
    pub(super) fn note(&self, store: u64, changes: u64) -> bool {
        let written =
            self.file.write_all_at(&[&encode(store, changes)], self.next_place() * PLACE_BYTES);
        self.unsynced.store(true, Ordering::SeqCst);
        match written {
            Ok(()) => {
                self.turn.fetch_add(1, Ordering::SeqCst);
                true
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "how new the catalog is could not be noted in the file {WITNESS_FILE}"
                );
                false
            }
        }
    }

    /// Makes what was noted survive a power loss; false if that failed.
    pub(super) fn sync(&self) -> bool {
        if !self.unsynced.swap(false, Ordering::SeqCst) {
            return true;
        }
        let synced = self.file.sync();
        if let Err(error) = &synced {
            tracing::warn!(%error, "the file {WITNESS_FILE} could not be synced");
        }
        synced.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::{SimDisk, Unsynced};

    #[test]
    fn a_note_survives_encoding_and_a_flipped_bit_is_noticed() {
        let bytes = encode(7, 1 << 40);
        assert_eq!(decode(&bytes), Note::Sound { store: 7, number: 1 << 40 });
        assert_eq!(decode(&[0; NOTE_BYTES]), Note::Empty);
        for bit in 0..NOTE_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), Note::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn a_disk_that_fails_leaves_one_note_sound() {
        let sim = SimDisk::default();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let mut notes = 1;
        for known in [1, 3, 4] {
            let witness = Witness::open(&disk).unwrap();
            witness.check(None, known).unwrap();
            witness.begin(9, known);
            // The last one fails, and what the power loss leaves of those before is any of them.
            notes = (notes + 1) % 3;
            (0..notes).for_each(|_| assert!(witness.note(9, known + 1)));
            sim.fail_after(Some(0));
            (0..4).for_each(|_| assert!(!witness.note(9, known + 1)));
            sim.fail_after(None);
            for seed in 0..100 {
                let after: Arc<dyn Disk> = Arc::new(sim.after_power_loss(Unsynced::Mixed(seed)));
                let found = Witness::open(&after).unwrap();
                assert!(found.check(Some(9), known + 1).is_ok(), "{known}, {seed}");
                assert!(found.check(Some(9), known - 1).is_err(), "{known}, {seed}");
            }
        }
    }

    #[test]
    fn an_older_catalog_is_refused_also_with_one_note_damaged() {
        let sim = SimDisk::default();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let witness = Witness::open(&disk).unwrap();
        witness.check(None, 0).unwrap();
        (1..=5).for_each(|number| assert!(witness.note(9, number)));
        let refused = |changes| witness.check(Some(9), changes).err().map(|error| error.detail);
        assert!(refused(5).is_none() && refused(6).is_none());
        assert!(
            refused(4).is_some_and(
                |words| words.contains("the file catalog") && words.contains("5 changes")
            )
        );
        assert!(witness.check(Some(8), 5).is_err(), "another store");
        let damage = |place: usize| {
            sim.alter(WITNESS_FILE, |bytes| bytes[place * 4096 + NUMBER_OFFSET] ^= 1)
        };
        damage(1);
        assert!(
            refused(4).is_none() && refused(3).is_some_and(|words| words.contains("4 changes"))
        );
        damage(2);
        assert!(refused(9).is_some_and(|words| words.contains(WITNESS_FILE)));
    }
}
