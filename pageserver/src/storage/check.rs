//! Verification of a store that no server uses: every record, every page, and what the catalog says
//! of them.

use crate::error::{Error, Result};
use crate::storage::catalog::tables::CATALOG_FILE;
use crate::storage::catalog::{Catalog, LaneRecord};
use crate::storage::disk::Disk;
use crate::storage::disk::overlay::Overlay;
use crate::storage::layer::format::LayerEntry;
use crate::storage::layer::{Access, Layer};
use crate::storage::leftovers::require_catalog;
use crate::storage::log::Start;
use crate::storage::log::files::LaneFiles;
use crate::storage::log::format::Change;
use crate::storage::log::record::LaneFileId;
use crate::storage::log::recovery::{self, FoundRecord};
use crate::storage::page::{LaneKind, PAGE_BYTES, TimelineId};
use crate::storage::timeline::lane::open_layers;
use std::io;
use std::sync::Arc;

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Timelines looked at.
    pub timelines: usize,
    /// Records that check.
    pub records: u64,
    /// Pages that check.
    pub pages: u64,
    /// Each fault, naming file and offset.
    pub faults: Vec<String>,
}

/// Reads all of the store on `disk`, as the next start would, and changes nothing.
pub fn check(disk: &Arc<dyn Disk>) -> Result<Report> {
    require_catalog(disk)?;
    match disk.open(CATALOG_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let detail = format!("the store has no file {CATALOG_FILE}: no server has used it yet");
            return Err(Error::not_found("no_store", detail));
        }
        opened => drop(opened.map_err(|e| Error::io(format!("open {CATALOG_FILE}"), &e))?),
    }
    let overlay: Arc<dyn Disk> = Arc::new(Overlay::new(Arc::clone(disk)));
    let catalog = Catalog::open(&overlay, 0)?;
    let (lane_files, mut found) = LaneFiles::open(overlay, catalog.store())?;
    let mut report = Report::default();
    let mut timelines = catalog.timelines();
    timelines.sort_unstable();
    for id in timelines {
        report.timelines += 1;
        let mut files: Vec<LaneFileId> =
            found.remove(&id).unwrap_or_default().into_iter().map(|(file, _)| file).collect();
        files.sort_unstable();
        check_timeline(&catalog, &lane_files, id, &files, &mut report);
    }
    Ok(report)
}

fn check_timeline(
    catalog: &Catalog,
    lane_files: &LaneFiles,
    id: TimelineId,
    files: &[LaneFileId],
    report: &mut Report,
) {
    for lane in LaneKind::ALL {
        let record = catalog.timeline(id).unwrap_or_default().lanes[lane].clone();
        let files: Vec<LaneFileId> = files
            .iter()
            .filter(|file| file.lane == lane && file.sequence >= record.sequence)
            .copied()
            .collect();
        let start = Start { sealed: record.sealed, sequence: record.sequence };
        let synced = catalog.forks(id).iter().map(|fork| fork.synced[lane]).max().unwrap_or(0);
        check_layers(lane_files, (id, lane), &record, report);
        let outcome = recovery::inspect(
            lane_files,
            (id, lane),
            &files,
            (start, synced),
            &mut |found, file| {
                report.records += 1;
                let name = LaneFiles::describe(LaneFileId {
                    timeline: id,
                    lane,
                    sequence: found.sequence,
                });
                let mut page = vec![0; PAGE_BYTES];
                for (nth, (inode, block, crc)) in pages(found).enumerate() {
                    let offset = (found.pages_offset() + nth * PAGE_BYTES) as u64;
                    let read = file.read_exact_at(&mut page, offset);
                    if read.is_err() || crc32fast::hash(&page) != crc {
                        report.faults.push(format!(
                            "{name} at {offset}: block {block} of inode {inode:#x} is damaged"
                        ));
                    } else {
                        report.pages += 1;
                    }
                }
                Ok(())
            },
        );
        if let Err(error) = outcome {
            report.faults.push(error.detail);
        }
    }
}

fn check_layers(
    lane_files: &LaneFiles,
    (timeline, lane): (TimelineId, LaneKind),
    record: &LaneRecord,
    report: &mut Report,
) {
    let layers = match open_layers(lane_files, (timeline, lane), record) {
        Ok(layers) => layers,
        Err(error) => return report.faults.push(error.detail),
    };
    for layer in layers {
        if let Err(error) = layer.metadata().and_then(|_| check_pages(&layer, report)) {
            report.faults.push(error.detail);
        }
    }
}

fn check_pages(layer: &Layer, report: &mut Report) -> Result<()> {
    let mut entries = layer.scan().collect::<Result<Vec<LayerEntry>>>()?;
    // Groups in the order of the file; each is read once.
    entries.retain(|entry| entry.page.is_some());
    entries.sort_unstable_by_key(|entry| entry.page.map(|page| page.group));
    let mut page = vec![0; PAGE_BYTES];
    for of_group in
        entries.chunk_by(|a, b| a.page.map(|page| page.group) == b.page.map(|page| page.group))
    {
        let Some(group) = of_group[0].page.map(|page| page.group) else { continue };
        layer.read_groups(group..group + 1, Access::InOrder, |_, pages| {
            for entry in of_group {
                match layer.take_page(&pages, entry, &mut page) {
                    Ok(()) => report.pages += 1,
                    Err(error) => report.faults.push(error.detail),
                }
            }
        })?;
    }
    Ok(())
}

fn pages(found: &FoundRecord) -> impl Iterator<Item = (u64, u32, u32)> {
    found.changes.iter().flat_map(|change| {
        let (inode, first, crcs): (u64, u32, &[u32]) = match change {
            Change::Pages { inode, block, crcs } => (*inode, *block, crcs),
            _ => (0, 0, &[]),
        };
        crcs.iter().zip(first..).map(move |(crc, block)| (inode, block, *crc))
    })
}
