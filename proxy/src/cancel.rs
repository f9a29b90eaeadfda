//! Cancel requests: a monitor learns the key of a session from its Postgres, and a cancel request
//! finds that Postgres again by the key.
//!
//! A client cancels over a new connection that carries nothing but the key, so the proxy remembers
//! which socket a key came from. The table holds a key exactly as long as its session lives, so it
//! has at most one entry per session. A cancel connection ends after Postgres has acted on it. The
//! proxy never logs a key. Process numbers are unique on one machine, so keys of two branches that
//! live at the same time differ.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::locks::lock;
use crate::startup::CancelKey;

/// How long a Postgres may take over a cancel request before the proxy gives up on it.
const CANCEL_TIME: Duration = Duration::from_secs(10);
/// Type byte and length word in front of each message of a server.
const HEADER_BYTES: usize = 5;
/// The part of a message's length that is the length word itself.
const LENGTH_BYTES: usize = 4;
/// Longest body of a `BackendKeyData`: process number and 256 bytes of secret.
const KEY_BYTES_MAX: usize = 260;

/// The keys of all living sessions.
#[derive(Default)]
pub(crate) struct Table(Mutex<HashMap<CancelKey, PathBuf>>);

/// The entry of a key in the table. Dropping the value removes the entry.
pub(crate) struct Registration {
    table: Arc<Table>,
    key: CancelKey,
}

impl Table {
    pub(crate) fn register(self: &Arc<Self>, key: CancelKey, socket: &Path) -> Registration {
        lock(&self.0).insert(key.clone(), socket.to_owned());
        let table = Arc::clone(self);
        Registration { table, key }
    }

    /// Sends a request to the Postgres that gave out `key`. Ignores an unknown key silently, as
    /// Postgres does.
    pub(crate) async fn forward(&self, key: &CancelKey) -> io::Result<()> {
        let socket = lock(&self.0).get(key).cloned();
        let Some(socket) = socket else {
            return Ok(());
        };
        let exchange = async {
            let mut server = UnixStream::connect(&socket).await?;
            server.write_all(&key.encode_request()).await?;
            // Postgres answers nothing. It closes the connection once it has sent the signal.
            server.read_u8().await.map_or_else(end_of_file_is_fine, |_| Ok(()))
        };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(CANCEL_TIME, exchange).await.map_err(late)?
    }
}

fn end_of_file_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(error),
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.table.0).remove(&self.key);
    }
}

/// Looks for the `BackendKeyData` in what a server sends, up to the first `ReadyForQuery`.
///
/// The search changes nothing: the client judges bytes that are no well-formed messages. It keeps
/// no more than a header or one key.
#[derive(Default)]
pub(crate) struct KeyWatch {
    state: KeyState,
    /// Whether there was an `ErrorResponse`.
    error: bool,
}

/// How far the search for the key is.
enum KeyState {
    /// Between two messages, with these bytes of the next header.
    Header(Vec<u8>),
    /// In a message of no interest, with so many bytes to come.
    Body(usize),
    /// In the key, with these of so many bytes.
    Key(Vec<u8>, usize),
    /// Nothing more to find.
    Done,
}

impl Default for KeyState {
    fn default() -> Self {
        Self::Header(Vec::with_capacity(HEADER_BYTES))
    }
}

impl KeyWatch {
    /// Whether there is nothing more to find.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, KeyState::Done)
    }

    /// Whether the server, if it ended here, would have said neither that it is ready nor why it is
    /// not, and the client could take another message.
    pub(crate) fn is_silent(&self) -> bool {
        !self.error && matches!(&self.state, KeyState::Header(header) if header.is_empty())
    }

    /// Takes the next bytes of the server, and returns the key when these complete it.
    pub(crate) fn see(&mut self, mut bytes: &[u8]) -> Option<CancelKey> {
        while !bytes.is_empty() {
            match &mut self.state {
                KeyState::Done => return None,
                KeyState::Header(header) => {
                    take(&mut bytes, header, HEADER_BYTES);
                    if header.len() == HEADER_BYTES {
                        self.error |= header[0] == b'E';
                        self.state = after_header(header);
                    }
                }
                KeyState::Body(left) => {
                    let skipped = bytes.len().min(*left);
                    bytes = &bytes[skipped..];
                    *left -= skipped;
                    if *left == 0 {
                        self.state = KeyState::default();
                    }
                }
                KeyState::Key(key, length) => {
                    take(&mut bytes, key, *length);
                    if key.len() == *length {
                        let key = CancelKey::decode(key);
                        self.state = KeyState::Done;
                        return key;
                    }
                }
            }
        }
        None
    }
}

/// Moves bytes from the front of `bytes` until `into` holds `length`.
fn take(bytes: &mut &[u8], into: &mut Vec<u8>, length: usize) {
    let taken = bytes.len().min(length - into.len());
    into.extend_from_slice(&bytes[..taken]);
    *bytes = &bytes[taken..];
}

/// What follows a complete header.
fn after_header(header: &[u8]) -> KeyState {
    let length = header[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    match (header[0], length.checked_sub(LENGTH_BYTES)) {
        (b'Z', _) | (_, None) => KeyState::Done,
        (b'K', Some(body)) if (1..=KEY_BYTES_MAX).contains(&body) => {
            KeyState::Key(Vec::with_capacity(body), body)
        }
        (b'K', Some(_)) => KeyState::Done,
        (_, Some(0)) => KeyState::default(),
        (_, Some(body)) => KeyState::Body(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + LENGTH_BYTES).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    /// What Postgres says until it is ready, with a key of `secret` bytes.
    fn greeting(secret: usize) -> (Vec<u8>, Vec<u8>) {
        let key: Vec<u8> = (0..=255).cycle().take(4 + secret).collect();
        let parts = [
            message(b'R', &[0; 4]),
            message(b'S', b"server_version\x0015\0"),
            message(b'n', b""),
            message(b'K', &key),
            message(b'Z', b"I"),
        ];
        (parts.concat(), key)
    }

    fn watch(chunks: &[&[u8]]) -> (Vec<CancelKey>, bool) {
        let mut watch = KeyWatch::default();
        let keys = chunks.iter().filter_map(|chunk| watch.see(chunk)).collect();
        (keys, watch.is_done())
    }

    #[test]
    fn finds_the_key_however_the_bytes_are_cut() {
        for secret in [4, 32, 256] {
            let (bytes, key) = greeting(secret);
            let expected = (vec![CancelKey::decode(&key).unwrap()], true);
            for cut in 0..=bytes.len() {
                let (front, back) = bytes.split_at(cut);
                assert_eq!(watch(&[front, back]), expected, "cut at {cut}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(watch(&single), expected);
        }
    }

    #[test]
    fn gives_up_on_what_holds_no_key() {
        let key = message(b'K', &[1; 8]);
        let table = [
            ("ready without a key", message(b'Z', b"I")),
            ("a length shorter than itself", b"R\0\0\0\x03".to_vec()),
            ("a key without a secret", message(b'K', &[1; 4])),
            ("a key beyond any length", message(b'K', &[1; 261])),
        ];
        for (what, bytes) in table {
            assert_eq!(watch(&[&bytes, &key]), (vec![], true), "{what}");
        }
        assert_eq!(watch(&[b"Ecould not fork new process\n\0"]), (vec![], false));
    }

    #[test]
    fn a_server_is_silent_that_ends_between_messages_before_it_is_ready() {
        let (bytes, _) = greeting(4);
        let silent = |bytes: &[u8]| {
            let mut watch = KeyWatch::default();
            watch.see(bytes);
            watch.is_silent()
        };
        assert!(silent(b"") && silent(&message(b'R', &[0; 4])));
        assert!(!silent(&bytes), "it was ready");
        assert!(!silent(&bytes[..7]), "within a message");
        assert!(!silent(&message(b'E', b"C57P01\0\0")), "it said why");
    }

    #[test]
    fn knows_a_key_while_its_session_lives() {
        let table = Arc::new(Table::default());
        let key = CancelKey::decode(&[1; 8]).unwrap();
        let registration = table.register(key.clone(), Path::new("/run/a"));
        assert_eq!(lock(&table.0).get(&key), Some(&PathBuf::from("/run/a")));
        drop(registration);
        assert!(lock(&table.0).is_empty());
    }
}
