//! Answers requests of the kernel, from any thread.

use crate::error::Error;
use crate::fs::error::{TreeError, TreeResult};
use crate::fs::protocol::{ReplyBody, ShownInode, answer_header};
use crate::locks::{lock, wait};
use crate::storage::disk::slow::Watch;
use crate::storage::timeline::syncer::Done;
use nix::errno::Errno;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

/// The data of an answer: an error, or bytes that may be part of a buffer.
pub(super) enum ReplyData {
    Error(Errno),
    Bytes(Vec<u8>, Range<usize>),
}

impl ReplyData {
    /// The error, and the bytes.
    pub(super) fn parts(&self) -> (Option<Errno>, &[u8]) {
        match self {
            Self::Error(errno) => (Some(*errno), &[]),
            Self::Bytes(bytes, range) => (None, &bytes[range.clone()]),
        }
    }
}

/// Where the thread of a ring waits for the answer to its request.
#[derive(Default)]
pub(super) struct Mailbox {
    answer: Mutex<Option<ReplyData>>,
    ready: Condvar,
}

impl Mailbox {
    pub(super) fn put(&self, answer: ReplyData) {
        *lock(&self.answer) = Some(answer);
        self.ready.notify_one();
    }

    pub(super) fn take(&self) -> ReplyData {
        let mut answer = lock(&self.answer);
        loop {
            if let Some(answer) = answer.take() {
                return answer;
            }
            answer = wait(&self.ready, answer);
        }
    }
}

/// Where an answer goes.
#[derive(Clone)]
pub(super) enum ReplyTo {
    /// To the device that the request was read from.
    Device(Arc<File>),
    /// To the thread that has the request in its ring.
    Mailbox(Arc<Mailbox>),
}

/// Answers a request, once, from any thread. A reply that is dropped unanswered answers EIO, since
/// a process waits for it.
pub(super) struct Reply {
    unique: u64,
    target: Option<ReplyTo>,
}

impl Reply {
    pub(super) fn new(unique: u64, target: ReplyTo) -> Self {
        Self { unique, target: Some(target) }
    }

    pub(super) fn error(mut self, errno: Errno) {
        self.send(ReplyData::Error(errno));
    }

    /// Answers that the request was done.
    pub(super) fn ok(self) {
        self.body(ReplyBody::default());
    }

    pub(super) fn body(self, body: ReplyBody) {
        let bytes = body.into_bytes();
        let all = 0..bytes.len();
        self.data(bytes, all);
    }

    /// Answers with part of a buffer.
    pub(super) fn data(mut self, buffer: Vec<u8>, range: Range<usize>) {
        self.send(ReplyData::Bytes(buffer, range));
    }

    /// Answers nothing, since no process waits.
    pub(super) fn none(mut self) {
        match self.target.take() {
            // The thread of the ring goes on only when it has an answer.
            Some(ReplyTo::Mailbox(mailbox)) => mailbox.put(ReplyData::Bytes(Vec::new(), 0..0)),
            Some(ReplyTo::Device(_)) | None => {}
        }
    }

    fn send(&mut self, answer: ReplyData) {
        match self.target.take() {
            Some(ReplyTo::Device(device)) => self.write(&device, &answer),
            Some(ReplyTo::Mailbox(mailbox)) => mailbox.put(answer),
            None => {}
        }
    }

    fn write(&self, mut device: &File, answer: &ReplyData) {
        let (error, bytes) = answer.parts();
        let header = answer_header(self.unique, error, bytes.len());
        // The kernel takes an answer as a whole or not at all.
        if let Err(error) = device.write_vectored(&[IoSlice::new(&header), IoSlice::new(bytes)]) {
            match error.raw_os_error().map(Errno::from_raw) {
                // The process that asked was killed meanwhile, or the mount is gone.
                Some(Errno::ENOENT | Errno::ENODEV) => {
                    tracing::debug!(%error, "nobody waits for an answer")
                }
                _ => tracing::error!(%error, "cannot answer the kernel"),
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.target.is_some() {
            self.send(ReplyData::Error(Errno::EIO));
        }
    }
}

/// The error for the kernel. Logs an error of the store, which ends here.
pub(super) fn report(error: TreeError) -> Errno {
    let errno = error.errno();
    if let TreeError::Store(error) = error {
        report_store(&error);
    }
    errno
}

fn report_store(error: &Error) {
    match error.code {
        // The kernel wrote back after the branch was deleted, or the timeline refuses changes since
        // a failure that is in the log.
        "dropped" | "latched" => tracing::debug!(%error, "refused"),
        // A full disk latches too, and the kernel then tries each of thousands of pages.
        "disk_full" => tracing::debug!(%error, "refused"),
        _ => tracing::error!(%error, "a file system operation failed"),
    }
}

pub(super) fn reply_entry(reply: Reply, outcome: TreeResult<ShownInode>) {
    reply_body(reply, outcome.map(|shown| ReplyBody::entry(&shown)));
}

pub(super) fn reply_empty(reply: Reply, outcome: TreeResult<()>) {
    reply_body(reply, outcome.map(|()| ReplyBody::default()));
}

pub(super) fn reply_attr(reply: Reply, outcome: TreeResult<ShownInode>) {
    reply_body(reply, outcome.map(|shown| ReplyBody::attr(&shown)));
}

pub(super) fn reply_bytes(reply: Reply, outcome: TreeResult<Vec<u8>>) {
    match outcome {
        Ok(bytes) => {
            let all = 0..bytes.len();
            reply.data(bytes, all);
        }
        Err(error) => reply.error(report(error)),
    }
}

pub(super) fn reply_body(reply: Reply, outcome: TreeResult<ReplyBody>) {
    match outcome {
        Ok(body) => reply.body(body),
        Err(error) => reply.error(report(error)),
    }
}

pub(super) fn reply_sync(reply: Reply) -> Done {
    let watch = Watch::new("sync of a file");
    Box::new(move |outcome| {
        reply_empty(reply, outcome.map_err(TreeError::Store));
        drop(watch);
    })
}
