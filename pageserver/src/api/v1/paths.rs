//! Branch names in paths.

use ::api::percent::encode;
use axum::http::Uri;

/// The words that may follow a branch's name in a path.
const ACTIONS: [&str; 9] = [
    "reset",
    "restore",
    "suspend",
    "wake",
    "connection",
    "history",
    "settings",
    "password",
    "logs",
];
/// Where branches live.
pub(in crate::api) const BRANCHES: &str = "/v1/branches/";

/// The path of a branch.
pub(super) fn branch(name: &str) -> String {
    format!("{BRANCHES}{}", encode(name))
}

/// Lets a branch name's `/` be written as it is: `/v1/branches/feature/login/reset` is taken as
/// `/v1/branches/feature%2Flogin/reset`; none if there is nothing to change. Where the last part is
/// an action's word it is the action: a branch that is really called `feature/reset` must be
/// written `feature%2Freset`.
pub(in crate::api) fn joined(uri: &Uri) -> Option<Uri> {
    let rest = uri.path().strip_prefix(BRANCHES)?;
    let (name, action) = match rest.rsplit_once('/') {
        Some((name, last)) if ACTIONS.contains(&last) => (name, Some(last)),
        _ => (rest, None),
    };
    if !name.contains('/') {
        return None;
    }
    // The rest of it is encoded already.
    let mut path = format!("{BRANCHES}{}", name.replace('/', "%2F"));
    for part in
        [action.map(|action| format!("/{action}")), uri.query().map(|query| format!("?{query}"))]
    {
        path.push_str(&part.unwrap_or_default());
    }
    path.parse().ok()
}
