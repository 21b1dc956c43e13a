//! A running name server, embeddable: several may live in one process on different addresses or ports.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use remoting::http::{self, Health};
use remoting::server::{ServerConfig, serve};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::NamesrvConfig;
use crate::kv_config::{self, KvConfigManager};
use crate::processor::{MAX_WRITES_IN_HAND_BYTES, Processor};
use crate::state::State;

/// Why it did not start: one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("bindAddress: expected an IP address, found `{0}`")]
    BindAddress(String),
    #[error("cannot listen on {address} ({purpose}): {source}")]
    Listen {
        address: SocketAddr,
        purpose: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    KvConfig(#[from] kv_config::Error),
}

pub struct NameServer {
    address: SocketAddr,
    http: Option<http::Server>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

struct Probe(Arc<State>);

impl Health for Probe {
    fn live(&self) -> Result<(), String> {
        Ok(())
    }
    fn ready(&self) -> Result<(), String> {
        self.0.ready()
    }
    fn started(&self) -> Result<(), String> {
        Ok(())
    }
    fn metrics(&self) -> String {
        let sizes = self.0.routes.read().sizes();
        self.0
            .metrics
            .text(sizes, &self.0.config.load().config_hash)
    }
}

impl NameServer {
    /// Listens when it returns. Port 0 in the configuration takes a free one; see [`NameServer::address`].
    pub async fn start(config: NamesrvConfig) -> Result<Self, StartError> {
        let ip: IpAddr = config
            .bind_address
            .parse()
            .map_err(|_| StartError::BindAddress(config.bind_address.clone()))?;
        let address = SocketAddr::new(ip, config.listen_port);
        let http_port = config.http_port;
        let server = ServerConfig {
            max_connections: usize::try_from(config.max_connections).unwrap_or(usize::MAX),
            idle: Duration::from_secs(config.server_channel_max_idle_time_seconds.max(1)),
            ..ServerConfig::default()
        };
        let kv = KvConfigManager::load(&config.kv_config_path)?;
        let listen_error = |source| StartError::Listen {
            address,
            purpose: "listenPort",
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let (state, waiting) = State::new(config, kv);
        let http = match http_port {
            0 => None,
            port => {
                let address = SocketAddr::new(ip, port);
                let started = http::serve(address, Arc::new(Probe(state.clone())));
                Some(started.map_err(|source| StartError::Listen {
                    address,
                    purpose: "httpPort",
                    source,
                })?)
            }
        };
        let shutdown = CancellationToken::new();
        let processor = Arc::new(Processor {
            in_hand: Arc::new(Semaphore::new(MAX_WRITES_IN_HAND_BYTES)),
            state: state.clone(),
        });
        let token = shutdown.clone();
        let accept = tokio::spawn(async move {
            if let Err(e) = serve(listener, server, processor, token).await {
                tracing::error!("the listener failed: {e}");
            }
        });
        let tasks = vec![
            accept,
            tokio::spawn(state.clone().run_unregistrations(waiting, shutdown.clone())),
            tokio::spawn(state.run_scan(shutdown.clone())),
        ];
        Ok(Self {
            address,
            http,
            shutdown,
            tasks,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/livez`, `/readyz` and `/metrics` are, unless switched off.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(http::Server::address)
    }

    /// Closes every connection and waits for every task.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            if let Err(e) = task.await {
                tracing::error!("a task of the name server failed: {e}");
            }
        }
        drop(self.http);
    }
}
