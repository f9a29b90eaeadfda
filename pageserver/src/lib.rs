//! The Coppice page server: branches stock Postgres data directories in constant time.
//!
//! Read it in dependency order: [`error`], [`storage`], then the file system, computes, branches and API.

pub mod error;
pub mod fs;
pub mod storage;
