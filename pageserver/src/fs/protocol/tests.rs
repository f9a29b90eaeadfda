//! Requests taken apart, and the shapes of answers.

use super::numbers::code;
use super::*;
use crate::storage::disk::random::Random;
use crate::storage::log::format::FileKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

fn request(code: u32, arguments: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + arguments.len()).unwrap();
    let header =
        ReplyBody::default().u32(length).u32(code).u64(77).u64(5).u32(1000).u32(100).u64(0);
    header.bytes(arguments).into_bytes()
}

#[test]
fn a_request_is_taken_apart_in_one_piece_and_in_three() {
    let fixed = ReplyBody::default().u64(0).u64(8192).u32(5).u32(0).u64(0).u64(0).into_bytes();
    let bytes = request(code::WRITE, &[&fixed[..], b"bytes"].concat());
    let parts = decode_parts(&bytes[..HEADER_BYTES], &fixed, b"bytes and what was there before");
    for found in [decode(&bytes), parts] {
        let found = found.ok().unwrap();
        assert_eq!((found.unique, found.node, found.uid, found.gid), (77, 5, 1000, 100));
        assert!(matches!(found.operation, Operation::Write { offset: 8192, data: b"bytes" }));
    }
    let bytes = request(
        code::RENAME2,
        &[&[9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &b"old\0new\0"[..]].concat(),
    );
    let Operation::Rename { name, new_parent, new_name, flags } =
        decode(&bytes).ok().unwrap().operation
    else {
        panic!("no rename");
    };
    assert_eq!(
        (name.as_bytes(), new_parent, new_name.as_bytes(), flags),
        (&b"old"[..], 9, &b"new"[..], 1)
    );
}

#[test]
fn times_before_the_epoch_and_only_what_is_given_are_changed() {
    let valid = 1 << 3 | 1 << 5;
    let given = ReplyBody::default().u32(valid).u32(0).u64(0).u64(4096).u64(0).u64(0);
    let given = given.u64((-2_i64).cast_unsigned()).u64(7).u32(0).u32(500_000_000).u32(0);
    let given = given.u32(0o600).u32(0).u32(1).u32(2).u32(0).into_bytes();
    let bytes = request(code::SETATTR, &given);
    let Operation::SetAttributes(change) = decode(&bytes).ok().unwrap().operation else {
        panic!("no change");
    };
    assert_eq!((change.size, change.mode, change.uid, change.gid), (Some(4096), None, None, None));
    assert!(matches!(change.modified, Some(Time::At { ns: -1_500_000_000 })));
    assert!(change.changed.is_none());
}

#[test]
fn answers_have_the_lengths_that_the_kernel_expects() {
    let shown = ShownInode {
        number: 2,
        kind: FileKind::File,
        mode: 0o600,
        size: 1,
        links: 1,
        owner: (1, 2),
        modified_ns: -1,
        changed_ns: 0,
    };
    let offer = Offer { max_readahead: 0, flags: 0 };
    let init =
        ReplyBody::init(&offer, flag::OVER_IO_URING | 1, 1 << 20, 64, Duration::from_secs(1));
    let init = init.into_bytes();
    assert_eq!(init.len(), 64);
    assert_eq!((init[12], init[33]), (1, 2), "the two halves of the flags");
    assert_eq!(ReplyBody::entry(&shown).into_bytes().len(), 128);
    assert_eq!(ReplyBody::attr(&shown).into_bytes().len(), 104);
    assert_eq!(ReplyBody::space(1, 2, 4096).into_bytes().len(), 80);
    assert_eq!(ReplyBody::opened(true).into_bytes().len(), 16);
    let mut names = Listing::new(64);
    assert!(names.add(1, 1, FileKind::File, OsStr::new("12345678")));
    assert!(names.add(1, 2, FileKind::File, OsStr::new("1")));
    assert!(!names.add(1, 3, FileKind::File, OsStr::new("1")), "there is no room");
    assert_eq!(names.into_body().into_bytes().len(), 64);
}

#[test]
fn no_bytes_end_the_server() {
    let mut random = Random(7);
    for code in 0..60 {
        for _ in 0..200 {
            let length = random.below(120);
            let arguments: Vec<u8> =
                (0..length).map(|_| u8::try_from(random.below(4) * 85).unwrap()).collect();
            let bytes = request(code, &arguments);
            let cut = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
            drop(decode(&bytes));
            drop(decode(&bytes[..cut]));
        }
    }
}
