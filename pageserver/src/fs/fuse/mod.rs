//! The adapter between FUSE and the trees: decode, call, reply.
//!
//! There are two mounts. One shows the data directories. The other shows the write-ahead logs of
//! the data directories that Postgres runs on; `pg_wal` in such a data directory is then a link to
//! the second mount. A change on the second mount is durable before the adapter answers, with two
//! exceptions: a sync of the directory makes a removal durable, and a clean stop makes times
//! durable. So the adapter tells the kernel not to ask for syncs of files there, and a commit of
//! Postgres is one request, the write of its pages, in place of two.
//!
//! Only this process changes the files, so the kernel may cache everything for ever: contents,
//! attributes, names and the absence of names. The adapter answers open, create and flush with "not
//! implemented" once, and the kernel then no longer asks. Through `/dev/fuse`, at most
//! [`MAX_INLINE`](crate::storage::timeline::syncer::MAX_INLINE) callbacks wait for a sync at the
//! same time; the syncer's threads send the other replies. A process that writes faster than the
//! disk waits too, on the thread that serves the request.

mod directories;

use crate::fs::convert::{mount_root, now_ns, permissions, shown};
use crate::fs::error::{TreeError, TreeResult};
use crate::fs::links::stored_target;
use crate::fs::nodes::{MOUNT_ROOT, Node, Nodes};
use crate::fs::protocol::{
    AttributeChange, Operation, RENAME_NOREPLACE, ReplyBody, Request, ShownInode, Time,
};
use crate::fs::reply::{
    Reply, reply_attr, reply_body, reply_bytes, reply_empty, reply_entry, reply_sync, report,
};
use crate::fs::scratch::LOCK_FILE;
use crate::fs::tree::{NewInode, Tree, Wanted};
use crate::locks::{read, write};
use crate::storage::disk::slow::Watch;
use crate::storage::log::format::{Attributes, FileKind};
use crate::storage::page::{LaneKind, ROOT_INODE};
use crate::storage::store::Store;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

/// Trees by the name of their directory in the mount.
pub type Roots = Arc<RwLock<BTreeMap<String, Arc<Tree>>>>;

/// Which of the two mounts an adapter serves.
pub enum Side {
    /// Data directories.
    Data {
        /// Directory of the other mount, which shows their write-ahead logs.
        wal: PathBuf,
    },
    /// Write-ahead logs.
    Wal,
}

/// The file system that the kernel talks to.
pub struct Adapter {
    side: Side,
    store: Arc<Store>,
    roots: Roots,
    nodes: Nodes,
    mountpoint: PathBuf,
    owner: (u32, u32),
    /// Whether the store is about to close.
    is_closed: AtomicBool,
}

impl Adapter {
    /// A file system that shows this side of `roots` at `mountpoint`, whose own directory belongs
    /// to `owner`.
    pub fn new(
        side: Side,
        store: Arc<Store>,
        roots: Roots,
        mountpoint: PathBuf,
        owner: (u32, u32),
    ) -> Self {
        let (nodes, is_closed) = (Nodes::default(), AtomicBool::new(false));
        Self { side, store, roots, nodes, mountpoint, owner, is_closed }
    }

    fn node(&self, number: u64) -> TreeResult<Node> {
        // The mount's own directory holds only trees; no process changes it through the kernel.
        if number == MOUNT_ROOT {
            return Err(Errno::EPERM.into());
        }
        self.nodes.get(number).ok_or(TreeError::Errno(Errno::ESTALE))
    }

    fn entry(&self, tree: &Arc<Tree>, inode: u64, attributes: &Attributes) -> ShownInode {
        let number = self.nodes.look_up(Node { tree: Arc::clone(tree), inode });
        self.attr(number, tree, inode, attributes)
    }

    fn attr(&self, number: u64, tree: &Tree, inode: u64, attributes: &Attributes) -> ShownInode {
        match self.link_to_wal(tree, inode) {
            Some(target) => {
                let size = target.as_os_str().len() as u64;
                let link =
                    Attributes { kind: FileKind::Symlink, mode: 0o777, size, ..attributes.clone() };
                shown(number, &link, tree.owners())
            }
            None => shown(number, attributes, tree.owners()),
        }
    }

    /// The target of the link that this mount shows in place of an inode.
    fn link_to_wal(&self, tree: &Tree, inode: u64) -> Option<PathBuf> {
        match &self.side {
            Side::Data { wal } if tree.wal_apart() == Some(inode) => {
                Some(wal.join(self.root_name(tree)?))
            }
            _ => None,
        }
    }

    fn root_name(&self, tree: &Tree) -> Option<String> {
        let roots = read(&self.roots);
        roots.iter().find(|(_, root)| std::ptr::eq(&***root, tree)).map(|(name, _)| name.clone())
    }

    /// The inode of a tree that this mount shows as a directory of its own.
    fn root_inode(&self, tree: &Tree) -> Option<u64> {
        match self.side {
            Side::Data { .. } => Some(ROOT_INODE),
            Side::Wal => tree.wal_apart(),
        }
    }

    fn look_up(&self, parent: u64, name: &OsStr) -> TreeResult<ShownInode> {
        if parent == MOUNT_ROOT {
            let tree =
                read(&self.roots).get(&*name.to_string_lossy()).cloned().ok_or(Errno::ENOENT)?;
            let root = self.root_inode(&tree).ok_or(Errno::ENOENT)?;
            return Ok(self.entry(&tree, root, &tree.attributes(root)?));
        }
        let node = self.node(parent)?;
        let (inode, attributes) = node.tree.lookup(node.inode, name.as_bytes())?;
        Ok(self.entry(&node.tree, inode, &attributes))
    }

    /// Answers with the outcome of a change to `number`. On the mount of write-ahead logs the
    /// answer waits until the change is durable: Postgres takes it for a commit.
    fn answer_when_durable<T: Send + 'static>(
        &self,
        number: u64,
        outcome: TreeResult<T>,
        answer: impl FnOnce(TreeResult<T>) + Send + 'static,
    ) {
        let node_and_value = match (&self.side, outcome) {
            (Side::Wal, Ok(value)) => self.node(number).map(|node| (node, value)),
            (_, outcome) => return answer(outcome),
        };
        match node_and_value {
            Ok((node, value)) => {
                let done = |synced: crate::error::Result<()>| {
                    answer(synced.map(|()| value).map_err(TreeError::Store))
                };
                node.tree.timeline().sync(LaneKind::Wal, Box::new(done));
            }
            Err(error) => answer(Err(error)),
        }
    }

    fn make(&self, parent: u64, name: &OsStr, new: &NewInode<'_>) -> TreeResult<ShownInode> {
        let node = self.node(parent)?;
        let new = NewInode { owner: node.tree.owners().store(new.owner), ..*new };
        let (inode, attributes) = node.tree.make(node.inode, name.as_bytes(), &new, now_ns())?;
        Ok(self.entry(&node.tree, inode, &attributes))
    }

    /// The target to store for a symbolic link. A link into the same tree becomes relative. A link
    /// out of the tree is refused, since branches would share the file that it leads to.
    ///
    /// A running Postgres may give no absolute target at all: it logs the path of a new tablespace,
    /// and a branch that replays the record would find its parent's directory there. Tools that
    /// work before Postgres starts log nothing.
    fn link_target(&self, node: &Node, target: &Path) -> TreeResult<Vec<u8>> {
        let leads_out = || {
            tracing::warn!(
                target = %target.display(),
                timeline = %node.tree.timeline().id(),
                "refused a symbolic link out of the branch: what it leads to would be shared \
                 between branches; use a relative link inside the data directory, and for a \
                 tablespace SET allow_in_place_tablespaces = on; CREATE TABLESPACE name LOCATION ''"
            );
            TreeError::Errno(Errno::EPERM)
        };
        if target.is_absolute() && node.tree.lookup(ROOT_INODE, LOCK_FILE).is_ok() {
            return Err(leads_out());
        }
        let depth = node.tree.depth(node.inode).ok_or(Errno::ENOENT)?;
        let root = match self.side {
            Side::Data { .. } => self.root_name(&node.tree).map(|name| self.mountpoint.join(name)),
            Side::Wal => None,
        };
        let stored = stored_target(target, depth, root.as_deref()).ok_or_else(leads_out)?;
        Ok(stored.into_os_string().into_vec())
    }
}

impl Adapter {
    /// Refuses every request from now on: the store is about to close.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Serves a request, and has `reply` answered.
    pub(super) fn serve(&self, request: Request<'_>, reply: Reply) {
        if self.is_closed.load(Ordering::Relaxed) {
            return reply.error(Errno::EIO);
        }
        let (number, owner) = (request.node, (request.uid, request.gid));
        let new = |kind, mode| NewInode { kind, mode: permissions(mode), owner, target: &[] };
        match request.operation {
            Operation::LookUp { name } => self.lookup(number, name, reply),
            Operation::Forget(forgotten) => {
                reply.none();
                forgotten.iter().for_each(|(number, lookups)| self.forget(*number, *lookups));
            }
            Operation::GetAttributes => self.get_attributes(number, reply),
            Operation::SetAttributes(change) => self.set_attributes(number, &change, reply),
            Operation::ReadLink => self.read_link(number, reply),
            Operation::Symlink { name, target } => {
                self.symlink(number, owner, (name, target), reply)
            }
            Operation::MakeNode { name, mode } => {
                let regular = mode & nix::libc::S_IFMT == nix::libc::S_IFREG;
                let outcome = if regular {
                    self.make(number, name, &new(FileKind::File, mode))
                } else {
                    Err(Errno::EPERM.into())
                };
                self.answer_when_durable(number, outcome, |outcome| reply_entry(reply, outcome));
            }
            Operation::MakeDirectory { name, mode } => {
                let outcome = self.make(number, name, &new(FileKind::Directory, mode));
                self.answer_when_durable(number, outcome, |outcome| reply_entry(reply, outcome));
            }
            Operation::Remove { name, directory } => {
                let remove = |n: Node| n.tree.remove(n.inode, name.as_bytes(), directory, now_ns());
                reply_empty(reply, self.node(number).and_then(remove));
            }
            Operation::Rename { name, new_parent, new_name, flags } => {
                let outcome = self.rename((number, name), (new_parent, new_name), flags);
                self.answer_when_durable(number, outcome, |outcome| reply_empty(reply, outcome));
            }
            Operation::HardLink { number: linked, name } => {
                self.hard_link(linked, number, name, reply)
            }
            Operation::Read { offset, size } => self.read(number, offset, size, reply),
            Operation::Write { offset, data } => self.write(number, offset, data, reply),
            Operation::Space => self.space(reply),
            Operation::Sync { data_only } => self.sync(number, data_only, reply),
            // The kernel may not cache the list of the mount's own directory.
            Operation::OpenDirectory => reply.body(ReplyBody::opened(number != MOUNT_ROOT)),
            Operation::ReadDirectory { offset, size } => {
                self.read_directory(number, offset, size, reply)
            }
            Operation::SyncDirectory => self.sync_directory(number, reply),
            Operation::Allocate { offset, length, mode } => {
                let outcome = self.allocate(number, (offset, length), mode);
                self.answer_when_durable(number, outcome, |outcome| reply_empty(reply, outcome));
            }
            Operation::Release | Operation::Destroy => reply.ok(),
            // The session has answered this request before it serves the mount.
            Operation::Init(_) => reply.error(Errno::EIO),
            Operation::Unsupported => reply.error(Errno::ENOSYS),
        }
    }

    fn lookup(&self, parent: u64, name: &OsStr, reply: Reply) {
        match self.look_up(parent, name) {
            // Number 0 lets the kernel remember that there is no such name. In the mount's own
            // directory names appear without the kernel's doing, so there it asks again.
            Err(TreeError::Errno(Errno::ENOENT)) if parent != MOUNT_ROOT => {
                reply.body(ReplyBody::entry(&ShownInode { number: 0, ..mount_root(self.owner) }));
            }
            outcome => reply_entry(reply, outcome),
        }
    }

    fn forget(&self, number: u64, lookups: u64) {
        let Some(node) = self.nodes.forget(number, lookups) else { return };
        let nameless =
            node.tree.attributes(node.inode).is_ok_and(|attributes| attributes.links == 0);
        if nameless && let Err(error) = node.tree.reap(node.inode) {
            // The inode stays. The next opening of the timeline removes it.
            report(error);
        }
    }

    fn get_attributes(&self, number: u64, reply: Reply) {
        if number == MOUNT_ROOT {
            return reply_attr(reply, Ok(mount_root(self.owner)));
        }
        let shown = |node: Node| {
            let attributes = node.tree.attributes(node.inode)?;
            Ok(self.attr(number, &node.tree, node.inode, &attributes))
        };
        reply_attr(reply, self.node(number).and_then(shown));
    }

    fn set_attributes(&self, number: u64, change: &AttributeChange, reply: Reply) {
        let now = now_ns();
        let ns = |time: &Time| match time {
            Time::At { ns } => *ns,
            Time::Now => now,
        };
        let changed_ns = Some(change.changed.as_ref().map_or(now, ns));
        let modified_ns = change.modified.as_ref().map(ns).or(change.size.map(|_| now));
        let outcome = self.node(number).and_then(|node| {
            if self.link_to_wal(&node.tree, node.inode).is_some() {
                return Err(Errno::EPERM.into());
            }
            let owners = node.tree.owners();
            let uid = change.uid.map(|uid| owners.store((uid, 0)).0);
            let gid = change.gid.map(|gid| owners.store((0, gid)).1);
            let mode = change.mode.map(permissions);
            let wanted = Wanted { mode, uid, gid, size: change.size, modified_ns, changed_ns };
            let attributes = node.tree.set_attributes(node.inode, &wanted)?;
            Ok(shown(number, &attributes, owners))
        });
        self.answer_when_durable(number, outcome, |outcome| reply_attr(reply, outcome));
    }

    fn read_link(&self, number: u64, reply: Reply) {
        let target =
            self.node(number).and_then(|node| match self.link_to_wal(&node.tree, node.inode) {
                Some(target) => Ok(target.into_os_string().into_vec()),
                None => Ok(node.tree.attributes(node.inode)?.target),
            });
        reply_bytes(reply, target);
    }

    fn symlink(
        &self,
        parent: u64,
        owner: (u32, u32),
        (name, target): (&OsStr, &Path),
        reply: Reply,
    ) {
        let outcome =
            self.node(parent).and_then(|node| self.link_target(&node, target)).and_then(|target| {
                let new = NewInode { kind: FileKind::Symlink, mode: 0o777, owner, target: &target };
                self.make(parent, name, &new)
            });
        self.answer_when_durable(parent, outcome, |outcome| reply_entry(reply, outcome));
    }

    fn hard_link(&self, number: u64, parent: u64, name: &OsStr, reply: Reply) {
        let outcome = self.node(number).and_then(|node| {
            let directory = self.node(parent)?;
            if !Arc::ptr_eq(&node.tree, &directory.tree) {
                return Err(Errno::EXDEV.into());
            }
            let attributes =
                node.tree.hard_link(node.inode, directory.inode, name.as_bytes(), now_ns())?;
            Ok(self.entry(&node.tree, node.inode, &attributes))
        });
        self.answer_when_durable(parent, outcome, |outcome| reply_entry(reply, outcome));
    }

    fn rename(
        &self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        flags: u32,
    ) -> TreeResult<()> {
        let (from, to) = (self.node(parent)?, self.node(new_parent)?);
        if !Arc::ptr_eq(&from.tree, &to.tree) {
            return Err(Errno::EXDEV.into());
        }
        if flags & !RENAME_NOREPLACE != 0 {
            return Err(Errno::EINVAL.into());
        }
        let keep = flags & RENAME_NOREPLACE != 0;
        from.tree.rename(
            (from.inode, name.as_bytes()),
            (to.inode, new_name.as_bytes()),
            keep,
            now_ns(),
        )
    }

    fn read(&self, number: u64, offset: u64, size: u32, reply: Reply) {
        let _watch = Watch::new("read of a file");
        match self.node(number).and_then(|node| node.tree.read(node.inode, offset, size)) {
            Ok((buffer, range)) => reply.data(buffer, range),
            Err(error) => reply.error(report(error)),
        }
    }

    fn write(&self, number: u64, offset: u64, data: &[u8], reply: Reply) {
        let watch = Watch::new("write to a file");
        let written = self.node(number).and_then(|node| {
            node.tree.write(node.inode, offset, data)?;
            Ok(u32::try_from(data.len()).unwrap_or(0))
        });
        self.answer_when_durable(number, written, move |written| {
            reply_body(reply, written.map(ReplyBody::written));
            drop(watch);
        });
    }

    fn sync(&self, number: u64, data_only: bool, reply: Reply) {
        if matches!(self.side, Side::Wal) {
            return reply.error(Errno::ENOSYS);
        }
        match self.node(number) {
            Ok(node) => node.tree.sync(node.inode, data_only, reply_sync(reply)),
            Err(error) => reply.error(report(error)),
        }
    }

    fn sync_directory(&self, number: u64, reply: Reply) {
        if number == MOUNT_ROOT {
            return reply.ok();
        }
        match (self.node(number), &self.side) {
            (Ok(node), Side::Data { .. }) => node.tree.timeline().sync_both(reply_sync(reply)),
            (Ok(node), Side::Wal) => node.tree.timeline().sync(LaneKind::Wal, reply_sync(reply)),
            (Err(error), _) => reply.error(report(error)),
        }
    }

    fn space(&self, reply: Reply) {
        const BLOCK: u32 = 4096;
        let blocks = |bytes: u64| bytes / u64::from(BLOCK);
        let space = self.store.space().map_err(TreeError::from);
        reply_body(
            reply,
            space.map(|(free, total)| ReplyBody::space(blocks(free), blocks(total), BLOCK)),
        );
    }

    fn allocate(&self, number: u64, (offset, length): (u64, u64), mode: i32) -> TreeResult<()> {
        use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
        let node = self.node(number)?;
        match mode {
            0 => {
                let (free, _) = self.store.space()?;
                if length > free {
                    return Err(Errno::ENOSPC.into());
                }
                node.tree.extend(node.inode, offset.saturating_add(length))
            }
            FALLOC_FL_KEEP_SIZE => Ok(()),
            mode if mode == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE => {
                node.tree.punch(node.inode, offset, length)
            }
            _ => Err(Errno::EOPNOTSUPP.into()),
        }
    }
}

/// Adds a tree under `name`, or removes the one there.
pub fn set_root(roots: &Roots, name: &str, tree: Option<Arc<Tree>>) {
    let mut roots = write(roots);
    match tree {
        Some(tree) => roots.insert(name.to_owned(), tree),
        None => roots.remove(name),
    };
}
