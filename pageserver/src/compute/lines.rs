//! Lines that other programs write, bounded: nobody can make this server remember more than a
//! screenful, or take in more of one line than the reader asked for.

use crate::locks::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Lines that are kept of one program.
const KEPT_LINES: usize = 20;
/// Bytes that are kept of one line; the rest of it is dropped.
pub(crate) const LINE_BYTES: usize = 1000;
/// Memory that is kept for the next line after a long one.
const IDLE_BYTES: usize = 4096;
/// Time for the last lines to arrive once the program is gone.
pub(crate) const LAST_LINES_LIMIT: Duration = Duration::from_millis(500);

/// The last lines of a program's log.
#[derive(Clone, Debug, Default)]
pub(crate) struct OutputTail {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl OutputTail {
    pub(crate) fn push(&self, line: &str) {
        let mut lines = lock(&self.lines);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(start_of(line, LINE_BYTES).to_owned());
    }

    /// The kept lines, oldest first.
    pub(crate) fn text(&self) -> String {
        let lines = lock(&self.lines);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// As much of the start of a text as fits into so many bytes.
pub(crate) fn start_of(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Calls `each` for every line of `source` until its end. A carriage return ends a line too, as in
/// progress displays.
pub(crate) async fn read_lines(source: impl AsyncRead + Unpin, mut each: impl FnMut(&str)) {
    read_long_lines(source, LINE_BYTES, |line, _| each(line)).await;
}

/// The same with lines of up to `most` bytes. `each` also gets the number of bytes that were cut
/// off.
pub(crate) async fn read_long_lines(
    mut source: impl AsyncRead + Unpin,
    most: usize,
    mut each: impl FnMut(&str, usize),
) {
    let mut splitter = Splitter { most, line: Vec::new(), cut: 0 };
    let mut buffer = [0; 4096];
    // An error of the pipe ends the log like its end does; how the program ended is what matters.
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        splitter.feed(&buffer[..count], &mut each);
    }
    splitter.flush(&mut each);
}

/// Waits for `end`, the end of a program, while `reading` takes in what it writes. Once it has
/// ended, what is still in its pipes gets a moment to arrive, but no more: a surviving child of the
/// program can hold them open for ever.
pub(crate) async fn until<T>(end: impl Future<Output = T>, reading: impl Future<Output = ()>) -> T {
    tokio::pin!(end, reading);
    tokio::select! {
        ended = &mut end => {
            let _late = tokio::time::timeout(LAST_LINES_LIMIT, reading).await;
            ended
        }
        () = &mut reading => end.await,
    }
}

struct Splitter {
    most: usize,
    line: Vec<u8>,
    cut: usize,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8], each: &mut impl FnMut(&str, usize)) {
        for &byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                self.flush(each);
            } else if self.line.len() < self.most {
                self.line.push(byte);
            } else {
                self.cut += 1;
            }
        }
    }

    fn flush(&mut self, each: &mut impl FnMut(&str, usize)) {
        if !self.line.is_empty() {
            each(&String::from_utf8_lossy(&self.line), self.cut);
            self.line.clear();
            self.line.shrink_to(IDLE_BYTES);
            self.cut = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_split_and_cut() {
        let long = "x".repeat(5000);
        let text = format!("one\ntwo\rthree\r\n\n{long}\nlast");
        let mut seen = Vec::new();
        read_lines(text.as_bytes(), |line| seen.push(line.to_owned())).await;
        assert_eq!(seen, ["one", "two", "three", &long[..LINE_BYTES], "last"]);
    }

    #[tokio::test]
    async fn a_long_line_is_read_as_far_as_is_asked_for() {
        let text = format!("{}\nlast", "x".repeat(5000));
        let mut seen = Vec::new();
        read_long_lines(text.as_bytes(), 4990, |line, cut| seen.push((line.len(), cut))).await;
        assert_eq!(seen, [(4990, 10), (4, 0)]);
        let tail = OutputTail::default();
        tail.push(&"ä".repeat(LINE_BYTES));
        assert_eq!(tail.text(), "ä".repeat(LINE_BYTES / 2));
        assert_eq!(start_of("äää", 3), "ä");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let tail = OutputTail::default();
        (0..100).for_each(|n| tail.push(&n.to_string()));
        assert!(tail.text().starts_with("80\n81"));
        assert!(tail.text().ends_with("\n99"));
    }
}
