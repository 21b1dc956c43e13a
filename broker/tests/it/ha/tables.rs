//! What a slave does beside following the log: the tables it copies, what it serves and refuses, where it learns its master.

use std::path::Path;
use std::sync::Arc;

use broker::role::{Role, RoleNow};
use broker::{Broker, BrokerConfig};
use namesrv::{NameServer, NamesrvConfig};
use remoting::protocol::body::ClusterInfo;
use remoting::protocol::{RemotingCommand, json, request_code, response_code};

use super::support::*;
use crate::support::*;

/// Long enough that whatever comes sooner came by another way.
const NEVER_MS: i32 = 600_000;

async fn pair(dir: &Path, change: impl Fn(&mut BrokerConfig)) -> (Arc<Broker>, Arc<Broker>) {
    let (mut a, mut b) = (master(dir, "ASYNC_MASTER"), slave(dir, 1));
    b.slave_sync_interval_ms = 20;
    change(&mut a);
    change(&mut b);
    let (a, b) = (start(a).await, start(b).await);
    points_at(&b, &a);
    until("the slave copied", || b.slave.master_answers()).await;
    (a, b)
}

fn request(code: i32, fields: &[(&str, &str)]) -> RemotingCommand {
    fields
        .iter()
        .fold(RemotingCommand::request(code), |r, (k, v)| {
            r.with_ext(*k, *v)
        })
}

fn pull(queue_offset: i64) -> RemotingCommand {
    request(
        request_code::PULL_MESSAGE,
        &[
            ("consumerGroup", "G"),
            ("topic", "T"),
            ("queueId", "0"),
            ("queueOffset", &queue_offset.to_string()),
            ("maxMsgNums", "32"),
            ("sysFlag", "4"),
            ("commitOffset", "0"),
            ("suspendTimeoutMillis", "0"),
            ("subscription", "*"),
            ("subVersion", "0"),
        ],
    )
}

fn commit(offset: i64) -> RemotingCommand {
    request(
        request_code::UPDATE_CONSUMER_OFFSET,
        &[
            ("consumerGroup", "G"),
            ("topic", "T"),
            ("queueId", "0"),
            ("commitOffset", &offset.to_string()),
        ],
    )
}

fn create_topic(name: &str) -> RemotingCommand {
    request(
        request_code::UPDATE_AND_CREATE_TOPIC,
        &[
            ("topic", name),
            ("defaultTopic", "TBW102"),
            ("readQueueNums", "3"),
            ("writeQueueNums", "3"),
            ("perm", "6"),
            ("topicFilterType", "SINGLE_TAG"),
            ("order", "false"),
        ],
    )
}

fn create_group(name: &str) -> RemotingCommand {
    RemotingCommand::request(request_code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP)
        .with_body(format!(r#"{{"groupName":"{name}","retryMaxTimes":3}}"#))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_copies_topics_groups_and_offsets_and_keeps_them_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |_| {}).await;
    let to = Client::of(&a);
    to.sent("1", response_code::SUCCESS).await;
    for command in [create_topic("Other"), create_group("G"), commit(1)] {
        assert_eq!(to.call(command).await.code, response_code::SUCCESS);
    }
    until("topics", || {
        b.topics.table().version() == a.topics.table().version()
    })
    .await;
    until("groups", || b.groups.wrapper() == a.groups.wrapper()).await;
    until("offsets", || b.offsets.query("G", "T", 0) == Some(1)).await;
    assert_eq!(b.topics.get("Other").unwrap().config.read_queue_nums, 3);

    assert_eq!(to.call(commit(0)).await.code, response_code::SUCCESS);
    until("a reset", || b.offsets.query("G", "T", 0) == Some(0)).await;
    let delete = request(request_code::DELETE_TOPIC_IN_BROKER, &[("topic", "Other")]);
    assert_eq!(to.call(delete).await.code, response_code::SUCCESS);
    until("a deletion", || b.topics.get("Other").is_none()).await;

    b.shutdown().await;
    let b = start(slave(dir.path(), 1)).await;
    assert!(b.topics.get("T").is_some() && b.groups.find("G").unwrap().retry_max_times == 3);
    assert_eq!(b.offsets.query("G", "T", 0), Some(0));
    b.shutdown().await;
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_met_in_the_log_is_asked_for_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |config| {
        config.slave_sync_interval_ms = NEVER_MS;
        config.slave_read_enable = true;
    })
    .await;
    until("the stream", || has_slave(&a)).await;
    let to = Client::of(&a);
    to.sent("first", response_code::SUCCESS).await;
    until("the log", || level(&a, &b)).await;
    until("the topic", || b.topics.get("T").is_some()).await;
    let answer = Client::of(&b).call(pull(0)).await;
    assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
    b.shutdown().await;
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_delivers_no_delayed_message_and_knows_what_its_master_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |_| {}).await;
    let delayed = send("T", "DELAY\u{1}1\u{2}", b"later");
    assert_eq!(
        Client::of(&a).call(delayed).await.code,
        response_code::SUCCESS
    );
    until("delivered", || a.store.max_offset("T", 0) == 1).await;
    until("copied", || {
        level(&a, &b) && b.schedule.progress() == [(1, 1, 1)]
    })
    .await;
    same_queues(&a, &b);
    // From here on it is the one that delivers.
    b.role.set(RoleNow {
        role: Role::Master,
        broker_id: 0,
        sync: false,
        master: Default::default(),
        term: 1,
    });
    let delayed = send("T", "DELAY\u{1}1\u{2}", b"later still");
    assert_eq!(
        Client::of(&b).call(delayed).await.code,
        response_code::SUCCESS
    );
    until("delivered there", || b.store.max_offset("T", 0) == 2).await;
    b.shutdown().await;
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_refuses_what_only_its_master_may_do_and_serves_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |_| {}).await;
    let (to, at) = (Client::of(&a), Client::of(&b));
    to.sent("1", response_code::SUCCESS).await;
    to.call(create_group("G")).await;
    until("the tables", || {
        level(&a, &b) && b.topics.get("T").is_some() && b.groups.find("G").is_some()
    })
    .await;

    at.sent("2", response_code::SYSTEM_BUSY).await;
    let back = request(
        request_code::CONSUMER_SEND_MSG_BACK,
        &[("offset", "0"), ("group", "G"), ("delayLevel", "0")],
    );
    for command in [back, create_topic("Mine"), create_group("Mine")] {
        let answer = at.call(command).await;
        assert_eq!(answer.code, response_code::SYSTEM_ERROR);
        assert!(answer.remark.unwrap().contains("slave"));
    }
    assert!(b.store.written() == a.store.written());

    let lock = RemotingCommand::request(request_code::LOCK_BATCH_MQ).with_body(
        r#"{"clientId":"c","consumerGroup":"G","mqSet":[{"brokerName":"g","queueId":0,"topic":"T"}]}"#,
    );
    let heartbeat = RemotingCommand::request(request_code::HEART_BEAT).with_body(
        r#"{"clientID":"c","consumerDataSet":[{"groupName":"G"}],"producerDataSet":[]}"#,
    );
    for command in [lock, heartbeat, commit(1)] {
        assert_eq!(at.call(command).await.code, response_code::SUCCESS);
    }
    assert!(b.topics.get("%RETRY%G").is_none(), "its master makes it");

    let refused = at.call(pull(0)).await;
    assert_eq!(refused.code, response_code::SYSTEM_BUSY);
    b.update_config(|config| config.slave_read_enable = true);
    let found = at.call(pull(0)).await;
    assert_eq!(found.code, response_code::SUCCESS);
    assert_eq!(found.ext("suggestWhichBrokerId"), Some("0"));
    // Nothing here: the master may have more.
    for offset in [1, 50] {
        let nothing = at.call(pull(offset)).await;
        assert_eq!(nothing.code, response_code::PULL_RETRY_IMMEDIATELY);
        assert_eq!(nothing.ext("suggestWhichBrokerId"), Some("0"));
        assert_eq!(nothing.ext("nextBeginOffset"), Some(&*offset.to_string()));
    }
    a.shutdown().await;
    until("gone", || !b.slave.master_answers()).await;
    for offset in [1, 50] {
        let nothing = at.call(pull(offset)).await;
        assert_eq!(nothing.code, response_code::PULL_NOT_FOUND);
        assert_eq!(nothing.ext("nextBeginOffset"), Some(&*offset.to_string()));
    }
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_given_in_pages_to_who_asks_for_pages() {
    let dir = tempfile::tempdir().unwrap();
    let a = start(master(dir.path(), "ASYNC_MASTER")).await;
    let to = Client::of(&a);
    let ask = |from: usize, version: String| {
        request(
            request_code::GET_ALL_TOPIC_CONFIG,
            &[
                ("topicSeq", &from.to_string()),
                ("maxTopicNum", "3"),
                ("dataVersion", &version),
            ],
        )
    };
    let version = serde_json::to_string(a.topics.table().version()).unwrap();
    let total = a.topics.table().len();
    let mut names = Vec::new();
    while names.len() < total {
        let answer = to.call(ask(names.len(), version.clone())).await;
        assert_eq!(answer.ext("totalTopicNum"), Some(&*total.to_string()));
        let page: serde_json::Value = json::from_slice(&answer.body).unwrap();
        let page = page["topicConfigTable"].as_object().unwrap();
        assert!((1..=3).contains(&page.len()));
        names.extend(page.keys().cloned());
    }
    let expected: Vec<String> = {
        let table = a.topics.table();
        let mut names: Vec<_> = table.iter().map(|t| t.name().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names, expected);
    // Another version begins anew, and who asks for no pages gets all.
    let answer = to.call(ask(6, String::new())).await;
    let page: serde_json::Value = json::from_slice(&answer.body).unwrap();
    assert!(page["topicConfigTable"].get(&names[0]).is_some());
    let all = to
        .call(RemotingCommand::request(request_code::GET_ALL_TOPIC_CONFIG))
        .await;
    assert_eq!(all.ext("totalTopicNum"), None);
    a.shutdown().await;
}

/// Ids and addresses of the group, as a name server has them.
async fn members(name_server: &NameServer, client: &Client) -> Vec<(i64, String)> {
    let request = RemotingCommand::request(request_code::GET_BROKER_CLUSTER_INFO);
    let answer = client
        .ask(&name_server.address().to_string(), request)
        .await;
    let info: ClusterInfo = json::from_slice(&answer.body).unwrap();
    let group = info.broker_addr_table.into_values().next();
    group.map_or_else(Vec::new, |g| g.broker_addrs.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_registers_as_what_it_is_and_a_slave_finds_its_master_wherever_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let name_server = NameServer::start(NamesrvConfig {
        bind_address: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        kv_config_path: dir.path().join("kvConfig.json"),
        config_store_path: dir.path().join("namesrv.properties"),
        ..NamesrvConfig::default()
    })
    .await
    .unwrap();
    let registered = |mut config: BrokerConfig| {
        config.namesrv_addr = name_server.address().to_string();
        config.broker_ip1 = "127.0.0.1".to_owned();
        config.slave_sync_interval_ms = 20;
        config.shutdown_drain_ms = 0;
        config
    };
    let b = start(registered(slave(dir.path(), 1))).await;
    let at = Client::of(&b);
    until("registered", || b.registrar.state().registered() == 1).await;
    assert_eq!(
        members(&name_server, &at).await,
        [(1, b.address().to_owned())]
    );
    assert_eq!(b.role.now().master.address, None);

    // It comes, goes, and comes back on another port: each time the slave follows.
    for round in 0..2 {
        let a = start(registered(master(dir.path(), "ASYNC_MASTER"))).await;
        until("learned", || {
            b.role.now().master.address.as_deref() == Some(a.address())
        })
        .await;
        until("copies and follows", || {
            b.slave.master_answers() && has_slave(&a)
        })
        .await;
        Client::of(&a)
            .sent(&format!("{round}"), response_code::SUCCESS)
            .await;
        until("the log", || level(&a, &b)).await;
        a.shutdown().await;
        drop(a);
        until("forgotten", || b.role.now().master.address.is_none()).await;
    }

    let role = b.role.now();
    let as_role = |role: Role, broker_id: i64| {
        b.role.set(RoleNow {
            role,
            broker_id,
            term: 1,
            ..RoleNow::clone(&b.role.now())
        });
    };
    as_role(Role::Undecided, -1);
    until("unregistered", || b.registrar.state().registered() == 0).await;
    assert_eq!(members(&name_server, &at).await, []);
    as_role(Role::Master, 0);
    until("registered again", || b.registrar.state().registered() == 1).await;
    assert_eq!(
        members(&name_server, &at).await,
        [(0, b.address().to_owned())]
    );
    at.sent("as a master", response_code::SUCCESS).await;
    b.role.set(RoleNow::clone(&role));
    let mut now = Vec::new();
    for _ in 0..2_000 {
        now = members(&name_server, &at).await;
        if now == [(1, b.address().to_owned())] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(now, [(1, b.address().to_owned())], "the old id went");
    b.shutdown().await;
    name_server.shutdown().await;
}
