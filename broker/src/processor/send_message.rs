//! SEND_MESSAGE (10), SEND_MESSAGE_V2 (310), SEND_BATCH_MESSAGE (320): the checks of upstream `SendMessageProcessor`, the
//! properties a broker adds, delay levels, retry and dead-letter topics.
//!
//! A message is appended to the log's memory while its request is read; the write and the answers follow once for all
//! requests of one socket read, in [`finish`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use remoting::Connection;
use remoting::protocol::hot::SendHeader;
use remoting::protocol::message::{batch_messages, java_string_hash};
use remoting::protocol::{request_code, response_code};
use remoting::server::Request;
use smallvec::SmallVec;
use store::{Appended, ConsumeQueue, PutError, PutMessage, TagsCode};

use super::{Local, Refusal};
use crate::ack::{Level, SendAnswer};
use crate::broker::Broker;
use crate::config::{BrokerConfig, BrokerRole, FlushDiskType};
use crate::topic::{
    self, CreateInSend, DLQ_GROUP_TOPIC_PREFIX, MAX_TOPIC_BYTES, RETRY_GROUP_TOPIC_PREFIX,
    SCHEDULE_TOPIC, Topic, perm,
};

/// Upstream's limit: the length field is a signed short.
const MAX_PROPERTIES_BYTES: usize = 32_767;
/// Queues of a dead-letter topic.
const DLQ_QUEUES: i32 = 1;
/// Messages of one batch; a batch of empty messages would otherwise make one frame cost a million records.
const MAX_BATCH_MESSAGES: usize = 65_536;
/// Field that marks a transaction message, in two bits of `sysFlag`.
const TRANSACTION_BITS: i32 = 0xC;
/// Between a property's name and its value, and after the value.
const NAME_END: char = '\u{1}';
const PROPERTY_END: char = '\u{2}';

/// What the broker looks at among a message's properties.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen<'a> {
    tags: &'a str,
    keys: &'a str,
    unique_key: &'a str,
    no_wait: bool,
    delay: i32,
    transaction: bool,
    timer: bool,
    /// Holds a property that the broker sets itself or must not store.
    owned_by_broker: bool,
}

fn look(properties: &str) -> Seen<'_> {
    let mut seen = Seen::default();
    for property in properties.split(PROPERTY_END) {
        let Some((name, value)) = property.split_once(NAME_END) else {
            continue;
        };
        match name {
            "TAGS" => seen.tags = value,
            "KEYS" => seen.keys = value,
            "UNIQ_KEY" => seen.unique_key = value,
            "WAIT" => seen.no_wait = value == "false",
            "DELAY" => seen.delay = value.parse().unwrap_or(0),
            "TRAN_MSG" => seen.transaction = value == "true",
            "TIMER_DELIVER_MS" | "TIMER_DELAY_SEC" | "TIMER_DELAY_MS" => seen.timer = true,
            "MSG_REGION" | "TRACE_ON" | "CLUSTER" | "POP_CK" => seen.owned_by_broker = true,
            _ => {}
        }
    }
    seen
}

/// Removes properties by name, in place.
fn remove_properties(properties: &mut Vec<u8>, names: &[&str]) {
    let text = String::from_utf8_lossy(properties).into_owned();
    properties.clear();
    for property in text.split(PROPERTY_END).filter(|p| !p.is_empty()) {
        if !property
            .split_once(NAME_END)
            .is_some_and(|(name, _)| names.contains(&name))
        {
            properties.extend_from_slice(property.as_bytes());
            properties.push(2);
        }
    }
}

fn push_property(properties: &mut Vec<u8>, name: &str, value: &str) {
    properties.extend_from_slice(name.as_bytes());
    properties.push(1);
    properties.extend_from_slice(value.as_bytes());
    properties.push(2);
}

fn close_properties(properties: &mut Vec<u8>) {
    if properties.last().is_some_and(|last| *last != 2) {
        properties.push(2);
    }
}

/// A message of the broker itself (a send-back, a delayed message that is due), complete with its properties.
#[derive(Clone, Copy)]
pub(crate) struct InnerMessage<'a> {
    /// Where it goes; a delay level above 0 sends it through the schedule topic first.
    pub topic: &'a Topic,
    /// Queue of that topic.
    pub queue_id: i32,
    /// The user's flag.
    pub flag: i32,
    /// System flag, transaction bits included.
    pub sys_flag: i32,
    /// When the producer made it.
    pub born_timestamp: i64,
    /// Where the producer was.
    pub born_host: SocketAddr,
    /// How often it was consumed in vain.
    pub reconsume_times: i32,
    /// The half message of a committed transaction.
    pub prepared_transaction_offset: i64,
    /// As it is stored.
    pub body: &'a [u8],
    /// As they are stored.
    pub properties: &'a str,
    /// Delay level; 0 for none.
    pub delay_level: i32,
}

/// Appends a message of the broker itself; the caller drives the store ([`Broker::put_message`] does both and waits).
pub(crate) fn append_inner(
    broker: &Broker,
    message: &InnerMessage<'_>,
) -> Result<Appended, PutError> {
    let mut properties = message.properties.as_bytes().to_vec();
    let level = message.delay_level.min(broker.max_delay_level());
    let scheduled;
    let (topic, queue_id, tags_code) = if level > 0 {
        close_properties(&mut properties);
        remove_properties(&mut properties, &["REAL_TOPIC", "REAL_QID"]);
        push_property(&mut properties, "REAL_TOPIC", message.topic.name());
        push_property(&mut properties, "REAL_QID", &message.queue_id.to_string());
        scheduled = schedule_topic(broker)?;
        (
            &*scheduled,
            level - 1,
            TagsCode::DelayMs(broker.delay_ms(level)),
        )
    } else {
        (
            message.topic,
            message.queue_id,
            TagsCode::Hash(tags_code(look(message.properties).tags)),
        )
    };
    let seen = look(message.properties);
    let queue = queue_of(broker, topic, queue_id)?;
    broker.store.append(&[PutMessage {
        queue,
        flag: message.flag,
        sys_flag: message.sys_flag,
        born_timestamp: message.born_timestamp,
        born_host: message.born_host,
        store_host: broker.store_host(),
        reconsume_times: message.reconsume_times,
        prepared_transaction_offset: message.prepared_transaction_offset,
        body: message.body,
        properties: &properties,
        tags_code,
        unique_key: seen.unique_key,
        keys: seen.keys,
    }])
}

fn schedule_topic(broker: &Broker) -> Result<Arc<Topic>, PutError> {
    broker
        .topics
        .get(SCHEDULE_TOPIC)
        .ok_or(PutError::Busy("the schedule topic is missing"))
}

fn queue_of<'t>(
    broker: &Broker,
    topic: &'t Topic,
    queue_id: i32,
) -> Result<&'t Arc<ConsumeQueue>, PutError> {
    match topic.queue(&broker.store, queue_id) {
        Some(Ok(queue)) => Ok(queue),
        Some(Err(error)) => {
            tracing::error!(topic = topic.name(), queue_id, %error, "cannot open the queue");
            Err(PutError::Busy("the queue cannot be opened"))
        }
        None => Err(PutError::Busy("no such queue")),
    }
}

fn tags_code(tags: &str) -> i64 {
    if tags.is_empty() {
        0
    } else {
        java_string_hash(tags).into()
    }
}

/// Serves one send: checks it, appends it, leaves its answer to [`finish`].
pub(super) fn send(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    local: &mut Local,
    request: &Request<'_>,
    out: &mut BytesMut,
) {
    match try_send(broker, connection, local, request) {
        Ok(()) => {}
        Err(refusal) => {
            broker.stats.put_failed();
            refusal.write_send(broker, request, out);
        }
    }
}

fn try_send(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    local: &mut Local,
    request: &Request<'_>,
) -> Result<(), Refusal> {
    let started = *local.started.get_or_insert_with(Instant::now);
    let header = SendHeader::parse(&request.header)
        .map_err(|e| Refusal::new(response_code::SYSTEM_ERROR, e.to_string()))?;
    let config = Arc::clone(local.config(broker));
    if !broker.accepts_sends() {
        return Err(forbidden(broker));
    }
    if broker.acks.bytes_in_flight() > config.max_in_flight_bytes {
        return Err(busy());
    }
    if config.start_accept_send_request_time_stamp > 0
        && broker.clock.now_ms() < config.start_accept_send_request_time_stamp
    {
        return Err(Refusal::new(
            response_code::SYSTEM_ERROR,
            format!(
                "broker unable to service, until {}",
                config.start_accept_send_request_time_stamp
            ),
        ));
    }
    let batch = request.header.code == request_code::SEND_BATCH_MESSAGE || header.batch;
    let mut topic = destination(broker, connection, &header, &config)?;
    let mut queue_id = header.queue_id;
    let queues = topic
        .config
        .read_queue_nums
        .max(topic.config.write_queue_nums);
    if queue_id >= queues {
        return Err(Refusal::new(
            response_code::SYSTEM_ERROR,
            format!(
                "request queueId[{queue_id}] is illegal, topic[{}] has {queues} queues, producer: {}",
                header.topic,
                connection.peer()
            ),
        ));
    }
    if queue_id < 0 {
        queue_id = local.random_below(topic.config.write_queue_nums);
    }
    if request.body.len() > usize::try_from(config.max_message_size).unwrap_or(0) {
        return Err(illegal(&config));
    }
    if batch {
        return send_batch(
            broker, connection, local, request, &header, &config, &topic, queue_id, started,
        );
    }

    let Local { properties, .. } = local;
    properties.clear();
    header.properties.append_to(properties);
    close_properties(properties);
    let mut dead = false;
    if header.topic.starts_with(RETRY_GROUP_TOPIC_PREFIX)
        && let Some(dlq) = dead_letter(broker, &header, request.header.version)?
    {
        (topic, queue_id, dead) = (dlq, 0, true);
    }
    let plain = plain_text(properties)?;
    let seen = look(plain);
    let delay_level = if dead {
        0
    } else {
        seen.delay.min(broker.max_delay_level())
    };
    if header.sys_flag & TRANSACTION_BITS != 0
        || (seen.transaction && !(header.reconsume_times > 0 && delay_level > 0))
    {
        return Err(refuse_transaction(&config));
    }
    if seen.timer && delay_level <= 0 {
        return Err(Refusal::new(
            response_code::SYSTEM_ERROR,
            "accurate timer message is not enabled, timerWheelEnable is false",
        ));
    }
    let (no_wait, owned, anonymous) = (
        seen.no_wait,
        seen.owned_by_broker,
        seen.unique_key.is_empty(),
    );
    if owned {
        remove_properties(properties, &["MSG_REGION", "TRACE_ON", "CLUSTER", "POP_CK"]);
    }
    if seen_timer_with_delay(delay_level, properties) {
        remove_properties(
            properties,
            &["TIMER_DELIVER_MS", "TIMER_DELAY_SEC", "TIMER_DELAY_MS"],
        );
    }
    if dead {
        remove_properties(properties, &["DELAY"]);
        push_property(properties, "DELAY", "0");
    }
    if anonymous {
        push_property(properties, "UNIQ_KEY", &broker.next_unique_key());
    }
    properties.extend_from_slice(broker.added_properties());
    let scheduled;
    let (stored_topic, stored_queue, delay) = if delay_level > 0 {
        remove_properties(properties, &["REAL_TOPIC", "REAL_QID"]);
        push_property(properties, "REAL_TOPIC", topic.name());
        push_property(properties, "REAL_QID", &queue_id.to_string());
        scheduled = schedule_topic(broker).map_err(|e| put_refusal(&e, &config))?;
        (
            &*scheduled,
            delay_level - 1,
            Some(broker.delay_ms(delay_level)),
        )
    } else {
        (&*topic, queue_id, None)
    };
    if properties.len() > MAX_PROPERTIES_BYTES {
        return Err(illegal(&config));
    }
    let seen = look(plain_text(properties)?);
    let queue =
        queue_of(broker, stored_topic, stored_queue).map_err(|e| put_refusal(&e, &config))?;
    let message = PutMessage {
        queue,
        flag: header.flag,
        sys_flag: header.sys_flag,
        born_timestamp: header.born_timestamp,
        born_host: connection.peer(),
        store_host: broker.store_host(),
        reconsume_times: header.reconsume_times,
        prepared_transaction_offset: 0,
        body: request.body,
        properties,
        tags_code: delay.map_or_else(|| TagsCode::Hash(tags_code(seen.tags)), TagsCode::DelayMs),
        unique_key: seen.unique_key,
        keys: seen.keys,
    };
    let appended = append(broker, &mut local.driven, &[message], &config)?;
    let bytes = u64::from(appended.records.first().map_or(0, |r| r.size));
    broker.stats.put(topic.stats(&broker.stats), 1, bytes);
    if !request.header.is_oneway() {
        local.pending.push(Pending {
            level: level(&config, no_wait),
            answer: send_answer(request, &config, no_wait, queue_id, appended, started),
        });
    }
    Ok(())
}

/// An answer that [`finish`] gives.
#[derive(Debug)]
pub(super) struct Pending {
    level: Level,
    answer: SendAnswer,
}

/// After the last request of a socket read: one write for all of them, then the answers that need no more waiting.
pub(super) fn finish(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    local: &mut Local,
    out: &mut BytesMut,
) {
    local.started = None;
    if !std::mem::take(&mut local.driven) {
        return;
    }
    broker.store.drive();
    let Local { pending, ids, .. } = local;
    if pending.is_empty() {
        return;
    }
    let (written, flushed) = (broker.store.written(), broker.store.flushed());
    let now = Instant::now();
    for Pending { level, answer } in pending.drain(..) {
        let reached = match level {
            Level::Written => written,
            Level::Flushed => flushed,
        };
        let ready = if reached >= answer.end {
            Some(answer)
        } else {
            broker.acks.wait(level, connection, answer, || match level {
                Level::Written => broker.store.written(),
                Level::Flushed => broker.store.flushed(),
            })
        };
        if let Some(answer) = ready {
            broker
                .acks
                .writer()
                .write(out, &answer, answer.code, None, ids);
            broker
                .metrics
                .put_latency
                .record(now.saturating_duration_since(answer.started));
        }
    }
    // A store that failed after the last look would leave the answers just queued without anybody to give them.
    if let Some(reason) = broker.store.poisoned() {
        broker.acks.fail_all(&reason);
    }
}

fn send_answer(
    request: &Request<'_>,
    config: &BrokerConfig,
    no_wait: bool,
    queue_id: i32,
    appended: Appended,
    started: Instant,
) -> SendAnswer {
    let more = (appended.records.len() > 1)
        .then(|| appended.records[1..].iter().map(|r| r.phy_offset).collect());
    let code = if config.broker_role == BrokerRole::SyncMaster && !no_wait {
        // Upstream 4.9 `HAService`: a synchronous master without a slave says so; the message is stored.
        response_code::SLAVE_NOT_AVAILABLE
    } else {
        response_code::SUCCESS
    };
    SendAnswer {
        opaque: request.header.opaque,
        serialize_type: request.serialize_type,
        code,
        queue_id,
        queue_offset: appended.queue_offset,
        phy_offset: appended.phy_offset,
        more,
        end: appended.end,
        bytes: request.frame_len,
        started,
    }
}

fn level(config: &BrokerConfig, no_wait: bool) -> Level {
    if config.flush_disk_type == FlushDiskType::SyncFlush && !no_wait {
        Level::Flushed
    } else {
        Level::Written
    }
}

fn append(
    broker: &Broker,
    driven: &mut bool,
    messages: &[PutMessage<'_>],
    config: &BrokerConfig,
) -> Result<Appended, Refusal> {
    let appended = match broker.store.append(messages) {
        Err(PutError::Busy(_)) => {
            // The ring may be full of what this very read appended: write it and try once more.
            broker.store.drive();
            broker.store.append(messages)
        }
        other => other,
    };
    let appended = appended.map_err(|e| put_refusal(&e, config))?;
    *driven = true;
    Ok(appended)
}

fn plain_text(properties: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(properties).map_err(|_| {
        Refusal::new(
            response_code::MESSAGE_ILLEGAL,
            "the properties are not UTF-8",
        )
    })
}

fn seen_timer_with_delay(delay_level: i32, properties: &[u8]) -> bool {
    delay_level > 0 && std::str::from_utf8(properties).is_ok_and(|p| look(p).timer)
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call site; a struct would only name the same things twice"
)]
fn send_batch(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    local: &mut Local,
    request: &Request<'_>,
    header: &SendHeader<'_>,
    config: &BrokerConfig,
    topic: &Arc<Topic>,
    queue_id: i32,
    started: Instant,
) -> Result<(), Refusal> {
    if header.topic.len() > MAX_TOPIC_BYTES {
        return Err(Refusal::new(
            response_code::MESSAGE_ILLEGAL,
            format!("message topic length over {MAX_TOPIC_BYTES}"),
        ));
    }
    if header.topic.starts_with(RETRY_GROUP_TOPIC_PREFIX) {
        return Err(Refusal::new(
            response_code::MESSAGE_ILLEGAL,
            "batch request does not support retry group",
        ));
    }
    if header.sys_flag & TRANSACTION_BITS != 0 {
        return Err(refuse_transaction(config));
    }
    struct Inner<'a> {
        flag: i32,
        body: &'a [u8],
        properties: std::ops::Range<usize>,
    }
    let Local { properties, .. } = local;
    properties.clear();
    let mut messages: SmallVec<[Inner<'_>; 32]> = SmallVec::new();
    for inner in batch_messages(request.body) {
        let inner = inner.map_err(|e| {
            Refusal::new(
                response_code::MESSAGE_ILLEGAL,
                format!("the batch cannot be read: {e}"),
            )
        })?;
        if messages.len() == MAX_BATCH_MESSAGES {
            return Err(Refusal::new(
                response_code::MESSAGE_ILLEGAL,
                format!("more than {MAX_BATCH_MESSAGES} messages in a batch"),
            ));
        }
        let start = properties.len();
        let own = plain_text(inner.properties)?;
        let seen = look(own);
        if seen.transaction {
            return Err(refuse_transaction(config));
        }
        if seen.timer || seen.delay > 0 {
            return Err(Refusal::new(
                response_code::MESSAGE_ILLEGAL,
                "messages of a batch cannot be delayed",
            ));
        }
        if seen.owned_by_broker {
            let mut cleaned = inner.properties.to_vec();
            remove_properties(
                &mut cleaned,
                &["MSG_REGION", "TRACE_ON", "CLUSTER", "POP_CK"],
            );
            properties.extend_from_slice(&cleaned);
        } else {
            properties.extend_from_slice(inner.properties);
        }
        if properties.len() > start {
            close_properties(properties);
        }
        if seen.unique_key.is_empty() {
            push_property(properties, "UNIQ_KEY", &broker.next_unique_key());
        }
        properties.extend_from_slice(broker.added_properties());
        if properties.len() - start > MAX_PROPERTIES_BYTES {
            return Err(illegal(config));
        }
        messages.push(Inner {
            flag: inner.flag,
            body: inner.body,
            properties: start..properties.len(),
        });
    }
    if messages.is_empty() {
        return Err(Refusal::new(
            response_code::MESSAGE_ILLEGAL,
            "the batch is empty",
        ));
    }
    let queue = queue_of(broker, topic, queue_id).map_err(|e| put_refusal(&e, config))?;
    let mut no_wait = false;
    let mut puts: SmallVec<[PutMessage<'_>; 32]> = SmallVec::with_capacity(messages.len());
    for inner in &messages {
        let own = &properties[inner.properties.clone()];
        let seen = look(plain_text(own)?);
        no_wait = seen.no_wait;
        puts.push(PutMessage {
            queue,
            flag: inner.flag,
            sys_flag: header.sys_flag,
            born_timestamp: header.born_timestamp,
            born_host: connection.peer(),
            store_host: broker.store_host(),
            reconsume_times: header.reconsume_times,
            prepared_transaction_offset: 0,
            body: inner.body,
            properties: own,
            tags_code: TagsCode::Hash(tags_code(seen.tags)),
            unique_key: seen.unique_key,
            keys: seen.keys,
        });
    }
    let appended = append(broker, &mut local.driven, &puts, config)?;
    let bytes: u64 = appended.records.iter().map(|r| u64::from(r.size)).sum();
    broker.stats.put(
        topic.stats(&broker.stats),
        appended.records.len() as u64,
        bytes,
    );
    if !request.header.is_oneway() {
        local.pending.push(Pending {
            level: level(config, no_wait),
            answer: send_answer(request, config, no_wait, queue_id, appended, started),
        });
    }
    Ok(())
}

/// The topic of a send, created when it may be.
fn destination(
    broker: &Arc<Broker>,
    connection: &Connection,
    header: &SendHeader<'_>,
    config: &BrokerConfig,
) -> Result<Arc<Topic>, Refusal> {
    if let Some(topic) = broker.topics.get(&header.topic) {
        if !perm::is_writable(config.broker_permission) && topic.config.order {
            return Err(forbidden(broker));
        }
        if !topic::may_be_sent_to(topic.name()) {
            return Err(Refusal::new(
                response_code::NO_PERMISSION,
                format!("Sending message to topic[{}] is forbidden.", header.topic),
            ));
        }
        return Ok(topic);
    }
    topic::validate_name(&header.topic)
        .map_err(|e| Refusal::new(response_code::SYSTEM_ERROR, e))?;
    if !topic::may_be_sent_to(&header.topic) {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!("Sending message to topic[{}] is forbidden.", header.topic),
        ));
    }
    let request = CreateInSend {
        topic: &header.topic,
        default_topic: &header.default_topic,
        default_queue_nums: header.default_topic_queue_nums,
        unit_mode: header.unit_mode,
    };
    if let Some(topic) = broker.topics.create_in_send(request, connection.peer()) {
        return Ok(topic);
    }
    if header.topic.starts_with(RETRY_GROUP_TOPIC_PREFIX) {
        return Ok(broker.topics.create_for_group(
            &header.topic,
            1,
            perm::READ | perm::WRITE,
            header.unit_mode,
        ));
    }
    Err(Refusal::new(
        response_code::TOPIC_NOT_EXIST,
        format!("topic[{}] not exist, apply first please!", header.topic),
    ))
}

/// First version whose `maxReconsumeTimes` counts (V3_4_9).
const VERSION_MAX_RECONSUME_TIMES: i32 = 121;

/// The dead-letter topic when a message to a retry topic was tried too often (5.7).
fn dead_letter(
    broker: &Broker,
    header: &SendHeader<'_>,
    version: i32,
) -> Result<Option<Arc<Topic>>, Refusal> {
    let group = &header.topic[RETRY_GROUP_TOPIC_PREFIX.len()..];
    let Some(config) = broker.groups.find(group) else {
        return Err(Refusal::new(
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("subscription group not exist, {group}"),
        ));
    };
    let asked = header
        .max_reconsume_times
        .filter(|_| version >= VERSION_MAX_RECONSUME_TIMES);
    if header.reconsume_times <= asked.unwrap_or(config.retry_max_times) {
        return Ok(None);
    }
    let name = format!("{DLQ_GROUP_TOPIC_PREFIX}{group}");
    Ok(Some(broker.topics.create_for_group(
        &name,
        DLQ_QUEUES,
        perm::READ | perm::WRITE,
        false,
    )))
}

fn forbidden(broker: &Broker) -> Refusal {
    Refusal::new(
        response_code::NO_PERMISSION,
        format!(
            "the broker[{}] sending message is forbidden",
            broker.settings.advertised
        ),
    )
}

fn busy() -> Refusal {
    Refusal::new(
        response_code::SYSTEM_BUSY,
        "[PC_SYNCHRONIZED]broker busy, start flow control for a while",
    )
}

fn refuse_transaction(config: &BrokerConfig) -> Refusal {
    if config.reject_transaction_message {
        return Refusal::new(
            response_code::NO_PERMISSION,
            "sending transaction message is forbidden",
        );
    }
    Refusal::new(
        response_code::MESSAGE_ILLEGAL,
        "transaction messages are not served by this broker yet; the message was not stored",
    )
}

fn illegal(config: &BrokerConfig) -> Refusal {
    Refusal::new(
        response_code::MESSAGE_ILLEGAL,
        format!(
            "the message is illegal, maybe msg body or properties length not matched. msg body length limit {}B, msg properties length limit 32KB.",
            config.max_message_size
        ),
    )
}

/// The one place where a refusal of the store becomes a response code (5.3).
pub(crate) fn put_refusal(error: &PutError, config: &BrokerConfig) -> Refusal {
    match error {
        PutError::NotWritable(reason) => Refusal::new(
            response_code::SERVICE_NOT_AVAILABLE,
            format!("service not available now: {reason}"),
        ),
        PutError::Busy(_) => busy(),
        PutError::MessageTooLarge { .. }
        | PutError::TopicTooLong(_)
        | PutError::PropertiesTooLong(_) => illegal(config),
        PutError::WrongPosition { .. } => {
            Refusal::new(response_code::SYSTEM_ERROR, error.to_string())
        }
    }
}
