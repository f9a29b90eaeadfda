//! The mount is a file system like any other: each operation, and thousands of random ones beside a
//! local directory.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::mirror::{Mirror, allocate};
use coppice::volume::{IoUring, Volume};
use coppice::{Directory, eventually, mapped};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Drops what the kernel has of a file, so that the store has to answer.
fn forget(file: &File) {
    file.sync_all().unwrap();
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .unwrap();
}

fn contents(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    file.read_exact_at(&mut buffer, offset).unwrap();
    buffer
}

#[test]
fn a_file_that_shrank_and_grew_shows_no_old_bytes() {
    let volume = Volume::new();
    let file = open(&volume.root().join("file"));
    file.write_all_at(&[7; 50_000], 0).unwrap();
    forget(&file);
    file.set_len(10_001).unwrap();
    file.set_len(40_000).unwrap();
    forget(&file);
    assert_eq!(contents(&file, 0, 10_001), [7; 10_001]);
    assert_eq!(contents(&file, 10_001, 29_999), [0; 29_999]);
    file.set_len(0).unwrap();
    file.write_all_at(b"x", 20_000).unwrap();
    forget(&file);
    assert_eq!(contents(&file, 0, 20_000), [0; 20_000]);
    assert_eq!(file.metadata().unwrap().len(), 20_001);
}

#[test]
fn files_are_sparse_appended_to_and_sought_from_their_end() {
    const FAR: u64 = 5 << 40;
    let volume = Volume::new();
    let mut file = open(&volume.root().join("sparse"));
    for (offset, byte) in [(FAR, 3), (12_345, 1), (8_191, 2)] {
        file.write_all_at(&[byte; 3], offset).unwrap();
    }
    forget(&file);
    assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), FAR);
    let mut end = Vec::new();
    file.read_to_end(&mut end).unwrap();
    assert_eq!(end, [3; 3]);
    assert_eq!(contents(&file, 8_190, 5), [0, 2, 2, 2, 0]);
    assert_eq!(contents(&file, FAR - 1_000_000, 1_000_000), vec![0; 1_000_000]);
    file.set_len(12_346).unwrap();
    let mut append = OpenOptions::new().append(true).open(volume.root().join("sparse")).unwrap();
    append.write_all(b"end").unwrap();
    append.write_all(b"!").unwrap();
    assert_eq!(contents(&file, 12_345, 5), *b"\x01end!");
    // More blocks than are counted. The kernel takes a write before anybody else sees it, so the
    // sync reports it.
    let too_long =
        [file.set_len(1 << 45), file.write_all_at(b"x", 1 << 45).and_then(|()| file.sync_all())];
    for error in too_long {
        assert_eq!(error.unwrap_err().raw_os_error(), Some(nix::libc::EFBIG));
    }
}

#[test]
fn the_kernel_reads_far_ahead_of_a_sequential_reader() {
    let volume = Volume::new();
    let device = fs::metadata(volume.root()).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if OpenOptions::new().write(true).open(&setting).is_ok() {
        assert_eq!(fs::read_to_string(setting).unwrap().trim(), "512");
    } else {
        println!("skipped: {setting} cannot be written to, which takes root");
    }
}

#[test]
fn names_are_given_changed_and_taken() {
    let volume = Volume::new();
    let at = |name: &str| volume.root().join(name);
    fs::write(at("one"), "one").unwrap();
    fs::write(at("two"), "two").unwrap();
    let replaced = open(&at("two"));
    fs::hard_link(at("two"), at("other name")).unwrap();
    assert_eq!(replaced.metadata().unwrap().nlink(), 2);
    fs::rename(at("one"), at("two")).unwrap();
    assert_eq!(fs::read_to_string(at("two")).unwrap(), "one");
    assert_eq!(
        (
            fs::read_to_string(at("other name")).unwrap().as_str(),
            replaced.metadata().unwrap().nlink()
        ),
        ("two", 1)
    );
    fs::remove_file(at("other name")).unwrap();
    // Without a name, but open: the file lives on.
    forget(&replaced);
    replaced.write_all_at(b"still here", 20_000).unwrap();
    forget(&replaced);
    assert_eq!(
        (contents(&replaced, 0, 3), contents(&replaced, 20_000, 10)),
        (b"two".to_vec(), b"still here".to_vec())
    );

    symlink("two", at("link")).unwrap();
    assert_eq!(fs::read_to_string(at("link")).unwrap(), "one");
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("two"));
    for out in ["/etc", "..", "a/../../x"] {
        let error = symlink(out, at("out")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM), "{out}");
    }
    // The same directory by its absolute path is stored so that it holds on every branch.
    symlink(at("two"), at("inside")).unwrap();
    assert_eq!(fs::read_link(at("inside")).unwrap(), Path::new("two"));

    // Nor may a link come to lead out by a move, its own or that of a directory above.
    fs::create_dir_all(at("l/m")).unwrap();
    symlink("../../two", at("l/m/up")).unwrap();
    for (from, to) in [("l/m/up", "up"), ("l/m", "m")] {
        assert_eq!(
            fs::rename(at(from), at(to)).unwrap_err().raw_os_error(),
            Some(nix::libc::EPERM),
            "{from}"
        );
    }
    fs::create_dir(at("n")).unwrap();
    fs::rename(at("l/m"), at("n/m")).unwrap();
    assert_eq!(fs::read_to_string(at("n/m/up")).unwrap(), "one");

    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/file"), "deep").unwrap();
    assert_eq!(fs::remove_dir(at("a")).unwrap_err().raw_os_error(), Some(nix::libc::ENOTEMPTY));
    fs::rename(at("a"), at("c")).unwrap();
    assert_eq!(fs::read_to_string(at("c/b/file")).unwrap(), "deep");
    let long = "x".repeat(256);
    assert_eq!(File::create(at(&long)).unwrap_err().raw_os_error(), Some(nix::libc::ENAMETOOLONG));
    File::create(at(&long[..255])).unwrap();

    // The two lanes, and two timelines, are different file systems to rename and link.
    fs::create_dir(at("pg_wal")).unwrap();
    let child = volume.fork();
    for elsewhere in [at("pg_wal/two"), child.join("other")] {
        let errors = [fs::rename(at("two"), &elsewhere), fs::hard_link(at("two"), &elsewhere)];
        for error in errors {
            assert_eq!(
                error.unwrap_err().raw_os_error(),
                Some(nix::libc::EXDEV),
                "{}",
                elsewhere.display()
            );
        }
    }
}

#[test]
fn attributes_are_kept() {
    let volume = Volume::new();
    let path = volume.root().join("file");
    let file = open(&path);
    let (modified, owner) = (UNIX_EPOCH + Duration::from_secs(1_000_000_007), (12_345, 54_321));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o2751)).unwrap();
    // Only root may give files away; others can still set the rest.
    let is_root = volume.root().metadata().unwrap().uid() == 0;
    if is_root {
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).unwrap();
    }
    file.set_modified(modified).unwrap();
    file.sync_all().unwrap();
    let check = |volume: &Volume, mode: u32| {
        let found = volume.root().join("file").metadata().unwrap();
        assert_eq!(found.mode() & 0o7777, mode);
        assert_eq!(found.modified().unwrap(), modified);
        assert!(!is_root || (found.uid(), found.gid()) == owner);
    };
    let mode = path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode & 0o777, 0o751);
    check(&volume, mode);
    drop(file);
    let volume = volume.reopen();
    check(&volume, mode);
    let space = nix::sys::statvfs::statvfs(volume.root()).unwrap();
    assert!(space.blocks() > space.blocks_available() && space.blocks_available() > 0, "{space:?}");
    assert_eq!(space.name_max(), 255);
}

#[test]
fn a_directory_is_listed_while_its_files_go() {
    const FILES: usize = 10_000;
    let volume = Volume::new();
    let directory = volume.root().join("many");
    fs::create_dir(&directory).unwrap();
    for nth in 0..FILES {
        File::create(directory.join(nth.to_string())).unwrap();
    }
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name();
        // Each goes as soon as it is seen, and what was not seen yet must still come.
        fs::remove_file(directory.join(&name)).unwrap();
        assert!(seen.insert(name.clone()), "{name:?} came twice");
    }
    assert_eq!(seen.len(), FILES);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    fs::remove_dir(&directory).unwrap();
}

/// The shortest of a few listings of a directory, each by a process that has not read it before.
fn listing_time(directory: &Path, files: usize) -> Duration {
    let list = |nth: usize| {
        // A change of the directory makes the kernel ask again.
        File::create(directory.join(format!("new-{nth}"))).unwrap();
        let began = Instant::now();
        assert_eq!(fs::read_dir(directory).unwrap().count(), files + nth + 1);
        began.elapsed()
    };
    (0..5).map(list).min().unwrap()
}

#[test]
fn a_listing_costs_what_it_lists() {
    const FEW: usize = 8_000;
    const MANY: usize = 4 * FEW;
    let volume = Volume::new();
    let times = [FEW, MANY].map(|files| {
        let directory = volume.root().join(files.to_string());
        fs::create_dir(&directory).unwrap();
        for nth in 0..files {
            File::create(directory.join(nth.to_string())).unwrap();
        }
        listing_time(&directory, files)
    });
    // Four times as many names take four times as long. A quadratic listing takes sixteen times.
    assert!(times[1] < 9 * times[0], "{times:?}");
}

#[test]
fn space_is_allocated_and_holes_are_punched() {
    use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
    let volume = Volume::new();
    let file = open(&volume.root().join("file"));
    allocate(&file, 0, 10, 90_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 90_010);
    assert_eq!(contents(&file, 0, 90_010), vec![0; 90_010]);
    file.write_all_at(&[5; 90_010], 0).unwrap();
    allocate(&file, FALLOC_FL_KEEP_SIZE, 0, 500_000).unwrap();
    allocate(&file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1_000, 60_000).unwrap();
    allocate(&file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 90_000, 60_000).unwrap();
    forget(&file);
    let mut expected = vec![5; 90_010];
    expected[1_000..61_000].fill(0);
    expected[90_000..].fill(0);
    assert!(contents(&file, 0, 90_010) == expected);
    assert_eq!(file.metadata().unwrap().len(), 90_010);
    let error = allocate(&file, FALLOC_FL_ZERO_RANGE, 0, 100).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EOPNOTSUPP));
    let error = allocate(&file, 0, 0, 1 << 44).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "more than the disk has");
}

#[test]
fn a_shared_mapping_reaches_the_store() {
    const LENGTH: usize = 40_000;
    let volume = Volume::new();
    let file = open(&volume.root().join("file"));
    file.write_all_at(&[1; LENGTH], 0).unwrap();
    let change = |bytes: &mut [u8]| {
        assert!(bytes.iter().all(|byte| *byte == 1));
        bytes[20_000..30_000].fill(9);
    };
    mapped::change(&file, 0, LENGTH, change).unwrap();
    drop(file);
    let volume = volume.reopen();
    let found = fs::read(volume.root().join("file")).unwrap();
    let expected = |at: usize| if (20_000..30_000).contains(&at) { 9 } else { 1 };
    assert!(found.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
}

#[test]
fn whoever_looks_at_a_mount_for_a_moment_does_not_keep_it() {
    let volume = Volume::new();
    let looked_at = File::open(volume.root()).unwrap();
    let look = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(looked_at);
    });
    drop(volume.reopen());
    look.join().unwrap();
}

/// Steps, with looks at everything in between.
fn walk(mirrors: &mut [&mut Mirror], steps: usize) {
    for step in 1..=steps {
        mirrors.iter_mut().for_each(|mirror| mirror.step());
        if step % 1000 == 0 {
            mirrors.iter().for_each(|mirror| mirror.compare());
        }
    }
    mirrors.iter().for_each(|mirror| mirror.compare());
}

/// Operations of one piece: 3,000 on the first directory, and then on its children and
/// grandchildren too.
const PIECE: u64 = 3000 + 2 * 1000 + 3 * 500 + 500;

/// Seeds of a piece: one for each mirror.
const PIECE_SEEDS: u64 = 4;

/// A piece that is served over io_uring, where the machine can, and one that is not; after `make
/// filesystem` a million operations, on a volume for each core. Each piece has a seed of its own,
/// which replays it.
#[test]
fn random_operations_do_what_they_do_on_a_local_file_system() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse::<u64>().unwrap())
    };
    let (seed, operations) =
        (number("COPPICE_TEST_SEED", 20), number("COPPICE_TEST_OPERATIONS", 2 * PIECE));
    let (next, pieces) = (AtomicU64::new(0), operations.div_ceil(PIECE));
    let work = || {
        loop {
            let piece = next.fetch_add(1, Ordering::SeqCst);
            if piece >= pieces {
                return;
            }
            let seed = seed + piece * PIECE_SEEDS;
            if let Err(panic) = catch_unwind(|| random_piece(seed, served_for(seed))) {
                eprintln!("replay: COPPICE_TEST_SEED={seed} COPPICE_TEST_OPERATIONS={PIECE}");
                next.store(pieces, Ordering::SeqCst);
                resume_unwind(panic);
            }
            println!("COPPICE_TEST_SEED={seed}: piece {} of {pieces}", piece + 1);
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
}

/// How the volume of a piece is served.
fn served_for(seed: u64) -> IoUring {
    if (seed / PIECE_SEEDS).is_multiple_of(2) { IoUring::Off } else { IoUring::On }
}

fn random_piece(seed: u64, io_uring: IoUring) {
    let local = [Directory::new(), Directory::new(), Directory::new()];
    let volume = Volume::served(io_uring);
    let mut parent = Mirror::new(volume.root(), local[0].path(), seed);
    walk(&mut [&mut parent], 3000);
    // The child sees what was there at the fork, whatever the two do from then on.
    parent.sync();
    let child_root = volume.fork();
    let mut child = parent.fork(&child_root, local[1].path(), seed + 1);
    child.compare();
    walk(&mut [&mut parent, &mut child], 1000);
    child.sync();
    // What was synced is there after a crash.
    parent.sync();
    let image = volume.crash_image(&[]);
    Mirror::of(image.root(), local[0].path(), seed).compare();
    drop(image);
    // A second generation, of a parent that has both its own and what it inherited.
    parent.sync();
    let mut late = parent.fork(&volume.fork(), local[2].path(), seed + 2);
    walk(&mut [&mut parent, &mut child, &mut late], 500);
    [&mut parent, &mut child, &mut late].into_iter().for_each(Mirror::close);
    let volume = volume.reopen();
    let mut parent = Mirror::of(volume.root(), local[0].path(), seed + 3);
    parent.compare();
    walk(&mut [&mut parent], 500);
    parent.close();
    let volume = volume.reopen();
    Mirror::of(volume.root(), local[0].path(), seed).compare();
}

#[test]
fn what_nobody_uses_is_sealed_and_keeps_no_file_open() {
    let volume = Volume::new();
    let at = |name: &str| volume.root().join(name);
    let contents: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::create_dir(at("pg_wal")).unwrap();
    for name in ["data", "pg_wal/1"] {
        fs::write(at(name), &contents).unwrap();
    }
    let child = volume.fork();
    fs::write(child.join("own"), &contents[..100_000]).unwrap();
    for round in 0..3 {
        assert_eq!(volume.close_idle(), [] as [PathBuf; 0], "round {round}");
        assert!(!volume.root().join("data").exists(), "detached");
        volume.attach();
        for name in ["data", "pg_wal/1"] {
            assert!(fs::read(at(name)).unwrap() == contents, "{name}, round {round}");
        }
        fs::write(at("data"), &contents).unwrap();
    }
    let volume = volume.reopen();
    assert!(fs::read(volume.root().join("data")).unwrap() == contents);
}

#[test]
fn what_was_synced_survives_a_crash() {
    let volume = Volume::new();
    for directory in ["pg_wal", "base"] {
        fs::create_dir(volume.root().join(directory)).unwrap();
    }
    let synced: Vec<(&str, Vec<u8>)> = ["base/1", "base/2", "pg_wal/1"]
        .into_iter()
        .enumerate()
        .map(|(nth, name)| {
            let bytes =
                (0..100_000 + nth).map(|at| u8::try_from(at * (nth + 1) % 251).unwrap()).collect();
            (name, bytes)
        })
        .collect();
    for (name, bytes) in &synced {
        let file = open(&volume.root().join(name));
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
    }
    fs::rename(volume.root().join("base/2"), volume.root().join("base/renamed")).unwrap();
    File::open(volume.root()).unwrap().sync_all().unwrap();
    let length_then = volume.data_lane();
    assert!(length_then.iter().any(|(_, length)| *length > 200_000), "{length_then:?}");

    // Changes that nobody synced: they may be there or not, but whole and in order.
    // The log is cut within the first of them: its end is that of a block.
    fs::write(volume.root().join("base/first"), [3; 20_000]).unwrap();
    fs::write(volume.root().join("base/unsynced"), [1; 20_000]).unwrap();
    fs::remove_file(volume.root().join("base/1")).unwrap();
    // Enough for what comes before it to be on its way to the disk.
    fs::write(volume.root().join("base/more"), vec![2; 3 << 20]).unwrap();
    let total = |files: &[(String, u64)]| files.iter().map(|(_, length)| length).sum::<u64>();
    eventually("the log grows", || total(&volume.data_lane()) > total(&length_then) + (2 << 20));
    for (cut, removed) in [(&[][..], true), (&length_then[..], false)] {
        let image = volume.crash_image(cut);
        let there = |name: &str| fs::read(image.root().join(name));
        assert!(there("base/renamed").unwrap() == synced[1].1);
        assert!(there("pg_wal/1").unwrap() == synced[2].1);
        assert!(!image.root().join("base/2").exists());
        assert_eq!(there("base/1").is_err(), removed, "removed behind the last sync");
        if !removed {
            assert!(there("base/1").unwrap() == synced[0].1);
            assert!(!image.root().join("base/unsynced").exists());
        }
        // And work goes on there.
        fs::write(image.root().join("base/new"), "new").unwrap();
        let image = image.reopen();
        assert_eq!(fs::read(image.root().join("base/new")).unwrap(), b"new");
    }
    // The original did not notice.
    assert_eq!(fs::read(volume.root().join("base/unsynced")).unwrap(), [1; 20_000]);
}
