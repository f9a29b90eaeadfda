//! What a session's bytes are looked at for: how many there are, and the key by which its queries
//! can be cancelled.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cancel::{KeyWatch, Registration, Table};
use crate::metrics::Metrics;

/// Sees every piece of data of a session. The key is known as long as it lives.
#[derive(Default)]
pub(crate) struct Witness {
    metrics: Arc<Metrics>,
    keys: Arc<Table>,
    watch: KeyWatch,
    /// Where the session's Postgres is.
    socket: PathBuf,
    registration: Option<Registration>,
    /// Bytes that the client sent.
    pub(crate) bytes_in: u64,
    /// Bytes that it received.
    pub(crate) bytes_out: u64,
}

impl Witness {
    pub(crate) fn new(metrics: &Arc<Metrics>, keys: &Arc<Table>, socket: PathBuf) -> Self {
        let (metrics, keys) = (Arc::clone(metrics), Arc::clone(keys));
        Self { metrics, keys, socket, ..Self::default() }
    }

    /// The client sent this.
    pub(crate) fn sent(&mut self, data: &[u8]) {
        count(data, &mut self.bytes_in, &self.metrics.bytes_from_clients_total);
    }

    /// The client is about to receive this.
    pub(crate) fn received(&mut self, data: &[u8]) {
        count(data, &mut self.bytes_out, &self.metrics.bytes_to_clients_total);
        // The client learns its key after this, so it cannot use it before the table knows it.
        if let Some(key) = self.watch.see(data) {
            self.registration = Some(self.keys.register(key, &self.socket));
        }
    }
}

/// Adds the length of `bytes` to a session's and to the proxy's count.
fn count(bytes: &[u8], session: &mut u64, all: &AtomicU64) {
    let length = bytes.len() as u64;
    *session += length;
    all.fetch_add(length, Ordering::Relaxed);
}
