//! Stores that earlier builds made: this one opens them, shows what they showed, and goes on.
//!
//! `tests/fixtures/README.md` says what each of them is and how it was made.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{Directory, check};
use pageserver::fs::tree::Tree;
use pageserver::secret::Secret;
use pageserver::storage::catalog::{BranchRecord, Update};
use pageserver::storage::disk::Disk;
use pageserver::storage::disk::local::LocalDisk;
use pageserver::storage::log::format::FileKind;
use pageserver::storage::page::{PerLane, ROOT_INODE, TimelineId};
use pageserver::storage::store::{Origin, Past, STORE_DIRECTORIES, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The number that all of them have.
const STORE: u64 = 0x5eed;
/// A while after they were made, so that their moments can still be gone back to.
const NOW_NS: i64 = 1_795_001_000 * 1_000_000_000;
const DAY: Duration = Duration::from_secs(86_400);
const BRANCHES: [&str; 3] = ["child", "grand/child", "main"];
/// A file that all branches have.
const FILE: &str = "base/1/2601";
const WRITTEN: &[u8] = b"written by the build of today";
const OFFSET: u64 = 8192 - 10;

/// What a branch shows: a line for each path.
type Lines = BTreeSet<String>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn unpack(name: &str) -> Directory {
    let directory = Directory::new();
    let mut tar = Command::new("tar");
    tar.arg("xzf").arg(fixture(&format!("{name}.tar.gz"))).arg("--no-same-owner");
    assert!(tar.arg("-C").arg(directory.path()).status().unwrap().success());
    directory
}

/// What there is to be seen, by the name of a branch, or `branch@time` for a moment of it.
fn expected(name: &str) -> BTreeMap<String, Lines> {
    let mut expected: BTreeMap<String, Lines> = BTreeMap::new();
    for line in std::fs::read_to_string(fixture(&format!("{name}.txt"))).unwrap().lines() {
        let (of, line) = line.split_once(' ').unwrap();
        expected.entry(of.to_owned()).or_default().insert(line.to_owned());
    }
    let of = |moment: bool| expected.keys().filter(|of| of.contains('@') == moment).count();
    assert_eq!((of(false), of(true)), (BRANCHES.len(), 4), "{:?}", expected.keys());
    expected
}

fn disk(directory: &Directory) -> Arc<dyn Disk> {
    Arc::new(LocalDisk::open(&directory.path().join("store"), &STORE_DIRECTORIES).unwrap())
}

fn open(directory: &Directory) -> Store {
    let store = Store::open(disk(directory), 0).unwrap();
    assert_eq!(store.catalog().store(), STORE);
    store.clock().set(NOW_NS);
    store.keep_history(DAY).unwrap();
    store
}

fn timeline(store: &Store, branch: &str) -> TimelineId {
    TimelineId(store.catalog().branch(branch).unwrap().timeline)
}

fn tree(store: &Store, branch: &str) -> Tree {
    let tree = Tree::new(store.timeline(timeline(store, branch)).unwrap());
    tree.remove_nameless().unwrap();
    tree
}

/// Looks at all below a directory, to whose path the names are added.
fn look(tree: &Tree, directory: u64, path: &str, lines: &mut Lines) {
    for (_, name, target) in tree.list(directory) {
        let path = format!("{path}{}", String::from_utf8(name.clone()).unwrap());
        let (inode, attributes) = tree.lookup(directory, &name).unwrap();
        assert_eq!((inode, attributes.kind), (target.inode, target.kind), "{path}");
        let describe = |bytes: &[u8]| format!("{} {:08x}", bytes.len(), crc32fast::hash(bytes));
        let line = match attributes.kind {
            FileKind::File => {
                let length = u32::try_from(attributes.size).unwrap();
                let (bytes, range) = tree.read(inode, 0, length).unwrap();
                format!("{path} {}", describe(&bytes[range]))
            }
            FileKind::Directory => {
                look(tree, inode, &format!("{path}/"), lines);
                format!("{path}/ {}", describe(&[]))
            }
            FileKind::Symlink => {
                let target = String::from_utf8(attributes.target).unwrap();
                format!("{path} {} -> {target}", describe(target.as_bytes()))
            }
        };
        lines.insert(line);
    }
}

fn shown(tree: &Tree) -> Lines {
    let mut lines = Lines::new();
    look(tree, ROOT_INODE, "", &mut lines);
    lines
}

fn assert_shows(tree: &Tree, expected: &Lines, what: &str) {
    let shown = shown(tree);
    let missing: Vec<_> = expected.difference(&shown).collect();
    let surplus: Vec<_> = shown.difference(expected).collect();
    assert_eq!((missing, surplus), (vec![], vec![]), "{what}: missing, and too much");
}

/// Makes a branch that begins at `origin`.
fn create(store: &Store, name: &str, parent: &str, origin: impl Into<Origin>) {
    let id = store.catalog().new_branch();
    let parent = store.catalog().branch(parent).unwrap();
    let made = BranchRecord {
        id,
        parent: Some(parent.id),
        created_ns: NOW_NS,
        forked_ns: NOW_NS,
        protected: false,
        ..parent
    };
    let put = |timeline: TimelineId| {
        let record = BranchRecord { timeline: timeline.0, ..made };
        Update::default().put(name, record)
    };
    let (_, freed) = store.fork(origin, put).unwrap();
    assert_eq!(freed, []);
}

/// Removes a branch; how many timelines went with it.
fn delete(store: &Store, name: &str) -> usize {
    let update = Update::default().remove::<BranchRecord>(name);
    let freed = store.publish(update).unwrap();
    store.free(&freed);
    freed.len()
}

/// Goes back to the moments of a branch.
fn assert_moments(store: &Store, branch: &str, expected: &BTreeMap<String, Lines>) {
    let marks = tree(store, branch).timeline().marks();
    let of_branch = expected
        .iter()
        .filter_map(|(of, lines)| Some((of.split_once('@')?, lines)))
        .filter(|((of, _), _)| *of == branch);
    for ((_, time_ns), lines) in of_branch {
        let time_ns: i64 = time_ns.parse().unwrap();
        let mark = marks.iter().find(|mark| mark.time_ns == time_ns);
        let mark = mark.unwrap_or_else(|| panic!("{branch} has no mark of {time_ns}: {marks:?}"));
        let past = Past { at: PerLane::both(mark.position), time_ns };
        let origin = Origin { past: Some(past), ..timeline(store, branch).into() };
        create(store, "moment", branch, origin);
        assert_shows(&tree(store, "moment"), lines, &format!("{branch} at {time_ns}"));
        assert_eq!(delete(store, "moment"), 1);
    }
}

fn assert_records(store: &Store) {
    let branches = store.catalog().branches();
    assert_eq!(branches.keys().collect::<Vec<_>>(), BRANCHES);
    let all = [
        ("main", 1, None, false),
        ("child", 2, Some("main"), true),
        ("grand/child", 4, Some("child"), false),
    ];
    for (name, id, parent, protected) in all {
        let record = &branches[name];
        let parent = parent.map(|parent| branches[parent].id);
        assert_eq!((record.id, record.parent, record.protected), (id, parent, protected), "{name}");
        assert_eq!(
            record.password.as_ref().map(Secret::expose),
            Some("fixture-password"),
            "{name}"
        );
        assert_eq!(record.created_ns, record.forked_ns, "{name}");
        assert!(record.created_ns < NOW_NS, "{name}");
    }
}

/// Writes to the branch; what it shows then.
fn change(store: &Store, branch: &str, before: &Lines) -> Lines {
    let tree = tree(store, branch);
    let find = |directory, name: &str| tree.lookup(directory, name.as_bytes()).unwrap().0;
    let inode = FILE.split('/').fold(ROOT_INODE, find);
    tree.write(inode, OFFSET, WRITTEN).unwrap();
    let after = shown(&tree);
    // A file with two names changes under both.
    let changed: Vec<_> = before.difference(&after).collect();
    assert!(!changed.is_empty(), "nothing has changed");
    assert!(changed.iter().all(|line| line.starts_with(FILE)), "{changed:?}");
    let (bytes, range) = tree.read(inode, OFFSET, u32::try_from(WRITTEN.len()).unwrap()).unwrap();
    assert_eq!(bytes[range], *WRITTEN);
    after
}

fn assert_no_faults(directory: &Directory, timelines: usize) {
    let (exit, said) = check(directory.path());
    let counts: Vec<usize> = said.split([' ', '\n']).filter_map(|word| word.parse().ok()).collect();
    assert_eq!((exit, counts.len(), counts.last()), (0, 4, Some(&0)), "{said}");
    assert_eq!(counts[0], timelines);
    assert!(counts[1] > 20 && counts[2] > 1000, "{said}");
}

/// Opens the fixture, compares, changes it, and opens it again. If it has a journal, it begins so.
fn assert_upgrade(name: &str, journal: Option<[u8; 8]>) {
    let expected = expected(name);
    assert_no_faults(&unpack(name), BRANCHES.len());

    let directory = unpack(name);
    let found = std::fs::read(directory.path().join("store/journal")).ok();
    assert_eq!(found.map(|found| found[..8].to_vec()), journal.map(Vec::from), "the journal");
    let store = open(&directory);
    assert_records(&store);
    for branch in BRANCHES {
        assert_shows(&tree(&store, branch), &expected[branch], branch);
        assert_moments(&store, branch, &expected);
    }
    let mut after = BTreeMap::new();
    for branch in BRANCHES {
        let copy = format!("of/{branch}");
        create(&store, &copy, branch, timeline(&store, branch));
        after.insert(branch.to_owned(), change(&store, branch, &expected[branch]));
        after.insert(copy, expected[branch].clone());
    }
    assert_eq!(delete(&store, "child"), 0, "its children need the timeline");
    after.remove("child");
    store.close().unwrap();
    drop(store);

    let store = open(&directory);
    assert!(store.catalog().branches().keys().eq(after.keys()));
    for (branch, lines) in &after {
        assert_shows(&tree(&store, branch), lines, branch);
    }
    assert_moments(&store, "main", &expected);
    store.close().unwrap();
    drop(store);
    assert_no_faults(&directory, after.len() + 1);
}

#[test]
fn a_store_with_the_first_format_of_the_catalog_opens_after_a_kill() {
    assert_upgrade("store-1", None);
}

#[test]
fn a_store_with_the_second_format_of_the_catalog_opens() {
    assert_upgrade("store-2", Some([0; 8]));
}

#[test]
fn a_store_with_changes_in_its_journal_only_opens_after_a_kill() {
    assert_upgrade("store-2-killed", Some(*b"COPPICEJ"));
}
