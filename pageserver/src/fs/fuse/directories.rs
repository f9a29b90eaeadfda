//! Listings of directories, in pieces as long as the kernel has room for.

use super::Adapter;
use crate::fs::nodes::{MOUNT_ROOT, Node};
use crate::fs::protocol::Listing;
use crate::fs::reply::{Reply, reply_body};
use crate::fs::tree::Tree;
use crate::locks::read;
use crate::storage::log::format::FileKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Cookies of `.` and `..`; those of names are positions, which are far above.
const DOT_COOKIES: [u64; 2] = [1, 2];

impl Adapter {
    pub(super) fn read_directory(&self, number: u64, offset: u64, size: u32, reply: Reply) {
        let mut names = Listing::new(size);
        let dots = DOT_COOKIES.into_iter().zip([".", ".."]).filter(|(cookie, _)| offset < *cookie);
        for (cookie, name) in dots {
            if !names.add(number, cookie, FileKind::Directory, OsStr::new(name)) {
                return reply.body(names.into_body());
            }
        }
        let listed = if number == MOUNT_ROOT {
            self.list_roots(offset, &mut names);
            Ok(())
        } else {
            self.node(number).map(|node| self.list(&node, offset, &mut names))
        };
        reply_body(reply, listed.map(|()| names.into_body()));
    }

    fn list_roots(&self, offset: u64, names: &mut Listing) {
        let shown =
            |(name, tree): (&String, &Arc<Tree>)| self.root_inode(tree).map(|_| name.clone());
        let roots: Vec<String> = read(&self.roots).iter().filter_map(shown).collect();
        for (name, cookie) in roots.iter().zip(DOT_COOKIES[1] + 1..) {
            if offset < cookie && !names.add(cookie, cookie, FileKind::Directory, OsStr::new(name))
            {
                break;
            }
        }
    }

    fn list(&self, node: &Node, offset: u64, names: &mut Listing) {
        // Behind a dot the listing itself has not begun.
        let offset = if offset <= DOT_COOKIES[1] { 0 } else { offset };
        node.tree.list_behind(node.inode, offset, |cookie, name, target| {
            let linked = self.link_to_wal(&node.tree, target.inode).is_some();
            let kind = if linked { FileKind::Symlink } else { target.kind };
            names.add(target.inode, cookie, kind, OsStr::from_bytes(name))
        });
    }
}
