//! The adapter between FUSE and the trees: decode, call, reply.
//!
//! Only this process changes the files, so the kernel may cache everything for ever: contents, attributes, names
//! and the absence of names. Open, create and flush are answered "not implemented" once, and the kernel then no
//! longer asks. At most [`MAX_INLINE`](crate::storage::syncer::MAX_INLINE)
//! callbacks wait for a disk sync at once; the syncer's threads send the other replies.

use crate::error::Error;
use crate::fs::convert::{file_attr, file_type, now_ns, permissions, to_ns};
use crate::fs::links;
use crate::fs::nodes::{MOUNT_ROOT, Node, Nodes};
use crate::fs::owners::Owners;
use crate::fs::tree::{NewInode, Result, Tree, TreeError, Wanted};
use crate::locks::{read, write};
use crate::storage::format::{Attributes, FileKind};
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

/// How long the kernel may keep what it was told: as good as for ever.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Largest write and readahead that the kernel is asked to send at once.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have in flight in the background.
const MAX_BACKGROUND: u16 = 64;
/// Cookies of `.` and `..`; those of names are positions, which are far above.
const DOT_COOKIES: [u64; 2] = [1, 2];

/// What the data directory of a running Postgres has.
const LOCK_FILE: &[u8] = b"postmaster.pid";

/// Trees by the name of their directory in the mount.
pub type Roots = Arc<RwLock<BTreeMap<String, Arc<Tree>>>>;

/// The file system that the kernel talks to.
pub struct Adapter {
    store: Arc<Store>,
    roots: Roots,
    nodes: Nodes,
    mountpoint: PathBuf,
    owner: (u32, u32),
}

impl Adapter {
    /// A file system showing `roots` at `mountpoint`, whose own directory belongs to `owner`.
    pub fn new(store: Arc<Store>, roots: Roots, mountpoint: PathBuf, owner: (u32, u32)) -> Self {
        Self { store, roots, nodes: Nodes::default(), mountpoint, owner }
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
        file_attr(number, attributes, tree.owners())
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        if parent.0 == MOUNT_ROOT {
            let tree = read(&self.roots).get(&*name.to_string_lossy()).cloned().ok_or(Errno::ENOENT)?;
            return Ok(self.entry(&tree, ROOT_INODE, &tree.attributes(ROOT_INODE)?));
        }
        let node = self.node(parent)?;
        let (inode, attributes) = node.tree.lookup(node.inode, name.as_bytes())?;
        Ok(self.entry(&node.tree, inode, &attributes))
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
        let name = {
            let roots = read(&self.roots);
            roots.iter().find(|(_, tree)| Arc::ptr_eq(tree, &node.tree)).map(|(name, _)| name.clone())
        };
        let root = name.map(|name| self.mountpoint.join(name));
        let depth = links::depth(&node.tree, node.inode).ok_or(Errno::ENOENT)?;
        let stored = links::stored_target(target, depth, root.as_deref()).ok_or_else(leads_out)?;
        Ok(stored.into_os_string().into_vec())
    }
}

/// The error for the kernel. What went wrong below is logged here, where it ends.
fn report(error: TreeError) -> fuser::Errno {
    let errno = error.errno();
    if let TreeError::Store(error) = error {
        report_store(&error);
    }
    fuser::Errno::from_i32(errno as i32)
}

fn report_store(error: &Error) {
    match error.code {
        // Written back by the kernel after the branch was deleted, or refused since a failure that was logged.
        "dropped" | "latched" => tracing::debug!(%error, "refused"),
        // A full disk latches too, and the kernel then tries each of thousands of pages.
        "disk_full" => tracing::debug!(%error, "refused"),
        _ => tracing::error!(%error, "a file system operation failed"),
    }
}

fn reply_entry(reply: ReplyEntry, outcome: Result<FileAttr>) {
    match outcome {
        Ok(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
        Err(error) => reply.error(report(error)),
    }
}

fn reply_empty(reply: ReplyEmpty, outcome: Result<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(report(error)),
    }
}

fn reply_attr(
    reply: ReplyAttr,
    number: INodeNo,
    node: Result<Node>,
    look: impl FnOnce(&Node) -> Result<Attributes>,
) {
    let outcome = node.and_then(|node| Ok(file_attr(number.0, &look(&node)?, node.tree.owners())));
    match outcome {
        Ok(attributes) => reply.attr(&FOREVER, &attributes),
        Err(error) => reply.error(report(error)),
    }
}

fn reply_sync(reply: ReplyEmpty) -> crate::storage::syncer::Done {
    let watch = Watch::new("sync of a file");
    Box::new(move |outcome| {
        reply_empty(reply, outcome.map_err(TreeError::Store));
        drop(watch);
    })
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
        // Less than asked for is fine.
        let _ = config.set_max_write(MAX_TRANSFER_BYTES);
        let _ = config.set_max_readahead(MAX_TRANSFER_BYTES);
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
        reply_attr(reply, number, self.node(number), |node| node.tree.attributes(node.inode));
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
        reply_attr(reply, number, self.node(number), |node| {
            let owners = node.tree.owners();
            let (uid, gid) =
                (uid.map(|uid| owners.store((uid, 0)).0), gid.map(|gid| owners.store((0, gid)).1));
            let mode = mode.map(permissions);
            node.tree.set_attributes(node.inode, &Wanted { mode, uid, gid, size, modified_ns, changed_ns })
        });
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.node(number).and_then(|node| node.tree.attributes(node.inode)) {
            Ok(attributes) => reply.data(&attributes.target),
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
        reply_entry(reply, outcome);
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
        reply_entry(reply, self.make(parent, name, &new));
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
        reply_entry(reply, outcome);
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
        reply_entry(reply, outcome);
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
        reply_empty(reply, outcome);
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
            Ok(node)
        });
        match written {
            Ok(node) => {
                let length = u32::try_from(data.len()).unwrap_or(0);
                reply.written(length);
                drop(watch);
                if length < MAX_TRANSFER_BYTES {
                    node.tree.written_back(node.inode);
                }
            }
            Err(error) => reply.error(report(error)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
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
        match self.node(number) {
            Ok(node) => node.tree.timeline().sync_both(reply_sync(reply)),
            Err(error) => reply.error(report(error)),
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
            let names: Vec<String> = read(&self.roots).keys().cloned().collect();
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
                    if offset < cookie
                        && reply.add(INodeNo(target.inode), cookie, file_type(target.kind), name)
                    {
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
        reply_empty(reply, outcome);
    }
}

fn mount_root_attr(owner: (u32, u32)) -> FileAttr {
    let attributes = Attributes {
        kind: FileKind::Directory,
        mode: 0o711,
        uid: owner.0,
        gid: owner.1,
        links: 1,
        size: 0,
        modified_ns: 0,
        changed_ns: 0,
        target: Vec::new(),
    };
    file_attr(MOUNT_ROOT, &attributes, &Owners::default())
}

/// Adds a tree under `name`, or takes it away.
pub fn set_root(roots: &Roots, name: &str, tree: Option<Arc<Tree>>) {
    let mut roots = write(roots);
    match tree {
        Some(tree) => roots.insert(name.to_owned(), tree),
        None => roots.remove(name),
    };
}
