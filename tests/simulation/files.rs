//! Operations on files: done to the model first, then to the store, whose answer must be the same.

use crate::model::{Directory, Image, Node, UNKNOWN};
use crate::operation::Operation;
use crate::world::{Outcome, World, new_inode};
use nix::errno::Errno;
use pageserver::error::Error;
use pageserver::fs::error::TreeError;
use pageserver::fs::tree::{Tree, Wanted};
use pageserver::storage::log::format::FileKind;
use pageserver::storage::page::PAGE_BYTES;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

/// Names that files have, in each directory.
const NAMES: u64 = 5;
/// Files are no longer.
const MAX_BYTES: u64 = 160_000;

/// What the model says an operation comes to: the images that follow one another, the last of which
/// is the outcome.
type Expected = Result<Vec<Image>, Errno>;

/// A directory and a name in it.
type Place = (Directory, Vec<u8>);

fn place(number: u64) -> Place {
    let directory = Directory::ALL[usize::try_from(number % 3).unwrap_or(0)];
    (directory, format!("f{}", number / 3 % NAMES).into_bytes())
}

pub(crate) fn length(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Bytes to write: whole pages as Postgres does, a page of which only a part is new, or some
/// anywhere.
fn draw_write(node: &Node, at: u64, size: u64, fill: u64) -> (u64, Vec<u8>) {
    let fill_byte = u8::try_from(if fill.is_multiple_of(5) { 0 } else { fill % 255 }).unwrap_or(1);
    let page = PAGE_BYTES as u64;
    match fill % 4 {
        0 => (at % (MAX_BYTES / 2), vec![fill_byte; length(1 + size % 3000)]),
        1 => (at % 12 * page, vec![fill_byte; length((1 + size % 5) * page)]),
        2 => (at % 12 * page, vec![fill_byte; length((1 + size % 2) * page)]),
        _ => {
            let start = at % 6 * page;
            let mut bytes: Vec<u8> =
                node.bytes.iter().skip(length(start)).take(PAGE_BYTES).copied().collect();
            bytes.resize(PAGE_BYTES, 0);
            let from = length(size) % PAGE_BYTES;
            let to = (from + 1 + length(fill % 900)).min(PAGE_BYTES);
            bytes[from..to].fill(fill_byte);
            (start, bytes)
        }
    }
}

fn overwrite(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let start = length(at);
    if bytes.len() < start + data.len() {
        bytes.resize(start + data.len(), 0);
    }
    bytes[start..start + data.len()].copy_from_slice(data);
}

fn errno_of<T>(outcome: Result<T, TreeError>) -> Result<T, Result<Errno, Error>> {
    outcome.map_err(|error| match error {
        TreeError::Errno(errno) => Ok(errno),
        TreeError::Store(error) => Err(error),
    })
}

pub(crate) fn sync(tree: &Tree, inode: u64) -> Result<(), Error> {
    let (sender, receiver) = sync_channel(1);
    tree.sync(inode, true, Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.recv().map_err(|_| Error::corrupt("a sync was never answered"))?
}

impl World {
    /// Does an operation on a file; false if it is something else.
    pub(crate) fn file_operation(&mut self, operation: Operation) -> Outcome<bool> {
        use Operation::*;
        let (Make { branch, .. }
        | Write { branch, .. }
        | Resize { branch, .. }
        | Punch { branch, .. }
        | Chmod { branch, .. }
        | Rename { branch, .. }
        | Link { branch, .. }
        | Unlink { branch, .. }
        | Reap { branch }
        | Sync { branch, .. }
        | SlowSync { branch, .. }
        | SyncBoth { branch }) = operation
        else {
            return Ok(false);
        };
        let branch = self.index(branch);
        if self.branches[branch].uncertain {
            return Ok(true);
        }
        let tree = match self.tree(branch) {
            Ok(tree) => tree,
            Err(error) => return self.failed(Some(branch), "open a branch", &error).map(|()| true),
        };
        match operation {
            Make { place, kind, .. } => self.make(branch, &tree, self::place(place), kind),
            Rename { place, to, keep, .. } => {
                self.rename(branch, &tree, (self::place(place), self::place(to)), keep)
            }
            Link { place, to, .. } => {
                self.link(branch, &tree, (self::place(place), self::place(to)))
            }
            Unlink { place, held, .. } => self.unlink(branch, &tree, self::place(place), held),
            Reap { .. } => self.reap(branch, &tree),
            SyncBoth { .. } if self.is_slow(branch) => {
                self.ask(branch, &[0, 1], |done| tree.timeline().sync_both(done))
            }
            SyncBoth { .. } => self.sync_lanes(branch, &[0, 1], tree.timeline().sync_and_wait()),
            Sync { place, .. } | SlowSync { place, .. } => {
                let (directory, _) = self::place(place);
                let Some(inode) = Self::directory(&tree, directory) else {
                    return Err("no directory".into());
                };
                let lane = directory.lane();
                match operation {
                    _ if self.is_slow(branch) => {
                        self.ask(branch, &[lane], |done| tree.sync(inode, true, done))
                    }
                    SlowSync { meanwhile, .. } if !self.busy => {
                        self.begin_slow_sync(branch, &tree, (inode, lane), meanwhile)
                    }
                    _ => self.sync_lanes(branch, &[lane], sync(&tree, inode)),
                }
            }
            other => self.change(branch, &tree, other),
        }?;
        Ok(true)
    }

    /// Holds the store's answer against the model's.
    fn answered<T>(
        &mut self,
        (branch, lane): (usize, usize),
        expected: Expected,
        outcome: Result<T, TreeError>,
    ) -> Outcome<Option<T>> {
        match (errno_of(outcome), expected) {
            (Ok(done), Ok(images)) => {
                images.into_iter().for_each(|image| self.branches[branch].lanes[lane].push(image));
                Ok(Some(done))
            }
            (Err(Ok(errno)), Err(expected)) if errno == expected => Ok(None),
            (Err(Err(error)), expected) => {
                // It may have taken place, up to any of its steps.
                expected
                    .unwrap_or_default()
                    .into_iter()
                    .for_each(|image| self.branches[branch].lanes[lane].push(image));
                self.failed(Some(branch), "a file operation", &error).map(|()| None)
            }
            (Ok(_), Err(expected)) => Err(format!("succeeded instead of {expected}")),
            (Err(Ok(errno)), expected) => {
                Err(format!("{errno} instead of {:?}", expected.map(|_| "success")))
            }
        }
    }

    fn sync_lanes(
        &mut self,
        branch: usize,
        lanes: &[usize],
        outcome: Result<(), Error>,
    ) -> Outcome {
        match outcome {
            Ok(()) => {
                lanes.iter().for_each(|lane| self.synced(branch, *lane));
                Ok(())
            }
            Err(error) => self.failed(Some(branch), "a sync", &error),
        }
    }

    fn image(&self, branch: usize, directory: Directory) -> Image {
        (**self.branches[branch].lanes[directory.lane()].newest()).clone()
    }

    fn make(&mut self, branch: usize, tree: &Tree, (directory, name): Place, kind: u64) -> Outcome {
        let mut image = self.image(branch, directory);
        let (kind, target): (_, &[u8]) = match kind % 10 {
            0 if directory != Directory::Wal => (FileKind::Directory, b""),
            1 => (FileKind::Symlink, b"f1"),
            _ => (FileKind::File, b""),
        };
        let taken = image.find(directory, &name).is_some();
        let Some(parent) = Self::directory(tree, directory) else {
            return Err("no directory".into());
        };
        let outcome = tree.make(parent, &name, &new_inode(kind, 0o600, target), 0);
        let expected = if taken {
            Err(Errno::EEXIST)
        } else {
            let inode = outcome.as_ref().map_or(UNKNOWN, |(inode, _)| *inode);
            let node = Node {
                kind,
                mode: 0o600,
                links: 1,
                target: target.to_vec(),
                bytes: Arc::default(),
            };
            image.nodes.insert(inode, node);
            image.name(directory, &name, inode);
            Ok(vec![image])
        };
        self.answered((branch, directory.lane()), expected, outcome).map(drop)
    }

    /// Changes of one file.
    fn change(&mut self, branch: usize, tree: &Tree, operation: Operation) -> Outcome {
        use Operation::*;
        let (Write { place: number, .. }
        | Resize { place: number, .. }
        | Punch { place: number, .. }
        | Chmod { place: number, .. }) = operation
        else {
            return Ok(());
        };
        let (directory, name) = place(number);
        let mut image = self.image(branch, directory);
        let Some(inode) = image.find(directory, &name) else { return Ok(()) };
        let node = image.nodes[&inode].clone();
        if node.kind != FileKind::File {
            return Ok(());
        }
        let lane = (branch, directory.lane());
        match operation {
            Write { at, length: size, fill, .. } => {
                let (at, data) = draw_write(&node, at, size, fill);
                image.change(inode, |bytes| overwrite(bytes, at, &data));
                self.answered(lane, Ok(vec![image]), tree.write(inode, at, &data)).map(drop)
            }
            Resize { size, .. } => {
                let size = size % MAX_BYTES;
                image.change(inode, |bytes| bytes.resize(length(size), 0));
                let wanted = Wanted { size: Some(size), ..Wanted::default() };
                self.answered(lane, Ok(vec![image]), tree.set_attributes(inode, &wanted)).map(drop)
            }
            Punch { at, length: size, .. } => {
                let (at, size) = (at % MAX_BYTES, 1 + size % (4 * PAGE_BYTES as u64));
                let images = punched(&image, inode, at, size);
                self.answered(lane, Ok(images), tree.punch(inode, at, size)).map(drop)
            }
            Chmod { mode, .. } => {
                let mode = u16::try_from(mode % 0o1000).unwrap_or(0);
                image.nodes.entry(inode).and_modify(|node| node.mode = mode);
                let wanted = Wanted { mode: Some(mode), ..Wanted::default() };
                self.answered(lane, Ok(vec![image]), tree.set_attributes(inode, &wanted)).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn rename(
        &mut self,
        branch: usize,
        tree: &Tree,
        (from, to): (Place, Place),
        keep: bool,
    ) -> Outcome {
        let (mut image, mut replaced) = (self.image(branch, from.0), None);
        let kind = |image: &Image, inode: u64| {
            image.nodes.get(&inode).map(|node| node.kind == FileKind::Directory)
        };
        let expected = match (image.find(from.0, &from.1), image.find(to.0, &to.1)) {
            _ if from.0.lane() != to.0.lane() => Err(Errno::EXDEV),
            (None, _) => Err(Errno::ENOENT),
            (Some(_), Some(_)) if keep => Err(Errno::EEXIST),
            (Some(inode), Some(other)) if inode == other => Ok(vec![image]),
            (Some(inode), Some(other))
                if kind(&image, inode) == Some(true) && kind(&image, other) != Some(true) =>
            {
                Err(Errno::ENOTDIR)
            }
            (Some(inode), Some(other))
                if kind(&image, inode) != Some(true) && kind(&image, other) == Some(true) =>
            {
                Err(Errno::EISDIR)
            }
            (Some(inode), other) => {
                image.names.remove(&from);
                if other.is_some() {
                    replaced = image.unlink(to.0, &to.1);
                }
                image.name(to.0, &to.1, inode);
                Ok(vec![image])
            }
        };
        let (Some(source), Some(goal)) =
            (Self::directory(tree, from.0), Self::directory(tree, to.0))
        else {
            return Err("no directory".into());
        };
        let outcome = tree.rename((source, &from.1), (goal, &to.1), keep, 0);
        if self.answered((branch, from.0.lane()), expected, outcome)?.is_some() {
            self.branches[branch].held.extend(replaced);
        }
        Ok(())
    }

    fn link(&mut self, branch: usize, tree: &Tree, (from, to): (Place, Place)) -> Outcome {
        let mut image = self.image(branch, from.0);
        let Some(inode) = image.find(from.0, &from.1) else { return Ok(()) };
        if image.nodes[&inode].kind == FileKind::Directory {
            return Ok(());
        }
        let taken = self.image(branch, to.0).find(to.0, &to.1).is_some();
        let expected = match taken {
            true => Err(Errno::EEXIST),
            false if from.0.lane() != to.0.lane() => Err(Errno::EXDEV),
            false => {
                image.nodes.entry(inode).and_modify(|node| node.links += 1);
                image.name(to.0, &to.1, inode);
                Ok(vec![image])
            }
        };
        let Some(goal) = Self::directory(tree, to.0) else { return Err("no directory".into()) };
        self.answered((branch, from.0.lane()), expected, tree.hard_link(inode, goal, &to.1, 0))
            .map(drop)
    }

    fn unlink(
        &mut self,
        branch: usize,
        tree: &Tree,
        (directory, name): Place,
        held: bool,
    ) -> Outcome {
        let before = self.branches[branch].newest();
        let mut image = self.image(branch, directory);
        let Some(inode) = image.find(directory, &name) else { return Ok(()) };
        let is_directory = image.nodes[&inode].kind == FileKind::Directory;
        let gone = image.unlink(directory, &name);
        let Some(parent) = Self::directory(tree, directory) else {
            return Err("no directory".into());
        };
        let outcome = tree.remove(parent, &name, is_directory, 0);
        // Before a write-ahead file goes, the moment may be marked.
        self.note_moments(branch, &before);
        if self.answered((branch, directory.lane()), Ok(vec![image]), outcome)?.is_some() {
            self.branches[branch].held.extend(gone);
            if !held {
                return self.reap(branch, tree);
            }
        }
        Ok(())
    }

    fn reap(&mut self, branch: usize, tree: &Tree) -> Outcome {
        for (inode, _) in std::mem::take(&mut self.branches[branch].held) {
            if let Err(error) = tree.reap(inode) {
                return self.failed(Some(branch), "forget a file", &format!("{:?}", error.errno()));
            }
        }
        Ok(())
    }
}

/// A hole is made in up to three steps: the end of a page, whole pages, the beginning of a page.
fn punched(image: &Image, inode: u64, at: u64, size: u64) -> Vec<Image> {
    let page = PAGE_BYTES as u64;
    let end = (at + size).min(image.nodes[&inode].bytes.len() as u64);
    let (mut images, mut image, mut at) = (Vec::new(), image.clone(), at);
    while at < end {
        let whole = (end - at) / page * page;
        let part = if at.is_multiple_of(page) && whole > 0 {
            whole
        } else {
            (page - at % page).min(end - at)
        };
        image.change(inode, |bytes| bytes[length(at)..length(at + part)].fill(0));
        images.push(image.clone());
        at += part;
    }
    images
}
