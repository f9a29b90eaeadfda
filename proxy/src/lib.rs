//! The Coppice proxy: one port through which Postgres clients reach every branch by name.
//!
//! A connection passes through the modules in this order:
//!
//! 1. [`server`] accepts it, within [`Limits`], over TCP or through a [`LocalListener`];
//! 2. `greeting` answers encryption requests with [`tls`] and reads the first packet, which
//!    [`startup`] decodes;
//! 3. [`mentions`] reads what the client says of its branch, a [`Backends`] finds what that means,
//!    and [`route`] chooses the branch, whose Postgres the [`Backends`] wakes;
//! 4. `session` connects the two and waits for the `first_reply` of Postgres, and [`Relay`] copies
//!    bytes from `socket` to `socket` until one side ends; a `monitor` counts the bytes, and
//!    `cancel` remembers the key by which a client can cancel the queries of the session.
//!
//! `shared` is what all connections have in common. A client that the proxy turns away gets a
//! [`Refusal`].
//!
//! The client and its Postgres exchange passwords; the proxy forwards them unread. A Postgres
//! behind a Unix socket offers SCRAM without channel binding, so clients must not insist on channel
//! binding. By default no client does.

pub mod locks;
pub mod mentions;
pub mod metrics;
pub mod property;
pub mod refusal;
pub mod route;
pub mod server;
pub mod startup;
pub mod tls;

mod backends;
mod cancel;
mod end;
mod first_reply;
mod greeting;
mod limits;
mod local_listener;
mod monitor;
mod polling;
mod relay;
mod session;
mod shared;
mod socket;

pub use backends::{Backends, Upstream};
pub use limits::Limits;
pub use local_listener::LocalListener;
pub use mentions::Selector;
pub use metrics::Metrics;
pub use refusal::Refusal;
pub use relay::Relay;
pub use route::{Routing, Target};
pub use server::{Listeners, Settings, run};
pub use tls::Tls;
