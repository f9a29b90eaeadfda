//! A store with one file whose blocks tell what they are.

use coppice::Directory;
use pageserver::branches::Branches;
use pageserver::fs::tree::{NewInode, Tree};
use pageserver::storage::catalog::{BranchRecord, Update};
use pageserver::storage::disk::local::LocalDisk;
use pageserver::storage::disk::random::Random;
use pageserver::storage::layer::Layer;
use pageserver::storage::layer::format::LayerId;
use pageserver::storage::log::format::FileKind;
use pageserver::storage::page::{LaneKind, PAGE_BYTES, ROOT_INODE, TimelineId};
use pageserver::storage::store::{STORE_DIRECTORIES, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all that looks random comes from.
pub(crate) const SEED: u64 = 20_261_121;
/// Bytes of a block.
pub(crate) const PAGE: u64 = PAGE_BYTES as u64;

/// A store, and a file on its one timeline.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) inode: u64,
    /// A file whose lane is the write-ahead log's.
    pub(crate) log_inode: u64,
    pub(crate) root: TimelineId,
    disk: LocalDisk,
    _directory: Directory,
}

impl World {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let directory = Directory::new();
        let open = || LocalDisk::open(directory.path(), &STORE_DIRECTORIES).expect("open the disk");
        let store = Store::open(Arc::new(open()), SEED).expect("open the store");
        let root = store.create_root().expect("make a timeline");
        store.publish(name("main", root)).expect("name it");
        let tree = Tree::new(store.timeline(root).expect("open it"));
        tree.make_root((0, 0), 0).expect("make the root directory");
        let make = |parent, name: &[u8], kind| {
            let new = NewInode { kind, mode: 0o700, owner: (0, 0), target: &[] };
            tree.make(parent, name, &new, 0).expect("make a file").0
        };
        let inode = make(ROOT_INODE, b"table", FileKind::File);
        let log = make(ROOT_INODE, b"pg_wal", FileKind::Directory);
        let log_inode = make(log, b"segment", FileKind::File);
        let disk = open();
        Self { store, inode, log_inode, root, disk, _directory: directory }
    }

    /// The files of a timeline.
    pub(crate) fn tree(&self, timeline: TimelineId) -> Tree {
        Tree::new(self.store.timeline(timeline).expect("open a timeline"))
    }

    /// Writes a block.
    pub(crate) fn write(&self, tree: &Tree, block: u64, version: u64) {
        tree.write(self.inode, block * PAGE, &page(block, version)).expect("write");
    }

    /// Writes those of the first `pages` blocks of which each `nth` is due, and seals them as one
    /// layer.
    pub(crate) fn layer(&self, timeline: TimelineId, pages: u64, (version, every): (u64, u64)) {
        let tree = self.tree(timeline);
        for block in (version % every..pages).step_by(usize::try_from(every).expect("a step")) {
            self.write(&tree, block, version);
        }
        self.seal(timeline);
    }

    /// The layers of the data lane, newest first, opened apart from the store.
    pub(crate) fn layers(&self, timeline: TimelineId) -> Vec<Layer> {
        let (catalog, lane) = (self.store.catalog(), LaneKind::Data);
        let record = catalog.timeline(timeline).expect("the timeline is in the catalog");
        let layers = record.lanes[lane].layers.iter();
        let open =
            |number| Layer::open(&self.disk, catalog.store(), LayerId { timeline, lane, number });
        layers.map(|layer| open(layer.number).expect("open a layer")).collect()
    }

    /// Makes a layer of what was written.
    pub(crate) fn seal(&self, timeline: TimelineId) {
        assert!(self.store.seal(timeline, LaneKind::Data, &mut |_| Ok(())).expect("seal"));
    }

    /// Fails unless a block is of that version.
    pub(crate) fn check(&self, tree: &Tree, block: u64, version: u64) {
        let (bytes, range) = tree.read(self.inode, block * PAGE, 8192).expect("read");
        assert!(is(&bytes[range], block, version), "block {block} is not of version {version}");
    }
}

/// Whether a page tells that it is this block of that version.
pub(crate) fn is(page: &[u8], block: u64, version: u64) -> bool {
    page[..8] == block.to_le_bytes() && page[8..16] == version.to_le_bytes()
}

/// Publishes a name for a timeline.
pub(crate) fn name(name: &str, timeline: TimelineId) -> Update {
    let record = BranchRecord { id: timeline.0, ..Branches::first_record(timeline, None) };
    Update::default().put(name, record)
}

/// A page that tells where it is and when it was written, half of it hard to compress as a page of
/// a table is.
pub(crate) fn page(block: u64, version: u64) -> Vec<u8> {
    let mut random = Random(SEED ^ block << 8 ^ version);
    let mut page = vec![0; PAGE_BYTES];
    page[..PAGE_BYTES / 2].iter_mut().for_each(|byte| *byte = random.below(256).to_le_bytes()[0]);
    page[..8].copy_from_slice(&block.to_le_bytes());
    page[8..16].copy_from_slice(&version.to_le_bytes());
    page
}

/// The time of `count` operations, in portions of at most `portion`, each in a world of its own: a
/// store keeps all that is written to it, and must not grow with the number of samples. `prepare`
/// and `check` are not in the time.
pub(crate) fn in_portions<T>(
    count: u64,
    portion: u64,
    prepare: impl Fn(&World) -> T,
    operation: impl Fn(&World, &mut T, u64),
    check: impl Fn(&World, &mut T, u64),
) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let here = left.min(portion);
        let world = World::new();
        let mut prepared = prepare(&world);
        let began = Instant::now();
        (0..here).for_each(|nth| operation(&world, &mut prepared, nth));
        total += began.elapsed();
        check(&world, &mut prepared, here);
        left -= here;
    }
    total
}
