//! CONSUMER_SEND_MSG_BACK (36): a message that a consumer could not handle goes to its group's retry topic, delayed
//! more each time, and in the end to the dead-letter topic.

use std::sync::Arc;

use remoting::protocol::message::{
    MessageIdBuffer, RecordView, find_property, property, set_property,
};
use remoting::protocol::{RemotingCommand, response_code};

use super::answer::{Answer, Fields, Refused, ok};
use super::send_message::InnerMessage;
use crate::broker::Broker;
use crate::topic::{DLQ_GROUP_TOPIC_PREFIX, RETRY_GROUP_TOPIC_PREFIX, SCHEDULE_TOPIC, perm};

/// From this client version on the request's own maxReconsumeTimes counts (V3_4_9).
const VERSION_WITH_MAX_RECONSUME_TIMES: i32 = 121;
/// Queues of a dead-letter topic (upstream `DLQ_NUMS_PER_GROUP`).
const DLQ_QUEUES: i32 = 1;
/// A message's first return waits for this level, each further one a level more.
const FIRST_RETRY_LEVEL: i32 = 3;

/// Reads the record, so it may block.
pub(crate) fn consumer_send_msg_back(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let group_name = request.text("group")?;
    let offset = request.number::<i64>("offset")?;
    if !broker.is_master() {
        // The consumer sends the message to its retry topic itself then.
        return Err(Refused::system_error(broker.not_master().1));
    }
    let config = broker.config();
    let Some(group) = broker
        .groups
        .find_or_create(group_name, config.auto_create_subscription_group)
    else {
        return Err(Refused::new(
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("subscription group not exist, {group_name}"),
        ));
    };
    if !perm::is_writable(config.broker_permission) {
        return Err(Refused::new(
            response_code::NO_PERMISSION,
            format!(
                "the broker[{}] sending message is forbidden",
                broker.address()
            ),
        ));
    }
    if group.retry_queue_nums <= 0 {
        return ok();
    }
    let unit = request.flag("unitMode");
    let retry_topic = format!("{RETRY_GROUP_TOPIC_PREFIX}{group_name}");
    let mut target = broker.topics.create_for_group(
        &retry_topic,
        group.retry_queue_nums,
        perm::READ | perm::WRITE,
        unit,
    )?;
    if !perm::is_writable(target.config.perm) {
        return Err(Refused::new(
            response_code::NO_PERMISSION,
            format!("the topic[{retry_topic}] sending message is forbidden"),
        ));
    }
    let bytes = u64::try_from(offset)
        .ok()
        .and_then(|offset| broker.store.record_at(offset));
    let record = bytes
        .as_ref()
        .and_then(|bytes| RecordView::parse(bytes).ok());
    let Some(record) = record else {
        return Err(Refused::system_error(format!(
            "look message by offset failed, {offset}"
        )));
    };

    let max_reconsume_times = if request.version >= VERSION_WITH_MAX_RECONSUME_TIMES {
        request.number_or("maxReconsumeTimes", group.retry_max_times)
    } else {
        group.retry_max_times
    };
    let requested_level = request.number_or("delayLevel", 0);
    let is_dead = record.reconsume_times >= max_reconsume_times || requested_level < 0;
    let delay = match (is_dead, requested_level) {
        (true, _) => 0,
        (false, 0) => FIRST_RETRY_LEVEL.saturating_add(record.reconsume_times),
        (false, level) => level,
    };
    if is_dead {
        let dead_letters = format!("{DLQ_GROUP_TOPIC_PREFIX}{group_name}");
        target = broker.topics.create_for_group(
            &dead_letters,
            DLQ_QUEUES,
            perm::READ | perm::WRITE,
            unit,
        )?;
    }
    if !target.is_announced() && broker.tables.is_none() {
        // It may be new: a message that was taken must not lie in a topic that a killed broker forgets.
        broker.saver.flush();
    }
    let queue_id = random_queue(if is_dead {
        DLQ_QUEUES
    } else {
        group
            .retry_queue_nums
            .min(target.config.write_queue_nums.max(1))
    });

    let properties = properties_on_the_way_back(&record, delay);
    let message = InnerMessage {
        topic: &target,
        queue_id,
        flag: record.flag,
        sys_flag: record.sys_flag,
        born_timestamp: record.born_timestamp,
        born_host: record.born_host,
        reconsume_times: record.reconsume_times.saturating_add(1),
        prepared_transaction_offset: 0,
        body: record.body,
        properties: &String::from_utf8_lossy(&properties),
        delay_level: delay,
    };
    let appended = broker.put_message(&message).map_err(|error| {
        broker.stats.put_failed();
        Refused::system_error(error.to_string())
    })?;
    let stored_under = if delay > 0 {
        SCHEDULE_TOPIC
    } else {
        target.name()
    };
    broker.stats.put(
        &broker.stats.topic(stored_under),
        1,
        appended.end - appended.phy_offset,
    );
    let original = find_property(&properties, property::RETRY_TOPIC).unwrap_or_default();
    broker
        .stats
        .sent_back(&String::from_utf8_lossy(original), group_name);
    ok()
}

fn random_queue(queues: i32) -> i32 {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    i32::try_from(nanos / 1000 % u32::try_from(queues.max(1)).unwrap_or(1)).unwrap_or(0)
}

/// Where the message first was and what it was first called stay as they are; the rest is set anew.
fn properties_on_the_way_back(record: &RecordView<'_>, delay: i32) -> Vec<u8> {
    let mut properties = record.properties.to_vec();
    if find_property(&properties, property::RETRY_TOPIC).is_none() {
        set_property(&mut properties, property::RETRY_TOPIC, record.topic);
    }
    if find_property(&properties, property::ORIGIN_MESSAGE_ID).is_none() {
        let mut buffer = [0; size_of::<MessageIdBuffer>()];
        set_property(
            &mut properties,
            property::ORIGIN_MESSAGE_ID,
            record.message_id().format(&mut buffer).as_bytes(),
        );
    }
    set_property(&mut properties, property::WAIT, b"false");
    set_property(
        &mut properties,
        property::DELAY,
        delay.to_string().as_bytes(),
    );
    properties
}
