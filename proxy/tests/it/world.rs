//! A proxy in front of the servers, and ways to talk to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proxy::{
    Backends, Limits, Listeners, Metrics, Refusal, Relay, Routing, Selector, Settings, Target, Tls,
    Upstream,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Error, NoTls};

use crate::postgres::{Cluster, PASSWORD, PATIENCE, bin};

/// A running proxy.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) branches: Arc<Branches>,
    pub(crate) certificate: PathBuf,
    /// Where its certificate and its Unix socket are.
    pub(crate) dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

/// The branches: `main` (the default) and `feature/x` run; `asleep` never wakes; `broken` has no
/// Postgres.
pub(crate) struct Branches {
    cluster: Arc<Cluster>,
    /// Leases held now.
    pub(crate) leases: Arc<AtomicUsize>,
    /// Callers that wait for `asleep` now.
    pub(crate) waiting: Arc<AtomicUsize>,
}

/// Counts itself while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backends for Branches {
    async fn find(&self, selectors: Vec<Selector>) -> Result<Vec<Option<String>>, Refusal> {
        let means = |selector| match selector {
            Selector::Label(name) | Selector::Name(name) => match name.as_str() {
                "feature-x" => Some("feature/x".to_owned()),
                "main" | "feature/x" | "broken" | "asleep" => Some(name),
                _ => None,
            },
        };
        Ok(selectors.into_iter().map(means).collect())
    }

    async fn acquire(&self, target: &Target) -> Result<Upstream, Refusal> {
        let name = target.branch.as_str();
        let socket = match name {
            "main" => self.cluster.socket("main"),
            "feature/x" => self.cluster.socket("feature"),
            "broken" => self.cluster.socket("nowhere"),
            "asleep" => {
                let _waiting = Counted::new(&self.waiting);
                std::future::pending().await
            }
            _ => return Err(Refusal::new("3D000", format!("there is no {name}"))),
        };
        Ok(Upstream::new(name.to_owned(), socket, Counted::new(&self.leases)))
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        Self::under(None, limits).await
    }

    /// A proxy whose branches have host names under `domain`.
    pub(crate) async fn under(domain: Option<&str>, limits: Limits) -> Self {
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        let start = STARTS.fetch_add(1, Ordering::SeqCst);
        let dir =
            std::env::temp_dir().join(format!("coppice-world-{}-{start}", std::process::id()));
        let tls = Tls::with_authority(&dir, domain).unwrap();
        let branches = Arc::new(Branches {
            cluster: tokio::task::spawn_blocking(Cluster::shared).await.unwrap(),
            leases: Arc::default(),
            waiting: Arc::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let unix = proxy::LocalListener::open(&dir, address.port()).await.unwrap();
        let listeners = Listeners { tcp: listener, unix: Some(unix) };
        let (to, metered) = (Arc::clone(&branches), Arc::clone(&metrics));
        let routing = Routing { default_branch: Some("main".to_owned()), ..Routing::default() };
        let settings = Settings { tls, routing, limits, relay: Relay::start().unwrap() };
        let work = proxy::run(listeners, settings, to, metered, shutdown);
        Self {
            address,
            metrics,
            branches,
            certificate: dir.join("ca.crt"),
            dir,
            stop: Some(stop),
            running: Some(tokio::spawn(work)),
        }
    }

    /// Asks the proxy to stop, and returns what ends when it has.
    pub(crate) fn stop(&mut self) -> JoinHandle<()> {
        self.stop.take().unwrap().send(()).unwrap();
        self.running.take().unwrap()
    }

    /// Runs `sql` with psql; `conninfo` is added to what every connection here needs.
    pub(crate) async fn psql(&self, conninfo: &str, sql: &str) -> Output {
        let base =
            format!("host=localhost hostaddr=127.0.0.1 port={} user=postgres", self.address.port());
        let mut psql = Command::new(bin("psql"));
        psql.args([
            "-qXAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &format!("{base} dbname=app {conninfo}"),
        ]);
        psql.env("PGPASSWORD", PASSWORD).kill_on_drop(true);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let sql = sql.to_owned();
        // A psql that cannot connect does not read its input.
        let feed = tokio::spawn(async move { input.write_all(sql.as_bytes()).await });
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("psql ends").unwrap();
        drop(feed.await);
        output
    }

    /// Connects with tokio-postgres, without TLS.
    pub(crate) async fn connect(&self, database: &str, password: &str) -> Result<Client, Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.address.port()).user("postgres").dbname(database);
        let (client, connection) = config.password(password).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A connection that says nothing yet.
    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes` and returns everything that comes back until the proxy closes.
    pub(crate) async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut socket = self.dial().await;
        socket.write_all(bytes).await.unwrap();
        read_all(&mut socket).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A startup packet of protocol 3.`minor`.
pub(crate) fn startup(minor: u8, params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, minor];
    for (name, value) in params {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes()[..], &body].concat()
}

pub(crate) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    read.expect("the proxy closes").expect("it closes without a reset");
    bytes
}

/// Reads one message of a server.
pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let read = async {
        let kind = stream.read_u8().await.unwrap();
        let length = stream.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await.unwrap();
        (kind, body)
    };
    timeout(PATIENCE, read).await.expect("a message comes")
}

/// The SQLSTATE and the text of `bytes`, which have to be one fatal error and nothing else.
pub(crate) fn fatal(bytes: &[u8]) -> (String, String) {
    assert_eq!(bytes.first(), Some(&b'E'), "{}", bytes.escape_ascii());
    let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
    assert_eq!(length + 1, bytes.len(), "{}", bytes.escape_ascii());
    let field = |code: u8| {
        let mut fields = bytes[5..].split(|byte| *byte == 0);
        let field = fields.find(|field| field.first() == Some(&code)).unwrap_or_default();
        String::from_utf8(field.get(1..).unwrap_or_default().to_vec()).unwrap()
    };
    assert_eq!(field(b'S'), "FATAL");
    (field(b'C'), format!("{}\n{}", field(b'M'), field(b'H')))
}

/// Waits until `done`.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
