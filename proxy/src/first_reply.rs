//! The beginning of what a Postgres answers to a startup packet. The proxy looks at it and leaves
//! it in the socket, for the relay to copy.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes that are looked at: an `ErrorResponse` begins with its severity, twice, and its code.
const PEEKED_BYTES: usize = 256;
/// Type and length of a message.
const HEADER_BYTES: usize = 5;
/// The class of codes of a Postgres that takes no sessions now (PostgreSQL manual, appendix A):
/// shut down by an administrator, crashed, or not accepting connections.
const GOING_AWAY: [&[u8]; 3] = [b"57P01", b"57P02", b"57P03"];

/// What a Postgres sent first; empty if it closed the connection.
pub(crate) struct FirstReply(Vec<u8>);

/// Waits until the Postgres at the other end has sent something or has closed.
pub(crate) async fn first_reply(server: &UnixStream) -> io::Result<FirstReply> {
    let peek = || {
        let mut bytes = vec![0; PEEKED_BYTES];
        let count = recv(server.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK)?;
        bytes.truncate(count);
        Ok(FirstReply(bytes))
    };
    match server.async_io(Interest::READABLE, peek).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(FirstReply(Vec::new())),
        outcome => outcome,
    }
}

impl FirstReply {
    /// Whether the Postgres asks for a password that is hashed with the name of the role
    /// (`AuthenticationMD5Password`).
    pub(crate) fn asks_for_md5(&self) -> bool {
        self.0.starts_with(b"R\0\0\0\x0c\0\0\0\x05")
    }

    /// Whether the Postgres has closed the connection, or refuses it because it is on its way down
    /// or up.
    pub(crate) fn is_going_away(&self) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let fields = (self.0[0] == b'E').then(|| self.0.get(HEADER_BYTES..)).flatten();
        let code = |field: &[u8]| field.strip_prefix(b"C").is_some_and(|c| GOING_AWAY.contains(&c));
        fields.is_some_and(|fields| fields.split(|byte| *byte == 0).any(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;

    #[test]
    fn a_postgres_on_its_way_down_is_told_from_one_that_refuses() {
        let refused =
            |code| FirstReply(Refusal::new(code, "C57P03 is in the text").encode().into());
        assert!(FirstReply(Vec::new()).is_going_away());
        for (code, expected) in [("57P01", true), ("57P03", true), ("28000", false)] {
            assert_eq!(refused(code).is_going_away(), expected, "{code}");
        }
        let asks = |bytes: &[u8]| FirstReply(bytes.to_vec()).asks_for_md5();
        assert!(asks(b"R\0\0\0\x0c\0\0\0\x05salt"));
        assert!(!asks(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"));
        for other in [&b"R\0\0\0\x08\0\0\0\0"[..], b"E", b"E\0\0\0", b"N"] {
            assert!(!FirstReply(other.to_vec()).is_going_away(), "{other:?}");
        }
    }
}
