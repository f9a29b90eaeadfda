//! Tables of what chooses a branch, and of what its Postgres gets to see then.

use super::*;
use crate::startup::{LENGTH_BYTES, Packet, decode};

/// A startup with these parameters, made the way a client makes it.
fn startup(params: &[(&str, &str)]) -> Startup {
    let mut body = (3_u32 << 16).to_be_bytes().to_vec();
    for (name, value) in params {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    match decode(&body) {
        Ok(Packet::Startup(startup)) => startup,
        other => panic!("{params:?}: {other:?}"),
    }
}

fn name(name: &str) -> Selector {
    Selector::Name(name.into())
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
        let (target, left) =
            route(startup(&[("user", "u"), ("options", options)]), None, None).unwrap();
        assert_eq!(target.branch, branch.map_or(Selector::Default, name), "{options:?}");
        assert_eq!(target.at.as_deref(), at, "{options:?}");
        assert_eq!(left.get("options"), kept.map(|kept: &str| kept.as_bytes()), "{options:?}");
    }
    for bad in ["at=", "at=a\\ b", "at=\u{1}"] {
        let refusal = route(startup(&[("user", "u"), ("options", bad)]), None, None).unwrap_err();
        assert_eq!(refusal.sqlstate, INVALID_PARAMETER, "{bad:?}");
    }
    let long = format!("at={}", "1".repeat(MOMENT_BYTES_MAX + 1));
    route(startup(&[("user", "u"), ("options", &long)]), None, None).unwrap_err();
}

fn host(label: &str) -> Selector {
    Selector::Host(label.into())
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
        let given = startup(&[("user", "u"), ("options", options), ("database", "d")]);
        let (Target { branch: selector, .. }, left) = route(given, None, None).unwrap();
        assert_eq!(selector, branch.map_or(Selector::Default, name), "{options:?}");
        let kept = kept.map(|kept: &str| kept.as_bytes());
        assert_eq!(left.get("options"), kept, "{options:?}");
        assert_eq!(left.get("database"), Some(&b"d"[..]), "{options:?}");
    }
}

#[test]
fn the_database_names_a_branch() {
    let table = [
        ("app@a", Some("a"), Some("app")),
        ("app@x@a", Some("a"), Some("app@x")),
        ("@a", Some("a"), None),
        ("app", None, Some("app")),
        ("u@v", None, Some("u@v")),
    ];
    for (database, branch, left) in table {
        let given = startup(&[("user", "u@v"), ("database", database)]);
        let (Target { branch: selector, .. }, rest) = route(given, None, None).unwrap();
        assert_eq!(selector, branch.map_or(Selector::Default, name), "{database:?}");
        assert_eq!(rest.get("database"), left.map(str::as_bytes), "{database:?}");
    }
    let (Target { branch: selector, .. }, rest) =
        route(startup(&[("user", "u")]), None, None).unwrap();
    assert_eq!((selector, rest), (Selector::Default, startup(&[("user", "u")])));
}

#[test]
fn the_server_name_is_a_branch() {
    let table = [
        ("a.localhost", None, host("a")),
        ("A-B.LocalHost.", None, host("a-b")),
        ("localhost", None, Selector::Default),
        ("db", None, Selector::Default),
        ("127.0.0.1", None, Selector::Default),
        ("::1", None, Selector::Default),
        (".localhost", None, Selector::Default),
        ("a.example.com", None, host("a")),
        ("a.example.com", Some("Example.com"), host("a")),
        ("a.localhost", Some("example.com"), host("a")),
        ("example.com", Some("example.com"), Selector::Default),
        ("a.b.example.com", Some("example.com"), Selector::Default),
        ("db.internal", Some("example.com"), Selector::Default),
    ];
    for (sni, domain, expected) in table {
        let (Target { branch: selector, .. }, _) =
            route(startup(&[("user", "u")]), Some(sni), domain).unwrap();
        assert_eq!(selector, expected, "{sni} under {domain:?}");
    }
}

#[test]
fn one_choice_goes_before_another() {
    let all = [("user", "u"), ("options", "branch=o -e"), ("database", "app@d")];
    let table = [
        (Some("s.localhost"), &all[..], host("s"), "app@d"),
        (Some("machine.internal"), &all[..], name("o"), "app@d"),
        (None, &all[..], name("o"), "app@d"),
        (Some("machine.internal"), &[all[0], all[2]], name("d"), "app"),
        (Some("s.localhost"), &[all[0], all[2]], host("s"), "app@d"),
    ];
    for (sni, params, expected, database) in table {
        let (Target { branch: selector, .. }, left) = route(startup(params), sni, None).unwrap();
        assert_eq!(selector, expected, "{sni:?} {params:?}");
        assert_eq!(left.get("database"), Some(database.as_bytes()), "{sni:?} {params:?}");
        let options = left.get("options");
        assert!(options.is_none_or(|options| options == b"-e"), "never shown to Postgres");
    }
}

#[test]
fn refuses_what_cannot_be_a_name() {
    let long = "a".repeat(MAX_NAME_BYTES + 1);
    for bad in ["", "-a", ".a", "a b", "a:b", "é", "a\u{1}", &long] {
        let escaped = bad.replace(' ', "\\ ");
        for params in [("options", format!("branch={escaped}")), ("database", format!("app@{bad}"))]
        {
            let given = startup(&[("user", "u"), (params.0, &params.1)]);
            let refusal = route(given, None, None).unwrap_err();
            assert_eq!(refusal.sqlstate, NO_SUCH_BRANCH, "{params:?}");
        }
    }
    let longest = format!("app@{}", &long[1..]);
    assert!(route(startup(&[("user", "u"), ("database", &longest)]), None, None).is_ok());
}

#[test]
fn never_makes_the_packet_longer() {
    for database in ["app@a", "@a", "a"] {
        let given = startup(&[("user", "u"), ("database", database), ("options", "branch=x  -e")]);
        let before = given.encode().len();
        let (_, left) = route(given, None, None).unwrap();
        assert!(left.encode().len() < before);
        assert!(decode(&left.encode()[LENGTH_BYTES..]).is_ok());
    }
}
