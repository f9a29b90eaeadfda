//! The bearer token: where it is kept, how it is made, how a request's is checked.
//!
//! Whoever holds the token may do everything, so it lives in a file that only the server's user can
//! read, is compared in constant time and never printed. There are no cookies, so another site's
//! page in a browser cannot use it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Fault;
use crate::error::{Error, Result};
use crate::events::Actor;
use crate::secret::{Secret, random_bytes};

/// Random bytes of a generated token.
const RANDOM_BYTES: usize = 32;
/// Shortest token accepted from a file: someone may write their own, but not one that can be
/// guessed.
const TOKEN_LEN_MIN: usize = 16;
/// Largest token file read.
const FILE_BYTES_MAX: u64 = 4096;

/// The secret that a request must carry.
#[derive(Clone, Debug)]
pub struct Token(Secret);

impl Token {
    /// Reads the token from `path`, or writes a new random one there when the file does not exist.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match File::open(path) {
            Ok(file) => load(path, file),
            Err(error) if error.kind() == ErrorKind::NotFound => create(path),
            Err(error) => Err(Error::io(format!("open API token file {}", path.display()), &error)),
        }
    }

    /// The secret itself, for a client in the same process.
    pub fn secret(&self) -> &str {
        self.0.expose()
    }

    fn matches(&self, presented: &[u8]) -> bool {
        self.0.matches(presented)
    }
}

fn load(path: &Path, file: File) -> Result<Token> {
    let bad = |why: &str| {
        Error::invalid("bad_token_file", format!("API token file {} {why}", path.display()))
    };
    let read = |error| Error::io(format!("read API token file {}", path.display()), &error);
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(bad("is not a regular file; move it away and start again to get a new token"));
    }
    // Group access is the administrator's choice: that is how the users of a team are let in.
    if metadata.mode() & 0o007 != 0 {
        return Err(bad(
            "is open to every user of this machine; run `chmod 600` on it, or delete it and start \
             again to get a new token",
        ));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(bad("is empty; delete it and start again to get a new token"));
    }
    if token.len() < TOKEN_LEN_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad(
            "must hold one line of at least 16 visible ASCII characters; delete it and start again \
             to get a new token",
        ));
    }
    Ok(Token(token.to_owned().into()))
}

/// Writes a new token under a temporary name, private from its first moment, then renames it into
/// place: a reader finds either no file or a whole one.
fn create(path: &Path) -> Result<Token> {
    let doing = |error| Error::io(format!("create API token file {}", path.display()), &error);
    let bytes = random_bytes::<RANDOM_BYTES>()?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let temporary = path.with_extension("new");
    // Left by a crash, or laid there by someone else: either way it must not be written into.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(doing(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(doing)?;
    file.write_all(format!("{token}\n").as_bytes()).map_err(doing)?;
    file.sync_all().map_err(doing)?;
    fs::rename(&temporary, path).map_err(doing)?;
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(doing)?;
    Ok(Token(token.into()))
}

/// Lets only requests with the right token through, and says who they are from.
pub(super) async fn require(
    State(expected): State<Token>,
    mut request: Request,
    next: Next,
) -> Response {
    let presented = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let detail = match presented.map(bearer) {
        Some(Some(token)) if expected.matches(token) => {
            request.extensions_mut().insert(Actor::Token);
            return next.run(request).await;
        }
        Some(Some(_)) => {
            "the token is not this server's; it is in the file `api-token` of its data directory"
        }
        Some(None) => "the Authorization header must read `Bearer TOKEN`",
        None => {
            "this needs the header `Authorization: Bearer TOKEN`; the token is in the file \
             `api-token` of the server's data directory"
        }
    };
    Fault::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response()
}

/// The token of an `Authorization` header, whose scheme may be in either case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("coppice-token-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join("api-token")
        }

        fn write(&self, text: &str, mode: u32) {
            fs::write(self.file(), text).unwrap();
            fs::set_permissions(self.file(), fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_new_token_is_private_random_and_kept() {
        let (one, two) = (Dir::new("one"), Dir::new("two"));
        fs::write(one.0.join("api-token.new"), "left by a crash").unwrap();
        let token = Token::load_or_create(&one.file()).unwrap();
        assert_eq!(token.secret().len(), 2 * RANDOM_BYTES);
        assert_eq!(fs::metadata(one.file()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Token::load_or_create(&one.file()).unwrap().secret(), token.secret());
        assert_ne!(Token::load_or_create(&two.file()).unwrap().secret(), token.secret());
        assert_eq!(fs::read_dir(&one.0).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn files_that_keep_no_secret_are_refused_with_the_remedy() {
        let dir = Dir::new("bad");
        for (text, mode, expected) in [
            ("", 0o600, "is empty"),
            (" \n", 0o600, "is empty"),
            ("0123456789abcdef", 0o604, "chmod 600"),
            ("short", 0o600, "at least 16"),
            ("0123456789 abcdef", 0o600, "at least 16"),
        ] {
            dir.write(text, mode);
            let error = Token::load_or_create(&dir.file()).unwrap_err();
            assert_eq!(error.code, "bad_token_file");
            assert!(
                error.detail.contains(expected) && error.detail.contains("api-token"),
                "{error}"
            );
        }
        dir.write("0123456789abcdef\n", 0o640);
        assert_eq!(Token::load_or_create(&dir.file()).unwrap().secret(), "0123456789abcdef");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Token::load_or_create(Path::new("/nonexistent/api-token")).unwrap_err();
        assert!(error.detail.contains("/nonexistent/api-token"), "{error}");
    }

    #[test]
    fn only_the_whole_token_matches() {
        let token = Token("0123456789abcdef".to_owned().into());
        assert!(token.matches(b"0123456789abcdef"));
        for wrong in
            ["", "0123456789abcde", "0123456789abcdeg", "0123456789abcdef0", "0123456789abcdef\0"]
        {
            assert!(!token.matches(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token(Secret(..))");
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer(b"Bearer x"), Some(&b"x"[..]));
        assert_eq!(bearer(b"bearer  x "), Some(&b"x"[..]));
        for wrong in [&b"Basic x"[..], b"Bearer", b"x", b""] {
            assert_eq!(bearer(wrong), None);
        }
    }
}
