//! The stand-alone proxy: the library, which finds branches over the HTTP API of a page server on
//! this machine.

mod remote;

use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use api::client::{Client, read_token};
use clap::Parser;
use proxy::{Limits, Listeners, LocalListener, Metrics, Routing, Settings, Tls};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::remote::{BEAT, Remote};

/// Routes Postgres connections to the branches of a Coppice server, waking them on demand.
///
/// `pageserver serve` has this proxy built in, on 127.0.0.1:5433. Run it as its own process to
/// serve another address or certificate, or to restart it apart from the server. It reaches each
/// branch's Postgres through a Unix socket, so it has to run on the server's machine, as a user who
/// may open those sockets.
#[derive(Parser)]
#[command(name = "proxy", version, after_long_help = EXAMPLES)]
struct Flags {
    /// Address for Postgres clients.
    #[arg(long, env = "COPPICE_PROXY", default_value = "127.0.0.1:5433", value_name = "ADDR")]
    listen: SocketAddr,

    /// Directory of a Unix socket for clients on this machine, who connect with its path as host;
    /// none if left out.
    #[arg(long, env = "COPPICE_PROXY_SOCKET", value_name = "DIR")]
    listen_socket: Option<PathBuf>,

    /// URL of the server's HTTP API.
    #[arg(long, env = "COPPICE_API", default_value = "http://127.0.0.1:8432", value_name = "URL")]
    api: String,

    /// File with the API token: `api-token` in the server's data directory.
    #[arg(long, env = "COPPICE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// PEM file with the certificate chain for TLS. Without one the proxy signs certificates with a
    /// CA of its own, which clients verify by `ca.crt` in --tls-dir.
    #[arg(long, env = "COPPICE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert.
    #[arg(long, env = "COPPICE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Directory in which the CA of the proxy is made at the first start and kept.
    #[arg(long, env = "COPPICE_TLS_DIR", default_value = "proxy-tls", value_name = "DIR")]
    tls_dir: PathBuf,

    /// Domain whose sub-domains are branches, such as db.example.com for feature-x.db.example.com.
    /// Without one the first label of any host name with a dot is taken for a branch.
    #[arg(long, env = "COPPICE_DOMAIN", value_name = "NAME")]
    domain: Option<String>,

    /// Branch of connections that name none; without one they are refused.
    #[arg(long, env = "COPPICE_DEFAULT_BRANCH", value_name = "NAME")]
    default_branch: Option<String>,

    /// Add the client's address to application_name, since Postgres itself sees none.
    #[arg(long, env = "COPPICE_APPLICATION_NAME_ADD_HOST")]
    application_name_add_host: bool,
}

const EXAMPLES: &str = "\
How a connection names its branch; all of them have to name the same one:
  behind the role       psql 'host=localhost port=5433 user=postgres.feature-x dbname=app'
  host name, over TLS   psql 'host=feature-x.localhost port=5433 sslmode=require user=postgres \
  dbname=app'
  startup option        psql 'host=localhost port=5433 user=postgres dbname=app \
  options=branch=feature/x'
  database name         psql 'host=localhost port=5433 user=postgres dbname=app@feature/x'

Behind a role and in a host name a branch goes by its label, which `branchctl show` prints.
A connection that names no branch is refused unless there is a --default-branch.

Passwords are checked by the branch's own Postgres. Logs go to stderr; RUST_LOG sets their level.
The server's --suspend-after has to be over 10 seconds for sessions of this proxy to keep their \
branch awake.";

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // The process that reads the log may end; that is no reason to stop.
        .log_internal_errors(false)
        .init();
    match serve(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(flags: Flags) -> Result<(), Box<dyn Error>> {
    let domain = flags.domain.as_deref();
    let tls = match (&flags.tls_cert, &flags.tls_key) {
        (Some(cert), Some(key)) => Tls::load(cert, key, domain)?,
        _ => Tls::with_authority(&flags.tls_dir, domain)?,
    };
    let token = flags.token_file.as_deref().map(read_token).transpose()?;
    let backends = Arc::new(Remote::new(Client::new(&flags.api, token)?, BEAT));
    if let Err(error) = proxy::server::raise_file_limit() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let listener = TcpListener::bind(flags.listen).await.map_err(|error| {
        format!(
            "cannot listen on {}: {error}; is another proxy or server using it? --listen takes \
                 another address",
            flags.listen
        )
    })?;
    let port = listener.local_addr()?.port();
    let unix = match flags.listen_socket.as_deref() {
        None => None,
        Some(directory) => {
            let opened = LocalListener::open(directory, port).await;
            let failed =
                |error| format!("cannot make a socket in {}: {error}", directory.display());
            Some(opened.map_err(failed)?)
        }
    };
    let listeners = Listeners { unix, tcp: listener };
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tracing::info!(listen = %listeners.tcp.local_addr()?, api = flags.api, "proxy is ready");
    let routing = Routing {
        default_branch: flags.default_branch,
        application_name_add_host: flags.application_name_add_host,
    };
    let relay = proxy::Relay::start()?;
    let settings = Settings { tls, routing, limits: Limits::default(), relay };
    proxy::run(listeners, settings, backends, Arc::new(Metrics::default()), shutdown).await;
    tracing::info!("proxy stopped");
    Ok(())
}
