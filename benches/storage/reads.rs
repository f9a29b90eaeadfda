//! Reading through layers, and at the end of short and long chains.

use crate::world::{PAGE, SEED, World, is, name};
use criterion::{BenchmarkId, Criterion, Throughput};
use pageserver::fs::tree::Tree;
use pageserver::storage::disk::random::Random;
use pageserver::storage::layer::Layer;
use pageserver::storage::layer::format::LayerEntry;
use pageserver::storage::page::HEAD;
use std::hint::black_box;

/// Pages of the file that is read: 64 MiB.
const PAGES: u64 = 8192;
/// Newer layers have one of so many blocks each.
const STRIDE: u64 = 128;
/// Blocks of the longest request that the kernel makes: 1 MiB.
const RUN: u64 = 128;

pub(crate) fn all(c: &mut Criterion) {
    layers(c);
    depths(c);
}

/// Reads a block that the oldest layer has and no newer one.
fn read(world: &World, tree: &Tree, random: &mut Random, newer: &[u64]) {
    loop {
        let block = random.below(PAGES);
        if newer.iter().any(|version| block % STRIDE == version % STRIDE) {
            continue;
        }
        world.check(tree, block, 0);
        return;
    }
}

/// Reads a run of blocks, some of which are in newer layers.
fn read_run(world: &World, tree: &Tree, random: &mut Random, newer: &[u64]) {
    let first = random.below(PAGES - RUN);
    let length = u32::try_from(RUN * PAGE).expect("a length");
    let (bytes, range) = tree.read(world.inode, first * PAGE, length).expect("read");
    let bytes = &bytes[range];
    for (block, page) in (first..first + RUN).zip(bytes.chunks(8192)) {
        let version = newer.iter().rev().find(|version| block % STRIDE == *version % STRIDE);
        assert!(is(page, block, version.copied().unwrap_or(0)), "block {block}");
    }
    black_box(bytes);
}

/// Finds where a run of blocks is, layer by layer from the newest on, without reading any.
fn resolve_run(world: &World, layers: &[Layer], random: &mut Random) {
    let first = u32::try_from(random.below(PAGES - RUN)).expect("a block");
    let run = first..first + u32::try_from(RUN).expect("a length");
    let mut found = vec![None; run.len()];
    for layer in layers {
        let take = |entry: LayerEntry| {
            found[(entry.block - first) as usize].get_or_insert(entry.position);
        };
        layer.find(world.inode, run.clone(), HEAD, take).expect("find");
    }
    assert!(found.iter().all(Option::is_some), "a block of {run:?} is nowhere");
    black_box(found);
}

fn layers(c: &mut Criterion) {
    for count in [1, 4, 8, 16] {
        let world = World::new();
        world.layer(world.root, PAGES, (0, 1));
        let newer: Vec<u64> = (1..count).collect();
        newer.iter().for_each(|version| world.layer(world.root, PAGES, (*version, STRIDE)));
        let (tree, mut random) = (world.tree(world.root), Random(SEED));
        let sealed = world.layers(world.root);
        assert_eq!(sealed.len() as u64, count);
        let through = |what| BenchmarkId::new(what, count);
        let mut group = c.benchmark_group("through layers");
        group.bench_function(through("read a page"), |b| {
            b.iter(|| read(&world, &tree, &mut random, &newer));
        });
        group.bench_function(through("resolve 128 blocks"), |b| {
            b.iter(|| resolve_run(&world, &sealed, &mut random));
        });
        group.throughput(Throughput::Bytes(RUN * PAGE));
        group.bench_function(through("read 128 blocks"), |b| {
            b.iter(|| read_run(&world, &tree, &mut random, &newer));
        });
        group.finish();
    }
}

/// At the end of a chain in which each timeline wrote some blocks, the oldest wrote all, and that
/// one is read.
fn depths(c: &mut Criterion) {
    let mut group = c.benchmark_group("read a page at depth");
    for depth in [1, 10, 100] {
        let world = World::new();
        world.layer(world.root, PAGES, (0, 1));
        let (mut last, mut newer) = (world.root, Vec::new());
        for level in 1..=depth {
            let (child, _) =
                world.store.fork(last, |t| name(&format!("b{level}"), t)).expect("fork");
            world.layer(child, PAGES, (level, STRIDE));
            newer.push(level);
            last = child;
        }
        let mut random = Random(SEED);
        let tree = world.tree(last);
        group.bench_function(BenchmarkId::from_parameter(depth), |b| {
            b.iter(|| read(&world, &tree, &mut random, &newer));
        });
        drop(tree);
        for _ in 0..=depth {
            world.store.close_unused();
        }
        // Where they were forked can be gone back to for a while, whatever the window.
        world.store.clock().set(world.store.clock().now_ns() + 3_600_000_000_000);
        let mut flattened = 0;
        while world.store.flatten_deep(&mut |_| Ok(())).expect("flatten") {
            (0..=depth).for_each(|_| world.store.close_unused());
            flattened += 1;
        }
        println!("{flattened} timelines of a chain of {depth} stand on their own after compaction");
        let tree = world.tree(last);
        group.bench_function(BenchmarkId::new("after compaction", depth), |b| {
            b.iter(|| read(&world, &tree, &mut random, &newer));
        });
    }
    group.finish();
}
