//! Every body that travels over the HTTP API. JSON field names are the Rust names.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::moment::Moment;

/// Body of `POST /v1/branches` and, with the name in the path winning, of `PUT
/// /v1/branches/{name}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBranch {
    /// Name of the new branch: a letter or digit, then up to 62 of letters, digits, `.`, `_`, `/`
    /// and `-`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(example = "feature/login")]
    pub name: String,
    /// Branch to start from; the default branch if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "main")]
    pub parent: Option<String>,
    /// Moment of the parent to start from; its head if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Moment>,
    /// How long its past is kept: `90s`, `30m`, `12h`, `7d`, `4w`, or `0` for not at all; what the
    /// server's setting `--branch-history` says if left out. A branch that exists keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "7d")]
    pub history: Option<String>,
}

/// Body of `PATCH /v1/branches/{name}`: fields left out stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateBranch {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "feature/sign-in")]
    pub name: Option<String>,
    /// A protected branch refuses reset and delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// What the branch's Postgres reaches over the network. A change ends its sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkChoice>,
    /// Whether the jobs of `pg_cron` run on the branch. A change ends its sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_jobs: Option<bool>,
    /// How long its past is kept from now on, such as `7d`, or `0` for not at all. What was given
    /// up already does not come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "7d")]
    pub history: Option<String>,
}

/// What a branch's Postgres is to reach over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkChoice {
    /// Nothing.
    None,
    /// What the server's machine reaches.
    Host,
    /// What the server's setting `--branch-network` says.
    Default,
}

/// What a branch's Postgres reaches over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing.
    None,
    /// What the server's machine reaches.
    Host,
}

impl Network {
    fn of_older_servers() -> Self {
        Self::Host
    }
}

/// Body of `PATCH /v1/branches/{name}/settings`: settings of the branch's Postgres.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSettings {
    /// Settings with their new values.
    #[serde(default)]
    #[schema(example = json!({"work_mem": "64MB"}))]
    pub set: BTreeMap<String, String>,
    /// Settings that are to have their default again.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// Answer of `PATCH /v1/branches/{name}/settings`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SettingsOutcome {
    /// Settings that take effect when the branch's Postgres starts the next time. The others have
    /// taken effect.
    pub at_next_start: Vec<String>,
}

/// Body of `POST /v1/branches/{name}/password` (optional).
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// Role that gets the password; that of the branch's login if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The password, at most 1,000 bytes; a random one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl fmt::Debug for NewPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewPassword").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Body of `POST /v1/branches/{name}/reset` (optional).
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetBranch {
    /// Moment of the parent to reset to; its head if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Moment>,
}

/// Body of `POST /v1/branches/{name}/restore`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreBranch {
    /// Moment of the branch's own past to go back to.
    pub at: Moment,
    /// Name for a new branch that keeps the state before, so that the restore can be undone; if
    /// left out, that state is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "main-before-restore")]
    pub keep_as: Option<String>,
}

/// Answer of `GET /v1/branches/{name}/history`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// Ranges of moments that can be gone back to, oldest first.
    pub ranges: Vec<HistoryRange>,
    /// How long moments can be gone back to, in seconds.
    pub window_s: u64,
}

/// A range in which every moment can be gone back to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistoryRange {
    /// Its oldest moment.
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    /// Its newest moment.
    #[schema(value_type = String, format = DateTime)]
    pub to: Timestamp,
    /// Position at its beginning.
    pub from_position: u64,
    /// Position at its end.
    pub to_position: u64,
    /// Where the write-ahead log ended at its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0/16B3748")]
    pub from_lsn: Option<String>,
    /// Where the write-ahead log ended at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_lsn: Option<String>,
    /// Positions in it that are kept as they were: each second of the last hour, then each minute.
    pub points: u64,
}

/// What the Postgres of a branch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputeState {
    /// No process; the next connection wakes it.
    Suspended,
    /// Postgres is starting or recovering.
    Starting,
    /// Postgres accepts connections.
    Running,
    /// Postgres is shutting down.
    Stopping,
    /// The last start failed or Postgres died; the next connection tries again.
    Failed,
}

/// A branch as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Branch {
    /// Name, unique in the server.
    pub name: String,
    /// First label of the host name that routes to this branch by TLS SNI.
    pub host: String,
    /// Branch that this one was made from, under its present name; absent for a root or when the
    /// parent is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Identifier of the history that the name points at; changes with a reset.
    pub timeline: String,
    /// Position of the parent that this branch starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_position: Option<u64>,
    /// When the branch was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the data was last taken from the parent: creation or the last reset.
    #[schema(value_type = String, format = DateTime)]
    pub forked_at: Timestamp,
    /// Whether new branches start from it if they name no parent.
    pub default: bool,
    /// Whether reset and delete are refused.
    pub protected: bool,
    /// What its Postgres reaches over the network.
    #[serde(default = "Network::of_older_servers")]
    pub network: Network,
    /// Whether the jobs of `pg_cron` run on it.
    #[serde(default)]
    pub scheduled_jobs: bool,
    /// How long its past is kept, such as `1h`; `0` for not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "1h")]
    pub history: Option<String>,
    /// What its Postgres is doing.
    pub state: ComputeState,
    /// Why the state is `failed`: Postgres's last log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Unix socket of its Postgres, on the server's machine, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Client connections through the proxy now.
    pub connections: u64,
    /// Size of the data directory as Postgres sees it, in bytes; absent if a killed server left
    /// that to be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_bytes: Option<u64>,
    /// Bytes on disk that this branch's own timeline holds: what was written to it, its past
    /// included.
    pub own_bytes: u64,
    /// Bytes on disk that deleting the branch would free at once; 0 while others were made from it.
    #[serde(default)]
    pub freed_by_delete: u64,
}

/// Answer of `GET /v1/usage`: every byte of the store on disk, counted once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// What each branch's own timeline holds.
    pub branches: Vec<BranchUsage>,
    /// Timelines without a name.
    pub nameless: Vec<NamelessUsage>,
    /// Files that no timeline uses: the catalog, and spare files that are written out beforehand.
    pub reserve_bytes: u64,
    /// The sum of all.
    pub total_bytes: u64,
}

/// What a branch takes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BranchUsage {
    /// Name of the branch.
    pub name: String,
    /// Size of the data directory as Postgres sees it, in bytes; absent if a killed server left
    /// that to be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_bytes: Option<u64>,
    /// Bytes on disk that its own timeline holds.
    pub own_bytes: u64,
    /// Bytes on disk that deleting it would free at once.
    pub freed_by_delete: u64,
}

/// What a timeline without a name takes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NamelessUsage {
    /// The timeline.
    pub timeline: String,
    /// Bytes on disk that it holds.
    pub own_bytes: u64,
    /// Branches that were made from it before a reset, restore or deletion took its name away; none
    /// for a visited moment or an import.
    pub needed_by: Vec<String>,
}

/// Answer of `GET /v1/branches`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BranchList {
    /// The branches of the page, by name.
    pub branches: Vec<Branch>,
    /// `cursor` of the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Answer of `GET /v1/branches/{name}/connection`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// `postgresql://` URL through the proxy, with the password of a role whose password the server
    /// set.
    #[schema(example = "postgresql://postgres.feature-login:8d1f@127.0.0.1:5433/app")]
    pub url: String,
}

/// Leaves the URL out: it carries a password, and `Debug` ends in logs.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// How an import copies its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportMode {
    /// A physical copy of the whole cluster (the protocol of `pg_basebackup`).
    #[default]
    Physical,
}

/// Body of `POST /v1/imports`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImport {
    /// Name of the new root branch.
    #[schema(example = "production")]
    pub name: String,
    /// `postgresql://` URL of the running server; the role needs `REPLICATION`.
    #[schema(example = "postgresql://replicator:secret@db.example.com/app")]
    pub source: String,
    /// How to copy.
    #[serde(default)]
    pub mode: ImportMode,
}

/// Leaves the source out: its URL carries a password, and `Debug` ends in logs.
impl fmt::Debug for CreateImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateImport")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportState {
    /// Copying.
    Running,
    /// The branch exists.
    Done,
    /// Stopped with an error; nothing is left behind.
    Failed,
}

/// Answer of `POST /v1/imports` and `GET /v1/imports/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Import {
    /// Identifier for polling; forgotten at a restart of the server.
    pub id: String,
    /// Name of the branch to be.
    pub name: String,
    /// How far it is.
    pub state: ImportState,
    /// What it does now, in words.
    pub step: String,
    /// Bytes received so far.
    pub bytes_done: u64,
    /// Bytes the source estimated, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// What is not as at the source, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// Version of Postgres that runs the branches.
    pub postgres_version: String,
    /// Branch that new branches start from if they name no parent.
    pub default_branch: String,
    /// Number of branches.
    pub branches: u64,
    /// Number of branches whose Postgres runs.
    pub running: u64,
    /// Client connections through the proxy now.
    pub connections: u64,
    /// Bytes the store takes on disk.
    pub store_bytes: u64,
    /// Bytes free on the store's file system.
    pub free_bytes: u64,
    /// Address of the proxy, `host:port`.
    pub proxy_address: String,
    /// Certificate of the proxy's own CA, on the server's machine, by which clients verify the
    /// proxy; null if the proxy has a certificate that was given to it.
    #[serde(default)]
    #[schema(example = "/var/lib/coppice/tls/ca.crt")]
    pub ca_file: Option<String>,
    /// Seconds since the server started.
    pub uptime_s: u64,
}

/// Answer of `GET /healthz`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`: a server that cannot create branches answers 503 instead.
    #[schema(example = "ok")]
    pub status: String,
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`; `code` tells errors apart.
    #[serde(rename = "type", default)]
    #[schema(example = "about:blank")]
    pub kind: String,
    /// The HTTP status in words.
    #[schema(example = "Not Found")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// Stable identifier of the error, such as `branch_not_found`.
    #[schema(example = "branch_not_found")]
    pub code: String,
    /// What went wrong and what to do.
    #[schema(example = "no branch is named `feature/logni`; did you mean `feature/login`?")]
    pub detail: String,
}
