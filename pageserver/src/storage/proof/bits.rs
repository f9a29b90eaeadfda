//! What the properties share.

/// The store that the bytes are said to be from.
pub(super) const STORE: u64 = 99;

/// Flips a bit that follows from `input`, so that the same input tries the same bit again.
pub(super) fn flip_a_bit(bytes: &mut [u8], input: &[u8]) -> usize {
    let bit = crc32fast::hash(input) as usize % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bit
}
