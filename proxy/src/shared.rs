//! What all connections of a proxy share, and how far its shutdown is.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::cancel::Table;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::route::Routing;
use crate::tls::Tls;

/// How far the shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nobody asked for a shutdown.
    Serving,
    /// No new sessions; the running ones may end by themselves.
    Draining,
    /// The proxy closes the running sessions.
    Closing,
}

/// What all connections share.
pub(crate) struct Shared<B> {
    pub(crate) backends: Arc<B>,
    pub(crate) tls: Tls,
    pub(crate) routing: Routing,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) keys: Arc<Table>,
    pub(crate) relay: Relay,
    pub(crate) sessions: Arc<Semaphore>,
    pub(crate) greetings: Arc<Semaphore>,
    pub(crate) refusals: Arc<Semaphore>,
    pub(crate) phase: watch::Receiver<Phase>,
}

impl<B> Shared<B> {
    /// Waits until the shutdown is that far.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut current = self.phase.clone();
        // Without a sender the loop is gone, which is as far as a shutdown gets.
        let _ = current.wait_for(|current| *current >= phase).await;
    }
}
