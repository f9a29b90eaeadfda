//! The rules: which names are allowed, their form as a host name, what a mistyped one may have
//! meant, and what may be done to which branch.

use crate::error::{Error, Result};
use crate::events::Action;
use crate::storage::catalog::{BranchRecord, DEFAULT_BRANCH};

pub use api::names::MAX_NAME_BYTES;

/// Names that a message about an unknown one offers.
const MAX_SUGGESTIONS: usize = 3;

/// Refuses a name that no branch can have.
pub fn check(name: &str) -> Result<()> {
    if api::names::is_branch_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME_BYTES + 1).collect();
    Err(Error::invalid(
        "bad_branch_name",
        format!(
            "{shown:?} is no branch name: use a letter or digit, then up to 62 of letters, digits, \
             '.', '_', '/' and '-'"
        ),
    ))
}

/// Refuses what must not be done to a branch, whoever asks for it.
pub(super) fn allow(action: Action, name: &str, record: &BranchRecord) -> Result<()> {
    let takes_data = matches!(action, Action::Reset | Action::Restore | Action::Delete);
    if takes_data && record.protected {
        let detail =
            format!("branch \"{name}\" is protected; `branchctl unprotect {name}` lifts that");
        return Err(Error::conflict("branch_protected", detail));
    }
    if action == Action::Delete && record.id == DEFAULT_BRANCH {
        let detail = format!(
            "branch \"{name}\" is the default branch, which new branches start from: it stays"
        );
        return Err(Error::conflict("default_branch", detail));
    }
    Ok(())
}

/// The error for a branch whose name leads elsewhere since the operation began.
pub(super) fn changed_meanwhile(name: &str) -> Error {
    let detail = format!("branch \"{name}\" was reset or restored meanwhile; look at it again");
    Error::conflict("branch_changed", detail)
}

/// The name as the first label of a host name: lower case, with `-` for what a label may not hold.
pub fn host(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect()
}

/// The error for a name that no branch has, with the nearest of `names`.
pub fn not_found<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
    let near = nearest(&shown, names);
    let hint = if near.is_empty() {
        "list them with `branchctl list`".to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    Error::not_found("branch_not_found", format!("branch \"{shown}\" does not exist; {hint}"))
}

/// Names that differ from `name` in at most a third of its letters, the nearest first, quoted.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let limit = name.len().div_ceil(3).max(1);
    let scored = names.filter(|other| other.len().abs_diff(name.len()) <= limit);
    let mut scored: Vec<(usize, &str)> = scored
        .map(|other| (distance(name, other), other))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    scored.sort_unstable();
    scored.truncate(MAX_SUGGESTIONS);
    scored.into_iter().map(|(_, name)| format!("\"{name}\"")).collect()
}

/// Levenshtein distance, ignoring case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::catalog::Allowance;

    #[test]
    fn names_are_checked() {
        for good in ["main", "a", "0", "feature/login-2", "A.b_c/d-e", &"x".repeat(63)] {
            check(good).unwrap();
        }
        for bad in ["", "-a", "/a", ".a", "a b", "a@b", "ä", "a\0", "a%2f", &"x".repeat(64)] {
            assert_eq!(check(bad).unwrap_err().code, "bad_branch_name", "{bad:?}");
        }
    }

    #[test]
    fn what_a_branch_allows_follows_from_its_settings() {
        let any = |id, protected| BranchRecord {
            id,
            timeline: 1,
            parent: None,
            created_ns: 1,
            forked_ns: 1,
            protected,
            password: None,
            allowance: Allowance::default(),
        };
        for (id, protected) in [(1, false), (1, true), (2, false), (2, true)] {
            for action in Action::ALL {
                let refused = allow(*action, "x", &any(id, protected)).err().map(|e| e.code);
                let expected = match action {
                    Action::Reset | Action::Restore | Action::Delete if protected => {
                        Some("branch_protected")
                    }
                    Action::Delete if id == DEFAULT_BRANCH => Some("default_branch"),
                    _ => None,
                };
                assert_eq!(refused, expected, "{} {id} {protected}", action.word());
            }
        }
    }

    #[test]
    fn a_host_is_a_label() {
        assert_eq!(host("Feature/Login_2.x"), "feature-login-2-x");
    }

    #[test]
    fn a_mistyped_name_finds_its_neighbours() {
        let names = ["main", "feature/login", "feature/logon", "other"];
        let error = not_found("feature/logn", names.into_iter());
        assert!(error.detail.contains("\"feature/login\" or \"feature/logon\""), "{error}");
        assert!(not_found("zzzzzz", names.into_iter()).detail.contains("branchctl list"));
        assert_eq!(distance("kitten", "Sitting"), 3);
    }
}
