//! The Coppice page server: branches stock Postgres data directories in constant time.
//!
//! Read it in dependency order, each line using only what stands above it: [`error`], [`locks`],
//! [`secret`], [`sys`] and [`tasks`]; [`storage`], the page store; [`fs`], the file system on it;
//! [`compute`], the Postgres processes; [`moment`], the past; [`events`], what happens and who does
//! it; [`import`]; [`branches`], names onto timelines; [`jobs`], what is done again and again;
//! [`gateway`] and [`api`], how proxy and HTTP reach them; [`config`] and [`server`], the whole.

pub mod api;
pub mod branches;
pub mod compute;
pub mod config;
pub mod error;
pub mod events;
pub mod fs;
pub mod gateway;
pub mod import;
pub mod jobs;
pub mod locks;
pub mod moment;
pub mod secret;
pub mod server;
pub mod storage;
pub mod sys;
pub mod tasks;
