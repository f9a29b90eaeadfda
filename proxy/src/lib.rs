//! The Coppice proxy: one port through which Postgres clients reach every branch by name.
//!
//! A connection passes through the modules in this order:
//!
//! 1. [`server`] accepts it, within [`Limits`], over TCP or through a [`LocalDoor`];
//! 2. `greeting` answers encryption requests with [`tls`] and reads the first packet, which
//!    [`startup`] decodes;
//! 3. [`route`] chooses the branch; a [`Backends`] wakes it and says where its Postgres is;
//! 4. `session` connects the two, and [`Switch`] copies bytes from `line` to `line` until one side
//!    ends; a `witness` counts them, and `cancel` remembers the key by which the session's queries
//!    can be cancelled.
//!
//! Whoever is turned away gets a [`Refusal`]. Passwords are between the client and its Postgres:
//! the proxy forwards them unread. Since a Postgres behind a Unix socket offers SCRAM without
//! channel binding, clients must not insist on channel binding; by default none does.

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
mod greeting;
mod limits;
mod line;
mod local_door;
mod polling;
mod session;
mod shared;
mod switch;
mod witness;

pub use backends::{Backends, Upstream};
pub use limits::Limits;
pub use local_door::LocalDoor;
pub use metrics::Metrics;
pub use refusal::Refusal;
pub use route::{Selector, Target};
pub use server::{Doors, run};
pub use switch::Switch;
pub use tls::Tls;
