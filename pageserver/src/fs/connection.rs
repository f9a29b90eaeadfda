//! The kernel's end of a mount: by which number it is known, and how it is ended by force.
//!
//! A connection ends with the server that serves it, or with its last mount. A copy of the mount in
//! another mount namespace, as containers and services have them, keeps it. A server that was
//! killed while one of its own threads waited for its mount keeps it too, and itself. So a server
//! records its connections, and the next one ends those of a server that is no more.

use crate::sys::mounts::{self, MountLine};
use crate::sys::process::start_time;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{minor, stat};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Where the kernel lists connections, a directory for each number.
const CONTROL: &str = "/sys/fs/fuse/connections";

/// Writes down the connections of the mounts at `places`, which this process serves.
pub(super) fn record(record: &Path, places: &[&Path]) -> io::Result<()> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let started = start_time(own).unwrap_or(0);
    let mut text = format!("{own} {started}\n");
    for place in places {
        text += &format!("{} {}\n", minor(stat(*place)?.st_dev), place.display());
    }
    fs::write(record, text)
}

/// Ends the connections in `record` if the server that served them is no more. How many there were.
pub fn abort_leftovers(record: &Path) -> io::Result<usize> {
    let text = match fs::read_to_string(record) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        read => read?,
    };
    let mut lines = text.lines();
    let server = lines.next().and_then(|line| line.split_once(' '));
    let server = server.and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
    // Of a process that was killed but cannot end, only the number is left.
    if server.is_none_or(|(pid, start): (i32, u64)| start_time(pid) == Some(start)) {
        return Ok(0);
    }
    let mounted = fs::read_to_string("/proc/self/mountinfo")?;
    let mut count = 0;
    for (number, place) in lines.filter_map(|line| line.split_once(' ')) {
        // The kernel may have given the number to another mount since.
        if mounts::parse(&mounted).any(|mount| is_ours(&mount, number, place)) {
            match abort(number.parse().map_err(io::Error::other)?) {
                Ok(()) => count += 1,
                // As a rule the connection has ended with its server, and no right is needed.
                Err(error) => tracing::debug!(place, %error, "a connection is left as it is"),
            }
        }
    }
    Ok(count)
}

/// Whether it is a mount of FUSE with this number at this place.
fn is_ours(mount: &MountLine<'_>, number: &str, place: &str) -> bool {
    mount.kind.starts_with("fuse") && mount.minor == number && mount.at == Path::new(place)
}

/// Ends a connection: all requests of processes fail, and so does whoever serves it.
fn abort(number: u64) -> io::Result<()> {
    let file = format!("{number}/abort");
    match fs::write(Path::new(CONTROL).join(&file), "1") {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    // The list is a file system, which nobody has mounted here.
    let control = ConnectionList::mount()?;
    match fs::write(control.0.join(&file), "1") {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The list of connections, mounted for a moment.
struct ConnectionList(PathBuf);

impl ConnectionList {
    fn mount() -> io::Result<Self> {
        let at = std::env::temp_dir().join(format!("coppice-fuse-{}", std::process::id()));
        fs::create_dir(&at)?;
        let control = Self(at);
        mount(Some("fusectl"), &control.0, Some("fusectl"), MsFlags::empty(), None::<&str>)?;
        Ok(control)
    }
}

impl Drop for ConnectionList {
    fn drop(&mut self) {
        let _there = umount2(&self.0, MntFlags::MNT_DETACH);
        let _empty = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mount_with_that_number_at_that_place_is_ours() {
        let line = "60 23 0:51 / /var/my\\040data/mount rw,nosuid - fuse coppice rw,user_id=0";
        let ours = |line: &str, number, place| {
            mounts::parse(line).any(|mount| is_ours(&mount, number, place))
        };
        assert!(ours(line, "51", "/var/my data/mount"));
        assert!(!ours(line, "5", "/var/my data/mount"));
        assert!(!ours(line, "51", "/var/my data"));
        assert!(!ours(&line.replace("fuse", "ext4"), "51", "/var/my data/mount"));
        assert!(!ours("", "51", "/"));
    }
}
