//! The whole server: `start` takes the first steps, `wiring` puts the parts together, `duties`
//! lists what the server does by itself, and [`run`] runs all of it and stops it.
//!
//! Stopping goes from the outside in: no new clients, no Postgres, no jobs, no mount, and then the
//! store is closed.

mod duties;
mod start;
mod tls;
mod wiring;

use crate::api::{self, Token};
use crate::config::{Config, Layout, PROXY_GRACE};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use wiring::{Running, stage};

pub use start::{lock_data, lock_data_if_used, open_disk, open_disk_read_only, random_number};

/// Where clients come in.
struct Listeners {
    api: TcpListener,
    proxy: proxy::Listeners,
    api_address: SocketAddr,
    proxy_address: SocketAddr,
}

impl Listeners {
    async fn open(config: &Config, layout: &Layout) -> Result<Self> {
        let api = start::bind(config.api, "API", "--api").await?;
        let api_address = api.local_addr().map_err(|e| Error::io("read the API's address", &e))?;
        let tcp = start::bind(config.proxy, "proxy", "--proxy").await?;
        let proxy_address =
            tcp.local_addr().map_err(|e| Error::io("read the proxy's address", &e))?;
        let unix = proxy::LocalListener::open(&layout.proxy, proxy_address.port()).await;
        let unix = unix.map_err(|e| {
            Error::io(format!("make the proxy's socket in {}", layout.proxy.display()), &e)
        })?;
        let proxy = proxy::Listeners { unix: Some(unix), tcp };
        Ok(Self { api, proxy, api_address, proxy_address })
    }
}

/// Runs the server until `shutdown` is ready, then stops it cleanly.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<()> {
    let data =
        std::path::absolute(&config.data).map_err(|e| Error::io("find the data directory", &e))?;
    let config = Config { data, ..config };
    let layout = Layout::of(&config.data);
    // A session takes two, an open timeline a few.
    proxy::server::raise_file_limit()
        .map_err(|e| Error::io("raise the limit of open files", &e))?;
    let _lock = lock_data(&config.data)?;
    let listeners = Listeners::open(&config, &layout).await?;
    let token = Token::load_or_create(&layout.token)?;
    let tls = tls::load(&config, &layout)?;
    let relay = proxy::Relay::start().map_err(|e| Error::io("start the proxy's threads", &e))?;
    let public = start::public_address(config.public_address.as_deref(), listeners.proxy_address);
    let ca_file = tls.ca_file().map(Path::to_owned);
    let running = Running::start(&config, &layout, (public, ca_file)).await?;
    if let Err(error) = duties::start(&running, &config) {
        // What is mounted by now would stay, dead, until the next start.
        let stopped = running.stop().await;
        stopped.unwrap_or_else(|error| tracing::error!(%error, "the server did not stop cleanly"));
        return Err(error);
    }

    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let proxy_metrics = Arc::new(proxy::Metrics::default());
    let router = api::router(Arc::new(running.app(Arc::clone(&proxy_metrics))), token);
    let api = tokio::spawn(api::serve(listeners.api, router, until(stopped.clone())));
    let limits = proxy::Limits { grace: PROXY_GRACE, ..proxy::Limits::default() };
    let routing = proxy::Routing {
        default_branch: config.default_branch.clone(),
        application_name_add_host: config.application_name_add_host,
    };
    let settings = proxy::Settings { tls, routing, limits, relay };
    let gateway = Arc::new(Gateway(Arc::clone(&running.branches)));
    let proxy = proxy::run(listeners.proxy, settings, gateway, proxy_metrics, until(stopped));
    let proxy = tokio::spawn(proxy);
    tracing::info!(
        api = %listeners.api_address, proxy = %listeners.proxy_address,
        data = %config.data.display(), "ready"
    );

    shutdown.await;
    tracing::info!("stopping");
    stop.send_replace(true);
    // Each client gets the farewell of its own Postgres while the proxy waits for its sessions.
    stage("computes", running.supervisor.stop_all()).await;
    let _ = stage("sessions of the proxy", proxy).await;
    let _ = stage("requests to the API", api).await;
    running.stop().await?;
    tracing::info!("stopped");
    Ok(())
}
