//! Why an operation of the file system did not happen.

use crate::error::{Error, Kind};
use nix::errno::Errno;
use std::io;

/// Why an operation did not happen.
#[derive(Debug)]
pub enum TreeError {
    /// What the caller of the file system did wrong.
    Errno(Errno),
    /// What went wrong below.
    Store(Error),
}

impl From<Error> for TreeError {
    fn from(error: Error) -> Self {
        TreeError::Store(error)
    }
}

impl From<Errno> for TreeError {
    fn from(errno: Errno) -> Self {
        TreeError::Errno(errno)
    }
}

impl TreeError {
    /// The error as one of the server, which wanted to do this.
    pub fn into_error(self, doing: &str) -> Error {
        match self {
            TreeError::Store(error) => error,
            TreeError::Errno(errno) => Error::io(doing, &errno.into()),
        }
    }

    /// The error as a system call reports it.
    pub fn errno(&self) -> Errno {
        match self {
            TreeError::Errno(errno) => *errno,
            TreeError::Store(error) if error.kind == Kind::Full => Errno::ENOSPC,
            TreeError::Store(_) => Errno::EIO,
        }
    }
}

/// Result of an operation on a tree.
pub type TreeResult<T> = std::result::Result<T, TreeError>;

/// What went wrong with the contents of a temporary file.
pub(super) fn temporary(doing: &'static str) -> impl Fn(io::Error) -> TreeError {
    move |error| Error::io(format!("{doing} a temporary file"), &error).into()
}
