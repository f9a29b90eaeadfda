//! Computes: the Postgres processes that run on the data directories of timelines.
//!
//! Read it in this order. [`installation`] and [`user`] say which Postgres runs and as whom;
//! [`settings`] what no branch may inherit; `surroundings` what of the machine a compute reaches,
//! with `groups` for its share; `data_directory` and `processes` look at a directory and at the
//! processes that use it; `child`, `lines` and `tool` run programs; `log` says which of their lines
//! this server may show, `log_files` keeps all of them for whoever owns the branch, and
//! `log_reader` reads them; `postgres` is one server process; `auto_conf` changes settings of one
//! that does not run; `slot` the states of one compute, `room` how many there may be, and
//! [`supervisor`] all of them; [`bootstrap`] makes a first data directory; [`leftovers`] removes
//! what a killed server left.
//!
//! No client gets into a compute without a password. The server does, through [`door`], whose role
//! the proxy refuses to clients. Readiness is read from `postmaster.pid` and idleness from the
//! kernel's list of sockets.

mod auto_conf;
pub mod bootstrap;
pub(crate) mod child;
mod config;
mod cron;
mod data_directory;
pub mod debt;
pub mod door;
pub mod groups;
pub mod installation;
pub mod leftovers;
pub(crate) mod lines;
mod log;
mod log_files;
mod log_reader;
mod postgres;
mod processes;
mod room;
pub mod settings;
mod slot;
pub mod supervisor;
mod surroundings;
pub(crate) mod tool;
pub mod user;

pub use auto_conf::SettingsChange;
pub use config::ComputeConfig;
pub use groups::ComputeLimits;
pub use installation::Installation;
pub(crate) use log_reader::LogReader;
pub use supervisor::{ComputeState, ComputeStatus, DataDirectories, Lease, Supervisor};
pub use user::OsUser;
