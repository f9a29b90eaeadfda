//! Tests of files that are written past the page cache.

use super::*;
use crate::storage::disk::Disk;
use crate::storage::disk::buffer::BUFFER_BYTES;
use crate::storage::disk::local::LocalDisk;
use crate::storage::disk::random::Random;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

const FILE_BYTES: usize = 3 << 20;

struct Lab {
    directory: PathBuf,
    disk: LocalDisk,
}

impl Lab {
    /// A file full of what its last life left, beside the test's own program: `/tmp` may have no
    /// direct I/O.
    fn new(test: &str) -> Self {
        let directory = std::env::current_exe()
            .unwrap()
            .with_file_name(format!("direct-{test}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let disk = LocalDisk::open(&directory, &[]).unwrap();
        disk.create("file").unwrap().write_all_at(&[&vec![0xaa; FILE_BYTES]], 0).unwrap();
        Self { directory, disk }
    }

    fn open(&self) -> DirectFile {
        let writers = Writers::start().unwrap();
        DirectFile::open(&self.directory.join("file"), &writers).unwrap().expect("direct I/O")
    }

    /// The file anew, with nothing in it.
    fn create(&self) -> DirectFile {
        self.disk.remove("file").unwrap();
        self.disk.create("file").unwrap();
        let writers = Writers::start().unwrap();
        DirectFile::open_empty(&self.directory.join("file"), &writers).unwrap().expect("direct I/O")
    }

    /// A file whose medium refuses what is written: it may not be written to.
    fn open_refusing(&self) -> DirectFile {
        let path = self.directory.join("file");
        let cached = LocalFile(OpenOptions::new().read(true).write(true).open(&path).unwrap());
        let state =
            Mutex::new(AppendState { filling: Some(Buffer::new()), ..AppendState::default() });
        let direct = File::open(path).unwrap();
        let appended =
            Arc::new(Appended { direct, grows: false, state, writing: Mutex::default() });
        DirectFile { cached, appended, writers: Writers::start().unwrap() }
    }

    /// How the one handle that is open on a file was opened.
    fn flags_of(&self, name: &str) -> i32 {
        let path = self.directory.join(name);
        let of = |handle: std::fs::DirEntry| {
            let info = Path::new("/proc/self/fdinfo").join(handle.file_name());
            (std::fs::read_link(handle.path()).ok()? == path)
                .then(|| std::fs::read_to_string(info).unwrap())
        };
        let infos: Vec<String> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|handle| of(handle.ok()?))
            .collect();
        let [info] = infos.as_slice() else { panic!("{} handles", infos.len()) };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap()
    }

    fn on_disk(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.disk.open("file").unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Writes to a file what it is told, and looks whether it shows that, at once and after each sync.
/// Returns what it holds.
fn follow_a_model(lab: &Lab, file: &DirectFile, seed: u64) -> Vec<u8> {
    let (mut random, mut model, mut synced) = (Random(seed), Vec::<u8>::new(), 0);
    let below =
        |random: &mut Random, bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
    loop {
        let longest = if random.below(20) == 0 { 400_000 } else { 20_000 };
        let parts: Vec<Vec<u8>> = (0..1 + random.below(3))
            .map(|_| vec![u8::try_from(random.below(256)).unwrap(); below(&mut random, longest)])
            .collect();
        if model.len() + parts.iter().map(Vec::len).sum::<usize>() > FILE_BYTES {
            break;
        }
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.write_all_at(&slices, model.len() as u64).unwrap();
        model.extend(parts.concat());
        if random.below(seed % 40 + 3) == 0 {
            file.sync().unwrap();
            synced = model.len();
            assert!(lab.on_disk(synced) == model, "seed {seed}: {synced} bytes synced");
        }
        let from = below(&mut random, model.len() + 1);
        let mut found = vec![0; below(&mut random, model.len() - from + 1)];
        file.read_exact_at(&mut found, from as u64).unwrap();
        assert!(
            found == model[from..from + found.len()],
            "seed {seed}: read {} from {from}",
            found.len()
        );
    }
    assert!(synced > 0 || seed % 40 > 2, "seed {seed} synced nothing");
    file.finish();
    file.sync().unwrap();
    let state = lock(&file.appended.state);
    assert!(
        state.filling.is_none() && state.leaving.is_empty() && lab.on_disk(model.len()) == model
    );
    model
}

#[test]
fn what_was_written_is_read_at_once_and_on_the_disk_after_a_sync() {
    for seed in 0..40 {
        let lab = Lab::new("model");
        let model = follow_a_model(&lab, &lab.open(), seed);
        // Behind the end are zeros up to a whole block, and then what was there before.
        let whole = model.len().next_multiple_of(BLOCK_BYTES);
        let behind = lab.on_disk((whole + BLOCK_BYTES).min(FILE_BYTES));
        assert!(behind[model.len()..whole].iter().all(|byte| *byte == 0));
        assert!(behind[whole..].iter().all(|byte| *byte == 0xaa));
    }
}

#[test]
fn a_file_that_grows_holds_whole_blocks() {
    for seed in 100..140 {
        let lab = Lab::new("grows");
        let model = follow_a_model(&lab, &lab.create(), seed);
        let all = std::fs::read(lab.directory.join("file")).unwrap();
        assert_eq!(all.len(), model.len().next_multiple_of(BLOCK_BYTES), "seed {seed}");
        assert!(all[model.len()..].iter().all(|byte| *byte == 0), "seed {seed}");
    }
}

/// Bytes that change every now and then.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|nth| (nth / 1000).to_le_bytes()[0]).collect()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed().as_secs() < 120, "{what}: not after 120 s");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn full_buffers_are_written_without_a_sync() {
    let lab = Lab::new("behind");
    let file = lab.create();
    let bytes = pattern(FILE_BYTES);
    file.write_all_at(&[&bytes], 0).unwrap();
    let full = bytes.len() / BUFFER_BYTES * BUFFER_BYTES;
    eventually("full buffers are on the disk", || file.len_bytes().unwrap() == full as u64);
    assert!(full > 0 && lab.on_disk(full) == bytes[..full]);
    eventually("nothing is leaving", || lock(&file.appended.state).leaving.is_empty());
    assert!(!lock(&file.appended.state).called, "nobody would be called again");
}

#[test]
fn whoever_catches_up_waits_while_much_is_in_memory() {
    let lab = Lab::new("much");
    let file = lab.create();
    let piece = vec![7; 1 << 20];
    let held = lock(&file.appended.writing);
    std::thread::scope(|scope| {
        for nth in 0..3 * MAX_LEAVING {
            file.write_all_at(&[&piece], (nth * piece.len()) as u64).unwrap();
        }
        let waits = scope.spawn(|| {
            file.catch_up().unwrap();
            assert!(lock(&file.appended.state).leaving.len() <= MAX_LEAVING);
        });
        assert!(lock(&file.appended.state).leaving.len() > MAX_LEAVING);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waits.is_finished());
        drop(held);
    });
    file.sync().unwrap();
    assert!(lab.on_disk(3 * MAX_LEAVING * piece.len()).iter().all(|byte| *byte == 7));
}

/// One appends lines, one syncs and one reads, and the threads of the store write.
fn do_all_at_once(lab: &Lab, file: &DirectFile, lines: usize) {
    let line = |number: usize| format!("{number:>255}\n").into_bytes();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..lines {
                file.write_all_at(&[&line(number)], number as u64 * 256).unwrap();
                file.catch_up().unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                file.sync().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        let mut random = Random(7);
        while !done.load(Ordering::SeqCst) {
            let written = lock(&file.appended.state).filling.as_ref().unwrap().end() / 256;
            if written > 0 {
                // Mostly what is on its way to the disk.
                let near = written.min(1 + (random.below(64) << random.below(12)));
                let number = written - 1 - random.below(near);
                let mut found = vec![0; 256];
                file.read_exact_at(&mut found, number * 256).unwrap();
                assert_eq!(found, line(usize::try_from(number).unwrap()));
            }
        }
    });
    file.sync().unwrap();
    assert!(lab.on_disk(lines * 256) == (0..lines).flat_map(line).collect::<Vec<u8>>());
}

#[test]
fn others_read_and_write_while_a_sync_goes_on() {
    let lab = Lab::new("threads");
    do_all_at_once(&lab, &lab.open(), FILE_BYTES / 256);
    do_all_at_once(&lab, &lab.create(), 12 * FILE_BYTES / 256);
}

#[test]
fn what_never_reached_the_disk_is_forgotten_on_demand() {
    let lab = Lab::new("forget");
    let file = lab.open();
    file.write_all_at(&[&[1; 100]], 0).unwrap();
    file.drop_cache().unwrap();
    let mut found = [0; 100];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [0; 100], "what was there when the file was opened");
    // What was lost may not be taken for written, however late somebody asks.
    assert!(file.sync().is_err());
    assert!(file.write_all_at(&[&[2; 10]], 100).is_err());
}

#[test]
fn a_file_is_filled_past_the_page_cache() {
    let lab = Lab::new("fill");
    let file = lab.disk.create_to_fill("spare").unwrap();
    assert_ne!(lab.flags_of("spare") & nix::libc::O_DIRECT, 0, "it goes through the page cache");
    for offset in (0..4).map(|nth| nth * ZEROS.len() as u64) {
        file.write_all_at(&[ZEROS], offset).unwrap();
    }
    file.sync().unwrap();
    let filled = std::fs::read(lab.directory.join("spare")).unwrap();
    assert_eq!((filled.len(), filled.iter().max()), (4 * ZEROS.len(), Some(&0)));
}

#[test]
fn after_a_failed_write_nothing_is_called_durable() {
    let lab = Lab::new("failed");
    let file = lab.open_refusing();
    file.write_all_at(&[&[1; 100]], 0).unwrap();
    assert!(file.sync().is_err());
    assert!(file.sync().is_err(), "the second time, too");
    file.finish();
    assert!(file.sync().is_err() && file.write_all_at(&[&[2; 10]], 100).is_err());
}

#[test]
fn a_failed_write_behind_everybodys_back_is_told_and_its_bytes_are_still_read() {
    let lab = Lab::new("failed-behind");
    let file = lab.open_refusing();
    let bytes = pattern(BUFFER_BYTES);
    file.write_all_at(&[&bytes], 0).unwrap();
    eventually("it failed", || lock(&file.appended.state).failed.is_some());
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes);
    for error in
        [file.sync().unwrap_err(), file.write_all_at(&[&[2]], bytes.len() as u64).unwrap_err()]
    {
        assert!(error.to_string().starts_with("Bad file descriptor"), "{error}");
    }
}

#[test]
fn what_was_given_up_is_not_written_any_more() {
    for dropped in [false, true] {
        let lab = Lab::new(if dropped { "dropped" } else { "given-up" });
        let file = lab.open();
        let appended = Arc::clone(&file.appended);
        let held = lock(&appended.writing);
        file.write_all_at(&[&vec![1; BUFFER_BYTES]], 0).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| if dropped { drop(file) } else { assert!(file.discard()) });
            std::thread::sleep(std::time::Duration::from_millis(10));
            // Whoever is next in turn: the file may be written first, and never after.
            drop(held);
        });
        let after = lab.on_disk(BUFFER_BYTES);
        assert!(lock(&appended.state).leaving.is_empty());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(lab.on_disk(BUFFER_BYTES) == after);
    }
}

#[test]
fn a_file_that_failed_says_so_when_it_is_given_up() {
    let lab = Lab::new("unsound");
    let file = lab.open_refusing();
    file.write_all_at(&[&[1; 100]], 0).unwrap();
    assert!(file.sync().is_err());
    assert!(!file.discard());
}
