//! A name server over real sockets, as brokers, clients and tools see it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use namesrv::{NameServer, NamesrvConfig, StartError};
use remoting::protocol::body::{
    ClusterInfo, DataVersion, KVTable, RegisterBrokerBody, TopicConfig, TopicRouteData,
};
use remoting::protocol::{LanguageCode, request_code as request, response_code as response};
use remoting::{ClientConfig, RemotingClient, RemotingCommand};

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    server: NameServer,
    address: String,
    client: RemotingClient,
    folder: tempfile::TempDir,
}

impl Fixture {
    async fn start(change: impl FnOnce(&mut NamesrvConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let server = NameServer::start(config).await.unwrap();
        let address = server.address().to_string();
        Self {
            server,
            address,
            client: RemotingClient::new(ClientConfig::default()),
            folder,
        }
    }

    async fn ask(&self, command: RemotingCommand) -> RemotingCommand {
        self.client
            .invoke(&self.address, command, PATIENCE)
            .await
            .unwrap()
    }

    async fn route(&self, topic: &str) -> RemotingCommand {
        self.ask(RemotingCommand::request(request::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", topic))
            .await
    }

    /// Asks again and again: every round trip lets the server go on.
    async fn until(&self, topic: &str, wanted: i32) -> RemotingCommand {
        let asking = async {
            loop {
                let reply = self.route(topic).await;
                if reply.code == wanted {
                    return reply;
                }
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap()
    }
}

fn config(folder: &Path) -> NamesrvConfig {
    NamesrvConfig {
        bind_address: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        kv_config_path: folder.join("kvConfig.json"),
        config_store_path: folder.join("namesrv.properties"),
        ..NamesrvConfig::default()
    }
}

fn registration(name: &str, id: i64, addr: &str, topics: &[&str]) -> RemotingCommand {
    let mut body = RegisterBrokerBody::default();
    body.topic_config_serialize_wrapper.data_version = DataVersion {
        counter: 1,
        state_version: 0,
        timestamp: 17,
    };
    for topic in topics.iter().chain(&["SELF_TEST_TOPIC"]) {
        body.topic_config_serialize_wrapper
            .topic_config_table
            .insert((*topic).to_owned(), TopicConfig::new(*topic, 4, 6));
    }
    let command = RemotingCommand::request(request::REGISTER_BROKER).json_body(&body);
    let crc = crc32fast::hash(&command.body) & 0x7fff_ffff;
    command
        .with_ext("brokerName", name)
        .with_ext("brokerAddr", addr)
        .with_ext("clusterName", "c")
        .with_ext("haServerAddr", format!("{addr}2"))
        .with_ext("brokerId", id.to_string())
        .with_ext("compressed", "false")
        .with_ext("bodyCrc32", crc.to_string())
}

#[tokio::test]
async fn a_route_appears_and_vanishes_with_its_broker() {
    let f = Fixture::start(|_| {}).await;
    let missing = f.route("T").await;
    assert_eq!(missing.code, response::TOPIC_NOT_EXIST);
    assert!(
        missing
            .remark
            .unwrap()
            .starts_with("No topic route info in name server for the topic: T\n")
    );

    let broker = RemotingClient::new(ClientConfig::default());
    let master = broker
        .invoke(
            &f.address,
            registration("b", 0, "10.0.0.1:10911", &["T"]),
            PATIENCE,
        )
        .await
        .unwrap();
    assert_eq!(
        (master.code, master.language, master.ext("masterAddr")),
        (0, LanguageCode::Java, None)
    );
    let slave = f.ask(registration("b", 1, "10.0.0.2:10911", &["T"])).await;
    assert_eq!(
        (slave.ext("masterAddr"), slave.ext("haServerAddr")),
        (Some("10.0.0.1:10911"), Some("10.0.0.1:109112"))
    );

    let found = f.route("T").await;
    let text = String::from_utf8(found.body.to_vec()).unwrap();
    assert_eq!(
        text,
        r#"{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911","1":"10.0.0.2:10911"},"brokerName":"b","cluster":"c","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#,
        "compact, with quoted keys"
    );

    // The master's process dies: its connection closes and it is gone.
    broker.shutdown().await;
    let left = async {
        loop {
            let route: TopicRouteData = f.route("T").await.json().unwrap();
            if route.broker_datas[0].broker_addrs
                == BTreeMap::from([(1, "10.0.0.2:10911".to_owned())])
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, left).await.unwrap();
    let goodbye = RemotingCommand::request(request::UNREGISTER_BROKER)
        .with_ext("brokerName", "b")
        .with_ext("brokerAddr", "10.0.0.2:10911")
        .with_ext("clusterName", "c")
        .with_ext("brokerId", "1");
    assert_eq!(f.ask(goodbye).await.code, response::SUCCESS);
    f.until("T", response::TOPIC_NOT_EXIST).await;
    assert_eq!(
        f.ask(RemotingCommand::request(request::GET_BROKER_CLUSTER_INFO))
            .await
            .json::<ClusterInfo>()
            .unwrap(),
        ClusterInfo::default()
    );
    f.server.shutdown().await;
}

#[tokio::test]
async fn a_wrong_checksum_and_a_lone_topic_are_refused() {
    let f = Fixture::start(|_| {}).await;
    let mut command = registration("b", 0, "1:1", &["T"]);
    command
        .ext_fields
        .insert("bodyCrc32".to_owned(), "7".to_owned());
    let reply = f.ask(command).await;
    assert_eq!(
        (reply.code, reply.remark.as_deref()),
        (response::SYSTEM_ERROR, Some("crc32 not match"))
    );
    let reply = f.ask(registration("b", 0, "1:1", &[])).await;
    assert_eq!(
        (reply.code, reply.remark.as_deref()),
        (response::SYSTEM_ERROR, Some("register broker failed"))
    );
    let mut command = registration("b", 0, "1:1", &["T"]);
    command.body = "{".into();
    command
        .ext_fields
        .insert("bodyCrc32".to_owned(), "0".to_owned());
    assert_eq!(f.ask(command).await.code, response::SYSTEM_ERROR);
    f.server.shutdown().await;
}

#[tokio::test]
async fn data_versions_tell_whether_to_register_again() {
    let f = Fixture::start(|_| {}).await;
    let ask = |version: DataVersion| {
        RemotingCommand::request(request::QUERY_DATA_VERSION)
            .with_ext("brokerName", "b")
            .with_ext("brokerAddr", "1:1")
            .with_ext("clusterName", "c")
            .with_ext("brokerId", "0")
            .json_body(&version)
    };
    let same = DataVersion {
        counter: 1,
        state_version: 0,
        timestamp: 17,
    };
    let reply = f.ask(ask(same)).await;
    assert_eq!(
        (reply.ext("changed"), reply.body.is_empty()),
        (Some("true"), true)
    );
    f.ask(registration("b", 0, "1:1", &["T"])).await;
    let reply = f.ask(ask(same)).await;
    assert_eq!(
        (reply.ext("changed"), reply.json::<DataVersion>().unwrap()),
        (Some("false"), same)
    );
    assert_eq!(
        f.ask(ask(DataVersion { counter: 2, ..same }))
            .await
            .ext("changed"),
        Some("true")
    );
    f.server.shutdown().await;
}

#[tokio::test]
async fn order_topics_live_on_disk_and_show_in_routes() {
    let f = Fixture::start(|c| c.order_message_enable = true).await;
    let kv = |code: i32| {
        RemotingCommand::request(code)
            .with_ext("namespace", "ORDER_TOPIC_CONFIG")
            .with_ext("key", "T")
    };
    assert_eq!(
        f.ask(kv(request::GET_KV_CONFIG)).await.code,
        response::QUERY_NOT_FOUND
    );
    assert_eq!(
        f.ask(kv(request::GET_KVLIST_BY_NAMESPACE)).await.code,
        response::QUERY_NOT_FOUND
    );
    assert_eq!(
        f.ask(kv(request::PUT_KV_CONFIG).with_ext("value", "b:4"))
            .await
            .code,
        response::SUCCESS
    );
    assert_eq!(
        f.ask(kv(request::GET_KV_CONFIG)).await.ext("value"),
        Some("b:4")
    );
    let table = BTreeMap::from([("T".to_owned(), "b:4".to_owned())]);
    assert_eq!(
        f.ask(kv(request::GET_KVLIST_BY_NAMESPACE))
            .await
            .json::<KVTable>()
            .unwrap()
            .table,
        table
    );
    let registered = f.ask(registration("b", 0, "1:1", &["T"])).await;
    assert_eq!(registered.json::<KVTable>().unwrap().table, table);
    assert_eq!(
        f.route("T")
            .await
            .json::<TopicRouteData>()
            .unwrap()
            .order_topic_conf
            .as_deref(),
        Some("b:4")
    );
    f.server.shutdown().await;

    let again = NameServer::start(config(f.folder.path())).await.unwrap();
    let address = again.address().to_string();
    let client = RemotingClient::new(ClientConfig::default());
    let found = client
        .invoke(&address, kv(request::GET_KV_CONFIG), PATIENCE)
        .await
        .unwrap();
    assert_eq!(found.ext("value"), Some("b:4"));
    let gone = client
        .invoke(&address, kv(request::DELETE_KV_CONFIG), PATIENCE)
        .await
        .unwrap();
    assert_eq!(gone.code, response::SUCCESS);
    assert_eq!(
        client
            .invoke(&address, kv(request::GET_KV_CONFIG), PATIENCE)
            .await
            .unwrap()
            .code,
        response::QUERY_NOT_FOUND
    );
    again.shutdown().await;
}

#[tokio::test]
async fn configuration_is_shown_changed_and_guarded() {
    let f = Fixture::start(|_| {}).await;
    let update = |text: &'static str| {
        RemotingCommand::request(request::UPDATE_NAMESRV_CONFIG).with_body(text)
    };
    assert_eq!(
        f.ask(update("enableAllTopicList=false")).await.code,
        response::SUCCESS
    );
    let text = f
        .ask(RemotingCommand::request(request::GET_NAMESRV_CONFIG))
        .await;
    assert!(
        String::from_utf8(text.body.to_vec())
            .unwrap()
            .contains("\nenableAllTopicList=false\n")
    );
    let list = f
        .ask(RemotingCommand::request(
            request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER,
        ))
        .await;
    assert_eq!(
        (list.code, list.remark.as_deref()),
        (response::SYSTEM_ERROR, Some("disable"))
    );
    assert_eq!(
        f.ask(update("kvConfigPath=/x")).await.code,
        response::NO_PERMISSION
    );
    assert_eq!(
        f.ask(update("listenPort=1")).await.code,
        response::SYSTEM_ERROR
    );
    let unknown = f.ask(update("enableTopicLst=true")).await;
    assert_eq!(unknown.code, response::SUCCESS);
    assert!(
        unknown
            .remark
            .unwrap()
            .contains("did you mean `enableTopicList`?")
    );
    assert!(f.folder.path().join("namesrv.properties").exists());
    f.server.shutdown().await;
}

#[tokio::test]
async fn zones_keep_to_themselves() {
    let f = Fixture::start(|_| {}).await;
    f.ask(registration("a", 0, "1:1", &["T"]).with_ext("__ZONE_NAME", "west"))
        .await;
    f.ask(registration("b", 0, "2:1", &["T"]).with_ext("__ZONE_NAME", "east"))
        .await;
    let ask = RemotingCommand::request(request::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", "T");
    let zoned = ask
        .with_ext("__ZONE_MODE", "true")
        .with_ext("__ZONE_NAME", "WEST");
    let route: TopicRouteData = f.ask(zoned).await.json().unwrap();
    assert_eq!(
        (
            route.broker_datas.len(),
            route.queue_datas.len(),
            route.broker_datas[0].broker_name.as_str()
        ),
        (1, 1, "a")
    );
    assert_eq!(
        f.route("T")
            .await
            .json::<TopicRouteData>()
            .unwrap()
            .broker_datas
            .len(),
        2
    );
    f.server.shutdown().await;
}

#[tokio::test]
async fn a_name_server_may_be_told_to_wait_for_its_brokers() {
    let f = Fixture::start(|c| c.need_wait_for_service = true).await;
    f.ask(registration("b", 0, "1:1", &["T"])).await;
    let reply = f.route("T").await;
    assert_eq!(
        (reply.code, reply.remark.as_deref()),
        (response::SYSTEM_ERROR, Some("name server not ready"))
    );
    f.server.shutdown().await;
}

#[tokio::test]
async fn unknown_codes_are_answered_and_oneway_is_not() {
    let f = Fixture::start(|_| {}).await;
    let reply = f.ask(RemotingCommand::request(9999)).await;
    assert_eq!(
        (reply.code, reply.remark.as_deref()),
        (
            response::REQUEST_CODE_NOT_SUPPORTED,
            Some(" request type 9999 not supported")
        )
    );
    f.client
        .oneway(&f.address, RemotingCommand::request(9999))
        .await
        .unwrap();
    assert_eq!(
        f.route("T").await.code,
        response::TOPIC_NOT_EXIST,
        "the connection goes on"
    );
    f.server.shutdown().await;
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn probes_and_metrics() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let f = Fixture::start(|c| c.http_port = free).await;
    let http = f.server.http_address().unwrap();
    assert!(get(http, "/livez").starts_with("HTTP/1.1 200"));
    let waiting = get(http, "/readyz");
    assert!(
        waiting.starts_with("HTTP/1.1 503") && waiting.contains("no broker has registered yet"),
        "{waiting}"
    );
    f.ask(registration("b", 0, "1:1", &["T"])).await;
    assert!(get(http, "/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get(http, "/metrics");
    for line in [
        "rocketmq_namesrv_brokers 1",
        "rocketmq_namesrv_topics 2",
        "rocketmq_namesrv_requests_total{code=\"REGISTER_BROKER\"} 1",
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "{line} is missing in {metrics}"
        );
    }
    f.server.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let f = Fixture::start(|_| {}).await;
    let mut second = config(f.folder.path());
    second.listen_port = f.server.address().port();
    let Err(error @ StartError::Listen { .. }) = NameServer::start(second).await else {
        panic!("started twice")
    };
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot listen on {} (listenPort): ", f.address)),
        "{error}"
    );
    f.server.shutdown().await;
}

#[test]
fn the_program_says_what_scripts_wait_for_and_stops_on_a_signal() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("namesrv.conf");
    std::fs::write(
        &conf,
        format!(
            "listenPort=0\nhttpPort=0\nbindAddress=127.0.0.1\nkvConfigPath={}\n",
            folder.path().join("kv.json").display()
        ),
    )
    .unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_mqnamesrv"))
        .arg("-c")
        .arg(&conf)
        .arg("-n")
        .arg("ignored:9876")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.starts_with("The Name Server boot success. serializeType=JSON, address 127.0.0.1:"),
        "{line}"
    );
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_program_reports_wrong_use_and_failure_differently() {
    let run = |args: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_mqnamesrv"))
            .args(args)
            .output()
            .unwrap()
    };
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    assert_eq!(run(&["-h"]).status.code(), Some(0));
    let keys = run(&["--keys"]);
    assert!(keys.status.success() && keys.stdout.starts_with(b"# Keys of `namesrv.conf`"));
    let printed = run(&["-p"]);
    assert!(
        String::from_utf8(printed.stdout)
            .unwrap()
            .contains("listenPort=9876\n")
    );
    let missing = run(&["-c", "/nowhere/namesrv.conf"]);
    assert_eq!(missing.status.code(), Some(1));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(
        text.starts_with("mqnamesrv: cannot read /nowhere/namesrv.conf: ")
            && text.lines().count() == 1,
        "{text}"
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("n.conf");
    let kv = folder.path().join("kv.json");
    std::fs::write(
        &conf,
        format!(
            "bindAddress=127.0.0.1\nhttpPort=0\nlistenPort={}\nkvConfigPath={}\n",
            taken.local_addr().unwrap().port(),
            kv.display()
        ),
    )
    .unwrap();
    let busy = run(&["-c", conf.to_str().unwrap()]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(
        String::from_utf8(busy.stderr)
            .unwrap()
            .contains("cannot listen on 127.0.0.1:")
    );
}
