//! The rules: which names are allowed, what a mistyped one may have meant, and what may be done to
//! which branch.

use crate::error::{Error, Result};
use crate::events::Action;
use crate::storage::catalog::{BranchRecord, DEFAULT_BRANCH};

pub use api::names::MAX_NAME_BYTES;

/// Names that a message about an unknown one offers.
const MAX_SUGGESTIONS: usize = 3;
/// Bytes of a name that a message shows.
const SHOWN_BYTES: usize = 100;

/// Refuses a name that no branch can have.
pub fn check(name: &str) -> Result<()> {
    if api::names::is_branch_name(name) {
        return Ok(());
    }
    let detail = format!(
        "{:?} is no branch name: use one that git takes for a branch (`git help \
         check-ref-format`), of at most {MAX_NAME_BYTES} bytes",
        shown(name)
    );
    Err(Error::invalid("bad_branch_name", detail))
}

/// As much of a name as a message shows.
fn shown(name: &str) -> String {
    match name.char_indices().find(|(at, _)| *at >= SHOWN_BYTES) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
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

/// The error for a name that no branch has, with the nearest of `names`.
pub fn not_found<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let shown = shown(name);
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
    use crate::storage::page::TimelineId;

    #[test]
    fn a_bad_name_is_shown_in_part() {
        let error = check(&format!("ä{}", "é".repeat(200))).unwrap_err();
        assert_eq!(error.code, "bad_branch_name");
        assert!(error.detail.contains("é…") && error.detail.len() < 400, "{error}");
    }

    #[test]
    fn what_a_branch_allows_follows_from_its_settings() {
        let any =
            |id, protected| BranchRecord { protected, ..BranchRecord::root(id, TimelineId(1), 1) };
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
    fn a_mistyped_name_finds_its_neighbours() {
        let names = ["main", "feature/login", "feature/logon", "other"];
        let error = not_found("feature/logn", names.into_iter());
        assert!(error.detail.contains("\"feature/login\" or \"feature/logon\""), "{error}");
        assert!(not_found("zzzzzz", names.into_iter()).detail.contains("branchctl list"));
        assert_eq!(distance("kitten", "Sitting"), 3);
    }
}
