//! Requests over io_uring instead of reads and writes of `/dev/fuse`, where the kernel has that
//! switched on. The kernel gives a request to a thread that waits for requests of the CPU that the
//! request comes from. The thread answers and waits for the next request with one system call. The
//! kernel's `Documentation/filesystems/fuse/fuse-io-uring.rst` describes the protocol.

use crate::fs::cpu::{Cpu, RequestCpus};
use crate::fs::protocol::{self, HEADER_BYTES, Request, answer_header};
use crate::fs::reply::{Mailbox, Reply, ReplyData, ReplyTo};
use crate::sys::uring::Commands;
use nix::errno::Errno;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;

/// Requests that the queue of one CPU has under way, on a machine with few CPUs.
const DEPTH: usize = 6;
/// Threads of a mount; each has memory for the largest request.
const MAX_THREADS: usize = 64;
/// Fewer threads for each CPU would hold one another up.
const LEAST_DEPTH: usize = 4;
/// Bytes that a thread shares with the kernel beside the data: header, fixed arguments, and the
/// number of the request.
const SHARED_BYTES: usize = FIXED_OFFSET + FIXED_BYTES + 32;
const FIXED_OFFSET: usize = 128;
const FIXED_BYTES: usize = 128;
const COMMIT_OFFSET: usize = FIXED_OFFSET + FIXED_BYTES + 8;
const LENGTH_OFFSET: usize = COMMIT_OFFSET + 8;
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// The kernel's switch.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Switches io_uring on for all mounts that are made from now on.
pub(super) fn switch_on() -> io::Result<()> {
    if is_switched_on() { Ok(()) } else { fs::write(SWITCH, "Y") }
}

fn is_switched_on() -> bool {
    fs::read_to_string(SWITCH).is_ok_and(|value| value.starts_with(['Y', '1']))
}

/// Whether the kernel may offer io_uring, which it does to each mount apart.
pub(super) fn is_possible() -> bool {
    is_switched_on()
        && processors().is_ok_and(|count| count * LEAST_DEPTH <= MAX_THREADS)
        // This process may be forbidden to use any ring.
        && File::open("/dev/null")
            .and_then(|any| Commands::new(Arc::new(any), SHARED_BYTES, 1))
            .is_ok()
}

/// The CPUs that there may ever be. Each must have its threads before the first request is served.
fn processors() -> io::Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The CPU of each thread that is to run.
pub(super) fn queues() -> io::Result<Vec<u16>> {
    let count = processors()?;
    let depth = DEPTH.min(MAX_THREADS / count.max(1));
    let numbers = 0..u16::try_from(count).map_err(io::Error::other)?;
    Ok(numbers.flat_map(|number| std::iter::repeat_n(number, depth)).collect())
}

/// One thread's part of a queue.
pub(super) struct Ring {
    commands: Commands,
    queue: u16,
    mailbox: Arc<Mailbox>,
}

impl Ring {
    /// Tells the kernel that this thread serves requests of a CPU.
    pub(super) fn register(device: Arc<File>, queue: u16, max_bytes: usize) -> io::Result<Self> {
        let commands = Commands::new(device, SHARED_BYTES, max_bytes)?;
        let mut ring = Self { commands, queue, mailbox: Arc::default() };
        match ring.commands.begin(REGISTER, &argument(queue, 0))? {
            Some(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            _ => Ok(ring),
        }
    }

    /// Serves until the mount is gone.
    pub(super) fn serve(mut self, cpus: Arc<RequestCpus>, serve: impl Fn(Request<'_>, Reply)) {
        let mut cpu = Cpu::new(self.queue, cpus);
        let mut outcome = self.commands.wait();
        while let Ok(0..) = outcome {
            cpu.begin();
            let (commit, bytes) = self.answer(&serve);
            let argument = argument(self.queue, commit);
            outcome = if cpu.end(bytes) {
                self.commands.run(COMMIT_AND_FETCH, &argument)
            } else {
                // The process that waits for the answer does not wait for the move.
                let handed_in = self.commands.begin(COMMIT_AND_FETCH, &argument);
                cpu.change();
                handed_in.and_then(|done| done.map_or_else(|| self.commands.wait(), Ok))
            };
        }
        let error = match outcome {
            Ok(result) => io::Error::from_raw_os_error(result.saturating_neg()),
            Err(error) => error,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTCONN | Errno::ECANCELED | Errno::ENODEV) => {}
            _ => tracing::error!(%error, "a thread of the mount ends"),
        }
    }

    /// Serves the request in the shared memory, and puts the answer there. Returns the number by
    /// which the kernel knows the request, and the bytes of data that came or go.
    fn answer(&mut self, serve: &impl Fn(Request<'_>, Reply)) -> (u64, usize) {
        let (header, body) = self.commands.parts();
        let number =
            |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let (unique, commit) = (number(8), number(COMMIT_OFFSET));
        let length =
            header[LENGTH_OFFSET..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let data = &body[..usize::try_from(length).unwrap_or(0).min(body.len())];
        let came = data.len();
        let fixed = &header[FIXED_OFFSET..FIXED_OFFSET + FIXED_BYTES];
        let answer = match protocol::decode_parts(&header[..HEADER_BYTES], fixed, data) {
            Ok(request) => {
                let reply = Reply::new(unique, ReplyTo::Mailbox(Arc::clone(&self.mailbox)));
                serve(request, reply);
                self.mailbox.take()
            }
            Err(_) => ReplyData::Error(Errno::EIO),
        };
        let (mut error, mut bytes) = answer.parts();
        if bytes.len() > body.len() {
            (error, bytes) = (Some(Errno::EIO), &[]);
        }
        body[..bytes.len()].copy_from_slice(bytes);
        let answered = answer_header(unique, error, bytes.len());
        header[..answered.len()].copy_from_slice(&answered);
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        header[LENGTH_OFFSET..LENGTH_OFFSET + 4].copy_from_slice(&length.to_ne_bytes());
        (commit, came.max(bytes.len()))
    }
}

/// The argument of a command, which names a request of a queue.
fn argument(queue: u16, commit: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[8..16].copy_from_slice(&commit.to_ne_bytes());
    bytes[16..18].copy_from_slice(&queue.to_ne_bytes());
    bytes
}
