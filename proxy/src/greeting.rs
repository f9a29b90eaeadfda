//! What a client sends before its session: requests for encryption, and then one first packet.
//!
//! Reads exactly the bytes of each packet and never one more, so that nothing sent in the clear can
//! end up inside an encrypted session. The caller limits the time.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::refusal::{PROTOCOL_VIOLATION, Refusal};
use crate::startup::{CancelKey, LENGTH_BYTES, Packet, Startup, body_bytes, decode};

/// First byte of a TLS handshake record; a first packet starts with a zero byte, being shorter than
/// 16 MiB.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client asks for in its first packet.
#[derive(Debug)]
pub(crate) enum StartupRequest {
    /// A session.
    Session(Startup),
    /// To cancel a query of another connection.
    Cancel(CancelKey),
}

/// What follows the unencrypted part of a connection.
#[derive(Debug)]
pub(crate) enum Negotiated {
    /// A TLS handshake comes next.
    Tls {
        /// Whether the client started it without asking (`sslnegotiation=direct`).
        direct: bool,
    },
    /// The client goes on without encryption, and asks for this.
    Plain(StartupRequest),
}

/// Why a client got no further.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client sent something wrong, and gets this answer.
    Refused(Refusal),
    /// The client closed, or its connection broke.
    Gone(io::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// Answers requests for encryption until the client starts TLS or sends its first packet.
pub(crate) async fn negotiate(socket: &mut TcpStream) -> Result<Negotiated, Failure> {
    let mut first = [0];
    if socket.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE {
        return Ok(Negotiated::Tls { direct: true });
    }
    let mut gss_requested = false;
    loop {
        match read_packet(socket).await? {
            Packet::Ssl => {
                socket.write_all(b"S").await?;
                return Ok(Negotiated::Tls { direct: false });
            }
            Packet::Gss if !gss_requested => {
                gss_requested = true;
                socket.write_all(b"N").await?;
            }
            packet => return Ok(Negotiated::Plain(startup_request(packet)?)),
        }
    }
}

/// Reads the first packet of a client on the same machine. Refuses encryption, as Postgres does
/// over its Unix socket.
pub(crate) async fn local(socket: &mut UnixStream) -> Result<StartupRequest, Failure> {
    let (mut ssl_requested, mut gss_requested) = (false, false);
    loop {
        let requested = match read_packet(socket).await? {
            Packet::Ssl => &mut ssl_requested,
            Packet::Gss => &mut gss_requested,
            packet => return startup_request(packet),
        };
        if std::mem::replace(requested, true) {
            return Err(requested_again().into());
        }
        socket.write_all(b"N").await?;
    }
}

/// Reads the first packet within an encrypted connection.
pub(crate) async fn encrypted(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<StartupRequest, Failure> {
    startup_request(read_packet(stream).await?)
}

fn startup_request(packet: Packet) -> Result<StartupRequest, Failure> {
    match packet {
        Packet::Startup(startup) => Ok(StartupRequest::Session(startup)),
        Packet::Cancel(key) => Ok(StartupRequest::Cancel(key)),
        Packet::Ssl | Packet::Gss => Err(requested_again().into()),
    }
}

fn requested_again() -> Refusal {
    Refusal::new(PROTOCOL_VIOLATION, "encryption was requested a second time")
}

async fn read_packet(stream: &mut (impl AsyncRead + Unpin)) -> Result<Packet, Failure> {
    let mut header = [0; LENGTH_BYTES];
    read_whole(stream, &mut header).await?;
    let mut body = vec![0; body_bytes(header)?];
    read_whole(stream, &mut body).await?;
    Ok(decode(&body)?)
}

/// Fills `buffer`. A client that stops sending in the middle gets an error, since it may still
/// read.
async fn read_whole(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> Result<(), Failure> {
    let mut done = 0;
    while done < buffer.len() {
        match stream.read(&mut buffer[done..]).await? {
            0 if done == 0 && buffer.len() == LENGTH_BYTES => {
                // No byte at all: a health check, or a client that went away.
                return Err(Failure::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            0 => return Err(Refusal::new(PROTOCOL_VIOLATION, "incomplete startup packet").into()),
            read => done += read,
        }
    }
    Ok(())
}
