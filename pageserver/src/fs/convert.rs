//! Converts attributes between the store's form and that of the protocol.

use crate::fs::nodes::MOUNT_ROOT;
use crate::fs::owners::Owners;
use crate::fs::protocol::ShownInode;
use crate::storage::log::format::{Attributes, FileKind};

pub(super) use crate::storage::clock::machine_ns as now_ns;

pub(super) fn shown(number: u64, attributes: &Attributes, owners: &Owners) -> ShownInode {
    ShownInode {
        number,
        kind: attributes.kind,
        mode: attributes.mode,
        size: attributes.size,
        links: attributes.links,
        owner: owners.show((attributes.uid, attributes.gid)),
        modified_ns: attributes.modified_ns,
        changed_ns: attributes.changed_ns,
    }
}

pub(super) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// The mount's own directory.
pub(super) fn mount_root(owner: (u32, u32)) -> ShownInode {
    ShownInode {
        number: MOUNT_ROOT,
        kind: FileKind::Directory,
        mode: 0o711,
        size: 0,
        links: 1,
        owner,
        modified_ns: 0,
        changed_ns: 0,
    }
}
