//! From one layer to another: what the catalog says of a lane, and then what readers see.

use crate::error::Result;
use crate::locks::lock;
use crate::storage::catalog::{LaneRecord, Update};
use crate::storage::layer::format::LayerId;
use crate::storage::slot::TimelineSlot;
use crate::storage::store::Store;
use crate::storage::timeline::Timeline;
use std::sync::{Arc, Mutex};

impl Store {
    /// Publishes the `record` of what a lane is made of with the new `layer`, and lets readers turn
    /// to it.
    pub(super) fn publish_lane<W>(
        &self,
        slot: &Mutex<TimelineSlot>,
        timeline: &Arc<Timeline>,
        layer: LayerId,
        written: W,
        record: impl FnOnce(&W, &LaneRecord) -> LaneRecord,
        turn: impl FnOnce(W, LaneRecord),
    ) -> Result<bool> {
        // What the layer leaves out may have been kept for a mark, which no crash may bring back.
        timeline.sync_data_and_wait().inspect_err(|_| self.remove_layer(layer))?;
        // Nobody may open the timeline anew, or drop it, between what the catalog says and what
        // readers see.
        let mut slot = lock(slot);
        let same = slot.timeline.as_ref().is_some_and(|open| Arc::ptr_eq(open, timeline));
        let published = if !same || timeline.latched().is_some() {
            Ok(None)
        } else {
            let record = record(&written, &slot.lanes[layer.lane]);
            let put_lanes = vec![(timeline.id(), layer.lane, record.clone())];
            self.publish(Update { put_lanes, ..Update::default() }).map(|_| Some(record))
        };
        assert_eq!(timeline.id(), layer.timeline, "{} is another's", layer.path());
        if let Ok(Some(record)) = published {
            slot.lanes[layer.lane] = record.clone();
            turn(written, record);
            return Ok(true);
        }
        if self.catalog().is_open() {
            // While the catalog cannot say whether it names the layer, it stays.
            self.remove_layer(layer);
        }
        published.map(|_| false)
    }

    pub(super) fn remove_layer(&self, layer: LayerId) {
        let path = layer.path();
        if let Err(error) = self.disk.remove(&path) {
            tracing::error!(%error, path, "a layer that is not needed stays until the next start");
        }
    }
}

/// The timeline of a place, if it is open and takes changes.
pub(super) fn healthy(slot: &Mutex<TimelineSlot>) -> Option<Arc<Timeline>> {
    lock(slot).timeline.clone().filter(|timeline| timeline.latched().is_none())
}
