//! Frames recorded between unmodified Apache programs: each must decode to what was recorded, encode
//! to the same meaning, and be read alike by the scanners, the header structs and the body structs.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use flate2::read::GzDecoder;
use remoting::RemotingCommand;
use remoting::protocol::body::*;
use remoting::protocol::command::split_frame;
use remoting::protocol::header::*;
use remoting::protocol::hot::{PullHeader, SendHeader};
use remoting::protocol::json::{self, KeyStyle};
use remoting::protocol::message::{
    BatchMessage, Record, batch_messages, push_batch_message, records, sys_flag,
};
use remoting::protocol::{HeaderView, LanguageCode, SerializeType, request_code as code};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

struct Frame {
    /// Tells which line and side it is, for messages.
    place: String,
    code: i32,
    is_request: bool,
    binary: bool,
    recorded: Value,
    bytes: Vec<u8>,
}

impl Frame {
    fn command(&self) -> RemotingCommand {
        RemotingCommand::decode(&self.bytes[4..])
            .unwrap_or_else(|error| panic!("{}: {error}", self.place))
    }

    fn recorded_ext(&self) -> BTreeMap<String, String> {
        self.recorded["header"]["extFields"]
            .as_object()
            .map(|fields| {
                fields
                    .iter()
                    .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
                    .collect()
            })
            .unwrap_or_default()
    }
}

fn frames() -> Vec<Frame> {
    let mut text = String::new();
    GzDecoder::new(&include_bytes!("fixtures/frames.jsonl.gz")[..])
        .read_to_string(&mut text)
        .unwrap();
    let mut frames = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        for (side, kind) in [
            ("request", "serialization"),
            ("response", "response_serialization"),
        ] {
            let Some(hex) = line[format!("{side}_hex")].as_str() else {
                continue;
            };
            frames.push(Frame {
                place: format!(
                    "line {} {side} of {} ({})",
                    number + 1,
                    line["name"],
                    line["client"]
                ),
                code: line["code"].as_i64().unwrap() as i32,
                is_request: side == "request",
                binary: line[kind] == "ROCKETMQ",
                recorded: line[side].clone(),
                bytes: (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                    .collect(),
            });
        }
    }
    assert!(frames.len() > 1500);
    frames
}

#[test]
fn every_frame_decodes_to_what_was_recorded_and_back() {
    for frame in frames() {
        let place = &frame.place;
        let command = frame.command();
        let header = &frame.recorded["header"];
        assert_eq!(
            command.code,
            header["code"].as_i64().unwrap() as i32,
            "{place}"
        );
        assert_eq!(
            command.flag,
            header["flag"].as_i64().unwrap() as i32,
            "{place}"
        );
        assert_eq!(
            command.opaque,
            header["opaque"].as_i64().unwrap() as i32,
            "{place}"
        );
        assert_eq!(
            command.version,
            header["version"].as_i64().unwrap() as i32,
            "{place}"
        );
        let language = match &header["language"] {
            Value::String(name) => LanguageCode::from_name(name),
            number => LanguageCode::from_number(number.as_i64().unwrap()),
        };
        assert_eq!(command.language, language, "{place}");
        assert_eq!(
            command.remark.as_deref(),
            header["remark"].as_str(),
            "{place}"
        );
        assert_eq!(command.ext_fields, frame.recorded_ext(), "{place}");
        assert_eq!(command.is_response(), !frame.is_request, "{place}");
        assert_eq!(
            command.serialize_type == SerializeType::RocketMq,
            frame.binary,
            "{place}"
        );
        if let Some(body) = frame.recorded["body"].as_str() {
            assert_eq!(&command.body[..], body.as_bytes(), "{place}");
        } else {
            let length = frame.recorded["body_bytes"].as_u64().unwrap_or(0);
            assert_eq!(command.body.len() as u64, length, "{place}");
        }
        let again = command.to_frame();
        assert_eq!(
            RemotingCommand::decode(&again[4..]).unwrap(),
            command,
            "{place}"
        );
        // The other form carries the same meaning.
        let mut other = command.clone();
        other.serialize_type = match command.serialize_type {
            SerializeType::Json => SerializeType::RocketMq,
            SerializeType::RocketMq => SerializeType::Json,
        };
        // A binary header cannot tell an empty remark from none.
        other.remark = other.remark.filter(|remark| !remark.is_empty());
        let mut read = RemotingCommand::decode(&other.to_frame()[4..]).unwrap();
        read.serialize_type = other.serialize_type;
        assert_eq!(read, other, "{place}");
    }
}

#[test]
fn the_scanners_read_the_recorded_values() {
    let (mut sends, mut pulls) = (0, 0);
    for frame in frames() {
        let place = &frame.place;
        let (kind, header, _) = split_frame(&frame.bytes[4..]).unwrap();
        let view = HeaderView::parse(kind, header).unwrap();
        let ext = frame.recorded_ext();
        assert_eq!(view.ext().count(), ext.len(), "{place}");
        for (key, value) in &ext {
            assert_eq!(
                view.ext_get(key).as_deref(),
                Some(value.as_str()),
                "{place}"
            );
        }
        let field = |name: &str| ext.get(name).map(String::as_str);
        let number = |name: &str| field(name).map(|text| text.parse::<i64>().unwrap());
        match frame.code {
            _ if !frame.is_request => {}
            code::SEND_MESSAGE
            | code::SEND_MESSAGE_V2
            | code::SEND_BATCH_MESSAGE
            | code::SEND_REPLY_MESSAGE
            | code::SEND_REPLY_MESSAGE_V2 => {
                sends += 1;
                let read = SendHeader::parse(&view).unwrap();
                let long = matches!(frame.code, code::SEND_MESSAGE | code::SEND_REPLY_MESSAGE);
                let name = |long_name, letter| if long { long_name } else { letter };
                assert_eq!(
                    Some(&*read.producer_group.to_cow()),
                    field(name("producerGroup", "a")),
                    "{place}"
                );
                assert_eq!(Some(&*read.topic), field(name("topic", "b")), "{place}");
                assert_eq!(
                    Some(&*read.default_topic.to_cow()),
                    field(name("defaultTopic", "c")),
                    "{place}"
                );
                let numbers = [
                    (
                        "defaultTopicQueueNums",
                        "d",
                        i64::from(read.default_topic_queue_nums),
                    ),
                    ("queueId", "e", read.queue_id.into()),
                    ("sysFlag", "f", read.sys_flag.into()),
                    ("bornTimestamp", "g", read.born_timestamp),
                    ("flag", "h", read.flag.into()),
                    ("reconsumeTimes", "j", read.reconsume_times.into()),
                ];
                for (long_name, letter, value) in numbers {
                    assert_eq!(
                        Some(value),
                        number(name(long_name, letter)),
                        "{place} {long_name}"
                    );
                }
                assert_eq!(
                    read.max_reconsume_times.map(i64::from),
                    number(name("maxReconsumeTimes", "l")),
                    "{place}"
                );
                assert_eq!(
                    Some(read.batch),
                    field(name("batch", "m")).map(|text| text == "true"),
                    "{place}"
                );
                assert_eq!(
                    Some(read.unit_mode),
                    field(name("unitMode", "k")).map(|text| text == "true"),
                    "{place}"
                );
                let mut properties = Vec::new();
                read.properties.append_to(&mut properties);
                assert_eq!(
                    std::str::from_utf8(&properties).unwrap(),
                    field(name("properties", "i")).unwrap_or_default(),
                    "{place}"
                );
            }
            code::PULL_MESSAGE | code::LITE_PULL_MESSAGE => {
                pulls += 1;
                let read = PullHeader::parse(&view).unwrap();
                assert_eq!(
                    Some(&*read.consumer_group),
                    field("consumerGroup"),
                    "{place}"
                );
                assert_eq!(Some(&*read.topic), field("topic"), "{place}");
                assert_eq!(Some(i64::from(read.queue_id)), number("queueId"), "{place}");
                assert_eq!(Some(read.queue_offset), number("queueOffset"), "{place}");
                assert_eq!(
                    Some(i64::from(read.max_msg_nums)),
                    number("maxMsgNums"),
                    "{place}"
                );
                assert_eq!(Some(i64::from(read.sys_flag)), number("sysFlag"), "{place}");
                assert_eq!(Some(read.commit_offset), number("commitOffset"), "{place}");
                assert_eq!(
                    Some(read.suspend_timeout_millis),
                    number("suspendTimeoutMillis"),
                    "{place}"
                );
                assert_eq!(
                    read.subscription.as_deref(),
                    field("subscription"),
                    "{place}"
                );
                assert_eq!(Some(read.sub_version), number("subVersion"), "{place}");
                assert_eq!(
                    read.expression_type.as_deref(),
                    field("expressionType"),
                    "{place}"
                );
                assert_eq!(
                    read.max_msg_bytes.map(i64::from),
                    number("maxMsgBytes"),
                    "{place}"
                );
                assert_eq!(read.broker_name.as_deref(), field("bname"), "{place}");
            }
            _ => {}
        }
    }
    assert!(sends > 50 && pulls > 20, "{sends} sends, {pulls} pulls");
}

/// Fields that any request or answer may carry and that no header struct names.
const COMMON: &[&str] = &[
    "ReqT",
    "bname",
    "lo",
    "MSG_REGION",
    "TRACE_ON",
    "IS_SUPPORT_HEART_BEAT_V2",
    "IS_SUB_CHANGE",
];

/// Reads the ext fields into `H` and back: nothing but common fields may be lost or changed.
fn check_header<H: Serialize + DeserializeOwned>(frame: &Frame) {
    let command = frame.command();
    let place = &frame.place;
    let header: H = command
        .header()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    let again = RemotingCommand::default().with_header(&header).ext_fields;
    for (key, value) in &command.ext_fields {
        match again.get(key) {
            Some(read) => assert_eq!(read, value, "{place} {key}"),
            None => assert!(COMMON.contains(&key.as_str()), "{place}: {key} is not read"),
        }
    }
}

#[test]
fn the_header_structs_know_the_recorded_fields() {
    let mut checked = BTreeSet::new();
    macro_rules! check {
        ($frame:expr, $($code:ident => $request:ty $(, $response:ty)?;)*) => {
            match $frame.code {
                $(code::$code => {
                    checked.insert($frame.code);
                    if $frame.is_request { check_header::<$request>($frame); }
                    // An error, and the answer to a pull of an outdated subscription, has no header.
                    $(else if !$frame.recorded_ext().is_empty() { check_header::<$response>($frame); })?
                })*
                _ => {}
            }
        };
    }
    for frame in &frames() {
        check! { frame,
            SEND_MESSAGE => SendMessageRequestHeader, SendMessageResponseHeader;
            SEND_MESSAGE_V2 => SendMessageRequestHeaderV2, SendMessageResponseHeader;
            SEND_BATCH_MESSAGE => SendMessageRequestHeaderV2, SendMessageResponseHeader;
            SEND_REPLY_MESSAGE => SendMessageRequestHeader;
            SEND_REPLY_MESSAGE_V2 => SendMessageRequestHeaderV2;
            PULL_MESSAGE => PullMessageRequestHeader, PullMessageResponseHeader;
            LITE_PULL_MESSAGE => PullMessageRequestHeader, PullMessageResponseHeader;
            QUERY_MESSAGE => QueryMessageRequestHeader, QueryMessageResponseHeader;
            QUERY_CONSUMER_OFFSET => QueryConsumerOffsetRequestHeader, QueryConsumerOffsetResponseHeader;
            UPDATE_CONSUMER_OFFSET => UpdateConsumerOffsetRequestHeader;
            UPDATE_AND_CREATE_TOPIC => CreateTopicRequestHeader;
            GET_BROKER_CONFIG => GetAllTopicConfigRequestHeader, GetBrokerConfigResponseHeader;
            SEARCH_OFFSET_BY_TIMESTAMP => SearchOffsetRequestHeader, SearchOffsetResponseHeader;
            GET_MAX_OFFSET => GetMaxOffsetRequestHeader, GetMaxOffsetResponseHeader;
            GET_MIN_OFFSET => GetMinOffsetRequestHeader, GetMinOffsetResponseHeader;
            GET_EARLIEST_MSG_STORETIME => GetEarliestMsgStoretimeRequestHeader, GetEarliestMsgStoretimeResponseHeader;
            VIEW_MESSAGE_BY_ID => ViewMessageRequestHeader;
            UNREGISTER_CLIENT => UnregisterClientRequestHeader;
            CONSUMER_SEND_MSG_BACK => ConsumerSendMsgBackRequestHeader;
            END_TRANSACTION => EndTransactionRequestHeader;
            GET_CONSUMER_LIST_BY_GROUP => GetConsumerListByGroupRequestHeader;
            CHECK_TRANSACTION_STATE => CheckTransactionStateRequestHeader;
            NOTIFY_CONSUMER_IDS_CHANGED => NotifyConsumerIdsChangedRequestHeader;
            PUT_KV_CONFIG => PutKvConfigRequestHeader;
            GET_KV_CONFIG => GetKvConfigRequestHeader, GetKvConfigResponseHeader;
            DELETE_KV_CONFIG => DeleteKvConfigRequestHeader;
            REGISTER_BROKER => RegisterBrokerRequestHeader, RegisterBrokerResponseHeader;
            UNREGISTER_BROKER => UnRegisterBrokerRequestHeader;
            GET_ROUTEINFO_BY_TOPIC => GetRouteInfoRequestHeader;
            GET_TOPIC_STATS_INFO => GetTopicStatsInfoRequestHeader;
            GET_CONSUMER_CONNECTION_LIST => GetConsumerConnectionListRequestHeader;
            GET_PRODUCER_CONNECTION_LIST => GetProducerConnectionListRequestHeader;
            WIPE_WRITE_PERM_OF_BROKER => WipeWritePermOfBrokerRequestHeader, WipeWritePermOfBrokerResponseHeader;
            DELETE_SUBSCRIPTIONGROUP => DeleteSubscriptionGroupRequestHeader;
            GET_CONSUME_STATS => GetConsumeStatsRequestHeader;
            DELETE_TOPIC_IN_BROKER => DeleteTopicRequestHeader;
            DELETE_TOPIC_IN_NAMESRV => DeleteTopicFromNamesrvRequestHeader;
            REGISTER_TOPIC_IN_NAMESRV => RegisterTopicRequestHeader;
            GET_KVLIST_BY_NAMESPACE => GetKvListByNamespaceRequestHeader;
            RESET_CONSUMER_CLIENT_OFFSET => ResetOffsetRequestHeader;
            GET_CONSUMER_STATUS_FROM_CLIENT => GetConsumerStatusRequestHeader;
            INVOKE_BROKER_TO_RESET_OFFSET => ResetOffsetRequestHeader;
            INVOKE_BROKER_TO_GET_CONSUMER_STATUS => GetConsumerStatusRequestHeader;
            GET_TOPICS_BY_CLUSTER => GetTopicsByClusterRequestHeader;
            QUERY_TOPIC_CONSUME_BY_WHO => QueryTopicConsumeByWhoRequestHeader;
            QUERY_CONSUME_TIME_SPAN => QueryConsumeTimeSpanRequestHeader;
            GET_CONSUMER_RUNNING_INFO => GetConsumerRunningInfoRequestHeader;
            QUERY_CORRECTION_OFFSET => QueryCorrectionOffsetHeader;
            CONSUME_MESSAGE_DIRECTLY => ConsumeMessageDirectlyResultRequestHeader;
            CLONE_GROUP_OFFSET => CloneGroupOffsetRequestHeader;
            VIEW_BROKER_STATS_DATA => ViewBrokerStatsDataRequestHeader;
            GET_BROKER_CONSUME_STATS => GetConsumeStatsInBrokerHeader;
            QUERY_CONSUME_QUEUE => QueryConsumeQueueRequestHeader;
            QUERY_DATA_VERSION => QueryDataVersionRequestHeader, QueryDataVersionResponseHeader;
            RESUME_CHECK_HALF_MESSAGE => ResumeCheckHalfMessageRequestHeader;
            PUSH_REPLY_MESSAGE_TO_CLIENT => ReplyMessageRequestHeader;
            ADD_WRITE_PERM_OF_BROKER => AddWritePermOfBrokerRequestHeader, AddWritePermOfBrokerResponseHeader;
            QUERY_TOPICS_BY_CONSUMER => QueryTopicsByConsumerRequestHeader;
            QUERY_SUBSCRIPTION_BY_CONSUMER => QuerySubscriptionByConsumerRequestHeader;
            GET_TOPIC_CONFIG => GetTopicConfigRequestHeader;
            GET_SUBSCRIPTIONGROUP_CONFIG => GetSubscriptionGroupConfigRequestHeader;
            UPDATE_AND_GET_GROUP_FORBIDDEN => UpdateGroupForbiddenRequestHeader;
            RECALL_MESSAGE => RecallMessageRequestHeader, RecallMessageResponseHeader;
            GET_BROKER_MEMBER_GROUP => GetBrokerMemberGroupRequestHeader;
            BROKER_HEARTBEAT => BrokerHeartbeatRequestHeader;
            RESET_MASTER_FLUSH_OFFSET => ResetMasterFlushOffsetHeader;
        }
    }
    assert_eq!(checked.len(), 66, "{checked:?}");
}

/// Whether `read` says what `original` says: lists that stand for sets in any order, and members that
/// the original left out only if they hold what they would have read as.
fn same(original: &Value, read: &Value) -> bool {
    match (original, read) {
        (Value::Object(original), Value::Object(read)) => {
            original.iter().all(|(key, value)| match read.get(key) {
                Some(read) => same(value, read),
                None => is_neutral(value),
            }) && read
                .iter()
                .all(|(key, value)| original.contains_key(key) || is_default(key, value))
        }
        (Value::Array(original), Value::Array(read)) => {
            original.len() == read.len()
                && original
                    .iter()
                    .all(|item| read.iter().any(|other| same(item, other)))
        }
        (Value::Number(original), Value::Number(read)) => original.as_f64() == read.as_f64(),
        _ => original == read,
    }
}

fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.iter().all(|(key, value)| is_default(key, value)),
        Value::Bool(true) => false,
    }
}

/// Values that upstream's constructors give to fields an older sender does not know.
fn is_default(key: &str, value: &Value) -> bool {
    match key {
        "consumeTimeoutMinute" => value == 15,
        "groupRetryPolicy" => value["type"] == "CUSTOMIZED",
        _ => is_neutral(value),
    }
}

fn check_body<B: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    frame: &Frame,
) -> bool {
    let body = frame.command().body;
    if body.is_empty() {
        return false;
    }
    let place = &frame.place;
    let read: B = json::from_slice(&body).unwrap_or_else(|error| panic!("{place}: {error}"));
    let original = json::parse(&body).unwrap();
    for style in [KeyStyle::Raw, KeyStyle::Escaped] {
        let written = json::to_vec(&read, style);
        assert_eq!(json::from_slice::<B>(&written).unwrap(), read, "{place}");
        let written = json::parse(&written).unwrap();
        assert!(same(&original, &written), "{place}:\n{original}\n{written}");
    }
    true
}

#[test]
fn the_body_structs_keep_the_recorded_bodies() {
    let mut checked = BTreeSet::new();
    macro_rules! check {
        ($frame:expr, $($code:ident $side:ident $body:ty;)*) => {
            $(if $frame.code == code::$code
                && $frame.is_request == (stringify!($side) == "request")
                && check_body::<$body>($frame)
            {
                checked.insert(stringify!($code $side));
            })*
        };
    }
    for frame in &frames() {
        let recorded = frame.recorded["body"].as_str().unwrap_or_default();
        if !recorded.starts_with('{') {
            continue;
        }
        check! { frame,
            UPDATE_AND_CREATE_TOPIC_LIST request CreateTopicListRequestBody;
            GET_ALL_TOPIC_CONFIG response TopicConfigSerializeWrapper;
            GET_BROKER_RUNTIME_INFO response KVTable;
            HEART_BEAT request HeartbeatData;
            GET_CONSUMER_LIST_BY_GROUP response GetConsumerListByGroupResponseBody;
            LOCK_BATCH_MQ request LockBatchRequestBody;
            LOCK_BATCH_MQ response LockBatchResponseBody;
            UNLOCK_BATCH_MQ request LockBatchRequestBody;
            GET_ALL_CONSUMER_OFFSET response ConsumerOffsetSerializeWrapper;
            GET_ALL_DELAY_OFFSET response DelayOffsetSerializeWrapper;
            CHECK_CLIENT_CONFIG request CheckClientRequestBody;
            REGISTER_BROKER request RegisterBrokerBody;
            GET_ROUTEINFO_BY_TOPIC response TopicRouteData;
            GET_BROKER_CLUSTER_INFO response ClusterInfo;
            UPDATE_AND_CREATE_SUBSCRIPTIONGROUP request SubscriptionGroupConfig;
            GET_ALL_SUBSCRIPTIONGROUP_CONFIG response SubscriptionGroupWrapper;
            GET_TOPIC_STATS_INFO response TopicStatsTable;
            GET_CONSUMER_CONNECTION_LIST response ConsumerConnection;
            GET_PRODUCER_CONNECTION_LIST response ProducerConnection;
            GET_ALL_TOPIC_LIST_FROM_NAMESERVER response TopicList;
            GET_CONSUME_STATS response ConsumeStats;
            REGISTER_TOPIC_IN_NAMESRV request TopicRouteData;
            GET_KVLIST_BY_NAMESPACE response KVTable;
            RESET_CONSUMER_CLIENT_OFFSET request ResetOffsetBody;
            GET_CONSUMER_STATUS_FROM_CLIENT response GetConsumerStatusBody;
            INVOKE_BROKER_TO_RESET_OFFSET response ResetOffsetBody;
            INVOKE_BROKER_TO_GET_CONSUMER_STATUS response GetConsumerStatusBody;
            GET_TOPICS_BY_CLUSTER response TopicList;
            UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST request SubscriptionGroupList;
            QUERY_TOPIC_CONSUME_BY_WHO response GroupList;
            QUERY_CONSUME_TIME_SPAN response QueryConsumeTimeSpanBody;
            GET_SYSTEM_TOPIC_LIST_FROM_NS response TopicList;
            GET_SYSTEM_TOPIC_LIST_FROM_BROKER response TopicList;
            GET_CONSUMER_RUNNING_INFO response ConsumerRunningInfo;
            QUERY_CORRECTION_OFFSET response QueryCorrectionOffsetBody;
            CONSUME_MESSAGE_DIRECTLY response ConsumeMessageDirectlyResult;
            GET_UNIT_TOPIC_LIST response TopicList;
            VIEW_BROKER_STATS_DATA response BrokerStatsData;
            GET_BROKER_CONSUME_STATS response ConsumeStatsList;
            QUERY_CONSUME_QUEUE response QueryConsumeQueueResponseBody;
            QUERY_DATA_VERSION request DataVersion;
            QUERY_DATA_VERSION response DataVersion;
            GET_ALL_PRODUCER_INFO response ProducerTableInfo;
            QUERY_TOPICS_BY_CONSUMER response TopicList;
            QUERY_SUBSCRIPTION_BY_CONSUMER response QuerySubscriptionResponseBody;
            GET_TOPIC_CONFIG response TopicConfig;
            GET_SUBSCRIPTIONGROUP_CONFIG response SubscriptionGroupConfig;
            UPDATE_AND_GET_GROUP_FORBIDDEN response GroupForbidden;
            QUERY_ASSIGNMENT request QueryAssignmentRequestBody;
            QUERY_ASSIGNMENT response QueryAssignmentResponseBody;
            SET_MESSAGE_REQUEST_MODE request SetMessageRequestModeRequestBody;
            GET_ALL_MESSAGE_REQUEST_MODE response MessageRequestModeSerializeWrapper;
            GET_BROKER_MEMBER_GROUP response GetBrokerMemberGroupResponseBody;
            GET_BROKER_HA_STATUS response HARuntimeInfo;
        }
    }
    assert_eq!(checked.len(), 53, "{checked:?}");
}

#[test]
fn recorded_records_and_batches_are_encoded_again_byte_for_byte() {
    let (mut found, mut batches) = (0, 0);
    for frame in frames() {
        let body = frame.command().body;
        let holds_records = match frame.code {
            code::PULL_MESSAGE
            | code::LITE_PULL_MESSAGE
            | code::QUERY_MESSAGE
            | code::VIEW_MESSAGE_BY_ID => {
                !frame.is_request && frame.recorded["header"]["code"] == 0
            }
            code::CHECK_TRANSACTION_STATE => frame.is_request,
            code::CONSUME_MESSAGE_DIRECTLY => frame.is_request,
            _ => false,
        };
        if holds_records {
            let mut again = Vec::new();
            for record in records(&body) {
                let record = record.unwrap_or_else(|error| panic!("{}: {error}", frame.place));
                assert!(record.crc_ok(), "{}", frame.place);
                assert_eq!(
                    record.sys_flag & sys_flag::BORN_HOST_V6 != 0,
                    record.born_host.is_ipv6()
                );
                found += 1;
                Record {
                    queue_id: record.queue_id,
                    flag: record.flag,
                    queue_offset: record.queue_offset,
                    physical_offset: record.physical_offset,
                    sys_flag: record.sys_flag,
                    born_timestamp: record.born_timestamp,
                    born_host: record.born_host,
                    store_timestamp: record.store_timestamp,
                    store_host: record.store_host,
                    reconsume_times: record.reconsume_times,
                    prepared_transaction_offset: record.prepared_transaction_offset,
                    body: record.body,
                    topic: record.topic,
                    properties: record.properties,
                }
                .encode(&mut again)
                .unwrap();
            }
            assert_eq!(again, body, "{}", frame.place);
        }
        if frame.is_request && frame.code == code::SEND_BATCH_MESSAGE {
            let messages: Result<Vec<BatchMessage<'_>>, _> = batch_messages(&body).collect();
            let messages = messages.unwrap();
            assert!(messages.len() > 1, "{}", frame.place);
            let mut again = Vec::new();
            for message in &messages {
                push_batch_message(&mut again, message).unwrap();
            }
            assert_eq!(again, body, "{}", frame.place);
            batches += 1;
        }
    }
    assert!(
        found > 30 && batches > 5,
        "{found} records, {batches} batches"
    );
}
