//! The Coppice HTTP API as Rust types, and a client for it.
//!
//! The server, the stand-alone proxy and `branchctl` share this crate, so that a request has one
//! definition.

pub mod client;
pub mod durations;
pub mod moment;
pub mod names;
pub mod percent;
pub mod types;
