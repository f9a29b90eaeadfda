//! The name and the settings of a branch.

use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::{BranchView, Branches};
use crate::error::Result;
use crate::events::{Action, Actor};
use crate::storage::catalog::BranchRecord;
use crate::storage::page::TimelineId;
use std::sync::Arc;

/// What is to become of a branch's settings: those that are none stay.
#[derive(Clone, Debug, Default)]
pub struct NewSettings {
    /// Its name.
    pub name: Option<String>,
    /// Whether it refuses reset and delete.
    pub protected: Option<bool>,
}

impl Branches {
    /// Renames or protects a branch.
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
                // A new name may have the same host-name form as the old one.
                this.directory.require_free(&new_name, Some(&name))?;
                let (branch, timeline) = (record.id, TimelineId(record.timeline));
                let protected = new.protected.unwrap_or(record.protected);
                let put = NameChange::Put(new_name.clone(), BranchRecord { protected, ..record });
                let renamed = new_name != name;
                let remove = renamed.then(|| NameChange::Remove(name.clone(), branch));
                Ok(Decision {
                    branch,
                    other_name: renamed.then(|| new_name.clone()),
                    data: Data::Same(timeline),
                    names: Box::new(|_| remove.into_iter().chain([put]).collect()),
                    leaving: Departure::Nothing,
                })
            })?;
            this.get(&new_name)
        })
        .await
    }
}
