//! What consumers notice of a change of leader: retries and delays go on, and who reads from a follower reads on.

use std::collections::BTreeMap;

use remoting::admin::{Admin, Message};
use remoting::client::RemotingClient;
use remoting::protocol::body::DelayOffsetSerializeWrapper;
use remoting::protocol::{RemotingCommand, json, request_code};

use crate::common::load::{CALL_LIMIT, Found, QUEUES, TOPIC, check, message, place};
use crate::common::until;
use crate::group::Cluster;

const GROUP: &str = "readers";
const RETRIES: &str = "%RETRY%readers";

/// The one message of a queue at this offset, once it is there.
async fn arrived(admin: &Admin, address: &str, topic: &str, offset: i64) -> Message {
    let mut found = None;
    until("the message is there", async || {
        let pulled = admin.pull(address, topic, 0, offset, 1).await;
        found = pulled
            .ok()
            .and_then(|(messages, _)| messages.into_iter().next());
        found.is_some()
    })
    .await;
    found.unwrap()
}

impl Cluster {
    /// Waits until everybody knows how far delayed messages are delivered.
    async fn delays_copied(&self, leader: usize) {
        let table = async |at: usize| {
            let asked = RemotingCommand::request(request_code::GET_ALL_DELAY_OFFSET);
            let answer = self.admin.call(&self.nodes[at].address, asked).await.ok()?;
            let body: DelayOffsetSerializeWrapper = json::from_slice(&answer.body).ok()?;
            Some(body.offset_table)
        };
        until("the others know what was delivered", async || {
            let there = table(leader).await;
            let mut alike = there.is_some();
            for at in (0..self.nodes.len()).filter(|at| self.nodes[*at].runs()) {
                alike &= table(at).await == there;
            }
            alike
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_sent_back_comes_again_once_though_its_leader_dies_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let more = "messageDelayLevel=1s 1s 1s 1s 1s 1s\nslaveSyncIntervalMs=100\n";
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", more).await;
    cluster.all_sure().await;
    let client = RemotingClient::default();
    let mut leader = cluster.taking().await;
    let address = cluster.nodes[leader].address.clone();
    let mut hard = message("hard");
    hard.ext_fields.insert("queueId".to_owned(), "0".to_owned());
    let answer = client.invoke(&address, hard, CALL_LIMIT).await.unwrap();
    assert_eq!(place(&answer), Some((0, 0)), "{:?}", answer.remark);
    // The group is made by its first heartbeat, and its topic of retries.
    let heartbeat = format!(
        r#"{{"clientID":"c","consumerDataSet":[{{"groupName":"{GROUP}"}}],"producerDataSet":[]}}"#
    );
    let heartbeat = RemotingCommand::request(request_code::HEART_BEAT).with_body(heartbeat);
    cluster.admin.call(&address, heartbeat).await.unwrap();
    let mut record = arrived(&cluster.admin, &address, TOPIC, 0).await;
    for tried in 1..=3 {
        let back = RemotingCommand::request(request_code::CONSUMER_SEND_MSG_BACK)
            .with_ext("offset", record.physical_offset.to_string())
            .with_ext("group", GROUP)
            .with_ext("delayLevel", "0")
            .with_ext("originTopic", TOPIC)
            .with_ext("maxReconsumeTimes", "16");
        let address = &cluster.nodes[leader].address;
        cluster.admin.call(address, back).await.unwrap();
        cluster.nodes[leader].kill();
        let next = cluster.taking().await;
        let address = &cluster.nodes[next].address;
        record = arrived(&cluster.admin, address, RETRIES, tried - 1).await;
        assert_eq!(
            (i64::from(record.reconsume_times), record.body.as_slice()),
            (tried, &b"hard"[..])
        );
        assert_eq!(
            record.properties.get("RETRY_TOPIC").map(String::as_str),
            Some(TOPIC)
        );
        cluster.nodes[leader].start();
        cluster.all_sure().await;
        cluster.delays_copied(next).await;
        leader = cluster.taking().await;
        let end = cluster
            .admin
            .max_offset(&cluster.nodes[leader].address, RETRIES, 0);
        assert_eq!(end.await.unwrap(), tried, "not once");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_from_a_follower_reads_on_when_the_leader_dies() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let load = cluster.load();
    load.acknowledged(50).await;
    let leader = cluster.leader(|_| true).await;
    let from = cluster.nodes[(leader + 1) % 3].address.clone();
    let admin = Admin::new(RemotingClient::default(), "");
    let mut found = Found::new();
    let mut next: BTreeMap<i32, i64> = (0..QUEUES).map(|queue| (queue, 0)).collect();
    // Everything that is there for it now, one after the other.
    let mut read_on = async || {
        for (queue, offset) in &mut next {
            while let Ok((messages, _)) = admin.pull(&from, TOPIC, *queue, *offset, 32).await
                && !messages.is_empty()
            {
                for m in messages {
                    assert_eq!(m.queue_offset, *offset, "queue {queue}");
                    found.insert((*queue, *offset), String::from_utf8(m.body).unwrap());
                    *offset += 1;
                }
            }
        }
        found.len()
    };
    until("the follower is read from", async || read_on().await >= 50).await;
    cluster.nodes[leader].kill();
    load.acknowledged(100).await;
    let before = read_on().await;
    load.acknowledged(100).await;
    until("it is read on from", async || read_on().await > before).await;
    cluster.nodes[leader].start();
    load.acknowledged(50).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.shows_all((leader + 1) % 3).await;
    read_on().await;
    check("the reader", &acknowledged, &found);
    cluster.end().await;
}
