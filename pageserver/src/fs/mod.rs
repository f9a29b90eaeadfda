//! The file system: a directory for each timeline under one FUSE mount.
//!
//! [`tree`] gives a timeline the operations of a file system, [`owners`] says whose its files are, [`nodes`] numbers what the kernel knows of, [`links`]
//! says where a symbolic link may lead, [`fuse`] translates (with `convert`), [`mount`] mounts.

mod convert;
pub mod fuse;
pub mod links;
pub mod mount;
pub mod nodes;
pub mod owners;
mod reply;
pub mod tree;
