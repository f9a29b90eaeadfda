//! What branches do with their past: begin at a moment of it, go back to one, and list them.
//!
//! The timeline that shows a moment is made before names are locked, because finding the moment
//! reads the write-ahead log.

use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::held::Held;
use super::{BranchView, Branches, now_ns, rules};
use crate::error::Result;
use crate::events::{Action, Actor};
use crate::moment::{self, History, Moment};
use crate::storage::catalog::{Allowance, BranchRecord};
use crate::storage::page::TimelineId;
use std::sync::Arc;

/// Where a branch is to go back to.
#[derive(Clone, Debug)]
pub struct RestoreTo {
    /// A moment of its own past.
    pub at: Moment,
    /// Name for a branch that keeps the state before; without one that state is given up.
    pub keep_as: Option<String>,
}

impl Branches {
    /// Makes the timeline that shows a moment of a branch's past.
    pub(super) fn hold(&self, branch: &str, at: &Moment) -> Result<Held<'_>> {
        let id = moment::fork(&self.store, self.timeline(branch)?, at, branch)?;
        Ok(Held::new(&self.store, id))
    }

    /// Takes a branch to a moment of its own past. Its name and settings stay; its connections end.
    /// The state before it goes to a branch `keep_as`, or is given up.
    pub async fn restore(
        self: &Arc<Self>,
        actor: Actor,
        name: &str,
        to: RestoreTo,
    ) -> Result<BranchView> {
        let name = name.to_owned();
        self.changing(true, move |this| {
            let RestoreTo { at, keep_as } = to;
            let before = this.record(&name)?;
            rules::allow(Action::Restore, &name, &before)?;
            keep_as.iter().try_for_each(|name| this.directory.require_free(name, None))?;
            let held = this.hold(&name, &at)?;
            this.change(&actor, Action::Restore, &name, |record| {
                keep_as.iter().try_for_each(|name| this.directory.require_free(name, None))?;
                if record.timeline != before.timeline {
                    return Err(rules::changed_meanwhile(&name));
                }
                let old = TimelineId(record.timeline);
                let kept = keep_as.clone().map(|keep_as| {
                    let (id, created_ns) = (this.store.catalog().new_branch(), now_ns());
                    let kept = BranchRecord {
                        id,
                        created_ns,
                        protected: false,
                        allowance: Allowance::default(),
                        label: this.directory.new_label(&keep_as),
                        ..record.clone()
                    };
                    NameChange::Put(keep_as, kept)
                });
                let leaving =
                    if kept.is_some() { Departure::Suspend(old) } else { Departure::Retire(old) };
                let (branch, name) = (record.id, name.clone());
                let names = move |timeline: TimelineId| {
                    let forked_ns = now_ns();
                    let record = BranchRecord { timeline: timeline.0, forked_ns, ..record };
                    std::iter::once(NameChange::Put(name, record)).chain(kept).collect()
                };
                Ok(Decision {
                    branch,
                    other_name: keep_as,
                    data: Data::Moment(held),
                    names: Box::new(names),
                    leaving,
                })
            })?;
            this.get(&name)
        })
        .await
    }

    /// The moments that a branch can be taken back to.
    pub async fn history(self: &Arc<Self>, name: &str) -> Result<History> {
        let name = name.to_owned();
        self.blocking(move |this| moment::history(&this.store, this.timeline(&name)?)).await
    }
}
