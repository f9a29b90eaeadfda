//! Tests of lane files and their pool.

use super::*;
use crate::storage::disk::sim::{SimDisk, Unsynced};
use crate::storage::log::spares::SPARES;

#[test]
fn names_read_back_and_others_are_left_alone() {
    let id = LaneFileId { timeline: TimelineId(0x1_0000_0001), lane: LaneKind::Wal, sequence: 17 };
    assert_eq!(file_name(id), "100000001.w.00000011");
    assert_eq!(parse_file_name(&file_name(id)), Some(id));
    for name in ["", "x", "00000001.d", "00000001.q.00000000", "1.d.0", "00000001.d.00000000.old"] {
        assert_eq!(parse_file_name(name), None, "{name}");
    }
}

#[test]
fn a_write_ahead_file_comes_from_the_pool_and_goes_back() {
    let disk = SimDisk::default();
    let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
    while files.refill().unwrap() {}
    disk.take_trace();
    let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
    files.create_file(id).unwrap();
    files.retire(id, WAL_FILE_BYTES).unwrap();
    assert_eq!(
        disk.take_trace(),
        [
            "rename lanes/spare.2 lanes/00000002.w.00000000",
            "rename lanes/00000002.w.00000000 lanes/spare.3"
        ]
    );
}

/// What of it is still in memory would be written into another lane's.
#[test]
fn nothing_is_written_to_a_file_that_goes_back() {
    let disk = SimDisk::default();
    let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
    while files.refill().unwrap() {}
    let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
    let (file, _) = files.create_file(id).unwrap();
    let reader = Arc::clone(&file);
    disk.take_trace();
    files.retire_later(vec![(id, WAL_FILE_BYTES, file)], true);
    assert_eq!(disk.take_trace(), [""; 0], "it is read");
    drop(reader);
    files.retire_unread();
    assert_eq!(
        disk.take_trace(),
        ["give-up lanes/00000002.w.00000000", "rename lanes/00000002.w.00000000 lanes/spare.3"]
    );
}

#[test]
fn a_file_that_comes_back_is_not_replaced_meanwhile() {
    let (files, _) = LaneFiles::open(Arc::new(SimDisk::default()), 1).unwrap();
    let fill = || {
        let written = (0..).take_while(|_| files.refill().unwrap());
        written.count()
    };
    let id = |sequence| LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence };
    assert_eq!(fill(), SPARES);
    files.create_file(id(0)).unwrap();
    // The first refill after a file was begun waits for what comes.
    assert_eq!((fill(), fill()), (0, 0));
    files.retire(id(0), WAL_FILE_BYTES).unwrap();
    (1..3).for_each(|sequence| drop(files.create_file(id(sequence)).unwrap()));
    assert_eq!((fill(), fill()), (0, 2), "two are gone");
    assert_eq!(fill(), 0);
    // Under a load each is replaced.
    (3..7).for_each(|sequence| drop(files.create_file(id(sequence)).unwrap()));
    assert_eq!((fill(), fill()), (0, 2 * SPARES));
    files.create_file(id(7)).unwrap();
    assert_eq!((fill(), fill()), (0, 1));
}

/// A crash may have lost the name under which it held another lane's first record, and kept
/// this older one.
#[test]
fn a_file_that_was_there_at_the_start_is_not_recycled() {
    let disk = SimDisk::default();
    let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
    while files.refill().unwrap() {}
    let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
    files.create_file(id).unwrap();
    let (files, found) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
    assert_eq!(found[&id.timeline], [(id, WAL_FILE_BYTES)]);
    disk.take_trace();
    files.retire(id, WAL_FILE_BYTES).unwrap();
    assert_eq!(disk.take_trace(), ["remove lanes/00000002.w.00000000"]);
}

#[test]
fn a_spare_file_that_was_a_lanes_before_a_crash_begins_with_nothing() {
    let disk = SimDisk::default();
    let open = |disk: &SimDisk| LaneFiles::open(Arc::new(disk.clone()), 1).unwrap().0;
    let files = open(&disk);
    while files.refill().unwrap() {}
    files.sync_directory().unwrap();
    let id = LaneFileId { timeline: TimelineId(2), lane: LaneKind::Wal, sequence: 0 };
    let (file, _) = files.create_file(id).unwrap();
    file.write_all_at(&[&[7; 300]], 0).unwrap();
    let mut was_a_lanes = 0;
    for seed in 0..20 {
        let left = disk.after_power_loss(Unsynced::Mixed(seed));
        let mut first = [0; 300];
        let Ok(spare) = left.open("lanes/spare.2") else { continue };
        spare.read_exact_at(&mut first, 0).unwrap();
        was_a_lanes += usize::from(first[0] == 7);
        open(&left);
        let left = left.after_power_loss(Unsynced::Lost);
        left.open("lanes/spare.2").unwrap().read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first[..112], [0; 112], "seed {seed}");
    }
    assert!(was_a_lanes > 0);
}

#[test]
fn a_spare_file_that_cannot_be_cleared_is_removed() {
    let disk = SimDisk::default();
    let (files, _) = LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
    while files.refill().unwrap() {}
    disk.fail_once_after(0);
    LaneFiles::open(Arc::new(disk.clone()), 1).unwrap();
    assert_eq!(disk.files().len(), SPARES - 1);
}

#[test]
fn a_spare_file_of_the_last_number_is_no_trouble() {
    let disk = SimDisk::default();
    disk.create(&format!("lanes/spare.{}", u64::MAX)).unwrap();
    let (files, _) = LaneFiles::open(Arc::new(disk), 1).unwrap();
    assert!(!files.has_spare(), "it is too short");
}
