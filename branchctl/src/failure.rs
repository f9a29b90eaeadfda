//! What can go wrong, and the exit code that tells a script which it was.

use std::fmt;
use std::process::ExitCode;

use api::client;

/// Exit codes. They are an interface: a number never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for a reason that none of the others names.
    Failed = 1,
    /// Wrong arguments, or a request that the server finds invalid, such as a bad name.
    Usage = 2,
    /// The branch or import does not exist.
    NotFound = 3,
    /// The name is taken, or the branch's state forbids it.
    Conflict = 4,
    /// No answer from the server.
    Unreachable = 5,
    /// The token is missing or wrong.
    Unauthorized = 6,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The API refused, or was not reached.
    Api(client::Error),
    /// Something on this side, put into words.
    Local(String),
    /// Said already, as with the second of several names.
    Told(Exit),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Local(_) => Exit::Failed,
            Self::Told(exit) => *exit,
            Self::Api(error) => match (error.status, error.code.as_str()) {
                (0, "unreachable" | "disconnected" | "timeout") => Exit::Unreachable,
                (0, "bad_api_url") | (400 | 422, _) => Exit::Usage,
                (0, "bad_token" | "bad_token_file") | (401, _) => Exit::Unauthorized,
                (404, _) => Exit::NotFound,
                (409, _) => Exit::Conflict,
                _ => Exit::Failed,
            },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => error.fmt(f),
            Self::Local(words) => f.write_str(words),
            Self::Told(_) => f.write_str("not everything was done"),
        }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        Self::Api(error)
    }
}
