//! Taking a branch back to its parent.

use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::{BranchView, Branches, now_ns, rules};
use crate::error::{Error, Result};
use crate::events::{Action, Actor};
use crate::moment::Moment;
use crate::storage::catalog::BranchRecord;
use crate::storage::page::TimelineId;
use std::sync::Arc;

impl Branches {
    /// Points a branch at the head of its parent, or at a moment of the parent's past. What it held
    /// is gone; its connections end.
    pub async fn reset(
        self: &Arc<Self>,
        actor: Actor,
        name: &str,
        at: Option<Moment>,
    ) -> Result<BranchView> {
        let name = name.to_owned();
        self.changing(at.is_some(), move |this| {
            let before = this.record(&name)?;
            rules::allow(Action::Reset, &name, &before)?;
            let parent_name = this.parent_of(&name, &before)?;
            let held = at.map(|at| this.hold(&parent_name, &at)).transpose()?;
            this.change(&actor, Action::Reset, &name, |record| {
                let parent_name = this.parent_of(&name, &record)?;
                let parent = this.record(&parent_name)?;
                let (head, old) = (TimelineId(parent.timeline), TimelineId(record.timeline));
                let (branch, name) = (record.id, name.clone());
                let names = move |timeline: TimelineId| {
                    let record = BranchRecord {
                        timeline: timeline.0,
                        forked_ns: now_ns(),
                        password: parent.password,
                        login: parent.login,
                        ..record
                    };
                    vec![NameChange::Put(name, record)]
                };
                Ok(Decision {
                    branch,
                    other_name: Some(parent_name),
                    data: held.map_or(Data::Fork(head), Data::Moment),
                    names: Box::new(names),
                    leaving: Departure::Retire(old),
                })
            })?;
            this.get(&name)
        })
        .await
    }

    /// Name of the branch that this one can be reset to.
    fn parent_of(&self, name: &str, record: &BranchRecord) -> Result<String> {
        let orphan = || {
            let reason =
                if record.parent.is_some() { "its parent was deleted" } else { "it is a root" };
            let detail = format!(
                "branch \"{name}\" cannot be reset: {reason}, so there is nothing to go back to; \
                 `branchctl restore {name} --at TIME` takes it to its own past"
            );
            Error::conflict("no_parent", detail)
        };
        record.parent.and_then(|parent| self.directory.name_of(parent)).ok_or_else(orphan)
    }
}
