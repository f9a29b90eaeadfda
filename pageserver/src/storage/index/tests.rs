//! Tests of the index of a log.

use super::*;

fn page(position: Position, block: u32) -> (Position, Vec<Change>) {
    (
        position,
        vec![Change::Pages { inode: 9, block, crcs: vec![u32::try_from(position).unwrap()] }],
    )
}

fn seen(index: &Index, position: Position) -> Vec<(u32, Option<u32>)> {
    let mut blocks = BTreeMap::new();
    index.blocks(9, 0..10, position, |block, at, value| {
        let crc = if let Block::Page(at) = value { Some(at.crc) } else { None };
        blocks.entry(block).or_insert((at, crc));
    });
    for block in 0..10 {
        if let Some(cut) = index.cut_at(9, block, position)
            && blocks.get(&block).is_none_or(|(at, _)| *at < cut)
        {
            blocks.insert(block, (cut, None));
        }
    }
    blocks.into_iter().map(|(block, (_, crc))| (block, crc)).collect()
}

#[test]
fn a_retained_point_keeps_its_version_and_others_go() {
    let mut index = Index::default();
    for (position, changes) in [page(1, 0), page(2, 0)] {
        index.apply(position, &changes, 0, 64);
    }
    index.retain(3);
    for (position, changes) in [page(4, 0), page(5, 0)] {
        index.apply(position, &changes, 0, 64);
    }
    assert_eq!(seen(&index, 3), [(0, Some(2))]);
    assert_eq!(seen(&index, Position::MAX), [(0, Some(5))]);
    assert_eq!(seen(&index, 1), [], "version 1 was replaced, no point saw it");
    assert!(matches!(&index.blocks[&9][&0], Versions::Many(list) if list.len() == 2));
}

#[test]
fn what_a_released_point_kept_goes_with_the_next_version() {
    let mut index = Index::default();
    for position in 1..=4 {
        index.apply(position * 10, &page(position * 10, 0).1, 0, 64);
        index.retain(position * 10 + 1);
    }
    assert_eq!(seen(&index, 21), [(0, Some(20))]);
    index.release(11);
    index.release(31);
    index.apply(50, &page(50, 0).1, 0, 64);
    for (at, expected) in [(21, 20), (41, 40), (Position::MAX, 50)] {
        assert_eq!(seen(&index, at), [(0, Some(expected))]);
    }
    assert!(matches!(&index.blocks[&9][&0], Versions::Many(list) if list.len() == 3));
}

#[test]
fn a_regrown_file_never_shows_old_pages() {
    let mut index = Index::default();
    index.apply(1, &page(1, 3).1, 0, 64);
    index.retain(1);
    index.apply(2, &[Change::Zeros { inode: 9, block: 2, count: TO_END }], 0, 64);
    assert_eq!(seen(&index, 1), [(3, Some(1))]);
    assert!(seen(&index, Position::MAX).iter().all(|(block, page)| *block >= 2 && page.is_none()));
    index.apply(3, &page(3, 3).1, 0, 64);
    index.apply(4, &[Change::Zeros { inode: 9, block: 5, count: TO_END }], 0, 64);
    assert!(
        seen(&index, Position::MAX).contains(&(3, Some(3))),
        "the later, higher cut must not hide block 3"
    );
    assert!(seen(&index, Position::MAX).contains(&(2, None)));
}

#[test]
fn what_only_this_timeline_knew_leaves_no_trace() {
    let mut index = Index::new(5, Retained::default());
    let target = Change::Name { directory: 7, name: b"t".to_vec(), inode: 9, kind: FileKind::File };
    index.apply(9, &[page(9, 0).1.remove(0), target], 0, 64);
    index.apply(
        10,
        &[Change::Gone { inode: 9 }, Change::NoName { directory: 7, name: b"t".to_vec() }],
        0,
        64,
    );
    assert!(index.inodes.is_empty() && index.directories[&7].is_empty());
    index.apply(
        11,
        &[Change::Gone { inode: 4 }, Change::NoName { directory: 3, name: b"t".to_vec() }],
        0,
        64,
    );
    assert_eq!(index.attributes(4, 11), Some(None), "an inherited inode must stay hidden");
    assert_eq!(index.name(3, b"t", 11), Some((11, None)), "an inherited name must stay hidden");
}

#[test]
fn a_bare_size_changes_only_size_and_time() {
    let mut index = Index::default();
    let attributes = Attributes {
        kind: FileKind::File,
        mode: 0o600,
        uid: 1,
        gid: 2,
        links: 1,
        size: 0,
        modified_ns: 0,
        changed_ns: 7,
        target: Vec::new(),
    };
    index.apply(1, &[Change::Attributes { inode: 9, attributes: attributes.clone() }], 0, 64);
    index.apply(2, &[Change::Size { inode: 9, size: 10, modified_ns: 3 }], 0, 64);
    let expected = Attributes { size: 10, modified_ns: 3, ..attributes };
    assert_eq!(index.attributes(9, Position::MAX), Some(Some(&expected)));
    index.base = 9;
    index.apply(3, &[Change::Gone { inode: 9 }], 0, 64);
    assert_eq!(index.attributes(9, Position::MAX), Some(None));
}

#[test]
fn a_sweep_forgets_what_nobody_sees_and_no_ancestor_has() {
    let mut index = Index::new(12, Retained::default());
    index.retain(25);
    let name = |directory| Change::Name {
        directory,
        name: b"a".to_vec(),
        inode: 20,
        kind: FileKind::File,
    };
    let no_name = |directory| Change::NoName { directory, name: b"a".to_vec() };
    // Directory 1 is inherited, 20 is not.
    for (at, change) in
        [(21, name(20)), (30, no_name(20)), (31, no_name(1)), (32, Change::Gone { inode: 9 })]
    {
        index.apply(at, &[change], 0, 64);
    }
    index.sweep();
    assert!(
        index.name(20, b"a", 25).is_some_and(|(_, target)| target.is_some()),
        "a point sees it"
    );
    index.release(25);
    index.sweep();
    assert_eq!(index.name(20, b"a", 40), None);
    assert_eq!(index.name(1, b"a", 40), Some((31, None)), "an ancestor may have it");
    assert_eq!(index.attributes(9, 40), Some(None), "an ancestor may have it");
}

#[test]
fn metadata_makes_an_empty_index_know_the_same() {
    let name = |name: &[u8], inode| Change::Name {
        directory: 1,
        name: name.to_vec(),
        inode,
        kind: FileKind::File,
    };
    let attributes = |size| Attributes {
        kind: FileKind::File,
        mode: 0o600,
        uid: 1,
        gid: 2,
        links: 1,
        size,
        modified_ns: 0,
        changed_ns: 7,
        target: Vec::new(),
    };
    let mut retained = Retained::default();
    [15, 25, 35].into_iter().for_each(|at| retained.add(at));
    let mut index = Index::new(12, retained.clone());
    for (position, change) in [
        (13, Change::Attributes { inode: 9, attributes: attributes(1) }),
        (14, name(b"a", 9)),
        (20, Change::Size { inode: 9, size: 2, modified_ns: 3 }),
        (21, Change::Zeros { inode: 9, block: 4, count: TO_END }),
        (22, name(b"b", 22)),
        (23, Change::NoName { directory: 1, name: b"a".to_vec() }),
        (30, Change::Gone { inode: 9 }),
        (40, name(b"a", 40)),
    ] {
        index.apply(position, &[change], 0, 64);
    }
    let mut again = Index::new(12, retained);
    index
        .metadata()
        .into_iter()
        .for_each(|(position, change)| again.apply(position, &[change], 0, 64));
    assert_eq!(again.metadata(), index.metadata());
    for at in 10..45 {
        assert_eq!(again.attributes(9, at), index.attributes(9, at), "{at}");
        assert_eq!(again.cut_at(9, 5, at), index.cut_at(9, 5, at), "{at}");
        for known in [b"a", b"b"] {
            assert_eq!(again.name(1, known, at), index.name(1, known, at), "{at}");
        }
    }
}
