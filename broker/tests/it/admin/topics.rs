use remoting::protocol::request_code as code;

use super::support::{Rig, assert_recorded_shape, recorded, request, value};

#[tokio::test]
async fn a_topic_is_created_changed_listed_and_deleted() {
    let rig = Rig::start().await;
    let admin = &rig.admin;
    admin.create_topic("T", 4).await;
    let topic = admin
        .ok_json(code::GET_TOPIC_CONFIG, &[("topic", "T"), ("lo", "true")])
        .await;
    let (number, body) = recorded!(351);
    assert_recorded_shape(number, body, &topic);
    assert_eq!(
        (topic["readQueueNums"].as_i64(), topic["perm"].as_i64()),
        (Some(4), Some(6))
    );

    let (_, offset) = admin.produce("T", 3, "x", "").await;
    assert_eq!(offset, 0);
    admin.create_topic("T", 8).await;
    let all = admin.ok_json(code::GET_ALL_TOPIC_CONFIG, &[]).await;
    assert_eq!(all["topicConfigTable"]["T"]["writeQueueNums"], 8);
    assert!(all["dataVersion"]["counter"].as_i64() > Some(0));

    admin
        .ok(code::DELETE_TOPIC_IN_BROKER, &[("topic", "T")])
        .await;
    let gone = admin.call(code::GET_TOPIC_CONFIG, &[("topic", "T")]).await;
    assert_eq!(
        (gone.code, gone.remark.as_deref()),
        (17, Some("No topic in this broker. topic: T"))
    );
    assert_eq!(
        admin
            .ok(code::GET_MAX_OFFSET, &[("topic", "T"), ("queueId", "3")])
            .await
            .ext("offset"),
        Some("0")
    );
    rig.stop().await;
}

#[tokio::test]
async fn bad_and_system_topics_are_refused_with_the_recorded_remark() {
    let rig = Rig::start().await;
    let update = |topic: &'static str| {
        request(
            code::UPDATE_AND_CREATE_TOPIC,
            &[
                ("topic", topic),
                ("readQueueNums", "1"),
                ("writeQueueNums", "1"),
                ("perm", "6"),
            ],
        )
    };
    let refused = rig.admin.send(update("RMQ_SYS_TRACE_TOPIC")).await;
    assert_eq!(
        (refused.code, refused.remark.as_deref()),
        (
            29,
            Some("The topic[RMQ_SYS_TRACE_TOPIC] is conflict with system topic.")
        )
    );
    for topic in ["", "bad name", "TBW102", "rmq_sys_anything"] {
        assert_eq!(rig.admin.send(update(topic)).await.code, 29, "{topic}");
    }
    let refused = rig
        .admin
        .send(update("T").with_ext("attributes", "+message.type=WRONG"))
        .await;
    let remark = "value is not in set: [UNSPECIFIED, TRANSACTION, FIFO, MIXED, DELAY, NORMAL]";
    assert_eq!((refused.code, refused.remark.as_deref()), (1, Some(remark)));
    for topic in ["", "TBW102"] {
        assert_eq!(
            rig.admin
                .call(code::DELETE_TOPIC_IN_BROKER, &[("topic", topic)])
                .await
                .code,
            29,
            "{topic}"
        );
    }
    rig.stop().await;
}

#[tokio::test]
async fn lists_of_topics_are_taken_whole_or_not_at_all() {
    let rig = Rig::start().await;
    let list = |name: &str| {
        format!(
            r#"{{"topicConfigList":[{{"topicName":"L1","perm":6,"readQueueNums":2,"writeQueueNums":2}},{{"topicName":"{name}","attributes":null}}]}}"#
        )
    };
    assert_eq!(
        rig.admin
            .with_body(code::UPDATE_AND_CREATE_TOPIC_LIST, list("TBW102"))
            .await
            .code,
        29
    );
    assert_eq!(
        rig.admin
            .call(code::GET_TOPIC_CONFIG, &[("topic", "L1")])
            .await
            .code,
        17
    );
    assert_eq!(
        rig.admin
            .with_body(code::UPDATE_AND_CREATE_TOPIC_LIST, list("L2"))
            .await
            .code,
        0
    );
    assert_eq!(
        rig.admin
            .ok_json(code::GET_TOPIC_CONFIG, &[("topic", "L2")])
            .await["topicName"],
        "L2"
    );
    let system = rig
        .admin
        .ok_json(code::GET_SYSTEM_TOPIC_LIST_FROM_BROKER, &[])
        .await;
    let system = system["topicList"].as_array().unwrap();
    for topic in [
        "TBW102",
        "SCHEDULE_TOPIC_XXXX",
        "DefaultCluster",
        "broker-a",
        "SELF_TEST_TOPIC",
    ] {
        assert!(
            system.iter().any(|name| name == topic),
            "{topic} in {system:?}"
        );
    }
    rig.stop().await;
}

#[tokio::test]
async fn statistics_and_entries_of_a_topic() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 2).await;
    for body in ["a", "b", "c"] {
        rig.admin.produce("T", 1, body, "TAGS\u{1}TagA\u{2}").await;
    }
    let stats = rig
        .admin
        .ok(code::GET_TOPIC_STATS_INFO, &[("topic", "T")])
        .await;
    let (number, body) = recorded!(202);
    assert_recorded_shape(number, body, &value(&stats));
    let raw = String::from_utf8(stats.body.to_vec()).unwrap();
    assert!(
        raw.contains(
            r#"{"brokerName":"broker-a","queueId":1,"topic":"T"}:{"lastUpdateTimestamp":"#
        ),
        "{raw}"
    );
    assert!(raw.contains(r#""maxOffset":3,"minOffset":0"#), "{raw}");
    let absent = rig
        .admin
        .call(code::GET_TOPIC_STATS_INFO, &[("topic", "U")])
        .await;
    assert_eq!(
        (absent.code, absent.remark.as_deref()),
        (17, Some("topic[U] not exist"))
    );

    let fields = [
        ("topic", "T"),
        ("queueId", "1"),
        ("index", "1"),
        ("count", "5"),
    ];
    let entries = rig.admin.ok_json(code::QUERY_CONSUME_QUEUE, &fields).await;
    let (number, body) = recorded!(321);
    assert_recorded_shape(number, body, &entries);
    assert_eq!(entries["maxQueueIndex"], 3);
    assert_eq!(entries["queueData"].as_array().unwrap().len(), 2);
    assert_eq!(entries["queueData"][0]["tagsCode"], 2_598_919);
    let fields = [
        ("topic", "T"),
        ("queueId", "9"),
        ("index", "0"),
        ("count", "5"),
    ];
    assert_eq!(
        rig.admin
            .call(code::QUERY_CONSUME_QUEUE, &fields)
            .await
            .remark
            .as_deref(),
        Some("9@T is not exist!")
    );
    rig.stop().await;
}

#[tokio::test]
async fn groups_are_created_listed_and_deleted() {
    let rig = Rig::start().await;
    let admin = &rig.admin;
    let body = r#"{"brokerId":0,"consumeBroadcastEnable":false,"consumeEnable":true,"consumeFromMinEnable":false,"groupName":"G","notifyConsumerIdsChangedEnable":true,"retryMaxTimes":5,"retryQueueNums":2,"whichBrokerWhenConsumeSlowly":1}"#;
    assert_eq!(
        admin
            .with_body(code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body)
            .await
            .code,
        0
    );
    let group = admin
        .ok_json(code::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", "G")])
        .await;
    let (number, body) = recorded!(352);
    assert_recorded_shape(number, body, &group);
    assert_eq!(
        (
            group["retryMaxTimes"].as_i64(),
            group["consumeBroadcastEnable"].as_bool()
        ),
        (Some(5), Some(false))
    );
    let list = r#"{"groupConfigList":[{"groupName":"H1"},{"groupName":"H2","retryMaxTimes":3}]}"#;
    assert_eq!(
        admin
            .with_body(code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, list)
            .await
            .code,
        0
    );
    assert_eq!(
        admin
            .with_body(
                code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
                r#"{"groupName":"bad name"}"#
            )
            .await
            .code,
        29
    );
    let all = admin
        .ok_json(code::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[])
        .await;
    assert_eq!(all["subscriptionGroupTable"]["H2"]["retryMaxTimes"], 3);
    assert!(all["subscriptionGroupTable"]["TOOLS_CONSUMER"].is_object());

    admin.create_topic("T", 1).await;
    for group in ["G", "H1"] {
        let fields = [
            ("consumerGroup", group),
            ("topic", "T"),
            ("queueId", "0"),
            ("commitOffset", "5"),
        ];
        admin.ok(code::UPDATE_CONSUMER_OFFSET, &fields).await;
    }
    admin
        .ok(
            code::DELETE_SUBSCRIPTIONGROUP,
            &[("groupName", "G"), ("removeOffset", "true")],
        )
        .await;
    admin
        .ok(
            code::DELETE_SUBSCRIPTIONGROUP,
            &[("groupName", "H1"), ("cleanOffset", "false")],
        )
        .await;
    assert_eq!(
        admin
            .call(code::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", "G")])
            .await
            .code,
        26
    );
    let offsets = admin.ok_json(code::GET_ALL_CONSUMER_OFFSET, &[]).await;
    assert_eq!(offsets["offsetTable"].to_string(), r#"{"T@H1":{"0":5}}"#);
    rig.stop().await;
}
