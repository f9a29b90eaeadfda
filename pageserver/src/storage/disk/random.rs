//! Numbers that look random and follow from a seed.

/// A small seeded generator (xorshift64*), so that a failure replays from its seed.
pub struct Random(pub u64);

#[cfg(test)]
impl Random {
    /// So many bytes of rows as they are in tables.
    pub(in crate::storage) fn rows(&mut self, bytes: usize) -> Vec<u8> {
        let mut rows = String::new();
        while rows.len() < bytes {
            rows += &format!("{:8}|{}|0|{:48}|", self.below(99_999), self.below(9), "paid");
        }
        rows.into_bytes()[..bytes].to_vec()
    }
}

impl Random {
    /// The next number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        let mut x = self.0 | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }
}
