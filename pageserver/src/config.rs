//! The settings of a server, their defaults and limits, and where things are in its data directory.

use crate::fs::mount::IoUring;
use crate::storage::catalog::BranchNetwork;
use api::durations::MAX_DURATION_S;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the directory of a suspended branch stays, with what the kernel cached of it, so that
/// the next wake is warm.
pub const DETACH_AFTER: Duration = Duration::from_secs(600);
/// How often work that nobody waits for is done: background syncs and spare files.
pub const TICK: Duration = Duration::from_millis(500);
/// How often visited moments are looked at, whether anybody visits them still.
pub const VISITS_TICK: Duration = Duration::from_secs(2);
/// How long clients get to leave when the server stops.
pub const PROXY_GRACE: Duration = Duration::from_secs(5);
/// Longest path of the run directory: a socket's path must fit `sun_path`.
pub const MAX_RUN_DIRECTORY_BYTES: usize = 76;

/// Seconds of their past that branches keep of which nobody says more; their parents keep theirs.
const BRANCH_HISTORY_S: u64 = 3_600;

/// What `pageserver serve` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Directory on a local file system that holds everything; made at the first start.
    #[arg(long, env = "COPPICE_DATA", value_name = "DIR")]
    pub data: PathBuf,

    /// Address of the HTTP API.
    #[arg(long, env = "COPPICE_API_LISTEN", default_value = "127.0.0.1:8432", value_name = "ADDR")]
    pub api: SocketAddr,

    /// Address of the proxy, where Postgres clients connect.
    #[arg(long, env = "COPPICE_PROXY", default_value = "127.0.0.1:5433", value_name = "ADDR")]
    pub proxy: SocketAddr,

    /// Host, or host and port, by which clients reach the proxy, as connection URLs name it; the
    /// address of the proxy if left out.
    #[arg(long, env = "COPPICE_PUBLIC_ADDRESS", value_name = "HOST[:PORT]")]
    pub public_address: Option<String>,

    /// Where the branches' files are mounted; `mount` in the data directory if left out.
    #[arg(long, env = "COPPICE_MOUNT", value_name = "DIR")]
    pub mount: Option<PathBuf>,

    /// Directory of Postgres's programs; the newest on the machine if left out.
    #[arg(long, env = "COPPICE_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,

    /// User that runs Postgres when the server is started by root; `postgres` if left out.
    #[arg(long, env = "COPPICE_POSTGRES_USER", value_name = "USER")]
    pub postgres_user: Option<String>,

    /// Run each branch's Postgres as a user of its own, whose id is this number and that of the
    /// branch's timeline, so that branches are kept apart by the kernel; 0 runs all as
    /// --postgres-user. For servers started by root.
    #[arg(
        long,
        env = "COPPICE_COMPUTE_UIDS",
        default_value_t = 1_879_048_192,
        value_name = "NUMBER"
    )]
    pub compute_uids: u32,

    /// Suspend a branch's Postgres after so many seconds without a client; 0 for never.
    #[arg(long, env = "COPPICE_SUSPEND_AFTER", default_value_t = 300, value_name = "SECONDS")]
    pub suspend_after: u64,

    /// Run at most so many branches' Postgres at a time: for one more, the one that has been idle
    /// longest is suspended; 0 for no limit, one for each 100 MiB of memory if left out.
    #[arg(long, env = "COPPICE_MAX_RUNNING", value_name = "NUMBER")]
    pub max_running: Option<usize>,

    /// What branches' Postgres reach over the network: nothing, or what this machine reaches;
    /// `branchctl network` sets it for one branch. Without the rights for network namespaces it is
    /// always `host`.
    #[arg(long, env = "COPPICE_BRANCH_NETWORK", default_value = "none", value_name = "WHAT")]
    pub branch_network: BranchNetwork,

    /// Memory that one branch's Postgres and all that runs in it may take, with what the kernel
    /// caches of its files, such as 512MiB or 8GiB; 0 for no limit, half of the machine's if left
    /// out. It needs the right to make control groups.
    #[arg(long, env = "COPPICE_BRANCH_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub branch_memory: Option<u64>,

    /// Processes and threads that one branch may have; 0 for no limit. It needs the right to make
    /// control groups.
    #[arg(long, env = "COPPICE_BRANCH_TASKS", default_value_t = 1024, value_name = "NUMBER")]
    pub branch_tasks: u64,

    /// Compress a branch's log when it is longer than so many MiB, even while it is written to.
    #[arg(long, env = "COPPICE_LOG_LIMIT", default_value_t = 1024, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub log_limit: u64,

    /// Compress a branch's log when nothing was written to it for so many seconds.
    #[arg(long, env = "COPPICE_SEAL_AFTER", default_value_t = 30, value_name = "SECONDS")]
    pub seal_after: u64,

    /// Let branches that do not say how long be taken back to any moment of the last so many
    /// seconds, such as the first one and imported ones; 0 for no history.
    #[arg(long, env = "COPPICE_HISTORY", default_value_t = 86_400, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=MAX_DURATION_S))]
    pub history: u64,

    /// Have the past of new branches that are made from another one kept for so many seconds,
    /// unless they are made with a history of their own; 3600 if left out, or what --history says
    /// if that is less.
    #[arg(long, env = "COPPICE_BRANCH_HISTORY", value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=MAX_DURATION_S))]
    pub branch_history: Option<u64>,

    /// Shorten a branch's history when what is kept for it alone takes more than so many MiB.
    #[arg(long, env = "COPPICE_HISTORY_LIMIT", default_value_t = 10_240, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub history_limit: u64,

    /// Whether the kernel hands requests to the mount over io_uring, which makes commits and reads
    /// of pages faster (Linux 6.14).
    #[arg(long, env = "COPPICE_IO_URING", default_value = "auto", value_name = "WHEN")]
    pub io_uring: IoUring,

    /// PEM file with the certificate chain for TLS; if left out, a CA of the proxy's own signs.
    #[arg(long, env = "COPPICE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert.
    #[arg(long, env = "COPPICE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Domain whose sub-domains are branches: with db.example.com, feature-x.db.example.com is
    /// branch feature-x; if left out, the first label of any host name with a dot may be one.
    #[arg(long, env = "COPPICE_DOMAIN", value_name = "NAME")]
    pub domain: Option<String>,

    /// Branch of connections that name none; without one they are refused, so that a session that
    /// lost its branch on the way through a tool does not land on another one.
    #[arg(long, env = "COPPICE_DEFAULT_BRANCH", value_name = "NAME")]
    pub default_branch: Option<String>,

    /// Add the client's address to application_name, since Postgres itself sees none.
    #[arg(long, env = "COPPICE_APPLICATION_NAME_ADD_HOST")]
    pub application_name_add_host: bool,
}

impl Config {
    /// How many seconds of their past new branches keep that do not say.
    pub fn branch_history_s(&self) -> u64 {
        self.branch_history.unwrap_or_else(|| self.history.min(BRANCH_HISTORY_S))
    }
}

/// Reads a number of bytes with or without a unit: `10MB`, `2GiB`, `4096`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err("write a size such as 512MiB or 8GiB".to_owned()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| "write a size such as 512MiB or 8GiB".to_owned())
}

/// Where things are in a data directory.
pub struct Layout {
    /// Held by the server that uses the directory.
    pub lock: PathBuf,
    /// The API's bearer token.
    pub token: PathBuf,
    /// Catalog and lane files.
    pub store: PathBuf,
    /// Contents of temporary files.
    pub scratch: PathBuf,
    /// Sockets and managed settings of the computes.
    pub run: PathBuf,
    /// What the computes log.
    pub logs: PathBuf,
    /// Default mountpoint of the data directories.
    pub mount: PathBuf,
    /// Mountpoint of their write-ahead logs.
    pub wal_mount: PathBuf,
    /// Numbers of the mounts' connections.
    pub connections: PathBuf,
    /// The proxy's Unix socket.
    pub proxy: PathBuf,
    /// CA of the proxy.
    pub tls: PathBuf,
}

impl Layout {
    /// The places in `data`.
    pub fn of(data: &Path) -> Self {
        Self {
            lock: data.join("lock"),
            token: data.join("api-token"),
            store: data.join("store"),
            scratch: data.join("scratch"),
            run: data.join("run"),
            logs: data.join("logs"),
            mount: data.join("mount"),
            wal_mount: data.join("mount-wal"),
            connections: data.join("connections"),
            proxy: data.join("proxy"),
            tls: data.join("tls"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("10MB", 10_000_000), ("2GiB", 2 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "1XB", "99999999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
