//! Making branches.

use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::held::Held;
use super::{BranchView, Branches, now_ns};
use crate::error::Result;
use crate::events::{Action, Actor};
use crate::moment::Moment;
use crate::secret::Secret;
use crate::storage::catalog::{BranchRecord, DEFAULT_BRANCH};
use crate::storage::page::TimelineId;
use std::sync::Arc;

/// A branch to be made.
#[derive(Clone, Debug, Default)]
pub struct NewBranch {
    /// Its name.
    pub name: String,
    /// The branch that it is made from; the default branch if none.
    pub parent: Option<String>,
    /// The moment of the parent that it begins at; its head if none.
    pub at: Option<Moment>,
    /// How many seconds of its past are kept; as many as of new branches if none.
    pub history_s: Option<u64>,
}

impl Branches {
    /// The record for the first branch of a new store.
    pub fn first_record(timeline: TimelineId, password: Option<Secret>) -> BranchRecord {
        BranchRecord { password, ..BranchRecord::root(DEFAULT_BRANCH, timeline, now_ns()) }
    }

    /// Makes the first branch of a new store, of a timeline that is filled.
    pub async fn create_first(
        self: &Arc<Self>,
        name: &str,
        timeline: TimelineId,
        password: Secret,
    ) -> Result<()> {
        let name = name.to_owned();
        self.changing(false, move |this| {
            this.make(&Actor::Server, Action::Create, &name, || {
                let label = this.directory.new_label(&name);
                let record = BranchRecord { label, ..Self::first_record(timeline, Some(password)) };
                let put = NameChange::Put(name.clone(), record);
                Ok(Decision {
                    branch: DEFAULT_BRANCH,
                    other_name: None,
                    data: Data::Same(timeline),
                    names: Box::new(|_| vec![put]),
                    leaving: Departure::Nothing,
                })
            })
        })
        .await
    }

    /// Makes a branch from the head of its parent, or from a moment of its past.
    pub async fn create(self: &Arc<Self>, actor: Actor, new: NewBranch) -> Result<BranchView> {
        self.changing(new.at.is_some(), move |this| {
            let held = this.hold_for(&new)?;
            this.create_now(&actor, &new, held)
        })
        .await
    }

    /// Makes a branch unless it is there already, which the second value tells.
    pub async fn ensure(
        self: &Arc<Self>,
        actor: Actor,
        new: NewBranch,
    ) -> Result<(BranchView, bool)> {
        self.changing(new.at.is_some(), move |this| {
            let there = || this.store.catalog().branch(&new.name).is_some();
            if there() {
                return Ok((this.get(&new.name)?, false));
            }
            let held = this.hold_for(&new)?;
            match this.create_now(&actor, &new, held) {
                // Somebody else made it meanwhile.
                Err(error) if error.code == "branch_exists" && there() => {
                    Ok((this.get(&new.name)?, false))
                }
                made => Ok((made?, true)),
            }
        })
        .await
    }

    fn parent_name(&self, new: &NewBranch) -> String {
        let meant = |text: &String| self.name_meant(text).unwrap_or_else(|| text.clone());
        new.parent.as_ref().map_or_else(|| self.default_name(), meant)
    }

    /// Finds the moment that a new branch is to begin at.
    fn hold_for(&self, new: &NewBranch) -> Result<Option<Held<'_>>> {
        let Some(at) = &new.at else { return Ok(None) };
        self.directory.require_free(&new.name, None)?;
        self.hold(&self.parent_name(new), at).map(Some)
    }

    fn create_now(
        &self,
        actor: &Actor,
        new: &NewBranch,
        held: Option<Held<'_>>,
    ) -> Result<BranchView> {
        self.make(actor, Action::Create, &new.name, || {
            let parent_name = self.parent_name(new);
            let parent = self.record(&parent_name)?;
            let history_s = new.history_s.unwrap_or(self.history_s);
            let (id, now, name) = (self.store.catalog().new_branch(), now_ns(), new.name.clone());
            let label = self.directory.new_label(&name);
            let record = move |timeline: TimelineId| BranchRecord {
                parent: Some(parent.id),
                password: parent.password,
                login: parent.login,
                label,
                history_s: Some(history_s),
                ..BranchRecord::root(id, timeline, now)
            };
            Ok(Decision {
                branch: id,
                other_name: Some(parent_name),
                data: held.map_or(Data::Fork(TimelineId(parent.timeline)), Data::Moment),
                names: Box::new(move |timeline| vec![NameChange::Put(name, record(timeline))]),
                leaving: Departure::Nothing,
            })
        })?;
        self.get(&new.name)
    }
}
