//! Appending, syncing and forking.

use crate::world::{PAGE, World, in_portions, name, page};
use criterion::{Criterion, Throughput};
use pageserver::fs::tree::Tree;
use pageserver::storage::page::TimelineId;

/// Blocks appended to one store: 32 MiB, less than a log is sealed at.
const APPENDS: u64 = 4096;
/// Synced ones.
const SYNCS: u64 = 512;
/// Forks of one timeline.
const FORKS: u64 = 256;
/// Blocks that the parent of the forks has.
const PAGES: u64 = 256;
/// Different pages that are written in turn, so that making them is not in the time.
const DIFFERENT: u64 = 64;

pub(crate) fn all(c: &mut Criterion) {
    append(c);
    sync(c);
    fork(c);
}

type Pages = (Tree, Vec<Vec<u8>>);

fn pages(world: &World) -> Pages {
    (world.tree(world.root), (0..DIFFERENT).map(|block| page(block, 0)).collect())
}

fn nth_page(pages: &[Vec<u8>], nth: u64) -> &[u8] {
    &pages[usize::try_from(nth % DIFFERENT).unwrap_or(0)]
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    group.throughput(Throughput::Bytes(PAGE));
    let write = |world: &World, (tree, pages): &mut Pages, nth: u64| {
        tree.write(world.inode, nth * PAGE, nth_page(pages, nth)).expect("append a page");
    };
    let check = |world: &World, (tree, pages): &mut Pages, count: u64| {
        let last = count - 1;
        let (bytes, range) = tree.read(world.inode, last * PAGE, 8192).expect("read");
        assert_eq!(&bytes[range], nth_page(pages, last), "the last page");
    };
    group.bench_function("append a page", |b| {
        b.iter_custom(|count| in_portions(count, APPENDS, pages, write, check));
    });
    group.finish();
}

/// What a commit costs the store: a page of the write-ahead log, durable.
fn sync(c: &mut Criterion) {
    let prepare = |world: &World| {
        // Written-out files, as a server keeps them ready.
        (0..4).for_each(|_| world.store.tick());
        pages(world)
    };
    let write = |world: &World, (tree, pages): &mut Pages, nth: u64| {
        tree.write(world.log_inode, nth * PAGE, nth_page(pages, nth)).expect("append a page");
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        tree.sync(world.log_inode, true, Box::new(move |outcome| drop(sender.send(outcome))));
        receiver.recv().expect("an answer").expect("sync");
    };
    let check = |world: &World, (tree, pages): &mut Pages, count: u64| {
        let (bytes, range) = tree.read(world.log_inode, (count - 1) * PAGE, 8192).expect("read");
        assert_eq!(&bytes[range], nth_page(pages, count - 1), "the last page");
    };
    let mut group = c.benchmark_group("write");
    group.bench_function("append a page and sync it", |b| {
        b.iter_custom(|count| in_portions(count, SYNCS, prepare, write, check));
    });
    group.finish();
}

fn fork(c: &mut Criterion) {
    let prepare = |world: &World| {
        world.layer(world.root, PAGES, (0, 1));
        Vec::new()
    };
    let fork = |world: &World, children: &mut Vec<TimelineId>, nth: u64| {
        let forked = world.store.fork(world.root, |child| name(&format!("b{nth}"), child));
        children.push(forked.expect("fork").0);
    };
    let check = |world: &World, children: &mut Vec<TimelineId>, count: u64| {
        assert_eq!(children.len() as u64, count);
        let newest = children[children.len() - 1];
        world.check(&world.tree(newest), PAGES - 1, 0);
    };
    c.bench_function("fork", |b| {
        b.iter_custom(|count| in_portions(count, FORKS, prepare, fork, check))
    });
}
