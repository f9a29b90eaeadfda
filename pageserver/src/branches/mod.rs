//! The branch service: names onto timelines.
//!
//! Every change of a name goes through `Branches::change`. One at a time it decides by the rules,
//! publishes one catalog transaction, and emits one event; after that transaction the change has
//! happened. What is left to tidy up, such as the Postgres of a deleted branch, is done behind the
//! answer, and again at the next start if a crash comes first.
//!
//! Lock order: `changing`, then a timeline's slot in the store (a child's before its parent's),
//! then the catalog's database, then its state. `Directory` and `Visits` have locks of their own,
//! which are never held over another one.
//!
//! The service has types of its own. The HTTP API translates them.

mod change;
mod computes;
mod create;
mod delete;
mod directory;
mod held;
mod imports;
mod labels;
mod logs;
mod repair;
mod reset;
mod restore;
pub mod rules;
mod settings;
mod tidying;
mod travel;
mod url;
mod usage;
mod view;
mod visits;

use crate::compute::Supervisor;
use crate::compute::debt::Debts;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::fs::mount::Mount;
use crate::storage::catalog::{BranchRecord, DEFAULT_BRANCH};
use crate::storage::clock::machine_ns as now_ns;
use crate::storage::page::TimelineId;
use crate::storage::store::Store;
use crate::tasks;
use directory::Directory;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tidying::Tidying;
use tokio::sync::Semaphore;
use visits::Visits;

pub use create::NewBranch;
pub use logs::LogStream;
pub use restore::RestoreTo;
pub use settings::NewSettings;
pub use usage::{BranchBytes, DiskUsage, NamelessBytes};
pub use view::{BranchPage, BranchView, ServerView};

/// Changes that may be under way. They take turns, and more of them would only take the threads
/// that starting computes need.
const CHANGES: usize = 64;
/// Of those that look for a moment, which may take long, as many as leave the others their turns.
const SEARCHES: usize = 16;
/// Logs that may be followed at the same time. Each takes a connection of the API, which has 512.
const FOLLOWERS: usize = 128;

/// What the service says about the server it is part of.
pub struct About {
    /// Version of Postgres.
    pub postgres_version: String,
    /// Where clients reach the proxy, `host:port`.
    pub proxy_address: String,
    /// The domain whose sub-domains are branches.
    pub domain: Option<String>,
    /// Certificate of the proxy's own CA; none if the proxy uses a certificate of the user.
    pub ca_file: Option<PathBuf>,
}

/// The branches of a server.
pub struct Branches {
    store: Arc<Store>,
    mount: Arc<Mount>,
    supervisor: Arc<Supervisor>,
    about: About,
    /// How many seconds of their past are kept of new branches that do not say.
    history_s: u64,
    events: Events,
    directory: Directory,
    visits: Visits,
    /// Held while names change.
    changing: Mutex<()>,
    changes: Semaphore,
    searches: Semaphore,
    followers: Arc<Semaphore>,
    tidying: Tidying,
    debts: Arc<Debts>,
    started: Instant,
}

impl Branches {
    /// The service over a store whose default branch exists. Of new branches that do not say how
    /// much, `history_s` seconds of their past are kept.
    pub fn new(
        store: Arc<Store>,
        mount: Arc<Mount>,
        supervisor: Arc<Supervisor>,
        about: About,
        history_s: u64,
    ) -> Arc<Self> {
        let directory = store.catalog().with_branches(Directory::of);
        Arc::new(Self {
            store,
            mount,
            supervisor,
            about,
            history_s,
            events: Events::default(),
            directory,
            visits: Visits::default(),
            changing: Mutex::new(()),
            changes: Semaphore::new(CHANGES),
            searches: Semaphore::new(SEARCHES),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            tidying: Tidying::default(),
            debts: Arc::default(),
            started: Instant::now(),
        })
    }

    /// What happens to branches from now on.
    pub fn events(&self) -> &Events {
        &self.events
    }

    fn record(&self, name: &str) -> Result<BranchRecord> {
        let missing = || {
            self.store.catalog().with_branches(|branches| {
                rules::not_found(name, branches.keys().map(String::as_str))
            })
        };
        self.store.catalog().branch(name).ok_or_else(missing)
    }

    fn timeline(&self, name: &str) -> Result<TimelineId> {
        Ok(TimelineId(self.record(name)?.timeline))
    }

    /// Name of the branch that new branches start from.
    pub fn default_name(&self) -> String {
        self.directory.name_of(DEFAULT_BRANCH).unwrap_or_default()
    }

    /// Name of the branch with this label.
    pub fn name_of_label(&self, label: &str) -> Option<String> {
        self.directory.name_of_label(label)
    }

    /// Name of the branch that somebody means by a name or a label; none if there is none.
    pub fn name_meant(&self, text: &str) -> Option<String> {
        self.directory.name_meant(text)
    }

    /// Runs work that waits for the disk, or for a timeline that is busy, away from the threads
    /// that serve connections.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let this = Arc::clone(self);
        tasks::blocking(move || work(&this)).await
    }

    /// Runs a change, at most so many of which have a thread at a time. Those that `search` for a
    /// moment have turns of their own, so that they keep no other change waiting.
    async fn changing<T: Send + 'static>(
        self: &Arc<Self>,
        search: bool,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turns = if search { &self.searches } else { &self.changes };
        let closed = |_| Error::unavailable("shutting_down", "the server is shutting down");
        let _turn = turns.acquire().await.map_err(closed)?;
        self.blocking(work).await
    }

    /// Waits until what dropped branches left is tidied up, before the store closes.
    pub async fn tidied(&self) {
        self.tidying.done().await;
    }
}
