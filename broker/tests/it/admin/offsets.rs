use remoting::protocol::request_code as code;

use super::support::{Rig, assert_recorded_shape, consumer, recorded, value};

const QUEUE: [(&str, &str); 3] = [("consumerGroup", "G"), ("topic", "T"), ("queueId", "0")];

#[tokio::test]
async fn a_new_group_starts_where_nothing_is_skipped() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    // An empty queue: its end is its start, and saying so at once leaves no time for a message in between.
    assert_eq!(
        rig.admin
            .ok(code::QUERY_CONSUMER_OFFSET, &QUEUE)
            .await
            .ext("offset"),
        Some("0")
    );
    rig.admin.produce("T", 0, "x", "").await;
    assert_eq!(
        rig.admin
            .ok(code::QUERY_CONSUMER_OFFSET, &QUEUE)
            .await
            .ext("offset"),
        Some("0")
    );
    let mut strict = QUEUE.to_vec();
    strict.push(("setZeroIfNotFound", "false"));
    assert_eq!(
        rig.admin
            .call(code::QUERY_CONSUMER_OFFSET, &strict)
            .await
            .code,
        22
    );
    rig.stop().await;
}

#[tokio::test]
async fn offsets_are_committed_for_known_groups_and_topics_and_survive_a_restart() {
    let rig = Rig::start().await;
    let commit = |group, topic| {
        [
            ("consumerGroup", group),
            ("topic", topic),
            ("queueId", "0"),
            ("commitOffset", "3"),
        ]
    };
    let absent = rig
        .admin
        .call(code::UPDATE_CONSUMER_OFFSET, &commit("G", "T"))
        .await;
    assert_eq!(
        (absent.code, absent.remark.as_deref()),
        (26, Some("Group G not exist!"))
    );
    rig.admin.create_group("G").await;
    assert_eq!(
        rig.admin
            .call(code::UPDATE_CONSUMER_OFFSET, &commit("G", "T"))
            .await
            .code,
        17
    );
    rig.admin.create_topic("T", 1).await;
    rig.admin
        .ok(code::UPDATE_CONSUMER_OFFSET, &commit("G", "T"))
        .await;
    let folder = rig.stop().await;

    let text =
        std::fs::read_to_string(folder.path().join("store/config/consumerOffset.json")).unwrap();
    assert!(text.contains(r#""T@G":{0:3}"#), "{text}");
    let rig = Rig::start_in(folder, |_| {}).await;
    assert_eq!(
        rig.admin
            .ok(code::QUERY_CONSUMER_OFFSET, &QUEUE)
            .await
            .ext("offset"),
        Some("3")
    );
    let (number, body) = recorded!(43);
    assert_recorded_shape(
        number,
        body,
        &rig.admin.ok_json(code::GET_ALL_CONSUMER_OFFSET, &[]).await,
    );
    rig.stop().await;
}

#[tokio::test]
async fn progress_of_a_group_in_the_recorded_shapes() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    for body in ["a", "b", "c"] {
        rig.admin.produce("T", 0, body, "").await;
    }
    rig.admin.heartbeat(&consumer("c1", "G", &["T"])).await;
    let commit = [
        ("consumerGroup", "G"),
        ("topic", "T"),
        ("queueId", "0"),
        ("commitOffset", "2"),
    ];
    rig.admin.ok(code::UPDATE_CONSUMER_OFFSET, &commit).await;

    let stats = rig
        .admin
        .ok(code::GET_CONSUME_STATS, &[("consumerGroup", "G")])
        .await;
    let (number, body) = recorded!(208);
    assert_recorded_shape(number, body, &value(&stats));
    let raw = String::from_utf8(stats.body.to_vec()).unwrap();
    assert!(raw.contains(r#"{"brokerName":"broker-a","queueId":0,"topic":"T"}:{"brokerOffset":3,"consumerOffset":2,"lastTimestamp":1"#), "{raw}");

    let spans = rig
        .admin
        .ok_json(
            code::QUERY_CONSUME_TIME_SPAN,
            &[("topic", "T"), ("group", "G")],
        )
        .await;
    let (number, body) = recorded!(303);
    assert_recorded_shape(number, body, &spans);
    assert!(
        spans["consumeTimeSpanSet"][0]["delayTime"]
            .as_i64()
            .unwrap()
            >= 0
    );
    assert_eq!(
        spans["consumeTimeSpanSet"][0]["minTimeStampStr"]
            .as_str()
            .unwrap()
            .len(),
        "2026-11-21#01:13:17:054".len()
    );

    let all = rig
        .admin
        .ok_json(code::GET_BROKER_CONSUME_STATS, &[("isOrder", "false")])
        .await;
    assert_eq!(all["totalDiff"], 1);
    let topics = rig
        .admin
        .ok_json(code::QUERY_TOPICS_BY_CONSUMER, &[("group", "G")])
        .await;
    let (number, body) = recorded!(343);
    assert_recorded_shape(number, body, &topics);

    rig.admin
        .ok(
            code::CLONE_GROUP_OFFSET,
            &[
                ("srcGroup", "G"),
                ("destGroup", "H"),
                ("topic", "T"),
                ("offline", "true"),
            ],
        )
        .await;
    let fields = [("consumerGroup", "H"), ("topic", "T"), ("queueId", "0")];
    assert_eq!(
        rig.admin
            .ok(code::QUERY_CONSUMER_OFFSET, &fields)
            .await
            .ext("offset"),
        Some("2")
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_reset_reaches_the_next_pull_and_holds_off_commits_until_then() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    rig.admin.create_group("G").await;
    for body in ["a", "b", "c"] {
        rig.admin.produce("T", 0, body, "").await;
    }
    let commit = [
        ("consumerGroup", "G"),
        ("topic", "T"),
        ("queueId", "0"),
        ("commitOffset", "3"),
    ];
    rig.admin.ok(code::UPDATE_CONSUMER_OFFSET, &commit).await;
    let reset = |group, timestamp| {
        [
            ("topic", "T"),
            ("group", group),
            ("timestamp", timestamp),
            ("isForce", "true"),
        ]
    };
    let answer = rig
        .admin
        .ok(code::INVOKE_BROKER_TO_RESET_OFFSET, &reset("G", "0"))
        .await;
    assert_eq!(
        &answer.body[..],
        br#"{"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:0}}"#
    );

    let ignored = rig.admin.ok(code::UPDATE_CONSUMER_OFFSET, &commit).await;
    assert_eq!(
        ignored.remark.as_deref(),
        Some("Offset has been previously reset")
    );
    assert_eq!(
        rig.admin
            .ok(code::QUERY_CONSUMER_OFFSET, &QUEUE)
            .await
            .ext("offset"),
        Some("0")
    );
    let moved = rig.admin.pull("G", "T", 0, 3).await;
    assert_eq!(
        (
            moved.code,
            moved.remark.as_deref(),
            moved.ext("nextBeginOffset")
        ),
        (21, Some("OFFSET_RESET"), Some("0"))
    );
    assert_eq!(
        rig.admin
            .ok(code::UPDATE_CONSUMER_OFFSET, &commit)
            .await
            .remark,
        None
    );

    let unknown = rig
        .admin
        .call(code::INVOKE_BROKER_TO_RESET_OFFSET, &reset("N", "0"))
        .await;
    assert_eq!(
        (unknown.code, unknown.remark.as_deref()),
        (26, Some("Group N does not exist"))
    );
    let to_end = rig
        .admin
        .ok_json(code::INVOKE_BROKER_TO_RESET_OFFSET, &reset("G", "-1"))
        .await;
    assert_eq!(
        to_end["offsetTable"]
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap(),
        3
    );
    let mut beyond = reset("G", "-1").to_vec();
    beyond.extend([("queueId", "0"), ("offset", "9")]);
    let refused = rig
        .admin
        .call(code::INVOKE_BROKER_TO_RESET_OFFSET, &beyond)
        .await;
    assert_eq!(
        (refused.code, refused.remark.as_deref()),
        (1, Some("Target offset 9 not in consume queue range [0-3]"))
    );
    rig.stop().await;
}

#[tokio::test]
async fn the_older_reset_goes_through_the_members() {
    let rig = Rig::start_with(|config| config.use_server_side_reset_offset = false).await;
    rig.admin.create_topic("T", 1).await;
    rig.admin.produce("T", 0, "a", "").await;
    let reset = [
        ("topic", "T"),
        ("group", "G"),
        ("timestamp", "0"),
        ("isForce", "true"),
    ];
    let unknown = rig
        .admin
        .call(code::INVOKE_BROKER_TO_RESET_OFFSET, &reset)
        .await;
    assert_eq!(
        (unknown.code, unknown.remark.as_deref()),
        (1, Some("THe consumer group <G> not exist"))
    );
    rig.admin.create_group("G").await;
    let commit = [
        ("consumerGroup", "G"),
        ("topic", "T"),
        ("queueId", "0"),
        ("commitOffset", "1"),
    ];
    rig.admin.ok(code::UPDATE_CONSUMER_OFFSET, &commit).await;
    let offline = rig
        .admin
        .call(code::INVOKE_BROKER_TO_RESET_OFFSET, &reset)
        .await;
    let remark = "Consumer not online, so can not reset offset, Group: G Topic: T Timestamp: 0";
    assert_eq!(
        (offline.code, offline.remark.as_deref()),
        (206, Some(remark))
    );
    let member = rig.client();
    member.heartbeat(&consumer("c1", "G", &["T"])).await;
    rig.admin
        .ok(code::INVOKE_BROKER_TO_RESET_OFFSET, &reset)
        .await;
    member
        .until_asked(code::RESET_CONSUMER_CLIENT_OFFSET, 1)
        .await;
    let order = &member.asked(code::RESET_CONSUMER_CLIENT_OFFSET)[0];
    assert_eq!(
        &order.body[..],
        br#"{"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:0}}"#
    );
    assert_eq!(
        (order.ext("topic"), order.ext("group"), order.is_oneway()),
        (Some("T"), Some("G"), true)
    );
    rig.stop().await;
}

#[tokio::test]
async fn offsets_by_time_and_limits_of_a_queue() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    let at = |name, value| [("topic", "T"), ("queueId", "0"), (name, value)];
    assert_eq!(
        rig.admin
            .ok(code::GET_EARLIEST_MSG_STORETIME, &at("x", ""))
            .await
            .ext("timestamp"),
        Some("-1")
    );
    rig.admin.produce("T", 0, "a", "").await;
    rig.admin.produce("T", 0, "b", "").await;
    assert_eq!(
        rig.admin
            .ok(code::SEARCH_OFFSET_BY_TIMESTAMP, &at("timestamp", "0"))
            .await
            .ext("offset"),
        Some("0")
    );
    let far = "4102444800000";
    assert_eq!(
        rig.admin
            .ok(code::SEARCH_OFFSET_BY_TIMESTAMP, &at("timestamp", far))
            .await
            .ext("offset"),
        Some("2")
    );
    let mut upper = at("timestamp", far).to_vec();
    upper.push(("boundaryType", "upper"));
    assert_eq!(
        rig.admin
            .ok(code::SEARCH_OFFSET_BY_TIMESTAMP, &upper)
            .await
            .ext("offset"),
        Some("1")
    );
    assert_eq!(
        rig.admin
            .ok(code::GET_MAX_OFFSET, &at("committed", "true"))
            .await
            .ext("offset"),
        Some("2")
    );
    assert_eq!(
        rig.admin
            .ok(code::GET_MIN_OFFSET, &at("x", ""))
            .await
            .ext("offset"),
        Some("0")
    );
    let earliest: i64 = rig
        .admin
        .ok(code::GET_EARLIEST_MSG_STORETIME, &at("x", ""))
        .await
        .ext("timestamp")
        .unwrap()
        .parse()
        .unwrap();
    assert!(earliest > 1_600_000_000_000);
    rig.stop().await;
}
