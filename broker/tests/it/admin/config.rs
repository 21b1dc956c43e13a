use broker::processor::NOT_SERVED;
use remoting::protocol::{request_code as code, response_code};

use super::support::{Rig, assert_recorded_shape, recorded, request};

#[tokio::test]
async fn runtime_info_has_every_key_that_tools_read() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    rig.admin.produce("T", 0, "x", "").await;
    let info = rig.admin.ok_json(code::GET_BROKER_RUNTIME_INFO, &[]).await;
    let (number, body) = recorded!(28);
    // Two keys hold a path or a level in their names.
    let body = body
        .replace(
            "commitLogDiskRatio_/data/rocketmq/store/commitlog",
            "commitLogDiskRatio",
        )
        .replace("scheduleMessageOffset_1", "runtime");
    assert_recorded_shape(number, &body, &info);
    let table = &info["table"];
    assert_eq!(table["getTransferedTps"], table["getTransferredTps"]);
    assert_eq!(table["putTps"].as_str().unwrap().split(' ').count(), 3);
    assert_eq!(
        (
            table["brokerVersionDesc"].as_str(),
            table["brokerActive"].as_str()
        ),
        (Some("V4_9_8"), Some("true"))
    );
    assert_eq!(table["putMessageTimesTotal"], "1");
    assert!(
        table["commitLogMaxOffset"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    rig.stop().await;
}

fn text(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn dynamic_keys_count_at_once_and_the_file_keeps_all_that_was_set() {
    let rig = Rig::start_with_file("# mine\nbrokerName=broker-a\nmaxMessageSize = 100000\n").await;
    let before = rig.admin.ok(code::GET_BROKER_CONFIG, &[]).await;
    assert!(text(&before.body).contains("\nmaxMessageSize=100000\n"));
    assert!(
        before
            .ext("version")
            .unwrap()
            .starts_with(r#"{"counter":0,"#)
    );
    assert!(before.ext("configHash").is_some() && text(&before.body).contains("\nconfigHash="));

    let update = |body: &'static str| rig.admin.with_body(code::UPDATE_BROKER_CONFIG, body);
    let done = update("maxMessageSize=65536\nmaxHashSlotNum=1234\n").await;
    assert_eq!(
        (done.code, done.remark.as_deref()),
        (0, Some("maxHashSlotNum counts after a restart"))
    );
    let after = rig.admin.ok(code::GET_BROKER_CONFIG, &[]).await;
    assert!(text(&after.body).contains("\nmaxMessageSize=65536\n"));
    assert!(
        text(&after.body).contains("\nmaxHashSlotNum=1000\n"),
        "what runs is what is shown"
    );
    assert!(
        after
            .ext("version")
            .unwrap()
            .starts_with(r#"{"counter":1,"#)
    );
    let read = |name: &str| std::fs::read_to_string(rig.folder.path().join(name)).unwrap();
    assert!(
        read("broker.conf").contains("maxMessageSize=65536")
            && read("broker.conf").contains("maxHashSlotNum=1234")
    );
    assert!(read("broker.conf.bak").contains("maxMessageSize = 100000"));

    assert_eq!(
        update("brokerConfigPath=/tmp/x\n").await.code,
        response_code::NO_PERMISSION
    );
    for (wrong, told) in [
        ("maxMessageSize=many\n", "maxMessageSize=many"),
        (
            "brokerPermission=99\nmaxMessageSize=70000\n",
            "brokerPermission=99",
        ),
    ] {
        let refused = update(wrong).await;
        assert!(refused.code == 1 && refused.remark.unwrap().contains(told));
    }
    let unknown = update("maxMesageSize=70000\n").await;
    assert!(
        unknown.code == 0
            && unknown
                .remark
                .unwrap()
                .contains("maxMesageSize is not a key")
    );
    assert!(
        text(&rig.admin.ok(code::GET_BROKER_CONFIG, &[]).await.body)
            .contains("\nmaxMessageSize=65536\n")
    );
    rig.stop().await;
}

#[tokio::test]
async fn without_a_file_dynamic_keys_count_until_the_restart_and_others_are_refused() {
    let rig = Rig::start().await;
    let update = |body: &'static str| rig.admin.with_body(code::UPDATE_BROKER_CONFIG, body);
    let done = update("maxMessageSize=65536\n").await;
    assert!(done.code == 0 && done.remark.unwrap().starts_with("in memory only"));
    assert!(
        text(&rig.admin.ok(code::GET_BROKER_CONFIG, &[]).await.body)
            .contains("\nmaxMessageSize=65536\n")
    );
    let at_start = update("maxHashSlotNum=1234\n").await;
    assert!(at_start.code == 1 && at_start.remark.unwrap().contains("next start"));
    rig.stop().await;
}

#[tokio::test]
async fn statistics_of_topics_and_groups() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    rig.admin.produce("T", 0, "x", "").await;
    let data = rig
        .admin
        .ok_json(
            code::VIEW_BROKER_STATS_DATA,
            &[("statsName", "TOPIC_PUT_NUMS"), ("statsKey", "T")],
        )
        .await;
    let (number, body) = recorded!(315);
    assert_recorded_shape(number, body, &data);
    let absent = rig
        .admin
        .call(
            code::VIEW_BROKER_STATS_DATA,
            &[("statsName", "GROUP_GET_NUMS"), ("statsKey", "T@G")],
        )
        .await;
    assert_eq!(
        (absent.code, absent.remark.as_deref()),
        (1, Some("The stats <GROUP_GET_NUMS> <T@G> not exist"))
    );
    rig.stop().await;
}

#[tokio::test]
async fn upkeep_and_what_slaves_ask_for() {
    let rig = Rig::start().await;
    for request in [
        code::CLEAN_EXPIRED_CONSUMEQUEUE,
        code::CLEAN_UNUSED_TOPIC,
        code::DELETE_EXPIRED_COMMITLOG,
    ] {
        rig.admin.ok(request, &[]).await;
    }
    let (number, body) = recorded!(402);
    assert_recorded_shape(
        number,
        body,
        &rig.admin
            .ok_json(code::GET_ALL_MESSAGE_REQUEST_MODE, &[])
            .await,
    );
    let (number, body) = recorded!(45);
    assert_recorded_shape(
        number,
        body,
        &rig.admin.ok_json(code::GET_ALL_DELAY_OFFSET, &[]).await,
    );
    let (number, body) = recorded!(907);
    assert_recorded_shape(
        number,
        body,
        &rig.admin.ok_json(code::GET_BROKER_HA_STATUS, &[]).await,
    );
    rig.stop().await;
}

#[tokio::test]
async fn known_codes_that_are_not_served_say_so() {
    let rig = Rig::start().await;
    for (number, what) in NOT_SERVED.iter().chain(&[(9999, "nothing at all")]) {
        let answer = rig.admin.call(*number, &[]).await;
        let remark = format!(" request type {number} not supported");
        assert_eq!(
            (answer.code, answer.remark.as_deref()),
            (3, Some(remark.as_str())),
            "{what}"
        );
    }
    let missing = rig.admin.call(code::GET_TOPIC_CONFIG, &[]).await;
    assert_eq!(
        (missing.code, missing.remark.as_deref()),
        (1, Some("the custom field <topic> is null"))
    );
    rig.stop().await;
}

/// Fields that many requests read, with values that none of them expects.
const NONSENSE: [(&str, &str); 14] = [
    ("topic", "../../etc"),
    ("consumerGroup", "no such group"),
    ("group", "\u{1F980}"),
    ("queueId", "-5"),
    ("queueOffset", "-9223372036854775808"),
    ("offset", "-1"),
    ("commitOffset", "-1"),
    ("index", "9223372036854775807"),
    ("count", "2147483647"),
    ("timestamp", "-9223372036854775808"),
    ("maxMsgNums", "2147483647"),
    ("readQueueNums", "2147483647"),
    ("msgId", "zz"),
    ("delayLevel", "2147483647"),
];

#[tokio::test]
async fn every_code_is_answered_whatever_it_brings() {
    let rig = Rig::start().await;
    let codes = (1..=400).chain([513, 901, 907, 2001, 3001, 200_050, 200_151]);
    for number in codes {
        for request in [
            request(number, &[]),
            request(number, &NONSENSE),
            request(number, &[]).with_body("{\"offsetTable\":{{"),
            request(number, &NONSENSE).with_body(vec![0xFF; 300]),
        ] {
            let answer = rig.admin.send(request).await;
            assert!(answer.is_response(), "{number}");
        }
    }
    // It still does its work.
    rig.admin.create_topic("T", 1).await;
    rig.admin.produce("T", 0, "x", "").await;
    assert!(!rig.folder.path().join("etc").exists());
    rig.stop().await;
}
