//! What the kernel is answered.

use crate::error::Error;
use crate::fs::tree::{Result, TreeError};
use crate::storage::syncer::Done;
use crate::storage::watch::Watch;
use fuser::{FileAttr, Generation, ReplyAttr, ReplyEmpty, ReplyEntry};
use std::time::Duration;

/// How long the kernel may keep what it was told: as good as for ever.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The error for the kernel. What went wrong below is logged here, where it ends.
pub(super) fn report(error: TreeError) -> fuser::Errno {
    let errno = error.errno();
    if let TreeError::Store(error) = error {
        report_store(&error);
    }
    fuser::Errno::from_i32(errno as i32)
}

fn report_store(error: &Error) {
    match error.code {
        // Written back by the kernel after the branch was deleted, or refused since a failure that was logged.
        "dropped" | "latched" => tracing::debug!(%error, "refused"),
        // A full disk latches too, and the kernel then tries each of thousands of pages.
        "disk_full" => tracing::debug!(%error, "refused"),
        _ => tracing::error!(%error, "a file system operation failed"),
    }
}

pub(super) fn reply_entry(reply: ReplyEntry, outcome: Result<FileAttr>) {
    match outcome {
        Ok(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
        Err(error) => reply.error(report(error)),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, outcome: Result<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(report(error)),
    }
}

pub(super) fn reply_attr(reply: ReplyAttr, outcome: Result<FileAttr>) {
    match outcome {
        Ok(attr) => reply.attr(&FOREVER, &attr),
        Err(error) => reply.error(report(error)),
    }
}

pub(super) fn reply_sync(reply: ReplyEmpty) -> Done {
    let watch = Watch::new("sync of a file");
    Box::new(move |outcome| {
        reply_empty(reply, outcome.map_err(TreeError::Store));
        drop(watch);
    })
}
