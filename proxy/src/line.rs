//! One end of a session: a stream socket, encrypted or not, that never waits.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use tokio_rustls::rustls::ServerConnection;

/// One end of a session.
pub(crate) struct Line {
    /// A stream socket, of whatever family: they are all used alike.
    socket: UnixStream,
    /// If it is encrypted, by what. What the socket has not taken yet is in there then.
    tls: Option<Box<ServerConnection>>,
    /// What the socket has not taken yet: the bytes from `taken` on.
    pending: Vec<u8>,
    taken: usize,
}

impl Line {
    /// Over a socket that shall not wait from now on.
    pub(crate) fn new(socket: OwnedFd, tls: Option<ServerConnection>) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let tls = tls.map(|mut tls| {
            // What is sent is bounded by what is read at a time.
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        Ok(Self { socket, tls, pending: Vec::new(), taken: 0 })
    }

    /// What is there to read, 0 bytes at the end; nothing if it is yet to come.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else { return at_once(self.socket.read(buffer)) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // TLS that ends without saying goodbye: common, and harmless since Postgres
                // messages have lengths.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(0)),
                outcome => return outcome.map(Some),
            }
            if at_once(tls.read_tls(&mut self.socket))?.is_none() {
                return Ok(None);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Whether there is something to read, or the end, that came with what was read before, so that
    /// the socket does not tell of it.
    pub(crate) fn holds_more(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        Ok(state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
    }

    /// Hands on as much of `data` as the socket takes, and keeps the rest. Nothing may be kept
    /// already.
    pub(crate) fn send(&mut self, data: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(data)?;
            return self.send_kept();
        }
        let taken = take_all_it_can(&mut self.socket, data)?;
        if taken < data.len() {
            (self.pending, self.taken) = (data[taken..].to_vec(), 0);
        }
        Ok(())
    }

    /// Hands on what was kept.
    pub(crate) fn send_kept(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() && at_once(tls.write_tls(&mut self.socket))?.is_some() {}
            return Ok(());
        }
        self.taken += take_all_it_can(&mut self.socket, &self.pending[self.taken..])?;
        if !self.is_behind() {
            self.drop_kept();
        }
        Ok(())
    }

    /// Whether anything is kept.
    pub(crate) fn is_behind(&self) -> bool {
        self.tls.as_ref().map_or(self.taken < self.pending.len(), |tls| tls.wants_write())
    }

    /// Forgets what was kept of an end that is not encrypted.
    pub(crate) fn drop_kept(&mut self) {
        (self.pending, self.taken) = (Vec::new(), 0);
    }

    /// Tells the other end that nothing more comes, once it has been said goodbye to.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        match self.socket.shutdown(Shutdown::Write) {
            // Who has closed answers the goodbye by a reset.
            Err(error) if error.kind() == io::ErrorKind::NotConnected && self.tls.is_some() => {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// The bare socket. An encrypted one is taken leave of, as far as it takes that at once.
    pub(crate) fn into_socket(mut self) -> OwnedFd {
        // The session is over either way, and has said how it ended.
        let _ = self.say_goodbye();
        self.socket.into()
    }

    /// Takes leave of the other end, if it is encrypted.
    pub(crate) fn say_goodbye(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        // Done once, however often it is asked for.
        tls.send_close_notify();
        self.send_kept()
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How many bytes of `data` are taken without waiting.
fn take_all_it_can(to: &mut impl Write, data: &[u8]) -> io::Result<usize> {
    let mut taken = 0;
    while taken < data.len() {
        match to.write(&data[taken..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => taken += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

/// What was done without waiting; nothing if that cannot be now.
fn at_once(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
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
