use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::protocol::body::*;

#[test]
fn integer_and_object_keys_are_read() {
    let route: TopicRouteData = from_slice(br#"{"brokerDatas":[{"brokerAddrs":{0:"a:1",1:"b:2"},"brokerName":"b","cluster":"c"}],"orderTopicConf":null}"#).unwrap();
    assert_eq!(route.broker_datas[0].broker_addrs[&1], "b:2");
    assert_eq!(route.order_topic_conf, None);

    let raw = br#"{"offsetTable":{{"brokerName":"b","queueId":1,"topic":"T"}:5,{"topic":"T","queueId":0,"brokerName":"b"}:-1}}"#;
    let body: ResetOffsetBody = from_slice(raw).unwrap();
    assert_eq!(body.offset_table[&MessageQueue::new("T", "b", 1)], 5);
    assert_eq!(body.offset_table[&MessageQueue::new("T", "b", 0)], -1);

    let escaped = to_vec(&body, KeyStyle::Escaped);
    assert_eq!(from_slice::<ResetOffsetBody>(&escaped).unwrap(), body);
    assert!(serde_json::from_slice::<Value>(&escaped).is_ok());
    let raw = to_vec(&body, KeyStyle::Raw);
    assert_eq!(
        String::from_utf8(raw).unwrap(),
        r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:-1,{"brokerName":"b","queueId":1,"topic":"T"}:5}}"#
    );
}

#[test]
fn integer_keys_are_written_quoted_and_compact() {
    let data = BrokerData {
        broker_addrs: BTreeMap::from([(0, "a:1".to_owned())]),
        broker_name: "b".to_owned(),
        cluster: "c".to_owned(),
        ..BrokerData::default()
    };
    for style in [KeyStyle::Raw, KeyStyle::Escaped] {
        let text = String::from_utf8(to_vec(&data, style)).unwrap();
        assert!(text.contains(r#""brokerAddrs":{"0":"a:1"}"#), "{text}");
        assert!(!text.contains(' '), "{text}");
    }
}

#[test]
fn the_style_follows_the_language() {
    assert_eq!(KeyStyle::for_language(LanguageCode::Java), KeyStyle::Raw);
    assert_eq!(KeyStyle::for_language(LanguageCode::Go), KeyStyle::Raw);
    assert_eq!(KeyStyle::for_language(LanguageCode::Cpp), KeyStyle::Escaped);
}

#[test]
fn references_are_resolved() {
    let value =
        parse(br#"{"a":[{"x":1}],"b":{"$ref":"$.a[0]"},"c":{"$ref":"$.nowhere"}}"#).unwrap();
    assert_eq!(value["b"], serde_json::json!({"x": 1}));
    assert_eq!(value["c"], serde_json::json!({"$ref": "$.nowhere"}));
}

#[test]
fn references_do_not_multiply_a_document() {
    let mut text = format!("{{\"a\":\"{}\"", "x".repeat(1 << 20));
    for index in 0..200 {
        text += &format!(",\"k{index}\":{{\"$ref\":\"$.a\"}}");
    }
    text.push('}');
    let size = parse(text.as_bytes()).unwrap().to_string().len();
    assert!(size < 20 << 20, "{size}");
}

#[test]
fn nulls_unknown_fields_and_unknown_names_are_tolerated() {
    let heartbeat: HeartbeatData = from_slice(
        br#"{"clientID":"c","consumerDataSet":[{"consumeType":"CONSUME_SIDEWAYS","groupName":"g","messageModel":null,"subscriptionDataSet":[{"topic":"T","subString":"*","tagsSet":null,"surprise":{"a":[1]}}]}],"producerDataSet":null}"#,
    )
    .unwrap();
    let consumer = &heartbeat.consumer_data_set[0];
    assert_eq!(consumer.consume_type, ConsumeType::Unknown);
    assert_eq!(consumer.message_model, MessageModel::Clustering);
    assert_eq!(consumer.subscription_data_set[0].topic, "T");
}

#[test]
fn depth_is_bounded() {
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(parse(deep(60).as_bytes()).is_ok());
    assert!(parse(deep(100_000).as_bytes()).is_err());
    assert!(parse(br#"{{{"a":1}:2}:3}"#).is_err());
    assert!(parse(br#"{{"a":1}:{{"a":2}:3}}"#).is_ok());
    let keys = "{".repeat(100_000);
    assert!(parse(keys.as_bytes()).is_err());
}

#[test]
fn malformed_text_is_an_error() {
    for text in [
        "",
        "{",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1",
        "[1,]",
        "{:1}",
        "tru",
        "{\"a\":1}}",
        "'a",
        "--1",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e15..1e15f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::hash_map("[a-z{\"\\\\ ]{0,8}", inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn strict_json_is_read_as_it_is(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        prop_assert_eq!(parse(&text).unwrap(), value);
    }
}

#[test]
fn a_compressed_registration_is_read() {
    use std::io::Write;
    let mut plain = Vec::new();
    let mut part = |text: &str| {
        plain.extend_from_slice(&(text.len() as i32).to_be_bytes());
        plain.extend_from_slice(text.as_bytes());
    };
    part(r#"{"counter":3,"timestamp":9}"#);
    plain.extend_from_slice(&2i32.to_be_bytes());
    let mut part = |text: &str| {
        plain.extend_from_slice(&(text.len() as i32).to_be_bytes());
        plain.extend_from_slice(text.as_bytes());
    };
    part("T 4 8 6 SINGLE_TAG");
    part(r#"U 1 1 2 MULTI_TAG {"message.type":"FIFO"}"#);
    part("[]");
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(9));
    encoder.write_all(&plain).unwrap();
    let body = encoder.finish().unwrap();
    let read = RegisterBrokerBody::decode(&body, true, 409).unwrap();
    let wrapper = read.topic_config_serialize_wrapper;
    assert_eq!(
        (wrapper.data_version.counter, wrapper.data_version.timestamp),
        (3, 9)
    );
    let topic = &wrapper.topic_config_table["T"];
    assert_eq!(
        (topic.read_queue_nums, topic.write_queue_nums, topic.perm),
        (4, 8, 6)
    );
    assert_eq!(
        wrapper.topic_config_table["U"].attributes["message.type"],
        "FIFO"
    );
    assert!(RegisterBrokerBody::decode(&body[..10], true, 409).is_err());
    let bare = RegisterBrokerBody::decode(br#"{"dataVersion":{"counter":1}}"#, false, 30).unwrap();
    assert_eq!(bare.topic_config_serialize_wrapper.data_version.counter, 1);
}
