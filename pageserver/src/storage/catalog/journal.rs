//! Changes of the catalog that are durable and not yet in its database.
//!
//! A transaction of `redb` writes some ten pages at scattered places, and syncs them. A record here
//! is one write, mostly of one block, behind the record before it. When no more fit, all of them
//! become one transaction, and the journal begins anew. An opening reads from the records what the
//! database does not know yet.
//!
//! Each record begins with a block of its own, so a torn write never touches the record before. It
//! bears the number of its change and the checksum of the record before it, so records that are
//! left from an earlier use of the file continue nothing.

use crate::error::{Error, Result};
use crate::storage::disk::{BLOCK_BYTES, Disk, DiskFile, ZEROS, settle};
use crate::storage::sabotage::{self, Defect};
use std::io;
use std::ops::Range;
use std::sync::Arc;

pub(super) const JOURNAL_FILE: &str = "journal";
/// Length of the file. What it holds has to fit into the reserve of the database's file, and is
/// folded while a request waits.
pub(super) const JOURNAL_BYTES: usize = 1 << 20;
const MAGIC: [u8; 8] = *b"COPPICEJ";
/// Version of the file. Changes of version 1 name branches and timelines; later ones are rows.
const FORMAT: u32 = 2;
const OLDEST: u32 = 1;
const CRC_OFFSET: usize = 12;
const STORE_OFFSET: usize = 16;
const NUMBER_OFFSET: usize = 24;
const AFTER_OFFSET: usize = 32;
const LENGTH_OFFSET: usize = 36;
const HEADER_BYTES: usize = 40;

/// The open file, written to from its beginning.
pub(super) struct Journal {
    file: Arc<dyn DiskFile>,
    end: usize,
    /// Checksum of the newest record.
    newest: u32,
}

/// A change as it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundChange {
    pub(in crate::storage) store: u64,
    pub(super) number: u64,
    /// Version of the journal that it is from.
    pub(super) format: u32,
    pub(super) payload: Vec<u8>,
}

/// A record that checks.
struct JournalRecord {
    format: u32,
    store: u64,
    number: u64,
    crc: u32,
    after: u32,
    payload: Range<usize>,
}

/// The record without the zeros behind it, and its checksum.
fn encode(store: u64, number: u64, after: u32, payload: &[u8]) -> (Vec<u8>, u32) {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..CRC_OFFSET].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[STORE_OFFSET..NUMBER_OFFSET].copy_from_slice(&store.to_le_bytes());
    bytes[NUMBER_OFFSET..AFTER_OFFSET].copy_from_slice(&number.to_le_bytes());
    bytes[AFTER_OFFSET..LENGTH_OFFSET].copy_from_slice(&after.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes[LENGTH_OFFSET..].copy_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    let crc = crc32fast::hash(&bytes[STORE_OFFSET..]);
    bytes[CRC_OFFSET..STORE_OFFSET].copy_from_slice(&crc.to_le_bytes());
    (bytes, crc)
}

impl JournalRecord {
    /// The one at `offset`, if it checks.
    fn at(bytes: &[u8], offset: usize) -> Option<Self> {
        let header = bytes.get(offset..)?.first_chunk::<HEADER_BYTES>()?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|nth| header[at + nth]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|nth| header[at + nth]));
        let format = u32_at(8);
        if header[..8] != MAGIC || !(OLDEST..=FORMAT).contains(&format) {
            return None;
        }
        let start = offset + HEADER_BYTES;
        let payload = start..start.checked_add(usize::try_from(u32_at(LENGTH_OFFSET)).ok()?)?;
        let checked = bytes.get(offset + STORE_OFFSET..payload.end)?;
        let crc = u32_at(CRC_OFFSET);
        (crc32fast::hash(checked) == crc).then(|| Self {
            format,
            store: u64_at(STORE_OFFSET),
            number: u64_at(NUMBER_OFFSET),
            crc,
            after: u32_at(AFTER_OFFSET),
            payload,
        })
    }

    fn end(&self) -> usize {
        self.payload.end.next_multiple_of(BLOCK_BYTES)
    }

    fn follows(&self, previous: Option<&Self>) -> bool {
        match previous {
            Some(previous) => {
                previous.number.checked_add(1) == Some(self.number) && self.after == previous.crc
            }
            None => self.after == 0,
        }
    }
}

/// The version of the format of a journal that begins so; none if it does not begin as any does.
fn version(bytes: &[u8]) -> Option<u32> {
    let header = bytes.first_chunk::<HEADER_BYTES>().filter(|header| header[..8] == MAGIC)?;
    Some(u32::from_le_bytes(std::array::from_fn(|nth| header[8 + nth])))
}

/// The changes behind the `known` first ones that a journal of these bytes holds, oldest first.
pub(super) fn changes_after(known: u64, bytes: &[u8]) -> Result<Vec<FoundChange>> {
    if let Some(format) = version(bytes).filter(|format| !(OLDEST..=FORMAT).contains(format)) {
        return Err(Error::corrupt(format!(
            "the file {JOURNAL_FILE} is damaged or has format version {format}, and this build \
             reads {OLDEST} to {FORMAT}: use the build that wrote it, or newer"
        )));
    }
    let (mut newest, mut offset): (Option<JournalRecord>, usize) = (None, 0);
    let mut found = Vec::new();
    while let Some(record) =
        JournalRecord::at(bytes, offset).filter(|record| record.follows(newest.as_ref()))
    {
        if record.number > known {
            let JournalRecord { format, store, number, ref payload, .. } = record;
            found.push(FoundChange {
                store,
                number,
                format,
                payload: bytes[payload.clone()].to_vec(),
            });
        }
        offset = record.end();
        newest = Some(record);
    }
    let complete = newest.map_or(0, |record| record.number).max(known);
    let left =
        (offset..bytes.len()).step_by(BLOCK_BYTES).filter_map(|at| JournalRecord::at(bytes, at));
    if let Some(newest) = left.map(|record| record.number).max().filter(|number| *number > complete)
    {
        return Err(Error::corrupt(format!(
            "the file catalog or {JOURNAL_FILE} is damaged: change {newest} is there, and change \
             {} is not; restore the store from a backup",
            complete + 1
        )));
    }
    if let Some(first) = found.first().filter(|first| first.number - 1 != known) {
        return Err(Error::corrupt(format!(
            "the file catalog is damaged or from an older backup, or the file {JOURNAL_FILE} is: \
             the one knows {known} changes, the other goes on with change {}; put back the whole \
             store from a backup",
            first.number
        )));
    }
    Ok(found)
}

/// The changes behind the `known` first ones of the store on `disk`.
pub(super) fn read(disk: &dyn Disk, known: u64) -> Result<Vec<FoundChange>> {
    let failed = |error: io::Error| Error::io(format!("read the file {JOURNAL_FILE}"), &error);
    let file = match disk.open(JOURNAL_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    settle(&*file).map_err(failed)?;
    let length = usize::try_from(file.len_bytes().map_err(failed)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(JOURNAL_BYTES)];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    changes_after(known, &bytes)
}

impl Journal {
    /// Begins anew. What was in it has to be in the database.
    pub(super) fn begin(disk: &dyn Disk) -> io::Result<Self> {
        let length = match disk.open(JOURNAL_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?.len_bytes()?),
        };
        if length != Some(JOURNAL_BYTES as u64) {
            if length.is_some() {
                disk.remove(JOURNAL_FILE)?;
            }
            make(disk)?;
        }
        disk.sync_directory("")?;
        Ok(Self { file: disk.open_to_append(JOURNAL_FILE)?, end: 0, newest: 0 })
    }

    /// Whether a change of so many bytes fits behind the others.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        bytes <= JOURNAL_BYTES
            && self.end + (HEADER_BYTES + bytes).next_multiple_of(BLOCK_BYTES) <= JOURNAL_BYTES
    }

    /// Makes the change durable. After an error nobody knows whether it is, and the journal takes
    /// no more.
    pub(super) fn append(&mut self, store: u64, number: u64, payload: &[u8]) -> io::Result<()> {
        assert!(self.takes(payload.len()), "{} bytes behind {}", payload.len(), self.end);
        assert!(self.end.is_multiple_of(BLOCK_BYTES), "a record at {}", self.end);
        let (record, crc) = encode(store, number, self.newest, payload);
        let rest = record.len().next_multiple_of(BLOCK_BYTES) - record.len();
        self.file.write_all_at(&[&record, &ZEROS[..rest]], self.end as u64)?;
        if !sabotage::active(Defect::CatalogSync) {
            self.file.sync()?;
        }
        self.newest = crc;
        self.end += record.len() + rest;
        Ok(())
    }
}

/// Makes the file, with blocks that the disk has really given.
fn make(disk: &dyn Disk) -> io::Result<()> {
    if disk.free_bytes()? < 2 * JOURNAL_BYTES as u64 {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let file = disk.create_to_fill(JOURNAL_FILE)?;
    let fill = || {
        (0..JOURNAL_BYTES)
            .step_by(ZEROS.len())
            .try_for_each(|at| file.write_all_at(&[ZEROS], at as u64))?;
        file.sync()
    };
    fill().inspect_err(|_| {
        // If it stays, it is found to be short, or whole.
        let _ = disk.remove(JOURNAL_FILE);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::{SimDisk, Unsynced};

    const STORE: u64 = 9;

    fn payload(number: u64) -> Vec<u8> {
        // The fourth is longer than a block.
        vec![number.to_le_bytes()[0]; if number.is_multiple_of(4) { 5000 } else { 100 }]
    }

    fn found(number: u64) -> FoundChange {
        FoundChange { store: STORE, number, format: FORMAT, payload: payload(number) }
    }

    /// Lets the disk's journal begin anew with these changes.
    fn write(disk: &SimDisk, numbers: std::ops::RangeInclusive<u64>) -> Journal {
        let mut journal = Journal::begin(disk).unwrap();
        numbers.for_each(|number| journal.append(STORE, number, &payload(number)).unwrap());
        journal
    }

    fn bytes(disk: &SimDisk) -> Vec<u8> {
        let mut bytes = vec![0; JOURNAL_BYTES];
        disk.open(JOURNAL_FILE).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn what_was_appended_is_found_behind_what_is_known() {
        let disk = SimDisk::default();
        assert_eq!(read(&disk, 0).unwrap(), []);
        write(&disk, 5..=12);
        for known in 4..=14 {
            assert_eq!(
                read(&disk, known).unwrap(),
                (known + 1..=12).map(found).collect::<Vec<_>>()
            );
        }
        let error = read(&disk, 3).unwrap_err();
        assert!(
            error.detail.contains("catalog") && error.detail.contains("knows 3 changes"),
            "{error}"
        );
    }

    #[test]
    fn what_earlier_lives_left_continues_nothing() {
        let disk = SimDisk::default();
        write(&disk, 1..=20);
        assert_eq!(bytes(&disk)[..8], MAGIC);
        write(&disk, 21..=23);
        assert_eq!(read(&disk, 20).unwrap(), [21, 22, 23].map(found));
        // As after a catalog that was put back and went on: the numbers fit.
        let other = SimDisk::default();
        write(&other, 1..=20);
        let mut journal = Journal::begin(&other).unwrap();
        (1..=2).for_each(|number| journal.append(STORE, number, b"other").unwrap());
        let error = read(&other, 0).unwrap_err();
        assert!(error.detail.contains("change 20 is there"), "{error}");
        // Cut off in its first record: all that was there before is known.
        let mut torn = bytes(&disk);
        torn[..BLOCK_BYTES].fill(0);
        assert_eq!(changes_after(20, &torn).unwrap_err().code, "corrupt");
        assert_eq!(changes_after(23, &torn).unwrap(), []);
    }

    #[test]
    fn damage_is_noticed_unless_it_is_of_the_last_change() {
        let disk = SimDisk::default();
        let end = write(&disk, 1..=6).end;
        let whole = bytes(&disk);
        let last = end - BLOCK_BYTES;
        for at in 0..end {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            match changes_after(0, &flipped) {
                Ok(found) if found.len() == 6 => {
                    assert_eq!(found, (1..=6).map(super::tests::found).collect::<Vec<_>>())
                }
                Ok(found) => assert!(at >= last && found.len() == 5, "byte {at}: {}", found.len()),
                Err(error) => assert!(error.detail.contains(JOURNAL_FILE), "{error}"),
            }
        }
        for length in (0..last + HEADER_BYTES + payload(6).len()).step_by(97) {
            assert!(changes_after(0, &whole[..length]).unwrap().len() < 6);
        }
    }

    #[test]
    fn it_takes_what_fits_and_is_made_anew_if_it_is_short() {
        let disk = SimDisk::default();
        let mut journal = Journal::begin(&disk).unwrap();
        assert!(!journal.takes(JOURNAL_BYTES) && journal.takes(JOURNAL_BYTES - HEADER_BYTES));
        assert!(!journal.takes(usize::MAX));
        let mut count = 0;
        while journal.takes(3 * BLOCK_BYTES) {
            count += 1;
            journal.append(STORE, count, &vec![1; 3 * BLOCK_BYTES]).unwrap();
        }
        assert_eq!(count, (JOURNAL_BYTES / BLOCK_BYTES / 4) as u64);
        assert_eq!(
            (disk.files()[0].1, read(&disk, 0).unwrap().len() as u64),
            (JOURNAL_BYTES, count)
        );
        disk.alter(JOURNAL_FILE, |bytes| bytes.truncate(5000));
        write(&disk, 1..=3);
        assert_eq!((disk.files()[0].1, read(&disk, 0).unwrap().len()), (JOURNAL_BYTES, 3));
    }

    #[test]
    fn on_a_full_disk_none_is_left_half_made() {
        let disk = SimDisk::default();
        disk.set_capacity_bytes(Some(JOURNAL_BYTES as u64 / 2));
        assert!(Journal::begin(&disk).is_err());
        assert_eq!(disk.files(), []);
    }

    #[test]
    fn one_that_could_not_be_made_is_made_later() {
        for count in 0.. {
            let disk = SimDisk::default();
            disk.fail_once_after(count);
            let begun = Journal::begin(&disk);
            assert_eq!(begun.is_err(), disk.failed(), "{count}");
            disk.fail_after(None);
            write(&disk, 1..=3);
            assert_eq!(
                read(&disk.after_power_loss(Unsynced::Lost), 0).unwrap().len(),
                3,
                "{count}"
            );
            if begun.is_ok() {
                return;
            }
        }
    }

    #[test]
    fn one_of_another_version_is_refused() {
        let disk = SimDisk::default();
        write(&disk, 1..=3);
        disk.alter(JOURNAL_FILE, |bytes| bytes[8] = 3);
        let error = read(&disk, 0).unwrap_err();
        assert!(
            error.detail.contains("version 3") && error.detail.contains("use the build"),
            "{error}"
        );
    }
}
