//! Tables of what a client says about its branch, and of what its Postgres gets to see then.

use super::*;
use crate::startup::tests::startup;

fn read(params: &[(&str, &str)]) -> Result<Mentions, Refusal> {
    Mentions::read(startup(params), None, None)
}

fn names(names: &[&str]) -> Vec<Selector> {
    names.iter().map(|name| Selector::Name((*name).to_owned())).collect()
}

#[test]
fn options_name_a_moment() {
    let table = [
        ("at=2026-11-20T10:00:00Z", None, Some("2026-11-20T10:00:00Z"), None),
        ("-c at=0/16B3748 branch=a", Some("a"), Some("0/16B3748"), None),
        ("--at=1 -c work_mem=4MB -cat=10m", None, Some("10m"), Some("-c work_mem=4MB")),
        ("-c search_path=a\\ at=1", None, None, Some("-c search_path=a\\ at=1")),
    ];
    for (options, branch, at, kept) in table {
        let found = read(&[("user", "u"), ("options", options)]).unwrap();
        assert_eq!(found.option.as_deref(), branch, "{options:?}");
        assert_eq!(found.at.as_deref(), at, "{options:?}");
        let kept = kept.map(|kept: &str| kept.as_bytes());
        assert_eq!(found.startup.get("options"), kept, "{options:?}");
    }
    let long = format!("at={}", "1".repeat(MOMENT_BYTES_MAX + 1));
    for bad in ["at=", "at=a\\ b", "at=\u{1}", &long] {
        let refusal = read(&[("user", "u"), ("options", bad)]).unwrap_err();
        assert_eq!(refusal.sqlstate, INVALID_PARAMETER, "{bad:?}");
    }
}

#[test]
fn options_name_a_branch() {
    let table = [
        ("branch=a", Some("a"), None),
        ("  branch=a  ", Some("a"), None),
        ("-c branch=a", Some("a"), None),
        ("-cbranch=a", Some("a"), None),
        ("--branch=a", Some("a"), None),
        ("-c branch=a/b.c_d-e", Some("a/b.c_d-e"), None),
        ("branch=renovate/@types/node-20.x", Some("renovate/@types/node-20.x"), None),
        ("branch=a -c branch=b", Some("b"), None),
        ("-c work_mem=4MB branch=a --geqo=off", Some("a"), Some("-c work_mem=4MB --geqo=off")),
        ("-c work_mem=4MB -c branch=a", Some("a"), Some("-c work_mem=4MB")),
        ("br\\anch=a", Some("a"), None),
        (
            "-c search_path=a\\ branch=b\\\\ --branch=c",
            Some("c"),
            Some("-c search_path=a\\ branch=b\\\\"),
        ),
        ("-c search_path=a\\ branch=b", None, Some("-c search_path=a\\ branch=b")),
        ("-c  -cbranch=a", None, Some("-c  -cbranch=a")),
        ("-c", None, Some("-c")),
        ("branch=a -c", Some("a"), Some("-c")),
        ("branch=a x\\", Some("a"), Some("x\\")),
        ("branch", None, Some("branch")),
        ("-c Branch=a", None, Some("-c Branch=a")),
        ("", None, Some("")),
        ("-c\tbranch=a\x0b\x0c\r\n-e", Some("a"), Some("-e")),
    ];
    for (options, branch, kept) in table {
        let found = read(&[("user", "u"), ("options", options), ("database", "d")]).unwrap();
        assert_eq!(found.option.as_deref(), branch, "{options:?}");
        let kept = kept.map(|kept: &str| kept.as_bytes());
        assert_eq!(found.startup.get("options"), kept, "{options:?}");
        assert_eq!(found.startup.get("database"), Some(&b"d"[..]), "{options:?}");
    }
}

#[test]
fn a_database_is_split_wherever_a_branch_may_begin() {
    let table: [(&str, &[&str]); 7] = [
        ("app@a", &["a"]),
        ("app@x@a", &["x@a", "a"]),
        ("app@renovate/@types/node", &["renovate/@types/node", "types/node"]),
        ("@a", &["a"]),
        ("app@", &[""]),
        ("app", &[]),
        ("u@v", &[]),
    ];
    for (database, branches) in table {
        let found = read(&[("user", "u@v"), ("database", database)]).unwrap();
        assert_eq!(found.selectors(), names(branches), "{database:?}");
    }
    assert_eq!(read(&[("user", "u")]).unwrap().selectors(), []);
    let many = "@x".repeat(1000);
    assert_eq!(read(&[("user", "u"), ("database", &many)]).unwrap().databases.len(), SPLITS_MAX);
}

#[test]
fn what_follows_the_last_dot_of_a_role_may_be_a_label() {
    let long = format!("u.{}", "x".repeat(MAX_LABEL_BYTES + 1));
    for (role, label) in [
        ("postgres.feature-login", Some("feature-login")),
        ("a.b.C", Some("c")),
        ("postgres", None),
        (".a", None),
        ("a.", None),
        (&long, None),
    ] {
        let found = read(&[("user", role)]).unwrap();
        let found = found.role.map(|role| role.branch);
        assert_eq!(found.as_deref(), label, "{role}");
    }
}

#[test]
fn the_server_name_is_a_branch() {
    let sure = |label: &str| Some(Host::Sure(label.to_owned()));
    let likely = |label: &str| Some(Host::Likely(label.to_owned()));
    let table = [
        ("a.localhost", None, sure("a")),
        ("A-B.LocalHost.", None, sure("a-b")),
        ("localhost", None, None),
        ("db", None, None),
        ("127.0.0.1", None, None),
        ("::1", None, None),
        (".localhost", None, None),
        ("a.example.com", None, likely("a")),
        ("a.example.com", Some("Example.com"), sure("a")),
        ("a.localhost", Some("example.com"), sure("a")),
        ("example.com", Some("example.com"), None),
        ("a.b.example.com", Some("example.com"), None),
        ("db.internal", Some("example.com"), None),
    ];
    for (sni, domain, expected) in table {
        let found = Mentions::read(startup(&[("user", "u")]), Some(sni), domain).unwrap();
        assert_eq!(found.host, expected, "{sni} under {domain:?}");
    }
}
