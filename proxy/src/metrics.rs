//! Counters of the proxy, for the server to export.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the proxy has done so far. Read the fields with any ordering; each stands for itself.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections open now, in any state.
    pub connections_now: AtomicU64,
    /// Connections accepted since the start.
    pub connections_total: AtomicU64,
    /// Connections that ended with an error of the proxy, not of a Postgres.
    pub refused_total: AtomicU64,
    /// Cancel requests received.
    pub cancels_total: AtomicU64,
    /// Bytes copied from clients to Postgres.
    pub bytes_from_clients_total: AtomicU64,
    /// Bytes copied from Postgres to clients.
    pub bytes_to_clients_total: AtomicU64,
}

/// Counts one connection as open until dropped.
pub(crate) struct Open(Arc<Metrics>);

impl Metrics {
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.connections_now.fetch_add(1, Ordering::Relaxed);
        self.connections_total.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections_now.fetch_sub(1, Ordering::Relaxed);
    }
}
