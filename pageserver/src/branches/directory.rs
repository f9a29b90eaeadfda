//! Which name a branch has by its number and by its label, and which names are reserved.
//!
//! All of it follows from the catalog, but for the names of imports in progress.

use super::{labels, rules};
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::catalog::BranchRecord;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;

/// What becomes of a name.
pub(super) enum NameChange {
    /// It leads to this branch.
    Put(String, BranchRecord),
    /// The branch of this number has it no longer.
    Remove(String, u64),
}

/// The names in use.
pub(super) struct Directory(Mutex<KnownNames>);

#[derive(Default)]
struct KnownNames {
    by_id: HashMap<u64, String>,
    /// The names of branches by their labels.
    by_label: HashMap<String, String>,
    /// The labels of branches by their names.
    labels: HashMap<String, String>,
    /// Names of imports in progress.
    reserved: HashSet<String>,
}

impl KnownNames {
    /// Takes in that the branch has this name.
    fn put(&mut self, name: &str, record: &BranchRecord) {
        let label = labels::of(name, record);
        if let Some(before) = self.by_id.insert(record.id, name.to_owned()) {
            self.labels.remove(&before);
        }
        self.by_label.insert(label.clone(), name.to_owned());
        self.labels.insert(name.to_owned(), label);
        self.reserved.remove(name);
    }

    /// Takes in that the branch has this name no longer.
    fn remove(&mut self, id: u64, name: &str) {
        if self.by_id.get(&id).is_some_and(|known| known == name) {
            self.by_id.remove(&id);
        }
        if let Some(label) = self.labels.remove(name)
            && self.by_label.get(&label).is_some_and(|known| known == name)
        {
            self.by_label.remove(&label);
        }
    }
}

impl Directory {
    /// The names of a catalog.
    pub(super) fn of(branches: &BTreeMap<String, BranchRecord>) -> Self {
        let mut names = KnownNames::default();
        branches.iter().for_each(|(name, record)| names.put(name, record));
        Self(Mutex::new(names))
    }

    /// Name of the branch with this number.
    pub(super) fn name_of(&self, id: u64) -> Option<String> {
        lock(&self.0).by_id.get(&id).cloned()
    }

    /// Name of the branch with this label.
    pub(super) fn name_of_label(&self, label: &str) -> Option<String> {
        lock(&self.0).by_label.get(label).cloned()
    }

    /// Name of the branch that somebody means by a name or a label: a name goes first.
    pub(super) fn name_meant(&self, text: &str) -> Option<String> {
        let names = lock(&self.0);
        if names.labels.contains_key(text) {
            return Some(text.to_owned());
        }
        names.by_label.get(text).cloned()
    }

    /// The label for a new branch of this name.
    pub(super) fn new_label(&self, name: &str) -> String {
        let names = lock(&self.0);
        labels::choose(name, |label| names.by_label.contains_key(label))
    }

    /// Takes in what became of names. Nobody sees a branch that is renamed without a name.
    pub(super) fn apply(&self, changes: &[NameChange]) {
        let mut names = lock(&self.0);
        for change in changes {
            match change {
                NameChange::Put(name, record) => names.put(name, record),
                NameChange::Remove(name, id) => names.remove(*id, name),
            }
        }
    }

    /// Keeps a name for an import.
    pub(super) fn reserve(&self, name: &str) {
        lock(&self.0).reserved.insert(name.to_owned());
    }

    /// Gives up a name that an import did not get.
    pub(super) fn unreserve(&self, name: &str) {
        lock(&self.0).reserved.remove(name);
    }

    /// Refuses a name that is not allowed, or that another branch or import has. The branch or
    /// import that is called `but` now may have it.
    pub(super) fn require_free(&self, name: &str, but: Option<&str>) -> Result<()> {
        rules::check(name)?;
        let names = lock(&self.0);
        let (taken, reserved) = (names.labels.contains_key(name), names.reserved.contains(name));
        if Some(name) == but || !(taken || reserved) {
            return Ok(());
        }
        let is = if reserved { "is being imported" } else { "exists already" };
        Err(Error::conflict(
            "branch_exists",
            format!("branch \"{name}\" {is}; choose another name"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::page::TimelineId;

    fn put(id: u64, name: &str, label: &str) -> NameChange {
        let record =
            BranchRecord { label: label.to_owned(), ..BranchRecord::root(id, TimelineId(1), 1) };
        NameChange::Put(name.to_owned(), record)
    }

    #[test]
    fn a_name_is_taken_until_its_branch_goes_or_has_another_one() {
        let directory = Directory::of(&BTreeMap::new());
        directory.apply(&[put(7, "fix/a", "fix-a")]);
        let code = |name: &str, but| directory.require_free(name, but).err().map(|e| e.code);
        assert_eq!(code("fix/a", None), Some("branch_exists"));
        assert_eq!(code("fix/a", Some("fix/a")), None, "its own");
        assert_eq!(code("fix-a", None), None, "a label is no name");
        let second = directory.new_label("fix-a");
        assert_ne!(second, "fix-a");
        directory.apply(&[put(8, "fix-a", &second)]);
        assert_eq!(directory.name_meant("fix-a").as_deref(), Some("fix-a"), "a name goes first");
        assert_eq!(directory.name_of_label("fix-a").as_deref(), Some("fix/a"));
        assert_eq!(directory.name_meant(&second).as_deref(), Some("fix-a"));
        // A branch that is renamed keeps its label.
        directory.apply(&[NameChange::Remove("fix/a".to_owned(), 7), put(7, "new", "fix-a")]);
        assert_eq!(directory.name_of(7).as_deref(), Some("new"));
        assert_eq!(directory.name_of_label("fix-a").as_deref(), Some("new"));
        assert_eq!(code("fix/a", None), None);
        directory.apply(&[NameChange::Remove("new".to_owned(), 7)]);
        assert_eq!((directory.name_of(7), directory.name_of_label("fix-a")), (None, None));
        assert_eq!(directory.name_meant("new"), None);
    }

    #[test]
    fn a_rename_may_put_before_it_removes() {
        let directory = Directory::of(&BTreeMap::new());
        directory.apply(&[put(7, "a", "a")]);
        directory.apply(&[put(7, "b", "a"), NameChange::Remove("a".to_owned(), 7)]);
        assert_eq!(directory.name_of_label("a").as_deref(), Some("b"));
        assert_eq!(directory.name_of(7).as_deref(), Some("b"));
    }

    #[test]
    fn an_import_has_its_name_from_the_beginning() {
        let directory = Directory::of(&BTreeMap::new());
        directory.reserve("prod");
        let refused = directory.require_free("prod", None).unwrap_err();
        assert!(refused.detail.contains("is being imported"), "{refused}");
        directory.require_free("prod", Some("prod")).unwrap();
        directory.unreserve("prod");
        directory.require_free("prod", None).unwrap();
        directory.reserve("prod");
        directory.apply(&[put(3, "prod", "prod")]);
        let refused = directory.require_free("prod", None).unwrap_err();
        assert!(refused.detail.contains("exists already"), "{refused}");
    }
}
