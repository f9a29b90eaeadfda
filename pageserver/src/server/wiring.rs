//! The parts of the server, put together, and the order in which they stop.

use super::start;
use crate::api::{App, Metrics};
use crate::branches::{About, Branches};
use crate::compute::{
    ComputeConfig, ComputeLimits, DataDirectories, Installation, OsUser, Supervisor, leftovers,
};
use crate::config::{Config, Layout, MAX_RUN_DIRECTORY_BYTES};
use crate::error::{Error, Result};
use crate::fs::mount::{Mount, Places};
use crate::import::Imports;
use crate::jobs::Jobs;
use crate::storage::catalog::Allowance;
use crate::storage::page::TimelineId;
use crate::storage::store::Store;
use crate::tasks::blocking;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server that stops waits for the last lines of Postgres's logs to be written.
const LOGS_LIMIT: Duration = Duration::from_secs(2);
/// How often it is said what a server waits for that stops.
const STOP_NEWS: Duration = Duration::from_secs(10);

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

    fn is_wanted(&self, timeline: TimelineId) -> bool {
        self.store().catalog().may_run(timeline)
    }

    fn allowance(&self, timeline: TimelineId) -> Allowance {
        self.store().catalog().with_branches(|branches| {
            let of = branches.values().find(|branch| branch.timeline == timeline.0);
            of.map_or_else(Allowance::default, |branch| branch.allowance)
        })
    }

    fn free_bytes(&self) -> Option<u64> {
        self.store().space().ok().map(|(free, _)| free)
    }
}

/// What is running, in the order in which it was started.
pub(super) struct Running {
    pub(super) store: Arc<Store>,
    pub(super) mount: Arc<Mount>,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) branches: Arc<Branches>,
    pub(super) imports: Arc<Imports>,
    pub(super) jobs: Arc<Jobs>,
}

impl Running {
    pub(super) async fn start(
        config: &Config,
        layout: &Layout,
        (proxy_address, ca_file): (String, Option<PathBuf>),
    ) -> Result<Self> {
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
        start::make_directory(&layout.run, 0o711)?;
        leftovers::clean(&layout.run)?;
        let store =
            Arc::new(Store::open(start::open_disk(&config.data)?, start::random_number()?)?);
        store.keep_history(Duration::from_secs(config.history))?;
        let data = config.mount.as_deref().unwrap_or(&layout.mount);
        let mount = Arc::new(Mount::new(
            Arc::clone(&store),
            Places { data, wal: &layout.wal_mount, scratch: &layout.scratch },
            (user.uid, user.gid),
            OsUser::ids_from(config.compute_uids),
            config.io_uring,
        )?);
        mount.record(&layout.connections)?;
        let mut computes =
            ComputeConfig::new(installation.clone(), user.clone(), layout.run.clone());
        computes.log_dir = layout.logs.clone();
        computes.suspend_after = Duration::from_secs(config.suspend_after);
        computes.max_running = config.max_running.unwrap_or(computes.max_running);
        computes.network = config.branch_network;
        computes.limits = ComputeLimits {
            memory_bytes: config.branch_memory.unwrap_or(computes.limits.memory_bytes),
            tasks: config.branch_tasks,
        };
        let memory_bytes = computes.memory_bytes();
        let supervisor = Supervisor::new(computes, Arc::clone(&mount) as Arc<dyn DataDirectories>)?;
        let about = About {
            postgres_version: installation.version.clone(),
            proxy_address,
            domain: config.domain.clone(),
            ca_file,
        };
        let branches = Branches::new(
            Arc::clone(&store),
            Arc::clone(&mount),
            Arc::clone(&supervisor),
            about,
            config.branch_history_s(),
        );
        if store.catalog().with_branches(|branches| branches.is_empty()) {
            let made = (&store, &mount, &branches);
            start::first_start(made, &installation, &user, &layout.run).await?;
        }
        let target = Arc::clone(&branches) as _;
        let imports = Imports::new(installation, user, &layout.run, target, memory_bytes)?;
        let jobs = Jobs::new(Instant::now());
        Ok(Self { store, mount, supervisor, branches, imports, jobs })
    }

    /// What the HTTP API works on.
    pub(super) fn app(&self, proxy: Arc<proxy::Metrics>) -> App {
        App {
            branches: Arc::clone(&self.branches),
            imports: Arc::clone(&self.imports),
            jobs: Arc::clone(&self.jobs),
            metrics: Arc::new(Metrics::new()),
            proxy,
        }
    }

    /// Stops everything behind the listeners, from the outside in. Each step is tried whatever
    /// became of the one before.
    pub(super) async fn stop(self) -> Result<()> {
        let jobs = Arc::clone(&self.jobs);
        stage("jobs", blocking(move || jobs.stop())).await;
        stage("imports", self.imports.stop_all()).await;
        stage("computes of imports", self.supervisor.stop_all()).await;
        stage("dropped branches", self.branches.tidied()).await;
        let Self { store, mount, supervisor, .. } = self;
        stage("logs of branches", blocking(move || supervisor.flush_logs(LOGS_LIMIT))).await;
        let unmounted = stage("the mount", blocking(move || mount.unmount())).await;
        stage("the store", blocking(move || store.close())).await.and(unmounted)
    }
}

/// Waits for a part of stopping; while that takes long, the log says again and again what is waited
/// for.
pub(super) async fn stage<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    let (mut work, began) = (std::pin::pin!(work), Instant::now());
    loop {
        match tokio::time::timeout(STOP_NEWS, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => tracing::warn!(what, seconds = began.elapsed().as_secs(), "stopping waits"),
        }
    }
}
