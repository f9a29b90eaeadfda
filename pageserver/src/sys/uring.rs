//! Commands to a device through io_uring(7), one at a time, and the memory that its driver reads
//! and writes meanwhile.

use memmap2::MmapMut;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One is under way, and one is handed in when that is over.
const ENTRIES: u32 = 2;
/// Bytes of an entry that can carry a command's argument.
const ENTRY_BYTES: usize = 128;
/// Where in an entry the argument is.
const ARGUMENT_OFFSET: usize = 48;
const COMPLETION_BYTES: usize = 16;
/// Where the memory that is shared holds the addresses of its two parts.
const PARTS_OFFSET: usize = 2048;
/// Where the second part begins.
const BODY_OFFSET: usize = 4096;

const SETUP_SQE128: u32 = 1 << 10;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const FEATURE_SINGLE_MMAP: u32 = 1;
const OFFSET_OF_ENTRIES: u64 = 0x1000_0000;
const OPERATION_COMMAND: u8 = 46;
const ENTER_GETEVENTS: u32 = 1;

/// Where things are in a ring; `struct io_sqring_offsets` and `struct io_cqring_offsets` are alike.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// Flags, or the count of what overflowed.
    other: u32,
    /// The count of what was dropped, or where completions begin.
    dropped_or_completions: u32,
    /// Where the order of entries is, or flags.
    array: u32,
    reserved: u32,
    user_address: u64,
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    entries: u32,
    completions: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    workers: u32,
    reserved: [u32; 3],
    submission: Offsets,
    completion: Offsets,
}

/// A ring of the thread that made it. What is shared with the driver is read and written only while
/// no command is under way.
pub struct Commands {
    // Closed before the memory goes.
    ring: OwnedFd,
    rings: MmapMut,
    entries: MmapMut,
    parameters: Parameters,
    device: Arc<File>,
    shared: MmapMut,
    header_bytes: usize,
    under_way: bool,
}

impl Commands {
    /// A ring for commands to `device`, with so much memory to share, in two parts.
    #[expect(
        unsafe_code,
        reason = "there is no safe io_uring_setup, and the ring is memory that the kernel changes"
    )]
    pub fn new(device: Arc<File>, header_bytes: usize, body_bytes: usize) -> io::Result<Self> {
        assert!(header_bytes <= PARTS_OFFSET, "{header_bytes}");
        let mut parameters = Parameters {
            flags: SETUP_SQE128 | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN,
            ..Parameters::default()
        };
        // SAFETY: io_uring_setup(2) reads and fills the parameters, which have the size that it
        // expects.
        let outcome = unsafe {
            nix::libc::syscall(nix::libc::SYS_io_uring_setup, ENTRIES, &raw mut parameters)
        };
        let number = i32::try_from(outcome).map_err(io::Error::other)?;
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system just gave us this descriptor, and nobody else knows of it.
        let ring = unsafe { OwnedFd::from_raw_fd(number) };
        if parameters.features & FEATURE_SINGLE_MMAP == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (submission, completion) = (&parameters.submission, &parameters.completion);
        let of_order = submission.array as usize + parameters.entries as usize * size_of::<u32>();
        let of_completions = completion.dropped_or_completions as usize
            + parameters.completions as usize * COMPLETION_BYTES;
        let map = |offset: u64, length: usize| {
            let mut options = memmap2::MmapOptions::new();
            // SAFETY: the memory of a ring is of this process; what the kernel changes in it is
            // read as such.
            unsafe { options.offset(offset).len(length).populate().map_mut(&ring) }
        };
        let rings = map(0, of_order.max(of_completions))?;
        let entries = map(OFFSET_OF_ENTRIES, parameters.entries as usize * ENTRY_BYTES)?;
        let mut shared = super::memory(BODY_OFFSET + body_bytes)?;
        let address = shared.as_mut_ptr() as u64;
        let parts = [address, header_bytes as u64, address + BODY_OFFSET as u64, body_bytes as u64];
        for (nth, field) in parts.iter().enumerate() {
            let at = PARTS_OFFSET + nth * size_of::<u64>();
            shared[at..at + size_of::<u64>()].copy_from_slice(&field.to_ne_bytes());
        }
        Ok(Self {
            ring,
            rings,
            entries,
            parameters,
            device,
            shared,
            header_bytes,
            under_way: false,
        })
    }

    /// Hands in a command. What came of it, if that is known at once; else it is under way.
    pub fn begin(&mut self, operation: u32, argument: &[u8]) -> io::Result<Option<i32>> {
        self.push(operation, argument);
        self.enter(1, 0)?;
        Ok(self.completed())
    }

    /// Hands in a command and waits until it is over.
    pub fn run(&mut self, operation: u32, argument: &[u8]) -> io::Result<i32> {
        self.push(operation, argument);
        self.enter(1, 1)?;
        self.wait()
    }

    /// Waits until the command that is under way is over.
    pub fn wait(&mut self) -> io::Result<i32> {
        loop {
            if let Some(result) = self.completed() {
                return Ok(result);
            }
            self.enter(0, 1)?;
        }
    }

    /// The first part of the memory that is shared.
    pub fn header(&mut self) -> &mut [u8] {
        self.parts().0
    }

    /// Both parts.
    pub fn parts(&mut self) -> (&mut [u8], &mut [u8]) {
        assert!(!self.under_way, "the driver has the memory");
        let (first, body) = self.shared.split_at_mut(BODY_OFFSET);
        (&mut first[..self.header_bytes], body)
    }

    fn push(&mut self, operation: u32, argument: &[u8]) {
        assert!(!self.under_way, "one command at a time");
        let submission = &self.parameters.submission;
        let tail = self.shared_number(submission.tail).load(Ordering::Relaxed);
        let nth = (tail & (self.parameters.entries - 1)) as usize;
        let mut entry = [0; ENTRY_BYTES];
        entry[0] = OPERATION_COMMAND;
        entry[4..8].copy_from_slice(&self.device.as_raw_fd().to_ne_bytes());
        entry[8..12].copy_from_slice(&operation.to_ne_bytes());
        let parts = self.shared.as_ptr() as u64 + PARTS_OFFSET as u64;
        entry[16..24].copy_from_slice(&parts.to_ne_bytes());
        entry[24..28].copy_from_slice(&2_u32.to_ne_bytes());
        entry[ARGUMENT_OFFSET..ARGUMENT_OFFSET + argument.len()].copy_from_slice(argument);
        self.entries[nth * ENTRY_BYTES..(nth + 1) * ENTRY_BYTES].copy_from_slice(&entry);
        let order = submission.array as usize + nth * size_of::<u32>();
        let number = u32::try_from(nth).unwrap_or(0);
        self.rings[order..order + size_of::<u32>()].copy_from_slice(&number.to_ne_bytes());
        self.shared_number(self.parameters.submission.tail)
            .store(tail.wrapping_add(1), Ordering::Release);
        self.under_way = true;
    }

    #[expect(unsafe_code, reason = "there is no safe io_uring_enter")]
    fn enter(&self, submit: u32, complete: u32) -> io::Result<()> {
        loop {
            let (ring, none) = (self.ring.as_raw_fd(), std::ptr::null::<u8>());
            // SAFETY: io_uring_enter(2) takes numbers. What the entry points to is memory of this
            // ring, and stays until the ring is closed.
            let outcome = unsafe {
                let call = nix::libc::SYS_io_uring_enter;
                nix::libc::syscall(call, ring, submit, complete, ENTER_GETEVENTS, none, 0_usize)
            };
            if outcome >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // What was handed in before is not handed in again: it is no longer in the ring.
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                // There was no memory for it just then.
                io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => std::thread::yield_now(),
                _ => return Err(error),
            }
        }
    }

    /// What came of the command that was under way, if it is over.
    #[expect(unsafe_code, reason = "the ring is memory that the kernel changes")]
    fn completed(&mut self) -> Option<i32> {
        const RESULT_OFFSET: usize = 8;
        let completion = &self.parameters.completion;
        let head = self.shared_number(completion.head).load(Ordering::Relaxed);
        if head == self.shared_number(completion.tail).load(Ordering::Acquire) {
            return None;
        }
        let nth = (head & (self.parameters.completions - 1)) as usize;
        let at =
            completion.dropped_or_completions as usize + nth * COMPLETION_BYTES + RESULT_OFFSET;
        // SAFETY: `at` is within the mapping and aligned as the kernel laid it out, and the kernel
        // wrote it before it moved the tail, which was seen.
        let result = unsafe { self.rings.as_ptr().add(at).cast::<i32>().read_volatile() };
        self.shared_number(completion.head).store(head.wrapping_add(1), Ordering::Release);
        self.under_way = false;
        Some(result)
    }

    #[expect(unsafe_code, reason = "the ring is memory that the kernel changes")]
    fn shared_number(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel gave the offset of a number in this mapping, which lives as long as
        // `self`, and everybody reads and writes it as an atomic one.
        unsafe {
            AtomicU32::from_ptr(self.rings.as_ptr().add(offset as usize).cast::<u32>().cast_mut())
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if self.under_way {
            // The driver may still write there.
            if let Ok(unused) = MmapMut::map_anon(1) {
                std::mem::forget(std::mem::replace(&mut self.shared, unused));
            }
        }
    }
}
