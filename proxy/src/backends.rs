//! The seam between the proxy and a server: the proxy asks for a branch, and the server wakes its
//! Postgres.

use std::path::PathBuf;

use crate::refusal::Refusal;
use crate::route::Target;

/// Where a branch's Postgres is.
pub struct Upstream {
    /// Name of the branch, for the log.
    pub branch: String,
    /// Unix socket of its Postgres.
    pub socket: PathBuf,
    /// Keeps the branch awake until dropped, which is when the session ends.
    pub lease: Box<dyn Send + Sync>,
}

/// Finds branches and wakes them.
pub trait Backends: Send + Sync + 'static {
    /// Wakes the branch, or the moment of its past, if need be, and returns once its Postgres
    /// accepts connections.
    ///
    /// The proxy drops the future when the client goes away first, so that no branch stays awake
    /// without a client.
    fn acquire(&self, target: &Target) -> impl Future<Output = Result<Upstream, Refusal>> + Send;
}
