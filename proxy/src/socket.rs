//! The socket of one side of a session, encrypted or not. No call waits.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use tokio_rustls::rustls::ServerConnection;

/// The socket of one side of a session.
pub(crate) struct Socket {
    /// A stream socket, of whatever family: they are all used alike.
    socket: UnixStream,
    /// The TLS connection of an encrypted socket, which then also keeps the unsent bytes.
    tls: Option<Box<ServerConnection>>,
    /// Bytes that are kept for the socket. It has taken those before `sent`.
    unsent: Vec<u8>,
    sent: usize,
}

impl Socket {
    /// Over a socket, whose calls do not wait from now on.
    pub(crate) fn new(socket: OwnedFd, tls: Option<ServerConnection>) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let tls = tls.map(|mut tls| {
            // The relay sends at most what it reads at a time, which is the limit.
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        Ok(Self { socket, tls, unsent: Vec::new(), sent: 0 })
    }

    /// Reads what is there, 0 bytes at the end. Returns `None` if nothing is there yet.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else { return if_ready(self.socket.read(buffer)) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // TLS that ends without `close_notify`: common, and harmless since Postgres
                // messages have lengths.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(0)),
                outcome => return outcome.map(Some),
            }
            if if_ready(tls.read_tls(&mut self.socket))?.is_none() {
                return Ok(None);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Whether TLS has decrypted more, or the end, with what it read before. No event of the socket
    /// tells of that.
    pub(crate) fn holds_more(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        Ok(state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
    }

    /// Sends as much of `data` as the socket takes, and keeps the rest. Nothing may be kept
    /// already.
    pub(crate) fn send(&mut self, data: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(data)?;
            return self.send_unsent();
        }
        let sent = write_available(&mut self.socket, data)?;
        if sent < data.len() {
            (self.unsent, self.sent) = (data[sent..].to_vec(), 0);
        }
        Ok(())
    }

    /// Sends what was kept, as far as the socket takes it.
    pub(crate) fn send_unsent(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() && if_ready(tls.write_tls(&mut self.socket))?.is_some() {}
            return Ok(());
        }
        self.sent += write_available(&mut self.socket, &self.unsent[self.sent..])?;
        if !self.has_unsent() {
            self.drop_unsent();
        }
        Ok(())
    }

    /// Whether anything is kept.
    pub(crate) fn has_unsent(&self) -> bool {
        self.tls.as_ref().map_or(self.sent < self.unsent.len(), |tls| tls.wants_write())
    }

    /// Drops what was kept. Only for a socket without TLS.
    pub(crate) fn drop_unsent(&mut self) {
        (self.unsent, self.sent) = (Vec::new(), 0);
    }

    /// Shuts the socket down for writing. Over TLS `close_notify` goes first.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        match self.socket.shutdown(Shutdown::Write) {
            // A peer that has closed answers `close_notify` by a reset.
            Err(error) if error.kind() == io::ErrorKind::NotConnected && self.tls.is_some() => {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// The bare socket. Over TLS sends `close_notify` first, as far as the socket takes it at once.
    pub(crate) fn into_socket(mut self) -> OwnedFd {
        // The session is over either way, and has said how it ended.
        let _ = self.send_close_notify();
        self.socket.into()
    }

    /// Ends TLS, if the socket is encrypted.
    pub(crate) fn send_close_notify(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        // rustls sends it once, however often this is called.
        tls.send_close_notify();
        self.send_unsent()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Writes as many bytes of `data` as go without waiting; returns how many.
fn write_available(to: &mut impl Write, data: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < data.len() {
        match to.write(&data[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// The outcome of a call that does not wait; `None` if the call would have to.
fn if_ready(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
