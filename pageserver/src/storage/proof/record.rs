//! What must hold for any bytes of a lane file.
//!
//! Invariants checked: nothing panics; a decoded record header keeps within its limits; changes
//! that decode encode to a record that checks and decodes to the same; one flipped bit of it, or
//! one missing byte, does not check.

use super::bits::{STORE, flip_a_bit};
use crate::storage::log::format::{Change, MAX_CHANGES_BYTES, MAX_PAGES};
use crate::storage::log::record::{
    self, FILE_HEADER_BYTES, LaneFileId, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader,
};
use crate::storage::page::{LaneKind, TimelineId};

/// The file that the bytes are said to be from.
const FILE: LaneFileId = LaneFileId { timeline: TimelineId(3), lane: LaneKind::Data, sequence: 0 };

/// Checks all of it on `bytes`, taken as the start of a lane file and as a record.
///
/// # Panics
/// If something does not hold.
pub fn record(bytes: &[u8]) {
    file_header(bytes);
    let Some(header) = record::decode_header(bytes) else { return };
    assert!(header.changes_bytes <= MAX_CHANGES_BYTES, "{} bytes of changes", header.changes_bytes);
    assert!(header.pages <= MAX_PAGES, "{} pages", header.pages);
    assert!(
        header.total_bytes().is_multiple_of(RECORD_ALIGNMENT),
        "{} bytes",
        header.total_bytes()
    );
    record::record_checks(&header, record::salt(STORE, FILE), bytes);
    // Tried whether or not the record checks, or few mutants would get further than the checksum.
    let changes = &bytes[RECORD_HEADER_BYTES..header.pages_offset().min(bytes.len())];
    match record::decode_changes(&header, changes) {
        // Also where the checksum is right: whoever writes to the disk can compute one.
        Err(reason) => assert!(!reason.is_empty(), "no reason"),
        Ok(changes) => round_trip(&header, &changes, bytes),
    }
}

fn file_header(bytes: &[u8]) {
    if record::check_file_header(bytes, STORE, FILE).is_ok() {
        assert_eq!(bytes[..FILE_HEADER_BYTES], record::encode_file_header(STORE, FILE));
    }
}

fn round_trip(header: &RecordHeader, changes: &[Change], input: &[u8]) {
    let salt = record::salt(STORE, FILE);
    let RecordHeader { position, previous, durable, pages, .. } = *header;
    let mut bytes = record::encode_record(salt, position, previous, durable, changes, pages);
    assert!(
        bytes.len() <= header.pages_offset(),
        "{} bytes, longer than what came in",
        bytes.len()
    );
    let again = record::decode_header(&bytes).expect("what was encoded has a header");
    let same = RecordHeader {
        crc: again.crc,
        changes_bytes: bytes.len() - RECORD_HEADER_BYTES,
        ..*header
    };
    assert_eq!(again, same);
    assert!(record::record_checks(&again, salt, &bytes), "what was encoded checks");
    assert_eq!(
        record::decode_changes(&again, &bytes[RECORD_HEADER_BYTES..]).as_deref(),
        Ok(changes)
    );
    assert!(!record::record_checks(&again, salt, &bytes[..bytes.len() - 1]), "a cut record checks");
    let bit = flip_a_bit(&mut bytes, input);
    let damaged = record::decode_header(&bytes);
    assert!(
        !damaged.is_some_and(|h| record::record_checks(&h, salt, &bytes)),
        "bit {bit} passed unnoticed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;

    #[test]
    fn holds_for_random_changes() {
        let mut numbers = Random(1);
        let mut byte = || numbers.below(256).to_le_bytes()[0];
        for _ in 0..20_000 {
            let random: Vec<u8> = (0..byte() % 96).map(|_| byte()).collect();
            record(&random);
            // A sound header of a record without pages, so that the changes are looked at.
            let mut bytes = record::encode_record(0, 3, 2, 1, &[], 0);
            bytes[32..36].copy_from_slice(&96_u32.to_le_bytes());
            bytes.push(byte() % 10);
            bytes.extend_from_slice(&random);
            bytes.resize(RECORD_HEADER_BYTES + 96, 0);
            record(&bytes);
        }
    }
}
