//! The rule for names of branches, which server and proxy share.

/// The role by which the server reaches a branch, and which no client may have.
pub const DOOR_ROLE: &str = "coppice";
/// Longest name, which is also the longest label of a host name.
pub const MAX_NAME_BYTES: usize = 63;

/// Whether a branch can have this name: a letter or digit, then up to 62 of letters, digits, `.`,
/// `_`, `/` and `-`.
pub fn is_branch_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.len() <= MAX_NAME_BYTES
        && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["main", "a", "0", "feature/login-2", "A.b_c/d-e", &"x".repeat(63)] {
            assert!(is_branch_name(good), "{good:?}");
        }
        for bad in ["", "-a", "/a", ".a", "a b", "a@b", "ä", "a\0", "a%2f", &"x".repeat(64)] {
            assert!(!is_branch_name(bad), "{bad:?}");
        }
    }
}
