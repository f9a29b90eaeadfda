//! Sealing and layers, on the simulated disk.

use super::*;
use crate::error::Error;
use crate::storage::layer::format::FOOTER_BYTES;
use crate::storage::store::{Origin, Past};

fn seal(store: &Store, id: TimelineId, lane: LaneKind) -> bool {
    store.seal(id, lane, &mut |_| Ok(())).unwrap()
}

fn layers(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<String> =
        disk.list("layers").unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

fn faults(disk: &SimDisk) -> Vec<String> {
    check::check(&(Arc::new(disk.clone()) as Arc<dyn Disk>)).unwrap().faults
}

/// Bytes that differ from page to page and that compress a little.
fn pattern(seed: u64, pages: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..pages * PAGE_BYTES)
        .map(|at| if at % 3 == 0 { 5 } else { random.below(256).to_le_bytes()[0] })
        .collect()
}

/// Format versions of all layers.
fn versions(disk: &SimDisk) -> Vec<u8> {
    let of = |name: String| {
        let mut version = 0;
        disk.alter(&format!("layers/{name}"), |bytes| {
            version = bytes[bytes.len() - FOOTER_BYTES + 8]
        });
        version
    };
    layers(disk).into_iter().map(of).collect()
}

/// More than one record can hold.
fn write_all(tree: &Tree, inode: u64, offset: usize, bytes: &[u8]) {
    for (nth, chunk) in bytes.chunks(100 * PAGE_BYTES).enumerate() {
        tree.write(inode, (offset + nth * 100 * PAGE_BYTES) as u64, chunk).unwrap();
    }
}

#[test]
fn layers_of_many_pages_have_dictionaries() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    let (first, second) = (Random(1).rows(1100 * PAGE_BYTES), Random(2).rows(1100 * PAGE_BYTES));
    let mut expected = Vec::new();
    for (pages, offset) in [(first, 0), (second, 550)] {
        write_all(&main, inode, offset * PAGE_BYTES, &pages);
        expected.truncate(offset * PAGE_BYTES);
        expected.extend(pages);
        assert!(seal(&store, id, LaneKind::Data));
        assert!(contents(&main, b"f").unwrap() == expected);
        assert!(versions(&disk).iter().all(|version| *version == 2));
    }
    assert!(store.merge(id, LaneKind::Data, 0..2, &mut |_| Ok(())).unwrap());
    assert!(contents(&main, b"f").unwrap() == expected);
    assert_eq!(versions(&disk), [2]);
    assert_eq!(faults(&disk), [] as [&str; 0]);
}

#[test]
fn a_sealed_lane_reads_the_same_and_gives_its_files_back() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let (data, wal) = (make(&main, b"f"), make_wal(&main, b"1"));
    let (first, second) = (pattern(1, 150), pattern(2, 9));
    for inode in [data, wal] {
        main.write(inode, 0, &first).unwrap();
    }
    assert!(seal(&store, id, LaneKind::Data) && seal(&store, id, LaneKind::Wal));
    assert!(!seal(&store, id, LaneKind::Data), "nothing new");
    let lanes = disk.list("lanes").unwrap();
    assert!(lanes.iter().all(|(name, _)| name.starts_with("spare.")), "{lanes:?}");
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    for inode in [data, wal] {
        main.write(inode, 5 * PAGE_BYTES as u64 + 100, &second).unwrap();
    }
    let mut expected = first.clone();
    expected[5 * PAGE_BYTES + 100..][..second.len()].copy_from_slice(&second);
    assert!(seal(&store, id, LaneKind::Data));
    main.timeline().sync_and_wait().unwrap();
    drop(main);
    let image = disk.after_power_loss(Unsynced::Lost);
    for store in [store, open(&image).unwrap()] {
        for inode in [data, wal] {
            for (id, expected) in [(id, &expected), (child, &first)] {
                let (buffer, range) = tree(&store, id).read(inode, 0, 1 << 21).unwrap();
                assert!(buffer[range] == expected[..], "inode {inode:#x} of {id}");
                let (buffer, range) = tree(&store, id).read(inode, 40_000, 30_000).unwrap();
                assert!(
                    buffer[range] == expected[40_000..70_000],
                    "a part of inode {inode:#x} of {id}"
                );
            }
        }
    }
    assert_eq!(faults(&image), [] as [&str; 0]);
}

#[test]
fn names_and_cuts_are_known_from_the_newest_layer() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let kept = make(&main, b"kept");
    main.write(kept, 0, &pattern(1, 8)).unwrap();
    make(&main, b"gone");
    assert!(seal(&store, id, LaneKind::Data));
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    main.set_attributes(kept, &Wanted { size: Some(10_000), ..Wanted::default() }).unwrap();
    main.set_attributes(kept, &Wanted { size: Some(40_000), ..Wanted::default() }).unwrap();
    main.remove(ROOT_INODE, b"gone", false, 0).unwrap();
    main.rename((ROOT_INODE, b"kept"), (ROOT_INODE, b"moved"), false, 0).unwrap();
    assert!(seal(&store, id, LaneKind::Data));
    let mut expected = pattern(1, 8);
    expected.truncate(10_000);
    expected.resize(40_000, 0);
    drop(main);
    for store in [store, open(&disk).unwrap()] {
        let (main, child) = (tree(&store, id), tree(&store, child));
        assert!(contents(&main, b"moved").unwrap() == expected);
        assert_eq!((contents(&main, b"kept"), contents(&main, b"gone")), (None, None));
        assert!(contents(&child, b"kept").unwrap() == pattern(1, 8));
        assert_eq!(contents(&child, b"gone").unwrap(), b"");
    }
}

/// Stops the disk after each operation of `work` in turn, and looks at what runs on and at what a
/// crash leaves.
fn stop_after_any_operation(work: impl Fn(&Store, TimelineId) -> crate::error::Result<bool>) {
    let mut expected = pattern(3, 20);
    expected.truncate(3 * PAGE_BYTES);
    expected.extend(pattern(4, 30));
    for count in 0.. {
        let disk = SimDisk::default();
        let (store, id) = new_store(&disk);
        let main = tree(&store, id);
        let inode = make(&main, b"f");
        main.write(inode, 0, &pattern(3, 20)).unwrap();
        assert!(seal(&store, id, LaneKind::Data));
        main.write(inode, 0, &pattern(3, 3)).unwrap();
        assert!(seal(&store, id, LaneKind::Data));
        main.write(inode, 3 * PAGE_BYTES as u64, &pattern(4, 30)).unwrap();
        main.timeline().sync_and_wait().unwrap();
        disk.fail_after(Some(count));
        let outcome = work(&store, id);
        let struck = disk.failed();
        assert!(contents(&main, b"f").unwrap() == expected, "stop {count}: while running");
        for (nth, unsynced) in
            [Unsynced::Lost, Unsynced::Kept, Unsynced::Mixed(count)].into_iter().enumerate()
        {
            let image = disk.after_power_loss(unsynced);
            let store = open(&image).unwrap();
            assert!(
                contents(&tree(&store, id), b"f").unwrap() == expected,
                "stop {count}, image {nth}"
            );
            let named = store.catalog().timeline(id).unwrap().lanes.data.layers.len();
            assert_eq!(
                layers(&image).len(),
                named,
                "stop {count}, image {nth}: {:?}",
                layers(&image)
            );
            drop(store);
            assert_eq!(faults(&image), [] as [&str; 0], "stop {count}, image {nth}");
        }
        disk.fail_after(None);
        if outcome.is_err() {
            let again = work(&store, id);
            // The catalog could not be asked at the time whether it had taken the change in.
            assert!(
                again.as_ref().is_err_and(|e| e.detail.contains("restart")) || again.is_ok(),
                "{count}"
            );
            assert!(contents(&main, b"f").unwrap() == expected, "stop {count}: after another try");
        }
        if !struck {
            assert!(outcome.unwrap() && count > 5, "only {count} operations");
            return;
        }
    }
}

#[test]
fn a_stop_after_any_operation_of_a_seal_loses_nothing() {
    stop_after_any_operation(|store, id| store.seal(id, LaneKind::Data, &mut |_| Ok(())));
}

#[test]
fn a_stop_after_any_operation_of_a_merge_loses_nothing() {
    stop_after_any_operation(|store, id| store.merge(id, LaneKind::Data, 0..2, &mut |_| Ok(())));
}

#[test]
fn a_merge_drops_what_nobody_sees() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let (inode, other) = (make(&main, b"f"), make(&main, b"gone"));
    let mut children = Vec::new();
    for round in 0..6 {
        main.write(inode, 0, &pattern(round, 10)).unwrap();
        main.write(other, 0, &pattern(round, 50)).unwrap();
        if round == 2 {
            children.push(store.fork(id, |timeline| named("child", timeline)).unwrap().0);
        }
        assert!(seal(&store, id, LaneKind::Data));
    }
    main.remove(ROOT_INODE, b"gone", false, 0).unwrap();
    main.reap(other).unwrap();
    assert!(seal(&store, id, LaneKind::Data));
    let entries = |store: &Store| {
        let timeline = store.timeline(id).unwrap();
        timeline
            .lane(LaneKind::Data)
            .state
            .read()
            .unwrap()
            .layers
            .iter()
            .map(|layer| layer.entries())
            .sum::<u64>()
    };
    assert_eq!(entries(&store), 6 * 60);
    assert!(store.merge(id, LaneKind::Data, 0..7, &mut |_| Ok(())).unwrap());
    assert_eq!(entries(&store), 2 * 10 + 50, "the head and what the child sees");
    assert!(contents(&main, b"f").unwrap() == pattern(5, 10));
    let child = tree(&store, children[0]);
    assert!(contents(&child, b"f").unwrap() == pattern(2, 10));
    assert!(contents(&child, b"gone").unwrap() == pattern(2, 50));
    drop(child);
    let freed = store.publish(Update::default().remove::<BranchRecord>("child")).unwrap();
    store.free(&freed);
    main.write(inode, 0, &pattern(9, 1)).unwrap();
    assert!(seal(&store, id, LaneKind::Data));
    assert!(store.merge(id, LaneKind::Data, 0..2, &mut |_| Ok(())).unwrap());
    assert_eq!((entries(&store), layers(&disk).len()), (10, 1));
    let mut expected = pattern(5, 10);
    expected[..PAGE_BYTES].copy_from_slice(&pattern(9, 1));
    assert!(contents(&main, b"f").unwrap() == expected);
}

#[test]
fn what_a_child_overwrote_is_not_kept_for_it() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    main.write(inode, 0, &pattern(1, 10)).unwrap();
    assert!(seal(&store, id, LaneKind::Data));
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    let (other, _) = store.fork(id, |timeline| named("other", timeline)).unwrap();
    main.write(inode, 0, &pattern(2, 10)).unwrap();
    assert!(seal(&store, id, LaneKind::Data));
    for id in [child, other] {
        tree(&store, id).write(inode, 0, &pattern(3, 6)).unwrap();
        assert!(seal(&store, id, LaneKind::Data));
    }
    // A grandchild from before the child wrote anything sees the parent through it.
    let begin = store.timeline(other).unwrap().begin();
    let past = Some(Past { at: PerLane::both(begin), time_ns: 0 });
    let origin = Origin { timeline: other, past, unfinished: false };
    let (grandchild, _) = store.fork(origin, |timeline| named("grandchild", timeline)).unwrap();
    let entries = |store: &Store| -> u64 {
        store.timeline(id).unwrap().layers(LaneKind::Data).iter().map(|layer| layer.entries()).sum()
    };
    let again = || {
        main.write(inode, 0, &pattern(2, 1)).unwrap();
        assert!(seal(&store, id, LaneKind::Data));
        let count = main.timeline().layers(LaneKind::Data).len();
        assert!(store.merge(id, LaneKind::Data, 0..count, &mut |_| Ok(())).unwrap());
    };
    again();
    assert_eq!(entries(&store), 20, "the grandchild needs all that was there");
    let update = Update::default().remove::<BranchRecord>("grandchild");
    store.free(&store.publish(update).unwrap());
    again();
    assert_eq!(entries(&store), 20, "where they were forked may be gone back to");
    store.clock().set(store.clock().now_ns() + 3_600_000_000_000);
    again();
    assert_eq!(entries(&store), 10 + 4, "the head, and what neither child overwrote");
    assert!(store.catalog().timeline(grandchild).is_none());
    let mut expected = pattern(3, 6);
    expected.extend(&pattern(1, 10)[6 * PAGE_BYTES..]);
    for id in [child, other] {
        assert!(contents(&tree(&store, id), b"f").unwrap() == expected);
    }
    assert!(contents(&main, b"f").unwrap() == pattern(2, 10));
}

#[test]
fn a_child_made_during_a_merge_sees_what_it_should() {
    let (store, id) = new_store(&SimDisk::default());
    let main = tree(&store, id);
    let (cut, gone) = (make(&main, b"cut"), make(&main, b"gone"));
    for round in 0..2 {
        main.write(cut, 0, &pattern(round, 300)).unwrap();
        main.write(gone, 0, &pattern(round, 300)).unwrap();
        assert!(seal(&store, id, LaneKind::Data));
    }
    let mut child = None;
    let merged = store.merge(id, LaneKind::Data, 0..2, &mut |_| {
        if child.is_none() {
            child = Some(store.fork(id, |timeline| named("child", timeline)).unwrap().0);
            main.set_attributes(cut, &Wanted { size: Some(0), ..Wanted::default() }).unwrap();
            main.remove(ROOT_INODE, b"gone", false, 0).unwrap();
            main.reap(gone).unwrap();
        }
        Ok(())
    });
    assert!(merged.unwrap());
    let child = tree(&store, child.unwrap());
    for name in [&b"cut"[..], b"gone"] {
        assert!(
            contents(&child, name).unwrap() == pattern(1, 300),
            "{}",
            String::from_utf8_lossy(name)
        );
    }
}

#[test]
fn a_merge_makes_nothing_durable_that_was_not() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    for round in 0..2 {
        main.write(inode, 0, &pattern(round, 10)).unwrap();
        assert!(seal(&store, id, LaneKind::Data));
    }
    main.timeline().sync_and_wait().unwrap();
    main.remove(ROOT_INODE, b"f", false, 0).unwrap();
    main.reap(inode).unwrap();
    assert!(store.merge(id, LaneKind::Data, 0..2, &mut |_| Ok(())).unwrap());
    let store = open(&disk.after_power_loss(Unsynced::Lost)).unwrap();
    let found = contents(&tree(&store, id), b"f");
    assert!(found.is_none() || found.unwrap() == pattern(1, 10), "a name without its pages");
}

#[test]
fn parts_after_a_seal_that_failed_lie_over_what_they_changed() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make_wal(&main, b"1");
    main.write(inode, 0, &[0xFF; PAGE_BYTES]).unwrap();
    let stop = |_| Err(Error::unavailable("stopping", "the server stops"));
    assert!(store.seal(id, LaneKind::Wal, &mut { stop }).is_err());
    let mut page = [0; PAGE_BYTES];
    page[..100].fill(7);
    main.write(inode, 0, &page).unwrap();
    main.timeline().sync_and_wait().unwrap();
    let store = open(&disk.after_power_loss(Unsynced::Lost)).unwrap();
    assert!(tree(&store, id).read(inode, 0, 8192).unwrap().0 == page);
}

#[test]
fn a_write_of_many_short_runs_fits_a_record() {
    let (store, id) = new_store(&SimDisk::default());
    let main = tree(&store, id);
    let inode = make_wal(&main, b"1");
    let mut bytes = vec![0; 128 * PAGE_BYTES];
    for page in bytes.chunks_exact_mut(2 * PAGE_BYTES) {
        page[..4096].fill(3);
    }
    main.write(inode, 0, &bytes).unwrap();
    let (buffer, range) = main.read(inode, 0, 1 << 20).unwrap();
    assert!(buffer[range] == bytes[..]);
}

#[test]
fn a_layer_that_was_not_published_is_removed() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    let inode = make(&tree(&store, child), b"f");
    tree(&store, child).write(inode, 0, &pattern(1, 200)).unwrap();
    let mut dropped = false;
    let outcome = store.seal(child, LaneKind::Data, &mut |_| {
        if !std::mem::replace(&mut dropped, true) {
            let update = Update::default().remove::<BranchRecord>("child");
            store.publish(update).unwrap();
        }
        Ok(())
    });
    assert!(!outcome.unwrap_or(false) && dropped);
    assert_eq!(layers(&disk), [] as [&str; 0]);
}

#[test]
fn a_sealed_store_without_its_catalog_is_refused() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    make(&tree(&store, id), b"f");
    assert!(seal(&store, id, LaneKind::Data));
    drop(store);
    disk.remove("catalog").unwrap();
    assert_eq!(open(&disk).err().unwrap().code, "corrupt");
    assert_eq!(layers(&disk).len(), 1);
}

#[test]
fn a_dropped_timeline_gives_its_layers_back() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    let tree = tree(&store, child);
    let inode = make(&tree, b"f");
    tree.write(inode, 0, &pattern(1, 5)).unwrap();
    assert!(seal(&store, child, LaneKind::Data));
    assert_eq!(layers(&disk).len(), 1);
    let freed = store.publish(Update::default().remove::<BranchRecord>("child")).unwrap();
    store.free(&freed);
    assert_eq!(layers(&disk), [] as [&str; 0]);
}

#[test]
fn work_that_is_stopped_goes_on_later() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    main.write(inode, 0, &pattern(1, 40)).unwrap();
    let stopped = store
        .seal(id, LaneKind::Data, &mut |_| Err(Error::unavailable("stopping", "the server stops")));
    assert_eq!(stopped.unwrap_err().code, "stopping");
    assert_eq!(layers(&disk), [] as [&str; 0]);
    main.write(inode, 0, &pattern(2, 2)).unwrap();
    let mut expected = pattern(1, 40);
    expected[..2 * PAGE_BYTES].copy_from_slice(&pattern(2, 2));
    for _ in 0..3 {
        assert!(contents(&main, b"f").unwrap() == expected);
        store.seal(id, LaneKind::Data, &mut |_| Ok(())).unwrap();
    }
    assert_eq!(layers(&disk).len(), 2);
}

#[test]
fn a_flipped_bit_in_a_layer_costs_at_most_its_group() {
    flip_bits(&pattern(7, 40), 200);
    flip_bits(&Random(7).rows(1100 * PAGE_BYTES), 40);
}

fn flip_bits(expected: &[u8], rounds: u32) {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    write_all(&main, inode, 0, expected);
    assert!(seal(&store, id, LaneKind::Data));
    store.close().unwrap();
    drop((main, store));
    let name = format!("layers/{}", layers(&disk)[0]);
    let length = disk.open(&name).unwrap().len_bytes().unwrap();
    let mut random = Random(5);
    let blocks = 0..crate::storage::log::format::u32_of(expected.len() / PAGE_BYTES);
    for nth in 0..rounds {
        let image = disk.after_power_loss(Unsynced::Kept);
        let bit = random.below(length * 8);
        image.alter(&name, |bytes| bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8));
        let found = faults(&image);
        let store = open(&image).unwrap();
        let wrong = match store.timeline(id) {
            Err(error) => {
                assert!(error.detail.contains(&name), "{error}");
                continue;
            }
            Ok(timeline) => {
                let mut page = [0; PAGE_BYTES];
                let damaged = blocks.clone().filter(|block| {
                    match timeline.read_blocks(inode, *block, &mut page) {
                        Ok(()) => {
                            assert!(
                                page[..] == expected[*block as usize * PAGE_BYTES..][..PAGE_BYTES],
                                "bit {bit}"
                            );
                            false
                        }
                        Err(error) => {
                            assert!(error.detail.contains(&name), "{error}");
                            true
                        }
                    }
                });
                damaged.count()
            }
        };
        assert!(
            wrong <= crate::storage::layer::dictionary::PAGES_TOGETHER,
            "bit {bit} cost {wrong} pages"
        );
        assert!(wrong == 0 || !found.is_empty(), "check {nth} missed bit {bit}");
    }
}

/// A log file of the write-ahead lane has room for 16 MiB from the beginning: by that every log
/// would be long.
#[test]
fn a_log_is_as_long_as_what_was_appended() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let log_bytes = || LaneKind::ALL.map(|lane| main.timeline().shape(lane, 0).0.log_bytes);
    store.tick();
    let written = pattern(1, 3);
    for inode in [make(&main, b"f"), make_wal(&main, b"1")] {
        main.write(inode, 0, &written).unwrap();
    }
    for bytes in log_bytes() {
        assert!((written.len() as u64..100_000).contains(&bytes), "{bytes}");
    }
    main.timeline().sync_and_wait().unwrap();
    assert!(seal(&store, id, LaneKind::Wal));
    assert_eq!(log_bytes()[1], 0);
}
