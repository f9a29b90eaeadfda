//! Files as memory, which is the one thing here that needs unsafe code.

use memmap2::MmapMut;
use std::fs::File;
use std::io;

/// Maps `length` bytes at `offset` of a file, shared with whoever else has it.
#[expect(unsafe_code, reason = "a mapped file is memory that others could change")]
pub fn map(file: &File, offset: u64, length: usize) -> io::Result<MmapMut> {
    // SAFETY: the file is a test's own, and nobody else changes or shortens it while it is mapped.
    unsafe { memmap2::MmapOptions::new().offset(offset).len(length).map_mut(file) }
}

/// Writes `bytes` at `offset` through a mapping and syncs it, as far as the file goes. Returns how many were written.
pub(super) fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let left = file.metadata()?.len().saturating_sub(offset);
    let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    if count > 0 {
        let mut mapping = map(file, offset, count)?;
        mapping.copy_from_slice(&bytes[..count]);
        mapping.flush()?;
    }
    Ok(count)
}
