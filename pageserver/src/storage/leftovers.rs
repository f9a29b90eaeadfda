//! What a crash left in the store's directory, and what may not be taken for that.

use crate::error::{Error, Result};
use crate::storage::catalog::LaneRecord;
use crate::storage::catalog::tables::CATALOG_FILE;
use crate::storage::disk::Disk;
use crate::storage::layer::format::{LAYERS_DIRECTORY, LayerId};
use crate::storage::layer::writer::UNFINISHED_PREFIX;
use crate::storage::log::files::Files;
use crate::storage::log::names::{LANES_DIRECTORY, SPARE_PREFIX};
use crate::storage::page::{LaneKind, PerLane, TimelineId};
use std::collections::HashSet;
use std::sync::Arc;

/// Refuses lane files without a catalog: a start would take them for leftovers of nobody and remove
/// them.
pub(super) fn require_catalog(disk: &Arc<dyn Disk>) -> Result<()> {
    let list =
        |directory| disk.list(directory).map_err(|e| Error::io("list the store's files", &e));
    let catalog = list("")?.iter().any(|(name, length)| name == CATALOG_FILE && *length > 0);
    let lanes = list(LANES_DIRECTORY)?.iter().any(|(name, _)| !name.starts_with(SPARE_PREFIX));
    let layers =
        list(LAYERS_DIRECTORY)?.iter().any(|(name, _)| !name.starts_with(UNFINISHED_PREFIX));
    if catalog || !(lanes || layers) {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the store has lane files or layers but no catalog: restore the file {CATALOG_FILE} from a \
         backup of the store"
    )))
}

/// The lane files that still count, and those that are sealed.
pub(super) fn split_sealed(files: Files, lanes: &PerLane<LaneRecord>) -> (Files, Files) {
    files.into_iter().partition(|(file, _)| file.sequence >= lanes[file.lane].sequence)
}

/// The files of a timeline's layers.
pub(super) fn layer_paths(
    timeline: TimelineId,
    lanes: &PerLane<LaneRecord>,
) -> impl Iterator<Item = String> {
    LaneKind::ALL.into_iter().flat_map(move |lane| {
        lanes[lane]
            .layers
            .iter()
            .map(move |layer| LayerId { timeline, lane, number: layer.number }.path())
    })
}

/// Removes layers that the catalog does not name: cut off by a crash, or replaced.
pub(super) fn remove_unnamed_layers(disk: &dyn Disk, named: &HashSet<String>) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("remove unfinished layers", &e);
    let paths = disk.list(LAYERS_DIRECTORY).map_err(failed)?.into_iter();
    let paths = paths.map(|(name, _)| format!("{LAYERS_DIRECTORY}/{name}"));
    paths
        .filter(|path| !named.contains(path))
        .try_for_each(|path| disk.remove(&path))
        .map_err(failed)
}
