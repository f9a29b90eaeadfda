//! Opens `/dev/fuse` and mounts it: with the system call if this process may, else through
//! `fusermount3`, as users have to.

use crate::error::{Error, Result};
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Name of the mount in the system's list.
const NAME: &str = "coppice";

/// How long a process may still use the mount while the server unmounts it: `df` or a monitor of
/// the machine does for a moment.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts.
const STEP: Duration = Duration::from_millis(10);

/// A mount. Dropping the value unmounts it.
pub(super) struct Mounted {
    at: PathBuf,
    /// Whether there is nothing left to unmount.
    left: bool,
}

impl Mounted {
    /// Where the mount is.
    pub(super) fn at(&self) -> &Path {
        &self.at
    }

    /// Unmounts. If a process still uses the mount after some seconds, the mount goes from the
    /// system's list, and stays for that process. When the mount `is_gone`, somebody else has
    /// unmounted it, and another mount may be in its place; this leaves that one alone.
    pub(super) fn unmount(&mut self, is_gone: impl Fn() -> bool) -> Result<()> {
        self.left = true;
        let deadline = Instant::now() + PATIENCE;
        while !is_gone() {
            match unmount(&self.at) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    std::thread::sleep(STEP);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tracing::warn!(
                        mount = %self.at.display(),
                        "processes still use the mount; `fuser -vm` on it lists them"
                    );
                    let gone = unmount_lazily(&self.at);
                    return gone.then_some(()).ok_or_else(|| cannot_unmount(&self.at, &error));
                }
                outcome => return outcome.map_err(|error| cannot_unmount(&self.at, &error)),
            }
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.left && !unmount_lazily(&self.at) {
            tracing::warn!(mount = %self.at.display(), "cannot be unmounted");
        }
    }
}

/// Mounts at `mountpoint`, for everybody or for the user of this process. The kernel checks
/// permissions.
pub(super) fn mount_at(mountpoint: &Path, everybody: bool) -> io::Result<(File, Mounted)> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let options = format!(
        "fd={},rootmode={:o},user_id={uid},group_id={gid},default_permissions{}",
        device.as_raw_fd(),
        fs::metadata(mountpoint)?.mode(),
        if everybody { ",allow_other" } else { "" }
    );
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    let device = match mount(Some(NAME), mountpoint, Some("fuse"), flags, Some(options.as_str())) {
        Ok(()) => device,
        Err(Errno::EPERM) => mount_as_user(mountpoint, everybody)?,
        Err(errno) => return Err(errno.into()),
    };
    Ok((device, Mounted { at: mountpoint.to_owned(), left: false }))
}

/// `fusermount3` mounts, and sends the file that it opened over the socket that is its standard
/// input.
fn mount_as_user(mountpoint: &Path, everybody: bool) -> io::Result<File> {
    let (ours, its) = UnixStream::pair()?;
    let options = format!("fsname={NAME},subtype={NAME},default_permissions,noatime,nosuid,nodev");
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(if everybody { options + ",allow_other" } else { options });
    command.arg("--").arg(mountpoint).env("_FUSE_COMMFD", "0");
    let child =
        command.stdin(OwnedFd::from(its)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // The command, which still has the other end, would keep the socket open.
    drop(command);
    let received = sys::receive_file(&ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn unmount(mountpoint: &Path) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(umount(mountpoint)?);
    }
    let mut command = Command::new("fusermount3");
    let output = command.arg("-u").arg("--").arg(mountpoint).env("LC_ALL", "C").output();
    let output = output.map_err(|e| io::Error::new(e.kind(), format!("run fusermount3: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let busy = said.ends_with("Device or resource busy");
    let kind = if busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, said))
}

fn cannot_unmount(mountpoint: &Path, error: &io::Error) -> Error {
    let at = mountpoint.display();
    Error::unavailable("unmount_failed", format!("cannot unmount {at}: {error}"))
}

/// Unmounts lazily, also a mount in use; false if that is not possible.
pub(super) fn unmount_lazily(mountpoint: &Path) -> bool {
    if umount2(mountpoint, MntFlags::MNT_DETACH).is_ok() {
        return true;
    }
    let status = Command::new("fusermount3").arg("-uz").arg(mountpoint).status();
    status.is_ok_and(|status| status.success())
}
