//! The first steps: the data directory, the listeners, and a new store's first cluster.

use crate::branches::Branches;
use crate::compute::{Installation, OsUser, bootstrap};
use crate::config::Layout;
use crate::error::{Error, Result};
use crate::fs::connection;
use crate::fs::mount::Mount;
use crate::secret::random_bytes;
use crate::storage::clock::whole_ms;
use crate::storage::disk::local::LocalDisk;
use crate::storage::store::{STORE_DIRECTORIES, Store};
use crate::tasks::blocking;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// Name of the branch that a first start makes.
const FIRST_BRANCH: &str = "main";

/// How long a killed server may take to let go of its data once its mounts are ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_STEP: Duration = Duration::from_millis(20);

/// Makes `path` unless it is there.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|e| Error::io(format!("make the directory {}", path.display()), &e))
}

/// Takes the data directory for this process as long as the file is open.
pub fn lock_data(data: &Path) -> Result<File> {
    // Others may pass through to the sockets and the mount, but not look.
    make_directory(data, 0o711)?;
    let Layout { lock: path, connections, .. } = Layout::of(data);
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open.map_err(|e| Error::io(format!("open {}", path.display()), &e))?;
    let lock = || lock_file(data, file.try_clone().map_err(|e| Error::io("lock the data", &e))?);
    let mut locked = lock();
    if locked.is_err() {
        // A killed server may be unable to end, because it waits for its own mounts.
        let ended = connection::abort_leftovers(&connections)
            .map_err(|e| Error::io("end the mounts of a killed server", &e))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        while ended > 0 && locked.is_err() && Instant::now() < deadline {
            std::thread::sleep(LOCK_STEP);
            locked = lock();
        }
    }
    locked
}

/// Takes a data directory that a server has used, without adding to it. None if the lock's file is
/// missing, as in a copy of the store alone.
pub fn lock_data_if_used(data: &Path) -> Result<Option<File>> {
    let path = Layout::of(data).lock;
    match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("open {}", path.display()), &e)),
        Ok(file) => lock_file(data, file).map(Some),
    }
}

fn lock_file(data: &Path, file: File) -> Result<File> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::conflict(
            "data_in_use",
            format!(
                "{} is in use by another server: stop it, or choose another --data",
                data.display()
            ),
        )),
        Err(fs::TryLockError::Error(e)) => {
            Err(Error::io(format!("lock {}", Layout::of(data).lock.display()), &e))
        }
    }
}

/// A number that no other store has.
pub fn random_number() -> Result<u64> {
    random_bytes().map(u64::from_le_bytes)
}

/// Opens the directory of the page store below `data`.
pub fn open_disk(data: &Path) -> Result<Arc<LocalDisk>> {
    let path = Layout::of(data).store;
    make_directory(&path, 0o700)?;
    let disk = LocalDisk::open(&path, &STORE_DIRECTORIES);
    Ok(Arc::new(disk.map_err(|e| Error::io(format!("open the store {}", path.display()), &e))?))
}

/// Opens the directory of the page store below `data` to look at it.
pub fn open_disk_read_only(data: &Path) -> Result<Arc<LocalDisk>> {
    let path = Layout::of(data).store;
    let disk = LocalDisk::open_read_only(&path);
    Ok(Arc::new(disk.map_err(|e| Error::io(format!("open the store {}", path.display()), &e))?))
}

pub(super) async fn bind(address: SocketAddr, what: &str, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => Error::conflict(
            "port_taken",
            format!(
                "the {what} cannot listen on {address}: another program does; choose another with \
                 {flag}"
            ),
        ),
        _ => Error::io(format!("listen on {address} for the {what} (see {flag})"), &e),
    })
}

/// How connection URLs name the proxy.
pub(super) fn public_address(named: Option<&str>, bound: SocketAddr) -> String {
    let host = if bound.ip().is_unspecified() { "localhost".to_owned() } else { host_text(bound) };
    match named {
        Some(address) if address.contains(':') => address.to_owned(),
        Some(host) => format!("{host}:{}", bound.port()),
        None => format!("{host}:{}", bound.port()),
    }
}

fn host_text(address: SocketAddr) -> String {
    if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() }
}

/// Makes the first cluster of a new store.
pub(super) async fn first_start(
    (store, mount, branches): (&Arc<Store>, &Arc<Mount>, &Arc<Branches>),
    installation: &Installation,
    user: &OsUser,
    run: &Path,
) -> Result<()> {
    let began = Instant::now();
    tracing::info!(
        branch = FIRST_BRANCH, postgres = %installation.version,
        "first start: making a new cluster"
    );
    let timeline = store.create_root()?;
    let data = mount.attach_new(timeline)?;
    let password = bootstrap::initialize(installation, user, &data, run).await?;
    let (filled, mounted) = (Arc::clone(mount), timeline);
    blocking(move || filled.filled(mounted)).await?;
    store.timeline(timeline)?.sync_and_wait()?;
    branches.create_first(FIRST_BRANCH, timeline, password.into()).await?;
    let duration_ms = whole_ms(began.elapsed());
    tracing::info!(branch = FIRST_BRANCH, duration_ms, "first start done");
    Ok(())
}
