use std::time::{SystemTime, UNIX_EPOCH};

use remoting::protocol::message::RecordView;
use remoting::protocol::request_code as code;

use super::support::{Rig, property};
use crate::support::until;

fn now_ms() -> i64 {
    i64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}

fn position(id: &str) -> String {
    i64::from_str_radix(&id[id.len() - 16..], 16)
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn a_delayed_message_arrives_on_time_and_unchanged() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 2).await;
    rig.admin.create_group("G").await;
    let properties = "TAGS\u{1}TagA\u{2}KEYS\u{1}k\u{2}UNIQ_KEY\u{1}u\u{2}DELAY\u{1}1\u{2}";
    let sent = now_ms();
    rig.admin.produce("T", 1, "later", properties).await;
    assert_eq!(rig.admin.pull("G", "T", 1, 0).await.code, 19);
    let body = rig.admin.until_pulled("G", "T", 1, 0).await;
    let record = RecordView::parse(&body).unwrap();
    assert!(
        record.store_timestamp >= sent + 1000,
        "{} after {sent}",
        record.store_timestamp - sent
    );
    assert_eq!(
        (record.body, record.topic, record.queue_id, record.flag),
        (&b"later"[..], &b"T"[..], 1, 7)
    );
    for (name, value) in [
        ("DELAY", "1"),
        ("REAL_TOPIC", "T"),
        ("REAL_QID", "1"),
        ("TAGS", "TagA"),
        ("UNIQ_KEY", "u"),
    ] {
        assert_eq!(property(&record, name).as_deref(), Some(value), "{name}");
    }
    let fields = [
        ("topic", "T"),
        ("queueId", "1"),
        ("index", "0"),
        ("count", "1"),
    ];
    assert_eq!(
        rig.admin.ok_json(code::QUERY_CONSUME_QUEUE, &fields).await["queueData"][0]["tagsCode"],
        2_598_919
    );
    let delays = rig.admin.ok(code::GET_ALL_DELAY_OFFSET, &[]).await;
    assert!(
        String::from_utf8(delays.body.to_vec())
            .unwrap()
            .ends_with(r#""offsetTable":{1:1}}"#)
    );
    rig.stop().await;
}

#[tokio::test]
async fn what_waits_is_delivered_after_a_restart_and_nothing_twice() {
    let rig = Rig::start_with(|config| config.message_delay_level = "1s 2s".to_owned()).await;
    rig.admin.create_topic("T", 1).await;
    rig.admin.create_group("G").await;
    rig.admin.produce("T", 0, "first", "DELAY\u{1}1\u{2}").await;
    rig.admin.until_pulled("G", "T", 0, 0).await;
    // Beyond the highest level counts as the highest.
    rig.admin
        .produce("T", 0, "second", "DELAY\u{1}9\u{2}")
        .await;
    let folder = rig.stop().await;
    let rig = Rig::start_in(folder, |config| {
        config.message_delay_level = "1s 2s".to_owned()
    })
    .await;
    let body = rig.admin.until_pulled("G", "T", 0, 1).await;
    assert_eq!(RecordView::parse(&body).unwrap().body, b"second");
    until("both levels to be done", || {
        rig.broker.schedule.progress() == [(1, 1, 1), (2, 1, 1)]
    })
    .await;
    assert_eq!(
        rig.admin
            .ok(code::GET_MAX_OFFSET, &[("topic", "T"), ("queueId", "0")])
            .await
            .ext("offset"),
        Some("2")
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_returned_message_comes_again_later_and_ends_among_the_dead_letters() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    rig.admin.create_group("G").await;
    let (id, _) = rig
        .admin
        .produce("T", 0, "hard", "TAGS\u{1}TagA\u{2}UNIQ_KEY\u{1}u\u{2}")
        .await;
    let back = |offset: &str, level: &str| {
        [
            ("offset", offset),
            ("group", "G"),
            ("delayLevel", level),
            ("originMsgId", "u"),
            ("originTopic", "T"),
            ("maxReconsumeTimes", "1"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
    };
    let send_back = async |offset: &str, level: &str| {
        let fields = back(offset, level);
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        rig.admin.call(code::CONSUMER_SEND_MSG_BACK, &fields).await
    };
    assert_eq!(send_back(&position(&id), "1").await.code, 0);
    let body = rig.admin.until_pulled("G", "%RETRY%G", 0, 0).await;
    let again = RecordView::parse(&body).unwrap();
    assert_eq!(
        (again.body, again.reconsume_times, again.flag),
        (&b"hard"[..], 1, 7)
    );
    assert_eq!(property(&again, "RETRY_TOPIC").as_deref(), Some("T"));
    assert_eq!(
        property(&again, "ORIGIN_MESSAGE_ID").as_deref(),
        Some(id.as_str())
    );
    assert_eq!(property(&again, "TAGS").as_deref(), Some("TagA"));
    assert_eq!(property(&again, "WAIT").as_deref(), Some("false"));

    assert_eq!(
        send_back(&again.physical_offset.to_string(), "0")
            .await
            .code,
        0
    );
    let body = rig.admin.until_pulled("G", "%DLQ%G", 0, 0).await;
    let dead = RecordView::parse(&body).unwrap();
    assert_eq!((dead.body, dead.reconsume_times), (&b"hard"[..], 2));
    assert_eq!(
        property(&dead, "ORIGIN_MESSAGE_ID").as_deref(),
        Some(id.as_str())
    );
    assert_eq!(property(&dead, "RETRY_TOPIC").as_deref(), Some("T"));

    let lost = send_back("16777215", "0").await;
    assert_eq!(
        (lost.code, lost.remark.as_deref()),
        (1, Some("look message by offset failed, 16777215"))
    );
    assert_eq!(send_back(&position(&id), "-1").await.code, 0);
    rig.admin.until_pulled("G", "%DLQ%G", 0, 1).await;
    assert!(rig.broker.stats.data("SNDBCK_PUT_NUMS", "T@G").is_some());
    rig.stop().await;
}
