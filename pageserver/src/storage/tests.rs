//! The page store as a whole, on the simulated disk.

use crate::fs::tree::{NewInode, Tree, Wanted};
use crate::locks::read;
use crate::storage::catalog::{BranchRecord, Update};
use crate::storage::check;
use crate::storage::disk::Disk;
use crate::storage::disk::random::Random;
use crate::storage::disk::sim::{SimDisk, Unsynced};
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::FileKind;
use crate::storage::log::record::LaneFileId;
use crate::storage::log::{Start, recovery};
use crate::storage::page::{LaneKind, PAGE_BYTES, PerLane, ROOT_INODE, TimelineId};
use crate::storage::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

mod catalog;
mod failures;
mod forged;
mod history;
mod layers;
mod model;

fn open(disk: &SimDisk) -> crate::error::Result<Store> {
    Store::open(Arc::new(disk.clone()), 5)
}

pub(super) fn named(name: &str, timeline: TimelineId) -> Update {
    Update::default().put(name, BranchRecord::root(timeline.0, timeline, 0))
}

/// A store with one named root timeline that has its root directory.
pub(super) fn new_store(disk: &SimDisk) -> (Store, TimelineId) {
    let store = open(disk).unwrap();
    let id = store.create_root().unwrap();
    store.publish(named("main", id)).unwrap();
    tree(&store, id).make_root((1, 1), 0).unwrap();
    (store, id)
}

pub(super) fn tree(store: &Store, id: TimelineId) -> Tree {
    Tree::new(store.timeline(id).unwrap())
}

pub(super) fn make(tree: &Tree, name: &[u8]) -> u64 {
    let new = NewInode { kind: FileKind::File, mode: 0o600, owner: (1, 1), target: &[] };
    tree.make(ROOT_INODE, name, &new, 0).unwrap().0
}

fn sync(tree: &Tree, inode: u64) -> crate::error::Result<()> {
    let (sender, receiver) = sync_channel(1);
    tree.sync(inode, true, Box::new(move |outcome| sender.send(outcome).unwrap()));
    receiver.recv().unwrap()
}

fn contents(tree: &Tree, name: &[u8]) -> Option<Vec<u8>> {
    let (inode, attributes) = tree.lookup(ROOT_INODE, name).ok()?;
    let (buffer, range) = tree.read(inode, 0, u32::try_from(attributes.size).unwrap()).unwrap();
    Some(buffer[range].to_vec())
}

/// A file of the write-ahead class.
fn make_wal(tree: &Tree, name: &[u8]) -> u64 {
    let new = |kind| NewInode { kind, mode: 0o600, owner: (1, 1), target: &[] };
    let directory = match tree.lookup(ROOT_INODE, b"pg_wal") {
        Ok((directory, _)) => directory,
        Err(_) => tree.make(ROOT_INODE, b"pg_wal", &new(FileKind::Directory), 0).unwrap().0,
    };
    tree.make(directory, name, &new(FileKind::File), 0).unwrap().0
}

#[test]
fn a_page_of_the_write_ahead_log_is_written_in_parts() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let (main, mut random, mut forks) = (tree(&store, id), Random(11), Vec::new());
    let inode = make_wal(&main, b"000000010000000000000001");
    let mut page = [0; PAGE_BYTES];
    let (mut filled, mut written) = (0, 0);
    while filled < PAGE_BYTES {
        let end = (filled + 1 + usize::try_from(random.below(200)).unwrap()).min(PAGE_BYTES);
        page[filled..end].fill(u8::try_from(1 + random.below(255)).unwrap());
        filled = end;
        disk.take_trace();
        main.write(inode, 0, &page).unwrap();
        let trace = disk.take_trace();
        written += trace.len();
        assert_eq!(
            main.read(inode, 0, 8192).unwrap().0,
            page,
            "{filled} bytes of the page are filled"
        );
        if random.below(4) == 0 {
            let (child, _) = store.fork(id, |t| named(&format!("c{}", t.0), t)).unwrap();
            forks.push((child, page));
        }
    }
    assert!(written >= 40 && forks.len() > 5, "{written} {}", forks.len());
    let files = main.timeline().files().len();
    main.write(inode, PAGE_BYTES as u64, &[1; 5 * PAGE_BYTES]).unwrap();
    assert_eq!(main.timeline().files().len(), files, "it all fits the first file");
    main.timeline().sync_and_wait().unwrap();
    let image = disk.after_power_loss(Unsynced::Lost);
    for store in [store, open(&image).unwrap()] {
        assert_eq!(tree(&store, id).read(inode, 0, 8192).unwrap().0, page);
        for (child, then) in &forks {
            let child = tree(&store, *child);
            assert_eq!(child.read(inode, 0, 8192).unwrap().0, then);
            // The first change of an inherited page starts from nothing, the next from that.
            for fill in [3, 4] {
                let mut changed = *then;
                changed[100..200].fill(fill);
                child.write(inode, 0, &changed).unwrap();
                assert_eq!(child.read(inode, 0, 8192).unwrap().0, changed);
            }
        }
    }
}

#[test]
fn a_part_is_never_laid_over_what_it_did_not_change() {
    let (store, id) = new_store(&SimDisk::default());
    let main = tree(&store, id);
    let inode = make_wal(&main, b"1");
    let page = |fill: u8, from: usize| {
        let mut page = [9; PAGE_BYTES];
        page[from..].fill(fill);
        page
    };
    let shows = |expected: &[u8], when: &str| {
        assert!(main.read(inode, 0, 8192).unwrap().0 == expected, "{when}");
    };
    main.write(inode, 0, &page(1, 0)).unwrap();
    main.write(inode, 0, &page(2, 8000)).unwrap();
    shows(&page(2, 8000), "a part");
    main.write(inode, 10, b"small").unwrap();
    let mut small = page(2, 8000);
    small[10..15].copy_from_slice(b"small");
    shows(&small, "a write of less than a page");
    main.set_attributes(inode, &Wanted { size: Some(0), ..Wanted::default() }).unwrap();
    main.write(inode, 0, &page(3, 8100)).unwrap();
    shows(&page(3, 8100), "regrown after a truncation");
    main.punch(inode, 0, PAGE_BYTES as u64).unwrap();
    shows(&[0; PAGE_BYTES], "a hole");
    let mut few = [0; PAGE_BYTES];
    few[5000..5100].fill(7);
    main.write(inode, 0, &few).unwrap();
    shows(&few, "a part of zeros");
    // Another page in between: its contents are no longer at hand, so this one is written whole.
    main.write(inode, PAGE_BYTES as u64, &page(5, 0)).unwrap();
    few[5050] = 8;
    main.write(inode, 0, &few).unwrap();
    shows(&few, "after another page");
}

#[test]
fn the_order_of_durability_is_data_then_names() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let tree = tree(&store, id);
    let inode = make(&tree, b"f");
    sync(&tree, inode).unwrap();
    disk.take_trace();
    tree.write(inode, 0, &[7; PAGE_BYTES]).unwrap();
    sync(&tree, inode).unwrap();
    sync(&tree, inode).unwrap();
    let trace = disk.take_trace();
    assert_eq!(
        trace.len(),
        2,
        "one write, one sync, and nothing for a sync with nothing new: {trace:?}"
    );
    assert!(trace[0].starts_with("write lanes/00000001.d.00000000 "), "{trace:?}");
    assert_eq!(trace[1], "sync lanes/00000001.d.00000000");
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    let fork = disk.take_trace();
    let [change, synced, noted] = &fork[..] else { panic!("{fork:?}") };
    assert!(
        change.starts_with("write journal ") && change.ends_with("+4096"),
        "not one block: {fork:?}"
    );
    assert_eq!(synced, "sync journal");
    assert!(noted.starts_with("write witness "), "what is noted is durable: {fork:?}");
    let child = Tree::new(store.timeline(child).unwrap());
    let inode = child.lookup(ROOT_INODE, b"f").unwrap().0;
    child.write(inode, 0, &[8; PAGE_BYTES]).unwrap();
    sync(&child, inode).unwrap();
    let first: Vec<String> = disk.take_trace();
    let tail: Vec<&str> = first.iter().map(String::as_str).rev().take(2).collect();
    assert_eq!(tail, ["sync-directory lanes", "sync lanes/00000002.d.00000000"], "{first:?}");
}

#[test]
fn a_lost_record_is_not_made_whole_by_the_next_one() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    tree(&store, id).timeline().sync_and_wait().unwrap();
    make(&tree(&store, id), b"f");
    let name = "lanes/00000001.d.00000000";
    // A crash tears the end of the record off.
    let torn = disk.after_power_loss(Unsynced::Kept);
    let end = read(&store.timeline(id).unwrap().lane(LaneKind::Data).state).log.appended_bytes();
    torn.alter(name, |bytes| bytes.truncate(usize::try_from(end).unwrap() - 8));
    let store = open(&torn).unwrap();
    assert!(tree(&store, id).lookup(ROOT_INODE, b"f").is_err());
    make(&tree(&store, id), b"g");
    // The next crash tears the beginning off of what was written over it, and leaves the end.
    let again = torn.after_power_loss(Unsynced::Lost);
    let mut written = Vec::new();
    torn.after_power_loss(Unsynced::Kept).alter(name, |bytes| written.clone_from(bytes));
    again.alter(name, |bytes| bytes.extend_from_slice(&written[bytes.len()..]));
    let store = open(&again).unwrap();
    for lost in [b"f", b"g"] {
        assert!(tree(&store, id).lookup(ROOT_INODE, lost).is_err(), "{lost:?} is back");
    }
}

#[test]
fn a_log_cut_at_every_byte_gives_a_prefix() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let tree_ = tree(&store, id);
    let inode = make(&tree_, b"f");
    let versions: Vec<Vec<u8>> =
        (1..=4u8).map(|fill| vec![fill; 100 * usize::from(fill)]).collect();
    for version in &versions {
        tree_.write(inode, 0, version).unwrap();
    }
    drop((tree_, store));
    let name = "lanes/00000001.d.00000000";
    let mut log = Vec::new();
    disk.alter(name, |bytes| log.clone_from(bytes));
    let alone = SimDisk::default();
    alone.create(name).unwrap();
    let (lane_files, mut found) = LaneFiles::open(Arc::new(alone.clone()), 5).unwrap();
    let ids: Vec<LaneFileId> =
        found.remove(&id).unwrap().into_iter().map(|(file, _)| file).collect();
    let mut records = 0;
    for cut in 0..=log.len() {
        alone.alter(name, |bytes| *bytes = log[..cut].to_vec());
        let mut positions = Vec::new();
        recovery::inspect(
            &lane_files,
            (id, LaneKind::Data),
            &ids,
            (Start::default(), 0),
            &mut |found, file| {
                assert_eq!(
                    recovery::first_bad_page(found, &**file)?,
                    None,
                    "cut at {cut}: a torn page counts"
                );
                positions.push(found.header.position);
                Ok(())
            },
        )
        .unwrap();
        assert!(positions.is_sorted() && positions.len() >= records, "cut at {cut}: {positions:?}");
        records = positions.len();
    }
    assert_eq!(records, 2 + versions.len());
    let mut newest = 0;
    for cut in (0..=log.len()).step_by(1009).chain([log.len()]) {
        let image = disk.after_power_loss(Unsynced::Kept);
        image.alter(name, |bytes| bytes.truncate(cut));
        let store = open(&image).unwrap();
        let Some(found) = contents(&tree(&store, id), b"f") else { continue };
        let version =
            versions.iter().rposition(|version| *version == found).map_or(0, |nth| nth + 1);
        assert!(
            version > 0 || found.is_empty(),
            "cut at {cut}: {} bytes that were never written",
            found.len()
        );
        assert!(version >= newest, "cut at {cut}: version {version} after {newest}");
        newest = version;
    }
    assert_eq!(newest, versions.len());
}

#[test]
fn damage_to_a_synced_record_is_refused_and_to_a_page_is_an_error() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    main.write(inode, 0, &[1; PAGE_BYTES]).unwrap();
    sync(&main, inode).unwrap();
    main.write(inode, PAGE_BYTES as u64, &[2; PAGE_BYTES]).unwrap();
    drop(main);
    store.close().unwrap();
    drop(store);
    let name = "lanes/00000001.d.00000000";
    let length = usize::try_from(disk.open(name).unwrap().len_bytes().unwrap()).unwrap();
    let mut seen = [0; 2];
    // Every byte but the closing record's own, which nothing vouches for.
    for at in (0..length - 48).step_by(29) {
        let image = disk.after_power_loss(Unsynced::Kept);
        image.alter(name, |bytes| bytes[at] ^= 0x10);
        let store = open(&image).unwrap();
        match store.timeline(id) {
            Err(error) => {
                assert_eq!(error.code, "corrupt", "{error}");
                assert!(error.detail.contains(name), "{error}");
                seen[0] += 1;
            }
            Ok(timeline) => {
                let tree = Tree::new(timeline);
                let (inode, _) = tree.lookup(ROOT_INODE, b"f").unwrap();
                let read = tree.read(inode, 0, 2 * u32::try_from(PAGE_BYTES).unwrap());
                assert!(read.is_err(), "byte {at} changed unnoticed");
                seen[1] += 1;
            }
        }
        let faults = check::check(&(Arc::new(image) as Arc<dyn Disk>)).unwrap().faults;
        assert!(faults.iter().any(|fault| fault.contains(name)), "the check missed byte {at}");
    }
    assert!(seen[0] > 5 && seen[1] > 300, "{seen:?}");
    assert!(check::check(&(Arc::new(disk) as Arc<dyn Disk>)).unwrap().faults.is_empty());
}

#[test]
fn a_dropped_timeline_writes_into_nobodys_file() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    let old = tree(&store, child);
    let inode = make(&old, b"f");
    let freed = store.publish(Update::default().remove::<BranchRecord>("child")).unwrap();
    store.free(&freed);
    let error = old.write(inode, 0, b"late").unwrap_err();
    assert_eq!(error.errno(), nix::errno::Errno::EIO);
    assert!(store.timeline(child).is_err());
    let left = disk.list("lanes").unwrap();
    assert!(!left.iter().any(|(name, _)| name.starts_with(&child.to_string())), "{left:?}");
}

#[test]
fn a_lane_goes_on_in_further_files() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let new = NewInode { kind: FileKind::Directory, mode: 0o700, owner: (1, 1), target: &[] };
    let (wal, _) = main.make(ROOT_INODE, b"pg_wal", &new, 0).unwrap();
    let file = NewInode { kind: FileKind::File, ..new };
    let (inode, _) = main.make(wal, b"1", &file, 0).unwrap();
    let megabyte: Vec<u8> =
        (0..1 << 20).map(|at: u32| at.to_le_bytes()[at as usize % 2] | 1).collect();
    for nth in 0..40 {
        main.write(inode, nth << 20, &megabyte).unwrap();
    }
    sync(&main, inode).unwrap();
    let files = disk.list("lanes").unwrap();
    let wal_files = files.iter().filter(|(name, _)| name.starts_with("00000001.w.")).count();
    assert_eq!(wal_files, 3, "{files:?}");
    assert!(!store.timeline(id).unwrap().is_dirty(LaneKind::Wal));
    let store = open(&disk.after_power_loss(Unsynced::Mixed(3))).unwrap();
    let main = tree(&store, id);
    for nth in 0..40 {
        let (buffer, range) = main.read(inode, nth << 20, 1 << 20).unwrap();
        assert!(buffer[range] == megabyte[..], "megabyte {nth}");
    }
}

#[test]
fn what_a_restart_read_survives_a_power_loss_after_it() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    sync(&main, inode).unwrap();
    // The lane goes on in a second file while the first has bytes that no sync has reached.
    let megabyte = vec![7; 1 << 20];
    for nth in 0..66 {
        main.write(inode, (nth % 3) << 20, &megabyte).unwrap();
        if nth == 60 {
            store.timeline(id).unwrap().sync_and_wait().unwrap();
        }
    }
    assert_eq!(disk.list("lanes").unwrap().len(), 2);
    // The server is killed: what it wrote is in the cache, and not all of it on the medium.
    drop((main, store));
    let store = open(&disk).unwrap();
    let main = tree(&store, id);
    main.write(inode, 0, b"committed").unwrap();
    sync(&main, inode).unwrap();
    let store = open(&disk.after_power_loss(Unsynced::Lost)).unwrap();
    let found = contents(&tree(&store, id), b"f").unwrap();
    assert_eq!(&found[..9], b"committed");
    assert_eq!(found.len(), 3 << 20);
}

#[test]
fn a_lost_catalog_or_lane_is_refused_and_nothing_is_removed() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    sync(&main, inode).unwrap();
    let (child, _) = store.fork(id, |timeline| named("child", timeline)).unwrap();
    drop((main, store));
    let image = disk.after_power_loss(Unsynced::Kept);
    image.remove("catalog").unwrap();
    for _ in 0..2 {
        assert_eq!(open(&image).err().unwrap().code, "corrupt");
        assert_eq!(
            check::check(&(Arc::new(image.clone()) as Arc<dyn Disk>)).err().unwrap().code,
            "corrupt"
        );
    }
    assert_eq!(image.list("lanes").unwrap().len(), 1);
    disk.remove("lanes/00000001.d.00000000").unwrap();
    let store = open(&disk).unwrap();
    for id in [id, child] {
        let error = store.timeline(id).err().unwrap();
        assert!(error.detail.contains("lanes/00000001.d.00000000"), "{error}");
    }
    drop(store);
    assert_eq!(check::check(&(Arc::new(disk) as Arc<dyn Disk>)).unwrap().faults.len(), 1);
}

#[test]
fn a_write_that_could_not_read_its_page_latches() {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    main.write(inode, 0, &[1; PAGE_BYTES]).unwrap();
    disk.alter("lanes/00000001.d.00000000", |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert!(main.write(inode, 100, b"part of a page").is_err());
    assert_eq!(store.timeline(id).unwrap().latched().unwrap().code, "corrupt");
}
