//! The page store: keeps histories of data directories in layered copy-on-write logs.
//!
//! Synchronous, and ignorant of FUSE, Postgres and HTTP. Read in this order: [`page`], [`disk`]
//! (and its twin [`sim_disk`]), [`mod@format`], `versions` and [`index`], [`log`] and [`recovery`],
//! [`layer`] and `layer_writer`, [`timeline`] with [`commit`], `parts`, `names` and `read`,
//! [`syncer`], `seal` and [`compaction`], [`catalog`], [`store`], [`maintenance`], [`check`];
//! [`property`] is for fuzzing, [`sabotage`] for seeing that tests can fail.

pub mod catalog;
mod catalog_database;
mod catalog_file;
mod catalog_journal;
mod catalog_state;
mod catalog_witness;
pub mod check;
mod children;
pub mod clock;
pub mod commit;
pub mod compaction;
mod detach;
mod dictionary;
mod direct;
pub mod disk;
pub mod format;
pub mod history;
pub mod index;
pub mod lane_files;
pub mod layer;
mod layer_writer;
pub mod log;
pub mod maintenance;
pub mod marks;
mod names;
pub mod page;
mod parts;
pub mod property;
mod read;
pub mod recovery;
mod retention;
pub mod sabotage;
mod seal;
pub mod sim_disk;
mod slices;
pub mod store;
mod survey;
pub mod syncer;
pub mod timeline;
mod versions;
pub mod watch;

#[cfg(test)]
mod tests;
