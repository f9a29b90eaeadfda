//! The one module with unsafe code: what must run between `fork` and `exec`, and mapped files.
//!
//! The standard library calls the former in a copy of this process that has only the forking thread, so it may
//! neither allocate nor lock; it is two system calls.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use std::fs::File;
use std::io;
use tokio::process::Command;

/// Makes the child receive `signal` when the thread that spawns it ends, and so at the latest when this process does.
///
/// It is set after the change of user, which would clear it, and survives the `exec`.
#[expect(
    unsafe_code,
    reason = "pre_exec is the only moment at which a child can ask for its parent-death signal"
)]
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = getpid();
    let ask = move || {
        prctl::set_pdeathsig(signal)?;
        // The parent may have died before the line above; then nobody will send the signal.
        if getppid() != parent {
            return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: `ask` calls prctl(2) and getppid(2), which are async-signal-safe, and builds its errors without
    // allocating; it captures two plain values.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Maps `length` bytes from `offset` of a file that nobody changes any more.
#[expect(unsafe_code, reason = "a mapped file is memory that others could change")]
pub fn map(file: &File, offset: u64, length: usize) -> io::Result<Box<dyn AsRef<[u8]> + Send + Sync>> {
    // SAFETY: only sealed layers are mapped; this process never writes to one again, and the store's directory belongs
    // to it alone. A reader checks what it finds, so other bytes than were written are an error and no more.
    let mapped = unsafe { memmap2::MmapOptions::new().offset(offset).len(length).map(file)? };
    Ok(Box::new(mapped))
}
