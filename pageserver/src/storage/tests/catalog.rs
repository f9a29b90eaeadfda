//! Damage to the files of the catalog: it is noticed when the store is opened, and never shown.

use crate::storage::catalog::file::{STATE_AT, TRUSTED};
use crate::storage::catalog::records::{NoteRecord, Row, Stored};
use crate::storage::catalog::{
    AncestorRecord, BranchRecord, Catalog, LaneRecord, TimelineRecord, Update,
};
use crate::storage::disk::Disk;
use crate::storage::disk::sim::{SimDisk, Unsynced};
use crate::storage::page::LaneKind;
use crate::storage::page::{PerLane, TimelineId};
use crate::storage::store::Store;
use crate::storage::tests::named;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

fn open(disk: &SimDisk) -> crate::error::Result<Catalog> {
    Catalog::open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), 77)
}

/// All that a catalog says, the number of the next timeline included.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    branches: BTreeMap<String, BranchRecord>,
    timelines: BTreeMap<TimelineId, TimelineRecord>,
    store: u64,
    next: TimelineId,
}

impl Said {
    fn by(catalog: &Catalog) -> Self {
        let record = |id: TimelineId| Some((id, catalog.timeline(id)?));
        let timelines = catalog.timelines().into_iter().filter_map(record).collect();
        let (store, next) = (catalog.store(), catalog.new_timeline());
        Self { branches: catalog.branches(), timelines, store, next }
    }
}

/// How the catalog was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Stopped,
    Killed,
    /// Killed a second time, in the middle of the opening after.
    KilledInOpening,
}

const ALL: [Left; 3] = [Left::Stopped, Left::Killed, Left::KilledInOpening];
const FILES: [&str; 2] = ["catalog", "journal"];

/// Whether the file says nothing that the other does not say as well.
fn is_folded(left: Left, file: &str) -> bool {
    left == Left::KilledInOpening && file == "journal"
}

/// A catalog of some pages with a journal of some changes, and what it says.
fn some(left: Left) -> (SimDisk, Said) {
    let disk = SimDisk::default();
    let mut catalog = open(&disk).unwrap();
    for nth in 0..40 {
        if nth == 30 {
            drop(catalog);
            catalog = open(&disk).unwrap();
        }
        let fresh = catalog.new_timeline();
        let ancestor = AncestorRecord {
            timeline: 1,
            at: PerLane::both(9),
            synced: PerLane::both(8),
            time_ns: 7,
            begins_ns: 8,
            logical_bytes: PerLane { data: 5, wal: 6 },
        };
        let ancestor = (nth > 0).then_some(ancestor);
        let record = BranchRecord::root(nth + 1, fresh, 1);
        let update = Update {
            add_timelines: vec![(fresh, TimelineRecord { ancestor, ..TimelineRecord::default() })],
            ..Update::default()
        };
        let update = update.put(&format!("branch-{nth}"), record);
        assert_eq!(catalog.publish(update).unwrap(), []);
    }
    let killed = disk.after_power_loss(Unsynced::Kept);
    let said = Said::by(&catalog);
    catalog.sync_witness();
    drop(catalog);
    let disk = match left {
        Left::Stopped => disk,
        Left::Killed => killed,
        Left::KilledInOpening => killed_in_opening(&disk),
    };
    (disk, said)
}

/// As it is when `redb` has recovered what it found, which it marks as not to be looked at again,
/// and nothing was changed since.
fn killed_in_opening(disk: &SimDisk) -> SimDisk {
    let stopped_after = |count: u64| {
        let copy = disk.after_power_loss(Unsynced::Kept);
        copy.fail_after(Some(count));
        assert!(open(&copy).is_err(), "no moment of the opening is like that");
        copy.after_power_loss(Unsynced::Kept)
    };
    let is_trusted = |disk: &SimDisk| {
        let mut trusted = false;
        disk.alter("catalog", |bytes| trusted = bytes[STATE_AT] & TRUSTED != 0);
        trusted
    };
    (0..).map(stopped_after).find(is_trusted).unwrap()
}

/// Opens a copy with a damage: it says what it should, or that its file is damaged. True if it
/// noticed.
fn notices(
    disk: &SimDisk,
    said: &Said,
    file: &str,
    what: &str,
    damage: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let copy = disk.after_power_loss(Unsynced::Kept);
    copy.alter(file, damage);
    match open(&copy) {
        Ok(catalog) => {
            assert!(Said::by(&catalog) == *said, "{what} of {file} shows what was not");
            false
        }
        Err(error) => {
            assert!(
                error.detail.contains(file),
                "{what} of {file} is not said to be there: {error}"
            );
            true
        }
    }
}

/// Offsets of the pages of a file that are not all zeros.
fn used_pages(disk: &SimDisk, file: &str) -> Vec<usize> {
    let mut used = Vec::new();
    disk.after_power_loss(Unsynced::Kept).alter(file, |bytes| {
        let pages = bytes.chunks(PAGE_BYTES).enumerate();
        used = pages
            .filter(|(_, page)| page.iter().any(|b| *b != 0))
            .map(|(n, _)| n * PAGE_BYTES)
            .collect();
    });
    used
}

#[test]
fn a_flipped_bit_in_the_catalog_is_noticed_or_harmless() {
    for (left, file) in ALL.into_iter().flat_map(|left| FILES.map(|file| (left, file))) {
        let (disk, said) = some(left);
        let mut noticed = 0;
        for page in used_pages(&disk, file) {
            // The header has a meaning in each byte.
            let step = if page == 0 { 3 } else { 61 };
            for at in (page..page + if page == 0 { SECTOR_BYTES } else { PAGE_BYTES }).step_by(step)
            {
                let bit = 1 << (at * 5 / 3 % 8);
                let what = format!("bit {bit} of byte {at}");
                noticed +=
                    usize::from(notices(&disk, &said, file, &what, |bytes| bytes[at] ^= bit));
            }
        }
        assert!(noticed > 100 || is_folded(left, file), "{file}: {noticed}");
    }
}

#[test]
fn a_lost_sector_of_the_catalog_is_noticed_or_harmless() {
    for (left, file) in ALL.into_iter().flat_map(|left| FILES.map(|file| (left, file))) {
        let (disk, said) = some(left);
        let mut noticed = 0;
        let pages = used_pages(&disk, file);
        for sector in pages.iter().flat_map(|page| (*page..page + PAGE_BYTES).step_by(SECTOR_BYTES))
        {
            let what = format!("the loss of the sector at {sector}");
            let zero = |bytes: &mut Vec<u8>| bytes[sector..sector + SECTOR_BYTES].fill(0);
            noticed += usize::from(notices(&disk, &said, file, &what, zero));
        }
        assert!(
            noticed > if file == "catalog" { 20 } else { 9 } || is_folded(left, file),
            "{file}: {noticed}"
        );
        notices(&disk, &said, file, "the loss of everything", Vec::clear);
        notices(&disk, &said, file, "zeros instead of everything", |bytes| bytes.fill(0));
    }
}

#[test]
fn an_older_catalog_is_refused() {
    let (disk, _) = some(Left::Stopped);
    let image = |file: &str| {
        let mut image = Vec::new();
        disk.after_power_loss(Unsynced::Kept).alter(file, |bytes| image.clone_from(bytes));
        image
    };
    let older = FILES.map(image);
    let catalog = open(&disk).unwrap();
    let remove = Update::default().remove::<BranchRecord>("branch-3");
    catalog.publish(remove).unwrap();
    let said = Said::by(&catalog);
    drop(catalog);
    for (file, older) in FILES.into_iter().zip(older) {
        assert!(notices(&disk, &said, file, "an older state", |bytes| *bytes = older));
    }
}

/// A change that takes a sixteenth of the journal.
fn long(catalog: &Catalog, nth: u64) -> Update {
    let fresh = catalog.new_timeline();
    let password = Some("x".repeat(60_000).into());
    let record = BranchRecord { password, ..BranchRecord::root(nth, fresh, 1) };
    Update { add_timelines: vec![(fresh, TimelineRecord::default())], ..Update::default() }
        .put(&format!("long-{nth}"), record)
}

#[test]
fn a_full_journal_becomes_one_transaction_and_a_stop_at_any_moment_of_it_loses_nothing() {
    let mut folded = 0;
    for (count, seed) in (0..).zip(1000..) {
        let disk = SimDisk::default();
        let catalog = open(&disk).unwrap();
        (0..15).for_each(|nth| drop(catalog.publish(long(&catalog, nth)).unwrap()));
        disk.take_trace();
        disk.stop_after(count);
        let durable =
            (15..20).take_while(|nth| catalog.publish(long(&catalog, *nth)).is_ok()).count();
        folded += disk.take_trace().iter().filter(|line| *line == "sync catalog").count();
        for unsynced in [Unsynced::Kept, Unsynced::Lost, Unsynced::Mixed(seed)] {
            let found = open(&disk.after_power_loss(unsynced)).unwrap().branches().len();
            let unknown = usize::from(durable < 5);
            assert!(
                (15 + durable..=15 + durable + unknown).contains(&found),
                "{count}: {found}, {durable}"
            );
        }
        if durable == 5 {
            assert!(count > 20 && folded > 0, "nothing was folded in {count} operations");
            return;
        }
    }
}

#[test]
fn without_room_for_a_journal_changes_go_to_the_database() {
    let disk = SimDisk::default();
    let catalog = open(&disk).unwrap();
    catalog.publish(long(&catalog, 0)).unwrap();
    drop(catalog);
    disk.remove("journal").unwrap();
    let Err(lost) = open(&disk) else { panic!("a change is lost, and nobody says so") };
    assert!(lost.detail.contains("journal"), "{lost}");
    disk.remove("witness").unwrap();
    disk.set_capacity_bytes(Some(disk.used_bytes() + (16 << 10)));
    let catalog = open(&disk).unwrap();
    disk.take_trace();
    catalog.publish(Update::default()).unwrap();
    assert!(disk.take_trace().contains(&"sync catalog".to_owned()));
    disk.set_capacity_bytes(None);
    catalog.publish(long(&catalog, 1)).unwrap();
    disk.take_trace();
    catalog.publish(Update::default()).unwrap();
    assert!(!disk.take_trace().contains(&"sync catalog".to_owned()), "there is room again");
    assert_eq!(open(&disk.after_power_loss(Unsynced::Lost)).unwrap().branches().len(), 1);
}

fn note(text: &str) -> NoteRecord {
    NoteRecord { text: text.to_owned() }
}

#[test]
fn a_record_of_any_kind_survives_in_the_journal_and_in_the_database() {
    let disk = SimDisk::default();
    let catalog = open(&disk).unwrap();
    let update = Update::default().put("a", note("one")).put("b", note("two"));
    catalog.publish(update.put("a", note("three")).remove::<NoteRecord>("none")).unwrap();
    let both = vec![("a".to_owned(), note("three")), ("b".to_owned(), note("two"))];
    // In the journal, then in the database.
    for _ in 0..2 {
        assert_eq!(open(&disk.after_power_loss(Unsynced::Lost)).unwrap().records(), both);
        drop(open(&disk).unwrap());
    }
    let catalog = open(&disk).unwrap();
    assert_eq!((catalog.records(), catalog.record("b")), (both, Some(note("two"))));
    catalog.publish(Update::default().remove::<NoteRecord>("a")).unwrap();
    let left = vec![("b".to_owned(), note("two"))];
    assert_eq!(catalog.records(), left);
    assert_eq!(open(&disk.after_power_loss(Unsynced::Lost)).unwrap().records(), left);
}

#[test]
fn a_record_of_any_kind_is_as_the_catalog_says_after_a_change_of_unknown_outcome() {
    let mut happened = 0;
    for count in 0.. {
        let disk = SimDisk::default();
        let catalog = open(&disk).unwrap();
        disk.fail_once_after(count);
        let outcome = catalog.publish(Update::default().put("a", note("one")));
        assert_eq!(outcome.is_ok(), catalog.record("a") == Some(note("one")), "{count}");
        let shown = catalog.records::<NoteRecord>();
        let struck = disk.failed();
        drop(catalog);
        disk.fail_after(None);
        assert_eq!(open(&disk).unwrap().records(), shown, "{count}");
        if !struck {
            assert!(happened > 0, "none of {count} faulty changes happened");
            return;
        }
        happened += u64::from(outcome.is_ok());
    }
}

#[test]
fn a_field_that_this_build_does_not_know_is_never_dropped_in_silence() {
    let known = r#"{"number":1,"bytes":2}"#;
    let lane = |layer: &str| format!(r#"{{"sealed":1,"sequence":2,"layers":[{layer}]}}"#);
    let timeline = |lane: &str| format!(r#"{{"ancestor":null,"lanes":[{lane},{lane}]}}"#);
    let decode = |table: &str, json: &str| Stored::decode(table, "x", json.as_bytes());
    decode("timeline", &timeline(&lane(known))).unwrap();
    decode("note", r#"{"text":""}"#).unwrap();
    let more = |json: &str| json.replacen('{', r#"{"later":7,"#, 1);
    for (table, json) in [
        ("timeline", timeline(&lane(&more(known)))),
        ("timeline", timeline(&more(&lane(known)))),
        ("timeline", more(&timeline(&lane(known)))),
        ("note", more(r#"{"text":""}"#)),
    ] {
        let error = decode(table, &json).unwrap_err();
        assert!(error.detail.contains(table) && error.detail.contains("later"), "{error}");
    }
    for (table, key) in [("timeline", "7"), ("timeline", "x"), ("tokens", "a")] {
        assert!(Row::decode(table, key, None).is_err(), "{table} {key}");
    }
}

#[test]
fn sizes_that_a_user_made_up_never_make_a_store_unreadable() {
    let disk = SimDisk::default();
    let store = Store::open(Arc::new(disk.clone()), 77).unwrap();
    let id = store.create_root().unwrap();
    store.publish(named("main", id)).unwrap();
    let huge = LaneRecord { logical_bytes: u64::MAX, ..LaneRecord::default() };
    let put_lanes = LaneKind::ALL.map(|lane| (id, lane, huge.clone())).to_vec();
    store.publish(Update { put_lanes, ..Update::default() }).unwrap();
    drop(store);
    let store = Store::open(Arc::new(disk), 77).unwrap();
    assert!(store.sizes(id).unwrap().1.is_some());
}

#[test]
fn a_store_whose_disk_does_not_answer_is_not_healthy() {
    let store = Store::open(Arc::new(SimDisk::default()), 77).unwrap();
    store.health().unwrap();
    let long_ago = Instant::now() - Duration::from_secs(31);
    *store.measured.lock().unwrap() = (long_ago, Ok(()));
    assert_eq!(store.health().unwrap_err().code, "disk_silent");
    store.measure().unwrap();
    store.health().unwrap();
}
