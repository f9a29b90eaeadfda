//! The name and the settings of a branch.

use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::{BranchView, Branches, labels};
use crate::error::Result;
use crate::events::{Action, Actor};
use crate::storage::catalog::{Allowance, BranchNetwork, BranchRecord};
use crate::storage::page::TimelineId;
use std::sync::Arc;

/// What is to become of a branch's settings: those that are none stay.
#[derive(Clone, Debug, Default)]
pub struct NewSettings {
    /// Its name.
    pub name: Option<String>,
    /// Whether it refuses reset and delete.
    pub protected: Option<bool>,
    /// Its network; that of the server's settings for an inner none.
    pub network: Option<Option<BranchNetwork>>,
    /// Whether the jobs of `pg_cron` run.
    pub scheduled_jobs: Option<bool>,
    /// How many seconds of its past are kept.
    pub history_s: Option<u64>,
}

impl Branches {
    /// Renames or protects a branch, or changes what its Postgres may do or how long its past is
    /// kept. A Postgres that runs with another allowance stops, and its sessions end.
    pub async fn update(
        self: &Arc<Self>,
        actor: Actor,
        name: &str,
        new: NewSettings,
    ) -> Result<BranchView> {
        let name = name.to_owned();
        self.changing(false, move |this| {
            let new_name = new.name.unwrap_or_else(|| name.clone());
            this.change(&actor, Action::Update, &name, |record| {
                this.directory.require_free(&new_name, Some(&name))?;
                let (branch, timeline) = (record.id, TimelineId(record.timeline));
                let protected = new.protected.unwrap_or(record.protected);
                let before = record.allowance;
                let allowance = Allowance {
                    network: new.network.unwrap_or(before.network),
                    scheduled_jobs: new.scheduled_jobs.unwrap_or(before.scheduled_jobs),
                };
                let label = labels::of(&name, &record);
                let history_s = new.history_s.or(record.history_s);
                let record = BranchRecord { protected, allowance, label, history_s, ..record };
                let put = NameChange::Put(new_name.clone(), record);
                let renamed = new_name != name;
                let remove = renamed.then(|| NameChange::Remove(name.clone(), branch));
                Ok(Decision {
                    branch,
                    other_name: renamed.then(|| new_name.clone()),
                    data: Data::Same(timeline),
                    names: Box::new(|_| remove.into_iter().chain([put]).collect()),
                    leaving: if allowance == before {
                        Departure::Nothing
                    } else {
                        Departure::Suspend(timeline)
                    },
                })
            })?;
            this.get(&new_name)
        })
        .await
    }
}
