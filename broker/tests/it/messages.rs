//! What clients do with a broker, and what a name server hears of it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::{Broker, BrokerConfig};
use namesrv::{NameServer, NamesrvConfig};
use remoting::RemotingClient;
use remoting::protocol::body::{
    ConsumerData, HeartbeatData, ProducerData, SubscriptionData, TopicRouteData,
};
use remoting::protocol::message::{self, BatchMessage, MessageId, RecordView};
use remoting::protocol::{RemotingCommand, SerializeType, json, request_code, response_code};

use crate::support::{self, Client, PATIENCE, name_server, small, until};

fn config(folder: &Path, name: &str, namesrv: Option<&NameServer>) -> BrokerConfig {
    BrokerConfig {
        broker_name: name.to_owned(),
        namesrv_addr: namesrv.map(|n| n.address().to_string()).unwrap_or_default(),
        mapped_file_size_commit_log: 4 << 20,
        ..small(&folder.join(name))
    }
}

/// Registered, where there is a name server.
async fn start(config: BrokerConfig) -> Arc<Broker> {
    let registers = !config.namesrv_addr.is_empty();
    let broker = support::start(config).await;
    if registers {
        until("registered", || broker.ready().is_ok()).await;
    }
    broker
}

impl Client {
    async fn send(&self, topic: &str, properties: &str, body: &[u8]) -> RemotingCommand {
        self.call(send(topic, properties, body)).await
    }

    async fn pull(
        &self,
        topic: &str,
        queue: i32,
        offset: i64,
        expression: &str,
        suspend_ms: u64,
    ) -> RemotingCommand {
        self.call(pull(topic, queue, offset, expression, suspend_ms))
            .await
    }
}

fn properties(pairs: &[(&str, &str)]) -> String {
    pairs
        .iter()
        .map(|(name, value)| format!("{name}\u{1}{value}\u{2}"))
        .collect()
}

fn send(topic: &str, properties: &str, body: &[u8]) -> RemotingCommand {
    support::message(topic, 0, 4, properties, body)
}

fn pull(
    topic: &str,
    queue: i32,
    offset: i64,
    expression: &str,
    suspend_ms: u64,
) -> RemotingCommand {
    support::pull("consumers", topic, queue, offset, expression, suspend_ms)
}

fn bodies(answer: &RemotingCommand) -> Vec<String> {
    message::records(&answer.body)
        .map(|r| String::from_utf8_lossy(r.unwrap().body).into_owned())
        .collect()
}

fn ext<'a>(answer: &'a RemotingCommand, key: &str) -> &'a str {
    answer
        .ext(key)
        .unwrap_or_else(|| panic!("no {key} in {answer:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_goes_in_and_comes_out_by_queue_by_id_and_by_key() {
    let folder = tempfile::tempdir().unwrap();
    for serialize_type in [SerializeType::Json, SerializeType::RocketMq] {
        let broker = start(config(
            folder.path(),
            &format!("b{}", serialize_type as u8),
            None,
        ))
        .await;
        let client = Client::at(broker.listen_address(), serialize_type);
        let given = properties(&[
            ("KEYS", "one two"),
            ("UNIQ_KEY", "U1"),
            ("TAGS", "TagA"),
            ("colour", "gr\u{fc}n"),
        ]);
        let sent = client.send("T", &given, b"hello").await;
        assert_eq!(
            (sent.code, sent.serialize_type),
            (response_code::SUCCESS, serialize_type),
            "{sent:?}"
        );
        assert_eq!(
            (ext(&sent, "MSG_REGION"), ext(&sent, "TRACE_ON")),
            ("DefaultRegion", "true")
        );
        assert_eq!(
            (ext(&sent, "queueId"), ext(&sent, "queueOffset")),
            ("0", "0")
        );
        let id = MessageId::parse(ext(&sent, "msgId")).unwrap();
        assert_eq!(id.host, broker.store_host());

        let pulled = client.pull("T", 0, 0, "*", 0).await;
        assert_eq!(
            (pulled.code, pulled.remark.as_deref()),
            (response_code::SUCCESS, Some("FOUND"))
        );
        assert_eq!(
            (
                ext(&pulled, "nextBeginOffset"),
                ext(&pulled, "minOffset"),
                ext(&pulled, "maxOffset")
            ),
            ("1", "0", "1")
        );
        let record = RecordView::parse(&pulled.body).unwrap();
        assert!(record.crc_ok());
        assert_eq!(
            (record.body, record.flag, record.born_timestamp),
            (&b"hello"[..], 7, 1_700_000_000_000)
        );
        assert_eq!(record.message_id(), id);
        for (name, value) in [
            ("colour", "gr\u{fc}n"),
            ("CLUSTER", "test"),
            ("MSG_REGION", "DefaultRegion"),
            ("TRACE_ON", "true"),
            ("UNIQ_KEY", "U1"),
        ] {
            assert_eq!(record.property(name), Some(value.as_bytes()), "{name}");
        }

        let viewed = client
            .call(
                RemotingCommand::request(request_code::VIEW_MESSAGE_BY_ID)
                    .with_ext("offset", id.offset.to_string()),
            )
            .await;
        assert_eq!(viewed.body, pulled.body);
        for (key, unique) in [("one", false), ("two", false), ("U1", true)] {
            let query = RemotingCommand::request(request_code::QUERY_MESSAGE)
                .with_ext("topic", "T")
                .with_ext("key", key)
                .with_ext("maxNum", "32")
                .with_ext("beginTimestamp", "0")
                .with_ext("endTimestamp", i64::MAX.to_string())
                .with_ext("_UNIQUE_KEY_QUERY", unique.to_string());
            let found = client.call(query).await;
            assert_eq!(found.body, pulled.body, "{key}");
        }
        broker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_a_send_creates_appears_on_every_master_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let names = name_server(folder.path()).await;
    let first = start(config(folder.path(), "broker-a", Some(&names))).await;
    let second = start(config(folder.path(), "broker-b", Some(&names))).await;
    let sent = Client::of(&first).send("Fresh", "", b"x").await;
    assert_eq!(sent.code, response_code::SUCCESS);
    assert_eq!(
        first.topics.get("Fresh").unwrap().config.write_queue_nums,
        4,
        "the producer's four queues, not the template's eight"
    );
    assert_eq!(first.topics.get("Fresh").unwrap().config.perm, 6);
    until("on the other master", || {
        second.topics.get("Fresh").is_some()
    })
    .await;

    let route =
        RemotingCommand::request(request_code::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", "Fresh");
    let client = RemotingClient::default();
    let mut brokers = Vec::new();
    for _ in 0..1_000 {
        let answer = client
            .invoke(&names.address().to_string(), route.clone(), PATIENCE)
            .await
            .unwrap();
        if answer.code == response_code::SUCCESS {
            let data: TopicRouteData = json::from_slice(&answer.body).unwrap();
            brokers = data
                .queue_datas
                .iter()
                .map(|q| (q.broker_name.clone(), q.write_queue_nums))
                .collect();
            brokers.sort();
            if brokers.len() == 2 {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(
        brokers,
        [("broker-a".to_owned(), 4), ("broker-b".to_owned(), 4)]
    );
    first.shutdown().await;
    second.shutdown().await;
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_pull_is_woken_by_a_message_that_it_wants() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    let client = Client::of(&broker);
    client.send("T", "", b"first").await;
    let waiting = tokio::spawn({
        let client = Client::of(&broker);
        async move { client.pull("T", 0, 1, "TagA || TagB", 30_000).await }
    });
    until("waiting", || broker.held.len() == 1).await;
    client
        .send("T", &properties(&[("TAGS", "TagC")]), b"unwanted")
        .await;
    assert_eq!(broker.held.len(), 1, "another tag wakes nobody");
    client
        .send("T", &properties(&[("TAGS", "TagB")]), b"wanted")
        .await;
    let answer = waiting.await.unwrap();
    assert_eq!(bodies(&answer), ["wanted"]);
    assert_eq!(ext(&answer, "nextBeginOffset"), "3");

    let over = client.pull("T", 0, 3, "*", 30).await;
    assert_eq!(
        (over.code, over.remark.as_deref()),
        (response_code::PULL_NOT_FOUND, Some("OFFSET_OVERFLOW_ONE"))
    );
    assert_eq!(ext(&over, "nextBeginOffset"), "3");

    let gone = Client::of(&broker);
    let waiting = tokio::spawn({
        let (client, address) = (gone.client.clone(), gone.address.clone());
        async move {
            client
                .invoke(&address, pull("T", 0, 3, "*", 30_000), PATIENCE)
                .await
        }
    });
    until("waiting again", || broker.held.len() == 1).await;
    gone.client.disconnect(&gone.address);
    until("a closed connection takes its pulls along", || {
        broker.held.is_empty()
    })
    .await;
    assert!(waiting.await.unwrap().is_err());
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_upstreams_codes() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(BrokerConfig {
        max_message_size: 2_048,
        auto_create_subscription_group: false,
        ..config(folder.path(), "b", None)
    })
    .await;
    let client = Client::of(&broker);
    client.send("T", "", b"x").await;
    let big = vec![b'x'; 2_049];
    for (what, command, code) in [
        (
            "body too long",
            send("T", "", &big),
            response_code::MESSAGE_ILLEGAL,
        ),
        (
            "properties too long",
            send("T", &properties(&[("k", &"v".repeat(32_700))]), b"x"),
            response_code::MESSAGE_ILLEGAL,
        ),
        (
            "queue out of range",
            send("T", "", b"x").with_ext("e", "4"),
            response_code::SYSTEM_ERROR,
        ),
        (
            "bad name",
            send("a.b", "", b"x"),
            response_code::SYSTEM_ERROR,
        ),
        (
            "system topic",
            send("SCHEDULE_TOPIC_XXXX", "", b"x"),
            response_code::NO_PERMISSION,
        ),
        (
            "no template",
            send("New", "", b"x").with_ext("c", "nowhere"),
            response_code::TOPIC_NOT_EXIST,
        ),
        (
            "retry topic of no group",
            send("%RETRY%nobody", "", b"x"),
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
        ),
        (
            "transaction",
            send(
                "T",
                &properties(&[("TRAN_MSG", "true"), ("PGROUP", "p")]),
                b"x",
            )
            .with_ext("f", "4"),
            response_code::MESSAGE_ILLEGAL,
        ),
        (
            "delivery time",
            send("T", &properties(&[("TIMER_DELAY_SEC", "9")]), b"x"),
            response_code::SYSTEM_ERROR,
        ),
        (
            "unknown group",
            pull("T", 0, 0, "*", 0),
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
        ),
        (
            "unknown topic",
            pull("Nowhere", 0, 0, "*", 0).with_ext("consumerGroup", "TOOLS_CONSUMER"),
            response_code::TOPIC_NOT_EXIST,
        ),
        (
            "no such queue",
            pull("T", 9, 0, "*", 0).with_ext("consumerGroup", "TOOLS_CONSUMER"),
            response_code::SYSTEM_ERROR,
        ),
        (
            "SQL92",
            pull("T", 0, 0, "a = 1", 0)
                .with_ext("consumerGroup", "TOOLS_CONSUMER")
                .with_ext("expressionType", "SQL92"),
            response_code::SYSTEM_ERROR,
        ),
        (
            "no tag",
            pull("T", 0, 0, "||", 0).with_ext("consumerGroup", "TOOLS_CONSUMER"),
            response_code::SUBSCRIPTION_PARSE_FAILED,
        ),
        (
            "not subscribed",
            pull("T", 0, 0, "", 0)
                .with_ext("consumerGroup", "TOOLS_CONSUMER")
                .with_ext("sysFlag", "0"),
            response_code::SUBSCRIPTION_NOT_EXIST,
        ),
        (
            "beyond the end",
            pull("T", 0, 5, "*", 0).with_ext("consumerGroup", "TOOLS_CONSUMER"),
            response_code::PULL_OFFSET_MOVED,
        ),
        (
            "unknown code",
            RemotingCommand::request(9_999),
            response_code::REQUEST_CODE_NOT_SUPPORTED,
        ),
        (
            "no header",
            RemotingCommand::request(request_code::SEND_MESSAGE_V2),
            response_code::SYSTEM_ERROR,
        ),
    ] {
        let answer = client.call(command).await;
        assert_eq!(answer.code, code, "{what}: {answer:?}");
        assert!(answer.remark.is_some(), "{what} has a reason");
    }
    assert_eq!(
        client.pull("T", 0, 0, "*", 0).await.code,
        response_code::SUBSCRIPTION_GROUP_NOT_EXIST
    );
    assert_eq!(
        broker.store.max_offset("T", 0),
        1,
        "nothing refused was stored"
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_consecutive_records_with_an_id_each() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    let client = Client::of(&broker);
    let mut body = Vec::new();
    for n in 0..3 {
        let given = properties(&[
            ("UNIQ_KEY", &format!("U{n}")),
            ("TAGS", if n == 1 { "B" } else { "A" }),
        ]);
        let text = format!("m{n}");
        let one = BatchMessage {
            flag: 0,
            body: text.as_bytes(),
            properties: given.as_bytes(),
        };
        message::push_batch_message(&mut body, &one).unwrap();
    }
    let mut command = send("T", "", &body).with_ext("m", "true");
    command.code = request_code::SEND_BATCH_MESSAGE;
    let sent = client.call(command.clone()).await;
    assert_eq!(sent.code, response_code::SUCCESS, "{sent:?}");
    let ids: Vec<MessageId> = ext(&sent, "msgId")
        .split(',')
        .map(|id| MessageId::parse(id).unwrap())
        .collect();
    let pulled = client.pull("T", 0, 0, "*", 0).await;
    assert_eq!(bodies(&pulled), ["m0", "m1", "m2"]);
    let stored: Vec<MessageId> = message::records(&pulled.body)
        .map(|r| r.unwrap().message_id())
        .collect();
    assert_eq!(stored, ids);
    assert_eq!(bodies(&client.pull("T", 0, 0, "B", 0).await), ["m1"]);

    command.body = command.body.slice(..command.body.len() - 1);
    assert_eq!(
        client.call(command.clone()).await.code,
        response_code::MESSAGE_ILLEGAL,
        "cut short"
    );
    command
        .ext_fields
        .insert("b".to_owned(), "%RETRY%consumers".to_owned());
    assert_eq!(
        client.call(command).await.code,
        response_code::MESSAGE_ILLEGAL
    );
    assert_eq!(broker.store.max_offset("T", 0), 3);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_arrives_when_it_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    let client = Client::of(&broker);
    client.send("T", "", b"now").await;
    let sent = client
        .send("T", &properties(&[("DELAY", "1"), ("TAGS", "A")]), b"later")
        .await;
    assert_eq!(sent.code, response_code::SUCCESS);
    assert_eq!(bodies(&client.pull("T", 0, 0, "*", 0).await), ["now"]);
    let waiting = client.call(pull("SCHEDULE_TOPIC_XXXX", 0, 0, "*", 0)).await;
    let record = RecordView::parse(&waiting.body).unwrap();
    assert_eq!(
        (record.property("REAL_TOPIC"), record.property("REAL_QID")),
        (Some(&b"T"[..]), Some(&b"0"[..]))
    );
    let arrived = client.pull("T", 0, 1, "A", 20_000).await;
    assert_eq!(bodies(&arrived), ["later"]);
    broker.shutdown().await;
}

/// Runs a test as the broker's own process runs: sends of all connections share a write when a worker is about to sleep.
fn in_turns(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    broker::turn::install(&mut runtime)
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn under_sync_flush_an_answer_means_flushed() {
    in_turns(flushed_when_answered());
}

async fn flushed_when_answered() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(BrokerConfig {
        flush_disk_type: broker::config::FlushDiskType::SyncFlush,
        ..config(folder.path(), "b", None)
    })
    .await;
    let client = Client::of(&broker);
    for n in 0..20 {
        let sent = client.send("T", "", format!("{n}").as_bytes()).await;
        assert_eq!(sent.code, response_code::SUCCESS);
        let id = MessageId::parse(ext(&sent, "msgId")).unwrap();
        assert!(broker.store.flushed() > u64::try_from(id.offset).unwrap());
    }
    let sent = client
        .send("T", &properties(&[("WAIT", "false")]), b"in a hurry")
        .await;
    assert_eq!(sent.code, response_code::SUCCESS);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sends_at_once_are_each_answered_and_each_stored_once() {
    many_sends_at_once().await;
}

#[test]
fn many_sends_that_share_their_writes_are_each_answered_and_each_stored_once() {
    in_turns(many_sends_at_once());
}

async fn many_sends_at_once() {
    const CONNECTIONS: usize = 8;
    const EACH: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    Client::of(&broker).send("T", "", b"first").await;
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = Client::of(&broker);
        senders.spawn(async move {
            let client = Arc::new(client);
            let mut calls = tokio::task::JoinSet::new();
            for n in 0..EACH {
                let client = Arc::clone(&client);
                calls.spawn(async move {
                    let sent = client.send("T", "", format!("{n}").as_bytes()).await;
                    assert_eq!(sent.code, response_code::SUCCESS, "{sent:?}");
                    ext(&sent, "queueOffset").parse::<i64>().unwrap()
                });
            }
            calls.join_all().await
        });
    }
    let mut offsets: Vec<i64> = senders.join_all().await.into_iter().flatten().collect();
    offsets.sort_unstable();
    let expect: Vec<i64> = (1..=i64::try_from(CONNECTIONS * EACH).unwrap()).collect();
    assert_eq!(offsets, expect);
    assert_eq!(broker.acks.waiting(), 0);
    assert_eq!(broker.acks.bytes_in_flight(), 0);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_survives_its_restart_and_says_good_bye_before() {
    let folder = tempfile::tempdir().unwrap();
    let names = name_server(folder.path()).await;
    let broker = start(config(folder.path(), "b", Some(&names))).await;
    let client = Client::of(&broker);
    for n in 0..10 {
        client
            .send(
                "T",
                &properties(&[("KEYS", "k")]),
                format!("{n}").as_bytes(),
            )
            .await;
    }
    let heartbeat = HeartbeatData {
        client_id: "c1".to_owned(),
        producer_data_set: vec![ProducerData {
            group_name: "producers".to_owned(),
        }]
        .into_iter()
        .collect(),
        consumer_data_set: vec![ConsumerData {
            group_name: "consumers".to_owned(),
            subscription_data_set: vec![SubscriptionData {
                topic: "T".to_owned(),
                sub_string: "*".to_owned(),
                ..SubscriptionData::default()
            }]
            .into_iter()
            .collect(),
            ..ConsumerData::default()
        }]
        .into_iter()
        .collect(),
        ..HeartbeatData::default()
    };
    let beat = client
        .call(RemotingCommand::request(request_code::HEART_BEAT).json_body(&heartbeat))
        .await;
    assert_eq!(beat.code, response_code::SUCCESS);
    // By the heartbeat's subscription, and committing offset 4 on the way.
    let pulled = client
        .call(
            pull("T", 0, 5, "", 0)
                .with_ext("sysFlag", "1")
                .with_ext("commitOffset", "4"),
        )
        .await;
    assert_eq!(bodies(&pulled), ["5", "6", "7", "8", "9"]);
    broker.shutdown().await;
    let route =
        RemotingCommand::request(request_code::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", "T");
    let gone = client
        .client
        .invoke(&names.address().to_string(), route, PATIENCE)
        .await
        .unwrap();
    assert_eq!(gone.code, response_code::TOPIC_NOT_EXIST);
    drop(broker);

    let again = start(config(folder.path(), "b", Some(&names))).await;
    let client = Client::of(&again);
    assert_eq!(bodies(&client.pull("T", 0, 0, "*", 0).await).len(), 10);
    assert_eq!(again.offsets.query("consumers", "T", 0), Some(4));
    assert!(again.topics.get("%RETRY%consumers").is_some());
    let sent = client.send("T", "", b"more").await;
    assert_eq!(ext(&sent, "queueOffset"), "10");
    again.shutdown().await;
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_server_that_comes_back_is_told_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let names = name_server(folder.path()).await;
    let port = names.address().port();
    let broker = start(BrokerConfig {
        namesrv_resolve_interval_ms: 100,
        ..config(folder.path(), "b", Some(&names))
    })
    .await;
    names.shutdown().await;
    let sent = Client::of(&broker).send("Meanwhile", "", b"x").await;
    assert_eq!(
        sent.code,
        response_code::SUCCESS,
        "sends need no name server"
    );
    until("not ready without a name server", || {
        broker.ready().is_err()
    })
    .await;
    let names = NameServer::start(NamesrvConfig {
        bind_address: "127.0.0.1".to_owned(),
        listen_port: port,
        http_port: 0,
        kv_config_path: folder.path().join("kvConfig.json"),
        ..NamesrvConfig::default()
    })
    .await
    .unwrap();
    until("ready again", || broker.ready().is_ok()).await;
    let route = RemotingCommand::request(request_code::GET_ROUTEINFO_BY_TOPIC)
        .with_ext("topic", "Meanwhile");
    let answer = RemotingClient::default()
        .invoke(&names.address().to_string(), route, PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer.code, response_code::SUCCESS);
    broker.shutdown().await;
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_broker_from_starting_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    let port = broker.listen_address().port();
    let taken = BrokerConfig {
        listen_port: port,
        ..config(folder.path(), "other", None)
    };
    let error = Broker::start(taken.validate().unwrap()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on 127.0.0.1:{port}")
    );
    let locked = config(folder.path(), "b", None);
    let error = Broker::start(locked.validate().unwrap()).await.unwrap_err();
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    std::fs::write(folder.path().join("file"), "").unwrap();
    let nowhere = config(folder.path(), "file", None);
    let error = Broker::start(nowhere.validate().unwrap())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fast_port_serves_everything_but_pulls() {
    let folder = tempfile::tempdir().unwrap();
    // Two ports, two apart: any free one whose neighbour is free as well.
    let broker = loop {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = BrokerConfig {
            listen_port: free.max(1_024),
            ..config(folder.path(), "b", None)
        };
        if let Ok(broker) = Broker::start(config.validate().unwrap()).await {
            break broker;
        }
    };
    let address = SocketAddr::new(
        broker.listen_address().ip(),
        broker.listen_address().port() - 2,
    );
    let client = Client::at(address, SerializeType::Json);
    assert_eq!(
        client.send("T", "", b"x").await.code,
        response_code::SUCCESS
    );
    assert_eq!(
        client.pull("T", 0, 0, "*", 0).await.code,
        response_code::REQUEST_CODE_NOT_SUPPORTED
    );
    assert_eq!(
        bodies(&Client::of(&broker).pull("T", 0, 0, "*", 0).await),
        ["x"]
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_left_memory_is_read_from_disk() {
    const MESSAGES: usize = 600;
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    let client = Client::of(&broker);
    let body = vec![b'x'; 4_096];
    for _ in 0..MESSAGES {
        assert_eq!(
            client.send("T", "", &body).await.code,
            response_code::SUCCESS
        );
    }
    assert!(
        broker.store.written() > 2 * (1 << 20),
        "twice the tail ring, so the first records are on disk only"
    );
    let mut offset = 0;
    let mut seen = 0;
    while seen < MESSAGES {
        let pulled = client.pull("T", 0, offset, "*", 0).await;
        assert_eq!(pulled.code, response_code::SUCCESS, "{:?}", pulled.remark);
        for record in message::records(&pulled.body) {
            let record = record.unwrap();
            assert_eq!(
                (record.queue_offset, record.crc_ok()),
                (i64::try_from(seen).unwrap(), true)
            );
            seen += 1;
        }
        offset = ext(&pulled, "nextBeginOffset").parse().unwrap();
    }
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pulls_wait_and_each_is_answered_once() {
    const CONNECTIONS: usize = 20;
    const EACH: usize = 500;
    let folder = tempfile::tempdir().unwrap();
    let broker = start(config(folder.path(), "b", None)).await;
    let client = Client::of(&broker);
    client.send("T", "", b"first").await;
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let connection = Arc::new(Client::of(&broker));
        for n in 0..EACH {
            let connection = Arc::clone(&connection);
            let queue = i32::try_from(n % 4).unwrap();
            pulls.spawn(async move {
                connection
                    .pull("T", queue, i64::from(queue == 0), "*", 60_000)
                    .await
                    .code
            });
        }
    }
    until("all wait", || broker.held.len() == CONNECTIONS * EACH).await;
    for queue in 0..4 {
        let sent = client
            .call(send("T", "", b"news").with_ext("e", queue.to_string()))
            .await;
        assert_eq!(sent.code, response_code::SUCCESS);
    }
    let codes = pulls.join_all().await;
    assert_eq!(codes, vec![response_code::SUCCESS; CONNECTIONS * EACH]);
    assert!(broker.held.is_empty());
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_say_why_a_broker_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let alone = start(config(folder.path(), "alone", None)).await;
    assert_eq!(
        alone.ready().unwrap_err(),
        "namesrvAddr is empty, so no client can find this broker"
    );
    alone.shutdown().await;
    assert!(alone.ready().is_err());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let lost = BrokerConfig {
        namesrv_addr: nobody.to_string(),
        ..config(folder.path(), "lost", None)
    };
    let lost = Broker::start(lost.validate().unwrap()).await.unwrap();
    until("the reason is known", || {
        lost.ready()
            .unwrap_err()
            .starts_with("not registered with any name server: ")
    })
    .await;
    lost.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_advertised_name_is_resolved_to_what_clients_and_ids_carry() {
    let folder = tempfile::tempdir().unwrap();
    let named = BrokerConfig {
        advertised_host: "localhost".to_owned(),
        ..config(folder.path(), "b", None)
    };
    let broker = start(named).await;
    assert_eq!(broker.address(), broker.listen_address().to_string());
    let sent = Client::of(&broker).send("T", "", b"x").await;
    assert_eq!(
        MessageId::parse(ext(&sent, "msgId")).unwrap().host,
        broker.listen_address()
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_topics_follow_the_name_servers_table() {
    let folder = tempfile::tempdir().unwrap();
    let names = name_server(folder.path()).await;
    let put = RemotingCommand::request(request_code::PUT_KV_CONFIG)
        .with_ext("namespace", "ORDER_TOPIC_CONFIG")
        .with_ext("key", "Ordered")
        .with_ext("value", "b:4");
    let stored = RemotingClient::default()
        .invoke(&names.address().to_string(), put, PATIENCE)
        .await
        .unwrap();
    assert_eq!(stored.code, response_code::SUCCESS);
    let broker = start(BrokerConfig {
        force_register: false,
        ..config(folder.path(), "b", Some(&names))
    })
    .await;
    Client::of(&broker).send("Ordered", "", b"x").await;
    until("the flag is set", || {
        broker.topics.get("Ordered").is_some_and(|t| t.config.order)
    })
    .await;
    broker.update_config(|c| c.broker_permission = 4);
    let refused = Client::of(&broker).send("Ordered", "", b"x").await;
    assert_eq!(
        refused.code,
        response_code::NO_PERMISSION,
        "an ordered topic of a broker that may not be written to"
    );
    broker.shutdown().await;
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_answer_says_is_there_the_name_server_knows() {
    let folder = tempfile::tempdir().unwrap();
    let names = name_server(folder.path()).await;
    let broker = start(config(folder.path(), "b", Some(&names))).await;
    let client = Client::of(&broker);
    let asking = RemotingClient::default();
    let address = names.address().to_string();
    let found = async |topic: &str| {
        let route =
            RemotingCommand::request(request_code::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", topic);
        asking.invoke(&address, route, PATIENCE).await.unwrap().code
    };
    for n in 0..20 {
        let topic = format!("Sent{n}");
        assert_eq!(
            client.send(&topic, "", b"x").await.code,
            response_code::SUCCESS
        );
        assert_eq!(found(&topic).await, response_code::SUCCESS, "{topic}");
        let topic = format!("Made{n}");
        let make = RemotingCommand::request(request_code::UPDATE_AND_CREATE_TOPIC)
            .with_ext("topic", topic.as_str())
            .with_ext("defaultTopic", "TBW102")
            .with_ext("readQueueNums", "4")
            .with_ext("writeQueueNums", "4")
            .with_ext("perm", "6")
            .with_ext("topicFilterType", "SINGLE_TAG")
            .with_ext("topicSysFlag", "0")
            .with_ext("order", "false");
        assert_eq!(client.call(make).await.code, response_code::SUCCESS);
        assert_eq!(found(&topic).await, response_code::SUCCESS, "{topic}");
        let group = format!("group{n}");
        let heartbeat = HeartbeatData {
            client_id: "c1".to_owned(),
            consumer_data_set: vec![ConsumerData {
                group_name: group.clone(),
                ..ConsumerData::default()
            }]
            .into_iter()
            .collect(),
            ..HeartbeatData::default()
        };
        let beat = client
            .call(RemotingCommand::request(request_code::HEART_BEAT).json_body(&heartbeat))
            .await;
        assert_eq!(beat.code, response_code::SUCCESS);
        assert_eq!(
            found(&format!("%RETRY%{group}")).await,
            response_code::SUCCESS,
            "{group}"
        );
    }
    broker.shutdown().await;
    names.shutdown().await;
}

async fn get(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_metrics_are_served_over_http() {
    let folder = tempfile::tempdir().unwrap();
    let names = name_server(folder.path()).await;
    let (broker, port) = loop {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = BrokerConfig {
            http_port: free,
            ..config(folder.path(), "b", Some(&names))
        };
        if let Ok(broker) = Broker::start(config.validate().unwrap()).await {
            break (broker, free);
        }
    };
    until("registered", || broker.ready().is_ok()).await;
    Client::of(&broker).send("T", "", b"x").await;
    for path in ["/livez", "/readyz", "/startupz"] {
        let answer = get(port, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let metrics = get(port, "/metrics").await;
    for line in [
        "rocketmq_broker_put_messages_total 1",
        "rocketmq_broker_put_latency_seconds_count 1",
        "rocketmq_broker_registered_name_servers 1",
        "rocketmq_store_writable 1",
        "# TYPE rocketmq_broker_put_messages counter",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    names.shutdown().await;
    until("not ready", || broker.ready().is_err()).await;
    let answer = get(port, "/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 503")
            && answer.contains("not registered with any name server"),
        "{answer}"
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_master_without_a_slave_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let role = broker::config::BrokerRole::SyncMaster;
    let broker = start(BrokerConfig {
        broker_role: role,
        ..config(folder.path(), "b", None)
    })
    .await;
    let client = Client::of(&broker);
    let sent = client.send("T", "", b"stored").await;
    assert_eq!(sent.code, response_code::SLAVE_NOT_AVAILABLE);
    assert_eq!(ext(&sent, "queueOffset"), "0");
    let hurried = client
        .send("T", &properties(&[("WAIT", "false")]), b"too")
        .await;
    assert_eq!(hurried.code, response_code::SUCCESS);
    assert_eq!(
        bodies(&client.pull("T", 0, 0, "*", 0).await),
        ["stored", "too"]
    );
    broker.shutdown().await;
}
