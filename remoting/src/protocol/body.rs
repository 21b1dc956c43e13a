//! JSON bodies, with upstream's names. Read them with [`super::json::from_slice`], which takes
//! fastjson's dialect and treats `null` as absent; every field has a default, as in Java.
//!
//! Maps keyed by message queues are [`MessageQueueMap`]; how their keys are written is the caller's
//! choice at [`super::json::to_vec`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::ops::{Deref, DerefMut};

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LanguageCode;
use super::json;

macro_rules! bodies {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub struct $name { $($(#[$field_meta])* pub $field: $type),* }
        )*
    };
}

fn hashes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<i32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Hash {
        Number(i32),
        Text(String),
    }
    let hashes = Vec::<Hash>::deserialize(deserializer)?;
    hashes
        .into_iter()
        .map(|hash| match hash {
            Hash::Number(number) => Ok(number),
            Hash::Text(text) => text.parse().map_err(serde::de::Error::custom),
        })
        .collect()
}

/// Strings in an enum's clothes: unknown names are kept apart and never fail a body.
macro_rules! names {
    ($($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
            pub enum $name {
                #[default]
                $(#[serde(rename = $text)] $variant,)*
                /// A name this version does not know.
                #[serde(rename = "UNKNOWN", other)]
                Unknown,
            }

            impl $name {
                pub fn as_str(self) -> &'static str {
                    match self { $(Self::$variant => $text,)* Self::Unknown => "UNKNOWN" }
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(self.as_str())
                }
            }
        )*
    };
}

names! {
    ConsumeType {
        ConsumePassively = "CONSUME_PASSIVELY",
        ConsumeActively = "CONSUME_ACTIVELY",
        ConsumePop = "CONSUME_POP",
    }

    MessageModel {
        Clustering = "CLUSTERING",
        Broadcasting = "BROADCASTING",
    }

    ConsumeFromWhere {
        ConsumeFromLastOffset = "CONSUME_FROM_LAST_OFFSET",
        ConsumeFromLastOffsetAndFromMinWhenBootFirst = "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
        ConsumeFromMinOffset = "CONSUME_FROM_MIN_OFFSET",
        ConsumeFromMaxOffset = "CONSUME_FROM_MAX_OFFSET",
        ConsumeFromFirstOffset = "CONSUME_FROM_FIRST_OFFSET",
        ConsumeFromTimestamp = "CONSUME_FROM_TIMESTAMP",
    }
}

/// Identity of a queue. Ordered as upstream compares: topic, broker name, queue id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageQueue {
    pub topic: String,
    pub broker_name: String,
    pub queue_id: i32,
}

impl MessageQueue {
    pub fn new(topic: impl Into<String>, broker_name: impl Into<String>, queue_id: i32) -> Self {
        Self {
            topic: topic.into(),
            broker_name: broker_name.into(),
            queue_id,
        }
    }

    /// Its JSON text as fastjson writes it: members in alphabetical order.
    fn key_text(&self) -> String {
        let members = serde_json::json!({
            "brokerName": self.broker_name,
            "queueId": self.queue_id,
            "topic": self.topic,
        });
        members.to_string()
    }
}

/// A map keyed by message queues. In JSON text its keys are objects or strings that hold one; see
/// [`json::KeyStyle`].
#[derive(Clone, Debug, PartialEq)]
pub struct MessageQueueMap<V>(pub BTreeMap<MessageQueue, V>);

impl<V> Default for MessageQueueMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> Deref for MessageQueueMap<V> {
    type Target = BTreeMap<MessageQueue, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<V> DerefMut for MessageQueueMap<V> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<V> FromIterator<(MessageQueue, V)> for MessageQueueMap<V> {
    fn from_iter<I: IntoIterator<Item = (MessageQueue, V)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl<V> IntoIterator for MessageQueueMap<V> {
    type Item = (MessageQueue, V);
    type IntoIter = std::collections::btree_map::IntoIter<MessageQueue, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<V: Serialize> Serialize for MessageQueueMap<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (queue, value) in &self.0 {
            map.serialize_entry(&queue.key_text(), value)?;
        }
        map.end()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for MessageQueueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(std::marker::PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = MessageQueueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map keyed by message queues")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let queue =
                        json::from_slice(key.as_bytes()).map_err(serde::de::Error::custom)?;
                    entries.insert(queue, map.next_value()?);
                }
                Ok(MessageQueueMap(entries))
            }
        }

        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

// Versions, topics and groups.

/// Version of a table. Upstream compares all three; the 4.9 line sends no `stateVersion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataVersion {
    pub counter: i64,
    pub state_version: i64,
    pub timestamp: i64,
}

impl DataVersion {
    /// Marks a change made at `now_ms`.
    pub fn next_version(&mut self, now_ms: i64) {
        self.timestamp = now_ms;
        self.counter += 1;
    }
}

/// Permission bits of a topic or a broker.
pub const PERM_INHERIT: i32 = 1;
pub const PERM_WRITE: i32 = 2;
pub const PERM_READ: i32 = 4;

/// A topic on one broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicConfig {
    pub attributes: BTreeMap<String, String>,
    pub order: bool,
    pub perm: i32,
    pub read_queue_nums: i32,
    pub topic_filter_type: String,
    pub topic_name: String,
    pub topic_sys_flag: i32,
    pub write_queue_nums: i32,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            attributes: BTreeMap::new(),
            order: false,
            perm: PERM_READ | PERM_WRITE,
            read_queue_nums: 16,
            topic_filter_type: "SINGLE_TAG".to_owned(),
            topic_name: String::new(),
            topic_sys_flag: 0,
            write_queue_nums: 16,
        }
    }
}

impl TopicConfig {
    pub fn new(topic_name: impl Into<String>, queue_nums: i32, perm: i32) -> Self {
        Self {
            topic_name: topic_name.into(),
            read_queue_nums: queue_nums,
            write_queue_nums: queue_nums,
            perm,
            ..Self::default()
        }
    }

    pub fn readable(&self) -> bool {
        self.perm & PERM_READ != 0
    }

    pub fn writable(&self) -> bool {
        self.perm & PERM_WRITE != 0
    }
}

/// A consumer group on one broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionGroupConfig {
    pub attributes: BTreeMap<String, String>,
    pub broker_id: i64,
    pub consume_broadcast_enable: bool,
    pub consume_enable: bool,
    pub consume_from_min_enable: bool,
    pub consume_message_orderly: bool,
    pub consume_timeout_minute: i32,
    pub group_name: String,
    pub group_retry_policy: serde_json::Value,
    pub group_sys_flag: i32,
    pub notify_consumer_ids_changed_enable: bool,
    pub retry_max_times: i32,
    pub retry_queue_nums: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_data_set: Option<serde_json::Value>,
    pub which_broker_when_consume_slowly: i64,
}

impl Default for SubscriptionGroupConfig {
    fn default() -> Self {
        Self {
            attributes: BTreeMap::new(),
            broker_id: 0,
            consume_broadcast_enable: true,
            consume_enable: true,
            consume_from_min_enable: true,
            consume_message_orderly: false,
            consume_timeout_minute: 15,
            group_name: String::new(),
            group_retry_policy: serde_json::json!({"type": "CUSTOMIZED"}),
            group_sys_flag: 0,
            notify_consumer_ids_changed_enable: true,
            retry_max_times: 16,
            retry_queue_nums: 1,
            subscription_data_set: None,
            which_broker_when_consume_slowly: 1,
        }
    }
}

impl SubscriptionGroupConfig {
    pub fn new(group_name: impl Into<String>) -> Self {
        Self {
            group_name: group_name.into(),
            ..Self::default()
        }
    }
}

bodies! {
    /// Answer to 21, `topics.json`, and the heart of a registration.
    TopicConfigSerializeWrapper {
        data_version: DataVersion,
        #[serde(skip_serializing_if = "Option::is_none")]
        mapping_data_version: Option<DataVersion>,
        topic_config_table: BTreeMap<String, TopicConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic_queue_mapping_detail_map: Option<BTreeMap<String, serde_json::Value>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic_queue_mapping_info_map: Option<BTreeMap<String, TopicQueueMappingInfo>>,
    }

    TopicQueueMappingInfo {
        bname: String,
        curr_id_map: BTreeMap<i32, i32>,
        dirty: bool,
        epoch: i64,
        scope: String,
        topic: String,
        total_queues: i32,
    }

    CreateTopicListRequestBody {
        topic_config_list: Vec<TopicConfig>,
    }

    /// Answer to 201 and `subscriptionGroup.json`.
    SubscriptionGroupWrapper {
        data_version: DataVersion,
        forbidden_table: BTreeMap<String, BTreeMap<String, i32>>,
        subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
    }

    SubscriptionGroupList {
        group_config_list: Vec<SubscriptionGroupConfig>,
    }

    /// Answer to 43 and `consumerOffset.json`; key `topic@group`.
    ConsumerOffsetSerializeWrapper {
        #[serde(skip_serializing_if = "Option::is_none")]
        data_version: Option<DataVersion>,
        #[serde(skip_serializing_if = "Option::is_none")]
        group_topic_map: Option<BTreeMap<String, BTreeSet<String>>>,
        offset_table: BTreeMap<String, BTreeMap<i32, i64>>,
    }

    /// Answer to 45 and `delayOffset.json`; key is the delay level.
    DelayOffsetSerializeWrapper {
        #[serde(skip_serializing_if = "Option::is_none")]
        data_version: Option<DataVersion>,
        offset_table: BTreeMap<i32, i64>,
    }

    /// Answer to 402.
    MessageRequestModeSerializeWrapper {
        message_request_mode_map: BTreeMap<String, BTreeMap<String, SetMessageRequestModeRequestBody>>,
    }
}

// Routing.

/// Body of 103.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegisterBrokerBody {
    pub filter_server_list: Vec<String>,
    pub topic_config_serialize_wrapper: TopicConfigSerializeWrapper,
}

/// Bound of a registration body after decompression, against a body made to explode. 16 MiB on the
/// wire of text that compresses tenfold stays below it.
const MAX_INFLATED_REGISTRATION: u64 = 256 * 1024 * 1024;

/// From this sender version on, the body is a [`RegisterBrokerBody`] and not a bare wrapper.
const VERSION_REGISTER_BODY: i32 = 37;

/// From this sender version on, the compressed form ends with static-topic mappings.
const VERSION_STATIC_MAPPINGS: i32 = 413;

impl RegisterBrokerBody {
    /// Reads a registration body in any of its forms; `version` is that of the request.
    pub fn decode(body: &[u8], compressed: bool, version: i32) -> Result<Self, json::Error> {
        if version < VERSION_REGISTER_BODY {
            return Ok(Self {
                filter_server_list: Vec::new(),
                topic_config_serialize_wrapper: json::from_slice(body)?,
            });
        }
        if !compressed {
            return json::from_slice(body);
        }
        let mut inflated = Vec::new();
        flate2::read::ZlibDecoder::new(body)
            .take(MAX_INFLATED_REGISTRATION)
            .read_to_end(&mut inflated)
            .map_err(|error| {
                json::Error::Body(format!("registration cannot be inflated: {error}"))
            })?;
        Self::decode_binary(&inflated, version)
    }

    fn decode_binary(mut bytes: &[u8], version: i32) -> Result<Self, json::Error> {
        fn int(bytes: &mut &[u8]) -> Option<usize> {
            let (value, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            usize::try_from(i32::from_be_bytes(*value)).ok()
        }
        fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
            let length = int(bytes)?;
            let (part, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Some(part)
        }
        fn parsed<T: DeserializeOwned + Default>(bytes: &mut &[u8]) -> Result<T, json::Error> {
            match part(bytes).ok_or_else(cut)? {
                b"" => Ok(T::default()),
                text => json::from_slice(text),
            }
        }
        fn cut() -> json::Error {
            json::Error::Body("registration is cut short".to_owned())
        }
        let mut wrapper = TopicConfigSerializeWrapper {
            data_version: parsed(&mut bytes)?,
            ..Default::default()
        };
        for _ in 0..int(&mut bytes).ok_or_else(cut)? {
            let text = String::from_utf8_lossy(part(&mut bytes).ok_or_else(cut)?).into_owned();
            let topic = TopicConfig::from_registration(&text)
                .ok_or_else(|| json::Error::Body(format!("unusable topic entry {text:?}")))?;
            wrapper
                .topic_config_table
                .insert(topic.topic_name.clone(), topic);
        }
        let filter_server_list = parsed(&mut bytes)?;
        if version >= VERSION_STATIC_MAPPINGS && !bytes.is_empty() {
            let mut mappings = BTreeMap::new();
            for _ in 0..int(&mut bytes).ok_or_else(cut)? {
                let mapping: TopicQueueMappingInfo = parsed(&mut bytes)?;
                mappings.insert(mapping.topic.clone(), mapping);
            }
            wrapper.topic_queue_mapping_info_map = Some(mappings);
        }
        Ok(Self {
            filter_server_list,
            topic_config_serialize_wrapper: wrapper,
        })
    }
}

impl TopicConfig {
    /// The text form `name readQueues writeQueues perm filterType[ attributesJson]`.
    fn from_registration(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ' ');
        Some(Self {
            topic_name: parts.next()?.to_owned(),
            read_queue_nums: parts.next()?.parse().ok()?,
            write_queue_nums: parts.next()?.parse().ok()?,
            perm: parts.next()?.parse().ok()?,
            topic_filter_type: parts.next()?.to_owned(),
            attributes: match parts.next() {
                Some(attributes) => json::from_slice(attributes.as_bytes()).unwrap_or_default(),
                None => BTreeMap::new(),
            },
            ..Self::default()
        })
    }
}

bodies! {
    QueueData {
        broker_name: String,
        perm: i32,
        read_queue_nums: i32,
        topic_sys_flag: i32,
        write_queue_nums: i32,
    }

    BrokerData {
        broker_addrs: BTreeMap<i64, String>,
        broker_name: String,
        cluster: String,
        enable_acting_master: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        zone_name: Option<String>,
    }

    /// Answer to 105, body of 217.
    TopicRouteData {
        broker_datas: Vec<BrokerData>,
        filter_server_table: BTreeMap<String, Vec<String>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        order_topic_conf: Option<String>,
        queue_datas: Vec<QueueData>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic_queue_mapping_by_broker: Option<BTreeMap<String, TopicQueueMappingInfo>>,
    }

    /// Answer to 106.
    ClusterInfo {
        broker_addr_table: BTreeMap<String, BrokerData>,
        cluster_addr_table: BTreeMap<String, BTreeSet<String>>,
    }

    BrokerMemberGroup {
        broker_addrs: BTreeMap<i64, String>,
        broker_name: String,
        cluster: String,
    }

    /// Answer to 901.
    GetBrokerMemberGroupResponseBody {
        #[serde(skip_serializing_if = "Option::is_none")]
        broker_member_group: Option<BrokerMemberGroup>,
    }

    TopicList {
        #[serde(skip_serializing_if = "Option::is_none")]
        broker_addr: Option<String>,
        topic_list: BTreeSet<String>,
    }

    GroupList {
        group_list: BTreeSet<String>,
    }

    /// Answer to 28 and 219.
    KVTable {
        table: BTreeMap<String, String>,
    }
}

// Clients.
bodies! {
    /// What a consumer wants of one topic.
    SubscriptionData {
        class_filter_mode: bool,
        /// Hashes of the tags. The Go client writes them as strings.
        #[serde(deserialize_with = "hashes")]
        code_set: BTreeSet<i32>,
        expression_type: String,
        sub_string: String,
        sub_version: i64,
        tags_set: BTreeSet<String>,
        topic: String,
    }

    ProducerData {
        group_name: String,
    }

    ConsumerData {
        consume_from_where: ConsumeFromWhere,
        consume_type: ConsumeType,
        group_name: String,
        message_model: MessageModel,
        subscription_data_set: Vec<SubscriptionData>,
        unit_mode: bool,
    }

    /// Body of 34.
    HeartbeatData {
        #[serde(rename = "clientID")]
        client_id: String,
        consumer_data_set: Vec<ConsumerData>,
        heartbeat_fingerprint: i32,
        producer_data_set: Vec<ProducerData>,
        without_sub: bool,
    }

    /// Body of 46.
    CheckClientRequestBody {
        client_id: String,
        group: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        subscription_data: Option<SubscriptionData>,
    }

    /// Answer to 38.
    GetConsumerListByGroupResponseBody {
        consumer_id_list: Vec<String>,
    }

    /// Body of 41 and of 42.
    LockBatchRequestBody {
        client_id: String,
        consumer_group: String,
        mq_set: BTreeSet<MessageQueue>,
        only_this_broker: bool,
    }

    /// Answer to 41.
    LockBatchResponseBody {
        #[serde(rename = "lockOKMQSet")]
        lock_ok_mq_set: BTreeSet<MessageQueue>,
    }

    Connection {
        client_addr: String,
        client_id: String,
        language: LanguageCode,
        version: i32,
    }

    /// Answer to 203.
    ConsumerConnection {
        connection_set: Vec<Connection>,
        consume_from_where: ConsumeFromWhere,
        consume_type: ConsumeType,
        message_model: MessageModel,
        subscription_table: BTreeMap<String, SubscriptionData>,
    }

    /// Answer to 204.
    ProducerConnection {
        connection_set: Vec<Connection>,
    }

    ProducerInfo {
        client_id: String,
        language: LanguageCode,
        last_update_timestamp: i64,
        #[serde(rename = "remoteIP")]
        remote_ip: String,
        version: i32,
    }

    /// Answer to 328.
    ProducerTableInfo {
        data: BTreeMap<String, Vec<ProducerInfo>>,
    }

    ProcessQueueInfo {
        cached_msg_count: i64,
        cached_msg_max_offset: i64,
        cached_msg_min_offset: i64,
        #[serde(rename = "cachedMsgSizeInMiB")]
        cached_msg_size_in_mib: i64,
        commit_offset: i64,
        droped: bool,
        last_consume_timestamp: i64,
        last_lock_timestamp: i64,
        last_pull_timestamp: i64,
        locked: bool,
        transaction_msg_count: i64,
        transaction_msg_max_offset: i64,
        transaction_msg_min_offset: i64,
        try_unlock_times: i64,
    }

    PopProcessQueueInfo {
        droped: bool,
        last_pop_timestamp: i64,
        wait_ack_count: i64,
    }

    ConsumeStatus {
        consume_failed_msgs: i64,
        #[serde(rename = "consumeFailedTPS")]
        consume_failed_tps: f64,
        #[serde(rename = "consumeOKTPS")]
        consume_ok_tps: f64,
        #[serde(rename = "consumeRT")]
        consume_rt: f64,
        #[serde(rename = "pullRT")]
        pull_rt: f64,
        #[serde(rename = "pullTPS")]
        pull_tps: f64,
    }

    /// A client's answer to 307.
    ConsumerRunningInfo {
        #[serde(skip_serializing_if = "Option::is_none")]
        jstack: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        mq_pop_table: Option<MessageQueueMap<PopProcessQueueInfo>>,
        mq_table: MessageQueueMap<ProcessQueueInfo>,
        properties: BTreeMap<String, String>,
        status_table: BTreeMap<String, ConsumeStatus>,
        subscription_set: Vec<SubscriptionData>,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_consumer_info: Option<BTreeMap<String, String>>,
    }

    /// A client's answer to 309.
    ConsumeMessageDirectlyResult {
        auto_commit: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        consume_result: Option<String>,
        order: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        remark: Option<String>,
        spent_time_mills: i64,
    }

    /// Body of 220 for all but C++ clients, answer to 222.
    ResetOffsetBody {
        offset_table: MessageQueueMap<i64>,
    }

    MessageQueueForC {
        broker_name: String,
        offset: i64,
        queue_id: i32,
        topic: String,
    }

    /// Body of 220 for C++ clients.
    ResetOffsetBodyForC {
        offset_table: Vec<MessageQueueForC>,
    }

    /// Answer to 221 (`message_queue_table`) and to 223 (`consumer_table`).
    GetConsumerStatusBody {
        consumer_table: BTreeMap<String, MessageQueueMap<i64>>,
        message_queue_table: MessageQueueMap<i64>,
    }

    /// Body of 400.
    QueryAssignmentRequestBody {
        client_id: String,
        consumer_group: String,
        message_model: MessageModel,
        strategy_name: String,
        topic: String,
    }

    MessageQueueAssignment {
        #[serde(skip_serializing_if = "Option::is_none")]
        attachments: Option<BTreeMap<String, String>>,
        message_queue: MessageQueue,
        mode: String,
    }

    QueryAssignmentResponseBody {
        message_queue_assignments: Vec<MessageQueueAssignment>,
    }

    /// Body of 401.
    SetMessageRequestModeRequestBody {
        consumer_group: String,
        mode: String,
        pop_share_queue_num: i32,
        topic: String,
    }
}

// Statistics.
bodies! {
    TopicOffset {
        last_update_timestamp: i64,
        max_offset: i64,
        min_offset: i64,
    }

    /// Answer to 202.
    TopicStatsTable {
        offset_table: MessageQueueMap<TopicOffset>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic_put_tps: Option<f64>,
    }

    OffsetWrapper {
        broker_offset: i64,
        consumer_offset: i64,
        last_timestamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        pull_offset: Option<i64>,
    }

    /// Answer to 208.
    ConsumeStats {
        consume_tps: f64,
        offset_table: MessageQueueMap<OffsetWrapper>,
    }

    /// Answer to 317.
    ConsumeStatsList {
        #[serde(skip_serializing_if = "Option::is_none")]
        broker_addr: Option<String>,
        consume_stats_list: Vec<BTreeMap<String, Vec<ConsumeStats>>>,
        total_diff: i64,
        total_inflight_diff: i64,
    }

    QueueTimeSpan {
        consume_time_stamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        consume_time_stamp_str: Option<String>,
        delay_time: i64,
        max_time_stamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        max_time_stamp_str: Option<String>,
        message_queue: MessageQueue,
        min_time_stamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        min_time_stamp_str: Option<String>,
    }

    /// Answer to 303.
    QueryConsumeTimeSpanBody {
        consume_time_span_set: Vec<QueueTimeSpan>,
    }

    ConsumeQueueData {
        #[serde(skip_serializing_if = "Option::is_none")]
        bit_map: Option<String>,
        eval: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        msg: Option<String>,
        physic_offset: i64,
        physic_size: i32,
        tags_code: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        extend_data_json: Option<String>,
    }

    /// Answer to 321.
    QueryConsumeQueueResponseBody {
        #[serde(skip_serializing_if = "Option::is_none")]
        filter_data: Option<String>,
        max_queue_index: i64,
        min_queue_index: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        queue_data: Option<Vec<ConsumeQueueData>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        subscription_data: Option<SubscriptionData>,
    }

    BrokerStatsItem {
        avgpt: f64,
        sum: i64,
        tps: f64,
    }

    /// Answer to 315.
    BrokerStatsData {
        stats_day: BrokerStatsItem,
        stats_hour: BrokerStatsItem,
        stats_minute: BrokerStatsItem,
    }

    /// Answer to 308.
    QueryCorrectionOffsetBody {
        correction_offsets: BTreeMap<i32, i64>,
    }

    /// Answer to 345.
    QuerySubscriptionResponseBody {
        group: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        subscription_data: Option<SubscriptionData>,
        topic: String,
    }

    /// Answer to 353.
    GroupForbidden {
        group: String,
        readable: bool,
        topic: String,
    }

    HAClientRuntimeInfo {
        last_read_timestamp: i64,
        last_write_timestamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        master_addr: Option<String>,
        master_flush_offset: i64,
        max_offset: i64,
        transferred_byte_in_second: i64,
    }

    HAConnectionRuntimeInfo {
        addr: String,
        diff: i64,
        in_sync: bool,
        slave_ack_offset: i64,
        transfer_from_where: i64,
        transferred_byte_in_second: i64,
    }

    /// Answer to 907.
    HARuntimeInfo {
        ha_client_runtime_info: HAClientRuntimeInfo,
        ha_connection_info: Vec<HAConnectionRuntimeInfo>,
        in_sync_slave_nums: i32,
        master: bool,
        master_commit_log_max_offset: i64,
    }

    /// One member of a group that elects its own master, as the leader knows it (a follower knows ids and addresses only).
    DLedgerMember {
        /// `host:port` by which its peers reach it.
        address: String,
        /// Whether its acknowledgement means that its disk has it; empty when that is not known.
        flush_disk_type: String,
        id: String,
        /// Bytes of the log that it has not confirmed yet.
        lag_bytes: i64,
        match_index: i64,
        /// Whether the leadership may be handed to it: not while its disk takes nothing, nor when it is about to stop.
        may_lead: bool,
        /// Whether the leader has heard from it within an election time-out; true for the leader itself.
        recently_active: bool,
        /// Whether its word counts: not while it is back without its volume, or without its tail, and has not caught up.
        sure: bool,
        /// Counts for elections and commits; false: a learner, which only copies.
        voter: bool,
    }

    /// Answer to 20101, by any member, whether there is a leader or not.
    DLedgerStatus {
        applied_index: i64,
        commit_index: i64,
        /// Where the committed part of the log ends, in bytes.
        commit_offset: i64,
        /// `dLegerGroup`.
        group: String,
        last_index: i64,
        /// Where the log ends, in bytes.
        last_offset: i64,
        /// Empty while there is none.
        leader_id: String,
        members: Vec<DLedgerMember>,
        self_id: String,
        state: DLedgerState,
        term: i64,
    }
}

names! {
    /// What a member of a group that elects its own master is now.
    DLedgerState {
        Follower = "FOLLOWER",
        Candidate = "CANDIDATE",
        Leader = "LEADER",
        Learner = "LEARNER",
        Removed = "REMOVED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_hashes_are_read_as_numbers_and_as_the_strings_of_the_go_client() {
        for codes in ["[2112,-7]", r#"["-7","2112"]"#] {
            let text = format!(r#"{{"topic":"T","subString":"Aa","codeSet":{codes}}}"#);
            let subscription: SubscriptionData = serde_json::from_str(&text).unwrap();
            assert_eq!(subscription.code_set, BTreeSet::from([-7, 2112]));
        }
    }
}
