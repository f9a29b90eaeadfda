//! Host labels: what names a branch as the first part of a host name and behind a role.
//!
//! A branch gets its label when it is made and keeps the label when it is renamed. No two branches
//! have the same one, however alike their names are.

use crate::storage::catalog::BranchRecord;
use api::names::MAX_LABEL_BYTES;
use sha2::{Digest, Sha256};

/// Labels that may be the server's own host names.
const RESERVED: [&str; 5] = ["api", "hooks", "localhost", "ui", "www"];
/// Ends of a label that say how to connect to the branch.
const SUFFIXES: [&str; 2] = ["-pooler", "-ro"];
/// Digits of the hash in a label that its name alone does not give.
const HASH_DIGITS: usize = 8;

/// The label of a branch of this name, which those that are `taken` are not.
pub(super) fn choose(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let plain = plain(name);
    let plain = plain.trim_matches('-');
    let is_free = |label: &str| !taken(label) && !RESERVED.contains(&label);
    let fits = !plain.is_empty()
        && plain.len() <= MAX_LABEL_BYTES
        && !SUFFIXES.iter().any(|suffix| plain.ends_with(suffix));
    if fits && is_free(plain) {
        return plain.to_owned();
    }
    // Another branch may be called like the first of these.
    let mut salted = name.to_owned();
    loop {
        let label = hashed(plain, &salted);
        if is_free(&label) {
            return label;
        }
        salted.push('\0');
    }
}

/// The label of a branch, which builds before format 5 of the catalog did not note.
pub(super) fn of(name: &str, record: &BranchRecord) -> String {
    if record.label.is_empty() { plain(name) } else { record.label.clone() }
}

/// The name in lower case, with `-` for all but letters and digits.
fn plain(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(legal).collect()
}

fn hashed(plain: &str, name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let mut hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hash.truncate(HASH_DIGITS);
    let room = MAX_LABEL_BYTES - HASH_DIGITS - 1;
    // Only ASCII is left in it.
    let begin = plain[..plain.len().min(room)].trim_end_matches('-');
    if begin.is_empty() { format!("branch-{hash}") } else { format!("{begin}-{hash}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_label_follows_from_the_name() {
        let none = |_: &str| false;
        for (name, label) in [
            ("main", "main"),
            ("Feature/Login_2.x", "feature-login-2-x"),
            ("fix#12", "fix-12"),
            ("_x_", "x"),
        ] {
            assert_eq!(choose(name, none), label, "{name}");
        }
        let long = "dependabot/nuget/DotNetty.Handlers-and-Microsoft.Extensions.Dependency-0.7.6";
        assert_eq!(
            choose(long, none),
            "dependabot-nuget-dotnetty-handlers-and-microsoft-exten-6e4bd364"
        );
        for name in ["日本", "api", "x-pooler", "x-ro", "-"] {
            let label = choose(name, none);
            assert!(label.len() > HASH_DIGITS && label != name, "{name} {label}");
            assert!(!label.starts_with('-') && !label.ends_with('-'), "{label}");
        }
    }

    #[test]
    fn no_two_branches_have_the_same_label() {
        let mut taken = HashSet::new();
        let mut names: Vec<String> = ["fix/a", "fix-a", "fix_a", "FIX/A"].map(str::to_owned).into();
        // What the second one gets.
        names.push(choose("fix-a", |label| label == "fix-a"));
        names.insert(0, choose("fix_a", |label| label == "fix-a"));
        for name in names {
            let label = choose(&name, |label| taken.contains(label));
            assert!(label.len() <= MAX_LABEL_BYTES);
            assert!(taken.insert(label), "{name}");
        }
    }

    #[test]
    fn builds_of_before_made_the_label_of_the_name() {
        let record = BranchRecord::root(1, crate::storage::page::TimelineId(1), 1);
        assert_eq!(of("-A/b_", &record), "-a-b-");
        assert_eq!(of("A", &BranchRecord { label: "b".to_owned(), ..record }), "b");
    }
}
