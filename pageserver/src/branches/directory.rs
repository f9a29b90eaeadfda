//! Which name a branch has by its number and by its host-name form, and which names are reserved.
//!
//! All of it follows from the catalog, but for the names of imports in progress.

use super::rules;
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
    /// Host-name forms, with the branch or import that has them.
    by_host: HashMap<String, String>,
    /// KnownNames of imports in progress.
    reserved: HashSet<String>,
}

impl KnownNames {
    /// Takes in that the branch has this name.
    fn put(&mut self, id: u64, name: &str) {
        if let Some(before) = self.by_id.insert(id, name.to_owned())
            && self.by_host.get(&rules::host(&before)) == Some(&before)
        {
            self.by_host.remove(&rules::host(&before));
        }
        self.by_host.insert(rules::host(name), name.to_owned());
        self.reserved.remove(name);
    }

    /// Takes in that the branch has this name no longer.
    fn remove(&mut self, id: u64, name: &str) {
        if self.by_id.get(&id).is_some_and(|known| known == name) {
            self.by_id.remove(&id);
        }
        if self.by_host.get(&rules::host(name)).is_some_and(|known| known == name) {
            self.by_host.remove(&rules::host(name));
        }
    }
}

impl Directory {
    /// The names of a catalog.
    pub(super) fn of(branches: &BTreeMap<String, BranchRecord>) -> Self {
        let mut names = KnownNames::default();
        branches.iter().for_each(|(name, record)| names.put(record.id, name));
        Self(Mutex::new(names))
    }

    /// Name of the branch with this number.
    pub(super) fn name_of(&self, id: u64) -> Option<String> {
        lock(&self.0).by_id.get(&id).cloned()
    }

    /// Name of the branch with this host-name form.
    pub(super) fn name_of_host(&self, host: &str) -> Option<String> {
        lock(&self.0).by_host.get(host).cloned()
    }

    /// Takes in what became of names. Nobody sees a branch that is renamed without a name.
    pub(super) fn apply(&self, changes: &[NameChange]) {
        let mut names = lock(&self.0);
        for change in changes {
            match change {
                NameChange::Put(name, record) => names.put(record.id, name),
                NameChange::Remove(name, id) => names.remove(*id, name),
            }
        }
    }

    /// Keeps a name for an import.
    pub(super) fn reserve(&self, name: &str) {
        let mut names = lock(&self.0);
        names.reserved.insert(name.to_owned());
        names.by_host.insert(rules::host(name), name.to_owned());
    }

    /// Gives up a name that an import did not get.
    pub(super) fn unreserve(&self, name: &str) {
        let mut names = lock(&self.0);
        if names.reserved.remove(name) {
            names.by_host.remove(&rules::host(name));
        }
    }

    /// Refuses a name that is not allowed, or that another branch or import has, be it as a host
    /// name only. The branch that is called `but` now may have it.
    pub(super) fn require_free(&self, name: &str, but: Option<&str>) -> Result<()> {
        rules::check(name)?;
        let names = lock(&self.0);
        match names.by_host.get(&rules::host(name)) {
            None => Ok(()),
            Some(other) if Some(other.as_str()) == but => Ok(()),
            Some(other) if other == name && names.reserved.contains(name) => Err(Error::conflict(
                "branch_exists",
                format!("branch \"{name}\" is being imported"),
            )),
            Some(other) if other == name => Err(Error::conflict(
                "branch_exists",
                format!(
                    "branch \"{name}\" exists already; `branchctl reset {name}` takes it back to \
                     its parent"
                ),
            )),
            Some(other) => Err(Error::conflict(
                "host_name_taken",
                format!(
                    "branch \"{name}\" would have the host name of branch \"{other}\", \"{}\"; \
                     choose another name",
                    rules::host(name)
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::catalog::Allowance;

    fn put(id: u64, name: &str) -> NameChange {
        let record = BranchRecord {
            id,
            timeline: 1,
            parent: None,
            created_ns: 1,
            forked_ns: 1,
            protected: false,
            password: None,
            allowance: Allowance::default(),
        };
        NameChange::Put(name.to_owned(), record)
    }

    #[test]
    fn a_name_is_taken_until_its_branch_goes_or_has_another_one() {
        let directory = Directory::of(&BTreeMap::new());
        directory.apply(&[put(7, "fix/a")]);
        let code = |name: &str, but| directory.require_free(name, but).err().map(|e| e.code);
        assert_eq!(code("fix/a", None), Some("branch_exists"));
        assert_eq!(code("fix-a", None), Some("host_name_taken"));
        assert_eq!(code("fix-a", Some("fix/a")), None, "its own other form");
        // A rename to another form of the same host name.
        let renamed = [NameChange::Remove("fix/a".to_owned(), 7), put(7, "fix-a")];
        directory.apply(&renamed);
        assert_eq!(directory.name_of(7).as_deref(), Some("fix-a"));
        assert_eq!(directory.name_of_host("fix-a").as_deref(), Some("fix-a"));
        directory.apply(&[NameChange::Remove("fix-a".to_owned(), 7)]);
        assert_eq!((directory.name_of(7), directory.name_of_host("fix-a")), (None, None));
        assert_eq!(code("fix/a", None), None);
    }

    #[test]
    fn an_import_has_its_name_from_the_beginning() {
        let directory = Directory::of(&BTreeMap::new());
        directory.reserve("prod");
        let refused = directory.require_free("prod", None).unwrap_err();
        assert!(refused.detail.contains("is being imported"), "{refused}");
        assert_eq!(directory.require_free("PROD", None).unwrap_err().code, "host_name_taken");
        directory.unreserve("prod");
        directory.require_free("prod", None).unwrap();
        directory.reserve("prod");
        directory.apply(&[put(3, "prod")]);
        let refused = directory.require_free("prod", None).unwrap_err();
        assert!(refused.detail.contains("exists already"), "{refused}");
    }
}
