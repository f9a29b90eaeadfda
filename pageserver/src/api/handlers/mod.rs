//! One function per route: take the request apart, call the service, hand its answer back.

use super::problem::Fault;

pub(super) mod branches;
pub(super) mod imports;
pub(super) mod server;

/// What a handler returns.
type Answer<T> = Result<T, Fault>;
