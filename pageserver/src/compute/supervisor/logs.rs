//! What the computes logged.

use super::Supervisor;
use crate::compute::log_reader::LogReader;
use crate::error::{Error, Result};
use crate::storage::page::TimelineId;
use std::time::Duration;

impl Supervisor {
    /// A reader of the last `lines` lines that a timeline's Postgres logged, and the bytes that
    /// they have. Waits for the disk.
    pub(crate) fn last_logged(
        &self,
        timeline: TimelineId,
        lines: usize,
    ) -> Result<(LogReader, u64)> {
        LogReader::at_last(self.logs.shelf(), timeline, lines)
            .map_err(|e| Error::io(format_args!("read the log of {timeline}"), &e))
    }

    /// A reader of all that a timeline's Postgres logged.
    pub(crate) fn logged(&self, timeline: TimelineId) -> LogReader {
        LogReader::at_first(self.logs.shelf(), timeline)
    }

    /// Removes the log of a timeline on which no Postgres will run again. Waits for the disk.
    pub(crate) fn remove_log(&self, timeline: TimelineId) {
        self.logs.remove(timeline);
    }

    /// Waits until what was logged so far is written, for `limit` at most.
    pub(crate) fn flush_logs(&self, limit: Duration) {
        self.logs.flush(limit);
    }

    /// Waits until the server shuts down.
    pub(crate) fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closing = self.closing.subscribe();
        async move {
            if closing.wait_for(|closing| *closing).await.is_err() {
                // The supervisor is gone, and so is the server.
            }
        }
    }
}
