//! Files as memory, which is the one thing here that needs unsafe code.
//!
//! They are mapped in a process of their own, a copy of this one: to unmap a file of a mount waits for whoever serves that, and
//! meanwhile the process gets no memory, so one that serves it itself would wait for ever.

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::fs::File;
use std::io;

/// Lets `change` have `length` bytes at `offset` of a file as memory, and syncs them. It may not panic, nor take any locks.
pub fn change(file: &File, offset: u64, length: usize, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
    in_a_copy(|| {
        #[expect(unsafe_code, reason = "a mapped file is memory that others could change")]
        // SAFETY: the file is a test's own, and nobody else changes or shortens it while it is mapped.
        let mut mapping = unsafe { memmap2::MmapOptions::new().offset(offset).len(length).map_mut(file)? };
        change(&mut mapping);
        mapping.flush()
    })
}

/// Writes `bytes` at `offset` through a mapping and syncs it, as far as the file goes. Returns how many were written.
pub(super) fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let left = file.metadata()?.len().saturating_sub(offset);
    let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    if count > 0 {
        change(file, offset, count, |mapped| mapped.copy_from_slice(&bytes[..count]))?;
    }
    Ok(count)
}

/// Works in a copy of this process, with nothing but the calling thread, that ends then.
fn in_a_copy(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    /// What it ends with if the error has no number.
    const OTHER: i32 = 255;
    #[expect(unsafe_code, reason = "a copy of a process with threads may not do everything")]
    // SAFETY: what it does is system calls, and nothing that waits for what other threads had locked.
    match unsafe { fork()? } {
        ForkResult::Child => {
            let code = work().err().map_or(0, |error| error.raw_os_error().unwrap_or(OTHER));
            #[expect(unsafe_code, reason = "the end of a process does what only one of them may")]
            // SAFETY: it ends the copy.
            unsafe {
                nix::libc::_exit(code)
            }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) if code != OTHER => Err(io::Error::from_raw_os_error(code)),
            status => Err(io::Error::other(format!("the copy ended with {status:?}"))),
        },
    }
}
