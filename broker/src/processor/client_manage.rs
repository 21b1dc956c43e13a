//! Heartbeats and what follows from them: 34, 35, 46, and the loss of a connection.

use std::sync::Arc;

use remoting::connection::Connection;
use remoting::protocol::body::{CheckClientRequestBody, ConsumerData, HeartbeatData};
use remoting::protocol::{RemotingCommand, request_code, response_code};

use super::answer::{Answer, Fields, Refused, body, ok};
use crate::broker::Broker;
use crate::client::ClientChannelInfo;
use crate::role::Role;
use crate::topic::{RETRY_GROUP_TOPIC_PREFIX, perm};

/// The expression type that needs no filter (upstream `ExpressionType.TAG`; absent means the same).
const TAG: &str = "TAG";

/// HEART_BEAT (34). It runs on the connection's own task, as its close does, so nothing is registered after the close.
/// The ext fields of 5.x's second version are left out of the answer, which switches it off.
pub(crate) fn heartbeat(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    request: &RemotingCommand,
) -> Answer {
    let heartbeat: HeartbeatData = body(request)?;
    let info = ClientChannelInfo {
        connection: connection.id(),
        peer: connection.peer(),
        client_id: heartbeat.client_id.as_str().into(),
        language: request.language,
        version: request.version,
        last_update_ms: broker.clock.now_ms(),
    };
    broker.connections.insert(connection);
    for data in &heartbeat.consumer_data_set {
        register_consumer(broker, data, info.clone());
    }
    for data in &heartbeat.producer_data_set {
        broker.producers.register(&data.group_name, info.clone());
    }
    ok()
}

fn register_consumer(broker: &Arc<Broker>, data: &ConsumerData, info: ClientChannelInfo) {
    let config = broker.config();
    let Some(group) = broker
        .groups
        .find_or_create(&data.group_name, config.auto_create_subscription_group)
    else {
        tracing::debug!(
            group = data.group_name,
            "a heartbeat names a group that does not exist"
        );
        return;
    };
    // The topics of a slave are its master's, which gets this heartbeat too.
    let copies = match broker.role.role() {
        Role::Master => false,
        Role::Slave if broker.tables.is_none() => broker.slave.master_answers(),
        Role::Slave | Role::Undecided => broker.tables.is_some(),
    };
    if group.retry_queue_nums > 0 && !copies {
        let topic = format!("{RETRY_GROUP_TOPIC_PREFIX}{}", data.group_name);
        let made = broker.topics.create_for_group(
            &topic,
            group.retry_queue_nums,
            perm::READ | perm::WRITE,
            data.unit_mode,
        );
        if let Err(error) = made {
            tracing::warn!(topic, %error, "the retry topic is made with the next heartbeat");
        }
    }
    let registration = broker.consumers.register(data, info);
    if registration.changed && group.notify_consumer_ids_changed_enable {
        notify_members(broker, &data.group_name);
    }
}

/// UNREGISTER_CLIENT (35). It may name a producer group, a consumer group, or both.
pub(crate) fn unregister_client(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    request: &RemotingCommand,
) -> Answer {
    let producer_group = request.text_or_blank("producerGroup");
    if !producer_group.is_empty() {
        broker.producers.unregister(producer_group, connection.id());
    }
    let consumer_group = request.text_or_blank("consumerGroup");
    if !consumer_group.is_empty() && broker.consumers.unregister(consumer_group, connection.id()) {
        tracing::info!(
            group = consumer_group,
            client = request.text_or_blank("clientID"),
            "a consumer unregistered"
        );
        if notifies(broker, consumer_group) {
            notify_members(broker, consumer_group);
        }
    }
    ok()
}

/// CHECK_CLIENT_CONFIG (46): a consumer asks whether its filter will work.
pub(crate) fn check_client_config(_broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    if request.body.is_empty() {
        return ok();
    }
    let check: CheckClientRequestBody = body(request)?;
    match check.subscription_data.map(|data| data.expression_type) {
        Some(kind) if !kind.is_empty() && kind != TAG => Err(Refused::new(
            response_code::SYSTEM_ERROR,
            format!("The broker does not support consumer to filter message by {kind}"),
        )),
        _ => ok(),
    }
}

/// To be called once for each connection that is gone.
pub(crate) fn connection_closed(broker: &Arc<Broker>, connection: u64) {
    broker.connections.remove(connection);
    broker.producers.connection_closed(connection);
    for group in broker.consumers.connection_closed(connection) {
        if notifies(broker, &group) {
            notify_members(broker, &group);
        }
    }
}

/// To be called every 10 s: clients that have been silent for `channelExpiredTimeout` are dropped and their connections closed.
pub(crate) fn expire_clients(broker: &Arc<Broker>) {
    let now_ms = broker.clock.now_ms();
    let oldest_ms = now_ms - broker.config().channel_expired_timeout;
    let (groups, consumers) = broker.consumers.expire(oldest_ms);
    for group in groups {
        if notifies(broker, &group) {
            notify_members(broker, &group);
        }
    }
    for id in consumers
        .into_iter()
        .chain(broker.producers.expire(oldest_ms))
    {
        if let Some(connection) = broker.connections.get(id) {
            connection.close();
        }
    }
    broker.locks.sweep(now_ms);
}

fn notifies(broker: &Broker, group: &str) -> bool {
    broker
        .groups
        .find(group)
        .is_none_or(|config| config.notify_consumer_ids_changed_enable)
}

/// NOTIFY_CONSUMER_IDS_CHANGED (40) to every member, the new one included; not in a broadcasting group, whose members
/// share nothing (5.x).
fn notify_members(broker: &Broker, group: &str) {
    if !broker.config().notify_consumer_ids_changed_enable {
        return;
    }
    let Some(members) = broker
        .consumers
        .group(group)
        .filter(|members| !members.is_broadcasting())
    else {
        return;
    };
    let notice = RemotingCommand::request(request_code::NOTIFY_CONSUMER_IDS_CHANGED)
        .with_ext("consumerGroup", group);
    for member in members.members() {
        if let Some(connection) = broker.connections.get(member.connection) {
            connection.oneway(notice.clone());
        }
    }
}
