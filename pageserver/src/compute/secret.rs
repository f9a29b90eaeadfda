//! Random text for passwords and identifiers.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;

/// Sixty-four characters that need no escaping in a URL, a shell word or a SQL literal; the first
/// of a word is one of the letters and digits, as a word that begins with `-` is an option.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const ALPHANUMERIC: usize = 62;

/// `length` characters from the kernel's random source, six bits each, safe in URLs.
pub fn random_text(length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|e| Error::io("read /dev/urandom", &e))?;
    let first = bytes.iter().take(1).map(|byte| usize::from(*byte) % ALPHANUMERIC);
    let others = bytes.iter().skip(1).map(|byte| usize::from(byte % 64));
    Ok(first.chain(others).map(|nth| char::from(ALPHABET[nth])).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_secrets_differ_and_have_the_length() {
        let (a, b) = (super::random_text(32).unwrap(), super::random_text(32).unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
    }

    #[test]
    fn no_text_looks_like_an_option() {
        let texts: Vec<_> = (0..1000).map(|_| super::random_text(2).unwrap()).collect();
        assert!(
            texts.iter().all(|text| text.starts_with(|first: char| first.is_ascii_alphanumeric()))
        );
        assert!(texts.iter().any(|text| text.ends_with(['-', '_'])));
    }
}
