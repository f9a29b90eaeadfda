//! Tests of the catalog, on the simulated disk.

use super::*;
use crate::storage::catalog::records::Row;
use crate::storage::disk::sim::{SimDisk, Unsynced};
use crate::storage::page::{LaneKind, PerLane};

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

const SECOND: i64 = 1_000_000_000;

fn keeping(name: &str, id: u64, timeline: TimelineId, history_s: Option<u64>) -> Update {
    Update::default().put(name, BranchRecord { history_s, ..branch(id, timeline, None) })
}

#[test]
fn the_window_of_a_timeline_is_that_of_the_branch_that_leads_to_it() {
    let disk = SimDisk::default();
    let (catalog, [main, a, b]) = family(&disk);
    catalog.note_window(50 * SECOND).unwrap();
    let opened = [main, a, b].map(|id| catalog.window(id));
    let windows = |catalog: &Catalog| [main, a, b].map(|id| catalog.window_ns(id) / SECOND);
    assert_eq!(windows(&catalog), [50, 50, 50], "those that do not say");
    let put = |name: &str, of: usize, history_s| {
        let update = keeping(name, of as u64, [main, a, b][of], history_s);
        catalog.publish(update).unwrap();
        let read = |window: &Arc<AtomicI64>| window.load(Ordering::Relaxed) / SECOND;
        assert_eq!(opened.each_ref().map(read), windows(&catalog), "an open timeline follows");
        windows(&catalog)
    };
    assert_eq!(put("a", 1, Some(10)), [50, 10, 50]);
    assert_eq!(put("b", 2, Some(7)), [50, 10, 7]);
    assert_eq!(put("main", 0, Some(0)), [0, 10, 7]);
    // Renamed, and then reset: what the former timeline keeps is for those made from it.
    catalog
        .publish(remove("a").put("c", BranchRecord { history_s: Some(10), ..branch(1, a, None) }))
        .unwrap();
    assert_eq!(windows(&catalog), [0, 10, 7]);
    let fresh = catalog.new_timeline();
    let reset =
        Update { add_timelines: vec![(fresh, fork_of(main))], ..keeping("c", 1, fresh, Some(10)) };
    catalog.publish(reset).unwrap();
    assert_eq!((windows(&catalog), catalog.window_ns(fresh) / SECOND), ([0, 7, 7], 10));
    assert_eq!(put("b", 2, Some(700)), [0, 700, 700]);
    let held = catalog.new_timeline();
    catalog.publish(add(held, fork_of(a))).unwrap();
    assert_eq!(catalog.window_ns(held), i64::MAX, "nobody has said yet what it is to keep");
    assert_eq!(opened[1].load(Ordering::Relaxed), i64::MAX);
    catalog.publish(keeping("d", 4, held, None)).unwrap();
    assert_eq!(windows(&catalog), [0, 700, 700]);
    catalog.note_window(800 * SECOND).unwrap();
    assert_eq!(opened[1].load(Ordering::Relaxed) / SECOND, 800, "the default is longer now");
    drop(catalog);
    let again = Catalog::open(&(Arc::new(disk) as Arc<dyn Disk>), 77).unwrap();
    assert_eq!(windows(&again), [0, 800, 700], "before the settings are known again");
    again.note_window(20 * SECOND).unwrap();
    assert_eq!((windows(&again), again.window_ns(fresh) / SECOND), ([0, 700, 700], 10));
    assert_eq!(again.publish(remove("b")).unwrap(), [b]);
    assert_eq!(windows(&again), [0, 20, 0]);
}

#[test]
fn a_longer_window_brings_nothing_back() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
    let catalog = Catalog::open(&disk, 5).unwrap();
    catalog.clock().set(1_000 * SECOND);
    let main = catalog.new_timeline();
    catalog
        .publish(add(main, TimelineRecord::default()).put("main", branch(1, main, None)))
        .unwrap();
    catalog.note_window(100 * SECOND).unwrap();
    let forked = |name: &str, parent: TimelineId, (time_s, begins_s): (i64, i64), history_s| {
        let (id, mut record) = (catalog.new_timeline(), fork_of(parent));
        let fork = record.ancestor.as_mut().unwrap();
        (fork.time_ns, fork.begins_ns) = (time_s * SECOND, begins_s * SECOND);
        let named = keeping(name, id.0, id, history_s);
        catalog.publish(Update { add_timelines: vec![(id, record)], ..named }).unwrap();
        id
    };
    let times = |id: TimelineId| {
        let fork = catalog.timeline(id).unwrap().ancestor.unwrap();
        (fork.time_ns / SECOND, fork.begins_ns / SECOND)
    };
    let a = forked("a", main, (900, 950), Some(60));
    let b = forked("b", main, (940, 941), Some(60));
    let c = forked("c", main, (930, 0), None);
    let d = forked("d", a, (949, 951), Some(500));
    let e = forked("e", a, (990, 990), Some(5));
    let all = || [a, b, c, d, e].map(times);
    let set = |name: &str, id: TimelineId, history_s| {
        let layers = LaneRecord { sequence: 3, ..LaneRecord::default() };
        let put_lanes = vec![(id, LaneKind::Data, layers)];
        catalog.publish(Update { put_lanes, ..keeping(name, id.0, id, history_s) }).unwrap();
        assert_eq!(catalog.timeline(id).unwrap().lanes.data.sequence, 3, "nothing else changes");
    };
    // A rename or a protection is no change of a window.
    catalog.publish(keeping("a", a.0, a, Some(60))).unwrap();
    assert_eq!(all(), [(900, 950), (940, 941), (930, 0), (949, 951), (990, 990)]);
    set("a", a, Some(500));
    set("b", b, Some(500));
    assert_eq!(all(), [(0, 950), (940, 941), (930, 0), (949, 951), (990, 990)]);
    // Time passes: what is out of the window now stays out of each longer one.
    catalog.clock().set(1_040 * SECOND);
    catalog.note_window(200 * SECOND).unwrap();
    assert_eq!(times(c), (0, 0), "the default was shorter");
    set("e", e, Some(500));
    assert_eq!(all(), [(0, 950), (940, 941), (0, 0), (949, 951), (0, 0)]);
    set("a", a, Some(20));
    assert_eq!(times(a), (0, 950), "until now it kept more");
    // Without a name it goes by what was made from it, which keep longer.
    assert_eq!(catalog.publish(remove("a")).unwrap(), []);
    assert_eq!((times(a), catalog.window_ns(a) / SECOND), ((0, 0), 500));
    // A new one at a moment of what has no name.
    catalog.publish(remove("d")).unwrap();
    let f = forked("f", a, (1_030, 1_040), Some(10));
    set("e", e, Some(10));
    catalog.clock().set(1_100 * SECOND);
    let g = forked("g", f, (1_035, 1_100), Some(1_000));
    assert_eq!(times(f), (1_030, 1_040), "f has a name of its own");
    catalog.publish(remove("f")).unwrap();
    assert_eq!((times(f), times(g)), ((0, 0), (1_035, 1_100)));
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
