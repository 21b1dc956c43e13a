//! The tables of a Java broker's store (4.9.7 and 5.3.3, stopped and killed; the store's own fixtures) are taken over
//! as they are, and what was delayed there and is overdue is delivered here.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use remoting::protocol::json;
use remoting::protocol::message::RecordView;
use remoting::protocol::request_code as code;
use serde_json::Value;

use super::support::{Rig, property};
use crate::support::until;

/// The level whose only message was due two hours after it was sent.
const OVERDUE_LEVEL: i32 = 18;
/// The broker's clock is set so far ahead that it is overdue whenever the test runs.
const BEYOND_THE_DELAY: Duration = Duration::from_secs(3 * 3600);

async fn take_over(name: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar")
        .arg("-xJf")
        .arg(fixtures.join(format!("{name}.tar.xz")))
        .arg("-C")
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(unpacked.success());
    let expected = std::fs::read(fixtures.join(format!("{name}.expect.json"))).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let files = &expected["config"];
    let root = folder.path().join(name);
    let in_place = root.display().to_string();
    let rig = Rig::start_ahead(folder, BEYOND_THE_DELAY, |config| {
        config.store_path_root_dir = in_place;
    })
    .await;

    let offsets = &files["consumerOffset.json"]["offsetTable"];
    for (key, queues) in offsets.as_object().unwrap() {
        let (topic, group) = key.split_once('@').unwrap();
        for (queue, offset) in queues.as_object().unwrap() {
            let fields = [
                ("consumerGroup", group),
                ("topic", topic),
                ("queueId", queue),
            ];
            let answer = rig.admin.ok(code::QUERY_CONSUMER_OFFSET, &fields).await;
            assert_eq!(
                answer.ext("offset"),
                Some(offset.to_string().as_str()),
                "{key} {queue}"
            );
        }
    }
    for (request, file, table) in [
        (
            code::GET_ALL_TOPIC_CONFIG,
            "topics.json",
            "topicConfigTable",
        ),
        (
            code::GET_ALL_SUBSCRIPTIONGROUP_CONFIG,
            "subscriptionGroup.json",
            "subscriptionGroupTable",
        ),
    ] {
        let ours = rig.admin.ok_json(request, &[]).await;
        for (name, theirs) in files[file][table].as_object().unwrap() {
            for field in [
                "readQueueNums",
                "retryMaxTimes",
                "retryQueueNums",
                "consumeEnable",
            ] {
                if !theirs[field].is_null() && name.starts_with("store-") {
                    assert_eq!(ours[table][name][field], theirs[field], "{name} {field}");
                }
            }
            assert!(ours[table][name].is_object(), "{name} is gone from {file}");
        }
    }

    until("the overdue message", || {
        rig.broker
            .schedule
            .progress()
            .contains(&(OVERDUE_LEVEL, 1, 1))
    })
    .await;
    let delayed = expected["messages"].as_array().unwrap();
    let delayed = delayed
        .iter()
        .find(|message| {
            message["topic"] == "SCHEDULE_TOPIC_XXXX" && message["queueId"] == OVERDUE_LEVEL - 1
        })
        .unwrap();
    let queue = delayed["properties"]["REAL_QID"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let last = rig.broker.store.max_offset("store-small", queue) - 1;
    let body = rig
        .admin
        .until_pulled("store-group-all", "store-small", queue, last)
        .await;
    let record = RecordView::parse(&body).unwrap();
    assert_eq!(property(&record, "DELAY").as_deref(), Some("18"));
    assert_eq!(
        property(&record, "UNIQ_KEY").as_deref(),
        delayed["properties"]["UNIQ_KEY"].as_str()
    );

    let folder = rig.stop().await;
    let read = |file: &str| -> Value {
        json::parse(&std::fs::read(root.join("config").join(file)).unwrap()).unwrap()
    };
    assert_eq!(read("consumerOffset.json")["offsetTable"], *offsets);
    assert_eq!(read("delayOffset.json")["offsetTable"]["18"], 1);
    drop(folder);
}

#[tokio::test]
async fn tables_and_delayed_messages_of_4_9_7() {
    take_over("4.9.7-clean").await;
    take_over("4.9.7-killed").await;
}

#[tokio::test]
async fn tables_and_delayed_messages_of_5_3_3() {
    take_over("5.3.3-clean").await;
    take_over("5.3.3-killed").await;
}
