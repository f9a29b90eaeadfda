//! Says so in the log when something that others wait for took long.

use crate::storage::clock::whole_ms;
use std::time::{Duration, Instant};

/// What takes longer is worth a line.
const SLOW: Duration = Duration::from_millis(200);

/// Watches what goes on until it is dropped.
pub struct Watch {
    what: &'static str,
    began: Instant,
}

impl Watch {
    /// Begins to watch.
    pub fn new(what: &'static str) -> Self {
        Self { what, began: Instant::now() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        if took >= SLOW {
            let duration_ms = whole_ms(took);
            tracing::warn!(what = self.what, duration_ms, "took long");
        }
    }
}
