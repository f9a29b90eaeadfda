//! Removing a branch.

use super::Branches;
use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use crate::error::Result;
use crate::events::{Action, Actor};
use crate::storage::page::TimelineId;
use std::sync::Arc;

impl Branches {
    /// Removes a branch. Branches made from it live on; its connections end.
    pub async fn delete(self: &Arc<Self>, actor: Actor, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.changing(false, move |this| {
            this.change(&actor, Action::Delete, &name, |record| {
                let (branch, old) = (record.id, TimelineId(record.timeline));
                let gone = NameChange::Remove(name.clone(), branch);
                Ok(Decision {
                    branch,
                    other_name: None,
                    data: Data::Same(old),
                    names: Box::new(|_| vec![gone]),
                    leaving: Departure::Retire(old),
                })
            })
        })
        .await
    }
}
