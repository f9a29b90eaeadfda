//! Sealing logs and merging layers.

use crate::world::{PAGE, World, in_portions};
use criterion::{Criterion, Throughput};
use pageserver::storage::page::LaneKind;

/// Blocks that are sealed or merged: 16 MiB.
const PAGES: u64 = 2048;
/// Layers that are merged; all but the oldest have one of so many blocks.
const LAYERS: u64 = 4;

pub(crate) fn all(c: &mut Criterion) {
    let mut group = c.benchmark_group("keep in shape");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(PAGES * PAGE));
    let fill = |world: &World| {
        let tree = world.tree(world.root);
        (0..PAGES).for_each(|block| world.write(&tree, block, 0));
    };
    let seal = |world: &World, (): &mut (), _| world.seal(world.root);
    let sealed = |world: &World, (): &mut (), _| world.check(&world.tree(world.root), PAGES / 2, 0);
    group.bench_function("seal a log", |b| {
        b.iter_custom(|count| in_portions(count, 1, fill, seal, sealed))
    });

    let stack = |world: &World| {
        world.layer(world.root, PAGES, (0, 1));
        (1..LAYERS).for_each(|version| world.layer(world.root, PAGES, (version, LAYERS)));
    };
    let merge = |world: &World, (): &mut (), _| {
        let range = 0..usize::try_from(LAYERS).unwrap_or(0);
        assert!(
            world.store.merge(world.root, LaneKind::Data, range, &mut |_| Ok(())).expect("merge")
        );
    };
    let merged = |world: &World, (): &mut (), _| {
        let tree = world.tree(world.root);
        (0..LAYERS).for_each(|version| world.check(&tree, LAYERS + version, version));
    };
    group.bench_function("merge layers", |b| {
        b.iter_custom(|count| in_portions(count, 1, stack, merge, merged))
    });
    group.finish();
}
