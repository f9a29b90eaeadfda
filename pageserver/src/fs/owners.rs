//! Who owns a branch's files. In the store all files belong to one user. The mount shows each
//! compute that its files are its own.
//!
//! So a fork, which consists of the same records, has other owners than its parent, and no compute
//! can enter the directory of another.

use crate::error::{Error, Result};
use crate::storage::page::TimelineId;

/// A user and a group by their numbers.
pub type Owner = (u32, u32);

/// How the owners of a tree's files are shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owners {
    /// Whose files they are in the store, and whose they are shown to be.
    mapped: Option<(Owner, Owner)>,
}

impl Owners {
    /// What belongs to `stored` is shown to belong to `shown`.
    pub fn showing(stored: Owner, shown: Owner) -> Self {
        Self { mapped: Some((stored, shown)) }
    }

    /// The owner to show for one in the store.
    pub fn show(&self, owner: Owner) -> Owner {
        self.mapped.map_or(owner, |(stored, shown)| exchange(owner, stored, shown))
    }

    /// The owner to store for one that a process gave.
    pub fn store(&self, owner: Owner) -> Owner {
        self.mapped.map_or(owner, |(stored, shown)| exchange(owner, shown, stored))
    }
}

fn exchange((user, group): Owner, from: Owner, to: Owner) -> Owner {
    (if user == from.0 { to.0 } else { user }, if group == from.1 { to.1 } else { group })
}

/// The user and group of a timeline's compute, if computes have numbers of their own from `first`
/// on.
pub fn of_compute(first: u32, timeline: TimelineId) -> Result<Owner> {
    let number = u32::try_from(timeline.0).ok().and_then(|nth| first.checked_add(nth));
    let number = number.filter(|number| *number < u32::MAX).ok_or_else(|| {
        Error::unavailable(
            "user_ids_used_up",
            "there is no user id left for a compute; give a lower --compute-uids",
        )
    })?;
    Ok((number, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_exchanged_and_others_left() {
        let owners = Owners::showing((10, 11), (500, 501));
        for (stored, shown) in [((10, 11), (500, 501)), ((10, 7), (500, 7)), ((0, 0), (0, 0))] {
            assert_eq!(owners.show(stored), shown);
            assert_eq!(owners.store(shown), stored);
        }
        assert_eq!(Owners::default().show((10, 11)), (10, 11));
    }

    #[test]
    fn numbers_of_computes_end_somewhere() {
        assert_eq!(of_compute(1000, TimelineId(7)).ok(), Some((1007, 1007)));
        assert!(of_compute(u32::MAX - 2, TimelineId(1)).is_ok());
        assert_eq!(of_compute(u32::MAX - 2, TimelineId(2)).unwrap_err().code, "user_ids_used_up");
        assert!(of_compute(0, TimelineId(1 << 40)).is_err());
    }
}
