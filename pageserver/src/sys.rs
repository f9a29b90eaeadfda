//! The one module with unsafe code: what must run between `fork` and `exec`, mapped files,
//! write-out, priorities, and what `/dev/fuse` needs.

pub mod child;
pub mod mounts;
pub mod process;
pub mod uring;

use memmap2::{Advice, MmapMut};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// Maps `length` bytes from `offset` of a file that nobody changes any more.
#[expect(unsafe_code, reason = "a mapped file is memory that others could change")]
pub fn map(
    file: &File,
    offset: u64,
    length: usize,
) -> io::Result<Box<dyn AsRef<[u8]> + Send + Sync>> {
    // SAFETY: only sealed layers are mapped; this process never writes to one again, and the
    // store's directory belongs to it alone. A reader checks what it finds, so other bytes than
    // were written are an error and no more.
    let mapped = unsafe { memmap2::MmapOptions::new().offset(offset).len(length).map(file)? };
    Ok(Box::new(mapped))
}

/// Zeroed memory that no child of this process has for the moment between `fork` and `exec`: the
/// more it shares, the longer a fork takes, and the more pages of ours are copied or let go at
/// their next change.
pub fn memory(length: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(length)?;
    // Where it is refused, starts of children take longer.
    let _refused = memory.advise(Advice::DontFork);
    Ok(memory)
}

/// Writes part of a file to its medium and waits for that, without the flush of the medium and of
/// the file system's journal that a sync brings with it, which others would wait for. Where there
/// is no such call nothing happens.
#[expect(unsafe_code, reason = "there is no safe sync_file_range")]
pub fn write_out(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use nix::libc::{EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESPIPE};
    use nix::libc::{
        SYNC_FILE_RANGE_WAIT_AFTER, SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE,
    };
    let (from, count) = (i64::try_from(offset), i64::try_from(length));
    let (from, count) = (from.map_err(io::Error::other)?, count.map_err(io::Error::other)?);
    let all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: sync_file_range(2) takes four numbers, and the file is open as long as it is
    // borrowed.
    let outcome = unsafe { nix::libc::sync_file_range(file.as_raw_fd(), from, count, all) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if outcome == 0 => Ok(()),
        Some(ENOSYS | EPERM | EINVAL | EOPNOTSUPP | ESPIPE) => Ok(()),
        _ => Err(error),
    }
}

/// Another way to the mount that a file of `/dev/fuse` serves, with a queue of its own.
#[expect(unsafe_code, reason = "there is no safe FUSE_DEV_IOC_CLONE")]
pub fn clone_fuse_device(device: &File) -> io::Result<File> {
    nix::ioctl_read!(ioc_clone, 229, 0, u32);
    let new = File::options().read(true).write(true).open("/dev/fuse")?;
    let mut number = u32::try_from(device.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the call reads the number of an open file.
    unsafe { ioc_clone(new.as_raw_fd(), &raw mut number) }?;
    Ok(new)
}

/// A file that another process sends; `None` if it ends without one.
#[expect(unsafe_code, reason = "a received descriptor is a number")]
pub fn receive_file(socket: &UnixStream) -> io::Result<Option<File>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (mut byte, mut space) = ([0], nix::cmsg_space!(i32));
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let numbers = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(numbers) => numbers.first().copied(),
        _ => None,
    });
    // SAFETY: the system just made this descriptor for us, and nobody else knows of it. There is
    // room for one only.
    Ok(numbers.map(|number| unsafe { File::from_raw_fd(number) }))
}

/// How nice background work is, of at most 19: it gets what others leave, and about a tenth of a
/// core that they want.
const NICENESS: i32 = 10;

thread_local! {
    /// Whether the work of this thread may wait until a core is idle.
    static PATIENT: Cell<bool> = const { Cell::new(false) };
}

/// Lets the calling thread stand back behind others.
#[expect(unsafe_code, reason = "there is no safe setpriority")]
pub fn lower_priority() -> io::Result<()> {
    // SAFETY: setpriority(2) takes three numbers. On Linux, 0 is the calling thread.
    let outcome = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, NICENESS) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether [`when_idle`] waits on this thread. It has no effect without the right to come back from
/// there.
pub fn be_patient(patient: bool) {
    PATIENT.set(patient && may_come_back());
}

/// Does work that computes only, and holds no lock that others want, on whatever core is idle; at
/// once unless the thread is patient.
pub fn when_idle<T>(work: impl FnOnce() -> T) -> T {
    if !PATIENT.get() {
        return work();
    }
    let waits = schedule(nix::libc::SCHED_IDLE);
    let value = work();
    if waits && !schedule(nix::libc::SCHED_OTHER) {
        PATIENT.set(false);
    }
    value
}

#[expect(unsafe_code, reason = "there is no safe sched_setscheduler")]
fn schedule(policy: i32) -> bool {
    let priority = nix::libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler(2) reads the parameter; 0 is the calling thread.
    unsafe { nix::libc::sched_setscheduler(0, policy, &raw const priority) == 0 }
}

/// Whether a thread gets out of the idle policy again, tried once by one that ends then: it takes a
/// capability, or a limit of niceness, and root in a container may have neither.
fn may_come_back() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    let there_and_back = || {
        lower_priority().is_ok()
            && schedule(nix::libc::SCHED_IDLE)
            && schedule(nix::libc::SCHED_OTHER)
    };
    *MAY.get_or_init(|| std::thread::spawn(there_and_back).join().unwrap_or(false))
}
