//! Tests of the catalog, on the simulated disk.

use super::*;
use crate::storage::catalog::records::Row;
use crate::storage::disk::sim::{SimDisk, Unsynced};
use crate::storage::page::PerLane;

fn branch(id: u64, timeline: TimelineId, parent: Option<u64>) -> BranchRecord {
    BranchRecord { parent, ..BranchRecord::root(id, timeline, 1) }
}

fn fork_of(timeline: TimelineId) -> TimelineRecord {
    TimelineRecord {
        ancestor: Some(AncestorRecord {
            timeline: timeline.0,
            at: PerLane::both(9),
            synced: PerLane::both(8),
            time_ns: 7,
            begins_ns: 8,
            logical_bytes: PerLane { data: 5, wal: 6 },
        }),
        ..TimelineRecord::default()
    }
}

fn add(timeline: TimelineId, record: TimelineRecord) -> Update {
    Update { add_timelines: vec![(timeline, record)], ..Update::default() }
}

/// `main` with a child `a`, which has a child `b`.
fn family(disk: &SimDisk) -> (Catalog, [TimelineId; 3]) {
    let catalog = Catalog::open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), 77).unwrap();
    let ids = [catalog.new_timeline(), catalog.new_timeline(), catalog.new_timeline()];
    let records = [TimelineRecord::default(), fork_of(ids[0]), fork_of(ids[1])];
    for (nth, (name, record)) in ["main", "a", "b"].into_iter().zip(records).enumerate() {
        let update = add(ids[nth], record).put(name, branch(nth as u64, ids[nth], None));
        assert_eq!(catalog.publish(update).unwrap(), []);
    }
    (catalog, ids)
}

fn remove(name: &str) -> Update {
    Update::default().remove::<BranchRecord>(name)
}

#[test]
fn a_longer_window_brings_nothing_back() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
    let catalog = Catalog::open(&disk, 5).unwrap();
    assert_eq!(catalog.note_window(100, 1_000).unwrap(), 0, "the first one");
    assert_eq!(catalog.note_window(50, 2_000).unwrap(), 0);
    assert_eq!(catalog.note_window(300, 3_000).unwrap(), 2_950);
    drop(catalog);
    let catalog = Catalog::open(&disk, 5).unwrap();
    assert_eq!(catalog.note_window(300, 4_000).unwrap(), 2_950);
}

#[test]
fn a_timeline_lives_while_a_name_or_child_needs_it() {
    let (catalog, [main, a, b]) = family(&SimDisk::default());
    assert_eq!(catalog.publish(remove("a")).unwrap(), [], "b still needs a's timeline");
    assert_eq!(catalog.publish(remove("b")).unwrap(), [b, a]);
    assert_eq!(catalog.timelines(), [main]);
    assert!(catalog.forks(main).is_empty());
}

#[test]
fn a_reset_frees_the_old_timeline_unless_it_has_children() {
    let (catalog, [main, a, b]) = family(&SimDisk::default());
    let reset = |name: &str, id: u64| {
        let fresh = catalog.new_timeline();
        let update = add(fresh, fork_of(main)).put(name, branch(id, fresh, None));
        catalog.publish(update).unwrap()
    };
    assert_eq!(reset("a", 1), []);
    assert_eq!(reset("b", 2), [b, a]);
}

#[test]
fn what_was_published_survives_and_what_was_not_does_not() {
    let disk = SimDisk::default();
    let (catalog, [main, ..]) = family(&disk);
    let before = catalog.branches();
    let image = disk.after_power_loss(Unsynced::Lost);
    disk.fail_after(Some(0));
    assert!(catalog.publish(remove("a")).is_err());
    assert_eq!(catalog.branches(), before, "a failed publication changed memory");
    for disk in [image, disk.after_power_loss(Unsynced::Mixed(5))] {
        let catalog = Catalog::open(&(Arc::new(disk) as Arc<dyn Disk>), 1).unwrap();
        assert_eq!((catalog.branches(), catalog.store(), catalog.run()), (before.clone(), 77, 2));
        assert!(catalog.new_timeline() > main, "a number was given twice");
    }
}

#[test]
fn a_held_timeline_goes_when_released_or_at_the_next_start() {
    let (catalog, _) = family(&SimDisk::default());
    let held = catalog.new_timeline();
    let add_timelines = vec![(held, TimelineRecord::default())];
    assert_eq!(catalog.publish(Update { add_timelines, ..Update::default() }).unwrap(), []);
    assert_eq!(catalog.remove_unneeded().unwrap(), [held]);
}

#[test]
fn a_failed_change_leaves_no_trace_and_the_next_succeeds() {
    // Whichever of its writes and syncs fails.
    for count in 0.. {
        let disk = SimDisk::default();
        let (catalog, _) = family(&disk);
        let before = catalog.branches();
        disk.fail_after(Some(count));
        if catalog.publish(remove("b")).is_ok() {
            assert!(count > 1, "the disk was not asked for anything");
            return;
        }
        assert_eq!(catalog.branches(), before);
        disk.fail_after(None);
        match catalog.publish(remove("b")) {
            Ok(_) => assert!(catalog.branch("b").is_none()),
            Err(error) => {
                assert!(error.detail.contains("restart the server"), "{count}: {error}")
            }
        }
        drop(catalog);
        let reopened = Catalog::open(&(Arc::new(disk) as Arc<dyn Disk>), 1).unwrap();
        assert!(reopened.branch("b").is_none() && reopened.branch("a").is_some(), "{count}");
    }
}

#[test]
fn memory_follows_the_database_after_a_change_of_unknown_outcome() {
    let mut happened = 0;
    // One write or sync fails, and the disk works again when the database is opened anew.
    for count in 0.. {
        let disk = SimDisk::default();
        let (catalog, _) = family(&disk);
        disk.fail_once_after(count);
        let outcome = catalog.publish(remove("b"));
        let struck = disk.failed();
        assert_eq!(outcome.is_ok(), catalog.branch("b").is_none(), "{count}");
        let shown = catalog.branches();
        drop(catalog);
        disk.fail_after(None);
        let reopened = Catalog::open(&(Arc::new(disk) as Arc<dyn Disk>), 1).unwrap();
        assert_eq!(reopened.branches(), shown, "{count}");
        if !struck {
            assert!(
                happened > 0 && count > happened,
                "{happened} of {count} faulty changes happened"
            );
            return;
        }
        happened += u64::from(outcome.is_ok());
    }
}

#[test]
fn on_a_full_disk_additions_are_refused_and_deletions_are_not() {
    for reopened in [false, true] {
        let disk = SimDisk::default();
        let (catalog, [main, ..]) = family(&disk);
        let catalog = if reopened { reopen(&disk, catalog) } else { catalog };
        let add_one = |catalog: &Catalog, nth: usize| {
            let fresh = catalog.new_timeline();
            let name = format!("full-{nth}-{}", "x".repeat(1000));
            let update = add(fresh, fork_of(main)).put(&name, branch(9, fresh, None));
            catalog.publish(update)
        };
        add_one(&catalog, 10_000).unwrap();
        disk.set_capacity_bytes(Some(bytes(&disk)));
        let (count, error) =
            (0..10_000).find_map(|nth| Some((nth, add_one(&catalog, nth).err()?))).unwrap();
        assert_eq!((error.kind, error.code), (Kind::Full, "disk_full"), "{error}");
        assert!(count > 200, "{count}");
        let names: Vec<String> =
            catalog.branches().into_keys().filter(|name| name.starts_with("full")).collect();
        assert_eq!(names.len(), count + 1);
        for name in &names[..count / 2] {
            catalog.publish(remove(name)).expect("a deletion finds the room in reserve");
        }
        assert_eq!(
            add_one(&catalog, count).unwrap_err().kind,
            Kind::Full,
            "the reserve is not for additions"
        );
        let catalog = reopen(&disk, catalog);
        for name in &names[count / 2..count] {
            catalog.publish(remove(name)).expect("so it does after an opening");
        }
        disk.set_capacity_bytes(None);
        add_one(&catalog, count).unwrap();
        let branches = catalog.branches();
        let before = bytes(&disk);
        let catalog = (0..5).fold(catalog, |catalog, _| reopen(&disk, catalog));
        assert_eq!(catalog.branches(), branches);
        assert_eq!(bytes(&disk), before, "an opening made the file longer");
    }
}

fn bytes(disk: &SimDisk) -> u64 {
    disk.list("").unwrap().iter().map(|(_, length)| length).sum()
}

fn reopen(disk: &SimDisk, catalog: Catalog) -> Catalog {
    drop(catalog);
    Catalog::open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), 1).unwrap()
}

#[test]
fn the_file_does_not_grow_with_openings_and_few_changes() {
    let disk = SimDisk::default();
    let (mut catalog, [main, ..]) = family(&disk);
    let mut lengths = Vec::new();
    for nth in 0..12 {
        catalog = reopen(&disk, catalog);
        let fresh = catalog.new_timeline();
        let name = format!("few-{nth}");
        let update = add(fresh, fork_of(main)).put(&name, branch(9, fresh, None));
        catalog.publish(update).unwrap();
        lengths.push(bytes(&disk));
    }
    assert_eq!(lengths[3..].iter().min(), lengths[3..].iter().max(), "{lengths:?}");
}

#[test]
fn a_catalog_that_cannot_be_is_refused() {
    let layer = |number, bytes| LayerRecord { number, bytes };
    let lane = |record: LaneRecord| {
        let lanes = PerLane { data: record, wal: LaneRecord::default() };
        CatalogState::with(1, TimelineRecord { ancestor: None, lanes }).check()
    };
    assert!(
        lane(LaneRecord { layers: vec![layer(1, 5), layer(2, 5)], ..LaneRecord::default() })
            .is_ok()
    );
    for wrong in [
        LaneRecord { layers: vec![layer(1, 5), layer(1, 5)], ..LaneRecord::default() },
        LaneRecord { layers: vec![layer(1, u64::MAX), layer(2, 5)], ..LaneRecord::default() },
        LaneRecord { sequence: u32::MAX, ..LaneRecord::default() },
    ] {
        assert_eq!(lane(wrong.clone()).unwrap_err().code, "corrupt", "{wrong:?}");
    }
    let mut state = CatalogState::with(7, TimelineRecord::default());
    assert!(state.check().is_ok());
    for next in [1, 7, u64::MAX] {
        state.next.insert("timeline", next);
        assert_eq!(state.check().unwrap_err().code, "corrupt", "{next}");
    }
}

impl CatalogState {
    /// One timeline.
    fn with(id: u64, record: TimelineRecord) -> Self {
        let mut state = Self::default();
        state.next.insert("timeline", id + 1);
        state.set(Row::put(&Row::timeline_key(TimelineId(id)), record));
        state
    }
}
