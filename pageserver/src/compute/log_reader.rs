//! Reads what a timeline's Postgres logged: its last lines, and what comes after them.
//!
//! A reader keeps the file open that it reads, so it notices that another has taken its name, and
//! reads it to its end first. All of it waits for the disk.

use super::log_files::LogShelf;
use crate::storage::page::TimelineId;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

/// Bytes of one read.
const PIECE_BYTES: usize = 64 << 10;

/// A place in the log of a timeline.
pub(crate) struct LogReader {
    shelf: Arc<LogShelf>,
    timeline: TimelineId,
    /// The file that is read, and how far; none as long as there is none.
    place: Option<(File, u64)>,
}

impl LogReader {
    /// A reader before the first line that is kept.
    pub(super) fn at_first(shelf: &Arc<LogShelf>, timeline: TimelineId) -> Self {
        Self { shelf: Arc::clone(shelf), timeline, place: None }
    }

    /// A reader before the last `lines` lines, and the bytes that they have.
    pub(super) fn at_last(
        shelf: &Arc<LogShelf>,
        timeline: TimelineId,
        lines: usize,
    ) -> io::Result<(Self, u64)> {
        let (mut place, mut bytes, mut left) = (None, 0, lines);
        for file in shelf.opened(timeline)?.into_iter().rev().flatten() {
            let length = file.metadata()?.len();
            let start = start_of_last(&file, length, &mut left)?;
            bytes += length - start;
            place = Some((file, start));
            if left == 0 {
                break;
            }
        }
        Ok((Self { place, ..Self::at_first(shelf, timeline) }, bytes))
    }

    /// Whose log it is.
    pub(crate) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Reads on, at most so many bytes; none if there are no more so far.
    pub(crate) fn read(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(PIECE_BYTES);
        loop {
            let piece = self.read_here(most)?;
            if !piece.is_empty() || most == 0 {
                return Ok(piece);
            }
            let [older, newest] = self.shelf.opened(self.timeline)?;
            let next = match &self.place {
                None => older.or(newest),
                Some((file, _)) => {
                    let here = identity(&file.metadata()?);
                    let is_here = |file: &Option<File>| -> io::Result<bool> {
                        let metadata = file.as_ref().map(File::metadata).transpose()?;
                        Ok(metadata.is_some_and(|metadata| identity(&metadata) == here))
                    };
                    if is_here(&newest)? {
                        return Ok(piece);
                    }
                    // The last lines may have come just before another file took the name.
                    let piece = self.read_here(most)?;
                    if !piece.is_empty() {
                        return Ok(piece);
                    }
                    if is_here(&older)? { newest } else { older.or(newest) }
                }
            };
            match next {
                Some(file) => self.place = Some((file, 0)),
                None => return Ok(piece),
            }
        }
    }

    fn read_here(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let Some((file, at)) = &mut self.place else { return Ok(Vec::new()) };
        let mut piece = vec![0; most];
        let count = file.read_at(&mut piece, *at)?;
        piece.truncate(count);
        *at += count as u64;
        Ok(piece)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Where the last `left` lines of a file begin. If it has fewer, `left` is what is missing.
fn start_of_last(file: &File, length: u64, left: &mut usize) -> io::Result<u64> {
    if *left == 0 || length == 0 {
        return Ok(length);
    }
    let mut piece = vec![0; PIECE_BYTES];
    // The last byte ends the last line, whatever it is.
    let mut end = length - 1;
    while end > 0 {
        let start = end.saturating_sub(PIECE_BYTES as u64);
        let read = usize::try_from(end - start).unwrap_or(PIECE_BYTES);
        file.read_exact_at(&mut piece[..read], start)?;
        for at in (0..read).rev().filter(|at| piece[*at] == b'\n') {
            *left -= 1;
            if *left == 0 {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    *left -= 1;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::log_files::LogFiles;
    use std::path::PathBuf;
    use std::time::Duration;

    const ONE: TimelineId = TimelineId(1);

    fn open(test: &str) -> (LogFiles, PathBuf) {
        let name = format!("coppice-reads-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _there = std::fs::remove_dir_all(&path);
        (LogFiles::open(path.clone(), |_| true).unwrap(), path)
    }

    fn all(reader: &mut LogReader) -> String {
        let mut text = Vec::new();
        loop {
            match reader.read(u64::MAX).unwrap() {
                piece if piece.is_empty() => return String::from_utf8(text).unwrap(),
                piece => text.extend(piece),
            }
        }
    }

    /// Logs the lines with these numbers; each has 100 bytes.
    fn push(logs: &LogFiles, numbers: std::ops::Range<usize>) {
        let sink = logs.sink(ONE);
        for n in numbers {
            sink.push(&format!("{n:0>99}"), 0);
            if n % 1000 == 0 {
                logs.flush(Duration::from_secs(30));
            }
        }
        logs.flush(Duration::from_secs(30));
    }

    fn numbers(text: &str) -> Vec<usize> {
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn the_last_lines_are_found_in_both_files() {
        let (logs, path) = open("last");
        let (mut reader, bytes) = LogReader::at_last(logs.shelf(), ONE, 5).unwrap();
        assert_eq!((all(&mut reader).as_str(), bytes), ("", 0), "it never ran");
        push(&logs, 0..16_000);
        let kept = all(&mut LogReader::at_first(logs.shelf(), ONE)).lines().count();
        assert!((5300..10_000).contains(&kept), "{kept}");
        for lines in [0, 1, 2, 655, 656, 657, 2000, 4000, kept - 1, kept, kept + 1, 10_000] {
            let (mut reader, bytes) = LogReader::at_last(logs.shelf(), ONE, lines).unwrap();
            let text = all(&mut reader);
            assert_eq!(text.len() as u64, bytes, "{lines}");
            let expected: Vec<usize> = (16_000 - lines.min(kept)..16_000).collect();
            assert_eq!(numbers(&text), expected, "{lines}");
        }
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn lines_of_any_length_are_counted() {
        let (logs, path) = open("lengths");
        let sink = logs.sink(ONE);
        let line = |n: usize| format!("{n} {}", "y".repeat(n * 7919 % 70_000));
        for n in 0..20 {
            sink.push(&line(n), 0);
            logs.flush(Duration::from_secs(30));
        }
        let kept: Vec<String> =
            all(&mut LogReader::at_first(logs.shelf(), ONE)).lines().map(str::to_owned).collect();
        for lines in 1..=20 {
            let (mut reader, _) = LogReader::at_last(logs.shelf(), ONE, lines).unwrap();
            let text = all(&mut reader);
            let text: Vec<&str> = text.lines().collect();
            assert_eq!(text, kept[kept.len().saturating_sub(lines)..], "{lines}");
        }
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_reader_follows_through_new_files() {
        let (logs, path) = open("follow");
        let mut reader = LogReader::at_first(logs.shelf(), ONE);
        assert_eq!(all(&mut reader), "");
        let mut seen = Vec::new();
        for part in 0..10 {
            push(&logs, part * 2000..(part + 1) * 2000);
            seen.extend(numbers(&all(&mut reader)));
        }
        assert_eq!(seen, (0..20_000).collect::<Vec<_>>());
        // One that is too late goes on with what is kept.
        push(&logs, 20_000..60_000);
        let late = numbers(&all(&mut reader));
        assert_eq!(late.last(), Some(&59_999));
        assert!(late.len() < 16_000 && late.contains(&55_000), "{}", late.len());
        logs.remove(ONE);
        assert_eq!(all(&mut reader), "");
        std::fs::remove_dir_all(path).unwrap();
    }
}
