//! Random text for passwords and identifiers.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;

/// Sixty-four characters that need no escaping in a URL, a shell word or a SQL literal.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// `length` characters from the kernel's random source, six bits each, safe in URLs.
pub fn random_text(length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|e| Error::io("read /dev/urandom", &e))?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_secrets_differ_and_have_the_length() {
        let (a, b) = (super::random_text(32).unwrap(), super::random_text(32).unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
    }
}
