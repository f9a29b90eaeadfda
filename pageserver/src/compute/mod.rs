//! Computes: the Postgres processes that run on the data directories of timelines.
//!
//! Read it in this order. [`installation`] and [`user`] say which Postgres runs and as whom;
//! [`settings`] what no branch may inherit; `data_directory` and `processes` look at a directory
//! and at the processes that use it; `child`, `lines` and `tool` run programs; `postgres` is one
//! server process; `slot` the states of one compute, `room` how many there may be, and
//! [`supervisor`] all of them; [`bootstrap`] makes a first data directory; [`leftovers`] removes
//! what a killed server left.
//!
//! Nobody gets into a compute without a password, this server included: readiness is read from
//! `postmaster.pid` and idleness from the kernel's list of sockets, so there is no door that a
//! proxied connection could find.

pub mod bootstrap;
pub(crate) mod child;
mod data_directory;
pub mod installation;
pub mod leftovers;
pub(crate) mod lines;
mod postgres;
mod processes;
mod room;
pub mod settings;
mod slot;
pub mod supervisor;
pub(crate) mod tool;
pub mod user;

pub use installation::Installation;
pub use supervisor::{
    ComputeConfig, ComputeState, ComputeStatus, DataDirectories, Lease, Supervisor,
};
pub use user::OsUser;
