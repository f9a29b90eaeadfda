//! Tables of what chooses a branch, and of what its Postgres gets to see then.

use super::*;
use crate::mentions::Selector;
use crate::refusal::INVALID_AUTHORIZATION;
use crate::startup::LENGTH_BYTES;
use crate::startup::tests::startup;

/// The branches: names and labels.
const BRANCHES: [(&str, &str); 5] = [
    ("a", "a"),
    ("b", "b"),
    ("feature/login", "feature-login"),
    ("renovate/@types/node", "renovate--types-node"),
    // The name is the label of another branch.
    ("feature-login", "feature-login-1"),
];

/// Parameters of a startup packet.
type Params<'a> = &'a [(&'a str, &'a str)];

fn find(selector: &Selector) -> Option<String> {
    let by = |text: &str, nth: fn(&(&'static str, &'static str)) -> &'static str| {
        BRANCHES.iter().find(|branch| nth(branch) == text).map(|(name, _)| (*name).to_owned())
    };
    match selector {
        Selector::Label(label) => by(label, |branch| branch.1),
        Selector::Name(name) => by(name, |branch| branch.0).or_else(|| by(name, |branch| branch.1)),
    }
}

fn routed(params: Params<'_>, sni: Option<&str>, default: Option<&str>) -> Result<Route, Refusal> {
    let mentions = Mentions::read(startup(params), sni, None)?;
    let found: Vec<_> = mentions.selectors().iter().map(find).collect();
    route(mentions, &found, default)
}

#[test]
fn each_way_names_a_branch_and_leaves_nothing_of_it() {
    let left = [("user", "u"), ("database", "app")];
    let table: [(Params<'_>, Option<&str>, &str); 9] = [
        (&[("user", "u"), ("database", "app@a")], None, "a"),
        (&[("user", "u"), ("database", "app@feature/login")], None, "feature/login"),
        (&[("user", "u"), ("database", "app@renovate/@types/node")], None, "renovate/@types/node"),
        (&[("user", "u"), ("database", "app"), ("options", "branch=a")], None, "a"),
        (&[("user", "u.feature-login"), ("database", "app")], None, "feature/login"),
        (&[("user", "u.FEATURE-login-1"), ("database", "app")], None, "feature-login"),
        (&[("user", "u"), ("database", "app")], Some("feature-login.localhost"), "feature/login"),
        (&[("user", "u"), ("database", "app")], Some("a.example.com"), "a"),
        (
            &[("user", "u.a"), ("database", "app@a"), ("options", "branch=a")],
            Some("a.localhost"),
            "a",
        ),
    ];
    for (params, sni, branch) in table {
        let found = routed(params, sni, None).unwrap();
        assert_eq!(found.target.branch, branch, "{params:?} {sni:?}");
        assert_eq!(found.startup, startup(&left), "{params:?} {sni:?}");
        assert_eq!(found.role_changed, params[0].1.contains('.'));
    }
}

#[test]
fn labels_are_taken_where_names_are_but_names_go_first() {
    for (text, branch) in [("renovate--types-node", "renovate/@types/node"), ("b", "b")] {
        let params = [("user", "u"), ("options", &*format!("branch={text}"))];
        assert_eq!(routed(&params, None, None).unwrap().target.branch, branch);
    }
    let found = routed(&[("user", "u"), ("database", "app@feature-login")], None, None).unwrap();
    assert_eq!(found.target.branch, "feature-login");
}

#[test]
fn a_role_or_database_that_names_no_branch_stays_as_it_is() {
    let at_a = [("options", "branch=a")];
    for (role, database) in [("tenant.reader", "app"), ("u", "app@nosuch"), ("u", "x@y@z")] {
        let params = [("user", role), ("database", database), at_a[0]];
        let found = routed(&params, None, None).unwrap();
        assert_eq!(found.startup, startup(&params[..2]), "{role} {database}");
        assert!(!found.role_changed);
    }
    // The split that leads to a branch counts.
    let found = routed(&[("user", "u"), ("database", "x@y@a")], None, None).unwrap();
    assert_eq!(found.startup.get("database"), Some(&b"x@y"[..]));
    // A user who named no database.
    let found = routed(&[("user", "u.a"), ("database", "u.a")], None, None).unwrap();
    assert_eq!(found.startup, startup(&[("user", "u"), ("database", "u")]));
    let found = routed(&[("user", "u"), ("database", "@a")], None, None).unwrap();
    assert_eq!(found.startup, startup(&[("user", "u")]));
}

#[test]
fn two_branches_at_once_are_refused() {
    let table: [(Params<'_>, Option<&str>); 4] = [
        (&[("user", "u.a"), ("database", "app@b")], None),
        (&[("user", "u.a"), ("options", "branch=b")], None),
        (&[("user", "u"), ("database", "app@b")], Some("a.localhost")),
        (&[("user", "u.b")], Some("a.localhost")),
    ];
    for (params, sni) in table {
        let refusal = routed(params, sni, Some("a")).unwrap_err();
        assert_eq!(refusal.sqlstate, NO_SUCH_BRANCH);
        assert!(refusal.message.contains("two branches: \"a\" "), "{refusal:?}");
        assert!(refusal.message.contains("and \"b\" "), "{refusal:?}");
    }
    // The first label of another host name is no more than a guess.
    let found = routed(&[("user", "u.b")], Some("a.example.com"), None).unwrap();
    assert_eq!(found.target.branch, "b");
}

#[test]
fn whoever_names_no_branch_gets_the_default_one_or_none() {
    for params in [&[("user", "u")][..], &[("user", "a.reader"), ("database", "app")]] {
        let found = routed(params, Some("db.example.com"), Some("b")).unwrap();
        assert_eq!(found.target.branch, "b");
        assert_eq!(found.startup, startup(params));
        let refusal = routed(params, None, None).unwrap_err();
        assert_eq!(refusal.sqlstate, NO_SUCH_BRANCH);
        assert!(refusal.message.contains("names no branch"), "{refusal:?}");
    }
    let refusal = routed(&[("user", "u.nosuch")], None, None).unwrap_err();
    assert!(refusal.message.contains("none has the label \"nosuch\""), "{refusal:?}");
}

#[test]
fn a_branch_that_is_not_there_never_leads_to_the_default_one() {
    let table: [(Params<'_>, Option<&str>); 4] = [
        (&[("user", "u"), ("database", "app@nosuch")], None),
        (&[("user", "u"), ("options", "branch=nosuch")], None),
        (&[("user", "u"), ("options", "branch=")], None),
        (&[("user", "u.a")], Some("nosuch.localhost")),
    ];
    for (params, sni) in table {
        let refusal = routed(params, sni, Some("a")).unwrap_err();
        assert_eq!(refusal.sqlstate, NO_SUCH_BRANCH);
        assert!(refusal.message.contains("does not exist"), "{refusal:?}");
    }
    let long = format!("app@{}", "x".repeat(5000));
    let refusal = routed(&[("user", "u"), ("database", &long)], None, None).unwrap_err();
    assert!(refusal.message.len() < 300, "{refusal:?}");
}

#[test]
fn the_servers_own_role_is_refused_however_it_is_written() {
    for role in ["coppice", "coppice@a", "coppice.a", "coppice@x.a"] {
        let refusal = routed(&[("user", role), ("database", "app@a")], None, None).unwrap_err();
        assert_eq!(refusal.sqlstate, INVALID_AUTHORIZATION, "{role}");
    }
}

#[test]
fn never_makes_the_packet_longer() {
    for database in ["app@a", "@a", "a"] {
        let given = [("user", "u"), ("database", database), ("options", "branch=a  -e")];
        let left = routed(&given, None, None).unwrap().startup.encode();
        assert!(left.len() < startup(&given).encode().len());
        assert!(crate::startup::decode(&left[LENGTH_BYTES..]).is_ok());
    }
}
