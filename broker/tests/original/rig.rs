//! Servers of both kinds as processes, and what a client asks of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use namesrv::{NameServer, NamesrvConfig};
use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::body::{ConsumerOffsetSerializeWrapper, SubscriptionGroupConfig};
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, json, request_code, response_code};

pub(crate) const QUEUES: i32 = 4;
pub(crate) const TOPIC: &str = "Moved";
pub(crate) const GROUP: &str = "movers";
/// The level that is delivered within a scenario: see `messageDelayLevel` in [`Scene::conf`].
pub(crate) const DELAY_LEVEL: i32 = 2;
/// JVMs start and synchronise slowly, several of them on a small machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const JVM: &[&str] = &[
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xms64m",
    "-Xmx384m",
    "-XX:MaxDirectMemorySize=512m",
];
/// Files without which the original's programs print to their terminals, or nothing at all.
const LOG_CONFIGS: &[&str] = &[
    "logback_broker.xml",
    "rmq.broker.logback.xml",
    "logback_tools.xml",
    "rmq.tools.logback.xml",
];

pub(crate) struct Scene {
    pub(crate) name: String,
    pub(crate) jars: Arc<PathBuf>,
    /// Ours listen on a loopback address of this scene.
    pub(crate) host: String,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) admin: Admin,
}

impl Scene {
    pub(crate) fn new(name: &str, number: u32, jars: &Arc<PathBuf>) -> Self {
        let process = std::process::id();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("conf")).unwrap();
        for file in LOG_CONFIGS {
            let silent = "<configuration><root level=\"OFF\"/></configuration>\n";
            fs::write(folder.path().join("conf").join(file), silent).unwrap();
        }
        Self {
            name: name.to_owned(),
            jars: Arc::clone(jars),
            host: format!(
                "127.{}.{}.{}",
                50 + number,
                process / 250 % 250,
                process % 250 + 1
            ),
            folder,
            admin: Admin::new(RemotingClient::default(), ""),
        }
    }

    pub(crate) async fn name_server(&self) -> NameServer {
        NameServer::start(NamesrvConfig {
            bind_address: self.host.clone(),
            listen_port: 0,
            http_port: 0,
            kv_config_path: self.folder.path().join("kvConfig.json"),
            config_store_path: self.folder.path().join("namesrv.properties"),
            ..NamesrvConfig::default()
        })
        .await
        .unwrap()
    }

    /// A file as the original's users have it; `more` ends it.
    pub(crate) fn conf(
        &self,
        node: &str,
        group: &str,
        address: &str,
        names: &NameServer,
        more: &str,
    ) -> PathBuf {
        let (host, port) = address.rsplit_once(':').unwrap();
        let path = self.folder.path().join(format!("{node}.conf"));
        let store = self.folder.path().join(node);
        fs::write(
            &path,
            format!(
                "brokerClusterName=mixed\nbrokerName={group}\nbrokerIP1={host}\nlistenPort={port}\nnamesrvAddr={}\n\
                 storePathRootDir={}\nstorePathCommitLog={}\nmappedFileSizeCommitLog=1048576\nslaveReadEnable=true\n\
                 messageDelayLevel=1s 20s 30s\nhaHousekeepingInterval=20000\n{more}",
                names.address(),
                store.display(),
                store.join("commitlog").display(),
            ),
        )
        .unwrap();
        path
    }

    pub(crate) fn java(&self, version: &str) -> Command {
        let mut command = Command::new("java");
        command
            .args(JVM)
            .arg(format!("-Duser.home={}", self.folder.path().display()))
            .arg(format!(
                "-Drocketmq.home.dir={}",
                self.folder.path().display()
            ))
            .arg("-cp")
            .arg(format!("{}/{version}/lib/*", self.jars.display()));
        command
    }

    pub(crate) fn start_java(&self, version: &str, conf: &Path) -> Node {
        let mut command = self.java(&format!("servers-{version}"));
        command
            .arg("org.apache.rocketmq.broker.BrokerStartup")
            .arg("-c")
            .arg(conf);
        Node::start(command, conf)
    }

    pub(crate) fn start_ours(&self, conf: &Path) -> Node {
        let mut command = Command::new(mqbroker());
        command.arg("-c").arg(conf).env_remove("NAMESRV_ADDR");
        Node::start(command, conf)
    }

    /// A port for a server of the original, which may listen on every address: with its neighbours free there, never handed out
    /// before, and below those that the system gives to connections.
    pub(crate) fn java_address(&self) -> String {
        static TURN: AtomicU32 = AtomicU32::new(0);
        const STEP: u32 = 10;
        const PORTS: std::ops::Range<u32> = 20_000..32_000;
        let begin = std::process::id() * STEP * 7;
        loop {
            let turn = TURN.fetch_add(1, Ordering::Relaxed);
            let at = (begin + turn * STEP) % (PORTS.end - PORTS.start - STEP);
            let port = u16::try_from(PORTS.start + STEP + at).unwrap();
            let free = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).is_ok();
            if (port - 2..=port + 1).all(free) {
                return format!("127.0.0.1:{port}");
            }
        }
    }

    pub(crate) fn our_address(&self, port: u16) -> String {
        format!("{}:{port}", self.host)
    }

    /// What only ours read.
    pub(crate) fn only_ours(&self) -> String {
        format!("bindAddress={}\nhttpPort=0\n", self.host)
    }
}

pub(crate) fn mqbroker() -> PathBuf {
    match std::env::var_os("ROCKETCLUSTER_BIN") {
        Some(folder) => PathBuf::from(folder).join("mqbroker"),
        None => PathBuf::from(env!("CARGO_BIN_EXE_mqbroker")),
    }
}

/// A server's process; a scenario that fails leaves none behind.
pub(crate) struct Node(Child);

impl Node {
    fn start(mut command: Command, conf: &Path) -> Self {
        let log = File::create(conf.with_extension("log")).unwrap();
        Self(
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap(),
        )
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Blocks until somebody else ended it.
    pub(crate) fn wait(mut self) {
        self.0.wait().unwrap();
    }

    /// As an operator stops it; waits for its end.
    pub(crate) async fn stop(mut self) {
        let id = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        until("the server ended", async || {
            self.0.try_wait().unwrap().is_some()
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) fn send(topic: &str, queue: i32, body: &str, properties: &str) -> RemotingCommand {
    RemotingCommand::request(request_code::SEND_MESSAGE)
        .with_header(&SendMessageRequestHeader {
            producer_group: "producers".into(),
            topic: topic.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: QUEUES,
            queue_id: queue,
            properties: Some(properties.into()),
            ..SendMessageRequestHeader::default()
        })
        .with_body(body.as_bytes().to_vec())
}

impl Scene {
    /// Sends that are repeated until they are taken: a broker begins to serve before its topics are there.
    pub(crate) async fn sent(&self, address: &str, queue: i32, body: &str, properties: &str) {
        until(&format!("{body} taken by {address}"), async || {
            let answer = self
                .admin
                .invoke(address, send(TOPIC, queue, body, properties));
            answer.await.is_ok_and(|a| a.code == response_code::SUCCESS)
        })
        .await;
    }

    /// Messages of several files of the log, one that is delayed, a group and what it consumed, and a topic without messages.
    pub(crate) async fn fill(&self, address: &str, name: &str, count: i32) {
        let topic = remoting::protocol::body::TopicConfig::new(TOPIC, QUEUES, 6);
        let empty = remoting::protocol::body::TopicConfig::new(format!("Empty{name}"), 3, 6);
        for topic in [topic, empty] {
            until("a topic", async || {
                self.admin.create_topic(address, &topic).await.is_ok()
            })
            .await;
        }
        let group = SubscriptionGroupConfig {
            retry_max_times: 7,
            ..SubscriptionGroupConfig::new(GROUP)
        };
        self.admin
            .create_subscription_group(address, &group)
            .await
            .unwrap();
        for n in 0..count {
            let body = format!("{name}-{n}-{}", "x".repeat(2_000));
            let properties = format!("KEYS\u{1}{name}{n}\u{2}TAGS\u{1}a\u{2}");
            self.sent(address, n % QUEUES, &body, &properties).await;
        }
        let delayed = format!("DELAY\u{1}{DELAY_LEVEL}\u{2}");
        self.sent(address, 0, &format!("{name}-delayed"), &delayed)
            .await;
        for queue in 0..QUEUES {
            let offset = i64::from(queue) + 3;
            self.admin
                .update_consumer_offset(address, GROUP, TOPIC, queue, offset)
                .await
                .unwrap();
        }
    }

    pub(crate) async fn end_of_log(&self, address: &str) -> Option<i64> {
        let info = self.admin.broker_runtime_info(address).await.ok()?;
        info.get("commitLogMaxOffset")?.parse().ok()
    }

    /// Every message of the topic by queue and offset: its body, its place in the log and its properties.
    pub(crate) async fn messages(&self, address: &str) -> BTreeMap<(i32, i64), (String, String)> {
        let mut found = BTreeMap::new();
        for queue in 0..QUEUES {
            let max = self.admin.max_offset(address, TOPIC, queue).await.unwrap();
            let mut offset = self.admin.min_offset(address, TOPIC, queue).await.unwrap();
            let deadline = Instant::now() + PATIENCE;
            while offset < max {
                assert!(
                    Instant::now() < deadline,
                    "queue {queue} of {address} at {offset} of {max}"
                );
                let (messages, header) = self
                    .admin
                    .pull(address, TOPIC, queue, offset, 32)
                    .await
                    .unwrap();
                offset = header.next_begin_offset;
                for m in messages {
                    let rest = format!("{:?}", (&m.properties, m.physical_offset, m.store_host));
                    let body = String::from_utf8(m.body).unwrap();
                    found.insert((queue, m.queue_offset), (body, rest));
                }
            }
        }
        found
    }

    async fn offsets(&self, address: &str) -> BTreeMap<String, BTreeMap<i32, i64>> {
        let request = RemotingCommand::request(request_code::GET_ALL_CONSUMER_OFFSET);
        let answer = self.admin.call(address, request).await.unwrap();
        let wrapper: ConsumerOffsetSerializeWrapper = json::from_slice(&answer.body).unwrap();
        let ours = format!("@{GROUP}");
        let mut table = wrapper.offset_table;
        table.retain(|key, _| key.ends_with(&ours));
        table
    }

    /// A slave has everything of its master: the log to its end, messages, offsets, topics and groups.
    pub(crate) async fn same(&self, master: &str, slave: &str) -> usize {
        until(&format!("{slave} has all of {master}'s log"), async || {
            let ends = (self.end_of_log(master).await, self.end_of_log(slave).await);
            ends.0.is_some() && ends.0 == ends.1
        })
        .await;
        until("its topics and groups", async || {
            let (Ok(one), Ok(other)) = (
                self.admin.topic_configs(master).await,
                self.admin.topic_configs(slave).await,
            ) else {
                return false;
            };
            let (Ok(groups), Ok(copies)) = (
                self.admin.subscription_groups(master).await,
                self.admin.subscription_groups(slave).await,
            ) else {
                return false;
            };
            let other = other.topic_config_table;
            let copies = copies.subscription_group_table;
            // Of the rest each kind has its own.
            one.topic_config_table
                .iter()
                .filter(|(name, _)| *name == TOPIC || name.starts_with("Empty"))
                .all(|(name, topic)| other.get(name) == Some(topic))
                && other.contains_key(TOPIC)
                && groups
                    .subscription_group_table
                    .get(GROUP)
                    .map(|g| g.retry_max_times)
                    == copies.get(GROUP).map(|g| g.retry_max_times)
        })
        .await;
        until("its offsets", async || {
            let (one, other) = (self.offsets(master).await, self.offsets(slave).await);
            !one.is_empty() && one == other
        })
        .await;
        let (one, other) = (self.messages(master).await, self.messages(slave).await);
        assert_eq!(one.len(), other.len(), "messages");
        for (at, message) in &one {
            assert_eq!(other.get(at), Some(message), "{at:?}");
        }
        one.len()
    }
}
