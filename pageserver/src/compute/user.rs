//! The operating-system user that Postgres and its tools run as.
//!
//! Postgres refuses to run as root, so a server started by root runs it as another user (`postgres`
//! by default); a server started by anybody else runs it as that same user.

use crate::error::{Error, Result};
use nix::unistd::{Gid, Uid, User, geteuid, setfsgid, setfsuid};
use std::path::Path;

/// A user that Postgres can run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Login name, for messages.
    pub name: String,
    /// User id, never 0.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// User ids that there must be for computes to have their own.
const IDS: u64 = 1 << 20;

impl OsUser {
    /// The user called `name`, or the default one: `postgres` if we are root, else ourselves.
    pub fn resolve(name: Option<&str>) -> Result<Self> {
        let own = geteuid();
        let user = match (name, own.is_root()) {
            (None, false) => lookup_uid(own)?,
            (name, _) => lookup_name(name.unwrap_or("postgres"))?,
        };
        if user.uid == 0 {
            return Err(Error::invalid(
                "postgres_user",
                "Postgres refuses to run as root; give another user with --postgres-user",
            ));
        }
        if !own.is_root() && user.uid != own.as_raw() {
            return Err(Error::invalid(
                "postgres_user",
                format!(
                    "only root can run Postgres as another user ({}); start the server as root or \
                     leave out --postgres-user",
                    user.name
                ),
            ));
        }
        Ok(user)
    }

    /// `first` if computes can have the user ids behind it: we are root, and there are such ids
    /// here, which a container may lack. 0 is not asked for.
    pub fn ids_from(first: u32) -> Option<u32> {
        let needed = u64::from(first)..u64::from(first) + IDS;
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let holds = |line: &str| {
            let mut numbers =
                line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
            let (start, count) = (numbers.next()?, numbers.nth(1)?);
            Some(start <= needed.start && needed.end <= start + count)
        };
        if first == 0 || !geteuid().is_root() {
            return None;
        }
        let there = map.lines().any(|line| holds(line) == Some(true));
        if !there {
            tracing::warn!(
                first,
                "there are no such user ids here: all branches' Postgres run as one user, and are \
                 not kept apart by the kernel; give --compute-uids a number that this container has"
            );
        }
        there.then_some(first)
    }

    /// The user that owns a data directory, whom Postgres has to run as there. Named after this
    /// one.
    pub(crate) fn owner_of(&self, data: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let failed = |e| Error::io(format_args!("look at {}", data.display()), &e);
        let owner = data.symlink_metadata().map_err(failed)?;
        if owner.uid() == self.uid {
            return Ok(self.clone());
        }
        if owner.uid() == 0 || !geteuid().is_root() {
            let detail = format!(
                "{} belongs to user {}, who cannot run Postgres",
                data.display(),
                owner.uid()
            );
            return Err(Error::invalid("data_directory_owner", detail));
        }
        Ok(Self {
            name: format!("{} {}", self.name, owner.uid()),
            uid: owner.uid(),
            gid: owner.gid(),
        })
    }

    /// Whether the system has a name for it.
    pub(crate) fn has_name(&self) -> bool {
        User::from_uid(Uid::from_raw(self.uid)).is_ok_and(|user| user.is_some())
    }

    /// Whether programs must change user to run as this one.
    pub(crate) fn is_other(&self) -> bool {
        geteuid().as_raw() != self.uid
    }

    /// Gives `path` to this user.
    pub(crate) fn own(&self, path: &Path) -> Result<()> {
        if !self.is_other() {
            return Ok(());
        }
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)).map_err(|e| {
            Error::io(format_args!("give {} to user {}", path.display(), self.name), &e)
        })
    }

    /// Runs `work` with this user's rights on files, on the calling thread only.
    ///
    /// A data directory belongs to people who may be superusers of their branch and nothing more:
    /// with root's rights, a symbolic link that they put there would lead our deletions anywhere.
    pub(crate) fn with_rights<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Restore(Uid, Gid);
        impl Drop for Restore {
            fn drop(&mut self) {
                setfsuid(self.0);
                setfsgid(self.1);
            }
        }
        let _restore = self.is_other().then(|| {
            // The group goes first: without root's rights it could not be changed any more.
            let group = setfsgid(Gid::from_raw(self.gid));
            Restore(setfsuid(Uid::from_raw(self.uid)), group)
        });
        work()
    }
}

fn lookup_name(name: &str) -> Result<OsUser> {
    let found = User::from_name(name)
        .map_err(|e| Error::io(format_args!("look up user {name}"), &e.into()))?;
    found.map(OsUser::from).ok_or_else(|| {
        Error::invalid(
            "postgres_user",
            format!(
                "there is no user {name} to run Postgres as; create it or give another with \
                 --postgres-user"
            ),
        )
    })
}

fn lookup_uid(uid: Uid) -> Result<OsUser> {
    let found = User::from_uid(uid)
        .map_err(|e| Error::io(format_args!("look up user {uid}"), &e.into()))?;
    found.map(OsUser::from).ok_or_else(|| {
        Error::invalid(
            "postgres_user",
            format!("user id {uid} has no name, which initdb needs; add it to /etc/passwd"),
        )
    })
}

impl From<User> for OsUser {
    fn from(user: User) -> Self {
        Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_user_and_root_are_refused() {
        let unknown = OsUser::resolve(Some("no-such-user")).unwrap_err();
        assert!(unknown.detail.contains("no-such-user"), "{unknown}");
        let root = OsUser::resolve(Some("root")).unwrap_err();
        assert_eq!(root.code, "postgres_user");
    }

    #[test]
    fn the_rights_of_the_user_end_with_the_work() {
        let Ok(user) = OsUser::resolve(None) else { return };
        let file = std::env::temp_dir().join(format!("coppice-rights-{}", std::process::id()));
        user.with_rights(|| std::fs::write(&file, "x")).unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&file).unwrap());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(owner, user.uid);
        assert_eq!(setfsuid(Uid::from_raw(u32::MAX)), geteuid());
    }
}
