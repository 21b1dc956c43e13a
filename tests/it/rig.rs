//! A name server and a broker in this process, on ports of their own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::{Broker, BrokerConfig};
use namesrv::{NameServer, NamesrvConfig};
use remoting::{Admin, ClientConfig, RemotingClient, RemotingCommand};

/// More than any call takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// `broker-a` on a free port, with its store in `folder`.
pub(crate) fn broker_config(name_server: &NameServer, folder: &Path) -> BrokerConfig {
    BrokerConfig {
        broker_name: "broker-a".to_owned(),
        namesrv_addr: name_server.address().to_string(),
        bind_address: "127.0.0.1".to_owned(),
        broker_ip1: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        store_path_root_dir: folder.join("store").display().to_string(),
        mapped_file_size_commit_log: 64 * 1024 * 1024,
        shutdown_drain_ms: 0,
        ..BrokerConfig::default()
    }
}

pub(crate) struct Rig {
    pub(crate) name_server: NameServer,
    pub(crate) broker: Arc<Broker>,
    pub(crate) client: RemotingClient,
    pub(crate) admin: Admin,
    _folder: tempfile::TempDir,
}

impl Rig {
    /// Both running, and the broker registered.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name_server = NameServer::start(NamesrvConfig {
            bind_address: "127.0.0.1".to_owned(),
            listen_port: 0,
            http_port: 0,
            kv_config_path: folder.path().join("kvConfig.json"),
            config_store_path: folder.path().join("namesrv.properties"),
            ..NamesrvConfig::default()
        })
        .await
        .unwrap();
        let mut config = broker_config(&name_server, folder.path());
        change(&mut config);
        let broker = Broker::start(config.validate().unwrap()).await.unwrap();
        let client = RemotingClient::new(ClientConfig::default());
        let admin =
            Admin::new(client.clone(), name_server.address().to_string()).with_timeout(PATIENCE);
        let rig = Self {
            name_server,
            broker,
            client,
            admin,
            _folder: folder,
        };
        rig.until_registered().await;
        rig
    }

    pub(crate) fn broker_address(&self) -> String {
        self.broker.listen_address().to_string()
    }

    pub(crate) async fn ask_broker(&self, request: RemotingCommand) -> RemotingCommand {
        self.client
            .invoke(&self.broker_address(), request, PATIENCE)
            .await
            .unwrap()
    }

    /// Each round trip lets the registration go on.
    async fn until_registered(&self) {
        let registered = async {
            while self
                .admin
                .cluster_info()
                .await
                .unwrap()
                .broker_addr_table
                .is_empty()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, registered).await.unwrap();
    }

    pub(crate) async fn stop(self) {
        self.client.shutdown().await;
        self.broker.shutdown().await;
        self.name_server.shutdown().await;
    }
}
