//! Secrets and random text.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::Read;

/// Sixty-four characters that need no escaping in a URL, a shell word or a SQL literal; the first
/// of a word is one of the letters and digits, as a word that begins with `-` is an option.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const ALPHANUMERIC: usize = 62;

/// Text that no log, error or `Debug` form may show, such as a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Only what hands it to its user may call this.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `presented` is the secret, in a time that tells nothing about how much of it is
    /// right.
    pub fn matches(&self, presented: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let mut difference = u8::from(secret.len() != presented.len());
        for (index, byte) in secret.iter().enumerate() {
            difference |= byte ^ presented.get(index).copied().unwrap_or(0);
        }
        black_box(difference) == 0
    }
}

/// Stands where a secret stood.
const REDACTED: &str = "***";
/// A shorter secret is a part of ordinary words, and is taken for itself only where no letter or
/// digit is beside it.
pub const LONG_BYTES: usize = 8;

impl Secret {
    /// `text` without the secret.
    pub fn redact(&self, text: &str) -> String {
        if self.0.is_empty() {
            return text.to_owned();
        }
        let (mut shown, mut rest) = (String::new(), text);
        while let Some(at) = rest.find(&self.0) {
            let (before, behind) = (&rest[..at], &rest[at + self.0.len()..]);
            shown.push_str(before);
            let beside = [shown.chars().next_back(), behind.chars().next()];
            let in_a_word = beside.into_iter().flatten().any(char::is_alphanumeric);
            let short = self.0.len() < LONG_BYTES;
            shown.push_str(if short && in_a_word { &self.0 } else { REDACTED });
            rest = behind;
        }
        shown + rest
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Bytes from the kernel's random source.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// `length` characters from the kernel's random source, six bits each, safe in URLs.
pub fn random_text(length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    fill(&mut bytes)?;
    let first = bytes.iter().take(1).map(|byte| usize::from(*byte) % ALPHANUMERIC);
    let others = bytes.iter().skip(1).map(|byte| usize::from(byte % 64));
    Ok(first.chain(others).map(|nth| char::from(ALPHABET[nth])).collect())
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(bytes));
    read.map_err(|e| Error::io("read /dev/urandom", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_random_texts_differ_and_have_the_length() {
        let (a, b) = (random_text(32).unwrap(), random_text(32).unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
        assert_ne!(random_bytes::<16>().unwrap(), random_bytes::<16>().unwrap());
    }

    #[test]
    fn no_text_looks_like_an_option() {
        let texts: Vec<_> = (0..1000).map(|_| random_text(2).unwrap()).collect();
        assert!(
            texts.iter().all(|text| text.starts_with(|first: char| first.is_ascii_alphanumeric()))
        );
        assert!(texts.iter().any(|text| text.ends_with(['-', '_'])));
    }

    #[test]
    fn a_secret_is_taken_out_of_text_and_words_stay() {
        for (secret, text, expected) in [
            ("x", "does not exist: x, 'x'", "does not exist: ***, '***'"),
            ("is", "this is his", "this *** his"),
            ("correct horse", "acorrect horses", "a***s"),
            ("", "text", "text"),
            ("ü", "über ü", "über ***"),
        ] {
            assert_eq!(Secret::from(secret.to_owned()).redact(text), expected, "{secret}");
        }
    }

    #[test]
    fn a_secret_is_never_printed_and_matches_only_itself() {
        let secret = Secret::from("hunter22".to_owned());
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("hunter").count(), 0);
        assert!(secret.matches(b"hunter22"));
        for other in [&b"hunter2"[..], b"hunter222", b"", b"Hunter22"] {
            assert!(!secret.matches(other));
        }
    }
}
