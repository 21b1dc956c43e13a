//! What consumers ask for beside messages: members (38), offsets (14, 15, 29–32), queue locks (41, 42).

use std::sync::Arc;

use remoting::protocol::body::{
    GetConsumerListByGroupResponseBody, LockBatchRequestBody, LockBatchResponseBody,
};
use remoting::protocol::{RemotingCommand, response_code};
use store::Boundary;

use super::answer::{Answer, Fields, Refused, body, ok, ok_json};
use crate::broker::Broker;
use crate::offset::Commit;

/// GET_CONSUMER_LIST_BY_GROUP (38).
pub(crate) fn get_consumer_list_by_group(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let group = request.text("consumerGroup")?;
    let ids = broker
        .consumers
        .group(group)
        .map(|members| members.client_ids())
        .unwrap_or_default();
    if ids.is_empty() {
        return Err(Refused::system_error(format!(
            "no consumer for this group, {group}"
        )));
    }
    ok_json(&GetConsumerListByGroupResponseBody {
        consumer_id_list: ids.iter().map(ToString::to_string).collect(),
    })
}

/// QUERY_CONSUMER_OFFSET (14).
///
/// Without a stored offset a young queue is read from its start, any other from where the client decides (22). In
/// between, upstream leaves a gap: on 22 a client that starts at the end asks for the maximum with a second request,
/// and what arrives between the two is skipped. For a queue without a single message both answers mean the same place,
/// so it is given here at once.
pub(crate) fn query_consumer_offset(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (group, topic, queue_id) = (
        request.text("consumerGroup")?,
        request.text("topic")?,
        request.number::<i32>("queueId")?,
    );
    if let Some(offset) = broker.offsets.query(group, topic, queue_id) {
        return offset_answer(offset);
    }
    if request
        .ext("setZeroIfNotFound")
        .is_some_and(|value| !value.eq_ignore_ascii_case("true"))
    {
        return Err(not_found(
            "Not found, do not set to zero, maybe this group boot first",
        ));
    }
    let (min, max) = queue_range(broker, topic, queue_id);
    if min >= max {
        return offset_answer(max);
    }
    if min <= 0 && is_in_memory(broker, topic, queue_id) {
        return offset_answer(0);
    }
    Err(not_found(
        "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first",
    ))
}

fn not_found(remark: &str) -> Refused {
    Refused::new(response_code::QUERY_NOT_FOUND, remark)
}

fn offset_answer(offset: i64) -> Answer {
    Ok(RemotingCommand::response(response_code::SUCCESS).with_ext("offset", offset.to_string()))
}

fn queue_range(broker: &Broker, topic: &str, queue_id: i32) -> (i64, i64) {
    broker
        .store
        .find_queue(topic, queue_id)
        .map_or((0, 0), |queue| (queue.min_offset(), queue.max_offset()))
}

/// Whether the queue's first message lies so near to the end of the log that it counts as in memory.
fn is_in_memory(broker: &Broker, topic: &str, queue_id: i32) -> bool {
    let first = broker.store.query_consume_queue(topic, queue_id, 0, 1);
    let Some(position) = first
        .first()
        .and_then(|(position, _, _)| u64::try_from(*position).ok())
    else {
        return false;
    };
    broker.store.written().saturating_sub(position) <= broker.in_memory_bytes()
}

/// UPDATE_CONSUMER_OFFSET (15).
pub(crate) fn update_consumer_offset(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let (group, topic, queue_id) = (
        request.text("consumerGroup")?,
        request.text("topic")?,
        request.number::<i32>("queueId")?,
    );
    let offset = request.number::<i64>("commitOffset")?;
    if broker.groups.find(group).is_none() {
        return Err(Refused::new(
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("Group {group} not exist!"),
        ));
    }
    if broker.topics.get(topic).is_none() {
        return Err(Refused::new(
            response_code::TOPIC_NOT_EXIST,
            format!("Topic {topic} not exist!"),
        ));
    }
    match broker.offsets.commit(group, topic, queue_id, offset) {
        Commit::Stored => ok(),
        Commit::ResetPending => Ok(RemotingCommand::response(response_code::SUCCESS)
            .with_remark("Offset has been previously reset")),
    }
}

/// SEARCH_OFFSET_BY_TIMESTAMP (29). May read from disk.
pub(crate) fn search_offset_by_timestamp(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let boundary = match request.text_or_blank("boundaryType") {
        upper if upper.eq_ignore_ascii_case("upper") => Boundary::Upper,
        _ => Boundary::Lower,
    };
    let (topic, queue_id, timestamp) = (
        request.text("topic")?,
        request.number("queueId")?,
        request.number("timestamp")?,
    );
    offset_answer(
        broker
            .store
            .offset_by_time(topic, queue_id, timestamp, boundary),
    )
}

/// GET_MAX_OFFSET (30).
pub(crate) fn get_max_offset(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    offset_answer(
        broker
            .store
            .max_offset(request.text("topic")?, request.number("queueId")?),
    )
}

/// GET_MIN_OFFSET (31).
pub(crate) fn get_min_offset(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    offset_answer(
        broker
            .store
            .min_offset(request.text("topic")?, request.number("queueId")?),
    )
}

/// GET_EARLIEST_MSG_STORETIME (32). May read from disk.
pub(crate) fn get_earliest_msg_storetime(
    broker: &Arc<Broker>,
    request: &RemotingCommand,
) -> Answer {
    let timestamp = broker
        .store
        .earliest_store_time(request.text("topic")?, request.number("queueId")?);
    Ok(RemotingCommand::response(response_code::SUCCESS)
        .with_ext("timestamp", timestamp.to_string()))
}

/// LOCK_BATCH_MQ (41).
pub(crate) fn lock_batch_mq(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let lock: LockBatchRequestBody = body(request)?;
    let locked = broker.locks.try_lock_batch(
        &lock.consumer_group,
        &lock.mq_set,
        &lock.client_id,
        broker.clock.now_ms(),
    );
    ok_json(&LockBatchResponseBody {
        lock_ok_mq_set: locked,
    })
}

/// UNLOCK_BATCH_MQ (42).
pub(crate) fn unlock_batch_mq(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let unlock: LockBatchRequestBody = body(request)?;
    broker
        .locks
        .unlock_batch(&unlock.consumer_group, &unlock.mq_set, &unlock.client_id);
    ok()
}
