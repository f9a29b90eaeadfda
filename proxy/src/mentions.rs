//! What a client says about the branch it wants. Pure: startup parameters and TLS server name in,
//! [`Mentions`] out.
//!
//! A client can name a branch by TLS server name (SNI), by the branch's label behind the role
//! (`postgres.feature-login`), by the startup option `branch=NAME`, and by the database name
//! `db@branch`. The startup option `at=MOMENT` asks for a moment of the past of the branch. Whether
//! the part behind a `.` or an `@` is a branch depends on the branches there are, which
//! [`crate::route`] takes in.

use std::net::IpAddr;

use api::names::{DOOR_ROLE, MAX_LABEL_BYTES, MAX_NAME_BYTES};

use crate::refusal::{INVALID_AUTHORIZATION, INVALID_PARAMETER, Refusal};
use crate::startup::Startup;

/// Names under this top-level domain are the user's own machine, so the label in front can only
/// mean a branch.
pub(crate) const LOCALHOST: &str = "localhost";
/// The startup options that name a branch and a moment of its past.
const BRANCH: &[u8] = b"branch=";
const AT: &[u8] = b"at=";
/// Longest text of a moment.
const MOMENT_BYTES_MAX: usize = 64;
/// Most places at which a database name is split, to see whether a branch follows.
const SPLITS_MAX: usize = 8;

/// Which branch somebody means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one with this label, which is in lower case.
    Label(String),
    /// The one with this name or, if there is none, this label.
    Name(String),
}

/// All that a client says about its branch.
#[derive(Debug)]
pub struct Mentions {
    /// What its Postgres is to get, but for what names a branch.
    pub(crate) startup: Startup,
    pub(crate) host: Option<Host>,
    /// The role, if it may have a label behind it.
    pub(crate) role: Option<Suffixed>,
    /// The option `branch=`.
    pub(crate) option: Option<String>,
    /// The ways to split the database name, the longest branch name first.
    pub(crate) databases: Vec<Suffixed>,
    /// The moment.
    pub(crate) at: Option<String>,
}

/// What a host name says about the branch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A sub-domain of the branches' own domain.
    Sure(String),
    /// Some name with several labels while no domain is set: the first label may be a branch, but
    /// the whole may as well be the machine's own name, so it counts only if nothing else names a
    /// branch.
    Likely(String),
}

impl Host {
    fn label(&self) -> &String {
        let (Self::Sure(label) | Self::Likely(label)) = self;
        label
    }
}

/// A role or a database with what may be a branch behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suffixed {
    /// What is in front of it.
    pub(crate) bare: Vec<u8>,
    /// What is behind.
    pub(crate) branch: String,
}

impl Mentions {
    /// Reads them from a startup packet and the server name of its TLS connection. `domain` is the
    /// domain whose sub-domains are branches, if there is one.
    pub fn read(
        mut startup: Startup,
        sni: Option<&str>,
        domain: Option<&str>,
    ) -> Result<Self, Refusal> {
        // Up to version 16, Postgres may be set to leave out what follows an `@`.
        let role = startup.get("user").and_then(|user| user.split(|byte| *byte == b'@').next());
        if role == Some(DOOR_ROLE.as_bytes()) {
            return Err(door_refused());
        }
        let Options { branch: option, at } = take_options(&mut startup)?;
        let host = sni.and_then(|sni| host_label(sni, domain));
        let (role, databases) = (role_label(&startup), database_branches(&startup));
        Ok(Self { startup, host, role, option, databases, at })
    }

    /// Whom they may mean, in the order in which [`crate::route::route`] takes the answers.
    pub fn selectors(&self) -> Vec<Selector> {
        let host = self.host.iter().map(Host::label);
        let role = self.role.iter().map(|role| &role.branch);
        let labels = host.chain(role).cloned().map(Selector::Label);
        let databases = self.databases.iter().map(|database| &database.branch);
        labels.chain(self.option.iter().chain(databases).cloned().map(Selector::Name)).collect()
    }
}

/// The refusal of a client who asks for the server's own role.
pub(crate) fn door_refused() -> Refusal {
    let text = format!("role \"{DOOR_ROLE}\" is the server's own");
    Refusal::new(INVALID_AUTHORIZATION, text).with_hint("Use another role.")
}

fn host_label(sni: &str, domain: Option<&str>) -> Option<Host> {
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

/// Takes `role.label` apart, at the last `.`.
fn role_label(startup: &Startup) -> Option<Suffixed> {
    let role = startup.get("user")?;
    let dot = role.iter().rposition(|byte| *byte == b'.')?;
    let label = std::str::from_utf8(&role[dot + 1..]).ok()?.to_ascii_lowercase();
    let is_label = dot > 0 && (1..=MAX_LABEL_BYTES).contains(&label.len());
    is_label.then(|| Suffixed { bare: role[..dot].to_vec(), branch: label })
}

/// The ways to take `db@branch` apart, as both may contain an `@`. With nothing before it Postgres
/// takes the user's name as database.
///
/// A database named like the user is what libpq sends when the user named none, so it says nothing.
fn database_branches(startup: &Startup) -> Vec<Suffixed> {
    let Some(database) = startup.get("database").filter(|name| startup.get("user") != Some(name))
    else {
        return Vec::new();
    };
    let ats = database.iter().enumerate().filter(|(_, byte)| **byte == b'@').map(|(at, _)| at);
    let split = |at: usize| {
        let branch = String::from_utf8_lossy(&database[at + 1..]).into_owned();
        Suffixed { bare: database[..at].to_vec(), branch }
    };
    let mut ways: Vec<_> = ats.map(split).collect();
    // The last ones are the likely ones.
    ways.split_off(ways.len().saturating_sub(SPLITS_MAX))
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
            branch = Some(String::from_utf8_lossy(value).into_owned());
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

/// As much of a name as a message shows.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(MAX_NAME_BYTES).collect()
}

#[cfg(test)]
#[path = "mentions_tests.rs"]
mod tests;
