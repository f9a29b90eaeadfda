//! What each timeline's Postgres logs, in files of this server: `TIMELINE.log` has the newest
//! lines, `TIMELINE.log.1` those before. Each has at most 512 KiB, so a timeline has at most 1 MiB
//! on the disk.
//!
//! One thread writes for all timelines. Whoever has a line hands it over and waits for nothing. Of
//! each timeline as much waits as fits into 256 KiB. If more comes before the disk takes it, the
//! oldest of the waiting lines are dropped, and a line in the file says how many. So a branch that
//! logs without end loses lines of its own, and keeps nobody waiting. Lines that the disk refuses
//! are dropped too.
//!
//! Nothing is kept in memory or open for a Postgres that logs nothing. The files are not synced:
//! they survive the server, but not always a power cut.
//!
//! Lock order: `disk`, then `queue`. Only threads that may wait for the disk take `disk`.

use super::lines::start_of;
use crate::error::{Error, Result};
use crate::locks::{lock, wait};
use crate::storage::page::TimelineId;
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one file.
const FILE_BYTES: usize = 512 << 10;
/// Bytes of one timeline that wait to be written.
const WAITING_BYTES: usize = 256 << 10;
/// Bytes of a line; what is longer is cut.
pub(crate) const LOGGED_LINE_BYTES: usize = 64 << 10;
/// How often it is said that the disk does not take the lines.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// The logs of all timelines. Its thread ends when it is dropped.
pub(crate) struct LogFiles(Arc<LogShelf>);

/// What the thread, the sinks and the readers share.
pub(super) struct LogShelf {
    directory: PathBuf,
    queue: Mutex<LogQueue>,
    /// Something is due, or the thread is to end.
    work: Condvar,
    /// Nothing is due any more.
    drained: Condvar,
    /// Held while files are written, renamed or removed: when the disk's refusal was last told.
    disk: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct LogQueue {
    /// The timelines that have a sink, or lines that wait.
    waiting: HashMap<TimelineId, WaitingLines>,
    /// Those of them that have lines.
    due: VecDeque<TimelineId>,
    writing: bool,
    closed: bool,
}

/// Lines that are not in the file yet.
#[derive(Default)]
struct WaitingLines {
    text: Vec<u8>,
    /// Lines before them that are lost.
    missing: u64,
    sinks: usize,
    is_due: bool,
}

/// Takes the lines of one Postgres.
pub(crate) struct LogSink {
    shelf: Arc<LogShelf>,
    timeline: TimelineId,
}

impl LogFiles {
    /// Opens the directory, removes the files of timelines that are not wanted, and starts the
    /// thread.
    pub(crate) fn open(directory: PathBuf, is_wanted: impl Fn(TimelineId) -> bool) -> Result<Self> {
        if let Err(error) = prepare(&directory, is_wanted) {
            // As on a full disk: no reason to be without a server.
            tracing::warn!(directory = %directory.display(), %error, "no logs of branches");
        }
        let shelf = Arc::new(LogShelf {
            directory,
            queue: Mutex::default(),
            work: Condvar::new(),
            drained: Condvar::new(),
            disk: Mutex::default(),
        });
        let writer = Arc::clone(&shelf);
        std::thread::Builder::new()
            .name("postgres-logs".to_owned())
            .spawn(move || while writer.write_next() {})
            .map_err(|e| Error::io("start the thread that writes Postgres's logs", &e))?;
        Ok(Self(shelf))
    }

    /// Where lines of a timeline's Postgres go.
    pub(crate) fn sink(&self, timeline: TimelineId) -> LogSink {
        lock(&self.0.queue).waiting.entry(timeline).or_default().sinks += 1;
        LogSink { shelf: Arc::clone(&self.0), timeline }
    }

    /// What readers need.
    pub(super) fn shelf(&self) -> &Arc<LogShelf> {
        &self.0
    }

    /// Removes the log of a timeline on which no Postgres will run again. What a late process of it
    /// still says is dropped.
    pub(crate) fn remove(&self, timeline: TimelineId) {
        let _disk = lock(&self.0.disk);
        lock(&self.0.queue).waiting.remove(&timeline);
        for path in self.0.paths(timeline) {
            // A file too many is removed by the next start.
            let _there = fs::remove_file(path);
        }
    }

    /// Waits until all lines that were handed over are written, for `limit` at most.
    pub(crate) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut queue = lock(&self.0.queue);
        while queue.writing || !queue.due.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.drained.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for LogFiles {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.work.notify_all();
    }
}

impl LogSink {
    /// Takes a line, of which `cut` bytes are missing already. It waits for nothing but a lock that
    /// nobody holds for long.
    pub(crate) fn push(&self, line: &str, cut: usize) {
        let mut queue = lock(&self.shelf.queue);
        let LogQueue { waiting, due, .. } = &mut *queue;
        // None: the log was removed.
        let Some(of) = waiting.get_mut(&self.timeline) else { return };
        of.add(line, cut);
        if !of.is_due {
            of.is_due = true;
            due.push_back(self.timeline);
            self.shelf.work.notify_one();
        }
    }
}

impl Drop for LogSink {
    fn drop(&mut self) {
        let mut queue = lock(&self.shelf.queue);
        if let Some(of) = queue.waiting.get_mut(&self.timeline) {
            of.sinks -= 1;
            if of.sinks == 0 && !of.is_due {
                queue.waiting.remove(&self.timeline);
            }
        }
    }
}

impl WaitingLines {
    fn add(&mut self, line: &str, cut: usize) {
        let kept = start_of(line, LOGGED_LINE_BYTES);
        let cut = cut + line.len() - kept.len();
        let mark = match cut {
            0 => String::new(),
            cut => format!("… (coppice: {cut} more bytes were cut off)"),
        };
        if self.text.len() + kept.len() + mark.len() >= WAITING_BYTES {
            self.drop_older_half();
        }
        for part in [kept, &mark, "\n"] {
            self.text.extend_from_slice(part.as_bytes());
        }
    }

    fn drop_older_half(&mut self) {
        let half = self.text.len() / 2;
        let rest = self.text[half..].iter().position(|byte| *byte == b'\n');
        let end = rest.map_or(self.text.len(), |at| half + at + 1);
        self.missing += count_lines(&self.text[..end]);
        self.text.drain(..end);
    }

    fn take(&mut self) -> TakenLines {
        self.is_due = false;
        let (lines, missing) = (std::mem::take(&mut self.text), std::mem::take(&mut self.missing));
        let notice = match missing {
            0 => String::new(),
            _ => format!("coppice: {missing} lines are missing here, the disk did not take them\n"),
        };
        TakenLines { notice: notice.into(), lines, missing }
    }
}

/// Lines on their way to the file, with one before them about those that are lost.
struct TakenLines {
    notice: Vec<u8>,
    lines: Vec<u8>,
    missing: u64,
}

impl LogShelf {
    /// The files of a timeline, the older one first.
    fn paths(&self, timeline: TimelineId) -> [PathBuf; 2] {
        [".log.1", ".log"].map(|end| self.directory.join(format!("{timeline}{end}")))
    }

    /// The files of a timeline as they are at one moment, the older one first.
    pub(super) fn opened(&self, timeline: TimelineId) -> io::Result<[Option<File>; 2]> {
        let _disk = lock(&self.disk);
        let [older, newest] = self.paths(timeline).map(|path| match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        Ok([older?, newest?])
    }

    /// Writes the lines of the timeline that has waited longest, once there is one. False if there
    /// is none and the thread is to end.
    fn write_next(&self) -> bool {
        let mut queue = lock(&self.queue);
        while queue.due.is_empty() {
            queue.writing = false;
            self.drained.notify_all();
            if queue.closed {
                return false;
            }
            queue = wait(&self.work, queue);
        }
        queue.writing = true;
        drop(queue);
        // Before the lines are taken, so that they are not written behind the removal of the log.
        let mut told = lock(&self.disk);
        let Some((timeline, TakenLines { notice, lines, missing })) = self.take_next() else {
            return true;
        };
        let (mut before, mut rest) = (notice.as_slice(), lines.as_slice());
        let written = self.append(timeline, &mut before);
        if let Err(error) = written.and_then(|()| self.append(timeline, &mut rest)) {
            let untold = if before.is_empty() { 0 } else { missing };
            if let Some(of) = lock(&self.queue).waiting.get_mut(&timeline) {
                of.missing += untold + count_lines(rest);
            }
            if told.is_none_or(|at| at.elapsed() > WARN_EVERY) {
                *told = Some(Instant::now());
                tracing::warn!(%timeline, %error, "lines of Postgres's log are lost");
            }
        }
        true
    }

    fn take_next(&self) -> Option<(TimelineId, TakenLines)> {
        let mut queue = lock(&self.queue);
        let timeline = queue.due.pop_front()?;
        let of = queue.waiting.get_mut(&timeline)?;
        let taken = of.take();
        if of.sinks == 0 {
            queue.waiting.remove(&timeline);
        }
        Some((timeline, taken))
    }

    /// Appends whole lines, and begins a new file where the next one does not fit. What is left in
    /// `lines` was not written.
    fn append(&self, timeline: TimelineId, lines: &mut &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let [older, newest] = self.paths(timeline);
        let (mut file, mut size) = open_to_append(&newest)?;
        while !lines.is_empty() {
            let fits = match whole_lines(lines, FILE_BYTES.saturating_sub(size)) {
                0 if size > 0 => {
                    fs::rename(&newest, &older)?;
                    (file, size) = open_to_append(&newest)?;
                    continue;
                }
                0 => lines.len(),
                fits => fits,
            };
            file.write_all(&lines[..fits])?;
            size += fits;
            *lines = &lines[fits..];
        }
        Ok(())
    }
}

/// Makes the directory and removes what is not wanted in it.
fn prepare(directory: &Path, is_wanted: impl Fn(TimelineId) -> bool) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    fs::set_permissions(directory, PermissionsExt::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let timeline = name.to_str().and_then(|name| {
            let timeline = name.strip_suffix(".log").or_else(|| name.strip_suffix(".log.1"));
            timeline?.parse::<TimelineId>().ok()
        });
        if timeline.is_some_and(|timeline| !is_wanted(timeline)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A file that ends with a whole line, and its size.
fn open_to_append(path: &Path) -> io::Result<(File, usize)> {
    let mut file =
        OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    let mut size = usize::try_from(length).unwrap_or(usize::MAX);
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    // A server that was killed, or a full disk, may have cut a line.
    if last != [b'\n'] {
        file.write_all(b"\n")?;
        size += 1;
    }
    Ok((file, size))
}

/// Bytes of the whole lines at the beginning of `text` that fit into `room`.
fn whole_lines(text: &[u8], room: usize) -> usize {
    if text.len() <= room {
        return text.len();
    }
    text[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

fn count_lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TimelineId = TimelineId(1);
    const LIMIT: Duration = Duration::from_secs(30);

    fn directory(test: &str) -> PathBuf {
        let name = format!("coppice-logs-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _there = fs::remove_dir_all(&path);
        path
    }

    fn text(logs: &LogFiles, timeline: TimelineId) -> String {
        logs.flush(LIMIT);
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        logs.0.paths(timeline).map(read).concat()
    }

    /// The lines that the notices of a text speak of.
    fn missing(text: &str) -> usize {
        let notices = text.lines().filter_map(|line| line.strip_prefix("coppice: "));
        notices.map(|notice| notice.split(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }

    #[test]
    fn two_files_have_the_newest_lines_and_no_more_than_a_mebibyte() {
        let path = directory("rotate");
        let logs = LogFiles::open(path.clone(), |_| true).unwrap();
        let (sink, mut most) = (logs.sink(ONE), 0);
        for n in 0..40_000 {
            sink.push(&format!("line {n} {}", "x".repeat(n % 97)), 0);
            if n % 500 == 0 {
                most = most.max(text(&logs, ONE).len());
            }
        }
        assert!((900 << 10..=1 << 20).contains(&most), "{most}");
        let text = text(&logs, ONE);
        let sizes = logs.0.paths(ONE).map(|path| fs::metadata(path).unwrap().len());
        assert!(sizes.iter().all(|size| *size <= FILE_BYTES as u64), "{sizes:?}");
        assert!(sizes[0] > FILE_BYTES as u64 - 200, "{sizes:?}");
        let numbers: Vec<usize> =
            text.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        assert_eq!(numbers.last(), Some(&39_999));
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a line is missing");
        assert!(
            logs.0
                .paths(ONE)
                .iter()
                .all(|path| { fs::metadata(path).unwrap().permissions().mode() & 0o777 == 0o600 })
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_busy_disk_costs_the_oldest_waiting_lines_and_the_log_says_how_many() {
        let path = directory("busy");
        let logs = LogFiles::open(path.clone(), |_| true).unwrap();
        let (sink, other) = (logs.sink(ONE), logs.sink(TimelineId(2)));
        let busy = lock(&logs.0.disk);
        for n in 0..20_000 {
            sink.push(&format!("line {n} {}", "x".repeat(90)), 0);
        }
        other.push("of another branch", 0);
        let waiting = lock(&logs.0.queue).waiting[&ONE].text.capacity();
        assert!(waiting <= 2 * WAITING_BYTES, "{waiting}");
        drop(busy);
        let text = text(&logs, ONE);
        assert!(text.lines().last().unwrap().starts_with("line 19999 "));
        let there = text.lines().filter(|line| line.starts_with("line ")).count();
        assert!(missing(&text) > 10_000, "{}", missing(&text));
        assert_eq!(there + missing(&text), 20_000);
        assert_eq!(super::tests::text(&logs, TimelineId(2)), "of another branch\n");
        assert_eq!(lock(&logs.0.queue).waiting[&ONE].text.capacity(), 0, "memory is kept");
        drop((sink, other));
        assert!(lock(&logs.0.queue).waiting.is_empty());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn lines_that_the_disk_refuses_are_counted_and_later_ones_are_written() {
        let path = directory("refused");
        let logs = LogFiles::open(path.clone(), |_| true).unwrap();
        let sink = logs.sink(ONE);
        fs::remove_dir(&path).unwrap();
        for n in 0..3 {
            sink.push(&n.to_string(), 0);
            logs.flush(LIMIT);
        }
        fs::create_dir(&path).unwrap();
        sink.push("back", 0);
        let text = text(&logs, ONE);
        assert_eq!((missing(&text), text.lines().last()), (3, Some("back")), "{text}");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_removed_log_stays_removed_and_so_do_those_that_nobody_wants() {
        let path = directory("removed");
        let logs = LogFiles::open(path.clone(), |_| true).unwrap();
        let sink = logs.sink(ONE);
        for timeline in [ONE, TimelineId(2), TimelineId(0xab)] {
            logs.sink(timeline).push("said", 0);
        }
        assert_eq!(text(&logs, ONE), "said\n");
        logs.remove(ONE);
        sink.push("late", 0);
        logs.flush(LIMIT);
        assert!(!logs.0.paths(ONE).iter().any(|path| path.exists()));
        drop(sink);
        drop(logs);
        fs::write(path.join("000000ab.log.1"), "older\n").unwrap();
        fs::write(path.join("note.log"), "of somebody else").unwrap();
        let logs = LogFiles::open(path.clone(), |timeline| timeline == TimelineId(2)).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["00000002.log", "note.log"]);
        logs.sink(TimelineId(2)).push("again", 0);
        assert_eq!(text(&logs, TimelineId(2)), "said\nagain\n");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_long_line_is_cut_and_a_cut_file_is_mended() {
        let path = directory("long");
        let logs = LogFiles::open(path.clone(), |_| true).unwrap();
        let sink = logs.sink(ONE);
        sink.push(&"ä".repeat(LOGGED_LINE_BYTES), 10);
        let cut = text(&logs, ONE);
        let missing = LOGGED_LINE_BYTES + 10;
        let expected = format!("… (coppice: {missing} more bytes were cut off)\n");
        assert!(cut.starts_with("ää") && cut.ends_with(&expected), "{}", &cut[cut.len() - 60..]);
        assert!(cut.len() < LOGGED_LINE_BYTES + 100);
        fs::write(&logs.0.paths(ONE)[1], "half a li").unwrap();
        sink.push("next", 0);
        assert_eq!(text(&logs, ONE), "half a li\nnext\n");
        fs::remove_dir_all(path).unwrap();
    }
}
