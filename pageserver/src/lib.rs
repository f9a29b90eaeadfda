//! The Coppice page server: branches stock Postgres data directories in constant time.
//!
//! Read it in dependency order: [`error`], [`storage`], then the file system, computes, branches and API.

pub mod compute;
pub mod error;
pub mod import;
pub mod storage;
pub mod sys;
