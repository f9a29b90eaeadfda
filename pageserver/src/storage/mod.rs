//! The page store: keeps histories of data directories in layered copy-on-write logs.
//!
//! Synchronous, and ignorant of FUSE, Postgres and HTTP. Read in this order: [`page`], [`disk`] (and its twin
//! [`sim_disk`]), [`mod@format`], [`index`], [`log`] and [`recovery`], [`timeline`], [`commit`] and `parts`, [`syncer`], [`catalog`], [`store`],
//! [`check`]; [`property`] is for fuzzing.

pub mod catalog;
mod catalog_file;
pub mod check;
pub mod commit;
pub mod disk;
pub mod format;
pub mod index;
pub mod lane_files;
pub mod log;
pub mod page;
mod parts;
pub mod property;
pub mod recovery;
pub mod sim_disk;
pub mod store;
pub mod syncer;
pub mod timeline;

#[cfg(test)]
mod tests;
