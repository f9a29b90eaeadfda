//! A sync that fails, a server that is killed, and a full disk.

use super::{contents, make, new_store, open, sync, tree};
use crate::storage::disk::Disk;
use crate::storage::disk::sim::{SimDisk, Unsynced};
use crate::storage::page::{PAGE_BYTES, ROOT_INODE, TimelineId};
use crate::storage::store::Store;

/// A store with a file `f` that is synced.
fn with_a_file() -> (SimDisk, Store, TimelineId) {
    let disk = SimDisk::default();
    let (store, id) = new_store(&disk);
    let main = tree(&store, id);
    let inode = make(&main, b"f");
    main.write(inode, 0, b"kept").unwrap();
    sync(&main, inode).unwrap();
    drop(main);
    (disk, store, id)
}

#[test]
fn a_failed_sync_latches_until_the_timeline_is_opened_anew() {
    let (disk, store, id) = with_a_file();
    let main = tree(&store, id);
    let inode = main.lookup(ROOT_INODE, b"f").unwrap().0;
    main.write(inode, 0, b"lost").unwrap();
    disk.fail_after(Some(0));
    assert!(sync(&main, inode).is_err());
    disk.fail_after(None);
    assert!(main.write(inode, 0, b"more").is_err(), "a latched timeline took a write");
    assert!(sync(&main, inode).is_err(), "a latched timeline took a sync");
    assert_eq!(store.timeline(id).unwrap().latched().unwrap().code, "io");
    drop(main);
    store.reopen_if_latched(id).unwrap();
    let main = tree(&store, id);
    main.write(inode, 0, b"more").unwrap();
    sync(&main, inode).unwrap();
    assert_eq!(contents(&main, b"f").unwrap(), b"more");
}

#[test]
fn what_a_killed_server_leaves_is_durable_once_it_was_seen() {
    for sync_fails in [false, true] {
        let (disk, store, id) = with_a_file();
        let main = tree(&store, id);
        let inode = main.lookup(ROOT_INODE, b"f").unwrap().0;
        main.write(inode, 0, b"more").unwrap();
        if sync_fails {
            disk.fail_once_after(0);
            assert!(sync(&main, inode).is_err());
        }
        let killed = disk.after_kill();
        let seen = contents(&tree(&open(&killed).unwrap(), id), b"f").unwrap();
        let store = open(&killed.after_power_loss(Unsynced::Lost)).unwrap();
        assert_eq!(contents(&tree(&store, id), b"f").unwrap(), seen, "a sync failed: {sync_fails}");
    }
}

#[test]
fn a_killed_server_may_lose_the_end_of_what_it_wrote() {
    let (disk, store, id) = with_a_file();
    let main = tree(&store, id);
    let inode = main.lookup(ROOT_INODE, b"f").unwrap().0;
    let (mut newest, mut older) = (0, 0);
    for round in 10..60u8 {
        main.write(inode, 0, &[round; 4]).unwrap();
        let found = contents(&tree(&open(&disk.after_kill()).unwrap(), id), b"f").unwrap();
        assert!(found == b"kept" || found[0] <= round && found == [found[0]; 4], "{found:?}");
        if found == [round; 4] { newest += 1 } else { older += 1 }
    }
    assert!(newest > 0 && older > 0, "{newest} {older}");
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let (disk, store, id) = with_a_file();
    let main = tree(&store, id);
    let inode = main.lookup(ROOT_INODE, b"f").unwrap().0;
    let used = disk.total_bytes().unwrap() - disk.free_bytes().unwrap();
    disk.set_capacity_bytes(Some(used + 1000));
    let error = main.write(inode, 0, &[9; 3 * PAGE_BYTES]).unwrap_err();
    assert_eq!(error.errno(), nix::errno::Errno::ENOSPC);
    drop(main);
    disk.set_capacity_bytes(None);
    store.reopen_if_latched(id).unwrap();
    let main = tree(&store, id);
    assert_eq!(contents(&main, b"f").unwrap(), b"kept");
    main.write(inode, 0, b"more").unwrap();
    sync(&main, inode).unwrap();
}
