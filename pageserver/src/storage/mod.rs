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
