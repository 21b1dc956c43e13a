//! The typed administration calls against a running cluster of one name server and one broker.

use std::collections::BTreeMap;

use remoting::RemotingCommand;
use remoting::protocol::body::{MessageQueue, SubscriptionGroupConfig, TopicConfig};
use remoting::protocol::header::{SendMessageRequestHeaderV2, SendMessageResponseHeader};
use remoting::protocol::message::{MessageId, property, push_property};
use remoting::protocol::{request_code, response_code};

use crate::rig::{PATIENCE, Rig};

async fn send(
    rig: &Rig,
    topic: &str,
    queue_id: i32,
    body: &str,
    key: &str,
) -> SendMessageResponseHeader {
    let mut properties = Vec::new();
    push_property(&mut properties, property::KEYS, key.as_bytes());
    push_property(
        &mut properties,
        property::UNIQ_KEY,
        format!("U{key}").as_bytes(),
    );
    let header = SendMessageRequestHeaderV2 {
        producer_group: "PG".to_owned(),
        topic: topic.to_owned(),
        default_topic: "TBW102".to_owned(),
        default_topic_queue_nums: 4,
        queue_id,
        born_timestamp: 1,
        properties: Some(String::from_utf8(properties).unwrap()),
        ..SendMessageRequestHeaderV2::default()
    };
    let request = RemotingCommand::request(request_code::SEND_MESSAGE_V2)
        .with_header(&header)
        .with_body(body.to_owned());
    let answer = rig.ask_broker(request).await;
    assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
    answer.header().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_groups_and_messages_are_administered() {
    let rig = Rig::start().await;
    let (admin, broker) = (&rig.admin, &rig.broker_address());

    admin
        .create_topic(broker, &TopicConfig::new("Orders", 2, 6))
        .await
        .unwrap();
    let route = async {
        loop {
            if let Some(route) = admin.topic_route("Orders").await.unwrap() {
                return route;
            }
        }
    };
    let route = tokio::time::timeout(PATIENCE, route).await.unwrap();
    assert_eq!(route.queue_datas[0].write_queue_nums, 2);
    assert_eq!(&route.broker_datas[0].broker_addrs[&0], broker);
    assert!(
        admin
            .topic_list()
            .await
            .unwrap()
            .topic_list
            .contains("Orders")
    );
    assert_eq!(
        admin
            .topic_config(broker, "Orders")
            .await
            .unwrap()
            .unwrap()
            .perm,
        6
    );
    assert_eq!(admin.topic_config(broker, "Nothing").await.unwrap(), None);
    assert_eq!(admin.topic_route("Nothing").await.unwrap(), None);
    assert!(
        admin
            .topic_configs(broker)
            .await
            .unwrap()
            .topic_config_table
            .contains_key("Orders")
    );

    let first = send(&rig, "Orders", 1, "one", "k1").await;
    let second = send(&rig, "Orders", 1, "two", "k2").await;
    assert_eq!((first.queue_offset, second.queue_offset), (0, 1));
    assert_eq!(admin.max_offset(broker, "Orders", 1).await.unwrap(), 2);
    assert_eq!(admin.min_offset(broker, "Orders", 1).await.unwrap(), 0);
    assert_eq!(
        admin.search_offset(broker, "Orders", 1, 0).await.unwrap(),
        0
    );

    let (messages, header) = admin.pull(broker, "Orders", 1, 0, 32).await.unwrap();
    assert_eq!(
        messages
            .iter()
            .map(|message| &message.body[..])
            .collect::<Vec<_>>(),
        [b"one", b"two"]
    );
    assert_eq!((header.next_begin_offset, header.max_offset), (2, 2));
    assert_eq!(messages[0].msg_id, first.msg_id);
    assert_eq!(messages[1].properties["KEYS"], "k2");
    let id = MessageId::parse(&second.msg_id).unwrap();
    let viewed = admin
        .view_message(broker, id.offset)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(viewed, messages[1]);
    let found = async {
        loop {
            // The index is built behind the log.
            let found = admin
                .query_message(broker, "Orders", "k1", 32, (0, i64::MAX), false)
                .await
                .unwrap();
            if !found.is_empty() {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await.unwrap();
    assert_eq!(found, messages[..1]);
    let by_unique_key = admin
        .query_message(broker, "Orders", "Uk2", 32, (0, i64::MAX), true)
        .await
        .unwrap();
    assert_eq!(by_unique_key, messages[1..]);
    let stats = admin.topic_stats(broker, "Orders").await.unwrap();
    assert_eq!(
        stats.offset_table[&MessageQueue::new("Orders", "broker-a", 1)].max_offset,
        2
    );

    let group = SubscriptionGroupConfig::new("G");
    admin
        .create_subscription_group(broker, &group)
        .await
        .unwrap();
    let groups = admin.subscription_groups(broker).await.unwrap();
    assert_eq!(groups.subscription_group_table["G"], group);
    assert_eq!(
        admin
            .consumer_offset(broker, "G", "Orders", 1)
            .await
            .unwrap(),
        None
    );
    admin
        .update_consumer_offset(broker, "G", "Orders", 1, 1)
        .await
        .unwrap();
    assert_eq!(
        admin
            .consumer_offset(broker, "G", "Orders", 1)
            .await
            .unwrap(),
        Some(1)
    );
    let stats = admin
        .consume_stats(broker, "G", Some("Orders"))
        .await
        .unwrap();
    let queue = &stats.offset_table[&MessageQueue::new("Orders", "broker-a", 1)];
    assert_eq!((queue.broker_offset, queue.consumer_offset), (2, 1));
    assert_eq!(admin.consumer_connection(broker, "G").await.unwrap(), None);
    let reset = admin
        .reset_offset(broker, "G", "Orders", -1, true)
        .await
        .unwrap();
    assert_eq!(reset[&MessageQueue::new("Orders", "broker-a", 1)], 2);
    admin
        .delete_subscription_group(broker, "G", true)
        .await
        .unwrap();
    assert!(
        !admin
            .subscription_groups(broker)
            .await
            .unwrap()
            .subscription_group_table
            .contains_key("G")
    );

    admin
        .delete_topic_in_broker(broker, "Orders")
        .await
        .unwrap();
    admin
        .delete_topic_in_name_servers("Orders", None)
        .await
        .unwrap();
    assert_eq!(admin.topic_route("Orders").await.unwrap(), None);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_and_permissions_are_administered() {
    let rig = Rig::start().await;
    let (admin, broker) = (&rig.admin, &rig.broker_address());
    let name_server = rig.name_server.address().to_string();

    let info = admin.broker_runtime_info(broker).await.unwrap();
    assert!(
        info.contains_key("brokerVersionDesc") && info.contains_key("putTps"),
        "{info:?}"
    );
    let config = admin.broker_config(broker).await.unwrap();
    assert_eq!(config.values["brokerName"], "broker-a");
    let change = BTreeMap::from([("maxMessageSize".to_owned(), "1000000".to_owned())]);
    admin.update_broker_config(broker, &change).await.unwrap();
    let config = admin.broker_config(broker).await.unwrap();
    assert_eq!(config.values["maxMessageSize"], "1000000");

    admin
        .put_kv("ORDER_TOPIC_CONFIG", "T", "broker-a:4")
        .await
        .unwrap();
    assert_eq!(
        admin
            .get_kv("ORDER_TOPIC_CONFIG", "T")
            .await
            .unwrap()
            .as_deref(),
        Some("broker-a:4")
    );
    assert_eq!(
        admin
            .kv_list_of(&name_server, "ORDER_TOPIC_CONFIG")
            .await
            .unwrap(),
        BTreeMap::from([("T".to_owned(), "broker-a:4".to_owned())])
    );
    admin.delete_kv("ORDER_TOPIC_CONFIG", "T").await.unwrap();
    assert_eq!(admin.get_kv("ORDER_TOPIC_CONFIG", "T").await.unwrap(), None);
    assert!(
        admin
            .kv_list_of(&name_server, "nothing")
            .await
            .unwrap()
            .is_empty()
    );

    let wiped = admin.wipe_write_perm("broker-a").await.unwrap();
    assert!(wiped[0] > 0);
    let route = admin.topic_route("TBW102").await.unwrap().unwrap();
    assert_eq!(route.queue_datas[0].perm & 2, 0);
    assert_eq!(admin.add_write_perm("broker-a").await.unwrap(), wiped);
    let route = admin.topic_route("TBW102").await.unwrap().unwrap();
    assert_eq!(route.queue_datas[0].perm & 2, 2);
    assert!(
        admin
            .name_server_config(&name_server)
            .await
            .unwrap()
            .contains_key("listenPort")
    );
    rig.stop().await;
}
