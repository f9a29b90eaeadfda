//! The page store: keeps histories of data directories in layered copy-on-write logs.
//!
//! Synchronous, and ignorant of FUSE, Postgres and HTTP.
//!
//! # Rooms, in reading order
//!
//! [`page`], the plain types; [`disk`], the door to the file system; [`log`], records in files;
//! [`layer`], sealed files; [`index`], what a lane holds where; [`catalog`], which branches and
//! timelines there are; [`timeline`], one history; [`store`], the facade, and [`space`], its bytes;
//! [`upkeep`], sealing and merging; [`check`]; [`proof`], properties for fuzzing; [`sabotage`], for
//! seeing that tests can fail.
//!
//! A room uses only those before it, and no two files use each other. What decides is pure:
//! `log/format.rs`, `layer/format.rs`, `catalog/state.rs`, `upkeep/plan.rs`.
//!
//! # Order of locks
//!
//! A thread that holds one of these takes only those behind it:
//!
//! 1. The place of a timeline in the store (`TimelineSlot`): a child before its parent, and no two
//!    others at once.
//! 2. The state of a lane: the data lane, the write-ahead lane, then those of the ancestor, and so
//!    on up the chain.
//! 3. The catalog's database, then its state in memory.
//!
//! All other locks are leaves, held for a few instructions: the table of places, the queue of a
//! lane's syncs, the pool of spare files, the files that leave their lanes. In a file that is
//! written past the cache, the turn to write comes before the file's state. The sum of sizes that a
//! timeline remembers comes before its lanes. No lane is locked while a file is synced.
//!
//! # Order of durability
//!
//! A change of a lane is in its log before it is in the index. It is durable after the next sync of
//! the lane: contents first, then the directory. A layer is written, synced, renamed to its name,
//! and the directory synced; then the data lane is synced, because the layer may leave out what
//! only a mark saw that is gone; then one change of the catalog says that the layer counts. Only
//! then do readers turn to it, and files that it replaces go. A fork syncs both lanes of the parent
//! before the catalog names the child. After a write or a sync that failed, a timeline latches and
//! the catalog is opened anew; nothing is tried again.

pub mod catalog;
pub mod check;
pub mod clock;
pub mod disk;
pub mod index;
pub mod layer;
mod leftovers;
pub mod log;
pub mod page;
pub mod proof;
pub mod sabotage;
mod slot;
pub mod space;
pub mod store;
pub mod timeline;
pub mod upkeep;

#[cfg(test)]
mod tests;
