//! Where a symbolic link may lead. A link must not lead out of its branch, since branches would
//! share the file that the link leads to.

use std::path::{Component, Path, PathBuf};

/// The target to store for a link in a directory that lies `depth` below the root of its tree,
/// which the mount shows at `root`; `None` if the link leads out. An absolute target inside the
/// tree becomes relative, so that the copy of a branch leads into the branch.
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
