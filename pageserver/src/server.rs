//! The whole server: wiring, first start, and the order of stopping.
//!
//! Stopping goes from the outside in: no new clients, no Postgres, no mount, and then the store is
//! closed.

use crate::api::{self, App, Metrics, Token};
use crate::branches::{About, Branches};
use crate::compute::{
    ComputeConfig, DataDirectories, Installation, OsUser, Supervisor, bootstrap, leftovers,
};
use crate::config::{
    Config, DETACH_AFTER, Layout, MAX_RUN_DIRECTORY_BYTES, PROXY_GRACE, TICK, VISITS_TICK,
};
use crate::error::{Error, Result};
use crate::fs::mount::{Mount, Places};
use crate::gateway::Gateway;
use crate::import::Imports;
use crate::secret::random_bytes;
use crate::storage::catalog::Update;
use crate::storage::disk::local::LocalDisk;
use crate::storage::page::TimelineId;
use crate::storage::store::{STORE_DIRECTORIES, Store};
use crate::storage::upkeep::{Duty, Limits, Maintenance};
use proxy::Tls;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How often it is said what a server waits for that stops.
const STOP_NEWS: Duration = Duration::from_secs(10);
/// Name of the branch that a first start makes.
const FIRST_BRANCH: &str = "main";

impl DataDirectories for Mount {
    fn open(&self, timeline: TimelineId) -> Result<PathBuf> {
        self.attach(timeline)
    }

    fn received(&self, timeline: TimelineId, name: &str) -> Option<Vec<u8>> {
        self.received_file(timeline, name.as_bytes())
    }

    fn closed(&self, timeline: TimelineId) {
        self.leave(timeline);
    }
}

/// Makes `path` unless it is there.
fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|e| Error::io(format!("make the directory {}", path.display()), &e))
}

/// Takes the data directory for this process as long as the file is open.
pub fn lock_data(data: &Path) -> Result<File> {
    // Others may pass through to the sockets and the mount, but not look.
    make_directory(data, 0o711)?;
    let path = Layout::of(data).lock;
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    lock_file(data, file.map_err(|e| Error::io(format!("open {}", path.display()), &e))?)
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

async fn bind(address: SocketAddr, what: &str, flag: &str) -> Result<TcpListener> {
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

/// What is running, in the order in which it was started.
struct Running {
    store: Arc<Store>,
    mount: Arc<Mount>,
    supervisor: Arc<Supervisor>,
    branches: Arc<Branches>,
    imports: Arc<Imports>,
}

impl Running {
    async fn start(config: &Config, layout: &Layout, proxy_address: String) -> Result<Self> {
        let installation = Installation::find(config.postgres_bin.as_deref())?;
        let user = OsUser::resolve(config.postgres_user.as_deref())?;
        if layout.run.as_os_str().len() > MAX_RUN_DIRECTORY_BYTES {
            let detail = format!(
                "the path of --data is too long: sockets below {} would exceed what Unix allows; \
                 use a shorter one",
                layout.run.display()
            );
            return Err(Error::invalid("data_path_too_long", detail));
        }
        make_directory(&layout.run, 0o711)?;
        leftovers::clean(&layout.run)?;
        let store = Arc::new(Store::open(open_disk(&config.data)?, random_number()?)?);
        store.keep_history(Duration::from_secs(config.history))?;
        let data = config.mount.as_deref().unwrap_or(&layout.mount);
        let mount = Arc::new(Mount::new(
            Arc::clone(&store),
            Places { data, wal: &layout.wal_mount, scratch: &layout.scratch },
            (user.uid, user.gid),
            OsUser::ids_from(config.compute_uids),
            config.io_uring,
        )?);
        let mut computes =
            ComputeConfig::new(installation.clone(), user.clone(), layout.run.clone());
        computes.suspend_after = Duration::from_secs(config.suspend_after);
        computes.max_running = config.max_running.unwrap_or(computes.max_running);
        let supervisor = Supervisor::new(computes, Arc::clone(&mount) as Arc<dyn DataDirectories>)?;
        if store.catalog().with_branches(|branches| branches.is_empty()) {
            first_start(&store, &mount, &installation, &user, &layout.run).await?;
        }
        let about = About { postgres_version: installation.version.clone(), proxy_address };
        let branches =
            Branches::new(Arc::clone(&store), Arc::clone(&mount), Arc::clone(&supervisor), about);
        let imports = Imports::new(installation, user, &layout.run, Arc::clone(&branches) as _)?;
        Ok(Self { store, mount, supervisor, branches, imports })
    }

    /// Stops everything, from the outside in. Each step is tried whatever became of the one before.
    async fn stop(self) -> Result<()> {
        stage("imports", self.imports.stop_all()).await;
        stage("computes of imports", self.supervisor.stop_all()).await;
        let Self { store, mount, .. } = self;
        let unmounted = stage("the mount", blocking(move || mount.unmount())).await;
        stage("the store", blocking(move || store.close())).await.and(unmounted)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Waits for a part of stopping; while that takes long, the log says again and again what is waited
/// for.
async fn stage<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    let (mut work, began) = (std::pin::pin!(work), Instant::now());
    loop {
        match tokio::time::timeout(STOP_NEWS, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => tracing::warn!(what, seconds = began.elapsed().as_secs(), "stopping waits"),
        }
    }
}

async fn first_start(
    store: &Arc<Store>,
    mount: &Arc<Mount>,
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
    let record = Branches::first_record(timeline, password);
    store.publish(Update::default().put(FIRST_BRANCH, record))?;
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(branch = FIRST_BRANCH, %timeline, duration_ms, "branch created");
    Ok(())
}

/// Does background work on threads of its own until told to stop.
fn start_background(
    store: &Arc<Store>,
    mount: &Arc<Mount>,
    limits: Limits,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<std::thread::JoinHandle<()>>> {
    let (ticked, tick_stop) = (Arc::clone(store), Arc::clone(stop));
    let tick = move || {
        while !tick_stop.load(Ordering::Relaxed) {
            ticked.tick();
            std::thread::sleep(TICK);
        }
    };
    let (kept, mount, tidy_stop) = (Arc::clone(store), Arc::clone(mount), Arc::clone(stop));
    let tidy = move || {
        let mut maintenance = Maintenance::new(limits, Duty::Tidy);
        while !tidy_stop.load(Ordering::Relaxed) {
            let more = maintenance.pass(&kept, &tidy_stop);
            mount.release_idle(DETACH_AFTER);
            kept.close_unused();
            if !more {
                std::thread::sleep(TICK);
            }
        }
    };
    let (sealed, stop) = (Arc::clone(store), Arc::clone(stop));
    let seal = move || {
        let mut maintenance = Maintenance::new(limits, Duty::Seal);
        while !stop.load(Ordering::Relaxed) {
            if !maintenance.pass(&sealed, &stop) {
                std::thread::sleep(TICK);
            }
        }
    };
    let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let failed = |e| Error::io("start a thread", &e);
        std::thread::Builder::new().name(name.into()).spawn(work).map_err(failed)
    };
    let behind = |work: Box<dyn FnOnce() + Send>| -> Box<dyn FnOnce() + Send> {
        Box::new(move || {
            if let Err(error) = crate::sys::lower_priority() {
                tracing::warn!(%error, "background work runs at the priority of everything else");
            }
            work();
        })
    };
    Ok(vec![
        start("tick", Box::new(tick))?,
        start("seal", behind(Box::new(seal)))?,
        start("tidy", behind(Box::new(tidy)))?,
    ])
}

fn public_address(config: &Config, bound: SocketAddr) -> String {
    let host = if bound.ip().is_unspecified() { "localhost".to_owned() } else { host_text(bound) };
    match &config.public_address {
        Some(address) if address.contains(':') => address.clone(),
        Some(host) => format!("{host}:{}", bound.port()),
        None => format!("{host}:{}", bound.port()),
    }
}

fn host_text(address: SocketAddr) -> String {
    if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() }
}

fn load_tls(config: &Config, layout: &Layout) -> Result<Tls> {
    let domain = config.domain.as_deref();
    match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Tls::load(cert, key, domain)
            .map_err(|e| Error::io("load the TLS certificate (--tls-cert, --tls-key)", &e)),
        _ => Tls::self_signed(&layout.tls, domain)
            .map_err(|e| Error::io("make a self-signed certificate", &e)),
    }
}

/// Runs the server until `shutdown` is ready, then stops it cleanly.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<()> {
    let data =
        std::path::absolute(&config.data).map_err(|e| Error::io("find the data directory", &e))?;
    let config = Config { data, ..config };
    let layout = Layout::of(&config.data);
    // A session takes two, an open timeline a few.
    proxy::server::raise_file_limit()
        .map_err(|e| Error::io("raise the limit of open files", &e))?;
    let _lock = lock_data(&config.data)?;
    let api_listener = bind(config.api, "API", "--api").await?;
    let proxy_listener = bind(config.proxy, "proxy", "--proxy").await?;
    let proxy_bound =
        proxy_listener.local_addr().map_err(|e| Error::io("read the proxy's address", &e))?;
    let api_bound =
        api_listener.local_addr().map_err(|e| Error::io("read the API's address", &e))?;
    let token = Token::load_or_create(&layout.token)?;
    let tls = load_tls(&config, &layout)?;
    let unix = proxy::LocalDoor::open(&layout.proxy, proxy_bound.port()).await;
    let unix = unix.map_err(|e| {
        Error::io(format!("make the proxy's socket in {}", layout.proxy.display()), &e)
    })?;
    let doors = proxy::Doors { unix: Some(unix), tcp: proxy_listener };
    let switch = proxy::Switch::start().map_err(|e| Error::io("start the proxy's threads", &e))?;
    let running = Running::start(&config, &layout, public_address(&config, proxy_bound)).await?;
    let stop_background = Arc::new(AtomicBool::new(false));
    let limits = Limits {
        max_log_bytes: config.log_limit << 20,
        quiet: Duration::from_secs(config.seal_after),
        max_history_bytes: config.history_limit << 20,
    };
    let background = start_background(&running.store, &running.mount, limits, &stop_background)?;

    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let proxy_metrics = Arc::new(proxy::Metrics::default());
    let app = App {
        branches: Arc::clone(&running.branches),
        imports: Arc::clone(&running.imports),
        token,
        metrics: Arc::new(Metrics::new()),
        proxy: Arc::clone(&proxy_metrics),
    };
    let api =
        tokio::spawn(api::serve(api_listener, api::router(Arc::new(app)), until(stopped.clone())));
    let limits = proxy::Limits { grace: PROXY_GRACE, ..proxy::Limits::default() };
    let gateway = Arc::new(Gateway(Arc::clone(&running.branches)));
    let until_stop = until(stopped);
    let proxy = proxy::run(doors, tls, limits, gateway, proxy_metrics, switch, until_stop);
    let proxy = tokio::spawn(proxy);
    let visited = Arc::clone(&running.branches);
    let visits = tokio::spawn(async move {
        loop {
            tokio::time::sleep(VISITS_TICK).await;
            visited.end_visits().await;
        }
    });
    tracing::info!(api = %api_bound, proxy = %proxy_bound, data = %config.data.display(), "ready");

    shutdown.await;
    tracing::info!("stopping");
    visits.abort();
    stop.send_replace(true);
    // Each client gets the farewell of its own Postgres while the proxy waits for its sessions.
    stage("computes", running.supervisor.stop_all()).await;
    let _ = stage("sessions of the proxy", proxy).await;
    let _ = stage("requests to the API", api).await;
    stop_background.store(true, Ordering::Relaxed);
    let join = move || background.into_iter().for_each(|thread| drop(thread.join()));
    stage("background work", blocking(join)).await;
    running.stop().await?;
    tracing::info!("stopped");
    Ok(())
}
