//! The one place where names change.

use super::directory::NameChange;
use super::held::Held;
use super::{Branches, now_ns, rules};
use crate::error::Result;
use crate::events::{Action, Actor, Event};
use crate::locks::lock;
use crate::storage::catalog::{BranchRecord, Update};
use crate::storage::page::TimelineId;
use crate::tasks;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;

/// What an operation comes to: decided under the lock, then carried out.
pub(super) struct Decision<'s> {
    /// The branch that the event is about.
    pub(super) branch: u64,
    /// The other name of the event.
    pub(super) other_name: Option<String>,
    /// The timeline that the names are given to.
    pub(super) data: Data<'s>,
    /// What becomes of which names, given that timeline. In this order.
    pub(super) names: Box<dyn FnOnce(TimelineId) -> Vec<NameChange> + 's>,
    /// The timeline that no name leads to any more, or another one.
    pub(super) leaving: Departure,
}

/// The timeline of a change.
pub(super) enum Data<'s> {
    /// One that is there.
    Same(TimelineId),
    /// A new one from the head of this one.
    Fork(TimelineId),
    /// One that was made to show a moment.
    Moment(Held<'s>),
}

/// What becomes of the timeline that a name led to.
pub(super) enum Departure {
    /// The name leads there still, or did not exist.
    Nothing,
    /// Its Postgres stops for good, and its files go when no child needs them.
    Retire(TimelineId),
    /// It has another name now: its Postgres stops, so that nobody goes on under a name that they
    /// did not ask for.
    Suspend(TimelineId),
}

impl Branches {
    /// Changes a branch as `decide` says, under the lock. Sessions on what the name led to before
    /// have ended when it returns, which a thread of the runtime must not wait for. What the rules
    /// refuse is refused here, for every operation and every actor alike.
    pub(super) fn change<'s>(
        &'s self,
        actor: &Actor,
        action: Action,
        name: &str,
        decide: impl FnOnce(BranchRecord) -> Result<Decision<'s>>,
    ) -> Result<()> {
        let began = Instant::now();
        let left = {
            let _changing = lock(&self.changing);
            let record = self.record(name)?;
            rules::allow(action, name, &record)?;
            self.carry_out(actor, action, name, decide(record)?, began)?
        };
        // Without the lock, which other branches need: what was acknowledged on the former state
        // was so before this operation was.
        if let Some(timeline) = left {
            Handle::current().block_on(self.supervisor.end_sessions(timeline));
        }
        Ok(())
    }

    /// Makes a branch as `decide` says, under the lock, if its name may be had.
    pub(super) fn make<'s>(
        &'s self,
        actor: &Actor,
        action: Action,
        name: &str,
        decide: impl FnOnce() -> Result<Decision<'s>>,
    ) -> Result<()> {
        let began = Instant::now();
        let _changing = lock(&self.changing);
        // An import reserved its name when it began.
        self.directory.require_free(name, (action == Action::Import).then_some(name))?;
        self.carry_out(actor, action, name, decide()?, began).map(drop)
    }

    /// Returns the timeline that a name no longer leads to.
    fn carry_out(
        &self,
        actor: &Actor,
        action: Action,
        name: &str,
        decision: Decision<'_>,
        began: Instant,
    ) -> Result<Option<TimelineId>> {
        let Decision { branch, other_name, data, names, leaving } = decision;
        let (changed, timeline, freed) = self.publish(data, names)?;
        self.directory.apply(&changed);
        let left = self.follow_up(leaving, freed);
        self.announce(actor, action, (branch, name), other_name, (timeline, began));
        Ok(left)
    }

    /// Publishes the names of a timeline; with them the timeline, and the timelines freed.
    fn publish<'s>(
        &'s self,
        data: Data<'s>,
        names: impl FnOnce(TimelineId) -> Vec<NameChange>,
    ) -> Result<(Vec<NameChange>, TimelineId, Vec<TimelineId>)> {
        let mut changed = Vec::new();
        let put = |timeline| {
            changed = names(timeline);
            changed.iter().fold(Update::default(), |update, change| match change {
                NameChange::Put(name, record) => update.put(name, record.clone()),
                NameChange::Remove(name, _) => update.remove::<BranchRecord>(name),
            })
        };
        let (timeline, freed) = match data {
            Data::Same(timeline) => (timeline, self.store.publish(put(timeline))?),
            Data::Fork(parent) => self.store.fork(parent, put)?,
            Data::Moment(held) => held.publish(put)?,
        };
        Ok((changed, timeline, freed))
    }

    /// Logs a change and emits its event.
    pub(super) fn announce(
        &self,
        actor: &Actor,
        action: Action,
        (branch, name): (u64, &str),
        other_name: Option<String>,
        (timeline, began): (TimelineId, Instant),
    ) {
        tracing::info!(
            branch = %name, action = action.word(), %actor, %timeline, other = other_name,
            duration_us = micros(began), "branch changed"
        );
        let (actor, name) = (actor.clone(), name.to_owned());
        let event = Event { time_ns: now_ns(), actor, action, branch, name, other_name };
        self.events.emit(event);
    }

    fn follow_up(&self, leaving: Departure, freed: Vec<TimelineId>) -> Option<TimelineId> {
        match leaving {
            Departure::Nothing => None,
            Departure::Retire(timeline) => {
                self.supervisor.part(timeline);
                self.retire(timeline, freed);
                Some(timeline)
            }
            Departure::Suspend(timeline) => {
                self.supervisor.part(timeline);
                let supervisor = Arc::clone(&self.supervisor);
                let chore = self.tidying.begin();
                tokio::spawn(async move {
                    supervisor.suspend(timeline).await;
                    drop(chore);
                });
                Some(timeline)
            }
        }
    }

    /// Stops the Postgres of a timeline that no name leads to any more, then recycles the files of
    /// those freed.
    pub(super) fn retire(&self, timeline: TimelineId, freed: Vec<TimelineId>) {
        let (supervisor, mount, store) =
            (Arc::clone(&self.supervisor), Arc::clone(&self.mount), Arc::clone(&self.store));
        let chore = self.tidying.begin();
        tokio::spawn(async move {
            supervisor.drop_timeline(timeline).await;
            let tidy = move || {
                supervisor.remove_log(timeline);
                mount.detach(timeline);
                freed.iter().for_each(|id| mount.detach(*id));
                store.free(&freed);
            };
            tasks::blocking(tidy).await;
            drop(chore);
        });
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
