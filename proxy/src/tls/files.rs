//! Files of certificates and keys: written whole or not at all, and errors that name them.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file into a directory so that it is either not there or whole, also after a power cut.
pub(super) fn publish(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let write = || {
        // Removed first because an existing file would keep its mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The process may have a mask that takes more away.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    write().map_err(|error| named("write", path, &error))
}

/// Makes a directory, unless it is there, that a power cut does not take away.
pub(super) fn make_directory(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let made = fs::create_dir_all(dir).and_then(|()| sync_parent(dir));
    made.map_err(|error| named("make", dir, &error))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// An error that says what could not be done with a file.
pub(super) fn named(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {doing} {}: {error}", path.display()))
}

/// An error about what is in a file.
pub(super) fn unusable(path: &Path, what: &str, error: &dyn Display) -> io::Error {
    let text = format!("cannot use {} as {what}: {error}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}
