//! The Coppice page server: branches stock Postgres data directories in constant time.
//!
//! Read it in dependency order, each line using only what stands above it: [`error`], [`locks`] and
//! [`sys`]; [`storage`], the page store; [`fs`], the file system on it; [`compute`], the Postgres
//! processes; [`moment`], the past; [`import`]; [`branches`], names onto timelines; [`gateway`] and
//! [`api`], how proxy and HTTP reach them; [`config`] and [`server`], the whole.

pub mod api;
pub mod branches;
pub mod compute;
pub mod config;
pub mod error;
pub mod fs;
pub mod gateway;
pub mod import;
pub mod locks;
pub mod moment;
pub mod secret;
pub mod server;
pub mod storage;
pub mod sys;
