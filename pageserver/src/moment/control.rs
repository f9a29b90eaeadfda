//! `global/pg_control`: where recovery begins, and whether there is to be one.
//!
//! The fields that are looked at have stood where they stand since version 11. The checksum behind
//! them moves between versions; it is found by what it is: the CRC-32C of all bytes before it
//! (`pg_control.h` of PostgreSQL).

use super::wal::{Lsn, below};
use crate::error::{Error, Result};
use crate::fs::tree::Tree;
use crate::storage::page::ROOT_INODE;

const STATE: usize = 16;
const REDO: usize = 40;
/// `DB_SHUTDOWNED` and `DB_SHUTDOWNED_IN_RECOVERY`: Postgres would not look for more to recover.
const SHUT_DOWN: [u32; 2] = [1, 2];
/// `DB_IN_PRODUCTION`.
const IN_PRODUCTION: u32 = 6;
/// The checksum is somewhere in between.
const CHECKSUM: std::ops::Range<usize> = 200..512;

/// The control file of a data directory.
pub(super) struct Control {
    inode: u64,
    bytes: Vec<u8>,
    checksum: usize,
}

impl Control {
    pub(super) fn read(tree: &Tree) -> Result<Self> {
        let missing = |_| {
            Error::unavailable("no_control_file", "the data directory has no global/pg_control")
        };
        let (directory, _) = tree.lookup(ROOT_INODE, b"global").map_err(missing)?;
        let (inode, _) = tree.lookup(directory, b"pg_control").map_err(missing)?;
        let (mut bytes, range) =
            tree.read(inode, 0, 8192).map_err(below("read global/pg_control"))?;
        bytes.truncate(range.end);
        let found = find_checksum(&bytes);
        let checksum =
            found.ok_or_else(|| Error::corrupt("global/pg_control is not what Postgres wrote"))?;
        Ok(Self { inode, bytes, checksum })
    }

    /// Where recovery begins.
    pub(super) fn redo(&self) -> Lsn {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[REDO..REDO + 8]);
        Lsn(u64::from_le_bytes(bytes))
    }

    fn state(&self) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.bytes[STATE..STATE + 4]);
        u32::from_le_bytes(bytes)
    }

    /// Makes Postgres recover what is in the write-ahead log, also if it was shut down at the older
    /// point.
    pub(super) fn ask_for_recovery(mut self, tree: &Tree) -> Result<()> {
        if !SHUT_DOWN.contains(&self.state()) {
            return Ok(());
        }
        self.bytes[STATE..STATE + 4].copy_from_slice(&IN_PRODUCTION.to_le_bytes());
        let crc = crc32c(&self.bytes[..self.checksum]);
        self.bytes[self.checksum..self.checksum + 4].copy_from_slice(&crc.to_le_bytes());
        tree.write(self.inode, 0, &self.bytes).map_err(below("write global/pg_control"))
    }
}

/// Where the checksum is that covers all before it.
fn find_checksum(bytes: &[u8]) -> Option<usize> {
    let holds = |at: &usize| {
        let stored =
            bytes.get(*at..*at + 4).map(|stored| [stored[0], stored[1], stored[2], stored[3]]);
        stored.is_some_and(|stored| u32::from_le_bytes(stored) == crc32c(&bytes[..*at]))
    };
    CHECKSUM.step_by(4).find(holds)
}

/// The CRC of Castagnoli's polynomial, which Postgres uses.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ POLYNOMIAL };
    !bytes
        .iter()
        .fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_found_where_it_is() {
        // The check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        for at in [288, 292, 296] {
            let mut bytes: Vec<u8> = (0..8192_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
            let crc = crc32c(&bytes[..at]);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(find_checksum(&bytes), Some(at));
            bytes[17] ^= 1;
            assert_eq!(find_checksum(&bytes), None);
        }
    }
}
