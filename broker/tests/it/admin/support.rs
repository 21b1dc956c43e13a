use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{Broker, BrokerConfig, Settings};
use bytes::Bytes;
use parking_lot::Mutex;
use remoting::protocol::body::{ConsumerData, HeartbeatData, ProducerData, SubscriptionData};
use remoting::protocol::message::RecordView;
use remoting::protocol::{RemotingCommand, json, request_code as code, response_code};
use remoting::{ClientConfig, RemotingClient, Resolver};
use serde_json::Value;
use store::{Clock, SystemClock};
use tempfile::TempDir;

use crate::support::{PATIENCE, message, pull, small, until};

pub(crate) struct Rig {
    pub(crate) broker: Arc<Broker>,
    pub(crate) folder: TempDir,
    pub(crate) admin: Client,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change).await
    }

    pub(crate) async fn start_in(folder: TempDir, change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let mut config = config_in(&folder);
        change(&mut config);
        Self::start_as(folder, config.validate().unwrap()).await
    }

    /// With the text of a `-c` file, which the broker may write back.
    pub(crate) async fn start_with_file(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.conf");
        std::fs::write(&path, text).unwrap();
        let mut config = config_in(&folder);
        config.apply_file(&path, text.as_bytes()).unwrap();
        let mut settings = config.validate().unwrap();
        settings.config_path = Some(path);
        Self::start_as(folder, settings).await
    }

    /// On a clock that is ahead of the machine's.
    pub(crate) async fn start_ahead(
        folder: TempDir,
        ahead: Duration,
        change: impl FnOnce(&mut BrokerConfig),
    ) -> Self {
        let mut config = config_in(&folder);
        change(&mut config);
        let settings = config.validate().unwrap();
        Self::start_on(folder, settings, Arc::new(Ahead(ahead))).await
    }

    async fn start_as(folder: TempDir, settings: Settings) -> Self {
        Self::start_on(folder, settings, Arc::new(SystemClock)).await
    }

    /// With file operations that a test can make fail.
    pub(crate) async fn start_on_disk(
        disk: Arc<dyn store::Disk>,
        change: impl FnOnce(&mut BrokerConfig),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config_in(&folder);
        change(&mut config);
        let settings = config.validate().unwrap();
        let broker = Broker::start_on_disk(settings, Arc::new(SystemClock), disk).await;
        Self::of(broker.unwrap(), folder)
    }

    async fn start_on(folder: TempDir, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let broker = Broker::start_with_clock(settings, clock).await;
        Self::of(broker.unwrap(), folder)
    }

    fn of(broker: Arc<Broker>, folder: TempDir) -> Self {
        let admin = Client::new(broker.listen_address());
        Self {
            broker,
            folder,
            admin,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.broker.listen_address())
    }

    /// Stops the broker in order and gives its folder back.
    pub(crate) async fn stop(self) -> TempDir {
        self.admin.remoting.shutdown().await;
        self.broker.shutdown().await;
        self.folder
    }
}

fn config_in(folder: &TempDir) -> BrokerConfig {
    BrokerConfig {
        broker_cluster_name: BrokerConfig::default().broker_cluster_name,
        broker_name: "broker-a".to_owned(),
        mapped_file_size_consume_queue: 6_000,
        shutdown_drain_ms: 0,
        ..small(&folder.path().join("store"))
    }
}

struct Ahead(Duration);

impl Clock for Ahead {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() + i64::try_from(self.0.as_millis()).unwrap()
    }
}

/// A client with a connection of its own; what the broker asks it is kept and answered by `answers`.
pub(crate) struct Client {
    pub(crate) remoting: RemotingClient,
    address: String,
    asked: Arc<Mutex<Vec<RemotingCommand>>>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let resolver = Resolver::with_hosts_file("/dev/null");
        let remoting = RemotingClient::new(ClientConfig {
            resolver,
            ..ClientConfig::default()
        });
        let asked = Arc::new(Mutex::new(Vec::new()));
        let client = Self {
            remoting,
            address: address.to_string(),
            asked,
        };
        client.answers(|_| None);
        client
    }

    pub(crate) fn answers(
        &self,
        answer: impl Fn(&RemotingCommand) -> Option<RemotingCommand> + Send + Sync + 'static,
    ) {
        let asked = Arc::clone(&self.asked);
        self.remoting.set_handler(move |_, request| {
            let reply = answer(&request);
            asked.lock().push(request);
            reply
        });
    }

    /// Requests of this code that the broker has sent here.
    pub(crate) fn asked(&self, code: i32) -> Vec<RemotingCommand> {
        self.asked
            .lock()
            .iter()
            .filter(|request| request.code == code)
            .cloned()
            .collect()
    }

    pub(crate) async fn until_asked(&self, code: i32, times: usize) {
        until(&format!("{times} requests {code}"), || {
            self.asked(code).len() >= times
        })
        .await;
    }

    pub(crate) async fn send(&self, request: RemotingCommand) -> RemotingCommand {
        self.remoting
            .invoke(&self.address, request, PATIENCE)
            .await
            .unwrap()
    }

    pub(crate) async fn call(&self, code: i32, fields: &[(&str, &str)]) -> RemotingCommand {
        self.send(request(code, fields)).await
    }

    /// The same, and it must succeed.
    pub(crate) async fn ok(&self, code: i32, fields: &[(&str, &str)]) -> RemotingCommand {
        let answer = self.call(code, fields).await;
        assert_eq!(
            answer.code,
            response_code::SUCCESS,
            "{code} {fields:?}: {:?}",
            answer.remark
        );
        answer
    }

    /// The same, with a JSON body in its answer.
    pub(crate) async fn ok_json(&self, code: i32, fields: &[(&str, &str)]) -> Value {
        value(&self.ok(code, fields).await)
    }

    pub(crate) async fn with_body(&self, code: i32, body: impl Into<Bytes>) -> RemotingCommand {
        self.send(RemotingCommand::request(code).with_body(body))
            .await
    }

    pub(crate) async fn heartbeat(&self, heartbeat: &HeartbeatData) {
        let answer = self
            .send(RemotingCommand::request(code::HEART_BEAT).json_body(heartbeat))
            .await;
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
    }

    pub(crate) async fn create_topic(&self, topic: &str, queues: i32) {
        let queues = queues.to_string();
        let fields = [
            ("topic", topic),
            ("readQueueNums", &queues),
            ("writeQueueNums", &queues),
            ("perm", "6"),
            ("defaultTopic", "TBW102"),
        ];
        self.ok(code::UPDATE_AND_CREATE_TOPIC, &fields).await;
    }

    pub(crate) async fn create_group(&self, group: &str) {
        let answer = self
            .with_body(
                code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
                format!(r#"{{"groupName":"{group}"}}"#),
            )
            .await;
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
    }

    /// Sends one message and answers its id and queue offset.
    pub(crate) async fn produce(
        &self,
        topic: &str,
        queue_id: i32,
        body: &str,
        properties: &str,
    ) -> (String, i64) {
        let message = message(topic, queue_id, 4, properties, body.as_bytes());
        let answer = self.send(message).await;
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        (
            answer.ext("msgId").unwrap().to_owned(),
            answer.ext("queueOffset").unwrap().parse().unwrap(),
        )
    }

    /// One pull without waiting.
    pub(crate) async fn pull(
        &self,
        group: &str,
        topic: &str,
        queue_id: i32,
        offset: i64,
    ) -> RemotingCommand {
        self.send(pull(group, topic, queue_id, offset, "*", 0))
            .await
    }

    /// Pulls again and again until the record at `offset` is there.
    pub(crate) async fn until_pulled(
        &self,
        group: &str,
        topic: &str,
        queue_id: i32,
        offset: i64,
    ) -> Bytes {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.pull(group, topic, queue_id, offset).await;
            if answer.code == response_code::SUCCESS && !answer.body.is_empty() {
                return answer.body;
            }
            assert!(
                Instant::now() < deadline,
                "nothing at {topic} {queue_id} {offset}: {:?}",
                answer.remark
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn request(code: i32, fields: &[(&str, &str)]) -> RemotingCommand {
    fields
        .iter()
        .fold(RemotingCommand::request(code), |request, (name, value)| {
            request.with_ext(*name, *value)
        })
}

pub(crate) fn value(answer: &RemotingCommand) -> Value {
    json::parse(&answer.body).unwrap()
}

pub(crate) fn consumer(client_id: &str, group: &str, topics: &[&str]) -> HeartbeatData {
    let subscription = |topic: &&str| SubscriptionData {
        topic: (*topic).to_owned(),
        sub_string: "*".to_owned(),
        expression_type: "TAG".to_owned(),
        sub_version: 1_700_000_000_000,
        ..SubscriptionData::default()
    };
    let data = ConsumerData {
        group_name: group.to_owned(),
        subscription_data_set: topics.iter().map(subscription).collect(),
        ..ConsumerData::default()
    };
    HeartbeatData {
        client_id: client_id.to_owned(),
        consumer_data_set: vec![data],
        ..HeartbeatData::default()
    }
}

pub(crate) fn producer(client_id: &str, group: &str) -> HeartbeatData {
    let data = ProducerData {
        group_name: group.to_owned(),
    };
    HeartbeatData {
        client_id: client_id.to_owned(),
        producer_data_set: vec![data],
        ..HeartbeatData::default()
    }
}

pub(crate) fn property(record: &RecordView<'_>, name: &str) -> Option<String> {
    record
        .property(name)
        .map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// Asserts that `ours` has the members that the recorded body of this code has, at every depth, with values of the same
/// kind. Where a list or a map with names of its own has entries on both sides, their first ones are compared.
pub(crate) fn assert_recorded_shape(code: i32, recorded: &str, ours: &Value) {
    let recorded = json::parse(recorded.as_bytes()).unwrap();
    compare(&format!("{code}"), &recorded, ours);
}

/// Members whose values are maps with names of their own: topics, groups, queues, client ids.
const OPEN_MAPS: [&str; 9] = [
    "offsetTable",
    "subscriptionTable",
    "consumerTable",
    "messageQueueTable",
    "data",
    "groupTopicMap",
    "messageRequestModeMap",
    "attributes",
    "T@G",
];

fn compare(path: &str, recorded: &Value, ours: &Value) {
    match (recorded, ours) {
        (Value::Object(theirs), Value::Object(own)) => {
            let last = path.rsplit('/').next().unwrap_or_default();
            if OPEN_MAPS.contains(&last) || path.contains("consumerTable/") {
                if let (Some(theirs), Some(own)) = (theirs.values().next(), own.values().next()) {
                    compare(&format!("{path}/*"), theirs, own);
                }
                return;
            }
            let names =
                |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
            let missing: Vec<_> = names(theirs).difference(&names(own)).cloned().collect();
            assert!(missing.is_empty(), "{path} lacks {missing:?}: {ours}");
            for (name, theirs) in theirs {
                compare(&format!("{path}/{name}"), theirs, &own[name]);
            }
        }
        (Value::Array(theirs), Value::Array(own)) => {
            if let (Some(theirs), Some(own)) = (theirs.first(), own.first()) {
                compare(&format!("{path}/0"), theirs, own);
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(recorded),
            std::mem::discriminant(ours),
            "{path}: recorded {recorded}, ours {ours}"
        ),
    }
}

/// The body recorded for a request code.
macro_rules! recorded {
    ($code:literal) => {
        (
            $code,
            include_str!(concat!("fixtures/", stringify!($code), ".json")),
        )
    };
}
pub(crate) use recorded;
