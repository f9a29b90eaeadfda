//! A refusal as a Postgres client sees it, and the codes the proxy uses.
//!
//! Guarantees that any text, also one with zero bytes or of any length, becomes one well-formed
//! `ErrorResponse`. The code that makes a refusal decides its text and its hint.

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::response::ErrorResponse;

/// The branch, or the database, does not exist.
pub const NO_SUCH_BRANCH: &str = "3D000";
/// What the client sent is not the Postgres protocol.
pub const PROTOCOL_VIOLATION: &str = "08P01";
/// An option's value means nothing.
pub const INVALID_PARAMETER: &str = "22023";
/// The proxy does not do what the client asks for.
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// The protocol version is not one Postgres speaks.
pub const UNSUPPORTED_VERSION: &str = "0A000";
/// The startup packet names no user.
pub const NO_USER: &str = "28000";
/// The role is not for clients.
pub const INVALID_AUTHORIZATION: &str = "28000";
/// All connections the proxy allows are in use.
pub const TOO_MANY_CONNECTIONS: &str = "53300";
/// The proxy is shutting down.
pub const SHUTTING_DOWN: &str = "57P01";
/// The branch cannot be reached now; it may be later.
pub const CANNOT_CONNECT_NOW: &str = "57P03";

/// libpq takes an error during startup for garbage when it is longer than 30,000 bytes.
const TEXT_BYTES_MAX: usize = 8 * 1024;

/// Why a connection is refused, in the terms of Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Five-character SQLSTATE.
    pub sqlstate: &'static str,
    /// What went wrong, naming the thing.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), hint: None }
    }

    /// The same refusal, saying what to do.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The `ErrorResponse` message of severity `FATAL` that a client gets.
    pub fn encode(&self) -> BytesMut {
        let mut fields = vec![
            (b'S', "FATAL".to_owned()),
            (b'V', "FATAL".to_owned()),
            (b'C', self.sqlstate.to_owned()),
            (b'M', printable(&self.message)),
        ];
        fields.extend(self.hint.iter().map(|hint| (b'H', printable(hint))));
        let mut bytes = BytesMut::new();
        let encoded = ErrorResponse::new(fields).encode(&mut bytes);
        debug_assert!(encoded.is_ok(), "a bounded text fits: {encoded:?}");
        bytes
    }
}

/// `text` without the zero byte that ends strings in the protocol, cut to a length every client
/// accepts.
fn printable(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_postgres_does() {
        let bytes = Refusal::new(NO_SUCH_BRANCH, "no branch").with_hint("try main").encode();
        assert_eq!(
            &bytes[..],
            b"E\0\0\0\x2fSFATAL\0VFATAL\0C3D000\0Mno branch\0Htry main\0\0".as_slice(),
        );
    }

    #[test]
    fn any_text_stays_one_message() {
        for text in ["", "a\0b", &"é".repeat(20_000)] {
            let bytes = Refusal::new(NO_SUCH_BRANCH, text).encode();
            let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
            assert_eq!(length as usize + 1, bytes.len());
            assert!(bytes.len() < 30_000);
            let strings = bytes[5..].split(|b| *b == 0).count();
            assert_eq!(strings, 6, "four fields, the end, and what follows it");
        }
    }
}
