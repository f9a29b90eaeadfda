//! What must hold for any bytes that a disk gives back, for fuzzing and random tests.
//!
//! Invariants of [`record`]: nothing panics; a decoded record header keeps within its limits;
//! changes that decode encode to a record that checks and decodes to the same; one flipped bit of
//! it, or one missing byte, does not check. Those of [`layer()`] and [`catalog()`] are in the files
//! of the same names.

mod catalog;
mod layer;

pub use catalog::catalog;
pub use layer::layer;

use crate::storage::log::format::{
    self, Change, FILE_HEADER_BYTES, LaneFileId, LaneKind, MAX_CHANGES_BYTES, MAX_PAGES,
    RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader,
};
use crate::storage::page::TimelineId;

/// The store and the file that the bytes are said to be from.
const STORE: u64 = 99;
const FILE: LaneFileId = LaneFileId { timeline: TimelineId(3), lane: LaneKind::Data, sequence: 0 };

/// Checks all of it on `bytes`, taken as the start of a lane file and as a record.
///
/// # Panics
/// If something does not hold.
pub fn record(bytes: &[u8]) {
    file_header(bytes);
    let Some(header) = format::decode_header(bytes) else { return };
    assert!(header.changes_bytes <= MAX_CHANGES_BYTES, "{} bytes of changes", header.changes_bytes);
    assert!(header.pages <= MAX_PAGES, "{} pages", header.pages);
    assert!(
        header.total_bytes().is_multiple_of(RECORD_ALIGNMENT),
        "{} bytes",
        header.total_bytes()
    );
    format::record_checks(&header, format::salt(STORE, FILE), bytes);
    // Tried whether or not the record checks, or few mutants would get further than the checksum.
    let changes = &bytes[RECORD_HEADER_BYTES..header.pages_offset().min(bytes.len())];
    match format::decode_changes(&header, changes) {
        // Also where the checksum is right: whoever writes to the disk can compute one.
        Err(reason) => assert!(!reason.is_empty(), "no reason"),
        Ok(changes) => round_trip(&header, &changes, bytes),
    }
}

fn file_header(bytes: &[u8]) {
    if format::check_file_header(bytes, STORE, FILE).is_ok() {
        assert_eq!(bytes[..FILE_HEADER_BYTES], format::encode_file_header(STORE, FILE));
    }
}

fn round_trip(header: &RecordHeader, changes: &[Change], input: &[u8]) {
    let salt = format::salt(STORE, FILE);
    let RecordHeader { position, previous, durable, pages, .. } = *header;
    let mut bytes = format::encode_record(salt, position, previous, durable, changes, pages);
    assert!(
        bytes.len() <= header.pages_offset(),
        "{} bytes, longer than what came in",
        bytes.len()
    );
    let again = format::decode_header(&bytes).expect("what was encoded has a header");
    let same = RecordHeader {
        crc: again.crc,
        changes_bytes: bytes.len() - RECORD_HEADER_BYTES,
        ..*header
    };
    assert_eq!(again, same);
    assert!(format::record_checks(&again, salt, &bytes), "what was encoded checks");
    assert_eq!(
        format::decode_changes(&again, &bytes[RECORD_HEADER_BYTES..]).as_deref(),
        Ok(changes)
    );
    assert!(!format::record_checks(&again, salt, &bytes[..bytes.len() - 1]), "a cut record checks");
    let bit = flip_a_bit(&mut bytes, input);
    let damaged = format::decode_header(&bytes);
    assert!(
        !damaged.is_some_and(|h| format::record_checks(&h, salt, &bytes)),
        "bit {bit} passed unnoticed"
    );
}

/// Flips a bit that follows from `input`, so that the same input tries the same bit again.
fn flip_a_bit(bytes: &mut [u8], input: &[u8]) -> usize {
    let bit = crc32fast::hash(input) as usize % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next of a fixed sequence of numbers that look random (splitmix64).
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    #[test]
    fn holds_for_random_changes() {
        let mut seed = 1;
        for _ in 0..20_000 {
            let length = next(&mut seed) % 96;
            let random: Vec<u8> = (0..length).map(|_| next(&mut seed).to_le_bytes()[0]).collect();
            record(&random);
            // A sound header of a record without pages, so that the changes are looked at.
            let mut bytes = format::encode_record(0, 3, 2, 1, &[], 0);
            bytes[32..36].copy_from_slice(&96_u32.to_le_bytes());
            bytes.push(next(&mut seed).to_le_bytes()[0] % 10);
            bytes.extend_from_slice(&random);
            bytes.resize(RECORD_HEADER_BYTES + 96, 0);
            record(&bytes);
        }
    }
}
