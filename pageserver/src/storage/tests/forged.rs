//! Files with right checksums that no build of this program wrote: refused, without a panic.

use super::*;
use crate::storage::disk::overlay::Overlay;
use crate::storage::log::format::{Attributes, Change};
use crate::storage::log::record::{encode_file_header, encode_record, salt};
use crate::storage::page::Position;

const STORE: u64 = 5;

/// A store whose data lane has one record of these changes.
fn forged(position: Position, changes: &[Change]) -> (SimDisk, TimelineId) {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    store.close().unwrap();
    drop(store);
    let file = LaneFileId { timeline: id, lane: LaneKind::Data, sequence: 0 };
    disk.alter(&LaneFiles::describe(file), |bytes| {
        let record = encode_record(salt(STORE, file), position, 0, 0, changes, 0);
        *bytes = [&encode_file_header(STORE, file)[..], &record].concat();
    });
    (disk, id)
}

#[test]
fn a_record_of_a_position_that_no_run_has_reached_is_refused() {
    let (disk, id) = forged(1 << 62, &[]);
    let error = open(&disk).unwrap().timeline(id).err().unwrap();
    assert!(error.code == "corrupt" && error.detail.contains("no run has reached"), "{error}");
}

#[test]
fn sizes_and_times_beyond_all_bounds_are_borne() {
    let file = |inode| {
        let attributes = Attributes {
            kind: FileKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
            size: u64::MAX,
            modified_ns: 0,
            changed_ns: 0,
            target: Vec::new(),
        };
        Change::Attributes { inode, attributes }
    };
    let mark = Change::Mark { time_ns: i64::MIN, kept: true };
    let (disk, id) = forged(9, &[file(7), file(8), mark]);
    let store = open(&disk).unwrap();
    let timeline = store.timeline(id).unwrap();
    assert_eq!(timeline.logical_bytes().data, u64::MAX);
    timeline.mark_if_older(1).unwrap();
}

#[test]
fn a_lane_file_that_is_longer_than_any_is_refused() {
    let disk = SimDisk::default();
    drop(new_store(&disk).0);
    let overlay: Arc<dyn Disk> = Arc::new(Overlay::new(Arc::new(disk)));
    let (lane_files, found) = LaneFiles::open(Arc::clone(&overlay), STORE).unwrap();
    let id = found.values().flatten().map(|(id, _)| *id).min().unwrap();
    overlay.open(&LaneFiles::describe(id)).unwrap().set_len(5 << 30).unwrap();
    let lane = (id.timeline, id.lane);
    let from = (Start::default(), 0);
    let error = recovery::inspect(&lane_files, lane, &[id], from, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.detail.contains("longer than any"), "{error}");
}
