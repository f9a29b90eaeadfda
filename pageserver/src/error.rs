//! One error type, told apart by consequence: what the caller can do about it.

use std::fmt;

/// What an error means for its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong; sending it again cannot help.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already or is in a state that forbids this.
    Conflict,
    /// Not possible now; it may be later.
    Unavailable,
    /// The disk has no room.
    Full,
    /// A write or sync failed before; the timeline refuses writes until it is reopened.
    Latched,
    /// Bytes on disk are not what was written.
    Corrupt,
    /// The operating system refused.
    Io,
}

/// An error with a stable code for programs and a sentence for people.
#[derive(Clone, Debug)]
pub struct Error {
    /// What the receiver can do.
    pub kind: Kind,
    /// Stable identifier, shown in the API's `code`.
    pub code: &'static str,
    /// What went wrong, naming the thing, and what to do.
    pub detail: String,
}

/// Result with the crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with a stable `code`.
    pub fn new(kind: Kind, code: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, code, detail: detail.into() }
    }

    /// The request is wrong.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, code, detail)
    }

    /// The named thing does not exist.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, code, detail)
    }

    /// The named thing is in the way.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, code, detail)
    }

    /// Not possible now.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, code, detail)
    }

    /// Bytes on disk are not what was written.
    pub fn corrupt(detail: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, "corrupt", detail)
    }

    /// The operating system refused to `doing` (verb and object, such as "open log 7").
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        let full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let (kind, code) = if full { (Kind::Full, "disk_full") } else { (Kind::Io, "io") };
        Self::new(kind, code, format!("cannot {doing}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Error {}
