//! A blocking client of the HTTP API.
//!
//! One method per route. Every call is bounded in time and in the size of the answer, and every
//! failure becomes an [`Error`] that prints what to do next. It opens a connection per call and
//! keeps none: a kept one that the server has closed meanwhile would fail a request that cannot
//! safely be sent twice. It never goes through a web proxy named in the environment, which would
//! see the token.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response, Uri};

use crate::percent::encode;
use crate::types::{
    Branch, BranchList, Connection, CreateBranch, CreateImport, History, Import, NewPassword,
    Problem, ResetBranch, RestoreBranch, SettingsOutcome, Status, UpdateBranch, UpdateSettings,
    Usage,
};

/// Where a server listens unless told otherwise.
pub const DEFAULT_API: &str = "http://127.0.0.1:8432";

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an answer that needs no Postgres to start or stop.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for an answer that may need one: recovery after a crash reads WAL, a stop writes a
/// checkpoint.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest answer read, room for about 100,000 branches.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Longest line of a log read in one piece.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Largest token file read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// HTTP status of the answer; 0 when there was none.
    pub status: u16,
    /// Stable identifier: the server's, or `unreachable`, `disconnected`, `timeout`,
    /// `bad_answer`, `bad_api_url`, `bad_token`, `bad_token_file`.
    pub code: String,
    /// What went wrong.
    pub detail: String,
}

impl Error {
    fn local(code: &str, detail: impl Into<String>) -> Self {
        Self { status: 0, code: code.to_owned(), detail: detail.into() }
    }

    /// What the user can do about it, where the detail does not say so already.
    fn remedy(&self) -> Option<&'static str> {
        match (self.status, self.code.as_str()) {
            (0, "unreachable") => Some(
                "is the server running there? start it with `pageserver serve --data DIR`, or set \
                 COPPICE_API",
            ),
            (0, "timeout" | "disconnected") => {
                Some("the server may have done it or still be at it: look with `branchctl list`")
            }
            (401, _) => {
                Some("set COPPICE_TOKEN, or COPPICE_TOKEN_FILE to the server's DATA/api-token")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Reads the bearer token that the server keeps in the file `api-token` of its data directory.
pub fn read_token(path: &Path) -> Result<String, Error> {
    let bad = |why: String| {
        Error::local("bad_token_file", format!("cannot use token file {}: {why}", path.display()))
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| {
            bad(format!(
                "{error}; give the path of the server's DATA/api-token and check that you may read \
                 it"
            ))
        })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    Ok(token.to_owned())
}

/// A server's API. Cheap to clone; may be shared by threads.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

/// Leaves the token out.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `base_url` (such as `http://127.0.0.1:8432`). Sends nothing yet.
    pub fn new(base_url: &str, token: Option<String>) -> Result<Self, Error> {
        let base = check_base(base_url)?;
        if token.as_deref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::local(
                "bad_token",
                "the API token holds a blank or a character outside ASCII",
            ));
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_idle_connections(0)
            .user_agent(concat!("coppice/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, base, token })
    }

    /// The server's address as given, without a trailing slash.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// `GET /v1/branches`: all branches, by name.
    pub fn list(&self) -> Result<Vec<Branch>, Error> {
        self.list_prefix("")
    }

    /// `GET /v1/branches`: all branches whose names begin with `prefix`, page by page.
    pub fn list_prefix(&self, prefix: &str) -> Result<Vec<Branch>, Error> {
        let (mut branches, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let prefix = (!prefix.is_empty()).then(|| format!("prefix={}", encode(prefix)));
            let cursor_of = cursor.as_ref().map(|cursor| format!("cursor={}", encode(cursor)));
            let query: Vec<String> = prefix.into_iter().chain(cursor_of).collect();
            let mark = if query.is_empty() { "" } else { "?" };
            let page: BranchList = self.read(&format!("/v1/branches{mark}{}", query.join("&")))?;
            branches.extend(page.branches);
            match page.next {
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                _ => return Ok(branches),
            }
        }
    }

    /// `GET /v1/branches/{name}`.
    pub fn get(&self, name: &str) -> Result<Branch, Error> {
        self.read(&branch_path(name, ""))
    }

    /// `POST /v1/branches`.
    pub fn create(&self, request: &CreateBranch) -> Result<Branch, Error> {
        self.change(Method::POST, "/v1/branches", request)
    }

    /// `PUT /v1/branches/{name}`: the branch, and whether this call created it.
    pub fn ensure(&self, name: &str, request: &CreateBranch) -> Result<(Branch, bool), Error> {
        let body = encode_body(request)?;
        let answer = self.send(Method::PUT, &branch_path(name, ""), Some(body), CHANGE_TIMEOUT)?;
        Ok((answer.decode()?, answer.status == 201))
    }

    /// `PATCH /v1/branches/{name}`: the name and the settings.
    pub fn update(&self, name: &str, request: &UpdateBranch) -> Result<Branch, Error> {
        self.change(Method::PATCH, &branch_path(name, ""), request)
    }

    /// `PATCH /v1/branches/{name}/settings`.
    pub fn set(&self, name: &str, request: &UpdateSettings) -> Result<SettingsOutcome, Error> {
        self.change(Method::PATCH, &branch_path(name, "/settings"), request)
    }

    /// `POST /v1/branches/{name}/password`.
    pub fn password(&self, name: &str, request: &NewPassword) -> Result<Connection, Error> {
        self.change(Method::POST, &branch_path(name, "/password"), request)
    }

    /// `POST /v1/branches/{name}/reset`.
    pub fn reset(&self, name: &str, request: &ResetBranch) -> Result<Branch, Error> {
        self.change(Method::POST, &branch_path(name, "/reset"), request)
    }

    /// `POST /v1/branches/{name}/restore`.
    pub fn restore(&self, name: &str, request: &RestoreBranch) -> Result<Branch, Error> {
        self.change(Method::POST, &branch_path(name, "/restore"), request)
    }

    /// `GET /v1/branches/{name}/history`.
    pub fn history(&self, name: &str) -> Result<History, Error> {
        self.read(&branch_path(name, "/history"))
    }

    /// `GET /v1/branches/{name}/logs`: calls `each` for each of the last `lines` lines, and if
    /// `follow`, for those to come until the branch is deleted, the server stops or `each` breaks.
    pub fn logs(
        &self,
        name: &str,
        lines: usize,
        follow: bool,
        mut each: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let path = format!("{}?lines={lines}&follow={follow}", branch_path(name, "/logs"));
        let limit = if follow { None } else { Some(READ_TIMEOUT) };
        let mut response = self.open(Method::GET, &path, None, limit)?;
        if response.status().as_u16() != 200 {
            return Err(self.read_whole(&mut response)?.into_error(&self.base));
        }
        let mut body = BufReader::new(response.into_body().into_reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = body.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if read.map_err(|error| self.explain(&error.into()))? == 0 {
                return Ok(());
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if each(&String::from_utf8_lossy(text)).is_break() {
                return Ok(());
            }
        }
    }

    /// `DELETE /v1/branches/{name}`.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        self.send(Method::DELETE, &branch_path(name, ""), None, CHANGE_TIMEOUT).map(drop)
    }

    /// `POST /v1/branches/{name}/suspend`: returns once its Postgres has stopped.
    pub fn suspend(&self, name: &str) -> Result<Branch, Error> {
        self.send(Method::POST, &branch_path(name, "/suspend"), Some(Vec::new()), CHANGE_TIMEOUT)?
            .decode()
    }

    /// `POST /v1/branches/{name}/wake`: returns once its Postgres accepts connections.
    pub fn wake(&self, name: &str) -> Result<Branch, Error> {
        self.send(Method::POST, &branch_path(name, "/wake"), Some(Vec::new()), CHANGE_TIMEOUT)?
            .decode()
    }

    /// `GET /v1/branches/{name}/connection`: a URL for `database` and `role`, or the server's
    /// defaults.
    pub fn connection(
        &self,
        name: &str,
        database: Option<&str>,
        role: Option<&str>,
    ) -> Result<Connection, Error> {
        let given = [("database", database), ("role", role)];
        let query: Vec<String> = given
            .iter()
            .filter_map(|(key, value)| value.map(|value| format!("{key}={}", encode(value))))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        self.read(&format!("{}{mark}{}", branch_path(name, "/connection"), query.join("&")))
    }

    /// `POST /v1/imports`.
    pub fn start_import(&self, request: &CreateImport) -> Result<Import, Error> {
        self.change(Method::POST, "/v1/imports", request)
    }

    /// `GET /v1/imports/{id}`.
    pub fn import(&self, id: &str) -> Result<Import, Error> {
        self.read(&format!("/v1/imports/{}", encode(id)))
    }

    /// `GET /v1/usage`.
    pub fn usage(&self) -> Result<Usage, Error> {
        self.read("/v1/usage")
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Status, Error> {
        self.read("/v1/status")
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send(Method::GET, path, None, READ_TIMEOUT)?.decode()
    }

    fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.send(method, path, Some(encode_body(body)?), CHANGE_TIMEOUT)?.decode()
    }

    /// Sends one request; an answer with a status of 400 or more becomes an error.
    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Answer, Error> {
        let mut response = self.open(method, path, body, Some(timeout))?;
        let answer = self.read_whole(&mut response)?;
        if (200..300).contains(&answer.status) {
            Ok(answer)
        } else {
            Err(answer.into_error(&self.base))
        }
    }

    /// Sends one request and returns once the head of its answer is there. Without a `limit` the
    /// body may take as long as it likes, but not the head.
    fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Option<Duration>,
    ) -> Result<Response<ureq::Body>, Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let result = match body {
            Some(body) => {
                if !body.is_empty() {
                    request = request.header("content-type", "application/json");
                }
                request.body(body).map_err(ureq::Error::from).and_then(|r| self.run(r, limit))
            }
            None => request.body(()).map_err(ureq::Error::from).and_then(|r| self.run(r, limit)),
        };
        result.map_err(|error| self.explain(&error))
    }

    fn read_whole(&self, response: &mut Response<ureq::Body>) -> Result<Answer, Error> {
        let status = response.status().as_u16();
        // Refused before any of it is read where its length is announced; the limit below is for
        // the other answers.
        if response.body().content_length().is_some_and(|length| length > ANSWER_BYTES_MAX) {
            return Err(self.too_large());
        }
        let bytes = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| self.explain(&error))?;
        Ok(Answer { status, bytes })
    }

    fn run(
        &self,
        request: Request<impl ureq::AsSendBody>,
        limit: Option<Duration>,
    ) -> Result<Response<ureq::Body>, ureq::Error> {
        let configured = self.agent.configure_request(request).timeout_global(limit);
        self.agent.run(configured.timeout_recv_response(limit.or(Some(READ_TIMEOUT))).build())
    }

    fn too_large(&self) -> Error {
        Error::local(
            "bad_answer",
            format!("the answer of {} is larger than {ANSWER_BYTES_MAX} bytes", self.base),
        )
    }

    /// Puts a transport failure into words.
    fn explain(&self, error: &ureq::Error) -> Error {
        let base = &self.base;
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => Error::local(
                "unreachable",
                format!("no connection to {base} within {} s", CONNECT_TIMEOUT.as_secs()),
            ),
            ureq::Error::Timeout(_) => {
                Error::local("timeout", format!("{base} did not answer in time"))
            }
            ureq::Error::BodyExceedsLimit(_) => self.too_large(),
            ureq::Error::Io(error) if !ended_underway(error.kind()) => {
                Error::local("unreachable", format!("cannot reach {base}: {error}"))
            }
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                Error::local("unreachable", format!("cannot reach {base}: {error}"))
            }
            other => {
                Error::local("disconnected", format!("the exchange with {base} broke off: {other}"))
            }
        }
    }
}

/// An answer's status and body.
struct Answer {
    status: u16,
    bytes: Vec<u8>,
}

impl Answer {
    fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes).map_err(|error| Error {
            status: self.status,
            code: "bad_answer".to_owned(),
            detail: format!(
                "the server's answer is not what was expected ({error}); are client \
                and server of the same version?"
            ),
        })
    }

    fn into_error(self, base: &str) -> Error {
        let status = self.status;
        match serde_json::from_slice::<Problem>(&self.bytes) {
            Ok(problem) => Error { status, code: problem.code, detail: problem.detail },
            Err(_) => Error {
                status,
                code: "bad_answer".to_owned(),
                detail: format!(
                    "{base} answered HTTP {status}, not as a Coppice server does; check COPPICE_API"
                ),
            },
        }
    }
}

/// Whether an I/O error means that a connection that stood was lost, so that the request may have
/// arrived.
fn ended_underway(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Accepts `http://HOST[:PORT]` and nothing else.
fn check_base(url: &str) -> Result<String, Error> {
    let bad = |why: &str| {
        Error::local(
            "bad_api_url",
            format!("API address `{url}` {why}; give one such as {DEFAULT_API}"),
        )
    };
    let uri: Uri = url.parse().map_err(|_| bad("is not a URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(bad(
                "uses https, which this client does not speak: use a tunnel such as `ssh -L`",
            ));
        }
        _ => return Err(bad("does not start with http://")),
    }
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return Err(bad("must name a host, and no user"));
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(bad("must end after host and port"));
    }
    Ok(format!("http://{authority}"))
}

fn branch_path(name: &str, action: &str) -> String {
    format!("/v1/branches/{}{action}", encode(name))
}

fn encode_body(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body)
        .map_err(|error| Error::local("bad_request", format!("cannot encode the request: {error}")))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
