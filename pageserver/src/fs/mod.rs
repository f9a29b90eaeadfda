//! The file system: a directory for each timeline under one FUSE mount.
//!
//! [`tree`] gives a timeline the operations of a file system (with `pieces` of writes, and
//! `scratch` for temporary files), [`owners`] says whose its files are, [`nodes`] numbers what the
//! kernel knows of, [`links`] says where a symbolic link may lead. `protocol` is what the kernel
//! speaks, `reply` how it is answered, [`fuse`] calls the trees (with `convert`). `session` serves
//! a mount through its `device`, with `ring` where there is io_uring, [`mount`] has the mounts.

mod convert;
mod device;
pub mod fuse;
pub mod links;
pub mod mount;
pub mod nodes;
pub mod owners;
mod pieces;
mod place;
mod protocol;
mod reply;
mod ring;
pub mod scratch;
mod session;
pub mod tree;
