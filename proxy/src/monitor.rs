//! Sees each piece of data of a session: counts the bytes, and finds the key by which a client can
//! cancel the queries of the session.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;

use crate::cancel::{KeyWatch, Registration, Table};
use crate::metrics::Metrics;
use crate::refusal::{Refusal, SHUTTING_DOWN};

/// What Postgres sends last of each answer, but for the state of the transaction: `ReadyForQuery`.
const READY: &[u8] = b"Z\0\0\0\x05";
/// What a client sends last: `Terminate`.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// Sees each piece of data of a session. The key is in the table as long as the monitor lives.
#[derive(Default)]
pub(crate) struct Monitor {
    metrics: Arc<Metrics>,
    keys: Arc<Table>,
    watch: KeyWatch,
    /// Where the session's Postgres is.
    socket: PathBuf,
    registration: Option<Registration>,
    /// Whether what the client received last looks like the end of an answer.
    is_answered: bool,
    /// Whether the client has sent nothing since.
    is_idle: bool,
    /// Whether what the client sent last looks like its goodbye.
    is_leaving: bool,
    /// Bytes that the client sent.
    pub(crate) bytes_in: u64,
    /// Bytes that it received.
    pub(crate) bytes_out: u64,
}

impl Monitor {
    pub(crate) fn new(metrics: &Arc<Metrics>, keys: &Arc<Table>, socket: PathBuf) -> Self {
        let (metrics, keys) = (Arc::clone(metrics), Arc::clone(keys));
        Self { metrics, keys, socket, ..Self::default() }
    }

    /// Whether the client waits for no answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// The client sent this.
    pub(crate) fn sent(&mut self, data: &[u8]) {
        self.is_idle = false;
        self.is_leaving = data.ends_with(TERMINATE);
        count(data, &mut self.bytes_in, &self.metrics.bytes_from_clients_total);
    }

    /// What the client is to be told if its Postgres ends here, without a word of its own and
    /// before the first answer.
    pub(crate) fn last_words(&self) -> Option<BytesMut> {
        (self.watch.is_silent() && !self.is_leaving).then(|| ended_early().encode())
    }

    /// What the client is to be told if the branch is taken from the session: nothing in the middle
    /// of a message, and nothing where the client asked for the end.
    pub(crate) fn parting_words(&self) -> Option<BytesMut> {
        let tell = self.is_answered && !self.is_leaving;
        self.last_words().or_else(|| tell.then(|| ended().encode()))
    }

    /// The client is about to receive this.
    pub(crate) fn received(&mut self, data: &[u8]) {
        count(data, &mut self.bytes_out, &self.metrics.bytes_to_clients_total);
        let end = data.last_chunk::<{ READY.len() + 1 }>();
        self.is_answered = end.is_some_and(|end| end.starts_with(READY));
        self.is_idle = self.is_answered;
        // The client learns its key after this, so it cannot use it before the table knows it.
        if let Some(key) = self.watch.see(data) {
            self.registration = Some(self.keys.register(key, &self.socket));
        }
    }
}

fn ended() -> Refusal {
    Refusal::new(SHUTTING_DOWN, "terminating connection: the branch was reset, restored or deleted")
        .with_hint("Connect again.")
}

fn ended_early() -> Refusal {
    Refusal::new(SHUTTING_DOWN, "the branch's Postgres ended while the session began")
        .with_hint("Connect again: the branch was reset, restored or deleted meanwhile.")
}

/// Adds the length of `bytes` to a session's and to the proxy's count.
fn count(bytes: &[u8], session: &mut u64, all: &AtomicU64) {
    let length = bytes.len() as u64;
    *session += length;
    all.fetch_add(length, Ordering::Relaxed);
}
