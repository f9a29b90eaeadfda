//! The branch that a connection asks for. Pure: [`Mentions`] and the branches that they mean in,
//! [`Route`] out.
//!
//! All that a client says of a branch has to mean the same one. What named the branch is taken out
//! of the startup packet, so that Postgres never sees that. A connection that names no branch gets
//! the default branch, if the proxy has one, and is refused otherwise: a session that lost its
//! branch on the way through a tool must not land on another one.

use api::names::DOOR_ROLE;

use crate::mentions::{Host, Mentions, Suffixed, door_refused, shown};
use crate::refusal::{NO_SUCH_BRANCH, Refusal};
use crate::startup::Startup;

const WAYS: &str = "Name one behind the role (postgres.BRANCH), as host BRANCH.localhost over TLS, \
                    by options=branch=BRANCH, or behind the database (app@BRANCH); `branchctl url \
                    BRANCH` prints a URL.";

/// What a connection asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the branch.
    pub branch: String,
    /// Which moment of its past, as the client wrote it; now if none.
    pub at: Option<String>,
}

/// How a proxy chooses branches, and what it tells their Postgres.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// The branch of connections that name none; without one they are refused.
    pub default_branch: Option<String>,
    /// Whether the address of the client is added to `application_name`, since Postgres sees none.
    pub application_name_add_host: bool,
}

/// Where a connection goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Whose Postgres it reaches.
    pub target: Target,
    /// What that Postgres gets as startup packet.
    pub startup: Startup,
    /// Whether the client and its Postgres know the role by different names.
    pub role_changed: bool,
}

/// The branches that a client named, each with its own words for it.
#[derive(Default)]
struct Choice(Option<(String, String)>);

impl Choice {
    /// Takes in that `words` mean `branch`.
    fn add(&mut self, branch: &str, words: String) -> Result<(), Refusal> {
        match &self.0 {
            None => self.0 = Some((branch.to_owned(), words)),
            Some((other, _)) if other == branch => {}
            Some((_, before)) => {
                let text = format!("the connection names two branches: {before} and {words}");
                let hint = "Name the branch in one way, or the same one in each.";
                return Err(Refusal::new(NO_SUCH_BRANCH, text).with_hint(hint));
            }
        }
        Ok(())
    }
}

/// Chooses the branch. `found` has the name of the branch that each selector of the mentions means,
/// if there is one; `default` is for those who name none.
///
/// # Panics
/// If there are not as many in `found` as there are selectors.
pub fn route(
    mentions: Mentions,
    found: &[Option<String>],
    default: Option<&str>,
) -> Result<Route, Refusal> {
    let Mentions { mut startup, host, role, option, databases, at } = mentions;
    let mut found = found.iter().map(Option::as_deref);
    let mut answer = || found.next().unwrap_or_else(|| panic!("an answer for each selector"));
    let mut choice = Choice::default();
    let mut likely = None;
    match &host {
        Some(Host::Sure(label)) => {
            let branch = answer().ok_or_else(|| missing(label))?;
            choice.add(branch, format!("\"{label}\" by host name"))?;
        }
        Some(Host::Likely(_)) => likely = answer(),
        None => {}
    }
    let role_branch = role.as_ref().and_then(|_| answer());
    if let (Some(role), Some(branch)) = (&role, role_branch) {
        choice.add(branch, format!("\"{}\" behind the role", role.branch))?;
    }
    if let Some(name) = &option {
        let branch = answer().ok_or_else(|| missing(name))?;
        choice.add(branch, format!("\"{}\" by option", shown(name)))?;
    }
    let database = databases.iter().map(|split| (split, answer())).collect::<Vec<_>>();
    let database = database.into_iter().find_map(|(split, branch)| Some((split, branch?)));
    if let Some((split, branch)) = database {
        choice.add(branch, format!("\"{}\" behind the database", shown(&split.branch)))?;
    }
    let unnamed = || match databases.first() {
        Some(split) => missing(&split.branch),
        None => names_none(role.as_ref()),
    };
    let named = choice.0.map(|(branch, _)| branch).or(likely.map(str::to_owned));
    // What looks like a branch and is none must not lead to the default one.
    let default = default.filter(|_| databases.is_empty()).map(str::to_owned);
    let branch = named.or(default).ok_or_else(unnamed)?;
    if let Some((split, _)) = database {
        startup.set("database", (!split.bare.is_empty()).then(|| split.bare.clone()));
    }
    let role = role.filter(|_| role_branch.is_some());
    let role_changed = role.is_some();
    if let Some(Suffixed { bare, .. }) = role {
        take_label(&mut startup, bare)?;
    }
    Ok(Route { target: Target { branch, at }, startup, role_changed })
}

/// Lets Postgres see the role alone.
fn take_label(startup: &mut Startup, role: Vec<u8>) -> Result<(), Refusal> {
    if role.split(|byte| *byte == b'@').next() == Some(DOOR_ROLE.as_bytes()) {
        return Err(door_refused());
    }
    // What libpq sends when its user named no database.
    if startup.get("database").is_some() && startup.get("database") == startup.get("user") {
        startup.set("database", Some(role.clone()));
    }
    startup.set("user", Some(role));
    Ok(())
}

fn missing(name: &str) -> Refusal {
    let text = format!("branch \"{}\" does not exist", shown(name));
    Refusal::new(NO_SUCH_BRANCH, text).with_hint("`branchctl list` shows the branches that exist.")
}

fn names_none(role: Option<&Suffixed>) -> Refusal {
    let text = match role {
        Some(role) => {
            format!("the connection names no branch, and none has the label \"{}\"", role.branch)
        }
        None => "the connection names no branch".to_owned(),
    };
    Refusal::new(NO_SUCH_BRANCH, text).with_hint(WAYS)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
