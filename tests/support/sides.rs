//! Postgres servers that are compared: what they have in common, how to reach them, and whose turn
//! it is.

use super::{Server, postgres_program};
use pageserver::locks::lock;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Settings of all sides. Autovacuum is off, because that of an idle side would work in the turn of
/// another.
pub const SETTINGS: [(&str, &str); 5] = [
    ("max_connections", "300"),
    ("shared_buffers", "256MB"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "15min"),
    ("autovacuum", "off"),
];
/// The database that all have.
pub const DATABASE: &str = "app";

/// A number from the environment.
///
/// # Panics
/// If it is something else, which would measure what nobody asked for.
pub fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is \"{text}\", which is no number"))
}

/// A program of Postgres. The search for it starts others, which a measurement should not pay for.
fn program(name: &str) -> PathBuf {
    static KNOWN: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut known = lock(&KNOWN);
    known
        .get_or_insert_default()
        .entry(name.to_owned())
        .or_insert_with(|| postgres_program(name))
        .clone()
}

/// One Postgres and the way to it: the same Postgres can be two sides.
#[derive(Clone, Debug)]
pub struct Side {
    /// What it is called in the results.
    pub name: String,
    host: String,
    port: u16,
    password: String,
    database: String,
}

impl Side {
    /// The one whose Unix socket is in `directory`.
    pub fn socket(name: &str, directory: &Path, password: &str) -> Self {
        let host = directory.to_str().expect("a plain path").to_owned();
        Self {
            name: name.into(),
            host,
            port: 5432,
            password: password.into(),
            database: DATABASE.into(),
        }
    }

    /// The one that is reached through `address`, where it is called `database`.
    pub fn tcp(name: &str, address: SocketAddr, database: &str, password: &str) -> Self {
        let (host, port) = (address.ip().to_string(), address.port());
        Self { name: name.into(), host, port, password: password.into(), database: database.into() }
    }

    /// A branch that is awake, directly over its socket.
    pub fn branch(name: &str, server: &Server, branch: &str) -> Self {
        let socket =
            server.client().wake(branch).expect("wake the branch").socket.expect("a socket");
        let directory = Path::new(&socket).parent().expect("the socket's directory");
        Self::socket(name, directory, &branch_password(server, branch))
    }

    /// A branch through the proxy. Without TLS, as the connections that it is compared with.
    pub fn proxied(name: &str, server: &Server, branch: &str) -> Self {
        let database = format!("{DATABASE}@{branch}");
        Self::tcp(name, server.proxy, &database, &branch_password(server, branch))
    }

    /// The same through the proxy's Unix socket.
    pub fn proxied_locally(name: &str, server: &Server, branch: &str) -> Self {
        let directory = server.data().join("proxy").display().to_string();
        Self::proxied(name, server, branch).with_host(&directory)
    }

    /// The directory of its Unix socket.
    pub fn directory(&self) -> &Path {
        Path::new(&self.host)
    }

    /// The password of its superuser.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Another database of it.
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.into(), ..self.clone() }
    }

    /// The same way by another host, or directory of a socket.
    pub fn with_host(&self, host: &str) -> Self {
        Self { host: host.into(), ..self.clone() }
    }

    /// The same way under another name.
    pub fn with_name(&self, name: &str) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// Connects.
    pub fn connect(&self) -> Session {
        let runtime = Builder::new_current_thread().enable_all().build().expect("start a runtime");
        let mut config = tokio_postgres::Config::new();
        config.host(&self.host).port(self.port).user("postgres").password(&self.password);
        config.dbname(&self.database).ssl_mode(tokio_postgres::config::SslMode::Disable);
        let connected = runtime.block_on(config.connect(NoTls));
        let (client, connection) =
            connected.unwrap_or_else(|error| panic!("connect to {}: {error}", self.name));
        runtime.spawn(connection);
        Session { name: self.name.clone(), runtime, client }
    }

    /// Runs one statement; the first value of its first row, if there is one.
    pub fn sql(&self, sql: &str) -> Option<String> {
        self.connect().sql(sql)
    }

    /// How long a statement takes, without the connection.
    pub fn time(&self, sql: &str) -> Duration {
        let session = self.connect();
        let began = Instant::now();
        session.sql(sql);
        began.elapsed()
    }

    /// Runs pgbench; what it printed.
    pub fn pgbench(&self, args: &[&str]) -> String {
        self.pgbench_in(Path::new("."), args)
    }

    /// Runs pgbench in a directory, where it puts its logs.
    pub fn pgbench_in(&self, directory: &Path, args: &[&str]) -> String {
        let mut command = Command::new(program("pgbench"));
        command.args(["-h", &self.host, "-p", &self.port.to_string(), "-U", "postgres"]);
        command
            .env("PGPASSWORD", &self.password)
            .env("PGSSLMODE", "disable")
            .current_dir(directory);
        let output = command.args(args).arg(&self.database).output().expect("run pgbench");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pgbench {} on {}: {said}", args.join(" "), self.name);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs pgbench; transactions per second.
    pub fn tps(&self, args: &[&str]) -> f64 {
        let output = self.pgbench(args);
        // A client whose connection ends early only lowers the figure.
        assert!(
            !output.contains("aborted"),
            "a client of pgbench on {} gave up:\n{output}",
            self.name
        );
        let line =
            output.lines().find_map(|line| line.strip_prefix("tps = ")).expect("a line with tps");
        line.split(' ').next().and_then(|tps| tps.parse().ok()).expect("a number")
    }
}

/// A connection.
pub struct Session {
    name: String,
    runtime: Runtime,
    client: Client,
}

impl Session {
    /// Runs one statement; the first value of its first row, if there is one.
    pub fn sql(&self, sql: &str) -> Option<String> {
        let messages = self.runtime.block_on(self.client.simple_query(sql));
        let messages = messages.unwrap_or_else(|error| panic!("{sql} on {}: {error:?}", self.name));
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }
}

fn branch_password(server: &Server, branch: &str) -> String {
    let url = server.url(branch);
    url.split([':', '@']).nth(2).expect("a password").to_owned()
}

/// Gives a branch, and what is made from it later, the settings of all sides. It is awake then.
pub fn set_up_branch(server: &Server, branch: &str) {
    let side = Side::branch("set up", server, branch);
    for (name, value) in SETTINGS {
        side.sql(&format!("alter system set {name} = '{value}'"));
    }
    server.client().suspend(branch).expect("suspend the branch");
    server.client().wake(branch).expect("wake the branch");
}

/// The order of the sides in a round. Each begins as often as the others, and there and back, so
/// that neither a trend of the machine nor what the one before left behind favours anybody.
pub fn turns(round: usize, sides: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sides).map(|nth| (nth + round / 2) % sides).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// The value in the middle.
///
/// # Panics
/// If there is none.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value below which are so many in a hundred; between two values, in proportion.
///
/// # Panics
/// If there is none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() - 1) * percent;
    let (below, part) = (place / 100, (place % 100) as f64 / 100.0);
    let above = sorted[(below + 1).min(sorted.len() - 1)];
    sorted[below] + (above - sorted[below]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_takes_each_place() {
        for sides in 1..5 {
            for place in 0..sides {
                let mut there: Vec<usize> =
                    (0..2 * sides).map(|round| turns(round, sides)[place]).collect();
                there.sort_unstable();
                assert_eq!(there, (0..2 * sides).map(|nth| nth / 2).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn percentiles_lie_between_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[3.0, 1.0]), 2.0);
        assert_eq!(percentile(&[5.0], 99), 5.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0, 5.0], 100), 5.0);
    }
}
