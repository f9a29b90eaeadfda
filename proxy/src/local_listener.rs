//! The Unix socket for clients on the same machine.
//!
//! Never removes a socket on which a process listens, neither at the start nor at the end. Never
//! changes a directory that was there before.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};

/// The permission of everybody to write to a directory, and the bit that lets each user remove only
/// files of their own.
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// A Unix socket for clients, removed when dropped.
pub struct LocalListener {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

impl LocalListener {
    /// Makes the socket by which Postgres clients find `port` in a directory (`psql -h DIRECTORY -p
    /// PORT`). Every user of the machine may use it, as Postgres's own; they give a password.
    /// Replaces a socket on which no process listens any more.
    pub async fn open(directory: &Path, port: u16) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        refuse_foreign(directory)?;
        let path = directory.join(format!(".s.PGSQL.{port}"));
        match UnixStream::connect(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(&path)?
            }
            _ => {
                let text = format!(
                    "{} is in use: another server or proxy has its socket there",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        let identity = identity(&fs::symlink_metadata(&path)?);
        Ok(Self { listener, path, identity })
    }
}

/// A user who could put another file in the place of the socket could have this process change the
/// permissions of any file.
fn refuse_foreign(directory: &Path) -> io::Result<()> {
    let found = fs::metadata(directory)?;
    let ours = found.uid() == geteuid().as_raw() || found.uid() == 0;
    if ours && (found.mode() & OTHERS_WRITE == 0 || found.mode() & STICKY != 0) {
        return Ok(());
    }
    let text = "the directory belongs to another user, or others may remove what is in it; choose \
                another one";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the proxy's socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir()
                .join(format!("coppice-listener-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_socket_in_use_is_left_alone_and_a_dead_one_is_replaced() {
        let scratch = Scratch::new("use");
        let directory = scratch.0.join("made");
        let path = directory.join(".s.PGSQL.5433");
        let first = LocalListener::open(&directory, 5433).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o777);
        let second = LocalListener::open(&directory, 5433).await.err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(first);
        assert!(!path.exists());

        // A server that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let third = LocalListener::open(&directory, 5433).await.unwrap();
        fs::remove_file(&path).unwrap();
        let another = LocalListener::open(&directory, 5433).await.unwrap();
        drop(third);
        assert!(UnixStream::connect(&path).await.is_ok(), "the socket of another was removed");
        drop(another);
    }

    #[tokio::test]
    async fn directories_are_not_changed_and_those_of_others_refused() {
        let scratch = Scratch::new("mode");
        for (mode, works) in [(0o700, true), (0o1777, true), (0o777, false)] {
            fs::set_permissions(&scratch.0, Permissions::from_mode(mode)).unwrap();
            assert_eq!(LocalListener::open(&scratch.0, 5433).await.is_ok(), works, "{mode:o}");
            assert_eq!(fs::metadata(&scratch.0).unwrap().mode() & 0o7777, mode);
        }
    }
}
