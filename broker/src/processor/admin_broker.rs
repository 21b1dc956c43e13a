//! Administration: topics, groups, connections, statistics, configuration (upstream `AdminBrokerProcessor`).
//!
//! Every function takes the decoded request and gives the answer. Those that read the log's older parts may block and
//! are run on a blocking thread; the dispatch says which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use remoting::properties::Properties;
use remoting::protocol::body::{
    Connection as ConnectionBody, ConsumeQueueData, ConsumeStats, ConsumeStatsList,
    ConsumerConnection, CreateTopicListRequestBody, DataVersion, GroupList, MessageQueue,
    OffsetWrapper, ProducerConnection, ProducerInfo, ProducerTableInfo,
    QueryConsumeQueueResponseBody, QueryConsumeTimeSpanBody, QuerySubscriptionResponseBody,
    QueueTimeSpan, SubscriptionData, SubscriptionGroupConfig, SubscriptionGroupList, TopicConfig,
    TopicList, TopicOffset, TopicStatsTable,
};
use remoting::protocol::json::{self, KeyStyle};
use remoting::protocol::{RemotingCommand, response_code};

use super::answer::{Answer, Fields, Refused, body, ok, ok_json, ok_text};
use crate::broker::Broker;
use crate::client::ClientChannelInfo;
use crate::config::{self, Applied, BrokerConfig, Change, Source, find_key};
use crate::role::Role;
use crate::subscription::validate_group;
use crate::topic::{Topic, validate_config, validate_name};

/// Separates topics in the `topicList` of 208.
const TOPIC_LIST_SEPARATOR: char = ';';
/// Entries of one answer to 321, whatever was asked for.
const MAX_QUEUE_ENTRIES: i32 = 4096;
/// Rows of one page of 21 and 201 at most.
const ROWS_OF_A_PAGE: usize = 2_000;
/// Keys that no request may change, beside those of `configBlackList`.
const CONFIG_BLACK_LIST: &[&str] = &["configBlackList", "brokerConfigPath"];

/// Codes that we know and answer 3 for now; the README lists them by part.
pub const NOT_SERVED: &[(i32, &str)] = &[
    (37, "END_TRANSACTION: transaction messages"),
    (323, "RESUME_CHECK_HALF_MESSAGE: transaction messages"),
    (324, "SEND_REPLY_MESSAGE: request-reply"),
    (325, "SEND_REPLY_MESSAGE_V2: request-reply"),
    (370, "RECALL_MESSAGE: messages with a delivery time"),
    (60, "GET_TIMER_CHECK_POINT: messages with a delivery time"),
    (61, "GET_TIMER_METRICS: messages with a delivery time"),
    (400, "QUERY_ASSIGNMENT: pop consumption"),
    (401, "SET_MESSAGE_REQUEST_MODE: pop consumption"),
    (200_050, "POP_MESSAGE: pop consumption"),
    (200_051, "ACK_MESSAGE: pop consumption"),
    (200_052, "PEEK_MESSAGE: pop consumption"),
    (200_053, "CHANGE_MESSAGE_INVISIBLETIME: pop consumption"),
    (200_054, "NOTIFICATION: pop consumption"),
    (200_055, "POLLING_INFO: pop consumption"),
    (200_056, "POP_ROLLBACK: pop consumption"),
    (200_151, "BATCH_ACK_MESSAGE: pop consumption"),
    (308, "QUERY_CORRECTION_OFFSET"),
    (353, "UPDATE_AND_GET_GROUP_FORBIDDEN"),
    (354, "CHECK_ROCKSDB_CQ_WRITE_PROGRESS"),
    (355, "EXPORT_ROCKSDB_CONFIG_TO_JSON"),
    (513, "UPDATE_AND_CREATE_STATIC_TOPIC: static topics"),
    (50, "UPDATE_AND_CREATE_ACL_CONFIG: access control"),
    (51, "DELETE_ACL_CONFIG: access control"),
    (52, "GET_BROKER_CLUSTER_ACL_INFO: access control"),
    (53, "UPDATE_GLOBAL_WHITE_ADDRS_CONFIG: access control"),
    (3001, "AUTH_CREATE_USER: access control"),
    (3002, "AUTH_UPDATE_USER: access control"),
    (3003, "AUTH_DELETE_USER: access control"),
    (3004, "AUTH_GET_USER: access control"),
    (3005, "AUTH_LIST_USER: access control"),
    (3006, "AUTH_CREATE_ACL: access control"),
    (3007, "AUTH_UPDATE_ACL: access control"),
    (3008, "AUTH_DELETE_ACL: access control"),
    (3009, "AUTH_GET_ACL: access control"),
    (3010, "AUTH_LIST_ACL: access control"),
    (902, "ADD_BROKER: broker containers"),
    (903, "REMOVE_BROKER: broker containers"),
    (906, "EXCHANGE_BROKER_HA_INFO: replication"),
    (908, "RESET_MASTER_FLUSH_OFFSET: replication"),
    (1007, "GET_BROKER_EPOCH_CACHE: controller mode"),
    (1008, "NOTIFY_BROKER_ROLE_CHANGED: controller mode"),
    (2001, "UPDATE_COLD_DATA_FLOW_CTR_CONFIG"),
    (2002, "REMOVE_COLD_DATA_FLOW_CTR_CONFIG"),
    (2003, "GET_COLD_DATA_FLOW_CTR_INFO"),
    (2004, "SET_COMMITLOG_READ_MODE"),
];

/// What a slave would lose at its next copy of its master's tables is refused; who asks is told where to go.
fn must_be_master(broker: &Broker) -> Result<(), Refused> {
    let role = broker.role.now();
    match role.role {
        Role::Master => Ok(()),
        Role::Slave => {
            let master = role.master.address.as_deref();
            let master = master.map_or_else(String::new, |address| format!(" ({address})"));
            Err(Refused::system_error(format!(
                "this broker is a slave: topics and groups are changed on its master{master}, from which it copies them"
            )))
        }
        Role::Undecided => {
            let (code, remark) = broker.not_master();
            Err(Refused::new(code, remark))
        }
    }
}

/// A body with maps keyed by queues, in the form that the asking program reads.
fn ok_keyed<T: serde::Serialize>(request: &RemotingCommand, body: &T) -> Answer {
    let text = json::to_vec(body, KeyStyle::for_language(request.language));
    Ok(RemotingCommand::response(response_code::SUCCESS).with_body(text))
}

fn invalid(remark: impl Into<String>) -> Refused {
    Refused::new(response_code::INVALID_PARAMETER, remark)
}

// Topics.

/// UPDATE_AND_CREATE_TOPIC (17).
pub(crate) fn update_and_create_topic(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let name = request.text_or_blank("topic");
    check_topic_name(broker, name)?;
    must_be_master(broker)?;
    let before = broker.topics.get(name);
    let known = before.as_ref().map(|topic| topic.config.attributes.clone());
    let config = TopicConfig {
        topic_name: name.to_owned(),
        read_queue_nums: request.number_or("readQueueNums", TopicConfig::default().read_queue_nums),
        write_queue_nums: request
            .number_or("writeQueueNums", TopicConfig::default().write_queue_nums),
        perm: request.number_or("perm", TopicConfig::default().perm),
        topic_filter_type: match request.text_or_blank("topicFilterType") {
            "" => TopicConfig::default().topic_filter_type,
            kind => kind.to_owned(),
        },
        topic_sys_flag: request.number_or("topicSysFlag", 0),
        order: request.flag("order"),
        attributes: attributes::alter(known, request.text_or_blank("attributes"))
            .map_err(Refused::system_error)?,
    };
    validate_config(&config).map_err(invalid)?;
    tracing::info!(topic = name, ?config, "create or change a topic");
    broker.topics.update([config])?;
    ok()
}

/// UPDATE_AND_CREATE_TOPIC_LIST (18): all or nothing.
pub(crate) fn update_and_create_topic_list(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let list: CreateTopicListRequestBody = body(request)?;
    for config in &list.topic_config_list {
        check_topic_name(broker, &config.topic_name)?;
        validate_config(config).map_err(invalid)?;
    }
    must_be_master(broker)?;
    broker.topics.update(list.topic_config_list)?;
    ok()
}

fn check_topic_name(broker: &Broker, name: &str) -> Result<(), Refused> {
    validate_name(name).map_err(invalid)?;
    if broker.config().validate_system_topic_when_update_topic
        && broker.topics.is_system_topic(name)
    {
        return Err(invalid(format!(
            "The topic[{name}] is conflict with system topic."
        )));
    }
    Ok(())
}

/// DELETE_TOPIC_IN_BROKER (215). Removes files, so it may block.
pub(crate) fn delete_topic(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let name = request.text_or_blank("topic");
    if name.trim().is_empty() {
        return Err(invalid("The specified topic is blank."));
    }
    check_topic_name(broker, name)?;
    must_be_master(broker)?;
    match &broker.tables {
        // Queues and offsets go when the group agreed, on every member.
        Some(tables) => {
            let now = tables.now();
            broker.topics.delete(name)?;
            broker.blocking.wait(tables.agreed(now))?;
        }
        None => {
            broker.topics.delete(name)?;
            broker
                .forget_topic(name)
                .map_err(|error| Refused::system_error(error.to_string()))?;
        }
    }
    tracing::info!(topic = name, "deleted the topic");
    ok()
}

/// GET_ALL_TOPIC_CONFIG (21): everything, or the page that was asked for.
pub(crate) fn get_all_topic_config(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let mut wrapper = broker.topics.table().wrapper();
    let total = wrapper.topic_config_table.len();
    let paged = cut_page(
        request,
        ("topicSeq", "maxTopicNum"),
        &wrapper.data_version,
        &mut wrapper.topic_config_table,
    );
    let answer = RemotingCommand::response(response_code::SUCCESS).json_body(&wrapper);
    Ok(match paged {
        true => answer.with_ext("totalTopicNum", total.to_string()),
        false => answer,
    })
}

/// Leaves the asked page of a table, in the order of the names; false when no page was asked for. A page of another version of
/// the table is the first one, as upstream answers it: the asker sees the version and begins anew.
fn cut_page<T>(
    request: &RemotingCommand,
    (from_field, most_field): (&str, &str),
    version: &DataVersion,
    table: &mut BTreeMap<String, T>,
) -> bool {
    let Some(from) = request
        .ext(from_field)
        .and_then(|from| from.trim().parse::<usize>().ok())
    else {
        return false;
    };
    let asked: Option<DataVersion> = request
        .ext("dataVersion")
        .and_then(|text| json::from_slice(text.as_bytes()).ok());
    let from = if asked.as_ref() == Some(version) {
        from
    } else {
        0
    };
    let most = request
        .number_or(most_field, ROWS_OF_A_PAGE)
        .clamp(1, ROWS_OF_A_PAGE);
    let page = std::mem::take(table).into_iter().skip(from).take(most);
    *table = page.collect();
    true
}

/// GET_TOPIC_CONFIG (351).
pub(crate) fn get_topic_config(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let name = request.text("topic")?;
    match broker.topics.get(name) {
        Some(topic) => ok_json(&topic.config),
        None => Err(Refused::new(
            response_code::TOPIC_NOT_EXIST,
            format!("No topic in this broker. topic: {name}"),
        )),
    }
}

/// GET_SYSTEM_TOPIC_LIST_FROM_BROKER (305).
pub(crate) fn get_system_topic_list(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    ok_json(&TopicList {
        broker_addr: None,
        topic_list: broker.topics.system_topics().iter().cloned().collect(),
    })
}

/// GET_TOPIC_STATS_INFO (202). Reads the newest record of each queue, so it may block.
pub(crate) fn get_topic_stats_info(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let name = request.text("topic")?;
    let topic = broker
        .topics
        .get(name)
        .ok_or_else(|| Refused::topic_absent(name))?;
    let queue = |queue_id| {
        let (min, max) = (
            broker.store.min_offset(name, queue_id).max(0),
            broker.store.max_offset(name, queue_id).max(0),
        );
        let updated = if max > 0 {
            broker
                .store
                .store_time_at(name, queue_id, max - 1)
                .unwrap_or(0)
        } else {
            0
        };
        let offset = TopicOffset {
            last_update_timestamp: updated,
            max_offset: max,
            min_offset: min,
        };
        (MessageQueue::new(name, broker.name(), queue_id), offset)
    };
    let queues = topic
        .config
        .read_queue_nums
        .max(topic.config.write_queue_nums);
    let table = TopicStatsTable {
        offset_table: (0..queues).map(queue).collect(),
        topic_put_tps: Some(broker.stats.topic_tps(name)),
    };
    ok_keyed(request, &table)
}

// Groups.

/// UPDATE_AND_CREATE_SUBSCRIPTIONGROUP (200).
pub(crate) fn update_and_create_subscription_group(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let config: SubscriptionGroupConfig = body(request)?;
    validate_group(&config.group_name).map_err(invalid)?;
    must_be_master(broker)?;
    broker.groups.update([config])?;
    ok()
}

/// UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST (225): all or nothing.
pub(crate) fn update_and_create_subscription_group_list(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let list: SubscriptionGroupList = body(request)?;
    for config in &list.group_config_list {
        validate_group(&config.group_name).map_err(invalid)?;
    }
    must_be_master(broker)?;
    broker.groups.update(list.group_config_list)?;
    ok()
}

/// GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201), like 21.
pub(crate) fn get_all_subscription_group(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let mut wrapper = broker.groups.wrapper();
    let total = wrapper.subscription_group_table.len();
    let paged = cut_page(
        request,
        ("groupSeq", "maxGroupNum"),
        &wrapper.data_version,
        &mut wrapper.subscription_group_table,
    );
    let answer = RemotingCommand::response(response_code::SUCCESS).json_body(&wrapper);
    Ok(match paged {
        true => answer.with_ext("totalGroupNum", total.to_string()),
        false => answer,
    })
}

/// GET_SUBSCRIPTIONGROUP_CONFIG (352).
pub(crate) fn get_subscription_group(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let name = request.text("group")?;
    match broker.groups.find(name) {
        Some(group) => ok_json(&*group),
        None => Err(Refused::new(
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("No group in this broker. group: {name}"),
        )),
    }
}

/// DELETE_SUBSCRIPTIONGROUP (207). 4.9 says `removeOffset`, 5.x `cleanOffset`.
pub(crate) fn delete_subscription_group(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let name = request.text("groupName")?;
    must_be_master(broker)?;
    let offsets = request.flag("cleanOffset") || request.flag("removeOffset");
    broker.groups.delete(name, offsets)?;
    if broker.tables.is_none() {
        broker.forget_group(name, offsets);
    }
    ok()
}

// Connections.

/// GET_CONSUMER_CONNECTION_LIST (203).
pub(crate) fn get_consumer_connection_list(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let name = request.text("consumerGroup")?;
    let Some(group) = broker.consumers.group(name) else {
        return Err(Refused::new(
            response_code::CONSUMER_NOT_ONLINE,
            format!("the consumer group[{name}] not online"),
        ));
    };
    let subscriptions = group.subscriptions();
    ok_json(&ConsumerConnection {
        connection_set: group.members().iter().map(connection).collect(),
        consume_from_where: group.consume_from_where(),
        consume_type: group.consume_type(),
        message_model: group.message_model(),
        subscription_table: subscriptions
            .into_iter()
            .map(|(topic, data)| (topic, (*data).clone()))
            .collect(),
    })
}

/// GET_PRODUCER_CONNECTION_LIST (204).
pub(crate) fn get_producer_connection_list(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let name = request.text("producerGroup")?;
    let members = broker.producers.members(name);
    if members.is_empty() {
        return Err(Refused::system_error(format!(
            "the producer group[{name}] not exist"
        )));
    }
    ok_json(&ProducerConnection {
        connection_set: members.iter().map(connection).collect(),
    })
}

/// GET_ALL_PRODUCER_INFO (328).
pub(crate) fn get_all_producer_info(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    let info = |member: ClientChannelInfo| ProducerInfo {
        client_id: member.client_id.to_string(),
        language: member.language,
        last_update_timestamp: member.last_update_ms,
        // With the slash in front, as Java writes a socket address and tools print it.
        remote_ip: format!("/{}", member.peer),
        version: member.version,
    };
    let data = broker.producers.all();
    ok_json(&ProducerTableInfo {
        data: data
            .into_iter()
            .map(|(group, members)| (group, members.into_iter().map(info).collect()))
            .collect(),
    })
}

fn connection(member: &ClientChannelInfo) -> ConnectionBody {
    ConnectionBody {
        client_addr: member.peer.to_string(),
        client_id: member.client_id.to_string(),
        language: member.language,
        version: member.version,
    }
}

// Consumption.

/// GET_CONSUME_STATS (208). Reads records for their time, so it may block.
pub(crate) fn get_consume_stats(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let group = request.text("consumerGroup")?;
    let topics: BTreeSet<String> = match (
        request.text_or_blank("topic"),
        request.text_or_blank("topicList"),
    ) {
        ("", "") => broker.offsets.topics_of_group(group),
        ("", list) => list
            .split(TOPIC_LIST_SEPARATOR)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        (topic, _) => BTreeSet::from([topic.to_owned()]),
    };
    let mut stats = ConsumeStats::default();
    for name in topics {
        let Some(topic) = subscribed_topic(broker, group, &name) else {
            continue;
        };
        add_consume_stats(
            broker,
            group,
            &topic,
            topic.config.read_queue_nums,
            &mut stats,
        );
    }
    ok_keyed(request, &stats)
}

/// GET_BROKER_CONSUME_STATS (317), of every group. May block.
pub(crate) fn get_broker_consume_stats(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let only_ordered = request.flag("isOrder");
    let mut list = ConsumeStatsList {
        broker_addr: Some(broker.address().to_owned()),
        ..ConsumeStatsList::default()
    };
    for group in broker.groups.names() {
        let mut of_group = Vec::new();
        for name in broker.offsets.topics_of_group(&group) {
            let Some(topic) = subscribed_topic(broker, &group, &name) else {
                continue;
            };
            if only_ordered && !topic.config.order {
                continue;
            }
            let mut stats = ConsumeStats::default();
            add_consume_stats(
                broker,
                &group,
                &topic,
                topic.config.write_queue_nums,
                &mut stats,
            );
            for offsets in stats.offset_table.values() {
                list.total_diff += offsets.broker_offset - offsets.consumer_offset;
                list.total_inflight_diff += offsets.pull_offset.unwrap_or(offsets.consumer_offset)
                    - offsets.consumer_offset;
            }
            of_group.push(stats);
        }
        list.consume_stats_list
            .push(BTreeMap::from([(group, of_group)]));
    }
    ok_keyed(request, &list)
}

/// The topic, unless the group is online without a subscription to it: then its offsets are a leftover.
fn subscribed_topic(broker: &Broker, group: &str, name: &str) -> Option<Arc<Topic>> {
    let topic = broker.topics.get(name)?;
    let is_leftover = broker
        .consumers
        .group(group)
        .is_some_and(|members| members.subscription(name).is_none());
    (!is_leftover).then_some(topic)
}

fn add_consume_stats(
    broker: &Broker,
    group: &str,
    topic: &Topic,
    queues: i32,
    stats: &mut ConsumeStats,
) {
    let name = topic.name();
    for queue_id in 0..queues {
        let broker_offset = broker.store.max_offset(name, queue_id).max(0);
        let consumer_offset = broker.offsets.query(group, name, queue_id).unwrap_or(0);
        let pull_offset = broker
            .offsets
            .query_pull_offset(group, name, queue_id)
            .unwrap_or(0)
            .max(consumer_offset);
        let last_timestamp = match consumer_offset {
            0 => 0,
            offset => broker
                .store
                .store_time_at(name, queue_id, offset - 1)
                .unwrap_or(0)
                .max(0),
        };
        let offsets = OffsetWrapper {
            broker_offset,
            consumer_offset,
            last_timestamp,
            pull_offset: Some(pull_offset),
        };
        stats
            .offset_table
            .insert(MessageQueue::new(name, broker.name(), queue_id), offsets);
    }
    stats.consume_tps += broker.stats.group_tps(name, group);
}

/// QUERY_TOPIC_CONSUME_BY_WHO (300): who is online for the topic or has offsets on it. (5.3.3 also lists the topic
/// itself; see section 15 of the reference.)
pub(crate) fn query_topic_consume_by_who(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let topic = request.text("topic")?;
    let mut groups = broker.consumers.groups_of_topic(topic);
    groups.extend(broker.offsets.groups_of_topic(topic));
    ok_json(&GroupList { group_list: groups })
}

/// QUERY_TOPICS_BY_CONSUMER (343).
pub(crate) fn query_topics_by_consumer(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let topics = broker.offsets.topics_of_group(request.text("group")?);
    ok_json(&TopicList {
        broker_addr: Some(broker.address().to_owned()),
        topic_list: topics,
    })
}

/// QUERY_SUBSCRIPTION_BY_CONSUMER (345).
pub(crate) fn query_subscription_by_consumer(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let (group, topic) = (request.text("group")?, request.text("topic")?);
    ok_json(&QuerySubscriptionResponseBody {
        group: group.to_owned(),
        subscription_data: subscription(broker, group, topic),
        topic: topic.to_owned(),
    })
}

fn subscription(broker: &Broker, group: &str, topic: &str) -> Option<SubscriptionData> {
    Some((*broker.consumers.group(group)?.subscription(topic)?).clone())
}

/// QUERY_CONSUME_TIME_SPAN (303). Reads records for their time, so it may block.
pub(crate) fn query_consume_time_span(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (name, group) = (request.text("topic")?, request.text("group")?);
    let topic = broker
        .topics
        .get(name)
        .ok_or_else(|| Refused::topic_absent(name))?;
    let store = &broker.store;
    let time_at = |queue_id, offset| store.store_time_at(name, queue_id, offset).unwrap_or(-1);
    let span = |queue_id| {
        let max = store.max_offset(name, queue_id);
        let min_time = store.earliest_store_time(name, queue_id);
        let max_time = if max > 0 {
            time_at(queue_id, max - 1)
        } else {
            -1
        };
        let consumed = broker.offsets.query(group, name, queue_id).unwrap_or(0);
        let consume_time = if consumed > 0 {
            time_at(queue_id, consumed - 1)
        } else {
            min_time
        };
        let delay = if consumed < max {
            broker.clock.now_ms() - time_at(queue_id, consumed)
        } else {
            0
        };
        QueueTimeSpan {
            consume_time_stamp: consume_time,
            consume_time_stamp_str: Some(time_text(consume_time)),
            delay_time: delay,
            max_time_stamp: max_time,
            max_time_stamp_str: Some(time_text(max_time)),
            message_queue: MessageQueue::new(name, broker.name(), queue_id),
            min_time_stamp: min_time,
            min_time_stamp_str: Some(time_text(min_time)),
        }
    };
    ok_json(&QueryConsumeTimeSpanBody {
        consume_time_span_set: (0..topic.config.write_queue_nums).map(span).collect(),
    })
}

/// `yyyy-MM-dd#HH:mm:ss:SSS` in local time.
fn time_text(millis: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(millis)
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::system());
    format!(
        "{}:{:03}",
        time.strftime("%Y-%m-%d#%H:%M:%S"),
        millis.rem_euclid(1000)
    )
}

/// CLONE_GROUP_OFFSET (314).
pub(crate) fn clone_group_offset(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (source, destination) = (request.text("srcGroup")?, request.text("destGroup")?);
    let topics = match request.text_or_blank("topic") {
        "" => broker.offsets.topics_of_group(source),
        topic => BTreeSet::from([topic.to_owned()]),
    };
    for topic in topics {
        if broker.topics.get(&topic).is_none() {
            tracing::warn!(topic, "clone offsets: no such topic");
        } else if !request.flag("offline") && subscribed_topic(broker, source, &topic).is_none() {
            tracing::warn!(
                topic,
                group = source,
                "clone offsets: the group is online without this topic"
            );
        } else {
            broker.offsets.clone_offset(source, destination, &topic);
        }
    }
    ok()
}

/// QUERY_CONSUME_QUEUE (321). Reads queue files, so it may block.
pub(crate) fn query_consume_queue(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (topic, queue_id): (&str, i32) = (request.text("topic")?, request.number("queueId")?);
    let (index, count): (i64, i32) = (request.number("index")?, request.number("count")?);
    let Some(queue) = broker.store.find_queue(topic, queue_id) else {
        return Err(Refused::system_error(format!(
            "{queue_id}@{topic} is not exist!"
        )));
    };
    let group = request.text_or_blank("consumerGroup");
    let mut answer = QueryConsumeQueueResponseBody {
        max_queue_index: queue.max_offset(),
        min_queue_index: queue.min_offset(),
        ..QueryConsumeQueueResponseBody::default()
    };
    if !group.is_empty() {
        answer.subscription_data = subscription(broker, group, topic);
        answer.filter_data = Some(match &answer.subscription_data {
            None => format!("{group}@{topic} is not online!"),
            Some(_) => "null".to_owned(),
        });
    }
    let count = usize::try_from(count.clamp(0, MAX_QUEUE_ENTRIES)).unwrap_or(0);
    let units = broker
        .store
        .query_consume_queue(topic, queue_id, index, count);
    if units.is_empty() {
        let remark = format!("Index {index} of {queue_id}@{topic} is not exist!");
        return Ok(RemotingCommand::response(response_code::SUCCESS)
            .json_body(&answer)
            .with_remark(remark));
    }
    // `eval` stays false: upstream sets it only where an SQL92 filter was compiled.
    let data = |(physic_offset, physic_size, tags_code)| ConsumeQueueData {
        physic_offset,
        physic_size,
        tags_code,
        ..ConsumeQueueData::default()
    };
    answer.queue_data = Some(units.into_iter().map(data).collect());
    ok_json(&answer)
}

// Statistics and upkeep.

/// VIEW_BROKER_STATS_DATA (315).
pub(crate) fn view_broker_stats_data(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (name, key) = (request.text("statsName")?, request.text("statsKey")?);
    match broker.stats.data(name, key) {
        Some(data) => ok_json(&data),
        None => Err(Refused::system_error(format!(
            "The stats <{name}> <{key}> not exist"
        ))),
    }
}

/// CLEAN_EXPIRED_CONSUMEQUEUE (306): the store removes what lies before the log's start by itself.
pub(crate) fn clean_expired_consume_queue(
    _broker: &Arc<Broker>,
    _request: &RemotingCommand,
) -> Answer {
    ok()
}

/// CLEAN_UNUSED_TOPIC (316): queues whose topic is not configured any more. Removes files, so it may block.
///
/// A slave does nothing: a topic that it meets in the log before it has its settings looks unused.
pub(crate) fn clean_unused_topic(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    if !broker.is_master() {
        return ok();
    }
    let table = broker.topics.table();
    let removed = broker.store.clean_unused_topics(&|topic| {
        table.get(topic).is_some() || broker.topics.is_system_topic(topic)
    });
    tracing::info!(?removed, "cleaned unused topics");
    ok()
}

/// DELETE_EXPIRED_COMMITLOG (329).
pub(crate) fn delete_expired_commit_log(
    broker: &Arc<Broker>,
    _request: &RemotingCommand,
) -> Answer {
    broker.store.delete_expired_now();
    ok()
}

// For slaves.

/// GET_ALL_CONSUMER_OFFSET (43).
pub(crate) fn get_all_consumer_offset(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    ok_text(broker.offsets.encode())
}

/// GET_ALL_DELAY_OFFSET (45).
pub(crate) fn get_all_delay_offset(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    ok_text(broker.schedule.encode_for_slaves())
}

/// GET_ALL_MESSAGE_REQUEST_MODE (402).
pub(crate) fn get_all_message_request_mode(
    broker: &Arc<Broker>,
    _request: &RemotingCommand,
) -> Answer {
    ok_json(&broker.request_modes.wrapper())
}

/// NOTIFY_MIN_BROKER_ID_CHANGE (905): the group's smallest id came or went. Without acting masters that is no more than a reason
/// to ask the name servers at once who the master is.
pub(crate) fn notify_min_broker_id_change(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    if request.ext("brokerName") == Some(broker.name()) {
        broker.registrar.register_all();
    }
    ok()
}

/// GET_BROKER_HA_STATUS (907): a master without slaves.
pub(crate) fn get_broker_ha_status(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    ok_json(&broker.ha.status(broker))
}

// Configuration.

/// GET_BROKER_CONFIG (26). Beside upstream's `version` the answer carries `configHash`, the hash of the file that the
/// process started with: a file that changed since then is seen by comparing the two.
pub(crate) fn get_broker_config(broker: &Arc<Broker>, _request: &RemotingCommand) -> Answer {
    let hash = &broker.settings.config_hash;
    let version = serde_json::to_string(&broker.config_version()).unwrap_or_default();
    let text = format!("{}configHash={hash}\n", broker.config().to_properties());
    Ok(RemotingCommand::response(response_code::SUCCESS)
        .with_ext("version", version)
        .with_ext("configHash", hash.clone())
        .with_body(text))
}

/// UPDATE_BROKER_CONFIG (25): all or nothing. Dynamic keys count at once; keys that count at the next start are
/// written to the file. Writes a file, so it may block.
///
/// A remark on the answer 0 says what did not happen: a key that waits for a restart, a file that cannot be written.
pub(crate) fn update_broker_config(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let properties = Properties::parse(&request.body)
        .map_err(|error| Refused::system_error(error.to_string()))?;
    if properties.is_empty() {
        return Err(Refused::system_error("string2Properties error"));
    }
    let black_list = &broker.settings.raw.config_black_list;
    let is_listed = |key: &str| {
        let mut listed = black_list.split(';').map(str::trim);
        CONFIG_BLACK_LIST.contains(&key) || listed.any(|listed| listed == key)
    };
    if let Some(property) = properties.iter().find(|property| is_listed(&property.key)) {
        return Err(Refused::new(
            response_code::NO_PERMISSION,
            format!("Can not update config in black list. {}", property.key),
        ));
    }
    let mut remarks = Vec::new();
    let mut at_start = Vec::new();
    let mut dynamic = Vec::new();
    let mut trial = (*broker.config()).clone();
    for property in properties.iter() {
        let applied = trial
            .set(Source::Request, &property.key, &property.value)
            .map_err(|error| Refused::system_error(error.to_string()))?;
        match (applied, find_key(&property.key)) {
            (Applied::Set(key), Some(found))
                if found.change == Change::Dynamic && !outgrows_the_store(broker, &trial, key) =>
            {
                dynamic.push((key, property.value.as_str()));
            }
            (Applied::Set(key), _) => at_start.push((key, property.value.as_str())),
            (Applied::NotApplicable, _) => {
                remarks.push(format!("{} has no effect on this broker", property.key))
            }
            (Applied::Unknown, _) => {
                remarks.push(format!("{} is not a key of this broker", property.key))
            }
        }
    }
    // Ranges, and what values mean together; a fault that was there before is not this request's.
    if let Err(config::Error::Refused { key, value, reason }) = trial.validate()
        && at_start
            .iter()
            .chain(&dynamic)
            .any(|(changed, _)| *changed == key)
    {
        return Err(Refused::system_error(format!("{key}={value}: {reason}")));
    }
    let written = broker.write_config(at_start.iter().chain(&dynamic).copied());
    if let Err(reason) = &written {
        if let Some((key, _)) = at_start.first() {
            return Err(Refused::system_error(format!(
                "{key} counts at the next start only, and the configuration file cannot be written: {reason}; nothing was changed"
            )));
        }
        remarks.push(format!(
            "in memory only, the configuration file cannot be written: {reason}"
        ));
    }
    broker.update_config(|config| {
        for (key, value) in &dynamic {
            // It was accepted by the trial above.
            let _ = config.set(Source::Request, key, value);
        }
    });
    remarks.extend(
        at_start
            .iter()
            .map(|(key, _)| format!("{key} counts after a restart")),
    );
    tracing::info!(
        ?dynamic,
        ?at_start,
        ?remarks,
        "the configuration was updated by request"
    );
    let answer = RemotingCommand::response(response_code::SUCCESS);
    Ok(if remarks.is_empty() {
        answer
    } else {
        answer.with_remark(remarks.join("; "))
    })
}

/// The store's buffers were made for the largest message of the start; a smaller bound can be set at any time.
fn outgrows_the_store(broker: &Broker, config: &BrokerConfig, key: &str) -> bool {
    key == "maxMessageSize" && config.max_message_size > broker.settings.raw.max_message_size
}

/// Topic attributes as 5.x tools send them: `+key=value` sets, `-key` removes, separated by commas.
mod attributes {
    use std::collections::BTreeMap;

    type Attributes = BTreeMap<String, String>;

    struct Attribute {
        name: &'static str,
        is_changeable: bool,
        check: fn(&str) -> Result<(), String>,
    }

    /// Upstream `TopicAttributes`; the sets print in upstream's order.
    const KNOWN: [Attribute; 4] = [
        Attribute {
            name: "queue.type",
            is_changeable: false,
            check: |value| one_of(value, &["BatchCQ", "SimpleCQ"]),
        },
        Attribute {
            name: "cleanup.policy",
            is_changeable: false,
            check: |value| one_of(value, &["COMPACTION", "DELETE"]),
        },
        Attribute {
            name: "message.type",
            is_changeable: true,
            check: |value| {
                one_of(
                    value,
                    &[
                        "UNSPECIFIED",
                        "TRANSACTION",
                        "FIFO",
                        "MIXED",
                        "DELAY",
                        "NORMAL",
                    ],
                )
            },
        },
        Attribute {
            name: "reserve.time",
            is_changeable: true,
            check: |value| match value.parse::<i64>() {
                Ok(value) if value >= -1 => Ok(()),
                Ok(value) => Err(format!("{value} is not in range(-1, {})", i64::MAX)),
                Err(_) => Err(format!("For input string: \"{value}\"")),
            },
        },
    ];

    fn one_of(value: &str, allowed: &[&str]) -> Result<(), String> {
        if allowed.contains(&value) {
            Ok(())
        } else {
            Err(format!("value is not in set: [{}]", allowed.join(", ")))
        }
    }

    /// The attributes after the change (upstream `AttributeUtil.alterCurrentAttributes`); `current` is `None` for a
    /// new topic. An empty change leaves them as they are.
    pub(super) fn alter(current: Option<Attributes>, change: &str) -> Result<Attributes, String> {
        let is_new = current.is_none();
        let mut result = current.unwrap_or_default();
        for part in change
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            if let Some(pair) = part.strip_prefix('+') {
                let (key, value) = pair
                    .split_once('=')
                    .ok_or_else(|| format!("kv string format wrong: {part}"))?;
                let attribute = known(key)?;
                if !is_new && !attribute.is_changeable {
                    return Err(format!(
                        "attempt to update an unchangeable attribute. key: {key}"
                    ));
                }
                (attribute.check)(value)?;
                result.insert(key.to_owned(), value.to_owned());
            } else if let Some(key) = part.strip_prefix('-') {
                if is_new {
                    return Err(format!(
                        "only add attribute is supported while creating topic. key: {key}"
                    ));
                }
                if !known(key)?.is_changeable {
                    return Err(format!(
                        "attempt to update an unchangeable attribute. key: {key}"
                    ));
                }
                if result.remove(key).is_none() {
                    return Err(format!("attempt to delete a nonexistent key: {key}"));
                }
            } else {
                return Err(format!("add/alter attribute format is wrong: {part}"));
            }
        }
        Ok(result)
    }

    fn known(key: &str) -> Result<&'static Attribute, String> {
        KNOWN
            .iter()
            .find(|attribute| attribute.name == key)
            .ok_or_else(|| format!("unsupported key: {key}"))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn attributes_are_added_altered_and_removed_within_their_rules() {
            let fifo = alter(None, "+message.type=FIFO, +queue.type=SimpleCQ").unwrap();
            assert_eq!(fifo.len(), 2);
            assert_eq!(
                alter(Some(fifo.clone()), "+message.type=DELAY").unwrap()["message.type"],
                "DELAY"
            );
            assert_eq!(alter(Some(fifo.clone()), "-message.type").unwrap().len(), 1);
            assert_eq!(alter(Some(fifo.clone()), "").unwrap(), fifo);
            assert_eq!(
                alter(None, "+message.type=WRONG").unwrap_err(),
                "value is not in set: [UNSPECIFIED, TRANSACTION, FIFO, MIXED, DELAY, NORMAL]"
            );
            for wrong in [
                "-message.type",
                "+nonsense=1",
                "message.type=FIFO",
                "+message.type",
            ] {
                assert!(alter(None, wrong).is_err(), "{wrong}");
            }
            for wrong in ["+queue.type=BatchCQ", "-queue.type", "-reserve.time"] {
                assert!(alter(Some(fifo.clone()), wrong).is_err(), "{wrong}");
            }
        }
    }
}
