//! Names and lengths of the files of lanes.
//!
//! A lane file is `lanes/TIMELINE.d.SEQUENCE` or `lanes/TIMELINE.w.SEQUENCE`, numbers in
//! hexadecimal; a spare one is `lanes/spare.N`.

use crate::storage::log::record::LaneFileId;
use crate::storage::page::{LaneKind, TimelineId};

/// Directory of the lane files in the store.
pub const LANES_DIRECTORY: &str = "lanes";
/// Length of a write-ahead lane's file.
pub const WAL_FILE_BYTES: u64 = 16 << 20;
/// Length at which the data lane begins its next file.
pub const DATA_FILE_BYTES: u64 = 64 << 20;
/// How the name of a spare file begins.
pub(in crate::storage) const SPARE_PREFIX: &str = "spare.";

/// Path of a lane file in the store.
pub(super) fn path(name: &str) -> String {
    format!("{LANES_DIRECTORY}/{name}")
}

/// Name of a file.
pub(super) fn file_name(id: LaneFileId) -> String {
    let lane = match id.lane {
        LaneKind::Data => 'd',
        LaneKind::Wal => 'w',
    };
    format!("{}.{lane}.{:08x}", id.timeline, id.sequence)
}

/// Which file has this name; `None` if it is no lane file's.
pub(super) fn parse_file_name(name: &str) -> Option<LaneFileId> {
    let mut parts = name.split('.');
    let timeline: TimelineId = parts.next()?.parse().ok()?;
    let lane = match parts.next()? {
        "d" => LaneKind::Data,
        "w" => LaneKind::Wal,
        _ => return None,
    };
    let sequence = u32::from_str_radix(parts.next()?, 16).ok()?;
    let id = LaneFileId { timeline, lane, sequence };
    (file_name(id) == name).then_some(id)
}
