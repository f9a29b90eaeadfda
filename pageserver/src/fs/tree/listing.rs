//! Listings of directories that go on where they stopped.
//!
//! The kernel asks for the names of a directory in pieces. The first piece takes the whole listing,
//! and the pieces behind it read on there, so a listing costs what it lists. A name that exists
//! from the first piece to the last is in every listing that is taken meanwhile, so readers of one
//! directory share the newest.

use crate::locks::lock;
use crate::storage::index::Target;
use crate::storage::page::Position;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Listings that a tree keeps for those who read on. Without its listing a piece takes a new one.
const KEPT: usize = 4;

type Names = Vec<(Position, Vec<u8>, Target)>;

/// The listings that are being read, by directory, the newest last.
#[derive(Default)]
pub(super) struct Listings(Mutex<VecDeque<(u64, Arc<Names>)>>);

impl Listings {
    fn find(&self, directory: u64) -> Option<Arc<Names>> {
        let listings = lock(&self.0);
        listings.iter().find(|(of, _)| *of == directory).map(|(_, names)| Arc::clone(names))
    }

    fn keep(&self, directory: u64, names: Arc<Names>) {
        let mut listings = lock(&self.0);
        listings.retain(|(of, _)| *of != directory);
        if listings.len() == KEPT {
            listings.pop_front();
        }
        listings.push_back((directory, names));
    }

    fn forget(&self, directory: u64) {
        lock(&self.0).retain(|(of, _)| *of != directory);
    }

    /// Calls `each` with the names of a directory behind `cookie`, in the order of their cookies,
    /// until it returns false. Cookie 0 begins a listing, which `list` takes.
    pub(super) fn go_on(
        &self,
        directory: u64,
        cookie: Position,
        list: impl FnOnce() -> Names,
        mut each: impl FnMut(Position, &[u8], Target) -> bool,
    ) {
        let names = self.find(directory).filter(|_| cookie > 0).unwrap_or_else(|| {
            let names = Arc::new(list());
            self.keep(directory, Arc::clone(&names));
            names
        });
        let behind = &names[names.partition_point(|(position, ..)| *position <= cookie)..];
        if behind.is_empty() {
            self.forget(directory);
        }
        for (position, name, target) in behind {
            if !each(*position, name, *target) {
                break;
            }
        }
    }
}
