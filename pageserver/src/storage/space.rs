//! Bytes: of a timeline, of the store, and of the medium.

use crate::error::{Error, Kind, Result};
use crate::locks::lock;
use crate::storage::layer::format::LAYERS_DIRECTORY;
use crate::storage::log::names::LANES_DIRECTORY;
use crate::storage::page::{PerLane, TimelineId};
use crate::storage::store::Store;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Bytes on the disk.
#[derive(Debug, Default)]
pub struct Usage {
    /// Of each timeline's files.
    pub timelines: HashMap<TimelineId, u64>,
    /// Of all others.
    pub reserve: u64,
}

/// A disk that was asked and did not answer for so long is taken to hang.
const SILENCE: Duration = Duration::from_secs(30);

/// What both lanes show. A user of a branch can make files of any size, so the sum has an end.
fn sum(lanes: &PerLane<u64>) -> u64 {
    lanes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

impl Store {
    /// Bytes of a timeline's own files, and of what it shows unless a killed server left that to be
    /// found out. Of a timeline that is being opened or forked, what was last known.
    pub fn sizes(&self, id: TimelineId) -> Result<(u64, Option<u64>)> {
        let slot = self.slot(id)?;
        let Ok(slot) = slot.try_lock() else {
            return Ok(lock(&self.sizes).get(&id).copied().unwrap_or_default());
        };
        let sizes = match &slot.timeline {
            Some(timeline) => (timeline.own_bytes(), Some(sum(&timeline.logical_bytes()))),
            None => {
                let layers =
                    slot.lanes.iter().flat_map(|lane| &lane.layers).map(|layer| layer.bytes);
                let own = slot.files.iter().map(|(_, length)| *length).chain(layers).sum();
                (own, (!slot.has_log()).then(|| sum(&slot.sealed_logical_bytes())))
            }
        };
        lock(&self.sizes).insert(id, sizes);
        Ok(sizes)
    }

    /// Looks whether the medium answers, for [`Store::health`], and opens the catalog again if a
    /// failed change closed it.
    pub fn measure(&self) -> Result<()> {
        let open = if self.catalog().is_open() { Ok(()) } else { self.catalog().require() };
        let measured = open.and_then(|()| self.space().map(drop));
        *lock(&self.measured) = (Instant::now(), measured.clone());
        measured
    }

    /// Whether timelines can be made: the catalog takes changes, and the medium answered when it
    /// was last asked. Waits for nothing, and costs the same whatever the store holds.
    pub fn health(&self) -> Result<()> {
        if !self.catalog().is_open() {
            let detail = "the catalog is closed after a failed change; the server's log has why";
            return Err(Error::unavailable("catalog", detail));
        }
        let (when, measured) = lock(&self.measured).clone();
        if when.elapsed() > SILENCE {
            let seconds = when.elapsed().as_secs();
            let detail = format!("the store's disk has not answered for {seconds} s");
            return Err(Error::unavailable("disk_silent", detail));
        }
        measured
    }

    /// Bytes that can still be written, and bytes of the whole medium.
    pub fn space(&self) -> Result<(u64, u64)> {
        let failed = |e: std::io::Error| Error::io("ask for the free space of the store", &e);
        Ok((self.disk.free_bytes().map_err(failed)?, self.disk.total_bytes().map_err(failed)?))
    }

    /// Bytes of all files of the store, the spare ones included.
    pub fn bytes(&self) -> Result<u64> {
        let usage = self.usage()?;
        Ok(usage.reserve + usage.timelines.values().sum::<u64>())
    }

    /// What is on the disk, file by file.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for directory in ["", LANES_DIRECTORY, LAYERS_DIRECTORY] {
            let files =
                self.disk.list(directory).map_err(|e| Error::io("list the store's files", &e))?;
            for (name, length) in files {
                // Whatever does not begin with the number of a timeline belongs to none: spare
                // files and the catalog.
                let owner =
                    name.split_once('.').and_then(|(owner, _)| owner.parse::<TimelineId>().ok());
                *owner.map_or(&mut usage.reserve, |owner| {
                    usage.timelines.entry(owner).or_default()
                }) += length;
            }
        }
        Ok(usage)
    }

    /// Refuses work that writes so many bytes if it could fill the disk, which is for what clients
    /// write.
    pub(super) fn require_room(&self, bytes: u64) -> Result<()> {
        let (free, total) = self.space()?;
        if free >= bytes.saturating_add(total / 50) {
            return Ok(());
        }
        let detail =
            format!("{free} bytes are free, {bytes} may be needed for a while; free some space");
        Err(Error::new(Kind::Full, "disk_full", detail))
    }
}
