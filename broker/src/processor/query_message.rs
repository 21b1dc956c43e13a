//! QUERY_MESSAGE (12) by key or unique key, and VIEW_MESSAGE_BY_ID (33). Both may read from disk.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use remoting::protocol::{RemotingCommand, response_code};

use super::answer::{Answer, Refused};
use crate::broker::Broker;

/// Ext field that marks a query by unique key.
const UNIQUE_KEY_QUERY: &str = "_UNIQUE_KEY_QUERY";

/// Messages of a topic with a key, newest first; hashes may collide, the client compares the real keys.
pub(crate) fn query_message(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let text = |name: &str| request.ext(name).unwrap_or_default();
    let number = |name: &str, otherwise: i64| {
        request
            .ext(name)
            .and_then(|v| v.parse().ok())
            .unwrap_or(otherwise)
    };
    let config = broker.config();
    let limit = i64::from(config.max_msgs_num_batch).max(1);
    let asked = if text(UNIQUE_KEY_QUERY) == "true" {
        i64::from(config.default_query_max_num)
    } else {
        number("maxNum", limit)
    };
    let max = usize::try_from(asked.clamp(1, limit)).unwrap_or(1);
    let found = broker.store.query(
        text("topic"),
        text("key"),
        max,
        number("beginTimestamp", 0),
        number("endTimestamp", i64::MAX),
    );
    let answer = if found.records.is_empty() {
        RemotingCommand::error(
            response_code::QUERY_NOT_FOUND,
            "can not find message, maybe time range not correct",
        )
    } else {
        let mut body = BytesMut::with_capacity(found.records.iter().map(Bytes::len).sum());
        for record in &found.records {
            body.extend_from_slice(record);
        }
        RemotingCommand::response(response_code::SUCCESS).with_body(body.freeze())
    };
    let answer = answer
        .with_ext(
            "indexLastUpdateTimestamp",
            found.index_last_update_timestamp.to_string(),
        )
        .with_ext(
            "indexLastUpdatePhyoffset",
            found.index_last_update_phy_offset.to_string(),
        );
    Ok(answer)
}

/// The record at a position, whatever host the message id named.
pub(crate) fn view_message_by_id(broker: &Arc<Broker>, request: &RemotingCommand) -> Answer {
    let offset = request.ext("offset").unwrap_or_default();
    let record = offset
        .parse()
        .ok()
        .and_then(|position| broker.store.record_at(position));
    match record {
        Some(record) => Ok(RemotingCommand::response(response_code::SUCCESS).with_body(record)),
        None => Err(Refused::system_error(format!(
            "can not find message by the offset, {offset}"
        ))),
    }
}
