//! The branch that a connection asks for. Pure: startup parameters and TLS server name in,
//! [`Target`] out.
//!
//! The choice comes, in this order, from: the TLS server name (SNI), the startup option
//! `branch=NAME`, the database name `db@branch`, and is the default branch otherwise. The startup
//! option `at=MOMENT` asks for a moment of the past of the branch. [`route`] removes from the
//! startup packet what chose the branch, so that Postgres never sees that. [`crate::Backends`]
//! decides whether there is such a branch.

use std::net::IpAddr;

use api::names::{DOOR_ROLE, MAX_NAME_BYTES, is_branch_name};

use crate::refusal::{INVALID_AUTHORIZATION, INVALID_PARAMETER, NO_SUCH_BRANCH, Refusal};
use crate::startup::Startup;

/// Names under this top-level domain are the user's own machine, so the label in front can only
/// mean a branch.
const LOCALHOST: &str = "localhost";
/// The startup options that name a branch and a moment of its past.
const BRANCH: &[u8] = b"branch=";
const AT: &[u8] = b"at=";
/// Longest text of a moment.
const MOMENT_BYTES_MAX: usize = 64;

/// What a connection asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which branch.
    pub branch: Selector,
    /// Which moment of its past, as the client wrote it; now if none.
    pub at: Option<String>,
}

impl From<Selector> for Target {
    fn from(branch: Selector) -> Self {
        Self { branch, at: None }
    }
}

/// Which branch a connection asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The host-name form of a branch's name, in lower case.
    Host(String),
    /// A branch's name.
    Name(String),
    /// The default branch.
    Default,
}

/// Chooses the branch, and returns what its Postgres shall get as startup packet.
///
/// `domain` is the domain whose sub-domains are branches, if there is one.
pub fn route(
    mut startup: Startup,
    sni: Option<&str>,
    domain: Option<&str>,
) -> Result<(Target, Startup), Refusal> {
    // Up to version 16, Postgres may be set to leave out what follows an `@`.
    let role = startup.get("user").and_then(|user| user.split(|byte| *byte == b'@').next());
    if role == Some(DOOR_ROLE.as_bytes()) {
        let text = format!("role \"{DOOR_ROLE}\" is the server's own");
        return Err(Refusal::new(INVALID_AUTHORIZATION, text).with_hint("Use another role."));
    }
    let Options { branch: named, at } = take_options(&mut startup)?;
    let host = sni.and_then(|sni| host_choice(sni, domain));
    let choice = match (host, named) {
        (Some(Host::Sure(label)), _) => Selector::Host(label),
        (_, Some(name)) => Selector::Name(name),
        (host, None) => match (take_database_suffix(&mut startup)?, host) {
            (Some(name), _) => Selector::Name(name),
            (None, Some(Host::Likely(label) | Host::Sure(label))) => Selector::Host(label),
            (None, None) => Selector::Default,
        },
    };
    Ok((Target { branch: choice, at }, startup))
}

/// What a host name says about the branch.
enum Host {
    /// A sub-domain of the branches' own domain.
    Sure(String),
    /// Some name with several labels while no domain is set: the first label may be a branch, but
    /// the whole may as well be the machine's own name, so a branch that is named elsewhere goes
    /// first.
    Likely(String),
}

fn host_choice(sni: &str, domain: Option<&str>) -> Option<Host> {
    let host = sni.strip_suffix('.').unwrap_or(sni).to_ascii_lowercase();
    if host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let (label, parent) = host.split_once('.')?;
    let label = label.to_owned();
    match domain {
        _ if label.is_empty() => None,
        _ if parent == LOCALHOST => Some(Host::Sure(label)),
        Some(domain) => parent.eq_ignore_ascii_case(domain).then_some(Host::Sure(label)),
        None => Some(Host::Likely(label)),
    }
}

/// Takes `db@branch` apart, at the last `@`. With nothing before it Postgres takes the user's name
/// as database.
///
/// A database named like the user is what libpq sends when the user named none, so it chooses
/// nothing.
fn take_database_suffix(startup: &mut Startup) -> Result<Option<String>, Refusal> {
    let Some(database) = startup.get("database").filter(|name| startup.get("user") != Some(name))
    else {
        return Ok(None);
    };
    let Some(at) = database.iter().rposition(|byte| *byte == b'@') else {
        return Ok(None);
    };
    let name = checked_name(&database[at + 1..])?;
    let database = database[..at].to_vec();
    startup.set("database", (!database.is_empty()).then_some(database));
    Ok(Some(name))
}

/// What the startup parameter `options` says to the proxy.
#[derive(Default)]
struct Options {
    branch: Option<String>,
    at: Option<String>,
}

/// Takes the options for the proxy out of the startup parameter `options`; of several the last
/// counts.
fn take_options(startup: &mut Startup) -> Result<Options, Refusal> {
    let Some(given) = startup.get("options") else {
        return Ok(Options::default());
    };
    let words = words(given);
    let (mut branch, mut at) = (None, None);
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut rest = words.as_slice();
    while let [word, tail @ ..] = rest {
        // The word behind `-c` is its value, whatever it looks like.
        let (option, taken) = match tail {
            [value, ..] if word.text == b"-c" => (&*value.text, 2),
            _ => (bare(&word.text), 1),
        };
        if let Some(value) = option.strip_prefix(BRANCH) {
            branch = Some(value.to_vec());
        } else if let Some(value) = option.strip_prefix(AT) {
            at = Some(value.to_vec());
        } else {
            kept.extend(rest[..taken].iter().map(|word| word.raw));
        }
        rest = &rest[taken..];
    }
    if branch.is_none() && at.is_none() {
        return Ok(Options::default());
    }
    let kept = kept.join(&b' ');
    let branch = branch.map(|name| checked_name(&name)).transpose()?;
    let at = at.map(|moment| checked_moment(&moment)).transpose()?;
    startup.set("options", (!kept.is_empty()).then_some(kept));
    Ok(Options { branch, at })
}

/// An option without Postgres's ways to begin one.
fn bare(word: &[u8]) -> &[u8] {
    word.strip_prefix(b"--").or_else(|| word.strip_prefix(b"-c")).unwrap_or(word)
}

/// The text of a moment, which the server will interpret.
fn checked_moment(bytes: &[u8]) -> Result<String, Refusal> {
    let text = String::from_utf8_lossy(bytes);
    if (1..=MOMENT_BYTES_MAX).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(text.into_owned());
    }
    Err(Refusal::new(INVALID_PARAMETER, "the option \"at\" is not a moment").with_hint(
        "Give a time with its zone such as 2026-11-20T10:00:00Z, an LSN such as 0/16B3748, or how \
         long ago such as 10m.",
    ))
}

/// A word of `options`.
struct Word<'a> {
    /// As it was sent.
    raw: &'a [u8],
    /// Without the backslashes.
    text: Vec<u8>,
}

/// Splits as Postgres's `pg_split_opts` does: at white space, unless a backslash stands before it.
fn words(options: &[u8]) -> Vec<Word<'_>> {
    let is_space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
    let mut words = Vec::new();
    let mut at = 0;
    while at < options.len() {
        if is_space(options[at]) {
            at += 1;
            continue;
        }
        let start = at;
        let mut text = Vec::new();
        while at < options.len() && !is_space(options[at]) {
            at += usize::from(options[at] == b'\\');
            text.extend(options.get(at));
            at += 1;
        }
        let raw = &options[start..at.min(options.len())];
        words.push(Word { raw, text });
    }
    words
}

/// The branch name in `bytes`, or why it cannot be one.
fn checked_name(bytes: &[u8]) -> Result<String, Refusal> {
    let name = String::from_utf8_lossy(bytes);
    if is_branch_name(&name) {
        return Ok(name.into_owned());
    }
    let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
    Err(Refusal::new(NO_SUCH_BRANCH, format!("\"{shown}\" is not a name of a branch")).with_hint(
        "A branch name is a letter or digit, then up to 62 letters, digits, '.', '_', '/' and '-'. \
         For a database whose own name contains '@', name the branch too: \"a@b@main\".",
    ))
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
