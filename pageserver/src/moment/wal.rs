//! Postgres's write-ahead log as it lies in a timeline's `pg_wal`: where it ends, and where to end
//! it.
//!
//! Only what does not differ between versions 13 to 18 is looked at: the header of a page, the
//! header of a record, and the time in the records that end transactions (`xlog_internal.h`,
//! `xlogrecord.h` and `xact.h` of PostgreSQL). A record counts if it follows the one before;
//! whether its checksum holds is left to Postgres, which reads all of it again.

use crate::error::{Error, Result};
use crate::fs::tree::{Tree, TreeError, Wanted};
use crate::storage::log::format::FileKind;
use crate::storage::page::{PAGE_BYTES, ROOT_INODE};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

/// A place in the write-ahead log, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl Lsn {
    /// Reads what Postgres prints, such as `0/16B3748`.
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        let half = |text: &str| {
            let sound =
                (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            sound.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        Some(Self(half(high)? << 32 | half(low)?))
    }
}

/// Where to end the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Before the first transaction that was committed later, in microseconds since 2000.
    Time(i64),
    /// Before the first record that ends behind.
    Lsn(Lsn),
}

/// Bytes of a page; Postgres's default, which nobody changes.
const PAGE: u64 = PAGE_BYTES as u64;
/// Bytes of a page's header, and of that at the start of a segment.
const HEADER: u64 = 24;
const LONG_HEADER: u64 = LONG_HEADER_BYTES as u64;
const LONG_HEADER_BYTES: u32 = 40;
/// Flags of a page: it begins with the rest of a record; its header is long; the record that the
/// page before ends in was given up (`XLP_FIRST_IS_CONTRECORD`, `XLP_LONG_HEADER`,
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
const CONTINUED: u64 = 1;
const LONG: u64 = 2;
const OVERWRITE: u64 = 8;
/// Bytes of a record's header.
const RECORD_HEADER: usize = 24;
/// Bytes of a record that are looked at.
const RECORD_HEAD: usize = 64;
/// Longest record (`XLogRecordMaxSize`).
const MAX_RECORD: u32 = 1020 << 20;
/// Pages before the last one from which on records are followed, should pages have come out of
/// order.
const SLACK_PAGES: u64 = 16;
/// Sizes of segments that `initdb` allows.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// Bytes that are read at once.
const WINDOW: u64 = WINDOW_BYTES as u64;
const WINDOW_BYTES: u32 = 64 << 10;

/// The log in a tree.
pub struct Wal<'t> {
    tree: &'t Tree,
    directory: u64,
    segment_bytes: u64,
    /// By number: name and inode.
    segments: BTreeMap<u64, (Vec<u8>, u64)>,
    /// What was read last, and from where on: most records are in the page of the one before.
    window: RefCell<(u64, Rc<Vec<u8>>)>,
}

/// A page that was written.
struct Page {
    window: Rc<Vec<u8>>,
    at: usize,
}

impl Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.window[self.at..self.at + PAGE_BYTES]
    }
}

/// A record.
#[derive(Clone, Copy, Debug)]
struct WalRecord {
    start: u64,
    end: u64,
    /// When it committed a transaction, if it did.
    committed: Option<i64>,
}

/// What is at a place where a record may begin.
enum Next {
    WalRecord(WalRecord),
    /// One that was given up; the log goes on there.
    Overwritten(u64),
    /// One whose end was not written yet.
    Unfinished,
    Nothing,
}

/// Where a record leads.
enum Reach {
    End(u64),
    Overwritten(u64),
    NotThere,
    Nowhere,
}

/// How the records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Behind the last one.
    pub at: Lsn,
    /// Whether no page that was written is behind, but for those of an unfinished record.
    pub is_last: bool,
}

fn flags(page: &[u8]) -> u64 {
    number::<2>(page, 2).unwrap_or(0)
}

/// Bytes of the record before that the page begins with.
fn remaining(page: &[u8]) -> u64 {
    number::<4>(page, 16).unwrap_or(0)
}

/// An error of the store below as one of the server.
pub(super) fn below(doing: &str) -> impl Fn(TreeError) -> Error + '_ {
    move |error| error.into_error(doing)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide.get_mut(..N)?.copy_from_slice(bytes.get(at..at + N)?);
    Some(u64::from_le_bytes(wide))
}

/// A segment's timeline and its place by the two halves of its name.
fn parse_name(name: &[u8]) -> Option<(u64, u64, u64)> {
    let text = std::str::from_utf8(name).ok().filter(|text| text.len() == 24)?;
    let part = |at: usize| {
        let part = &text[at..at + 8];
        part.bytes()
            .all(|byte| byte.is_ascii_hexdigit())
            .then(|| u64::from_str_radix(part, 16).ok())?
    };
    Some((part(0)?, part(8)?, part(16)?))
}

impl<'t> Wal<'t> {
    /// Finds the segments in the data directory of `tree`.
    pub fn open(tree: &'t Tree) -> Result<Self> {
        let missing = |_| Error::unavailable("no_wal", "the data directory has no write-ahead log");
        let (directory, _) = tree.lookup(ROOT_INODE, b"pg_wal").map_err(missing)?;
        let mut named: BTreeMap<(u64, u64, u64), (Vec<u8>, u64)> = BTreeMap::new();
        for (_, name, target) in tree.list(directory) {
            if let Some(key) = parse_name(&name).filter(|_| target.kind == FileKind::File) {
                named.insert(key, (name, target.inode));
            }
        }
        let window = RefCell::new((u64::MAX, Rc::default()));
        let mut wal = Self { tree, directory, segment_bytes: 0, segments: BTreeMap::new(), window };
        wal.segment_bytes =
            wal.find_segment_bytes(named.values().rev().map(|(_, inode)| *inode))?;
        let per_id = (1 << 32) / wal.segment_bytes;
        // By the order of names a newer timeline's file of the same place comes last.
        for ((_, id, segment), file) in named {
            wal.segments.insert(id * per_id + segment, file);
        }
        Ok(wal)
    }

    fn find_segment_bytes(&self, inodes: impl Iterator<Item = u64>) -> Result<u64> {
        for inode in inodes {
            let (buffer, range) =
                self.tree.read(inode, 0, LONG_HEADER_BYTES).map_err(below("read pg_wal"))?;
            let head = &buffer[range];
            let long = flags(head) & LONG != 0;
            let (Some(bytes), Some(page)) = (number::<4>(head, 32), number::<4>(head, 36)) else {
                continue;
            };
            if long && SEGMENT_BYTES.contains(&bytes) && bytes.is_power_of_two() && page == PAGE {
                return Ok(bytes);
            }
        }
        Err(Error::unavailable(
            "no_wal",
            "the data directory's write-ahead log has no page that can be read",
        ))
    }

    /// The page at `at`, if it was written.
    fn page(&self, at: u64) -> Result<Option<Page>> {
        let start = at - at % WINDOW;
        let mut held = self.window.borrow_mut();
        if held.0 != start {
            *held = (start, Rc::new(self.read_window(start)?));
        }
        let page = usize::try_from(at - start).unwrap_or(usize::MAX);
        let written =
            held.1.len() as u64 >= at - start + PAGE && number::<8>(&held.1, page + 8) == Some(at);
        Ok(written.then(|| Page { window: Rc::clone(&held.1), at: page }))
    }

    fn read_window(&self, start: u64) -> Result<Vec<u8>> {
        let Some((_, inode)) = self.segments.get(&(start / self.segment_bytes)) else {
            return Ok(Vec::new());
        };
        let read = self.tree.read(*inode, start % self.segment_bytes, WINDOW_BYTES);
        let (mut buffer, range) = read.map_err(below("read pg_wal"))?;
        buffer.truncate(range.end);
        Ok(buffer)
    }

    /// Whether all segments from that of `from` up to that of `to` are there.
    pub fn covers(&self, from: Lsn, to: Lsn) -> bool {
        let mut needed = from.0 / self.segment_bytes..=to.0.saturating_sub(1) / self.segment_bytes;
        needed.all(|segment| self.segments.contains_key(&segment))
    }

    /// Start of the last page that was written.
    fn last_page(&self) -> Result<Option<u64>> {
        for segment in self.segments.keys().rev() {
            let first = segment * self.segment_bytes;
            if self.page(first)?.is_none() {
                continue;
            }
            let (mut written, mut not) = (0, self.segment_bytes / PAGE);
            while not - written > 1 {
                let middle = written + (not - written) / 2;
                let there = self.page(first + middle * PAGE)?.is_some();
                *(if there { &mut written } else { &mut not }) = middle;
            }
            return Ok(Some(first + written * PAGE));
        }
        Ok(None)
    }

    /// Where a record begins, a little before the end of what was written.
    pub fn near_end(&self) -> Result<Lsn> {
        let none = || Error::unavailable("no_wal", "no record begins in the write-ahead log");
        let last = self.last_page()?.ok_or_else(none)?;
        let mut at = last;
        // A long record may fill many pages; then further back.
        for slack in [SLACK_PAGES, SLACK_PAGES << 4, SLACK_PAGES << 8, SLACK_PAGES << 12] {
            while (last - at) / PAGE < slack {
                match at.checked_sub(PAGE) {
                    Some(before) if self.page(before)?.is_some() => at = before,
                    _ => break,
                }
            }
            if let Some(first) = self.first_record(at)? {
                return Ok(first);
            }
        }
        Err(none())
    }

    /// Where the first record begins from the page at `at` on.
    fn first_record(&self, mut at: u64) -> Result<Option<Lsn>> {
        while let Some(page) = self.page(at)? {
            let rest = if flags(&page) & CONTINUED != 0 {
                remaining(&page).next_multiple_of(8)
            } else {
                0
            };
            if self.header(at) + rest < PAGE {
                return Ok(Some(Lsn(at + self.header(at) + rest)));
            }
            at += PAGE;
        }
        Ok(None)
    }

    fn header(&self, page: u64) -> u64 {
        if page.is_multiple_of(self.segment_bytes) { LONG_HEADER } else { HEADER }
    }

    /// Follows a record of `length` bytes over the pages that it crosses.
    fn follow(&self, start: u64, length: u64) -> Result<Reach> {
        let (mut at, mut left) = (start, length);
        loop {
            let room = PAGE - at % PAGE;
            if left <= room {
                return Ok(Reach::End(at + left));
            }
            (at, left) = (at + room, left - room);
            let Some(page) = self.page(at)? else { return Ok(Reach::NotThere) };
            if flags(&page) & OVERWRITE != 0 {
                return Ok(Reach::Overwritten(at + self.header(at)));
            }
            if flags(&page) & CONTINUED == 0 || remaining(&page) != left {
                return Ok(Reach::Nowhere);
            }
            at += self.header(at);
        }
    }

    /// Up to [`RECORD_HEAD`] bytes of the record at `start`; `None` if they are not there.
    fn head(&self, start: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut at = start;
        let mut wanted = RECORD_HEADER;
        while bytes.len() < wanted {
            let page_start = at - at % PAGE;
            let Some(page) = self.page(page_start)? else { return Ok(None) };
            let from = if at == page_start { self.header(at) } else { at % PAGE };
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let count = (wanted - bytes.len()).min(page.len() - from);
            bytes.extend_from_slice(&page[from..from + count]);
            at = page_start + (from + count) as u64;
            if let Some(length) = number::<4>(&bytes, 0) {
                wanted =
                    usize::try_from(length).unwrap_or(usize::MAX).clamp(RECORD_HEADER, RECORD_HEAD);
            }
        }
        Ok(Some(bytes))
    }

    /// What begins at `at`, behind the record at `previous` if there is one.
    fn next(&self, at: u64, previous: Option<u64>) -> Result<Next> {
        let start = if at.is_multiple_of(PAGE) { at + self.header(at) } else { at };
        let Some(head) = self.head(start)? else { return Ok(Next::Nothing) };
        let (Some(length), Some(before)) = (number::<4>(&head, 0), number::<8>(&head, 8)) else {
            return Ok(Next::Nothing);
        };
        let follows = previous.is_none_or(|previous| before == previous) && before < start;
        if length < RECORD_HEADER as u64 || length > u64::from(MAX_RECORD) || !follows {
            return Ok(Next::Nothing);
        }
        let mut end = match self.follow(start, length)? {
            Reach::End(end) => end.next_multiple_of(8),
            Reach::Overwritten(resume) => return Ok(Next::Overwritten(resume)),
            Reach::NotThere => return Ok(Next::Unfinished),
            Reach::Nowhere => return Ok(Next::Nothing),
        };
        let (info, manager) = (head[16], head[17]);
        if (manager, info & 0xf0) == SWITCH {
            end = end.next_multiple_of(self.segment_bytes);
        }
        let commits = manager == TRANSACTION && COMMITS.contains(&(info & 0x70));
        let committed =
            if commits { main_data(&head).and_then(|data| number::<8>(data, 0)) } else { None };
        Ok(Next::WalRecord(WalRecord { start, end, committed: committed.map(u64::cast_signed) }))
    }

    /// Follows the records from `from` on to the first that `stop` leaves out. Returns where it
    /// begins, or else how the records end.
    pub fn find(&self, from: Lsn, stop: Stop) -> Result<std::result::Result<Lsn, End>> {
        let (mut at, mut previous) = (from.0, None);
        let unfinished = loop {
            match self.next(at, previous)? {
                Next::WalRecord(record) => {
                    let out = match stop {
                        Stop::Time(time) => {
                            record.committed.is_some_and(|committed| committed > time)
                        }
                        Stop::Lsn(lsn) => record.end > lsn.0,
                    };
                    if out {
                        return Ok(Ok(Lsn(record.start)));
                    }
                    (at, previous) = (record.end, Some(record.start));
                }
                // Postgres gave the record up at a restart and went on behind.
                Next::Overwritten(resume) => (at, previous) = (resume, None),
                Next::Unfinished => break true,
                Next::Nothing => break false,
            }
        };
        let is_last = unfinished || self.last_page()?.is_none_or(|last| at >= last);
        Ok(Err(End { at: Lsn(at), is_last }))
    }

    /// Where the log ends.
    pub fn end(&self) -> Result<Lsn> {
        let end = self.find(self.near_end()?, Stop::Lsn(Lsn(u64::MAX)))?;
        Ok(end.unwrap_or_else(|end| end.at))
    }

    /// Ends the log before the record that begins at `at`: what is behind reads as never written.
    pub fn cut(&self, at: Lsn, now_ns: i64) -> Result<()> {
        let last = at.0 / self.segment_bytes;
        let doing = "cut the write-ahead log";
        for (name, _) in self.segments.range(last + 1..).map(|(_, file)| file) {
            self.tree.remove(self.directory, name, false, now_ns).map_err(below(doing))?;
        }
        let Some((_, inode)) = self.segments.get(&last) else { return Ok(()) };
        for size in [at.0 % self.segment_bytes, self.segment_bytes] {
            let wanted = Wanted { size: Some(size), ..Wanted::default() };
            self.tree.set_attributes(*inode, &wanted).map_err(below(doing))?;
        }
        Ok(())
    }
}

/// Resource manager and operation of a record that ends a segment early: `RM_XLOG_ID`,
/// `XLOG_SWITCH`.
const SWITCH: (u8, u8) = (0, 0x40);
/// `RM_XACT_ID`.
const TRANSACTION: u8 = 1;
/// `XLOG_XACT_COMMIT` and `XLOG_XACT_COMMIT_PREPARED`.
const COMMITS: [u8; 2] = [0x00, 0x30];

/// What a record without pages carries, as far as `head` goes.
fn main_data(head: &[u8]) -> Option<&[u8]> {
    let mut at = RECORD_HEADER;
    loop {
        match head.get(at)? {
            // XLR_BLOCK_ID_DATA_SHORT and _LONG, ORIGIN, TOPLEVEL_XID
            255 => return head.get(at + 2..),
            254 => return head.get(at + 5..),
            253 => at += 3,
            252 => at += 5,
            _ => return None,
        }
    }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
