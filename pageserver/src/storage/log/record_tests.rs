//! Tests of records as bytes.

use super::*;
use crate::storage::log::format::{Attributes, FileKind, TO_END};

const SALT: u32 = 7;

fn all_changes() -> Vec<Change> {
    let attributes = Attributes {
        kind: FileKind::Symlink,
        mode: 0o777,
        uid: 1,
        gid: 2,
        links: 1,
        size: 5,
        modified_ns: -4,
        changed_ns: 9,
        target: b"../ts".to_vec(),
    };
    vec![
        Change::Pages { inode: 9, block: 3, crcs: vec![1, 2] },
        Change::Zeros { inode: 9, block: 5, count: TO_END },
        Change::Attributes { inode: 10, attributes },
        Change::Size { inode: 9, size: 1 << 40, modified_ns: 1 },
        Change::Gone { inode: 11 },
        Change::Name { directory: 1, name: b"base".to_vec(), inode: 12, kind: FileKind::Directory },
        Change::NoName { directory: 1, name: b"x".to_vec() },
        Change::Part { inode: 9, block: 6, start: 8000, crc: 3, bytes: b"commit".to_vec() },
        Change::Mark { time_ns: -5, kept: true },
        Change::NoMark { mark: 17 },
    ]
}

#[test]
fn a_record_reads_back() {
    let bytes = encode_record(SALT, 30, 20, 10, &all_changes(), 2);
    let header = decode_header(&bytes).unwrap();
    assert_eq!((header.position, header.previous, header.durable, header.pages), (30, 20, 10, 2));
    assert!(record_checks(&header, SALT, &bytes));
    assert!(!record_checks(&header, SALT + 1, &bytes), "another file's salt");
    let changes = &bytes[RECORD_HEADER_BYTES..header.pages_offset()];
    assert_eq!(decode_changes(&header, changes).unwrap(), all_changes());
}

#[test]
fn each_flipped_bit_is_noticed() {
    let bytes = encode_record(SALT, 30, 20, 10, &all_changes(), 2);
    for bit in 0..(bytes.len() * 8) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let sound = decode_header(&damaged).is_some_and(|h| record_checks(&h, SALT, &damaged));
        // Bytes 40..48 of the header are reserved but still covered.
        assert!(!sound, "bit {bit} passed unnoticed");
    }
}

#[test]
fn a_cut_record_does_not_check() {
    let bytes = encode_record(SALT, 30, 20, 10, &all_changes(), 2);
    for length in 0..bytes.len() {
        let cut = &bytes[..length];
        assert!(
            !decode_header(cut).is_some_and(|h| record_checks(&h, SALT, cut)),
            "cut at {length}"
        );
    }
}

#[test]
fn a_file_header_belongs_to_one_file() {
    let file = LaneFileId { timeline: TimelineId(3), lane: LaneKind::Wal, sequence: 4 };
    let bytes = encode_file_header(99, file);
    check_file_header(&bytes, 99, file).unwrap();
    for other in [
        LaneFileId { timeline: TimelineId(4), ..file },
        LaneFileId { lane: LaneKind::Data, ..file },
        LaneFileId { sequence: 5, ..file },
    ] {
        assert!(check_file_header(&bytes, 99, other).is_err());
    }
    assert!(check_file_header(&bytes, 98, file).is_err());
    let mut newer = bytes;
    newer[8] = 2;
    assert_eq!(check_file_header(&newer, 99, file), Err(HeaderFault::Version(2)));
}

#[test]
fn a_record_makes_one_mark_at_most() {
    let mark = || Change::Mark { time_ns: 1, kept: false };
    let bytes = encode_record(SALT, 30, 20, 10, &[mark(), mark()], 0);
    let header = decode_header(&bytes).unwrap();
    let error = decode_changes(&header, &bytes[RECORD_HEADER_BYTES..]).unwrap_err();
    assert!(error.contains("2 marks"), "{error}");
}
