//! What these tests share: servers in this process, and calls over real sockets.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{Broker, BrokerConfig};
use namesrv::{NameServer, NamesrvConfig};
use remoting::protocol::{RemotingCommand, SerializeType, request_code};
use remoting::{ClientConfig, RemotingClient};

/// Longest wait for anything; reached only by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn name_server(folder: &Path) -> NameServer {
    let config = NamesrvConfig {
        bind_address: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        kv_config_path: folder.join("kvConfig.json"),
        ..NamesrvConfig::default()
    };
    NameServer::start(config).await.unwrap()
}

/// A broker with small files and ports of its own.
pub(crate) fn small(store: &Path) -> BrokerConfig {
    BrokerConfig {
        broker_cluster_name: "test".to_owned(),
        bind_address: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        store_path_root_dir: store.to_string_lossy().into_owned(),
        mapped_file_size_commit_log: 1 << 20,
        mapped_file_size_consume_queue: 20_000,
        max_hash_slot_num: 1_000,
        max_index_num: 4_000,
        tail_ring_bytes: 1 << 20,
        shutdown_drain_ms: 200,
        ..BrokerConfig::default()
    }
}

pub(crate) async fn start(config: BrokerConfig) -> Arc<Broker> {
    Broker::start(config.validate().unwrap()).await.unwrap()
}

pub(crate) struct Client {
    pub(crate) client: RemotingClient,
    pub(crate) address: String,
}

impl Client {
    pub(crate) fn of(broker: &Broker) -> Self {
        Self::at(broker.listen_address(), SerializeType::Json)
    }

    pub(crate) fn at(address: SocketAddr, serialize_type: SerializeType) -> Self {
        let config = ClientConfig {
            serialize_type,
            ..ClientConfig::default()
        };
        Self {
            client: RemotingClient::new(config),
            address: address.to_string(),
        }
    }

    pub(crate) async fn call(&self, command: RemotingCommand) -> RemotingCommand {
        self.client
            .invoke(&self.address, command, PATIENCE)
            .await
            .unwrap()
    }
}

/// SEND_MESSAGE_V2; a topic that is not there yet gets so many queues.
pub(crate) fn message(
    topic: &str,
    queue: i32,
    queues: i32,
    properties: &str,
    body: &[u8],
) -> RemotingCommand {
    RemotingCommand::request(request_code::SEND_MESSAGE_V2)
        .with_ext("a", "producers")
        .with_ext("b", topic)
        .with_ext("c", "TBW102")
        .with_ext("d", queues.to_string())
        .with_ext("e", queue.to_string())
        .with_ext("f", "0")
        .with_ext("g", "1700000000000")
        .with_ext("h", "7")
        .with_ext("i", properties)
        .with_ext("j", "0")
        .with_ext("k", "false")
        .with_ext("m", "false")
        .with_body(body.to_vec())
}

/// PULL_MESSAGE of up to 32, which waits so long where there is nothing yet.
pub(crate) fn pull(
    group: &str,
    topic: &str,
    queue: i32,
    offset: i64,
    expression: &str,
    suspend_ms: u64,
) -> RemotingCommand {
    let suspend = if suspend_ms > 0 { 2 } else { 0 };
    RemotingCommand::request(request_code::PULL_MESSAGE)
        .with_ext("consumerGroup", group)
        .with_ext("topic", topic)
        .with_ext("queueId", queue.to_string())
        .with_ext("queueOffset", offset.to_string())
        .with_ext("maxMsgNums", "32")
        .with_ext("sysFlag", (4 | suspend).to_string())
        .with_ext("commitOffset", "0")
        .with_ext("suspendTimeoutMillis", suspend_ms.to_string())
        .with_ext("subscription", expression)
        .with_ext("subVersion", "0")
        .with_ext("expressionType", "TAG")
}
