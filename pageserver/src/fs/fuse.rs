//! The adapter between FUSE and the trees: decode, call, reply.
//!
//! There are two mounts. One shows the data directories. The other shows the write-ahead logs of those that Postgres runs
//! on, to which `pg_wal` in the data directory then is a link. What is done there is durable when it is answered, but for
//! removals, which a sync of the directory makes durable, and for times, which last from a clean stop on. So the kernel is
//! told not to ask for syncs of files, and a commit is one request, the write of its pages, where it was two.
//!
//! Only this process changes the files, so the kernel may cache everything for ever: contents, attributes, names
//! and the absence of names. Open, create and flush are answered "not implemented" once, and the kernel then no
//! longer asks. At most [`MAX_INLINE`](crate::storage::syncer::MAX_INLINE)
//! callbacks wait for a disk sync at once; the syncer's threads send the other replies.

use crate::fs::convert::{file_attr, file_type, mount_root_attr, now_ns, permissions, to_ns};
use crate::fs::links;
use crate::fs::nodes::{MOUNT_ROOT, Node, Nodes};
use crate::fs::reply::{FOREVER, reply_attr, reply_empty, reply_entry, reply_sync, report};
use crate::fs::tree::{NewInode, Result, Tree, TreeError, Wanted};
use crate::locks::{read, write};
use crate::storage::format::{Attributes, FileKind, LaneKind};
use crate::storage::page::ROOT_INODE;
use crate::storage::store::Store;
use crate::storage::watch::Watch;
use fuser::{
    AccessFlags, BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

/// Largest write that the kernel is asked to send at once.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have in flight in the background.
const MAX_BACKGROUND: u16 = 64;
/// Cookies of `.` and `..`; those of names are positions, which are far above.
const DOT_COOKIES: [u64; 2] = [1, 2];

/// What the data directory of a running Postgres has.
const LOCK_FILE: &[u8] = b"postmaster.pid";

/// Trees by the name of their directory in the mount.
pub type Roots = Arc<RwLock<BTreeMap<String, Arc<Tree>>>>;

/// Which of the two mounts it is.
pub enum Side {
    /// Data directories; where their write-ahead logs are shown apart.
    Data {
        /// The other mount's directory.
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
}

impl Adapter {
    /// A file system showing this side of `roots` at `mountpoint`, whose own directory belongs to `owner`.
    pub fn new(side: Side, store: Arc<Store>, roots: Roots, mountpoint: PathBuf, owner: (u32, u32)) -> Self {
        Self { side, store, roots, nodes: Nodes::default(), mountpoint, owner }
    }

    fn node(&self, number: INodeNo) -> Result<Node> {
        // The mount's own directory holds only trees; nothing is changed in it through the kernel.
        if number.0 == MOUNT_ROOT {
            return Err(Errno::EPERM.into());
        }
        self.nodes.get(number.0).ok_or(TreeError::Errno(Errno::ESTALE))
    }

    fn entry(&self, tree: &Arc<Tree>, inode: u64, attributes: &Attributes) -> FileAttr {
        let number = self.nodes.look_up(Node { tree: Arc::clone(tree), inode });
        self.attr(number, tree, inode, attributes)
    }

    fn attr(&self, number: u64, tree: &Tree, inode: u64, attributes: &Attributes) -> FileAttr {
        match self.link_to_wal(tree, inode) {
            Some(target) => {
                let size = target.as_os_str().len() as u64;
                let link = Attributes { kind: FileKind::Symlink, mode: 0o777, size, ..attributes.clone() };
                file_attr(number, &link, tree.owners())
            }
            None => file_attr(number, attributes, tree.owners()),
        }
    }

    /// Where an inode is shown that this mount shows a link to.
    fn link_to_wal(&self, tree: &Tree, inode: u64) -> Option<PathBuf> {
        match &self.side {
            Side::Data { wal } if tree.wal_apart() == Some(inode) => Some(wal.join(self.root_name(tree)?)),
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

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        if parent.0 == MOUNT_ROOT {
            let tree = read(&self.roots).get(&*name.to_string_lossy()).cloned().ok_or(Errno::ENOENT)?;
            let root = self.root_inode(&tree).ok_or(Errno::ENOENT)?;
            return Ok(self.entry(&tree, root, &tree.attributes(root)?));
        }
        let node = self.node(parent)?;
        let (inode, attributes) = node.tree.lookup(node.inode, name.as_bytes())?;
        Ok(self.entry(&node.tree, inode, &attributes))
    }

    /// Answers with the outcome of what was done to `number`: where write-ahead logs are shown, once it is durable.
    fn settle<T: Send + 'static>(
        &self,
        number: INodeNo,
        outcome: Result<T>,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let settled = match (&self.side, outcome) {
            (Side::Wal, Ok(value)) => self.node(number).map(|node| (node, value)),
            (_, outcome) => return answer(outcome),
        };
        match settled {
            Ok((node, value)) => {
                let done = |synced: crate::error::Result<()>| {
                    answer(synced.map(|()| value).map_err(TreeError::Store))
                };
                node.tree.timeline().sync(LaneKind::Wal, Box::new(done));
            }
            Err(error) => answer(Err(error)),
        }
    }

    fn make(&self, parent: INodeNo, name: &OsStr, new: &NewInode<'_>) -> Result<FileAttr> {
        let node = self.node(parent)?;
        let new = NewInode { owner: node.tree.owners().store(new.owner), ..*new };
        let (inode, attributes) = node.tree.make(node.inode, name.as_bytes(), &new, now_ns())?;
        Ok(self.entry(&node.tree, inode, &attributes))
    }

    /// The target to store for a symbolic link: relative if it leads into the same tree, refused if it leads out,
    /// where branches would share what is there.
    ///
    /// A running Postgres may not give an absolute one at all: it logs the place of a new tablespace, and a branch
    /// that replays this would find its parent's directory there. Tools that work before it starts log nothing.
    fn link_target(&self, node: &Node, target: &Path) -> Result<Vec<u8>> {
        let leads_out = || {
            tracing::warn!(
                target = %target.display(),
                timeline = %node.tree.timeline().id(),
                "refused a symbolic link out of the branch: what it leads to would be shared between branches; \
                 use a relative link inside the data directory, and for a tablespace \
                 SET allow_in_place_tablespaces = on; CREATE TABLESPACE name LOCATION ''"
            );
            TreeError::Errno(Errno::EPERM)
        };
        if target.is_absolute() && node.tree.lookup(ROOT_INODE, LOCK_FILE).is_ok() {
            return Err(leads_out());
        }
        let depth = links::depth(&node.tree, node.inode).ok_or(Errno::ENOENT)?;
        let root = match self.side {
            Side::Data { .. } => self.root_name(&node.tree).map(|name| self.mountpoint.join(name)),
            Side::Wal => None,
        };
        let stored = links::stored_target(target, depth, root.as_deref()).ok_or_else(leads_out)?;
        Ok(stored.into_os_string().into_vec())
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let needed = InitFlags::FUSE_WRITEBACK_CACHE | InitFlags::FUSE_PARALLEL_DIROPS;
        let missing = |_| {
            std::io::Error::other("the kernel's FUSE has no write-back cache: Linux 3.15 or later is needed")
        };
        config.add_capabilities(needed).map_err(missing)?;
        // Times in whole seconds, so that the kernel has a new one to report with a commit's sync once a second and
        // not at every commit.
        let _ = config.set_time_granularity(Duration::from_secs(1));
        // Less than asked for is fine. Links are cached, or that to the write-ahead log would be asked for with each file.
        let _ = config.add_capabilities(InitFlags::FUSE_CACHE_SYMLINKS);
        let _ = config.set_max_write(MAX_TRANSFER_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.look_up(parent, name) {
            // Number 0 lets the kernel remember that there is nothing. In the mount's own directory names come
            // without its doing, so there it asks again.
            Err(TreeError::Errno(Errno::ENOENT)) if parent.0 != MOUNT_ROOT => {
                let nothing = FileAttr { ino: INodeNo(0), ..mount_root_attr(self.owner) };
                reply.entry(&FOREVER, &nothing, Generation(0));
            }
            outcome => reply_entry(reply, outcome),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        let Some(node) = self.nodes.forget(number.0, lookups) else { return };
        let nameless = node.tree.attributes(node.inode).is_ok_and(|attributes| attributes.links == 0);
        if nameless && let Err(error) = node.tree.reap(node.inode) {
            // The inode stays, and goes when the timeline is opened the next time.
            report(error);
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        if number.0 == MOUNT_ROOT {
            return reply.attr(&FOREVER, &mount_root_attr(self.owner));
        }
        let shown = |node: Node| {
            let attributes = node.tree.attributes(node.inode)?;
            Ok(self.attr(number.0, &node.tree, node.inode, &attributes))
        };
        reply_attr(reply, self.node(number).and_then(shown));
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed_macos: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = now_ns();
        let modified_ns = modified.map(|time| match time {
            TimeOrNow::SpecificTime(time) => to_ns(time),
            TimeOrNow::Now => now,
        });
        let changed_ns = Some(changed.map_or(now, to_ns));
        let modified_ns = modified_ns.or(size.map(|_| now));
        let outcome = self.node(number).and_then(|node| {
            if self.link_to_wal(&node.tree, node.inode).is_some() {
                return Err(Errno::EPERM.into());
            }
            let owners = node.tree.owners();
            let (uid, gid) =
                (uid.map(|uid| owners.store((uid, 0)).0), gid.map(|gid| owners.store((0, gid)).1));
            let mode = mode.map(permissions);
            let wanted = Wanted { mode, uid, gid, size, modified_ns, changed_ns };
            let attributes = node.tree.set_attributes(node.inode, &wanted)?;
            Ok(file_attr(number.0, &attributes, owners))
        });
        self.settle(number, outcome, |outcome| reply_attr(reply, outcome));
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        let target = self.node(number).and_then(|node| match self.link_to_wal(&node.tree, node.inode) {
            Some(target) => Ok(target.into_os_string().into_vec()),
            None => Ok(node.tree.attributes(node.inode)?.target),
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(report(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        let regular = mode & nix::libc::S_IFMT == nix::libc::S_IFREG;
        let owner = (request.uid(), request.gid());
        let new = NewInode { kind: FileKind::File, mode: permissions(mode), owner, target: &[] };
        let outcome = if regular { self.make(parent, name, &new) } else { Err(Errno::EPERM.into()) };
        self.settle(parent, outcome, |outcome| reply_entry(reply, outcome));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let owner = (request.uid(), request.gid());
        let new = NewInode { kind: FileKind::Directory, mode: permissions(mode), owner, target: &[] };
        self.settle(parent, self.make(parent, name, &new), |outcome| reply_entry(reply, outcome));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let owner = (request.uid(), request.gid());
        let outcome = self.node(parent).and_then(|node| self.link_target(&node, target)).and_then(|target| {
            self.make(
                parent,
                name,
                &NewInode { kind: FileKind::Symlink, mode: 0o777, owner, target: &target },
            )
        });
        self.settle(parent, outcome, |outcome| reply_entry(reply, outcome));
    }

    fn link(&self, _request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let outcome = self.node(number).and_then(|node| {
            let directory = self.node(parent)?;
            if !Arc::ptr_eq(&node.tree, &directory.tree) {
                return Err(Errno::EXDEV.into());
            }
            let attributes = node.tree.link(node.inode, directory.inode, name.as_bytes(), now_ns())?;
            Ok(self.entry(&node.tree, node.inode, &attributes))
        });
        self.settle(parent, outcome, |outcome| reply_entry(reply, outcome));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome =
            self.node(parent).and_then(|n| n.tree.remove(n.inode, name.as_bytes(), false, now_ns()));
        reply_empty(reply, outcome);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.node(parent).and_then(|n| n.tree.remove(n.inode, name.as_bytes(), true, now_ns()));
        reply_empty(reply, outcome);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let outcome = self.node(parent).and_then(|from| {
            let to = self.node(new_parent)?;
            if !Arc::ptr_eq(&from.tree, &to.tree) {
                return Err(Errno::EXDEV.into());
            }
            if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
                return Err(Errno::EINVAL.into());
            }
            let keep = flags.contains(RenameFlags::RENAME_NOREPLACE);
            from.tree.rename((from.inode, name.as_bytes()), (to.inode, new_name.as_bytes()), keep, now_ns())
        });
        self.settle(parent, outcome, |outcome| reply_empty(reply, outcome));
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel may not cache the list of the mount's own directory, so its opening is answered.
        if number.0 == MOUNT_ROOT {
            reply.opened(FileHandle(0), FopenFlags::empty());
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _watch = Watch::new("read of a file");
        match self.node(number).and_then(|node| node.tree.read(node.inode, offset, size)) {
            Ok((buffer, range)) => reply.data(&buffer[range]),
            Err(error) => reply.error(report(error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let watch = Watch::new("write to a file");
        let written = self.node(number).and_then(|node| {
            node.tree.write(node.inode, offset, data)?;
            Ok(u32::try_from(data.len()).unwrap_or(0))
        });
        self.settle(number, written, move |written| {
            match written {
                Ok(length) => reply.written(length),
                Err(error) => reply.error(report(error)),
            }
            drop(watch);
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        if matches!(self.side, Side::Wal) {
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.node(number) {
            Ok(node) => node.tree.sync(node.inode, data_only, reply_sync(reply)),
            Err(error) => reply.error(report(error)),
        }
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        if number.0 == MOUNT_ROOT {
            return reply.ok();
        }
        match (self.node(number), &self.side) {
            (Ok(node), Side::Data { .. }) => node.tree.timeline().sync_both(reply_sync(reply)),
            (Ok(node), Side::Wal) => node.tree.timeline().sync(LaneKind::Wal, reply_sync(reply)),
            (Err(error), _) => reply.error(report(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (cookie, name) in DOT_COOKIES.into_iter().zip([".", ".."]) {
            if offset < cookie && reply.add(number, cookie, FileType::Directory, name) {
                return reply.ok();
            }
        }
        if number.0 == MOUNT_ROOT {
            let shown = |(name, tree): (&String, &Arc<Tree>)| self.root_inode(tree).map(|_| name.clone());
            let names: Vec<String> = read(&self.roots).iter().filter_map(shown).collect();
            for (name, cookie) in names.iter().zip(DOT_COOKIES[1] + 1..) {
                if offset < cookie && reply.add(INodeNo(cookie), cookie, FileType::Directory, name) {
                    break;
                }
            }
            return reply.ok();
        }
        match self.node(number) {
            Ok(node) => {
                for (cookie, name, target) in node.tree.list(node.inode) {
                    let name = OsStr::from_bytes(&name);
                    let linked = self.link_to_wal(&node.tree, target.inode).is_some();
                    let kind = if linked { FileKind::Symlink } else { target.kind };
                    if offset < cookie && reply.add(INodeNo(target.inode), cookie, file_type(kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(report(error)),
        }
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        match self.store.space() {
            Ok((free, total)) => {
                let (free, total) = (free / u64::from(BLOCK), total / u64::from(BLOCK));
                reply.statfs(total, free, free, 1 << 32, 1 << 32, BLOCK, 255, BLOCK);
            }
            Err(error) => reply.error(report(error.into())),
        }
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The mount checks permissions in the kernel.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getxattr(&self, _request: &Request, _number: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
        let outcome = self.node(number).and_then(|node| match mode {
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
        });
        self.settle(number, outcome, |outcome| reply_empty(reply, outcome));
    }
}

/// Adds a tree under `name`, or takes it away.
pub fn set_root(roots: &Roots, name: &str, tree: Option<Arc<Tree>>) {
    let mut roots = write(roots);
    match tree {
        Some(tree) => roots.insert(name.to_owned(), tree),
        None => roots.remove(name),
    };
}
