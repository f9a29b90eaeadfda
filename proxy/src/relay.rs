//! Copies the bytes of an encrypted session both ways until it ends, and says how it ended.
//!
//! Those of other sessions are copied by [`switch`](crate::switch). Both guarantee that a session holds at most one buffer per direction, that end-of-file is passed on (a client that
//! only stops sending still gets its answers), and that what a Postgres said last reaches the client before the
//! connection closes. Nothing is parsed, so callers that want to look at the data get to see each piece.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::witness::Witness;

/// Bytes copied at a time in one direction.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;
/// How long the proxy waits for a client to take notice of the end, and how much it throws away meanwhile. Closing
/// with unread input would reset the connection, and the client could lose the error that explains the end.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 1024 * 1024;

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// This side closed.
    Closed(Side),
    /// The connection to this side broke.
    Failed(Side, io::Error),
    /// The proxy is shutting down.
    Shutdown,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "Postgres",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(side) => write!(f, "{side} closed"),
            Self::Failed(side, error) => write!(f, "connection to {side} failed: {error}"),
            Self::Shutdown => f.write_str("proxy shut down"),
        }
    }
}

/// Copies between `client` and `server` until one of them is done or `shutdown` is.
pub(crate) async fn relay<C, S>(
    client: &mut C,
    server: &mut S,
    witness: &mut Witness,
    shutdown: impl Future<Output = ()>,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Both directions are polled by one task, so nobody ever waits for it.
    let witness = Mutex::new(witness);
    let witness = || witness.lock().unwrap_or_else(PoisonError::into_inner);
    let (sent, received) = (|data: &[u8]| witness().sent(data), |data: &[u8]| witness().received(data));
    let (client_reader, client_writer) = tokio::io::split(client);
    let (server_reader, server_writer) = tokio::io::split(server);
    let up = pump((client_reader, Side::Client), (server_writer, Side::Server), sent);
    let down = pump((server_reader, Side::Server), (client_writer, Side::Client), received);
    tokio::pin!(up, down, shutdown);
    let mut first = Side::Server;
    let mut up_is_open = true;
    loop {
        tokio::select! {
            result = &mut up, if up_is_open => match result {
                Err((Side::Client, error)) => return End::Failed(Side::Client, error),
                // A Postgres that takes no more input may have said why: that is still to be delivered.
                Err((Side::Server, _)) => up_is_open = false,
                Ok(()) => {
                    first = Side::Client;
                    up_is_open = false;
                }
            },
            result = &mut down => return match result {
                Err((side, error)) => End::Failed(side, error),
                Ok(()) => End::Closed(first),
            },
            () = &mut shutdown => return End::Shutdown,
        }
    }
}

/// Copies one direction up to its end-of-file, which it passes on.
async fn pump(
    (mut reader, from): (impl AsyncRead + Unpin, Side),
    (mut writer, to): (impl AsyncWrite + Unpin, Side),
    mut seen: impl FnMut(&[u8]),
) -> Result<(), (Side, io::Error)> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match reader.read(&mut buffer).await {
            // TLS that ends without saying goodbye: common, and harmless since Postgres messages have lengths.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            read => read.map_err(|error| (from, error))?,
        };
        if read == 0 {
            return writer.shutdown().await.map_err(|error| (to, error));
        }
        let data = &buffer[..read];
        seen(data);
        writer.write_all(data).await.map_err(|error| (to, error))?;
        // TLS keeps what the socket did not take at once; nothing else would send it.
        writer.flush().await.map_err(|error| (to, error))?;
    }
}

/// Closes `client` so that it can read what was sent before.
pub(crate) async fn close<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C) {
    let drain = async {
        client.shutdown().await?;
        let mut rest = client.take(LINGER_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // The connection is over either way: neither a slow client nor a broken one changes that.
    let _ = tokio::time::timeout(LINGER_TIME, drain).await;
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
