//! The proxy between real clients and real Postgres servers, over real sockets.
//!
//! `postgres` starts the servers, `world` the proxy in front of them; the other modules hold the
//! tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod postgres;
mod routing;
mod sessions;
mod wire;
mod world;
