//! Tests of changes as bytes.

use super::*;

#[test]
fn a_history_that_no_index_can_take_in_is_refused() {
    let mark = |position, time_ns| (position, Change::Mark { time_ns, kept: false });
    let name = |position| (position, Change::NoName { directory: 1, name: b"x".to_vec() });
    let part = Change::Part { inode: 9, block: 0, start: 0, crc: 1, bytes: vec![1] };
    let sound = [name(3), mark(3, 5), name(3), mark(4, 5), name(9)];
    assert_eq!(decode_history(&encode_history(&sound)).as_deref(), Ok(&sound[..]));
    for (wrong, expected) in [
        (vec![name(4), name(3)], "positions do not ascend"),
        (vec![mark(3, 1), name(3), mark(3, 2)], "marks do not ascend"),
        (vec![(3, Change::Pages { inode: 9, block: 0, crcs: vec![1] })], "pages of a log"),
        (vec![(3, part)], "pages of a log"),
    ] {
        let error = decode_history(&encode_history(&wrong)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let cut = &encode_history(&sound)[..20];
    assert!(decode_history(cut).unwrap_err().contains("cannot be read"));
}
