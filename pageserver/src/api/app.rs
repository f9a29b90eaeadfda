//! What the handlers work on.

use std::sync::Arc;

use super::metrics::Metrics;
use crate::branches::Branches;
use crate::import::Imports;
use crate::jobs::Jobs;

/// The services behind the API.
pub struct App {
    /// The branch service.
    pub branches: Arc<Branches>,
    /// Imports under way.
    pub imports: Arc<Imports>,
    /// What the server does by itself.
    pub jobs: Arc<Jobs>,
    /// Where requests are counted, with whatever other parts of the server registered.
    pub metrics: Arc<Metrics>,
    /// What the proxy counts.
    pub proxy: Arc<proxy::Metrics>,
}
