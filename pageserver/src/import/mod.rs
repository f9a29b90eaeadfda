//! Imports: a new root branch as a physical copy of a running Postgres.
//!
//! The source is checked first, so that most refusals reach the caller at once. Then
//! `pg_basebackup` streams it into the directory of a new timeline, the copy is started once, and
//! the branch gets its name as the very last step. After a failure at any point nothing is left of
//! it; starting over is how an import is resumed.

mod basebackup;
mod check;
mod settings;
pub(crate) mod source;

use crate::compute::leftovers::Records;
use crate::compute::{Installation, OsUser};
use crate::error::{Error, Result};
use crate::events::Actor;
use crate::locks::lock;
use crate::secret::{self, Secret};
use crate::storage::catalog::Login;
use crate::storage::page::TimelineId;
use crate::tasks;
use basebackup::Progress;
use source::SourceServer;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Imports at the same time: each takes all the bandwidth it can get.
const RUNNING: usize = 2;
/// Imports that are remembered, those that run included.
const REMEMBERED: usize = 100;

/// A branch to be made of a running Postgres.
#[derive(Clone)]
pub struct NewImport {
    /// Name of the new root branch.
    pub name: String,
    /// `postgresql://` URL of the source.
    pub source: Secret,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportState {
    /// Copying.
    Running,
    /// The branch exists.
    Done,
    /// Stopped with an error; nothing is left behind.
    Failed,
}

/// An import, running or done.
#[derive(Clone, Debug)]
pub struct Import {
    /// Names it to whoever asks how far it is.
    pub id: String,
    /// Name of the branch to be.
    pub name: String,
    /// How far it is.
    pub state: ImportState,
    /// What it does now, in words.
    pub step: String,
    /// Bytes received so far.
    pub bytes_done: u64,
    /// Bytes that the source estimated, once known.
    pub bytes_total: Option<u64>,
    /// What is not as at the source, a sentence each.
    pub notes: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Who can use a copy from the beginning.
pub struct CopyLogin {
    /// The role and the database that the import used at the source.
    pub login: Login,
    /// The password that the role has on the copy.
    pub password: Secret,
}

/// Where imports go. Called from threads that may block.
pub trait ImportTarget: Send + Sync + 'static {
    /// Checks that the name is good and free, reserves it, and returns a new root timeline with its
    /// empty directory (mode 0700, of the user that Postgres runs as).
    fn begin(&self, name: &str) -> Result<(TimelineId, PathBuf)>;
    /// Starts the Postgres of the filled timeline once, looks into each of its databases, and gives
    /// the role of the login a password; the error is Postgres's own if it cannot be used.
    fn try_out(&self, timeline: TimelineId, login: Login) -> Result<CopyLogin>;
    /// Makes the timeline the branch `name`, durably, for `actor`.
    fn publish(
        &self,
        actor: &Actor,
        name: &str,
        timeline: TimelineId,
        access: CopyLogin,
    ) -> Result<()>;
    /// Removes everything of the timeline and frees the name.
    fn abort(&self, name: &str, timeline: TimelineId);
}

/// The imports of this server, running and done.
pub struct Imports {
    installation: Installation,
    user: OsUser,
    target: Arc<dyn ImportTarget>,
    /// Memory that a branch has.
    memory_bytes: u64,
    records: Records,
    /// Oldest first.
    known: Mutex<VecDeque<Import>>,
    running: watch::Sender<usize>,
    closing: watch::Sender<bool>,
}

impl Imports {
    /// No imports yet. The tools run as `user`, and are recorded in `run_dir`; each copy will have
    /// so many bytes of memory.
    pub fn new(
        installation: Installation,
        user: OsUser,
        run_dir: &Path,
        target: Arc<dyn ImportTarget>,
        memory_bytes: u64,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            installation,
            user,
            target,
            memory_bytes,
            records: Records::open(run_dir)?,
            known: Mutex::default(),
            running: watch::Sender::new(0),
            closing: watch::Sender::new(false),
        }))
    }

    /// Checks the source, reserves the name and starts to copy. Fails at once if the source cannot
    /// be reached or copied, and if the name is taken.
    pub async fn start(self: &Arc<Self>, actor: Actor, request: NewImport) -> Result<Import> {
        let source = SourceServer::parse(request.source.expose())?;
        self.installation.require_clients()?;
        let turn = self.admit()?;
        let facts = check::check(&self.installation, &self.user, &source).await?;
        let import = Import {
            id: secret::random_text(12)?,
            name: request.name,
            state: ImportState::Running,
            step: "starting".to_owned(),
            bytes_done: 0,
            bytes_total: None,
            notes: Vec::new(),
            error: None,
        };
        // A task of its own: a caller that goes away must not part the reservation from the copy.
        let (this, started) = (self.clone(), import.clone());
        tasks::detached(async move {
            let (begin, name) = (this.clone(), started.name.clone());
            let (timeline, directory) = tasks::blocking(move || begin.begin(&name)).await?;
            this.remember(started.clone());
            tokio::spawn(async move {
                let _turn = turn;
                let login = Login { role: facts.role.clone(), database: facts.database.clone() };
                let copied = this.clone().copy(started.id.clone(), source, facts, directory).await;
                let copied = copied.map(|()| login);
                this.finish(actor, &started, copied, timeline).await;
            });
            Ok(())
        })
        .await?;
        Ok(import)
    }

    /// Reserves the name, and makes the directory and the record of who will write there.
    fn begin(&self, name: &str) -> Result<(TimelineId, PathBuf)> {
        let (timeline, directory) = self.target.begin(name)?;
        let recorded = self.records.write(timeline, &directory, None);
        recorded.inspect_err(|_| self.target.abort(name, timeline))?;
        Ok((timeline, directory))
    }

    /// How far an import is; none of this `id` after a restart of the server.
    pub fn get(&self, id: &str) -> Option<Import> {
        lock(&self.known).iter().find(|import| import.id == id).cloned()
    }

    /// Ends the running imports, at the server's shutdown, and waits until nothing is left of them.
    pub async fn stop_all(&self) {
        self.closing.send_replace(true);
        // The sender is ours, so the wait cannot fail.
        let mut running = self.running.subscribe();
        let _none = running.wait_for(|running| *running == 0).await;
    }

    async fn finish(
        self: &Arc<Self>,
        actor: Actor,
        import: &Import,
        copied: Result<Login>,
        timeline: TimelineId,
    ) {
        let (this, name) = (self.clone(), import.name.clone());
        self.update(&import.id, |import| import.step = "starting the copy once".to_owned());
        let published = tasks::blocking(move || {
            this.records.remove(timeline);
            let tried = copied.and_then(|login| this.target.try_out(timeline, login));
            let published =
                tried.and_then(|access| this.target.publish(&actor, &name, timeline, access));
            if published.is_err() {
                this.target.abort(&name, timeline);
            }
            published
        })
        .await;
        if let Err(error) = &published {
            tracing::warn!(branch = import.name, %timeline, %error, "import failed");
        }
        self.update(&import.id, |import| match published {
            Ok(()) => {
                import.state = ImportState::Done;
                import.step = "done".to_owned();
            }
            Err(error) => {
                import.state = ImportState::Failed;
                import.error = Some(error.detail);
            }
        });
    }

    async fn copy(
        self: Arc<Self>,
        id: String,
        source: SourceServer,
        facts: check::Facts,
        directory: PathBuf,
    ) -> Result<()> {
        let mut closing = self.closing.subscribe();
        let cancelled = async move {
            // It fails only when the imports are gone.
            let _gone = closing.wait_for(|closing| *closing).await;
        };
        let report = |progress| {
            self.update(&id, |import| match progress {
                Progress::Step(step) => import.step = step,
                Progress::Bytes { done, total } => {
                    import.step = "copying".to_owned();
                    import.bytes_done = done;
                    import.bytes_total = Some(total);
                }
            });
        };
        let job = basebackup::BackupJob {
            installation: &self.installation,
            user: &self.user,
            source: &source,
            facts: &facts,
            directory: &directory,
            memory_bytes: self.memory_bytes,
        };
        let notes = job.run(cancelled, report).await?;
        self.update(&id, |import| import.notes = notes);
        Ok(())
    }

    fn admit(self: &Arc<Self>) -> Result<Turn> {
        if *self.closing.borrow() {
            return Err(Error::unavailable("shutting_down", "the server is shutting down"));
        }
        let admitted = self.running.send_if_modified(|running| {
            let free = *running < RUNNING;
            *running += usize::from(free);
            free
        });
        if !admitted {
            return Err(Error::unavailable(
                "imports_busy",
                format!("{RUNNING} imports run already; try again when one is done"),
            ));
        }
        Ok(Turn(self.clone()))
    }

    fn remember(&self, import: Import) {
        let mut known = lock(&self.known);
        if known.len() >= REMEMBERED {
            // Those that run are few and among the newest, so there is always an older one to
            // forget.
            let oldest = known.iter().position(|import| import.state != ImportState::Running);
            oldest.map(|index| known.remove(index));
        }
        known.push_back(import);
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut Import)) {
        if let Some(import) = lock(&self.known).iter_mut().find(|import| import.id == id) {
            change(import);
        }
    }
}

/// One of the places for running imports.
struct Turn(Arc<Imports>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}
