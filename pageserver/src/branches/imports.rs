//! Imports as the branch service sees them: a reserved name and a timeline that is filled.

use super::Branches;
use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::repair::{let_in, random_password};
use crate::compute::door::{CLOSED, Door, said};
use crate::error::{Error, Result};
use crate::events::{Action, Actor};
use crate::import::{CopyLogin, ImportTarget};
use crate::locks::lock;
use crate::storage::catalog::{BranchRecord, Login};
use crate::storage::page::TimelineId;
use std::path::PathBuf;
use tokio::runtime::Handle;

impl ImportTarget for Branches {
    fn begin(&self, name: &str) -> Result<(TimelineId, PathBuf)> {
        {
            let _changing = lock(&self.changing);
            self.directory.require_free(name, None)?;
            self.directory.reserve(name);
        }
        let begun = self.begin_root();
        begun.inspect_err(|_| self.directory.unreserve(name))
    }

    fn try_out(&self, timeline: TimelineId, login: Login) -> Result<CopyLogin> {
        // The mount shows the directory to the tools until then.
        self.mount.filled(timeline)?;
        let tried = Handle::current().block_on(self.try_login(timeline, login));
        let stopped = async {
            match &tried {
                Ok(_) => self.supervisor.suspend(timeline).await,
                Err(_) => self.supervisor.drop_timeline(timeline).await,
            }
        };
        Handle::current().block_on(stopped);
        tried.map_err(|error| {
            let detail = format!("the copy cannot be used: {}", error.detail);
            Error { detail, ..error }
        })
    }

    fn publish(
        &self,
        actor: &Actor,
        name: &str,
        timeline: TimelineId,
        access: CopyLogin,
    ) -> Result<()> {
        // It may take long, and nobody else writes to the timeline: no change waits for it.
        self.store.timeline(timeline)?.sync_and_wait()?;
        self.make(actor, Action::Import, name, || {
            let id = self.store.catalog().new_branch();
            let label = self.directory.new_label(name);
            let CopyLogin { login, password } = access;
            let record =
                BranchRecord { id, label, login, ..Self::first_record(timeline, Some(password)) };
            let put = NameChange::Put(name.to_owned(), record);
            Ok(Decision {
                branch: id,
                other_name: None,
                data: Data::Same(timeline),
                names: Box::new(|_| vec![put]),
                leaving: Departure::Nothing,
            })
        })
    }

    fn abort(&self, name: &str, timeline: TimelineId) {
        self.directory.unreserve(name);
        self.release_root(timeline);
    }
}

impl Branches {
    async fn try_login(&self, timeline: TimelineId, login: Login) -> Result<CopyLogin> {
        let lease = self.supervisor.wake(timeline).await?;
        let door = Door::open(&lease).await?;
        let databases = Door::limited(databases(&door)).await?;
        for database in &databases {
            // It fails where the machine lacks a locale of the source.
            drop(Door::open_database(&lease, database).await?);
        }
        let password = random_password()?;
        Door::limited(let_in(&door, &login.role, &password)).await?;
        Ok(CopyLogin { login, password })
    }

    fn begin_root(&self) -> Result<(TimelineId, PathBuf)> {
        let timeline = self.store.create_root()?;
        let directory = self.mount.attach_new(timeline);
        Ok((timeline, directory.inspect_err(|_| self.release_root(timeline))?))
    }

    fn release_root(&self, timeline: TimelineId) {
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

/// The databases that take connections.
async fn databases(door: &Door) -> Result<Vec<String>> {
    let question = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn";
    let failed = |error: tokio_postgres::Error| Error::unavailable(CLOSED, said(&error));
    let rows = door.client().query(question, &[]).await.map_err(failed)?;
    rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
}
