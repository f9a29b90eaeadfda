//! Where a symbolic link may lead: nowhere out of its branch, since what it leads to would be
//! shared between branches.

use crate::fs::tree::{Result, Tree};
use crate::storage::log::format::{Attributes, FileKind};
use crate::storage::page::{LaneKind, ROOT_INODE, lane_of};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Deepest directory that may hold a symbolic link.
const MAX_DEPTH: usize = 64;

/// How many directories lie above a directory in what a mount shows of its tree; looks through all
/// of them, so only for rare use.
pub fn depth(tree: &Tree, directory: u64) -> Option<usize> {
    let apart = tree.wal_apart().filter(|_| lane_of(directory) == LaneKind::Wal);
    let mut level = vec![apart.unwrap_or(ROOT_INODE)];
    for depth in 0..MAX_DEPTH {
        if level.contains(&directory) {
            return Some(depth);
        }
        let below = level.iter().flat_map(|inode| tree.list(*inode));
        level =
            below.filter(|(.., t)| t.kind == FileKind::Directory).map(|(.., t)| t.inode).collect();
    }
    None
}

/// Refuses to move a link, or a directory with one below, to where it would lead out.
pub fn check_move(tree: &Tree, (inode, attributes): (u64, &Attributes), to: u64) -> Result<()> {
    let mut below = vec![(inode, attributes.clone(), depth(tree, to).ok_or(Errno::ENOENT)?)];
    while let Some((inode, attributes, depth)) = below.pop() {
        if attributes.kind == FileKind::Symlink
            && stored_target(Path::new(OsStr::from_bytes(&attributes.target)), depth, None)
                .is_none()
        {
            return Err(Errno::EPERM.into());
        }
        if attributes.kind == FileKind::Directory {
            for (.., target) in
                tree.list(inode).into_iter().filter(|(.., t)| t.kind != FileKind::File)
            {
                below.push((target.inode, tree.attributes(target.inode)?, depth + 1));
            }
        }
    }
    Ok(())
}

/// The target to store for a link in a directory that lies `depth` below its tree's root, which is
/// shown at `root`; `None` if it leads out. An absolute target inside becomes relative, so that a
/// branch's copy leads into the branch.
pub fn stored_target(target: &Path, mut depth: usize, root: Option<&Path>) -> Option<PathBuf> {
    let mut stored = PathBuf::new();
    if target.is_absolute() {
        (0..depth).for_each(|_| stored.push(".."));
        stored.push(target.strip_prefix(root?).ok()?);
    } else {
        stored.push(target);
    }
    let mut named = false;
    for part in stored.components() {
        match part {
            // Behind a name, which may itself be a link, nobody can tell where `..` leads.
            Component::ParentDir if named => return None,
            Component::ParentDir => depth = depth.checked_sub(1)?,
            Component::CurDir => {}
            _ => named = true,
        }
    }
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_in_its_branch() {
        let root = Path::new("/mnt/00000001");
        let stored = |target: &str, depth| stored_target(Path::new(target), depth, Some(root));
        assert_eq!(stored("a/b", 0), Some("a/b".into()));
        assert_eq!(stored("../a", 1), Some("../a".into()));
        assert_eq!(stored("/mnt/00000001/tablespaces/7", 1), Some("../tablespaces/7".into()));
        for (target, depth) in
            [("../a", 0), ("a/../../b", 1), ("a/../b", 0), ("/mnt/00000002/x", 1), ("/etc", 1)]
        {
            assert_eq!(stored(target, depth), None, "{target} at {depth}");
        }
        assert_eq!(stored_target(Path::new("/mnt/00000001/x"), 0, None), None);
    }
}
