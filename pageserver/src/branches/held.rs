//! A timeline that is made before its name is given.

use crate::error::Result;
use crate::moment;
use crate::storage::catalog::Update;
use crate::storage::page::TimelineId;
use crate::storage::store::Store;

/// A timeline that shows a moment and has no name yet; given up when dropped.
pub(super) struct Held<'s> {
    store: &'s Store,
    id: Option<TimelineId>,
}

impl<'s> Held<'s> {
    pub(super) fn new(store: &'s Store, id: TimelineId) -> Self {
        Self { store, id: Some(id) }
    }

    /// Publishes `put` of the timeline, which gives it a name. Returns it with the timelines that
    /// are freed.
    pub(super) fn publish(
        mut self,
        put: impl FnOnce(TimelineId) -> Update,
    ) -> Result<(TimelineId, Vec<TimelineId>)> {
        let Some(id) = self.id else { unreachable!("it is taken when dropped only") };
        let freed = self.store.publish(put(id))?;
        self.id = None;
        Ok((id, freed))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            moment::release(self.store, id);
        }
    }
}
