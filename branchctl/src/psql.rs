//! Becomes `psql`, with the password in the environment: an argument would be seen by every user in
//! `ps`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::failure::Failure;

/// Replaces this process by `psql` on `url`. Returns only when that fails.
pub(crate) fn exec(url: &str, args: &[String]) -> Failure {
    let (url, password) = split_password(url);
    let mut command = Command::new("psql");
    command.arg(url).args(args);
    if let Some(password) = password {
        command.env("PGPASSWORD", password);
    }
    let error = command.exec();
    Failure::Local(match error.kind() {
        std::io::ErrorKind::NotFound => {
            "psql is not installed here: install it (Debian: `apt install postgresql-client`), or \
             give what `branchctl url` prints to another client"
                .to_owned()
        }
        _ => format!("cannot start psql: {error}"),
    })
}

/// Takes the password out of a `postgresql://` URL.
fn split_password(url: &str) -> (String, Option<String>) {
    let whole = || (url.to_owned(), None);
    let Some((scheme, rest)) = url.split_once("://") else {
        return whole();
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let Some((user, password)) =
        authority.rsplit_once('@').and_then(|(info, _)| info.split_once(':'))
    else {
        return whole();
    };
    let after = &rest[user.len() + 1 + password.len()..];
    match decode(password) {
        Some(decoded) => (format!("{scheme}://{user}{after}"), Some(decoded)),
        None => whole(),
    }
}

/// Percent-decodes; none if what comes out is not text, or the input is malformed.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_leaves_the_url() {
        for (url, expected, password) in [
            (
                "postgresql://u:p%40s%3As@h:5433/app%40b",
                "postgresql://u@h:5433/app%40b",
                Some("p@s:s"),
            ),
            ("postgresql://u@h/app", "postgresql://u@h/app", None),
            ("postgresql://h/app?options=a:b@c", "postgresql://h/app?options=a:b@c", None),
            ("postgresql://u:@h", "postgresql://u@h", Some("")),
            ("postgresql://u:%zz@h", "postgresql://u:%zz@h", None),
            ("nonsense", "nonsense", None),
        ] {
            assert_eq!(
                split_password(url),
                (expected.to_owned(), password.map(str::to_owned)),
                "{url}"
            );
        }
    }
}
