//! How a session ends, and how the proxy closes the connection of its client.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long the proxy waits for a client to notice the end, and how many bytes it reads and drops
/// meanwhile. Closing with unread input would reset the connection, and the client could lose the
/// error that explains the end.
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
    /// The name of the branch leads elsewhere now.
    Revoked,
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
            Self::Revoked => f.write_str("branch reset, restored or deleted"),
        }
    }
}

/// Closes `client` so that it can read what was sent before.
pub(crate) async fn close<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C) {
    let drain = async {
        client.shutdown().await?;
        let mut rest = client.take(LINGER_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // The connection ends either way, also with a slow or broken client.
    let _ = tokio::time::timeout(LINGER_TIME, drain).await;
}
