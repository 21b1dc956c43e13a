//! INVOKE_BROKER_TO_RESET_OFFSET (222).
//!
//! On the server, as 5.x does it: the target is kept for each queue and given to its next pull, whether or not a
//! consumer is online. With `useServerSideResetOffset=false` through the clients, as 4.9 does it: every member gets
//! the targets (220), drops its queues and goes on from there.

use std::sync::Arc;

use remoting::protocol::body::{
    MessageQueue, MessageQueueForC, MessageQueueMap, ResetOffsetBody, ResetOffsetBodyForC,
};
use remoting::protocol::json::{self, KeyStyle};
use remoting::protocol::{LanguageCode, RemotingCommand, request_code, response_code};
use store::Boundary;

use super::answer::{Answer, Fields, Refused};
use crate::broker::Broker;
use crate::topic::Topic;

/// Clients below cannot take a reset (V3_0_7_SNAPSHOT).
pub(super) const VERSION_WITH_RESET: i32 = 28;
/// A timestamp that means "to the end".
const TO_THE_END: i64 = -1;

/// Looks offsets up by time, so it may block.
pub(crate) fn reset_offset(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (topic_name, group) = (request.text("topic")?, request.text("group")?);
    let timestamp = request.number_or("timestamp", TO_THE_END);
    tracing::info!(topic = topic_name, group, timestamp, "reset offsets");
    let Some(topic) = broker.topics.get(topic_name) else {
        return Err(Refused::new(
            response_code::TOPIC_NOT_EXIST,
            format!("Topic {topic_name} does not exist"),
        ));
    };
    let targets = if broker.config().use_server_side_reset_offset {
        on_the_server(broker, request, &topic, group, timestamp)?
    } else {
        through_the_clients(broker, request, &topic, group, timestamp)?
    };
    let body = ResetOffsetBody {
        offset_table: targets,
    };
    Ok(
        RemotingCommand::response(response_code::SUCCESS).with_body(json::to_vec(
            &body,
            KeyStyle::for_language(request.language),
        )),
    )
}

type Targets = MessageQueueMap<i64>;

fn on_the_server(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
    topic: &Topic,
    group: &str,
    timestamp: i64,
) -> Result<Targets, Refused> {
    if broker.groups.find(group).is_none() {
        return Err(Refused::new(
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("Group {group} does not exist"),
        ));
    }
    let queue_id: i32 = request.number_or("queueId", -1);
    let offset: i64 = request.number_or("offset", -1);
    let mut targets = Targets::default();
    if queue_id >= 0 {
        if queue_id >= topic.config.read_queue_nums {
            return Err(Refused::system_error(format!(
                "Queue {queue_id} of topic {} does not exist",
                topic.name()
            )));
        }
        let target = if offset >= 0 {
            let (min, max) = (
                broker.store.min_offset(topic.name(), queue_id),
                broker.store.max_offset(topic.name(), queue_id),
            );
            if offset < min || offset > max + 1 {
                return Err(Refused::system_error(format!(
                    "Target offset {offset} not in consume queue range [{min}-{max}]"
                )));
            }
            offset
        } else {
            offset_by_time(broker, topic.name(), queue_id, timestamp)
        };
        targets.insert(queue(broker, topic, queue_id), target);
    } else {
        for queue_id in 0..topic.config.read_queue_nums {
            targets.insert(
                queue(broker, topic, queue_id),
                offset_by_time(broker, topic.name(), queue_id, timestamp),
            );
        }
    }
    if targets.is_empty() {
        return Err(Refused::system_error("No queues to reset."));
    }
    for (queue, target) in targets.iter() {
        broker
            .offsets
            .assign_reset(group, topic.name(), queue.queue_id, *target);
        broker.wake_pulls(topic.name(), queue.queue_id);
    }
    Ok(targets)
}

fn through_the_clients(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
    topic: &Topic,
    group: &str,
    timestamp: i64,
) -> Result<Targets, Refused> {
    let force = request.flag("isForce");
    let mut targets = Targets::default();
    for queue_id in 0..topic.config.write_queue_nums {
        let Some(committed) = broker.offsets.query(group, topic.name(), queue_id) else {
            return Err(Refused::system_error(format!(
                "THe consumer group <{group}> not exist"
            )));
        };
        let by_time = offset_by_time(broker, topic.name(), queue_id, timestamp);
        targets.insert(
            queue(broker, topic, queue_id),
            if force {
                by_time
            } else {
                by_time.min(committed)
            },
        );
    }
    let members = broker
        .consumers
        .group(group)
        .map(|members| members.members())
        .unwrap_or_default();
    if members.is_empty() {
        return Err(Refused::new(
            response_code::CONSUMER_NOT_ONLINE,
            format!(
                "Consumer not online, so can not reset offset, Group: {group} Topic: {} Timestamp: {timestamp}",
                topic.name()
            ),
        ));
    }
    if let Some(old) = members
        .iter()
        .find(|member| member.version < VERSION_WITH_RESET)
    {
        return Err(Refused::system_error(format!(
            "the client does not support this feature. version={}",
            old.version
        )));
    }
    let order = RemotingCommand::request(request_code::RESET_CONSUMER_CLIENT_OFFSET)
        .with_ext("topic", topic.name())
        .with_ext("group", group)
        .with_ext("timestamp", timestamp.to_string())
        .with_ext("isForce", force.to_string());
    for member in members {
        if let Some(connection) = broker.connections.get(member.connection) {
            connection.oneway(order.clone().with_body(body_for(member.language, &targets)));
        }
    }
    Ok(targets)
}

/// C++ clients read a list, all others a map keyed by queues.
fn body_for(language: LanguageCode, targets: &Targets) -> Vec<u8> {
    if language == LanguageCode::Cpp {
        let entry = |(queue, offset): (&MessageQueue, &i64)| MessageQueueForC {
            broker_name: queue.broker_name.clone(),
            offset: *offset,
            queue_id: queue.queue_id,
            topic: queue.topic.clone(),
        };
        let body = ResetOffsetBodyForC {
            offset_table: targets.iter().map(entry).collect(),
        };
        return json::to_vec(&body, KeyStyle::Escaped);
    }
    json::to_vec(
        &ResetOffsetBody {
            offset_table: targets.clone(),
        },
        KeyStyle::for_language(language),
    )
}

fn queue(broker: &Broker, topic: &Topic, queue_id: i32) -> MessageQueue {
    MessageQueue::new(topic.name(), broker.name(), queue_id)
}

fn offset_by_time(broker: &Broker, topic: &str, queue_id: i32, timestamp: i64) -> i64 {
    if timestamp < 0 {
        broker.store.max_offset(topic, queue_id)
    } else {
        broker
            .store
            .offset_by_time(topic, queue_id, timestamp, Boundary::Lower)
    }
}
