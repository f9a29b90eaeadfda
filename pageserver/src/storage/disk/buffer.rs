//! Memory for direct I/O, which goes from one file to the next: what was used before needs no new
//! pages from the system.

use crate::locks::lock;
use crate::storage::disk::BLOCK_BYTES;
use std::sync::Mutex;

/// Bytes that are kept before they are written without being asked for: more than the kernel hands
/// over at once.
pub(super) const BUFFER_BYTES: usize = (1 << 20) + (128 << 10);

/// Memory that nobody uses at the moment.
static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
/// Most of them.
const POOLED: usize = 8;

/// The part of a file from `start` on, as direct I/O wants it.
pub(super) struct Buffer {
    memory: Vec<u8>,
    /// Where in `memory` the bytes begin.
    shift: usize,
    start: u64,
    length: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let used = lock(&POOL).pop();
        let memory = used.unwrap_or_else(|| vec![0; BUFFER_BYTES + BLOCK_BYTES]);
        let shift = memory.as_ptr().align_offset(BLOCK_BYTES);
        assert!(shift < BLOCK_BYTES, "memory that begins {shift} bytes before a block");
        Self { memory, shift, start: 0, length: 0 }
    }

    /// A new one that goes on where `other` ends, with what is in its last block unless that is
    /// full.
    pub(super) fn following(other: &Self) -> Self {
        let whole = other.length / BLOCK_BYTES * BLOCK_BYTES;
        let mut next = Self::new();
        next.start = other.start + whole as u64;
        next.push(&other.bytes()[whole..]);
        assert_eq!(next.end(), other.end(), "goes on where the other ends");
        next
    }

    pub(in crate::storage) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    pub(super) fn is_full(&self) -> bool {
        self.length == BUFFER_BYTES
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.shift..][..self.length]
    }

    /// Its bytes, and behind them what [`Buffer::fill_last_block`] has put there.
    pub(in crate::storage) fn blocks(&self) -> &[u8] {
        &self.memory[self.shift..][..self.length.next_multiple_of(BLOCK_BYTES)]
    }

    /// Takes as many of `bytes` as there is room for.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(BUFFER_BYTES - self.length);
        self.memory[self.shift + self.length..][..count].copy_from_slice(&bytes[..count]);
        self.length += count;
        count
    }

    pub(super) fn fill_last_block(&mut self) {
        let rest = self.length.next_multiple_of(BLOCK_BYTES) - self.length;
        self.memory[self.shift + self.length..][..rest].fill(0);
    }

    /// Copies what it holds of the part of the file from `offset` on.
    pub(super) fn copy_to(&self, target: &mut [u8], offset: u64) {
        let (from, to) = (offset.max(self.start), (offset + target.len() as u64).min(self.end()));
        if from < to {
            let count = distance(from, to);
            let bytes = &self.bytes()[distance(self.start, from)..][..count];
            target[distance(offset, from)..][..count].copy_from_slice(bytes);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = lock(&POOL);
        if pool.len() < POOLED {
            pool.push(std::mem::take(&mut self.memory));
        }
    }
}

/// Bytes between two offsets of what is in memory.
pub(super) fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}
