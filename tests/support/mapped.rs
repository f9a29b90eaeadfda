//! Files as memory, which is the one thing here that needs unsafe code.

use std::fs::File;
use std::io;

/// Lets `change` have `length` bytes at `offset` of a file as memory, shared with whoever else has
/// it, and syncs all of the file.
///
/// Unmapping writes out what is left to be written, and meanwhile the process gets no memory: one
/// that serves the mount itself, as tests do, would wait for itself.
pub fn change(
    file: &File,
    offset: u64,
    length: usize,
    change: impl FnOnce(&mut [u8]),
) -> io::Result<()> {
    #[expect(unsafe_code, reason = "a mapped file is memory that others could change")]
    // SAFETY: the file is a test's own, and nobody else changes or shortens it while it is mapped.
    let mut mapping =
        unsafe { memmap2::MmapOptions::new().offset(offset).len(length).map_mut(file)? };
    change(&mut mapping);
    mapping.flush()?;
    file.sync_all()
}

/// Writes `bytes` at `offset` through a mapping, as far as the file goes. Returns how many were
/// written.
pub(super) fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let left = file.metadata()?.len().saturating_sub(offset);
    let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    if count > 0 {
        change(file, offset, count, |mapped| mapped.copy_from_slice(&bytes[..count]))?;
    }
    Ok(count)
}
