//! Writing to a file through memory, which is the one thing here that needs unsafe code.

use std::fs::File;
use std::io;

/// Writes `bytes` at `offset` through a shared mapping and syncs it, as far as the file goes. Returns how many were written.
#[expect(unsafe_code, reason = "a mapped file is memory that others could change")]
pub(super) fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let left = file.metadata()?.len().saturating_sub(offset);
    let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the file is a test's own, nobody shortens it while it is mapped, and what is written is plain bytes.
    let mut mapping = unsafe { memmap2::MmapOptions::new().offset(offset).len(count).map_mut(file)? };
    mapping.copy_from_slice(&bytes[..count]);
    mapping.flush()?;
    Ok(count)
}
