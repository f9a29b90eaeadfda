//! The URL of an import's source, taken apart just enough that its password never gets onto a
//! command line.
//!
//! `psql` and `pg_basebackup` read the rest of it themselves, so everything libpq knows works:
//! several hosts, Unix sockets, verified TLS.

use crate::error::{Error, Result};
use crate::secret::{LONG_BYTES, Secret};
use tokio::process::Command;

/// Longest URL that is looked at.
const URL_BYTES: usize = 4096;

/// Where an import comes from.
pub(super) struct SourceServer {
    /// The URL without its password.
    url: String,
    /// Decoded.
    password: Option<Secret>,
}

impl SourceServer {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let schemes = ["postgresql://", "postgres://"];
        let scheme = schemes.into_iter().find(|scheme| text.starts_with(scheme));
        let scheme = scheme.ok_or_else(|| invalid("must start with postgresql://"))?;
        if text.len() > URL_BYTES {
            return Err(invalid("is longer than 4096 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid("has control characters in it"));
        }
        let (place, query) = match text[scheme.len()..].split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (&text[scheme.len()..], None),
        };
        let (place, mut password) = take_password(place)?;
        let mut url = format!("{scheme}{place}");
        let mut separator = '?';
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| invalid("has a parameter without a value"))?;
            match decode(key)?.as_str() {
                "password" => password = Some(decode(value)?),
                // It would show in the process list, and libpq has no other way to take it.
                "sslpassword" => {
                    return Err(invalid("has an sslpassword; use a key without a passphrase"));
                }
                _ => {
                    url.push(separator);
                    url.push_str(pair);
                    separator = '&';
                }
            }
        }
        Ok(Self { url, password: password.map(Secret::from) })
    }

    /// Makes `command`, one of Postgres's client programs, connect to the source.
    pub(super) fn address(&self, command: &mut Command) {
        command.arg("--no-password").arg("-d").arg(&self.url);
        command.env("PGCONNECT_TIMEOUT", "10").env("PGAPPNAME", "coppice import");
        // Only if the URL names none: the database called like the user need not exist.
        command.env("PGDATABASE", "postgres");
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password.expose());
        }
    }

    /// `text` without the password.
    pub(super) fn redact(&self, text: &str) -> String {
        self.password.as_ref().map_or_else(|| text.to_owned(), |password| password.redact(text))
    }
}

/// Checks what must hold for any text that is given as a source: nothing panics, and the URL of one
/// that is accepted is itself accepted, has no password and stays as it is.
///
/// # Panics
/// If something does not hold.
pub(crate) fn property(text: &str) {
    let Ok(source) = SourceServer::parse(text) else { return };
    assert!(
        source.url.len() <= URL_BYTES && !source.url.contains(char::is_control),
        "{:?}",
        source.url
    );
    let again = SourceServer::parse(&source.url)
        .unwrap_or_else(|error| panic!("{:?}: {error}", source.url));
    assert_eq!((&again.url, again.password), (&source.url, None));
    let shown = source.redact(text);
    let secret = source.password.as_ref().map_or("", Secret::expose);
    let is_in_words = secret.len() < LONG_BYTES || secret.contains('*');
    assert!(is_in_words || !shown.contains(secret), "{text:?}");
}

/// Splits `user:password@hosts/database` the way libpq does: at the first `@` before any slash.
fn take_password(place: &str) -> Result<(String, Option<String>)> {
    let authority = place.split('/').next().unwrap_or_default();
    let (login, hosts) = match authority.split_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    check_hosts(hosts)?;
    let Some(login) = login else {
        return Ok((place.to_owned(), None));
    };
    let rest = &place[login.len()..];
    match login.split_once(':') {
        Some((user, password)) => Ok((format!("{user}{rest}"), Some(decode(password)?))),
        None => Ok((place.to_owned(), None)),
    }
}

/// Refuses what a password leaves in place of a host if its special characters are not encoded.
fn check_hosts(hosts: &str) -> Result<()> {
    let is_number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = |host: &str| {
        let behind_address = host.rsplit_once(']').map_or(host, |(_, rest)| rest).to_owned();
        behind_address.split_once(':').map(|(_, port)| port.to_owned())
    };
    let is_bad = |host: &str| port(host).is_some_and(|port| !is_number(&port));
    if hosts.contains('@') || hosts.split(',').any(is_bad) {
        return Err(invalid(
            "names no host and port behind its password; in a password write @ as %40, / as %2F, ? \
             as %3F, : as %3A and % as %25",
        ));
    }
    Ok(())
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let code = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match code {
            Some(code @ 1..) => bytes.push(code),
            _ => {
                return Err(invalid(
                    "has a '%' that is not followed by two hexadecimal digits (write %25)",
                ));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("is not UTF-8 once decoded"))
}

fn invalid(problem: &str) -> Error {
    Error::invalid(
        "invalid_source",
        format!(
            "the source URL {problem}; write it as postgresql://user:password@host:port/database"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Option<String>) {
        let source = SourceServer::parse(text).unwrap();
        (source.url, source.password.map(|password| password.expose().to_owned()))
    }

    #[test]
    fn the_password_is_taken_out_wherever_it_stands() {
        let cases = [
            (
                "postgres://u:p%40ss@h:5/d?sslmode=require",
                "postgres://u@h:5/d?sslmode=require",
                Some("p@ss"),
            ),
            ("postgresql://u@h,i/d?password=s%26t&a=b", "postgresql://u@h,i/d?a=b", Some("s&t")),
            ("postgresql:///d?host=/tmp&p%61ssword=x", "postgresql:///d?host=/tmp", Some("x")),
            ("postgresql://u:@h", "postgresql://u@h", Some("")),
            ("postgresql://[::1]:5432/d", "postgresql://[::1]:5432/d", None),
            ("postgresql://u@h:1,[::1],i:2/d", "postgresql://u@h:1,[::1],i:2/d", None),
            ("postgresql://h/a:b@c", "postgresql://h/a:b@c", None),
        ];
        for (text, url, password) in cases {
            assert_eq!(parts(text), (url.to_owned(), password.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn bad_urls_are_refused_without_showing_a_password() {
        let long = format!("postgresql://u:secret@{}", "h".repeat(5000));
        let bad = [
            "host=x password=secret",
            "mysql://u:secret@h",
            "postgresql://u:sec%ret@h",
            "postgresql://u:secret%00@h",
            "postgresql://u:secret@h?sslpassword=secret",
            "postgresql://u:secret@h?x",
            "postgresql://u:secret@x@h/d",
            "postgresql://u:secret/x@h/d",
            "postgresql://u:secret?x@h/d",
            "postgresql://u:secret@h:port/d",
            "postgresql://u:secret\n@h",
            &long,
        ];
        for text in bad {
            let error = SourceServer::parse(text).err().unwrap();
            assert_eq!(error.code, "invalid_source");
            assert!(!error.detail.contains("secret"), "{error}");
        }
    }
}
