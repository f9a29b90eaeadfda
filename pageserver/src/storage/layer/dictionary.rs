//! What the pages of a layer have in common: a zstd dictionary, made of some of them.
//!
//! With one, a page that is compressed by itself mostly takes about as much as it would together
//! with another, and a read unpacks it alone, without first reading the tables of an entropy code
//! of its own.

use crate::storage::page::PAGE_BYTES;
use crate::sys;
use std::cell::RefCell;
use std::io;
use zstd::bulk::Compressor;
use zstd::zstd_safe::{DCtx, DDict};

/// zstd's fastest ordinary level: pages are written once and read often, but sealing shares two
/// cores with Postgres.
pub(super) const LEVEL: i32 = 1;
/// Pages that are compressed together where they have no dictionary, or where much is saved by it.
/// A read of one unpacks all.
pub(in crate::storage) const PAGES_TOGETHER: usize = 2;
/// Places that are looked at to make one, two pages at each. Four times as many gave nothing.
const PLACES: u64 = 32;
/// From one place to the next in the order in which they are looked at; it has no divisor in common
/// with their number.
const STRIDE: u64 = 13;
/// Versions of blocks from which on it is worth its own bytes, and the time to make it.
const LEAST_VERSIONS: u64 = 1024;
/// Bytes of one. With twice as many, an index took a third more.
const DICTIONARY_BYTES: usize = 8 << 10;
/// Most bytes of one that is read.
pub(super) const MAX_DICTIONARY_BYTES: u32 = 64 << 10;

/// Some pages of a layer with so many versions of blocks: neighbours, at places from all over; none
/// if there are few. `read` reads the nth version and says whether it has a page that could be
/// read.
pub(in crate::storage) fn sample(
    versions: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Vec<u8> {
    let places = if versions < LEAST_VERSIONS { 0 } else { PLACES };
    let mut pages = Vec::new();
    for nth in 0..places {
        // What is trained on the first of them is tried on the last.
        let (first, from) = (nth * STRIDE % places * (versions / places), pages.len());
        pages.resize(from + 2 * PAGE_BYTES, 0);
        let (one, next) = pages[from..].split_at_mut(PAGE_BYTES);
        if !(read(first, one) && read(first + 1, next)) {
            pages.truncate(from);
        }
    }
    pages
}

/// How pages are packed.
pub(super) struct Packing {
    /// Empty if there is none.
    pub(super) dictionary: Vec<u8>,
    /// How many to compress together.
    pub(super) together: usize,
    pub(super) compressor: Compressor<'static>,
}

impl Packing {
    /// The way for pages like the `samples`.
    pub(super) fn of(samples: &[u8]) -> io::Result<Self> {
        // Of few pages, or of some that have nothing in common, no dictionary can be made.
        sys::when_idle(|| Self::with_dictionary(samples)).or_else(|_| {
            let compressor = Compressor::new(LEVEL)?;
            Ok(Self { dictionary: Vec::new(), together: PAGES_TOGETHER, compressor })
        })
    }

    /// Each page is packed alone unless two together take an eighth less.
    fn with_dictionary(samples: &[u8]) -> io::Result<Self> {
        let lengths = vec![PAGE_BYTES; samples.len() / PAGE_BYTES];
        let dictionary = zstd::dict::from_continuous(samples, &lengths, DICTIONARY_BYTES)?;
        let mut compressor = Compressor::with_dictionary(LEVEL, &dictionary)?;
        let mut packed = |pages: usize| -> io::Result<usize> {
            samples
                .chunks(pages * PAGE_BYTES)
                .map(|group| Ok(compressor.compress(group)?.len()))
                .sum()
        };
        let together =
            if packed(1)? * 7 > packed(PAGES_TOGETHER)? * 8 { PAGES_TOGETHER } else { 1 };
        Ok(Self { dictionary, together, compressor })
    }
}

thread_local! {
    /// Making one costs more than unpacking a group.
    static UNPACKER: RefCell<Unpacker> = RefCell::new(Unpacker::default());
}

#[derive(Default)]
struct Unpacker {
    context: Option<DCtx<'static>>,
    pages: Vec<u8>,
}

impl Unpacker {
    fn unpack(
        &mut self,
        bytes: &[u8],
        dictionary: Option<&DDict<'_>>,
        most: usize,
    ) -> Option<&[u8]> {
        if self.context.is_none() {
            self.context = Some(DCtx::try_create()?);
        }
        self.pages.resize(most, 0);
        let (context, room) = (self.context.as_mut()?, &mut self.pages[..]);
        let count = match dictionary {
            Some(dictionary) => context.decompress_using_ddict(room, bytes, dictionary),
            None => context.decompress(room, bytes),
        };
        self.pages.get(..count.ok()?)
    }
}

/// Calls `take` with the pages of a group, at most so many bytes; with `None` if it is none.
pub(super) fn unpack<T>(
    bytes: &[u8],
    dictionary: Option<&DDict<'_>>,
    most: usize,
    take: impl FnOnce(Option<&[u8]>) -> T,
) -> T {
    UNPACKER.with_borrow_mut(|unpacker| take(unpacker.unpack(bytes, dictionary, most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;

    /// Pages of rows as they are in tables, of which each is repeated so many times.
    fn pages(count: usize, repeated: usize) -> Vec<u8> {
        let mut random = Random(3);
        (0..count).flat_map(|_| random.rows(PAGE_BYTES).repeat(repeated)).collect()
    }

    #[test]
    fn neighbours_are_packed_together_where_that_saves_much() {
        let of = |samples: &[u8]| Packing::of(samples).unwrap();
        let alike = of(&pages(64, 1));
        assert_eq!((alike.dictionary.len(), alike.together), (DICTIONARY_BYTES, 1));
        let twins = of(&pages(32, 2));
        assert_eq!((twins.dictionary.len(), twins.together), (DICTIONARY_BYTES, PAGES_TOGETHER));
        let few = of(&[]);
        assert_eq!((few.dictionary.len(), few.together), (0, PAGES_TOGETHER));
    }

    #[test]
    fn samples_are_neighbours_from_all_over() {
        let none = sample(LEAST_VERSIONS - 1, |_, _| panic!("they are too few"));
        assert_eq!(none, [] as [u8; 0]);
        for versions in [LEAST_VERSIONS, 12_345, 1 << 40] {
            let mut seen = Vec::new();
            let pages = sample(versions, |nth, page| {
                seen.push(nth);
                page.fill(nth.to_le_bytes()[0]);
                // Of one place the second has no page.
                nth != 1
            });
            assert_eq!(pages.len(), 2 * (seen.len() - 2) / 2 * PAGE_BYTES);
            assert!(seen.chunks(2).all(|pair| pair[0] + 1 == pair[1]), "{seen:?}");
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len() as u64, 2 * PLACES);
            assert!(
                seen[0] == 0 && (versions / 20 * 19..versions).contains(&seen[seen.len() - 1]),
                "{seen:?}"
            );
        }
    }
}
