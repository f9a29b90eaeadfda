//! File systems of other kinds, each on a loop device over a file, for comparisons with what they
//! offer.

use nix::sys::statvfs::statvfs;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Bytes written at a time to the file under the device.
const CHUNK_BYTES: usize = 4 << 20;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// With snapshots of subvolumes.
    Btrfs,
    /// With copies of files that share their blocks.
    Xfs,
    /// With neither: it shows what the loop device costs.
    Ext4,
}

impl FileSystem {
    /// The name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }

    /// Fails if this machine does not have the program that makes one.
    fn require(self) -> Result<(), String> {
        run(Command::new(self.program()).arg("-V")).map(drop)
    }

    fn program(self) -> String {
        format!("mkfs.{}", self.name())
    }

    /// Makes one. The blocks of a device that is told to discard them would have to be found again
    /// at the first write.
    fn make(self, device: &str) -> Result<(), String> {
        let options: &[&str] = match self {
            Self::Btrfs => &["-q", "-f", "--nodiscard"],
            Self::Xfs => &["-q", "-f", "-K", "-m", "reflink=1"],
            Self::Ext4 => &["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
        };
        run(Command::new(self.program()).args(options).arg(device)).map(drop)
    }
}

/// A mounted file system. Dropped, it is unmounted, and its device and file go.
pub struct LoopVolume {
    image: PathBuf,
    device: Option<String>,
    mountpoint: PathBuf,
    options: String,
}

impl LoopVolume {
    /// Makes a file system of so many bytes, whose file and mountpoint are in `directory`, with
    /// more mount options if there are any. An error says why this machine cannot.
    ///
    /// The file is written out, so that writes to the device allocate nothing, and the device
    /// passes reads and writes on without a cache of its own. Both make the others faster.
    pub fn make(
        kind: FileSystem,
        directory: &Path,
        bytes: u64,
        options: &str,
    ) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can mount it".to_owned());
        }
        kind.require()?;
        let image = directory.join(format!("{}.img", kind.name()));
        let mountpoint = directory.join(kind.name());
        let options = ["noatime,nodiscard", options].join(",");
        let options = options.trim_end_matches(',').to_owned();
        let mut volume = Self { image, device: None, mountpoint, options };
        write_out(&volume.image, bytes)?;
        fs::create_dir(&volume.mountpoint).map_err(|e| format!("make its mountpoint: {e}"))?;
        let mut attach = Command::new("losetup");
        attach.args(["--direct-io=on", "--find", "--show"]).arg(&volume.image);
        volume.device = Some(run(&mut attach)?.trim().to_owned());
        kind.make(volume.device())?;
        volume.mount()?;
        Ok(volume)
    }

    fn device(&self) -> &str {
        self.device.as_deref().unwrap_or_default()
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount")
            .args(["-o", &self.options])
            .arg(self.device())
            .arg(&self.mountpoint))
        .map(drop)
    }

    fn unmount(&self) -> Result<(), String> {
        // A process that has just ended can hold it for a moment longer.
        let mut outcome = Ok(());
        for _ in 0..50 {
            outcome = run(Command::new("umount").arg(&self.mountpoint)).map(drop);
            if outcome.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        outcome
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.mountpoint
    }

    /// Bytes in use. Nothing may have a file of it open: it is mounted anew, so that nothing is put
    /// off or held in advance.
    pub fn used_bytes(&self) -> u64 {
        self.unmount().and_then(|()| self.mount()).expect("mount the volume anew");
        let space = statvfs(&self.mountpoint).expect("ask for the space of the volume");
        (space.blocks() - space.blocks_free()) * space.fragment_size()
    }
}

impl Drop for LoopVolume {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        if mounts
            .lines()
            .any(|line| line.split(' ').nth(1).map(Path::new) == Some(&self.mountpoint))
            && let Err(error) = self.unmount()
        {
            eprintln!("{error}: it is unmounted when nothing uses it any more");
            let _ = Command::new("umount").arg("--lazy").arg(&self.mountpoint).status();
        }
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.mountpoint);
    }
}

/// Runs a command; what it printed, or what went wrong.
pub fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn write_out(path: &Path, bytes: u64) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let chunk = vec![0; CHUNK_BYTES];
        for _ in 0..bytes.div_ceil(CHUNK_BYTES as u64) {
            file.write_all(&chunk)?;
        }
        file.sync_all()
    };
    write().map_err(|e| format!("write {bytes} bytes to {}: {e}", path.display()))
}
