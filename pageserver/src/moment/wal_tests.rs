//! A write-ahead log made by hand, with all that a real one may have, and what is found in it.

use super::*;
use crate::fs::tree::NewInode;
use crate::storage::disk::random::Random;
use crate::storage::disk::sim::SimDisk;
use crate::storage::store::Store;
use std::sync::Arc;

const SEGMENT: u64 = 1 << 20;

/// Writes records as Postgres lays them out.
struct TestLog {
    /// From where on there are bytes: the start of a segment.
    start: u64,
    bytes: Vec<u8>,
    previous: u64,
    /// Start, end and time of each record that counts.
    records: Vec<(u64, u64, Option<i64>)>,
}

impl TestLog {
    fn new() -> Self {
        Self { start: 3 * SEGMENT, bytes: Vec::new(), previous: 0, records: Vec::new() }
    }

    fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn page_header(&mut self, flags: u16, remaining: usize) {
        let at = self.at();
        let long = at.is_multiple_of(SEGMENT);
        let flags = flags | if long { 2 } else { 0 };
        let mut header = vec![0; if long { 40 } else { 24 }];
        header[0..2].copy_from_slice(&0xd110_u16.to_le_bytes());
        header[2..4].copy_from_slice(&flags.to_le_bytes());
        header[8..16].copy_from_slice(&at.to_le_bytes());
        header[16..20].copy_from_slice(&u32::try_from(remaining).unwrap().to_le_bytes());
        if long {
            header[32..36].copy_from_slice(&u32::try_from(SEGMENT).unwrap().to_le_bytes());
            header[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        }
        self.bytes.extend(header);
    }

    fn encode(&self, length: usize, manager: u8, info: u8, time: i64) -> Vec<u8> {
        let mut record = vec![7; length];
        record[0..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        record[8..16].copy_from_slice(&self.previous.to_le_bytes());
        (record[16], record[17], record[24], record[25]) = (info, manager, 255, 8);
        record[26..34].copy_from_slice(&time.to_le_bytes());
        record
    }

    /// Lays out as much of a record as `limit` pages take; returns where it begins.
    fn lay(&mut self, record: &[u8], limit: usize, flags: u16) -> u64 {
        if self.bytes.len().is_multiple_of(PAGE_BYTES) {
            self.page_header(flags, 0);
        }
        let start = self.at();
        let (mut done, mut pages) = (0, 0);
        while done < record.len() {
            if self.bytes.len().is_multiple_of(PAGE_BYTES) {
                pages += 1;
                if pages > limit {
                    return start;
                }
                self.page_header(1, record.len() - done);
            }
            let room = PAGE_BYTES - self.bytes.len() % PAGE_BYTES;
            let part = room.min(record.len() - done);
            self.bytes.extend(&record[done..done + part]);
            done += part;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        start
    }

    fn put(&mut self, length: usize, (manager, info): (u8, u8), time: Option<i64>, flags: u16) {
        let record = self.encode(length, manager, info, time.unwrap_or(0));
        let start = self.lay(&record, usize::MAX, flags);
        if (manager, info) == SWITCH {
            self.bytes
                .resize(self.bytes.len().next_multiple_of(usize::try_from(SEGMENT).unwrap()), 0);
        }
        self.records.push((start, self.at(), time));
        self.previous = start;
    }

    fn commit(&mut self, time: i64) {
        self.put(60, (TRANSACTION, 0), Some(time), 0);
    }

    /// A record that a crash cut off, and the next one as a restart writes it.
    fn give_up(&mut self, length: usize, pages: usize, then: i64) {
        let record = self.encode(length, 11, 0, 0);
        self.lay(&record, pages, 0);
        self.bytes.resize(self.bytes.len().next_multiple_of(PAGE_BYTES), 0);
        self.put(40, (0, 0xd0), None, 8);
        self.commit(then);
    }

    fn tree(&self) -> Tree {
        let store = Store::open(Arc::new(SimDisk::default()), 5).unwrap();
        let tree = Tree::new(store.timeline(store.create_root().unwrap()).unwrap());
        tree.make_root((0, 0), 0).unwrap();
        let new = |kind| NewInode { kind, mode: 0o600, owner: (0, 0), target: &[] };
        let (directory, _) =
            tree.make(ROOT_INODE, b"pg_wal", &new(FileKind::Directory), 0).unwrap();
        for (nth, part) in self.bytes.chunks(usize::try_from(SEGMENT).unwrap()).enumerate() {
            let name = format!("0000000100000000{:08X}", self.start / SEGMENT + nth as u64);
            let (file, _) = tree.make(directory, name.as_bytes(), &new(FileKind::File), 0).unwrap();
            tree.write(file, 0, part).unwrap();
            let size = Some(SEGMENT);
            tree.set_attributes(file, &Wanted { size, ..Wanted::default() }).unwrap();
        }
        tree
    }

    /// Each record is found, from the first one on.
    fn check(&self) {
        let tree = self.tree();
        let wal = Wal::open(&tree).unwrap();
        let first = Lsn(self.records[0].0);
        let end = self.records[self.records.len() - 1].1;
        assert_eq!(
            wal.find(first, Stop::Time(i64::MAX)).unwrap(),
            Err(WalEnd { at: Lsn(end), is_last: true })
        );
        for (nth, (start, record_end, time)) in self.records.iter().enumerate() {
            if let Some(time) = time {
                assert_eq!(
                    wal.find(first, Stop::Time(time - 1)).unwrap(),
                    Ok(Lsn(*start)),
                    "record {nth}"
                );
            }
            assert_eq!(
                wal.find(first, Stop::Lsn(Lsn(record_end - 1))).unwrap(),
                Ok(Lsn(*start)),
                "record {nth}"
            );
        }
        assert_eq!(wal.end().unwrap(), Lsn(end));
        let near = wal.near_end().unwrap().0;
        // Behind a long record nothing may have begun yet.
        assert!(
            near == end || self.records.iter().any(|(start, ..)| *start == near),
            "{near:x} is no record"
        );
    }
}

#[test]
fn each_record_is_found() {
    for seed in 1..20 {
        let (mut log, mut random) = (TestLog::new(), Random(seed));
        for time in 1..400 {
            match random.below(40) {
                0 => log.put(40, SWITCH, None, 0),
                1 => log.put(20 * PAGE_BYTES + 13, (0, 0xb0), None, 0),
                2..20 => log.commit(time),
                _ => {
                    let length = 40 + usize::try_from(random.below(9_000)).unwrap();
                    log.put(length, (10, 0), None, 0);
                }
            }
        }
        log.commit(400);
        log.check();
    }
}

#[test]
fn a_record_that_was_given_up_is_passed_over() {
    for (length, pages) in [(30_000, 1), (30_000, 2), (200_000, 20), (9_000, 0)] {
        let mut log = TestLog::new();
        log.commit(1);
        log.put(7_000, (10, 0), None, 0);
        log.give_up(length, pages, 2);
        (3..50).for_each(|time| log.commit(time));
        log.check();
    }
}

#[test]
fn a_long_record_at_the_end_is_found_whole_or_not_at_all() {
    let mut log = TestLog::new();
    (1..50).for_each(|time| log.commit(time));
    let end = log.at();
    log.put(60 * PAGE_BYTES, (0, 0xb0), None, 0);
    log.check();
    // Half of it was not written yet.
    log.bytes.truncate(30 * PAGE_BYTES);
    let tree = log.tree();
    let wal = Wal::open(&tree).unwrap();
    let first = Lsn(log.records[0].0);
    assert_eq!(
        wal.find(first, Stop::Time(i64::MAX)).unwrap(),
        Err(WalEnd { at: Lsn(end), is_last: true })
    );
    assert_eq!(wal.end().unwrap(), Lsn(end));
}

#[test]
fn a_log_that_breaks_off_in_the_middle_is_not_taken_for_its_end() {
    let mut log = TestLog::new();
    (1..2_000).for_each(|time| log.commit(time));
    let broken = log.records[700].0;
    let at = usize::try_from(broken - log.start).unwrap();
    log.bytes[at..at + 24].fill(9);
    let tree = log.tree();
    let wal = Wal::open(&tree).unwrap();
    let found = wal.find(Lsn(log.records[0].0), Stop::Time(1_000)).unwrap();
    assert_eq!(found, Err(WalEnd { at: Lsn(broken), is_last: false }));
}

#[test]
fn a_cut_ends_the_log_before_a_record() {
    let (mut log, mut random) = (TestLog::new(), Random(3));
    for time in 1..1_500 {
        log.put(
            60 + usize::try_from(random.below(3_000)).unwrap(),
            (TRANSACTION, 0),
            Some(time),
            0,
        );
    }
    assert!(log.bytes.len() as u64 > 2 * SEGMENT);
    for nth in [1, 300, 700, 1_498] {
        let tree = log.tree();
        let (start, ..) = log.records[nth];
        Wal::open(&tree).unwrap().cut(Lsn(start), 0).unwrap();
        let wal = Wal::open(&tree).unwrap();
        // The header of a page is there already when the first record behind it is not.
        let end = log.records[nth - 1].1;
        let found = wal.find(Lsn(log.records[0].0), Stop::Time(i64::MAX)).unwrap();
        assert_eq!(found, Err(WalEnd { at: Lsn(end), is_last: true }), "{nth}");
    }
}

#[test]
fn an_lsn_is_read_as_postgres_prints_it() {
    assert_eq!(Lsn::parse("16/B374D848"), Some(Lsn(0x16_B374_D848)));
    assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
    for bad in ["", "0", "/", "0/", "/1", "0/1G", "0/123456789", "-1/2", "0/1/2", "0x1/2", "+1/2"] {
        assert_eq!(Lsn::parse(bad), None, "{bad}");
    }
}

#[test]
fn only_segments_have_names_of_segments() {
    assert_eq!(parse_name(b"0000000A00000001000000FF"), Some((10, 1, 255)));
    for other in [
        &b"00000001.history"[..],
        b"archive_status",
        b"00000001000000010000000G",
        b"000000010000000100000002.partial",
    ] {
        assert_eq!(parse_name(other), None);
    }
}
