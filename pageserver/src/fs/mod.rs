//! The file system: a directory for each timeline under one FUSE mount.
//!
//! [`tree`] gives a timeline the operations of a file system, with `scratch` for temporary files.
//! [`owners`] says whose its files are, [`links`] where a symbolic link may lead, [`error`] why an
//! operation failed. [`nodes`] numbers what the kernel knows of. `protocol` is what the kernel
//! speaks, `reply` answers it, and [`fuse`] calls the trees, with `convert` for attributes.
//! `session` serves a mount through its `device`, with `ring` where there is io_uring.
//! [`connection`] ends a mount by force. [`mount`] has the mounts.

pub mod connection;
mod convert;
mod cpu;
mod device;
pub mod error;
pub mod fuse;
pub mod links;
pub mod mount;
pub mod nodes;
pub mod owners;
mod protocol;
mod reply;
mod ring;
pub mod scratch;
mod session;
pub mod tree;
