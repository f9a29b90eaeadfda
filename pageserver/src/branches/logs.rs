//! What a branch's Postgres logged, as a stream.
//!
//! A stream that follows goes with the branch, whatever its name becomes: after a reset or a
//! restore it goes on with the log of the new timeline. It ends when the branch is deleted, when
//! nobody reads it any more, and when the server shuts down.

use super::{Branches, FOLLOWERS};
use crate::compute::LogReader;
use crate::error::{Error, Result};
use crate::storage::page::TimelineId;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// How often it is looked for new lines.
const FOLLOW_POLL: Duration = Duration::from_millis(200);

type Piece = Result<Vec<u8>>;

/// Lines of a log, in pieces as they come.
pub struct LogStream(mpsc::Receiver<Piece>);

/// Reads a log for a stream.
struct Pump {
    branch: u64,
    reader: LogReader,
    /// Bytes still to send of a stream that does not follow.
    left: u64,
    /// The place among those that follow.
    follower: Option<OwnedSemaphorePermit>,
    /// Whether what was sent ends within a line.
    within_line: bool,
    out: mpsc::Sender<Piece>,
}

impl LogStream {
    /// The next piece; none at the end. After an error there is nothing more to come.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        self.0.poll_recv(context)
    }
}

impl Branches {
    /// The last `lines` lines that the Postgres of a branch logged, and if `follow`, those to come.
    pub async fn logs(
        self: &Arc<Self>,
        name: &str,
        lines: usize,
        follow: bool,
    ) -> Result<LogStream> {
        let record = self.record(name)?;
        let too_many = |_| {
            let detail = format!("{FOLLOWERS} logs are followed already; end some of those");
            Error::unavailable("too_many_followers", detail)
        };
        let follower = match follow {
            true => Some(Arc::clone(&self.followers).try_acquire_owned().map_err(too_many)?),
            false => None,
        };
        let timeline = TimelineId(record.timeline);
        let last = self.blocking(move |this| this.supervisor.last_logged(timeline, lines)).await;
        let ((reader, left), (out, stream)) = (last?, mpsc::channel(1));
        let pump = Pump { branch: record.id, reader, left, follower, within_line: false, out };
        let closing = self.supervisor.closing();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            if !follow {
                return this.send_lines(pump).await;
            }
            tokio::select! {
                () = this.send_lines(pump) => {}
                () = closing => {}
            }
        });
        Ok(LogStream(stream))
    }

    /// Sends until there is nothing more to come, or nobody who takes it.
    async fn send_lines(self: &Arc<Self>, mut pump: Pump) {
        while !pump.out.is_closed() {
            let piece;
            (pump, piece) = self.blocking(move |this| this.read_on(pump)).await;
            match piece {
                Ok(None) => return,
                Ok(Some(piece)) if piece.is_empty() => {
                    tokio::select! {
                        () = pump.out.closed() => return,
                        () = tokio::time::sleep(FOLLOW_POLL) => {}
                    }
                }
                Ok(Some(piece)) => {
                    // It fails when nobody reads, which is seen above.
                    let _unread = pump.out.send(Ok(piece)).await;
                }
                Err(error) => {
                    let _unread = pump.out.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    /// What comes next: empty if nothing has come yet, none if nothing will.
    fn read_on(&self, mut pump: Pump) -> (Pump, Result<Option<Vec<u8>>>) {
        let follows = pump.follower.is_some();
        // Asked before reading, so that a log that the branch has left is read to its end.
        let now = if follows { self.timeline_of(pump.branch) } else { None };
        let mut piece = match pump.reader.read(if follows { u64::MAX } else { pump.left }) {
            Ok(piece) => piece,
            Err(error) => return (pump, Err(Error::io("read the log of a branch", &error))),
        };
        if piece.is_empty() {
            match now {
                None => return (pump, Ok(None)),
                Some(timeline) if timeline != pump.reader.timeline() => {
                    pump.reader = self.supervisor.logged(timeline);
                    piece.extend(pump.within_line.then_some(b'\n'));
                }
                Some(_) => {}
            }
        }
        pump.left = pump.left.saturating_sub(piece.len() as u64);
        pump.within_line = piece.last().map_or(pump.within_line, |last| *last != b'\n');
        (pump, Ok(Some(piece)))
    }

    /// The timeline of a branch, whatever its name is now; none if it is deleted.
    fn timeline_of(&self, branch: u64) -> Option<TimelineId> {
        let catalog = self.store.catalog();
        let by_name = self.directory.name_of(branch).and_then(|name| catalog.branch(&name));
        // The directory lags behind a rename for a moment.
        let record = by_name.filter(|record| record.id == branch).or_else(|| {
            catalog.with_branches(|all| all.values().find(|record| record.id == branch).cloned())
        });
        record.map(|record| TimelineId(record.timeline))
    }
}
