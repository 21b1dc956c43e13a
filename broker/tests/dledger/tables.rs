//! What a new leader knows beside the messages.

use remoting::client::RemotingClient;
use remoting::protocol::body::{SubscriptionGroupConfig, TopicConfig};

use crate::common::load::{CALL_LIMIT, TOPIC, message, place};
use crate::common::until;
use crate::group::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_knows_topics_groups_and_offsets_and_delivers_what_was_delayed_once() {
    const DELAYED: usize = 8;
    const GROUP: &str = "readers";
    let dir = tempfile::tempdir().unwrap();
    let more = "messageDelayLevel=2s\nslaveSyncIntervalMs=100\n";
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", more).await;
    let leader = cluster.all_level().await;
    let address = cluster.nodes[leader].address.clone();
    for name in [TOPIC, "Made"] {
        let topic = TopicConfig {
            topic_name: name.into(),
            read_queue_nums: 3,
            write_queue_nums: 3,
            perm: 6,
            ..TopicConfig::default()
        };
        cluster.admin.create_topic(&address, &topic).await.unwrap();
    }
    let group = SubscriptionGroupConfig::new(GROUP);
    let made = cluster.admin.create_subscription_group(&address, &group);
    made.await.unwrap();
    let moved = cluster
        .admin
        .update_consumer_offset(&address, GROUP, "Made", 1, 7);
    moved.await.unwrap();
    let followers: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    for at in &followers {
        let (admin, address) = (&cluster.admin, &cluster.nodes[*at].address);
        until("a follower copies the tables", async || {
            let topic = admin.topic_config(address, "Made").await;
            let groups = admin.subscription_groups(address).await;
            let offset = admin.consumer_offset(address, GROUP, "Made", 1).await;
            matches!(topic, Ok(Some(t)) if t.read_queue_nums == 3)
                && groups.is_ok_and(|g| g.subscription_group_table.contains_key(GROUP))
                && matches!(offset, Ok(Some(7)))
        })
        .await;
    }
    let client = RemotingClient::default();
    for n in 0..DELAYED {
        let mut message = message(&format!("delayed {n}"));
        for (key, value) in [("queueId", "0"), ("properties", "DELAY\u{1}1\u{2}")] {
            message.ext_fields.insert(key.to_owned(), value.to_owned());
        }
        let answer = client.invoke(&address, message, CALL_LIMIT).await.unwrap();
        assert!(place(&answer).is_some(), "{:?}", answer.remark);
    }
    cluster.nodes[leader].kill();
    let new = cluster.leader(|_| true).await;
    cluster.nodes[leader].start();
    let (admin, address) = (&cluster.admin, &cluster.nodes[new].address);
    let known = admin.topic_config(address, "Made").await.unwrap();
    assert_eq!(known.map(|t| t.read_queue_nums), Some(3));
    let offset = admin.consumer_offset(address, GROUP, "Made", 1).await;
    assert_eq!(offset.unwrap(), Some(7));
    let delivered = DELAYED as i64;
    until("what was delayed is delivered", async || {
        let end = admin.max_offset(address, TOPIC, 0).await;
        end.is_ok_and(|end| end >= delivered)
    })
    .await;
    cluster.all_level().await;
    for (at, node) in cluster.nodes.iter().enumerate() {
        cluster.shows_all(at).await;
        let pulled = cluster.admin.pull(&node.address, TOPIC, 0, 0, 32);
        let (messages, _) = pulled.await.unwrap();
        let bodies: Vec<_> = messages.iter().map(|m| m.body.clone()).collect();
        let wanted: Vec<_> = (0..DELAYED)
            .map(|n| format!("delayed {n}").into_bytes())
            .collect();
        assert_eq!(bodies, wanted, "on {}", node.name);
    }
    cluster.end().await;
}
