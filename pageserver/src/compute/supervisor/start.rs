//! The start of a compute, from the data directory to the first connection.

use super::{Supervisor, TURN_LIMIT, millis, shutting_down};
use crate::compute::cron;
use crate::compute::data_directory::{self, LOCK_FILE, Prepared};
use crate::compute::door;
use crate::compute::leftovers::remove_sockets;
use crate::compute::postgres::Postgres;
use crate::compute::settings::{Defaults, Situation};
use crate::compute::slot::ComputeSlot;
use crate::compute::user::OsUser;
use crate::error::{Error, Result};
use crate::storage::catalog::{Allowance, BranchNetwork};
use crate::storage::page::TimelineId;
use std::future::pending;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The part of the free disk that the temporary files of one session may take, unless the branch
/// says otherwise.
const TEMP_SHARE: u64 = 4;

impl Supervisor {
    pub(super) async fn start(self: &Arc<Self>, slot: &ComputeSlot) -> Result<Postgres> {
        let asked = Instant::now();
        let turn = self.unless_closed(async { Ok(self.starts.acquire().await) }).await?;
        let started = Instant::now();
        let mut postgres = self.open_and_spawn(slot.timeline).await?;
        let (timeline, pid) = (slot.timeline, postgres.pid());
        let enclosed = self.blocking(move |this| this.surroundings.enclose(timeline, pid));
        let ready = self.unless_closed(async {
            let ready = self.ready(&mut postgres, timeline, turn);
            tokio::join!(ready, enclosed).0
        });
        let ready = ready.await;
        if let Err(error) = ready {
            if !postgres.stop(self.config.stop_limit, pending()).await {
                postgres.sweep().await;
            }
            self.clean_up(slot.timeline).await;
            return Err(error);
        }
        tracing::info!(
            timeline = %slot.timeline, pid = postgres.pid(), ms = millis(started),
            queued_ms = (started - asked).as_millis(), "compute ready"
        );
        Ok(postgres)
    }

    /// Waits for Postgres while holding its place among the parallel starts, but not through a long
    /// recovery: a few branches that recover must not keep all others asleep.
    async fn ready<T>(&self, postgres: &mut Postgres, timeline: TimelineId, turn: T) -> Result<()> {
        let directories = Arc::clone(&self.directories);
        let lock_file = move || directories.received(timeline, LOCK_FILE);
        let ready = postgres.ready(self.config.start_limit, lock_file);
        tokio::pin!(ready);
        match tokio::time::timeout(TURN_LIMIT, &mut ready).await {
            Ok(ready) => ready,
            Err(_) => {
                drop(turn);
                ready.await
            }
        }
    }

    async fn open_and_spawn(self: &Arc<Self>, timeline: TimelineId) -> Result<Postgres> {
        let opened = self.blocking(move |this| this.directories.open(timeline)).await?;
        let (data, prepared) = (opened.clone(), self.prepare(timeline, opened).await);
        let spawned = match prepared {
            Ok((prepared, user)) => self.spawn(timeline, (&user, &data), prepared).await,
            Err(error) => Err(error),
        };
        if spawned.is_err() {
            self.clean_up(timeline).await;
        }
        spawned
    }

    /// Readies the data directory and the socket directory; says what it found there, and who is to
    /// run Postgres.
    async fn prepare(
        self: &Arc<Self>,
        timeline: TimelineId,
        data: PathBuf,
    ) -> Result<(Prepared, OsUser)> {
        let prepare = move |this: &Self| {
            let config = &this.config;
            let user = config.user.owner_of(&data)?;
            let prepared =
                data_directory::prepare(&data, timeline, config.installation.major, &user)?;
            make_private(&this.sockets(timeline), &user)?;
            let defaults = Defaults {
                temp_file_kib: this.directories.free_bytes().map(|free| free / TEMP_SHARE / 1024),
                config: prepared.has_config.then(|| data.join("postgresql.conf")),
            };
            this.managed.write_defaults(timeline, &defaults)?;
            this.records.write(timeline, &data, None)?;
            Ok((prepared, user))
        };
        self.blocking(prepare).await
    }

    /// Does work that may take long, but not into a shutdown.
    async fn unless_closed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            biased;
            // It fails only when the supervisor is gone.
            _ = closing.wait_for(|closing| *closing) => Err(shutting_down()),
            done = work => done,
        }
    }

    /// Makes the server's role before the first client can come, without a network whatever the
    /// branch may reach.
    async fn make_door(
        self: &Arc<Self>,
        user: &OsUser,
        data: &Path,
        situation: &Situation<'_>,
    ) -> Result<()> {
        let timeline = situation.timeline;
        let surroundings = self
            .surroundings
            .of(Allowance { network: Some(BranchNetwork::None), ..Allowance::default() });
        let users = self.managed.path(&format!("{timeline}.users"));
        let installation = &self.config.installation;
        let made = door::make(installation, user, situation, surroundings, &users);
        let made = self.unless_closed(made).await;
        let _none = self.blocking(move |_| std::fs::remove_file(users)).await;
        made?;
        let (data, user) = (data.to_owned(), user.clone());
        self.blocking(move |_| door::note_made(&data, &user)).await?;
        tracing::info!(%timeline, "the server's role was made");
        Ok(())
    }

    async fn spawn(
        self: &Arc<Self>,
        timeline: TimelineId,
        (user, data): (&OsUser, &Path),
        prepared: Prepared,
    ) -> Result<Postgres> {
        // Asked now, when the slot is starting: who changes it later stops this Postgres.
        let allowance = self.directories.allowance(timeline);
        let situation = Situation {
            timeline,
            major: self.config.installation.major,
            data,
            sockets: &self.sockets(timeline),
            managed: &self.managed,
            // What single-user mode wrote is not durable if it was cut off.
            is_new: prepared.is_new && prepared.has_door,
            scheduled_jobs: allowance.scheduled_jobs,
            preload: None,
        };
        let preload = cron::preload_without(&self.config.installation, user, &situation);
        let preload = self.unless_closed(preload).await?;
        let situation = Situation { preload: preload.as_deref(), ..situation };
        if !prepared.has_door
            && let Err(error) = self.make_door(user, data, &situation).await
        {
            // The start itself says what is wrong with the branch, if anything is.
            tracing::warn!(%timeline, %error, "the branch has no door");
        }
        let surroundings = self.surroundings.of(allowance);
        let (installation, sink) = (&self.config.installation, self.logs.sink(timeline));
        let mut postgres =
            Postgres::spawn(installation, user, &situation, surroundings, sink).await?;
        if let Err(error) = self.records.write(timeline, data, Some(postgres.pid())) {
            postgres.stop(self.config.stop_limit, pending()).await;
            return Err(error);
        }
        Ok(postgres)
    }
}

/// Makes `path` a directory that only the user of Postgres (and root) can enter.
fn make_private(path: &Path, user: &OsUser) -> Result<()> {
    remove_sockets(path);
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)))
        .map_err(|e| Error::io(format_args!("make {}", path.display()), &e))?;
    user.own(path)
}
