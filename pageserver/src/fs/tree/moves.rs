//! Hard links and renames, and the check that a symbolic link which moves does not lead out of its
//! branch.

use crate::fs::error::TreeResult;
use crate::fs::links::stored_target;
use crate::fs::tree::{Tree, put_name, take_name, unlink};
use crate::storage::index::Target;
use crate::storage::log::format::{Attributes, Change, FileKind};
use crate::storage::page::{LaneKind, ROOT_INODE, lane_of};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Deepest directory that may hold a symbolic link.
const MAX_DEPTH: usize = 64;

impl Tree {
    /// Gives an inode another name.
    pub fn hard_link(
        &self,
        inode: u64,
        directory: u64,
        name: &[u8],
        now_ns: i64,
    ) -> TreeResult<Attributes> {
        self.check_new_name(directory, name)?;
        if lane_of(inode) != lane_of(directory) || !self.scratch.lets_move(inode, directory, name) {
            return Err(Errno::EXDEV.into());
        }
        self.timeline.append(lane_of(inode), |record| {
            let mut attributes = record.attributes(inode).ok_or(Errno::ESTALE)?;
            attributes.links += 1;
            attributes.changed_ns = now_ns;
            let target = Target { inode, kind: attributes.kind };
            record.push(Change::Attributes { inode, attributes: attributes.clone() });
            put_name(record, directory, name, target, now_ns);
            Ok(attributes)
        })
    }

    /// Gives the inode of `name` the name `new_name`. Replaces the inode that had the new name, or
    /// fails if `keep`.
    pub fn rename(
        &self,
        (directory, name): (u64, &[u8]),
        (new_directory, new_name): (u64, &[u8]),
        keep: bool,
        now_ns: i64,
    ) -> TreeResult<()> {
        if lane_of(directory) != lane_of(new_directory) {
            return Err(Errno::EXDEV.into());
        }
        let (inode, attributes) = self.lookup(directory, name)?;
        if !self.scratch.lets_move(inode, new_directory, new_name) {
            return Err(Errno::EXDEV.into());
        }
        if directory != new_directory && attributes.kind != FileKind::File {
            self.check_move((inode, &attributes), new_directory)?;
        }
        let replaced = self.lookup(new_directory, new_name).ok();
        if let Some((other, other_attributes)) = &replaced {
            match (
                attributes.kind == FileKind::Directory,
                other_attributes.kind == FileKind::Directory,
            ) {
                _ if keep => return Err(Errno::EEXIST.into()),
                // Two names of one file: nothing to do, says rename(2).
                _ if *other == inode => return Ok(()),
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) if !self.list(*other).is_empty() => {
                    return Err(Errno::ENOTEMPTY.into());
                }
                _ => {}
            }
        }
        let lane = lane_of(directory);
        let (here, elsewhere): (Vec<u64>, Vec<u64>) =
            replaced.iter().map(|(other, _)| *other).partition(|other| lane_of(*other) == lane);
        self.timeline.append(lane, |record| -> TreeResult<()> {
            take_name(record, directory, name, now_ns);
            here.iter().try_for_each(|other| unlink(record, *other, now_ns))?;
            put_name(
                record,
                new_directory,
                new_name,
                Target { inode, kind: attributes.kind },
                now_ns,
            );
            Ok(())
        })?;
        elsewhere.iter().try_for_each(|other| {
            self.timeline.append(lane_of(*other), |record| unlink(record, *other, now_ns))
        })
    }

    /// How many directories lie above a directory in what a mount shows of the tree. Looks through
    /// all directories, so only for rare use.
    pub fn depth(&self, directory: u64) -> Option<usize> {
        let apart = self.wal_apart.filter(|_| lane_of(directory) == LaneKind::Wal);
        let mut level = vec![apart.unwrap_or(ROOT_INODE)];
        for depth in 0..MAX_DEPTH {
            if level.contains(&directory) {
                return Some(depth);
            }
            let below = level.iter().flat_map(|inode| self.list(*inode));
            level = below
                .filter(|(.., t)| t.kind == FileKind::Directory)
                .map(|(.., t)| t.inode)
                .collect();
        }
        None
    }

    /// Refuses to move a link, or a directory with one below, to where it would lead out.
    fn check_move(&self, (inode, attributes): (u64, &Attributes), to: u64) -> TreeResult<()> {
        let mut below = vec![(inode, attributes.clone(), self.depth(to).ok_or(Errno::ENOENT)?)];
        while let Some((inode, attributes, depth)) = below.pop() {
            if attributes.kind == FileKind::Symlink
                && stored_target(Path::new(OsStr::from_bytes(&attributes.target)), depth, None)
                    .is_none()
            {
                return Err(Errno::EPERM.into());
            }
            if attributes.kind == FileKind::Directory {
                for (.., target) in
                    self.list(inode).into_iter().filter(|(.., t)| t.kind != FileKind::File)
                {
                    below.push((target.inode, self.attributes(target.inode)?, depth + 1));
                }
            }
        }
        Ok(())
    }
}
