//! Requests that the broker passes on to one of its consumers: 307, 309, and 221 for each member of a group (223).
//!
//! The caller's ext fields and body travel on unchanged; the client's answer comes back with the caller's opaque.

use std::sync::Arc;
use std::time::Duration;

use remoting::protocol::body::GetConsumerStatusBody;
use remoting::protocol::json::{self, KeyStyle};
use remoting::protocol::message::MessageId;
use remoting::protocol::{RemotingCommand, request_code, response_code};
use remoting::{Connection, InvokeError};

use super::answer::{Answer, Fields, Refused};
use super::reset_offset::VERSION_WITH_RESET;
use crate::broker::Broker;

/// Clients below cannot answer (V3_1_8_SNAPSHOT).
const VERSION_WITH_RELAYS: i32 = 62;
/// Upstream's timeouts: 10 s for a relay, 5 s for each member of 223.
const RELAY_TIMEOUT: Duration = Duration::from_secs(10);
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// GET_CONSUMER_RUNNING_INFO (307).
pub(crate) async fn get_consumer_running_info(
    broker: Arc<Broker>,
    request: RemotingCommand,
) -> Answer {
    call_consumer(&broker, request_code::GET_CONSUMER_RUNNING_INFO, &request).await
}

/// CONSUME_MESSAGE_DIRECTLY (309): the caller names a message by its id, the broker attaches its record.
pub(crate) async fn consume_message_directly(
    broker: Arc<Broker>,
    mut request: RemotingCommand,
) -> Answer {
    request
        .ext_fields
        .insert("brokerName".to_owned(), broker.name().to_owned());
    if let Some(id) = request.ext("msgId") {
        let Some(offset) = MessageId::parse(id).and_then(|id| u64::try_from(id.offset).ok()) else {
            return Err(Refused::system_error(format!(
                "the message id {id} cannot be read"
            )));
        };
        let store = Arc::clone(&broker.store);
        let record = tokio::task::spawn_blocking(move || store.record_at(offset))
            .await
            .ok()
            .flatten();
        let Some(record) = record else {
            return Err(Refused::system_error(format!(
                "can not find message by the offset, {offset}"
            )));
        };
        request.body = record;
    }
    call_consumer(&broker, request_code::CONSUME_MESSAGE_DIRECTLY, &request).await
}

async fn call_consumer(broker: &Broker, code: i32, request: &RemotingCommand) -> Answer {
    let (group, client_id) = (
        request.text("consumerGroup")?,
        request.text_or_blank("clientId"),
    );
    let member = broker
        .consumers
        .group(group)
        .and_then(|members| members.find(client_id));
    let connection = member
        .as_ref()
        .and_then(|member| broker.connections.get(member.connection));
    let (Some(member), Some(connection)) = (member, connection) else {
        return Err(Refused::system_error(format!(
            "The Consumer <{group}> <{client_id}> not online"
        )));
    };
    if member.version < VERSION_WITH_RELAYS {
        return Err(Refused::system_error(format!(
            "The Consumer <{client_id}> Version <{}> too low to finish, please upgrade it to V3_1_8_SNAPSHOT",
            member.version
        )));
    }
    let relayed = RemotingCommand {
        ext_fields: request.ext_fields.clone(),
        body: request.body.clone(),
        ..RemotingCommand::request(code)
    };
    match connection.invoke(relayed, RELAY_TIMEOUT).await {
        Ok(answer) => Ok(answer),
        Err(InvokeError::Timeout(..)) => Err(Refused::new(
            response_code::CONSUME_MSG_TIMEOUT,
            format!(
                "consumer <{group}> <{client_id}> Exception: it did not answer within {} s",
                RELAY_TIMEOUT.as_secs()
            ),
        )),
        Err(error) => Err(Refused::system_error(format!(
            "invoke consumer <{group}> <{client_id}> Exception: {error}"
        ))),
    }
}

/// INVOKE_BROKER_TO_GET_CONSUMER_STATUS (223): asks every member, or the one that `clientAddr` names, with 221.
pub(crate) async fn get_consumer_status(broker: Arc<Broker>, request: RemotingCommand) -> Answer {
    let (topic, group) = (request.text("topic")?, request.text("group")?);
    let only = request.text_or_blank("clientAddr");
    let members = broker
        .consumers
        .group(group)
        .map(|members| members.members())
        .unwrap_or_default();
    if members.is_empty() {
        return Err(Refused::system_error(format!(
            "No Any Consumer online in the consumer group: [{group}]"
        )));
    }
    let mut status = GetConsumerStatusBody::default();
    let mut calls = Vec::new();
    for member in members
        .into_iter()
        .filter(|member| only.is_empty() || *member.client_id == *only)
    {
        if member.version < VERSION_WITH_RESET {
            return Err(Refused::system_error(format!(
                "the client does not support this feature. version={}",
                member.version
            )));
        }
        let Some(connection) = broker.connections.get(member.connection) else {
            continue;
        };
        let question = RemotingCommand::request(request_code::GET_CONSUMER_STATUS_FROM_CLIENT)
            .with_ext("topic", topic)
            .with_ext("group", group);
        calls.push((
            member.client_id,
            tokio::spawn(async move { ask(&connection, question).await }),
        ));
    }
    for (client_id, call) in calls {
        if let Ok(Some(answer)) = call.await {
            status
                .consumer_table
                .insert(client_id.to_string(), answer.message_queue_table);
        }
    }
    let text = json::to_vec(&status, KeyStyle::for_language(request.language));
    Ok(RemotingCommand::response(response_code::SUCCESS).with_body(text))
}

async fn ask(connection: &Connection, question: RemotingCommand) -> Option<GetConsumerStatusBody> {
    let answer = connection.invoke(question, STATUS_TIMEOUT).await.ok()?;
    if !answer.is_success() || answer.body.is_empty() {
        return None;
    }
    answer.json().map_err(|error| tracing::warn!(%error, peer = %connection.peer(), "an answer to 221 cannot be read")).ok()
}
