//! Marks: what was at each stays readable until it is let go of, whatever is sealed, merged or lost
//! meanwhile.

use super::*;
use crate::storage::page::{PerLane, Position};
use crate::storage::store::{Origin, Past};
use crate::storage::upkeep::{Duty, Limits, Maintenance};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const SECOND: i64 = 1_000_000_000;

/// What the two files hold; `None` is not there.
type Image = [Option<Vec<u8>>; 2];

struct World {
    disk: SimDisk,
    store: Store,
    main: Tree,
    random: Random,
    now: i64,
    /// Every mark that was made, with what was there.
    marks: BTreeMap<Position, Image>,
    /// Everything up to here was made durable.
    synced: Position,
    children: Vec<(TimelineId, Image)>,
}

fn image(tree: &Tree) -> Image {
    let wal = tree.lookup(ROOT_INODE, b"pg_wal").ok();
    let in_wal = wal.and_then(|(directory, _)| {
        let (inode, attributes) = tree.lookup(directory, b"w").ok()?;
        let (buffer, range) = tree.read(inode, 0, u32::try_from(attributes.size).unwrap()).unwrap();
        Some(buffer[range].to_vec())
    });
    [contents(tree, b"f"), in_wal]
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::default();
        let (store, id) = new_store(&disk);
        store.keep_history(Duration::from_secs(86_400)).unwrap();
        store.clock().set(SECOND);
        let main = tree(&store, id);
        make(&main, b"f");
        make_wal(&main, b"w");
        let (marks, children) = (BTreeMap::new(), Vec::new());
        Self { disk, store, main, random: Random(seed), now: 1, marks, synced: 0, children }
    }

    fn timeline(&self) -> TimelineId {
        self.main.timeline().id()
    }

    fn file(&self, which: u64) -> (u64, &'static [u8]) {
        if which == 0 {
            return (ROOT_INODE, b"f");
        }
        (self.main.lookup(ROOT_INODE, b"pg_wal").unwrap().0, b"w")
    }

    fn change(&mut self) {
        let which = self.random.below(2);
        let (directory, name) = self.file(which);
        let found = self.main.lookup(directory, name).ok();
        match (found, self.random.below(8)) {
            (None, _) if name == b"f" => drop(make(&self.main, b"f")),
            (None, _) => drop(make_wal(&self.main, b"w")),
            (Some((inode, _)), 0) => {
                let before = image(&self.main);
                self.main.remove(directory, name, false, 0).unwrap();
                if let Some(mark) = self.main.timeline().marks().last() {
                    self.marks.entry(mark.position).or_insert(before);
                }
                self.main.reap(inode).unwrap();
            }
            (Some((inode, _)), 1) => {
                let size = Some(self.random.below(20) * 4096);
                self.main.set_attributes(inode, &Wanted { size, ..Wanted::default() }).unwrap();
            }
            (Some((inode, _)), _) => {
                let (at, fill) = (self.random.below(20) * 4096, self.random.below(255) + 1);
                let bytes = vec![
                    u8::try_from(fill).unwrap();
                    usize::try_from(1 + self.random.below(20_000)).unwrap()
                ];
                self.main.write(inode, at, &bytes).unwrap();
            }
        }
    }

    fn mark(&mut self) {
        self.now += 1;
        self.store.clock().set(self.now * SECOND);
        let mark = self.main.timeline().mark(false).unwrap().unwrap();
        self.marks.insert(mark.position, image(&self.main));
    }

    fn step(&mut self) {
        let id = self.timeline();
        let known: Vec<Position> =
            self.main.timeline().marks().iter().map(|mark| mark.position).collect();
        let some = known.get(usize::try_from(self.random.below(30)).unwrap()).copied();
        match (self.random.below(13), some) {
            (0..2, _) => self.mark(),
            (2, Some(mark)) => self.main.timeline().forget_marks(&[mark]).unwrap(),
            (3, Some(mark)) if self.children.len() < 8 => {
                let past = Some(Past { at: PerLane::both(mark), time_ns: 0 });
                let name = format!("c{}", self.children.len());
                let origin = Origin { timeline: id, past, unfinished: false };
                let (child, _) = self.store.fork(origin, |t| named(&name, t)).unwrap();
                self.children.push((child, self.marks[&mark].clone()));
            }
            (4, _) => {
                self.main.timeline().sync_and_wait().unwrap();
                self.synced = self.store.newest_position();
            }
            (5, _) => {
                let lane = LaneKind::ALL[usize::try_from(self.random.below(2)).unwrap()];
                self.store.seal(id, lane, &mut |_| Ok(())).unwrap();
                let count = self.main.timeline().layers(lane).len();
                if count > 1 && self.random.below(2) == 0 {
                    let first = usize::try_from(self.random.below(count as u64 - 1)).unwrap();
                    self.store.merge(id, lane, first..count, &mut |_| Ok(())).unwrap();
                }
            }
            _ => self.change(),
        }
    }

    /// Whatever marks a store has, it shows what was there.
    fn check(&self, store: &Store, what: &str) -> usize {
        let timeline = store.timeline(self.timeline()).unwrap();
        let marks = timeline.marks();
        for mark in &marks {
            let seen = image(&Tree::new(timeline.view(PerLane::both(mark.position))));
            let expected = &self.marks[&mark.position];
            assert!(seen[0] == expected[0], "{what}: data of mark {}", mark.position);
            // The other lane may have lost its end, as in any crash; Postgres had not been told
            // that it was durable.
            let durable = mark.position < self.synced || std::ptr::eq(store, &self.store);
            assert!(!durable || seen[1] == expected[1], "{what}: log of mark {}", mark.position);
        }
        for (child, expected) in &self.children {
            assert!(image(&tree(store, *child)) == *expected, "{what}: child {child}");
        }
        marks.len()
    }
}

#[test]
fn each_mark_shows_what_was_there() {
    let mut most = 0;
    for seed in 1..12 {
        let mut world = World::new(seed);
        for step in 0..400 {
            world.step();
            if step % 40 == 39 {
                let what = format!("seed {seed} step {step}");
                most = most.max(world.check(&world.store, &what));
                for unsynced in [Unsynced::Lost, Unsynced::Mixed(step)] {
                    let crashed = open(&world.disk.after_power_loss(unsynced)).unwrap();
                    world.check(&crashed, &format!("{what}, after a power loss"));
                }
            }
        }
        let head = image(&world.main);
        world.store.close().unwrap();
        world.synced = world.store.newest_position();
        let marks = world.main.timeline().marks();
        let image_of_disk = world.disk.after_power_loss(Unsynced::Lost);
        let again = open(&image_of_disk).unwrap();
        assert!(image(&tree(&again, world.timeline())) == head, "seed {seed}: the head");
        world.check(&again, &format!("seed {seed}, opened again"));
        assert_eq!(tree(&again, world.timeline()).timeline().marks(), marks, "seed {seed}");
        drop(again);
        assert_eq!(
            check::check(&(Arc::new(image_of_disk) as Arc<dyn Disk>)).unwrap().faults,
            [] as [&str; 0],
            "seed {seed}"
        );
    }
    assert!(most > 20, "at most {most} marks at a time");
}

#[test]
fn a_mark_that_was_let_go_of_stays_away_once_its_versions_are_dropped() {
    let mut world = World::new(1);
    let id = world.timeline();
    let (directory, name) = world.file(1);
    let inode = world.main.lookup(directory, name).unwrap().0;
    world.main.write(inode, 0, &[1; PAGE_BYTES]).unwrap();
    world.mark();
    let mark = *world.marks.keys().next().unwrap();
    world.main.timeline().sync_and_wait().unwrap();
    world.synced = world.store.newest_position();
    world.main.timeline().forget_marks(&[mark]).unwrap();
    world.main.write(inode, 0, &[2; PAGE_BYTES]).unwrap();
    world.store.seal(id, LaneKind::Wal, &mut |_| Ok(())).unwrap();
    let crashed = open(&world.disk.after_power_loss(Unsynced::Lost)).unwrap();
    assert_eq!(
        world.check(&crashed, "after a power loss"),
        0,
        "the mark came back without its versions"
    );
}

#[test]
fn nobody_forks_from_a_timeline_that_was_dropped() {
    let world = World::new(1);
    let (child, _) = world.store.fork(world.timeline(), |t| named("child", t)).unwrap();
    let update = Update::default().remove::<BranchRecord>("child");
    let freed = world.store.publish(update).unwrap();
    assert_eq!(freed, [child]);
    // Its files are still there until its Postgres has stopped.
    let error = world.store.fork(child, |_| Update::default()).unwrap_err();
    assert_eq!(error.code, "timeline_not_found");
    world.store.free(&freed);
    drop(open(&world.disk.after_power_loss(Unsynced::Lost)).unwrap());
}

#[test]
fn a_child_that_the_parent_never_knew_takes_nobody_elses_point_along() {
    let mut world = World::new(1);
    world.change();
    world.mark();
    let id = world.timeline();
    let mark = *world.marks.keys().next().unwrap();
    let at = |name: &str| {
        let origin = Origin {
            timeline: id,
            past: Some(Past { at: PerLane::both(mark), time_ns: 0 }),
            unfinished: false,
        };
        world.store.fork(origin, |t| named(name, t)).unwrap().0
    };
    let (_, kept) = (at("one"), at("two"));
    for lane in LaneKind::ALL {
        world.store.seal(id, lane, &mut |_| Ok(())).unwrap();
    }
    let World { store, main, marks, .. } = world;
    drop(main);
    (0..3).for_each(|_| store.close_unused());
    let freed = store.publish(Update::default().remove::<BranchRecord>("one")).unwrap();
    // The parent is opened between the two, and knows of one child only.
    let main = tree(&store, id);
    store.free(&freed);
    main.timeline().forget_marks(&[mark]).unwrap();
    let inode = make(&main, b"g");
    for fill in 1..4 {
        main.write(inode, 0, &[fill; 20_000]).unwrap();
        if let Ok((f, _)) = main.lookup(ROOT_INODE, b"f") {
            main.write(f, 0, &[fill; 170_000]).unwrap();
        }
        store.seal(id, LaneKind::Data, &mut |_| Ok(())).unwrap();
    }
    let count = main.timeline().layers(LaneKind::Data).len();
    store.merge(id, LaneKind::Data, 0..count, &mut |_| Ok(())).unwrap();
    assert!(image(&tree(&store, kept)) == marks[&mark]);
}

#[test]
fn nobody_forks_from_a_moment_that_was_let_go_of() {
    let mut world = World::new(1);
    world.change();
    world.mark();
    let mark = *world.marks.keys().next().unwrap();
    let origin = |at| Origin {
        timeline: world.timeline(),
        past: Some(Past { at, time_ns: 0 }),
        unfinished: false,
    };
    let fork = |at| world.store.fork(origin(at), |_| Update::default());
    fork(PerLane::both(mark)).unwrap();
    assert_eq!(fork(PerLane { data: mark, wal: mark - 1 }).unwrap_err().code, "moment_gone");
    world.main.timeline().forget_marks(&[mark]).unwrap();
    // The child keeps it.
    fork(PerLane::both(mark)).unwrap();
    for child in 2..4 {
        world.store.free(&world.store.release(TimelineId(child)).unwrap());
    }
    assert_eq!(fork(PerLane::both(mark)).unwrap_err().code, "moment_gone");
}

#[test]
fn a_removal_is_marked_once_for_each_sync_of_the_data() {
    let world = World::new(1);
    let timeline = world.main.timeline();
    let count = || timeline.marks().len();
    let remove = |name: &[u8]| {
        let inode = make_wal(&world.main, name);
        world.main.write(inode, 0, &[1; 100]).unwrap();
        let (directory, _) = world.main.lookup(ROOT_INODE, b"pg_wal").unwrap();
        world.main.remove(directory, name, false, 0).unwrap();
    };
    timeline.begin_history();
    [&b"1"[..], b"2", b"3"].into_iter().for_each(remove);
    assert_eq!(count(), 1, "before the first one");
    timeline.sync_and_wait().unwrap();
    [&b"4"[..], b"5"].into_iter().for_each(remove);
    assert_eq!(count(), 2);
    assert!(timeline.marks().iter().all(|mark| mark.kept));
    let (directory, _) = world.main.lookup(ROOT_INODE, b"pg_wal").unwrap();
    let seen = Tree::new(timeline.view(PerLane::both(timeline.marks()[1].position)));
    assert!(seen.lookup(directory, b"4").is_ok() && seen.lookup(directory, b"3").is_err());
}

/// Passes of upkeep over a store until there is no more to do.
fn passes(store: &Store, limits: Limits) {
    let mut both = [Duty::Seal, Duty::Tidy].map(|duty| Maintenance::new(limits, duty));
    let stop = AtomicBool::new(false);
    for round in 0..12 {
        both.iter_mut().for_each(|maintenance| while maintenance.pass(store, &stop).unwrap() {});
        store.close_unused();
        if round == 6 {
            std::thread::sleep(Duration::from_millis(1_100));
        }
    }
}

#[test]
fn what_only_marks_saw_goes_with_them() {
    let mut world = World::new(1);
    let id = world.timeline();
    let inode = world.main.lookup(ROOT_INODE, b"f").unwrap().0;
    for _ in 0..16 {
        let bytes: Vec<u8> = (0..128 * PAGE_BYTES / 8)
            .flat_map(|_| world.random.below(u64::MAX).to_le_bytes())
            .collect();
        for (nth, part) in bytes.chunks_exact(32 * PAGE_BYTES).enumerate() {
            world.main.write(inode, (nth * part.len()) as u64, part).unwrap();
        }
        world.mark();
        world.store.seal(id, LaneKind::Data, &mut |_| Ok(())).unwrap();
    }
    let mib = || world.main.timeline().own_bytes() >> 20;
    assert!((13..=16).contains(&mib()), "sixteen states of a mebibyte");
    let pass = |max_history_mib: u64| {
        let limits = Limits {
            max_log_bytes: 1 << 30,
            quiet: Duration::ZERO,
            max_history_bytes: max_history_mib << 20,
        };
        passes(&world.store, limits);
    };
    pass(100);
    assert!(
        (13..=16).contains(&mib()) && world.main.timeline().marks().len() == 16,
        "{} MiB",
        mib()
    );
    pass(8);
    let left = world.main.timeline().marks().len();
    assert!((7..=10).contains(&left) && mib() <= 10, "{left} marks, {} MiB", mib());
    world.check(&world.store, "within the limit");
    // Older than the window, at rest, all go; the timeline was closed meanwhile and is opened for
    // it.
    let head = image(&world.main);
    world.store.clock().set(200_000 * SECOND);
    let World { disk, store, main, .. } = world;
    drop((main, store));
    let store = open(&disk).unwrap();
    store.keep_history(Duration::from_secs(86_400)).unwrap();
    store.clock().set(200_000 * SECOND);
    let limits =
        Limits { max_log_bytes: 1 << 30, quiet: Duration::ZERO, max_history_bytes: 1 << 40 };
    passes(&store, limits);
    let (own, _) = store.sizes(id).unwrap();
    assert!(own < 3 << 19, "{own} bytes for one mebibyte");
    assert_eq!(store.timeline(id).unwrap().marks().len(), 1, "what was when the window began");
    assert!(image(&tree(&store, id)) == head);
}

/// A branch that keeps so many seconds of its past.
fn keeping(name: &str, id: u64, timeline: TimelineId, history_s: u64) -> Update {
    let history_s = Some(history_s);
    Update::default().put(name, BranchRecord { history_s, ..BranchRecord::root(id, timeline, 0) })
}

/// Writes a mebibyte ten times, a minute and a mark apart.
fn overwrite(store: &Store, tree: &Tree, random: &mut Random) {
    let inode = tree.lookup(ROOT_INODE, b"f").unwrap().0;
    for _ in 0..10 {
        let words = (0..PAGE_BYTES / 8).map(|_| random.below(u64::MAX).to_le_bytes());
        let mut page: Vec<u8> = words.flatten().collect();
        for block in 0..128 {
            page.rotate_left(8);
            tree.write(inode, block * PAGE_BYTES as u64, &page).unwrap();
        }
        store.clock().set(store.clock().now_ns() + 60 * SECOND);
        tree.timeline().mark(false).unwrap();
        store.seal(tree.timeline().id(), LaneKind::Data, &mut |_| Ok(())).unwrap();
    }
}

#[test]
fn a_branch_that_keeps_less_frees_what_only_its_past_needed() {
    const LIMITS: Limits =
        Limits { max_log_bytes: 1 << 30, quiet: Duration::ZERO, max_history_bytes: 1 << 40 };
    // Open or closed, and over a restart; what it keeps afterwards, and how many marks that leaves:
    // the newest one from before the window stays.
    for (closed, restarted, history_s, left) in [
        (false, false, 0, 0),
        (true, false, 0, 0),
        (true, true, 0, 0),
        (false, false, 150, 4),
        (true, false, 150, 4),
    ] {
        let what = format!("closed {closed}, restarted {restarted}, {history_s} s");
        let World { disk, mut store, main, mut random, .. } = World::new(1);
        let parent = main.timeline().id();
        let (child, _) = store.fork(parent, |timeline| keeping("b", 2, timeline, 86_400)).unwrap();
        let branch = tree(&store, child);
        overwrite(&store, &main, &mut random);
        overwrite(&store, &branch, &mut random);
        let shown = image(&branch);
        let own = |store: &Store, id| store.sizes(id).unwrap().0 >> 20;
        let marks = |store: &Store, id| store.timeline(id).unwrap().marks().len();
        passes(&store, LIMITS);
        assert_eq!((marks(&store, parent), marks(&store, child)), (10, 10), "{what}");
        let before = (own(&store, parent), own(&store, child));
        assert!(before.1 > 0, "{what}: {before:?} MiB");
        drop(main);
        if closed {
            drop(branch);
            (0..3).for_each(|_| store.close_unused());
            assert!(store.if_open(child).is_none(), "{what}");
        }
        store.publish(keeping("b", 2, child, history_s)).unwrap();
        if restarted {
            let now_ns = store.clock().now_ns();
            drop(store);
            store = open(&disk).unwrap();
            store.clock().set(now_ns + SECOND);
            store.keep_history(Duration::from_secs(86_400)).unwrap();
        }
        passes(&store, LIMITS);
        let after = (own(&store, parent), own(&store, child));
        assert_eq!((marks(&store, parent), marks(&store, child)), (10, left), "{what}");
        println!("{what}: {before:?} to {after:?} MiB");
        assert!(after.0 == before.0 && after.1 < before.1, "{what}: {before:?} to {after:?} MiB");
        assert!(image(&tree(&store, child)) == shown, "{what}");
        assert_eq!(faults_of(&disk), [] as [&str; 0], "{what}");
    }
}

#[test]
fn an_open_timeline_goes_by_the_branch_that_leads_to_it() {
    let World { disk, store, main, .. } = World::new(1);
    let parent = main.timeline().id();
    let (child, _) = store.fork(parent, |timeline| keeping("b", 2, timeline, 100)).unwrap();
    let window_s = |store: &Store, id| store.timeline(id).unwrap().window_ns() / SECOND;
    assert_eq!((window_s(&store, parent), window_s(&store, child)), (86_400, 100));
    store.publish(keeping("b", 2, child, 0)).unwrap();
    assert_eq!((window_s(&store, parent), window_s(&store, child)), (86_400, 0));
    // Nothing is marked on a branch without a history.
    let branch = tree(&store, child);
    let inode = make_wal(&branch, b"1");
    branch.write(inode, 0, &[1; 100]).unwrap();
    store.tick();
    let (directory, _) = branch.lookup(ROOT_INODE, b"pg_wal").unwrap();
    branch.remove(directory, b"1", false, 0).unwrap();
    assert_eq!(branch.timeline().marks(), []);
    let rename = keeping("c", 2, child, 7).remove::<BranchRecord>("b");
    store.publish(rename).unwrap();
    assert_eq!(window_s(&store, child), 7);
    store.clock().set(30 * SECOND);
    store.tick();
    assert_eq!(branch.timeline().marks().len(), 1, "it has one now");
    let (reset, freed) = store.fork(parent, |timeline| keeping("c", 2, timeline, 7)).unwrap();
    assert_eq!((freed, window_s(&store, reset)), (vec![child], 7));
    drop((store, main, branch));
    let again = open(&disk).unwrap();
    assert_eq!((window_s(&again, parent), window_s(&again, reset)), (86_400, 7));
    again.keep_history(Duration::from_secs(50)).unwrap();
    assert_eq!((window_s(&again, parent), window_s(&again, reset)), (50, 7));
}

/// What a timeline shows: the two files, and all names.
type Shown = (Image, Vec<Vec<u8>>);

fn whole(tree: &Tree) -> Shown {
    let mut names: Vec<Vec<u8>> =
        tree.list(ROOT_INODE).into_iter().map(|(_, name, _)| name).collect();
    names.sort();
    (image(tree), names)
}

/// A chain of timelines, each with some changes, all sealed; what each shows. The marks of all are
/// among the world's.
fn chain(world: &mut World, length: usize) -> Vec<(TimelineId, Shown)> {
    let mut shown = Vec::new();
    for level in 0..length {
        let parent = world.timeline();
        let (child, _) = world.store.fork(parent, |t| named(&format!("level {level}"), t)).unwrap();
        world.main = tree(&world.store, child);
        make(&world.main, format!("x{level}").as_bytes());
        if level > 2 {
            world.main.remove(ROOT_INODE, format!("x{}", level - 3).as_bytes(), false, 0).unwrap();
        }
        world.mark();
        for _ in 0..6 {
            world.change();
            if world.random.below(3) == 0 {
                world.mark();
            }
        }
        for inode in world.main.timeline().nameless() {
            world.main.reap(inode).unwrap();
        }
        shown.push((child, whole(&world.main)));
        for lane in LaneKind::ALL {
            world.store.seal(child, lane, &mut |_| Ok(())).unwrap();
        }
    }
    shown
}

#[test]
fn a_timeline_at_the_end_of_a_long_chain_stands_on_its_own() {
    for seed in 1..6 {
        let mut world = World::new(seed);
        let shown = chain(&mut world, 20);
        let World { disk, store, main, marks, .. } = world;
        let roots = |store: &Store| {
            shown
                .iter()
                .filter(|(id, _)| store.catalog().timeline(*id).unwrap().ancestor.is_none())
                .count()
        };
        assert!(
            !store.flatten_deep(&mut |_| Ok(())).unwrap(),
            "it is in use, and its beginning can be gone back to"
        );
        drop(main);
        (0..20).for_each(|_| store.close_unused());
        assert!(!store.flatten_deep(&mut |_| Ok(())).unwrap(), "its beginning can be gone back to");
        // The beginnings are out of the window, and the marks are still there.
        store.clock().set(90_000 * SECOND);
        let mut count = 0;
        while store.flatten_deep(&mut |_| Ok(())).unwrap() {
            (0..20).for_each(|_| store.close_unused());
            count += 1;
        }
        assert_eq!((count, roots(&store)), (2, 2), "seed {seed}");
        let image_of_disk = disk.after_power_loss(Unsynced::Lost);
        for store in [store, open(&image_of_disk).unwrap()] {
            for (id, expected) in &shown {
                assert!(whole(&tree(&store, *id)) == *expected, "seed {seed}: {id}");
            }
            for (id, _) in &shown {
                let timeline = store.timeline(*id).unwrap();
                assert!(!timeline.marks().is_empty());
                for mark in timeline.marks() {
                    let seen = image(&Tree::new(timeline.view(PerLane::both(mark.position))));
                    assert!(
                        seen == marks[&mark.position],
                        "seed {seed}: mark {} of {id}",
                        mark.position
                    );
                }
            }
            // The others go without it.
            let others = (0..19).map(|level| format!("level {level}")).chain(["main".to_owned()]);
            let remove = |update: Update, name: String| update.remove::<BranchRecord>(&name);
            let freed = store.publish(others.fold(Update::default(), remove)).unwrap();
            store.free(&freed);
            let (id, expected) = &shown[19];
            assert!(
                whole(&tree(&store, *id)) == *expected,
                "seed {seed}: after the others are gone"
            );
        }
        assert_eq!(faults_of(&image_of_disk), [] as [&str; 0]);
    }
}

fn faults_of(disk: &SimDisk) -> Vec<String> {
    check::check(&(Arc::new(disk.clone()) as Arc<dyn Disk>)).unwrap().faults
}

#[test]
fn a_stop_while_a_timeline_is_flattened_loses_nothing() {
    for count in 0.. {
        let mut world = World::new(3);
        let shown = chain(&mut world, 9);
        let World { disk, store, main, .. } = world;
        drop(main);
        (0..20).for_each(|_| store.close_unused());
        store.clock().set(90_000 * SECOND);
        disk.fail_after(Some(count));
        let outcome = store.flatten_deep(&mut |_| Ok(()));
        let struck = disk.failed();
        for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Mixed(count)] {
            let image_of_disk = disk.after_power_loss(unsynced);
            let again = open(&image_of_disk).unwrap();
            for (id, expected) in &shown {
                assert!(whole(&tree(&again, *id)) == *expected, "stop {count}: {id}");
            }
            drop(again);
            assert_eq!(faults_of(&image_of_disk), [] as [&str; 0], "stop {count}");
        }
        disk.fail_after(None);
        for (id, expected) in &shown {
            assert!(whole(&tree(&store, *id)) == *expected, "stop {count}: {id} while running");
        }
        if !struck {
            assert!(outcome.unwrap() && count > 5, "only {count} operations");
            return;
        }
    }
}
