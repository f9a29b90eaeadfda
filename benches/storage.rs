//! Reads of the page store: one page through one and through eight layers, and at the end of short and long chains.
//!
//! `cargo bench --bench storage`. Blocks are chosen by the seed below; each read is held against what was written. The
//! operating system has all of it cached, so what is measured is the work of the store.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pageserver::branches::Branches;
use pageserver::fs::tree::{NewInode, Tree};
use pageserver::storage::catalog::{BranchRecord, Update};
use pageserver::storage::disk::LocalDisk;
use pageserver::storage::format::{FileKind, LaneKind};
use pageserver::storage::page::{PAGE_BYTES, ROOT_INODE, TimelineId};
use pageserver::storage::sim_disk::Random;
use pageserver::storage::store::{STORE_DIRECTORIES, Store};
use std::hint::black_box;
use std::sync::Arc;

const SEED: u64 = 20_261_121;
/// Pages of the file that is read: 64 MiB.
const PAGES: u64 = 8192;

fn name(name: &str, timeline: TimelineId) -> Update {
    let record = BranchRecord { id: timeline.0, ..Branches::first_record(timeline, String::new()) };
    Update { put_branches: vec![(name.to_owned(), record)], ..Update::default() }
}

/// A page that tells where it is and when it was written, half of it hard to compress as a page of a table is.
fn page(block: u64, version: u64) -> Vec<u8> {
    let mut random = Random(SEED ^ block << 8 ^ version);
    let mut page = vec![0; PAGE_BYTES];
    page[..PAGE_BYTES / 2].iter_mut().for_each(|byte| *byte = random.below(256).to_le_bytes()[0]);
    page[..8].copy_from_slice(&block.to_le_bytes());
    page[8..16].copy_from_slice(&version.to_le_bytes());
    page
}

struct World {
    store: Store,
    inode: u64,
    root: TimelineId,
    _directory: coppice::Directory,
}

impl World {
    fn new() -> Self {
        let directory = coppice::Directory::new();
        let disk = LocalDisk::open(directory.path(), &STORE_DIRECTORIES).expect("open the disk");
        let store = Store::open(Arc::new(disk), SEED).expect("open the store");
        let root = store.create_root().expect("make a timeline");
        store.publish(name("main", root)).expect("name it");
        let tree = Tree::new(store.timeline(root).expect("open it"));
        tree.make_root((0, 0), 0).expect("make the root directory");
        let new = NewInode { kind: FileKind::File, mode: 0o600, owner: (0, 0), target: &[] };
        let (inode, _) = tree.make(ROOT_INODE, b"table", &new, 0).expect("make a file");
        Self { store, inode, root, _directory: directory }
    }

    fn tree(&self, timeline: TimelineId) -> Tree {
        Tree::new(self.store.timeline(timeline).expect("open a timeline"))
    }

    /// Writes the blocks of which each `nth` is due, and seals them as one layer.
    fn layer(&self, timeline: TimelineId, version: u64, every: u64) {
        let tree = self.tree(timeline);
        for block in (version % every..PAGES).step_by(usize::try_from(every).expect("a step")) {
            tree.write(self.inode, block * PAGE_BYTES as u64, &page(block, version)).expect("write");
        }
        assert!(self.store.seal(timeline, LaneKind::Data, &mut |_| Ok(())).expect("seal"));
    }

    /// Reads a block that the first layer has and no other.
    fn read(&self, tree: &Tree, random: &mut Random, newer: &[u64]) {
        loop {
            let block = random.below(PAGES);
            if newer.iter().any(|version| block % STRIDE == version % STRIDE) {
                continue;
            }
            let (bytes, range) = tree.read(self.inode, block * PAGE_BYTES as u64, 8192).expect("read");
            let bytes = &bytes[range];
            assert!(bytes[..8] == block.to_le_bytes() && bytes[8..16] == 0_u64.to_le_bytes());
            black_box(bytes);
            return;
        }
    }
}

/// Newer layers have one of so many blocks each.
const STRIDE: u64 = 128;

fn layers(c: &mut Criterion) {
    println!("seed {SEED}");
    let mut group = c.benchmark_group("read one page through layers");
    for count in [1, 4, 8, 16] {
        let world = World::new();
        world.layer(world.root, 0, 1);
        let newer: Vec<u64> = (1..count).collect();
        newer.iter().for_each(|version| world.layer(world.root, *version, STRIDE));
        let (tree, mut random) = (world.tree(world.root), Random(SEED));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| world.read(&tree, &mut random, &newer));
        });
    }
    group.finish();
}

/// At the end of a chain in which each timeline wrote some blocks, the oldest wrote all, and that one is read.
fn depths(c: &mut Criterion) {
    let mut group = c.benchmark_group("read one page at depth");
    for depth in [1, 10, 100] {
        let world = World::new();
        world.layer(world.root, 0, 1);
        let (mut last, mut newer) = (world.root, Vec::new());
        for level in 1..=depth {
            let (child, _) = world.store.fork(last, |t| name(&format!("b{level}"), t)).expect("fork");
            world.layer(child, level, STRIDE);
            newer.push(level);
            last = child;
        }
        let mut random = Random(SEED);
        let tree = world.tree(last);
        group.bench_function(BenchmarkId::from_parameter(depth), |b| {
            b.iter(|| world.read(&tree, &mut random, &newer));
        });
        drop(tree);
        for _ in 0..=depth {
            world.store.close_unused();
        }
        // Where they were forked can be gone back to for a while, whatever the window.
        world.store.clock().set(world.store.clock().now_ns() + 3_600_000_000_000);
        let mut detached = 0;
        while world.store.detach_deep(&mut |_| Ok(())).expect("detach") {
            (0..=depth).for_each(|_| world.store.close_unused());
            detached += 1;
        }
        println!("{detached} timelines of a chain of {depth} stand on their own after compaction");
        let tree = world.tree(last);
        group.bench_function(BenchmarkId::new("after compaction", depth), |b| {
            b.iter(|| world.read(&tree, &mut random, &newer));
        });
    }
    group.finish();
}

criterion_group!(benches, layers, depths);
criterion_main!(benches);
