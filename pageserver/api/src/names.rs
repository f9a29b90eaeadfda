//! The rule for names of branches, which server and proxy share.

/// The role by which the server reaches a branch, and which no client may have.
pub const DOOR_ROLE: &str = "coppice";
/// Longest name: what a database name of Postgres's startup packet and a file system can hold.
pub const MAX_NAME_BYTES: usize = 244;
/// Longest label of a host name (RFC 1035, 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// Whether a branch can have this name: any that git takes for a branch (`git check-ref-format
/// --branch`), up to 244 bytes.
pub fn is_branch_name(name: &str) -> bool {
    let illegal = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let is_component =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name.len() <= MAX_NAME_BYTES
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !["@", "HEAD"].contains(&name)
        && !name.contains(illegal)
        && !name.contains("..")
        && !name.contains("@{")
        && name.split('/').all(is_component)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn names_are_those_that_git_takes() {
        let mut names: Vec<String> = [
            "main",
            "feature/login-2",
            "A.b_c/d-e",
            "dependabot/npm_and_yarn/@types/node-22.1.0",
            "renovate/@types/node-20.x",
            "fix/#1234",
            "Füße/neu",
            "a@b",
            "-a",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a.lockx",
            "a..b",
            "a.",
            "a./b",
            "/a",
            "a/",
            "a//b",
            "@",
            "@/a",
            "a@{b",
            "HEAD",
            "HEAD/a",
            "-",
            "a\u{a0}b",
            "日本",
            "a'b\"c;$(d)&|<>",
        ]
        .map(str::to_owned)
        .into();
        names.extend((1..=127_u8).flat_map(|byte| {
            let char = char::from(byte);
            [char.to_string(), format!("a{char}"), format!("a{char}b"), format!("a{char}{char}b")]
        }));
        for name in names {
            let mut git = Command::new("git");
            // Git takes `@{-1}` and the like for a branch that was visited before.
            let git = git.args(["check-ref-format", &format!("refs/heads/{name}")]);
            let taken = git.status().unwrap().success() && !name.starts_with('-') && name != "HEAD";
            assert_eq!(is_branch_name(&name), taken && name != "@", "{name:?}");
        }
        assert!(is_branch_name(&"x".repeat(244)) && !is_branch_name(&"x".repeat(245)));
        assert!(!is_branch_name("") && !is_branch_name("a\0b"));
    }
}
