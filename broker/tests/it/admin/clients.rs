use remoting::protocol::body::MessageModel;
use remoting::protocol::{RemotingCommand, request_code as code, response_code};

use super::support::{Rig, assert_recorded_shape, consumer, producer, recorded, value};
use crate::support::{PATIENCE, until};

#[tokio::test]
async fn members_learn_of_each_other_and_of_a_lost_connection() {
    let rig = Rig::start().await;
    let (first, second) = (rig.client(), rig.client());
    let empty = first
        .call(code::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", "G")])
        .await;
    assert_eq!(
        (empty.code, empty.remark.as_deref()),
        (1, Some("no consumer for this group, G"))
    );

    first
        .heartbeat(&consumer("c1", "G", &["T", "%RETRY%G"]))
        .await;
    first
        .until_asked(code::NOTIFY_CONSUMER_IDS_CHANGED, 1)
        .await;
    first
        .heartbeat(&consumer("c1", "G", &["T", "%RETRY%G"]))
        .await;
    second
        .heartbeat(&consumer("c2", "G", &["T", "%RETRY%G"]))
        .await;
    second
        .until_asked(code::NOTIFY_CONSUMER_IDS_CHANGED, 1)
        .await;
    first
        .until_asked(code::NOTIFY_CONSUMER_IDS_CHANGED, 2)
        .await;
    let notice = &first.asked(code::NOTIFY_CONSUMER_IDS_CHANGED)[1];
    assert_eq!(
        (notice.ext("consumerGroup"), notice.is_oneway()),
        (Some("G"), true)
    );
    let ids = first
        .ok_json(code::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", "G")])
        .await;
    assert_eq!(ids["consumerIdList"].to_string(), r#"["c1","c2"]"#);
    let retry = rig
        .admin
        .ok_json(code::GET_TOPIC_CONFIG, &[("topic", "%RETRY%G")])
        .await;
    assert_eq!(
        (retry["perm"].as_i64(), retry["readQueueNums"].as_i64()),
        (Some(6), Some(1))
    );

    second.remoting.shutdown().await;
    first
        .until_asked(code::NOTIFY_CONSUMER_IDS_CHANGED, 3)
        .await;
    let ids = first
        .ok_json(code::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", "G")])
        .await;
    assert_eq!(ids["consumerIdList"].to_string(), r#"["c1"]"#);
    first
        .ok(
            code::UNREGISTER_CLIENT,
            &[("clientID", "c1"), ("consumerGroup", "G")],
        )
        .await;
    assert!(rig.broker.consumers.group("G").is_none());
    rig.stop().await;
}

#[tokio::test]
async fn heartbeats_with_unknown_names_and_without_a_group_are_accepted() {
    let rig = Rig::start_with(|config| config.auto_create_subscription_group = false).await;
    let body = r#"{"clientID":"c","consumerDataSet":[{"groupName":"G","consumeType":"SOMETHING_NEW","messageModel":"ELSE","consumeFromWhere":"NOWHERE","subscriptionDataSet":[{"topic":"T","subString":"*","newField":{}}],"unitMode":false}],"producerDataSet":null,"heartbeatFingerprint":7,"withoutSub":false,"more":[1]}"#;
    let answer = rig.admin.with_body(code::HEART_BEAT, body).await;
    assert_eq!(
        (answer.code, answer.ext("IS_SUPPORT_HEART_BEAT_V2")),
        (0, None)
    );
    assert!(rig.broker.consumers.group("G").is_none());
    rig.admin.create_group("G").await;
    assert_eq!(rig.admin.with_body(code::HEART_BEAT, body).await.code, 0);
    assert!(rig.broker.consumers.group("G").is_some());
    assert_eq!(rig.admin.with_body(code::HEART_BEAT, "{").await.code, 1);
    rig.stop().await;
}

#[tokio::test]
async fn broadcasting_members_are_not_told() {
    let rig = Rig::start().await;
    let (first, second) = (rig.client(), rig.client());
    let mut heartbeat = consumer("c1", "B", &["T"]);
    heartbeat.consumer_data_set[0].message_model = MessageModel::Broadcasting;
    first.heartbeat(&heartbeat).await;
    heartbeat.client_id = "c2".to_owned();
    second.heartbeat(&heartbeat).await;
    // A clustering group afterwards: what is told to it arrives behind anything told to the group before.
    first.heartbeat(&consumer("c1", "G", &["T"])).await;
    first
        .until_asked(code::NOTIFY_CONSUMER_IDS_CHANGED, 1)
        .await;
    assert_eq!(
        first.asked(code::NOTIFY_CONSUMER_IDS_CHANGED)[0].ext("consumerGroup"),
        Some("G")
    );
    rig.stop().await;
}

#[tokio::test]
async fn connections_are_listed_in_the_recorded_shapes() {
    let rig = Rig::start().await;
    let (one, two) = (rig.client(), rig.client());
    one.heartbeat(&consumer("c1", "G", &["T", "%RETRY%G"]))
        .await;
    two.heartbeat(&producer("p1", "PG")).await;

    let connections = rig
        .admin
        .ok_json(
            code::GET_CONSUMER_CONNECTION_LIST,
            &[("consumerGroup", "G")],
        )
        .await;
    let (number, body) = recorded!(203);
    assert_recorded_shape(number, body, &connections);
    assert_eq!(connections["connectionSet"][0]["clientId"], "c1");
    let offline = rig
        .admin
        .call(
            code::GET_CONSUMER_CONNECTION_LIST,
            &[("consumerGroup", "N")],
        )
        .await;
    assert_eq!(
        (offline.code, offline.remark.as_deref()),
        (206, Some("the consumer group[N] not online"))
    );

    let connections = rig
        .admin
        .ok_json(
            code::GET_PRODUCER_CONNECTION_LIST,
            &[("producerGroup", "PG")],
        )
        .await;
    let (number, body) = recorded!(204);
    assert_recorded_shape(number, body, &connections);
    let absent = rig
        .admin
        .call(
            code::GET_PRODUCER_CONNECTION_LIST,
            &[("producerGroup", "N")],
        )
        .await;
    assert_eq!(
        (absent.code, absent.remark.as_deref()),
        (1, Some("the producer group[N] not exist"))
    );

    let producers = rig.admin.ok_json(code::GET_ALL_PRODUCER_INFO, &[]).await;
    let (number, body) = recorded!(328);
    assert_recorded_shape(number, body, &producers);
    assert!(
        producers["data"]["PG"][0]["remoteIP"]
            .as_str()
            .unwrap()
            .starts_with("/127.0.0.1:")
    );

    let groups = rig
        .admin
        .ok_json(code::QUERY_TOPIC_CONSUME_BY_WHO, &[("topic", "T")])
        .await;
    assert_eq!(groups.to_string(), r#"{"groupList":["G"]}"#);
    let subscription = rig
        .admin
        .ok_json(
            code::QUERY_SUBSCRIPTION_BY_CONSUMER,
            &[("group", "G"), ("topic", "T")],
        )
        .await;
    let (number, body) = recorded!(345);
    assert_recorded_shape(number, body, &subscription);
    two.remoting.shutdown().await;
    until("the producer to be gone", || {
        !rig.broker.producers.group_online("PG")
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn relays_carry_the_clients_answer_back() {
    let rig = Rig::start().await;
    rig.admin.create_topic("T", 1).await;
    let (id, _) = rig.admin.produce("T", 0, "hello", "TAGS\u{1}A\u{2}").await;
    let member = rig.client();
    member.answers(|request| match request.code {
        code::GET_CONSUMER_RUNNING_INFO => Some(RemotingCommand::response(0).with_body(r#"{"mqTable":{}}"#)),
        code::CONSUME_MESSAGE_DIRECTLY => Some(RemotingCommand::response(0).with_body(r#"{"consumeResult":"CR_SUCCESS"}"#)),
        code::GET_CONSUMER_STATUS_FROM_CLIENT => {
            let body = r#"{"consumerTable":{},"messageQueueTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:7}}"#;
            Some(RemotingCommand::response(0).with_body(body).with_remark("not set any response code"))
        }
        _ => None,
    });
    member.heartbeat(&consumer("c1", "G", &["T"])).await;

    let fields = [
        ("consumerGroup", "G"),
        ("clientId", "c1"),
        ("jstackEnable", "true"),
    ];
    let info = rig.admin.ok(code::GET_CONSUMER_RUNNING_INFO, &fields).await;
    assert_eq!(&info.body[..], br#"{"mqTable":{}}"#);
    assert_eq!(
        member.asked(code::GET_CONSUMER_RUNNING_INFO)[0].ext("jstackEnable"),
        Some("true")
    );

    let fields = [
        ("consumerGroup", "G"),
        ("clientId", "c1"),
        ("msgId", id.as_str()),
    ];
    let direct = rig.admin.ok(code::CONSUME_MESSAGE_DIRECTLY, &fields).await;
    assert_eq!(value(&direct)["consumeResult"], "CR_SUCCESS");
    let asked = &member.asked(code::CONSUME_MESSAGE_DIRECTLY)[0];
    assert_eq!(asked.ext("brokerName"), Some("broker-a"));
    assert_eq!(
        remoting::protocol::message::RecordView::parse(&asked.body)
            .unwrap()
            .body,
        b"hello"
    );

    let status = rig
        .admin
        .ok_json(
            code::INVOKE_BROKER_TO_GET_CONSUMER_STATUS,
            &[("topic", "T"), ("group", "G"), ("clientAddr", "")],
        )
        .await;
    let (number, body) = recorded!(223);
    assert_recorded_shape(number, body, &status);

    let fields = [("consumerGroup", "G"), ("clientId", "nobody")];
    let offline = rig
        .admin
        .call(code::GET_CONSUMER_RUNNING_INFO, &fields)
        .await;
    assert_eq!(
        (offline.code, offline.remark.as_deref()),
        (1, Some("The Consumer <G> <nobody> not online"))
    );
    rig.stop().await;
}

#[tokio::test]
async fn requests_in_hand_have_a_bound_of_memory() {
    let rig = Rig::start().await;
    let silent = rig.client();
    silent.answers(|_| None);
    silent.heartbeat(&consumer("c1", "G", &["T"])).await;
    let fields = [("consumerGroup", "G"), ("clientId", "c1")];
    let large = RemotingCommand {
        ext_fields: fields.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..RemotingCommand::request(code::GET_CONSUMER_RUNNING_INFO)
    }
    .with_body(vec![b'x'; 15 * 1024 * 1024]);
    // Four such relays fill the bound while their client is silent; the others are refused at once.
    let address = rig.broker.listen_address().to_string();
    let mut answers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (caller, address, large) = (rig.client().remoting, address.clone(), large.clone());
        answers.spawn(async move { caller.invoke(&address, large, PATIENCE).await });
    }
    for _ in 0..2 {
        let refused = answers.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(refused.code, response_code::SYSTEM_BUSY);
    }
    drop(answers);
    rig.stop().await;
}

#[tokio::test]
async fn queue_locks_belong_to_one_client() {
    let rig = Rig::start().await;
    let lock = |client: &str| {
        format!(
            r#"{{"consumerGroup":"G","clientId":"{client}","mqSet":[{{"topic":"T","brokerName":"broker-a","queueId":1}}]}}"#
        )
    };
    let (number, body) = recorded!(41);
    let locked = value(&rig.admin.with_body(code::LOCK_BATCH_MQ, lock("c1")).await);
    assert_recorded_shape(number, body, &locked);
    assert_eq!(locked["lockOKMQSet"].as_array().unwrap().len(), 1);
    let refused = value(&rig.admin.with_body(code::LOCK_BATCH_MQ, lock("c2")).await);
    assert_eq!(refused.to_string(), r#"{"lockOKMQSet":[]}"#);
    assert_eq!(
        rig.admin
            .with_body(code::UNLOCK_BATCH_MQ, lock("c1"))
            .await
            .code,
        0
    );
    let locked = value(&rig.admin.with_body(code::LOCK_BATCH_MQ, lock("c2")).await);
    assert_eq!(locked["lockOKMQSet"].as_array().unwrap().len(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_filter_that_is_not_served_is_refused_when_the_consumer_starts() {
    let rig = Rig::start().await;
    let check = |kind: &str| {
        format!(
            r#"{{"clientId":"c","group":"G","subscriptionData":{{"topic":"T","subString":"n > 3","expressionType":"{kind}"}}}}"#
        )
    };
    assert_eq!(
        rig.admin
            .with_body(code::CHECK_CLIENT_CONFIG, check("TAG"))
            .await
            .code,
        response_code::SUCCESS
    );
    let refused = rig
        .admin
        .with_body(code::CHECK_CLIENT_CONFIG, check("SQL92"))
        .await;
    let remark = "The broker does not support consumer to filter message by SQL92";
    assert_eq!((refused.code, refused.remark.as_deref()), (1, Some(remark)));
    rig.stop().await;
}
