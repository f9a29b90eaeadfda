//! The branch service: names onto timelines. Create, reset, delete, rename, wake and suspend.
//!
//! A change of names goes through one lock at a time and is published by one catalog transaction;
//! after that transaction it has happened. What is left to tidy up, such as the Postgres of a
//! deleted branch, is done behind the answer and again at the next start if a crash comes first.

pub mod names;
mod past;
mod usage;
mod visits;

use crate::compute::{Lease, Supervisor};
use crate::error::{Error, Result};
use crate::fs::mount::Mount;
use crate::import::ImportTarget;
use crate::locks::lock;
use crate::moment::timestamp;
use crate::storage::catalog::{BranchRecord, DEFAULT_BRANCH, Update};
use crate::storage::clock::machine_ns as now_ns;
use crate::storage::page::TimelineId;
use crate::storage::store::Store;
use api::types::{Branch, Connection, CreateBranch, ResetBranch, Status, UpdateBranch};
use past::Held;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use visits::Visits;

/// Role whose password the server knows.
const SUPERUSER: &str = "postgres";
/// Database that a first start makes.
const DATABASE: &str = "app";

/// What the service says about the server it is part of.
pub struct About {
    /// Version of Postgres.
    pub postgres_version: String,
    /// Where clients reach the proxy, `host:port`.
    pub proxy_address: String,
}

/// Names in use, besides the catalog.
#[derive(Default)]
struct Names {
    by_id: HashMap<u64, String>,
    /// Host-name forms, with the branch or import that has them.
    by_host: HashMap<String, String>,
    /// Names of imports in progress.
    reserved: HashSet<String>,
}

/// The branches of a server.
pub struct Branches {
    store: Arc<Store>,
    mount: Arc<Mount>,
    supervisor: Arc<Supervisor>,
    about: About,
    names: Mutex<Names>,
    visits: Visits,
    /// Held while names change.
    changing: Mutex<()>,
    started: Instant,
}

impl Branches {
    /// The service over a store whose default branch exists.
    pub fn new(
        store: Arc<Store>,
        mount: Arc<Mount>,
        supervisor: Arc<Supervisor>,
        about: About,
    ) -> Arc<Self> {
        let mut names = Names::default();
        store.catalog().with_branches(|branches| {
            for (name, record) in branches {
                names.by_id.insert(record.id, name.clone());
                names.by_host.insert(names::host(name), name.clone());
            }
        });
        let (names, changing, started) = (Mutex::new(names), Mutex::new(()), Instant::now());
        let visits = Visits::default();
        Arc::new(Self { store, mount, supervisor, about, names, visits, changing, started })
    }

    /// The record for the first branch of a new store.
    pub fn first_record(timeline: TimelineId, password: String) -> BranchRecord {
        let now = now_ns();
        BranchRecord {
            id: DEFAULT_BRANCH,
            timeline: timeline.0,
            parent: None,
            created_ns: now,
            forked_ns: now,
            protected: false,
            password: Some(password.into()),
        }
    }

    fn record(&self, name: &str) -> Result<BranchRecord> {
        let missing = || {
            self.store.catalog().with_branches(|branches| {
                names::not_found(name, branches.keys().map(String::as_str))
            })
        };
        self.store.catalog().branch(name).ok_or_else(missing)
    }

    fn name_of(&self, id: u64) -> Option<String> {
        lock(&self.names).by_id.get(&id).cloned()
    }

    /// Name of the branch for connections that name none.
    pub fn default_name(&self) -> String {
        self.name_of(DEFAULT_BRANCH).unwrap_or_default()
    }

    /// Name of the branch with this host-name form.
    pub fn name_of_host(&self, host: &str) -> Option<String> {
        lock(&self.names).by_host.get(host).cloned()
    }

    fn refuse_if_taken(&self, name: &str) -> Result<()> {
        names::check(name)?;
        let names = lock(&self.names);
        match names.by_host.get(&names::host(name)) {
            None => Ok(()),
            Some(other) if other == name && names.reserved.contains(name) => Err(Error::conflict(
                "branch_exists",
                format!("branch \"{name}\" is being imported"),
            )),
            Some(other) if other == name => Err(Error::conflict(
                "branch_exists",
                format!(
                    "branch \"{name}\" exists already; `branchctl reset {name}` takes it back to \
                     its parent"
                ),
            )),
            Some(other) => Err(Error::conflict(
                "host_name_taken",
                format!(
                    "branch \"{name}\" would have the host name of branch \"{other}\", \"{}\"; \
                     choose another name",
                    names::host(name)
                ),
            )),
        }
    }

    /// Runs work that waits for the disk away from the threads that serve connections.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = Arc::clone(self);
        let joined = tokio::task::spawn_blocking(move || work(&this)).await;
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Makes a branch from the head of its parent, or from a moment of its past.
    pub async fn create(self: &Arc<Self>, request: CreateBranch) -> Result<Branch> {
        self.blocking(move |this| {
            let held = this.hold_for(&request)?;
            let _changing = lock(&this.changing);
            this.create_now(&request, held)
        })
        .await
    }

    /// Makes a branch unless it is there already, which the second value tells.
    pub async fn ensure(self: &Arc<Self>, request: CreateBranch) -> Result<(Branch, bool)> {
        self.blocking(move |this| {
            let there = || this.store.catalog().branch(&request.name).is_some();
            let held = if there() { None } else { this.hold_for(&request)? };
            let _changing = lock(&this.changing);
            if there() {
                return Ok((this.get(&request.name)?, false));
            }
            Ok((this.create_now(&request, held)?, true))
        })
        .await
    }

    fn parent_name(&self, request: &CreateBranch) -> String {
        request.parent.clone().unwrap_or_else(|| self.default_name())
    }

    /// Finds the moment that a new branch is to begin at.
    fn hold_for(&self, request: &CreateBranch) -> Result<Option<Held<'_>>> {
        let Some(at) = &request.at else { return Ok(None) };
        self.refuse_if_taken(&request.name)?;
        self.hold(&self.parent_name(request), at).map(Some)
    }

    fn create_now(&self, request: &CreateBranch, held: Option<Held<'_>>) -> Result<Branch> {
        let began = Instant::now();
        let name = &request.name;
        self.refuse_if_taken(name)?;
        let parent_name = self.parent_name(request);
        let parent = self.record(&parent_name)?;
        let id = self.store.catalog().new_branch();
        let now = now_ns();
        let record = |timeline: TimelineId| BranchRecord {
            id,
            timeline: timeline.0,
            parent: Some(parent.id),
            created_ns: now,
            forked_ns: now,
            protected: false,
            password: parent.password.clone(),
        };
        let (timeline, _) =
            self.begin(&parent, held, |timeline| Update::default().put(&name, record(timeline)))?;
        self.add_name(name, id);
        tracing::info!(
            branch = %name, %timeline, parent = %parent_name, duration_us = micros(began),
            "branch created"
        );
        self.get(name)
    }

    /// Points a branch at the head of its parent, or at a moment of the parent's past. What it held
    /// is gone; its connections end.
    pub async fn reset(self: &Arc<Self>, name: &str, request: ResetBranch) -> Result<Branch> {
        let name = name.to_owned();
        self.blocking(move |this| {
            let began = Instant::now();
            let (_, parent_name) = this.resettable(&name)?;
            let held = request.at.map(|at| this.hold(&parent_name, &at)).transpose()?;
            let _changing = lock(&this.changing);
            let (record, parent_name) = this.resettable(&name)?;
            let parent = this.record(&parent_name)?;
            let old = TimelineId(record.timeline);
            let (timeline, freed) = this.begin(&parent, held, |timeline| {
                let password = parent.password.clone();
                let record =
                    BranchRecord { timeline: timeline.0, forked_ns: now_ns(), password, ..record };
                Update::default().put(&name, record)
            })?;
            this.retire(old, freed);
            tracing::info!(
                branch = %name, %timeline, parent = %parent_name, duration_us = micros(began),
                "branch reset"
            );
            this.get(&name)
        })
        .await
    }

    /// A branch that may be reset, with the name of its parent.
    fn resettable(&self, name: &str) -> Result<(BranchRecord, String)> {
        let record = self.record(name)?;
        refuse_if_protected(name, &record)?;
        let orphan = || {
            let reason =
                if record.parent.is_some() { "its parent was deleted" } else { "it is a root" };
            let detail = format!(
                "branch \"{name}\" cannot be reset: {reason}, so there is nothing to go back to; \
                 `branchctl restore {name} --at TIME` takes it to its own past"
            );
            Error::conflict("no_parent", detail)
        };
        let parent = record.parent.and_then(|parent| self.name_of(parent)).ok_or_else(orphan)?;
        Ok((record, parent))
    }

    /// Removes a branch. Branches made from it live on; its connections end.
    pub async fn delete(self: &Arc<Self>, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.blocking(move |this| {
            let began = Instant::now();
            let _changing = lock(&this.changing);
            let record = this.record(&name)?;
            refuse_if_protected(&name, &record)?;
            if record.id == DEFAULT_BRANCH {
                let detail = format!(
                    "branch \"{name}\" is the default branch, which new branches start from: it \
                     stays"
                );
                return Err(Error::conflict("default_branch", detail));
            }
            let update = Update::default().remove::<BranchRecord>(&name.clone());
            let freed = this.store.publish(update)?;
            {
                let mut names = lock(&this.names);
                names.by_id.remove(&record.id);
                names.by_host.remove(&names::host(&name));
            }
            let timeline = TimelineId(record.timeline);
            this.retire(timeline, freed);
            tracing::info!(
                branch = %name, %timeline, duration_us = micros(began),
                "branch deleted"
            );
            Ok(())
        })
        .await
    }

    /// Stops the Postgres of a timeline that no name leads to any more, then recycles the files of
    /// those freed.
    fn retire(&self, timeline: TimelineId, freed: Vec<TimelineId>) {
        let (supervisor, mount, store) =
            (Arc::clone(&self.supervisor), Arc::clone(&self.mount), Arc::clone(&self.store));
        tokio::spawn(async move {
            supervisor.drop_timeline(timeline).await;
            let tidy = move || {
                mount.detach(timeline);
                freed.iter().for_each(|id| mount.detach(*id));
                store.free(&freed);
            };
            if tokio::task::spawn_blocking(tidy).await.is_err() {
                tracing::error!(
                    %timeline,
                    "a dropped timeline was not tidied up; the next start does it"
                );
            }
        });
    }

    /// Renames or protects a branch.
    pub async fn update(self: &Arc<Self>, name: &str, request: UpdateBranch) -> Result<Branch> {
        let name = name.to_owned();
        self.blocking(move |this| {
            let _changing = lock(&this.changing);
            let mut record = this.record(&name)?;
            record.protected = request.protected.unwrap_or(record.protected);
            let new_name = request.name.unwrap_or_else(|| name.clone());
            if new_name == name {
                this.store.publish(Update::default().put(&name, record))?;
                return this.get(&name);
            }
            // A new name may have the same host-name form as the old one.
            if names::host(&new_name) != names::host(&name) {
                this.refuse_if_taken(&new_name)?;
            }
            names::check(&new_name)?;
            let id = record.id;
            let update = Update::default().remove::<BranchRecord>(&name).put(&new_name, record);
            this.store.publish(update)?;
            {
                let mut names = lock(&this.names);
                names.by_host.remove(&names::host(&name));
                names.by_host.insert(names::host(&new_name), new_name.clone());
                names.by_id.insert(id, new_name.clone());
            }
            tracing::info!(branch = %name, new_name = %new_name, "branch renamed");
            this.get(&new_name)
        })
        .await
    }

    /// All branches by name.
    pub fn list(&self) -> Result<Vec<Branch>> {
        // A branch that is deleted meanwhile is left out by whoever asks for its timeline.
        let branches: BTreeMap<String, BranchRecord> = self.store.catalog().branches();
        Ok(branches.iter().filter_map(|(name, record)| self.show(name, record).ok()).collect())
    }

    /// One branch.
    pub fn get(&self, name: &str) -> Result<Branch> {
        self.show(name, &self.record(name)?)
    }

    fn show(&self, name: &str, record: &BranchRecord) -> Result<Branch> {
        let timeline = TimelineId(record.timeline);
        let compute = self.supervisor.state(timeline);
        let ancestor =
            self.store.catalog().timeline(timeline).and_then(|timeline| timeline.ancestor);
        let (own_bytes, logical_bytes) = self.store.sizes(timeline)?;
        let freed = self.store.catalog().freed_by_delete(name);
        let freed =
            freed.into_iter().map(|id| self.store.sizes(id).map_or(0, |(own, _)| own)).sum();
        Ok(Branch {
            name: name.to_owned(),
            host: names::host(name),
            parent: record.parent.and_then(|parent| self.name_of(parent)),
            timeline: timeline.to_string(),
            fork_position: ancestor.map(|ancestor| ancestor.at.data),
            created_at: timestamp(record.created_ns),
            forked_at: timestamp(record.forked_ns),
            default: record.id == DEFAULT_BRANCH,
            protected: record.protected,
            state: compute.state,
            failure: compute.failure,
            socket: compute.socket.map(|path| path.display().to_string()),
            connections: compute.leases,
            logical_bytes,
            own_bytes,
            freed_by_delete: freed,
        })
    }

    /// Stops the Postgres of a branch; the next connection wakes it.
    pub async fn suspend(self: &Arc<Self>, name: &str) -> Result<Branch> {
        let began = Instant::now();
        self.supervisor.suspend(TimelineId(self.record(name)?.timeline)).await?;
        tracing::info!(branch = %name, duration_us = micros(began), "branch suspended");
        self.get(name)
    }

    /// Starts the Postgres of a branch and waits until it accepts connections.
    pub async fn wake(self: &Arc<Self>, name: &str) -> Result<Branch> {
        let lease = self.acquire(name).await?;
        let branch = self.get(name);
        drop(lease);
        branch
    }

    /// Wakes a branch and keeps it awake as long as the lease lives.
    pub async fn acquire(self: &Arc<Self>, name: &str) -> Result<Lease> {
        loop {
            let timeline = self.record(name)?.timeline;
            match self.supervisor.wake(TimelineId(timeline)).await {
                // A reset came between: the name leads elsewhere now.
                _ if self.record(name)?.timeline != timeline => {}
                Ok(lease) => return Ok(lease),
                Err(error) => {
                    let detail = format!("branch \"{name}\" did not start: {}", error.detail);
                    return Err(Error { detail, ..error });
                }
            }
        }
    }

    /// The URL of a database of a branch, with the password if the server set it.
    pub fn connection(
        &self,
        name: &str,
        database: Option<&str>,
        role: Option<&str>,
    ) -> Result<Connection> {
        let record = self.record(name)?;
        let role = role.unwrap_or(SUPERUSER);
        let password = record.password.as_ref().filter(|_| role == SUPERUSER);
        let secret =
            password.map(|password| format!(":{}", encode(password.expose()))).unwrap_or_default();
        let database = encode(&format!("{}@{name}", database.unwrap_or(DATABASE)));
        let url = format!(
            "postgresql://{}{secret}@{}/{database}",
            encode(role),
            self.about.proxy_address
        );
        Ok(Connection { url })
    }

    /// The server as a whole.
    pub fn status(&self) -> Result<Status> {
        let (running, connections) = self.supervisor.totals();
        let (free_bytes, _) = self.store.space()?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            postgres_version: self.about.postgres_version.clone(),
            default_branch: self.default_name(),
            branches: self.store.catalog().with_branches(|branches| branches.len() as u64),
            running,
            connections,
            store_bytes: self.store.bytes()?,
            free_bytes,
            proxy_address: self.about.proxy_address.clone(),
            uptime_s: self.started.elapsed().as_secs(),
        })
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn refuse_if_protected(name: &str, record: &BranchRecord) -> Result<()> {
    if !record.protected {
        return Ok(());
    }
    let detail = format!("branch \"{name}\" is protected; `branchctl unprotect {name}` lifts that");
    Err(Error::conflict("branch_protected", detail))
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl ImportTarget for Branches {
    fn begin(&self, name: &str) -> Result<(TimelineId, PathBuf)> {
        let _changing = lock(&self.changing);
        self.refuse_if_taken(name)?;
        let timeline = self.store.create_root()?;
        let directory = self.mount.attach_new(timeline);
        let directory = directory.inspect_err(|_| self.drop_held(timeline))?;
        let mut names = lock(&self.names);
        names.reserved.insert(name.to_owned());
        names.by_host.insert(names::host(name), name.to_owned());
        Ok((timeline, directory))
    }

    fn publish(&self, name: &str, timeline: TimelineId) -> Result<()> {
        let _changing = lock(&self.changing);
        self.mount.filled(timeline)?;
        self.store.timeline(timeline)?.sync_and_wait()?;
        let id = self.store.catalog().new_branch();
        let record =
            BranchRecord { id, password: None, ..Self::first_record(timeline, String::new()) };
        self.store.publish(Update::default().put(name, record))?;
        let mut names = lock(&self.names);
        names.reserved.remove(name);
        names.by_id.insert(id, name.to_owned());
        Ok(())
    }

    fn abort(&self, name: &str, timeline: TimelineId) {
        let _changing = lock(&self.changing);
        {
            let mut names = lock(&self.names);
            names.reserved.remove(name);
            names.by_host.remove(&names::host(name));
        }
        self.drop_held(timeline);
    }
}

impl Branches {
    fn drop_held(&self, timeline: TimelineId) {
        self.mount.detach(timeline);
        match self.store.release(timeline) {
            Ok(freed) => self.store.free(&freed),
            Err(error) => {
                tracing::error!(
                    %timeline, %error,
                    "what an import left is removed at the next start"
                )
            }
        }
    }
}
