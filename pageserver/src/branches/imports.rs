//! Imports as the branch service sees them: a reserved name and a timeline that is filled.

use super::Branches;
use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use crate::error::Result;
use crate::events::{Action, Actor};
use crate::import::ImportTarget;
use crate::locks::lock;
use crate::storage::catalog::BranchRecord;
use crate::storage::page::TimelineId;
use std::path::PathBuf;

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

    fn publish(&self, actor: &Actor, name: &str, timeline: TimelineId) -> Result<()> {
        // Both may take long, and nobody else writes to the timeline: no change waits for them.
        self.mount.filled(timeline)?;
        self.store.timeline(timeline)?.sync_and_wait()?;
        self.make(actor, Action::Import, name, || {
            let id = self.store.catalog().new_branch();
            let label = self.directory.new_label(name);
            let record = BranchRecord { id, label, ..Self::first_record(timeline, None) };
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
