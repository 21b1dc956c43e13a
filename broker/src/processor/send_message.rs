//! SEND_MESSAGE (10), SEND_MESSAGE_V2 (310), SEND_BATCH_MESSAGE (320): the checks of upstream `SendMessageProcessor`, the
//! properties a broker adds, delay levels, retry and dead-letter topics.
//!
//! A message is appended to the log's memory while its request is read; the write and the answers follow once for all
//! requests of one socket read, in [`finish`].

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use memchr::memchr;
use remoting::Connection;
use remoting::protocol::body::SubscriptionGroupConfig;
use remoting::protocol::hot::SendHeader;
use remoting::protocol::message::{
    NAME_VALUE_SEPARATOR, PROPERTY_SEPARATOR, batch_messages, java_string_hash, push_property,
    remove_property, set_property,
};
use remoting::protocol::{request_code, response_code};
use remoting::server::Request;
use smallvec::SmallVec;
use store::{Appended, ConsumeQueue, PutError, PutMessage, TagsCode};

use super::Local;
use super::answer::Refused as Refusal;
use crate::ack::{Level, Pending, Round, SendAnswer};
use crate::broker::Broker;
use crate::config::{BrokerConfig, BrokerRole, FlushDiskType};
use crate::dledger::tables;
use crate::topic::{
    self, CreateInSend, DLQ_GROUP_TOPIC_PREFIX, MAX_TOPIC_BYTES, RETRY_GROUP_TOPIC_PREFIX,
    SCHEDULE_TOPIC, Table, Topic, perm,
};
use crate::turn;

/// Upstream's limit: the length field is a signed short.
const MAX_PROPERTIES_BYTES: usize = 32_767;
/// Queues of a dead-letter topic.
const DLQ_QUEUES: i32 = 1;
/// Messages of one batch; a batch of empty messages would otherwise make one frame cost a million records.
const MAX_BATCH_MESSAGES: usize = 65_536;
/// Field that marks a transaction message, in two bits of `sysFlag`.
const TRANSACTION_BITS: i32 = 0xC;
/// First version whose `maxReconsumeTimes` counts (V3_4_9).
const VERSION_MAX_RECONSUME_TIMES: i32 = 121;

/// What the broker looks at among a message's properties; texts as places within them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    tags: Range<usize>,
    keys: Range<usize>,
    unique_key: Range<usize>,
    no_wait: bool,
    delay: i32,
    transaction: bool,
    timer: bool,
    /// Holds a property that the broker sets itself or must not store.
    owned_by_broker: bool,
}

fn look(bytes: &[u8]) -> Seen {
    let mut seen = Seen::default();
    let mut at = 0;
    while at < bytes.len() {
        let end = memchr(PROPERTY_SEPARATOR, &bytes[at..]).map_or(bytes.len(), |n| at + n);
        if let Some(name_end) = memchr(NAME_VALUE_SEPARATOR, &bytes[at..end]).map(|n| at + n) {
            let place = name_end + 1..end;
            let value = &bytes[place.clone()];
            match &bytes[at..name_end] {
                b"TAGS" => seen.tags = place,
                b"KEYS" => seen.keys = place,
                b"UNIQ_KEY" => seen.unique_key = place,
                b"WAIT" => seen.no_wait = value == b"false",
                b"DELAY" => {
                    let level = std::str::from_utf8(value).unwrap_or_default();
                    seen.delay = level.trim().parse().unwrap_or(0);
                }
                b"TRAN_MSG" => seen.transaction = value == b"true",
                b"TIMER_DELIVER_MS" | b"TIMER_DELAY_SEC" | b"TIMER_DELAY_MS" => seen.timer = true,
                b"MSG_REGION" | b"TRACE_ON" | b"CLUSTER" | b"POP_CK" => seen.owned_by_broker = true,
                _ => {}
            }
        }
        at = end + 1;
    }
    seen
}

/// Properties that the broker sets itself or must not store.
const OWNED_BY_BROKER: &[&str] = &["MSG_REGION", "TRACE_ON", "CLUSTER", "POP_CK"];
const TIMER_PROPERTIES: &[&str] = &["TIMER_DELIVER_MS", "TIMER_DELAY_SEC", "TIMER_DELAY_MS"];

fn remove_properties(properties: &mut Vec<u8>, names: &[&str]) {
    for name in names {
        remove_property(properties, name);
    }
}

fn close_properties(properties: &mut Vec<u8>) {
    if properties
        .last()
        .is_some_and(|last| *last != PROPERTY_SEPARATOR)
    {
        properties.push(PROPERTY_SEPARATOR);
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
    let seen = look(message.properties.as_bytes());
    let mut properties = message.properties.as_bytes().to_vec();
    let level = message.delay_level.min(broker.max_delay_level());
    let scheduled;
    let (topic, queue_id, tags_code) = if level > 0 {
        set_property(
            &mut properties,
            "REAL_TOPIC",
            message.topic.name().as_bytes(),
        );
        set_property(
            &mut properties,
            "REAL_QID",
            message.queue_id.to_string().as_bytes(),
        );
        scheduled = schedule_topic(broker)?;
        (
            &*scheduled,
            level - 1,
            TagsCode::DelayMs(broker.delay_ms(level)),
        )
    } else {
        let tags = &message.properties[seen.tags];
        (
            message.topic,
            message.queue_id,
            TagsCode::Hash(tags_code(tags)),
        )
    };
    broker.store.append(&[PutMessage {
        queue: queue_of(broker, topic, queue_id)?,
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
        unique_key: &message.properties[seen.unique_key],
        keys: &message.properties[seen.keys],
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
    let started = *local.started.get_or_insert_with(Instant::now);
    // Taken out for the call and put back, so that no reference count is touched for each message.
    let config = local.config.take().unwrap_or_else(|| broker.config());
    let table = local
        .topics
        .take()
        .unwrap_or_else(|| broker.topics.snapshot());
    let call = Call {
        broker,
        connection,
        request,
        config: &config,
        table: &table,
        started,
        era: broker.acks.era(),
    };
    let result = call.send(local);
    local.config = Some(config);
    // A topic that this call created is in the next snapshot.
    if !matches!(result, Ok(Sent { created: true })) {
        local.topics = Some(table);
    }
    if let Err(refusal) = result {
        broker.stats.put_failed();
        refusal.write_send(broker, request, out);
    }
}

/// One send, with what it needs to know.
struct Call<'a> {
    broker: &'a Arc<Broker>,
    connection: &'a Arc<Connection>,
    request: &'a Request<'a>,
    config: &'a BrokerConfig,
    table: &'a Table,
    started: Instant,
    era: u64,
}

struct Sent {
    created: bool,
}

/// A topic from the snapshot, or one that was just made.
enum Destination<'a> {
    Known(&'a Arc<Topic>),
    Made(Arc<Topic>),
}

impl std::ops::Deref for Destination<'_> {
    type Target = Arc<Topic>;

    fn deref(&self) -> &Arc<Topic> {
        match self {
            Self::Known(topic) => topic,
            Self::Made(topic) => topic,
        }
    }
}

impl Call<'_> {
    fn send(&self, local: &mut Local) -> Result<Sent, Refusal> {
        let header = SendHeader::parse(&self.request.header)?;
        if let Err((code, remark)) = self.broker.accepts_sends() {
            return Err(Refusal::new(code, remark));
        }
        let of_connection = i64::try_from(self.connection.in_flight()).unwrap_or(i64::MAX);
        if self.broker.acks.bytes_in_flight() > self.config.max_in_flight_bytes
            || of_connection > self.config.max_in_flight_bytes_per_connection
        {
            return Err(busy());
        }
        let opens_at = self.config.start_accept_send_request_time_stamp;
        if opens_at > 0 && self.broker.clock.now_ms() < opens_at {
            return Err(Refusal::system_error(format!(
                "broker unable to service, until {opens_at}"
            )));
        }
        let topic = self.destination(&header)?;
        let queues = topic
            .config
            .read_queue_nums
            .max(topic.config.write_queue_nums);
        let queue_id = match header.queue_id {
            id if id >= queues => {
                let peer = self.connection.peer();
                return Err(Refusal::system_error(format!(
                    "request queueId[{id}] is illegal, topic[{}] has {queues} queues, producer: {peer}",
                    header.topic
                )));
            }
            id if id < 0 => local.random_below(topic.config.write_queue_nums),
            id => id,
        };
        if self.request.body.len() > usize::try_from(self.config.max_message_size).unwrap_or(0) {
            return Err(self.illegal());
        }
        if self.request.header.code == request_code::SEND_BATCH_MESSAGE || header.batch {
            self.send_batch(local, &header, &topic, queue_id)?;
        } else {
            self.send_one(local, &header, &topic, queue_id)?;
        }
        Ok(Sent {
            created: matches!(topic, Destination::Made(_)),
        })
    }

    fn send_one(
        &self,
        local: &mut Local,
        header: &SendHeader<'_>,
        topic: &Arc<Topic>,
        queue_id: i32,
    ) -> Result<(), Refusal> {
        let Local { properties, .. } = local;
        properties.clear();
        header.properties.append_to(properties);
        close_properties(properties);
        let mut seen = look(properties);

        let dead_letters;
        let (topic, queue_id, dead) = match self.dead_letter(header)? {
            Some(found) => {
                dead_letters = found;
                (&dead_letters, 0, true)
            }
            None => (topic, queue_id, false),
        };
        let delay_level = if dead {
            0
        } else {
            seen.delay.min(self.broker.max_delay_level())
        };
        let retried_later = header.reconsume_times > 0 && delay_level > 0;
        if header.sys_flag & TRANSACTION_BITS != 0 || (seen.transaction && !retried_later) {
            return Err(self.refuse_transaction());
        }
        if seen.timer && delay_level <= 0 {
            return Err(Refusal::system_error(
                "accurate timer message is not enabled, timerWheelEnable is false",
            ));
        }

        // Rare: something must go before something is added.
        if seen.owned_by_broker || seen.timer || dead || delay_level > 0 {
            if seen.owned_by_broker {
                remove_properties(properties, OWNED_BY_BROKER);
            }
            if seen.timer {
                remove_properties(properties, TIMER_PROPERTIES);
            }
            if dead {
                set_property(properties, "DELAY", b"0");
            }
            if delay_level > 0 {
                set_property(properties, "REAL_TOPIC", topic.name().as_bytes());
                set_property(properties, "REAL_QID", queue_id.to_string().as_bytes());
            }
            seen = look(properties);
        }
        if seen.unique_key.is_empty() {
            push_property(
                properties,
                "UNIQ_KEY",
                self.broker.next_unique_key().as_bytes(),
            );
            seen = look(properties);
        }
        properties.extend_from_slice(self.broker.added_properties());
        if properties.len() > MAX_PROPERTIES_BYTES {
            return Err(self.illegal());
        }

        // Text as a whole, so each part between two separators is.
        let part = |place: Range<usize>| plain_text(&properties[place]);
        let scheduled;
        let (stored_under, stored_queue, tags_code) = if delay_level > 0 {
            scheduled = schedule_topic(self.broker).map_err(|e| self.put_refusal(&e))?;
            (
                &scheduled,
                delay_level - 1,
                TagsCode::DelayMs(self.broker.delay_ms(delay_level)),
            )
        } else {
            (topic, queue_id, TagsCode::Hash(tags_code(part(seen.tags)?)))
        };
        let message = PutMessage {
            queue: queue_of(self.broker, stored_under, stored_queue)
                .map_err(|e| self.put_refusal(&e))?,
            flag: header.flag,
            sys_flag: header.sys_flag,
            born_timestamp: header.born_timestamp,
            born_host: self.connection.peer(),
            store_host: self.broker.store_host(),
            reconsume_times: header.reconsume_times,
            prepared_transaction_offset: 0,
            body: self.request.body,
            properties,
            tags_code,
            unique_key: part(seen.unique_key)?,
            keys: part(seen.keys)?,
        };
        let appended = self.append(&[message])?;
        self.appended(local, topic, queue_id, seen.no_wait, appended);
        Ok(())
    }

    fn send_batch(
        &self,
        local: &mut Local,
        header: &SendHeader<'_>,
        topic: &Arc<Topic>,
        queue_id: i32,
    ) -> Result<(), Refusal> {
        let illegal = |why: String| Refusal::new(response_code::MESSAGE_ILLEGAL, why);
        if header.topic.len() > MAX_TOPIC_BYTES {
            return Err(illegal(format!(
                "message topic length over {MAX_TOPIC_BYTES}"
            )));
        }
        if header.topic.starts_with(RETRY_GROUP_TOPIC_PREFIX) {
            return Err(illegal(
                "batch request does not support retry group".to_owned(),
            ));
        }
        if header.sys_flag & TRANSACTION_BITS != 0 {
            return Err(self.refuse_transaction());
        }
        struct Inner<'a> {
            flag: i32,
            body: &'a [u8],
            /// Where its properties begin and end among those of all.
            properties: Range<usize>,
            seen: Seen,
        }
        let Local {
            properties: all, ..
        } = local;
        all.clear();
        let mut messages: SmallVec<[Inner<'_>; 16]> = SmallVec::new();
        for inner in batch_messages(self.request.body) {
            let inner = inner.map_err(|e| illegal(format!("the batch cannot be read: {e}")))?;
            if messages.len() == MAX_BATCH_MESSAGES {
                return Err(illegal(format!(
                    "more than {MAX_BATCH_MESSAGES} messages in a batch"
                )));
            }
            let start = all.len();
            let mut seen = look(plain_text(inner.properties)?.as_bytes());
            if seen.transaction {
                return Err(self.refuse_transaction());
            }
            if seen.timer || seen.delay > 0 {
                return Err(illegal("messages of a batch cannot be delayed".to_owned()));
            }
            if seen.owned_by_broker || seen.unique_key.is_empty() {
                let mut own = inner.properties.to_vec();
                remove_properties(&mut own, OWNED_BY_BROKER);
                if seen.unique_key.is_empty() {
                    push_property(
                        &mut own,
                        "UNIQ_KEY",
                        self.broker.next_unique_key().as_bytes(),
                    );
                }
                seen = look(&own);
                all.extend_from_slice(&own);
            } else {
                all.extend_from_slice(inner.properties);
            }
            close_properties(all);
            all.extend_from_slice(self.broker.added_properties());
            if all.len() - start > MAX_PROPERTIES_BYTES {
                return Err(self.illegal());
            }
            messages.push(Inner {
                flag: inner.flag,
                body: inner.body,
                properties: start..all.len(),
                seen,
            });
        }
        if messages.is_empty() {
            return Err(illegal("the batch is empty".to_owned()));
        }
        let queue = queue_of(self.broker, topic, queue_id).map_err(|e| self.put_refusal(&e))?;
        let text = plain_text(all)?;
        let mut puts: SmallVec<[PutMessage<'_>; 16]> = SmallVec::with_capacity(messages.len());
        for inner in &messages {
            let own = &text[inner.properties.clone()];
            puts.push(PutMessage {
                queue,
                flag: inner.flag,
                sys_flag: header.sys_flag,
                born_timestamp: header.born_timestamp,
                born_host: self.connection.peer(),
                store_host: self.broker.store_host(),
                reconsume_times: header.reconsume_times,
                prepared_transaction_offset: 0,
                body: inner.body,
                properties: own.as_bytes(),
                tags_code: TagsCode::Hash(tags_code(&own[inner.seen.tags.clone()])),
                unique_key: &own[inner.seen.unique_key.clone()],
                keys: &own[inner.seen.keys.clone()],
            });
        }
        let no_wait = messages.iter().all(|m| m.seen.no_wait);
        let appended = self.append(&puts)?;
        drop(puts);
        self.appended(local, topic, queue_id, no_wait, appended);
        Ok(())
    }

    fn append(&self, messages: &[PutMessage<'_>]) -> Result<Appended, Refusal> {
        let store = &self.broker.store;
        let appended = match store.append(messages) {
            Err(PutError::Busy(_)) => {
                // The ring may be full of what this very read appended: write it and try once more.
                store.drive();
                store.append(messages)
            }
            other => other,
        };
        appended.map_err(|e| self.put_refusal(&e))
    }

    fn appended(
        &self,
        local: &mut Local,
        topic: &Arc<Topic>,
        queue_id: i32,
        no_wait: bool,
        appended: Appended,
    ) {
        local.driven = true;
        let bytes: u64 = appended.records.iter().map(|r| u64::from(r.size)).sum();
        let messages = appended.records.len() as u64;
        self.broker
            .stats
            .put(topic.stats(&self.broker.stats), messages, bytes);
        if self.request.header.is_oneway() {
            return;
        }
        let more = (appended.records.len() > 1)
            .then(|| appended.records[1..].iter().map(|r| r.phy_offset).collect());
        let (level, code) = self.level(no_wait, appended.end);
        let pending = Pending {
            level,
            answer: SendAnswer {
                opaque: self.request.header.opaque,
                serialize_type: self.request.serialize_type,
                code,
                queue_id,
                queue_offset: appended.queue_offset,
                phy_offset: appended.phy_offset,
                more,
                end: appended.end,
                bytes: self.request.frame_len,
                started: self.started,
                era: self.era,
            },
        };
        if topic.is_announced() {
            local.pending.push(pending);
        } else {
            local.unannounced.push((pending, Arc::clone(topic)));
        }
    }

    /// What the answer waits for, and what it says then.
    fn level(&self, no_wait: bool, end: u64) -> (Level, i32) {
        if self.broker.settings.dledger.is_some() {
            // What is shown there is committed: as durable as the group promises, here and elsewhere.
            return (Level::Confirmed, response_code::SUCCESS);
        }
        let flushed = self.config.flush_disk_type == FlushDiskType::SyncFlush && !no_wait;
        let local = if flushed {
            Level::Flushed
        } else {
            Level::Confirmed
        };
        if self.config.broker_role != BrokerRole::SyncMaster || no_wait {
            return (local, response_code::SUCCESS);
        }
        // Upstream 4.9 `HAService`: without a slave that could have it the message is stored, and the answer says so.
        if !self.broker.ha.may_wait(self.config, end) {
            return (local, response_code::SLAVE_NOT_AVAILABLE);
        }
        let level = if flushed {
            Level::FlushedReplicated
        } else {
            Level::Replicated
        };
        (level, response_code::SUCCESS)
    }

    /// The topic of the send, created when it may be.
    fn destination(&self, header: &SendHeader<'_>) -> Result<Destination<'_>, Refusal> {
        let name = &*header.topic;
        let no_sends = || {
            Refusal::new(
                response_code::NO_PERMISSION,
                format!("Sending message to topic[{name}] is forbidden."),
            )
        };
        if let Some(topic) = self.table.get(name) {
            if !perm::is_writable(self.config.broker_permission) && topic.config.order {
                return Err(self.forbidden());
            }
            if !topic.may_be_sent_to {
                return Err(no_sends());
            }
            return Ok(Destination::Known(topic));
        }
        topic::validate_name(name).map_err(Refusal::system_error)?;
        if !topic::may_be_sent_to(name) {
            return Err(no_sends());
        }
        let request = CreateInSend {
            topic: name,
            default_topic: &header.default_topic.to_cow(),
            default_queue_nums: header.default_topic_queue_nums,
            unit_mode: header.unit_mode,
        };
        let topics = &self.broker.topics;
        let made = topics.create_in_send(request, self.connection.peer());
        if let Some(topic) = made.map_err(|e| self.change_refusal(e))? {
            return Ok(Destination::Made(topic));
        }
        if let Some(group) = name.strip_prefix(RETRY_GROUP_TOPIC_PREFIX) {
            self.retry_group(group)?;
            let topic = topics
                .create_for_group(name, 1, perm::READ | perm::WRITE, header.unit_mode)
                .map_err(|e| self.change_refusal(e))?;
            return Ok(Destination::Made(topic));
        }
        Err(Refusal::new(
            response_code::TOPIC_NOT_EXIST,
            format!("topic[{name}] not exist, apply first please!"),
        ))
    }

    fn retry_group(&self, group: &str) -> Result<Arc<SubscriptionGroupConfig>, Refusal> {
        let absent = || {
            Refusal::new(
                response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
                format!("subscription group not exist, {group}"),
            )
        };
        self.broker.groups.find(group).ok_or_else(absent)
    }

    /// The dead-letter topic when a message to a retry topic was tried too often (5.7).
    fn dead_letter(&self, header: &SendHeader<'_>) -> Result<Option<Arc<Topic>>, Refusal> {
        let Some(group) = header.topic.strip_prefix(RETRY_GROUP_TOPIC_PREFIX) else {
            return Ok(None);
        };
        let config = self.retry_group(group)?;
        let heeded = self.request.header.version >= VERSION_MAX_RECONSUME_TIMES;
        let most = header
            .max_reconsume_times
            .filter(|_| heeded)
            .unwrap_or(config.retry_max_times);
        if header.reconsume_times <= most {
            return Ok(None);
        }
        let name = format!("{DLQ_GROUP_TOPIC_PREFIX}{group}");
        let permission = perm::READ | perm::WRITE;
        let topics = &self.broker.topics;
        topics
            .create_for_group(&name, DLQ_QUEUES, permission, false)
            .map(Some)
            .map_err(|e| self.change_refusal(e))
    }

    fn forbidden(&self) -> Refusal {
        let host = self.broker.settings.advertised;
        Refusal::new(
            response_code::NO_PERMISSION,
            format!("the broker[{host}] sending message is forbidden"),
        )
    }

    fn refuse_transaction(&self) -> Refusal {
        if self.config.reject_transaction_message {
            return Refusal::new(
                response_code::NO_PERMISSION,
                "sending transaction message is forbidden",
            );
        }
        let why =
            "transaction messages are not served by this broker yet; the message was not stored";
        Refusal::new(response_code::MESSAGE_ILLEGAL, why)
    }

    fn illegal(&self) -> Refusal {
        let limit = self.config.max_message_size;
        Refusal::new(
            response_code::MESSAGE_ILLEGAL,
            format!(
                "the message is illegal: its body may have {limit} bytes, its properties {MAX_PROPERTIES_BYTES}"
            ),
        )
    }

    /// The topic of the send could not be made.
    fn change_refusal(&self, refusal: tables::Refusal) -> Refusal {
        match refusal {
            tables::Refusal::NotTaken(error) => self.put_refusal(&error),
            tables::Refusal::InDoubt(doubt) => doubt.into(),
        }
    }

    /// The one place where a refusal of the store becomes a response code (5.3).
    fn put_refusal(&self, error: &PutError) -> Refusal {
        match error {
            PutError::NotWritable(reason) => Refusal::new(
                response_code::SERVICE_NOT_AVAILABLE,
                format!("service not available now: {reason}"),
            ),
            PutError::NotLeader => Refusal::new(
                response_code::SERVICE_NOT_AVAILABLE,
                format!("service not available now: {error}"),
            ),
            PutError::Busy(_) => busy(),
            PutError::MessageTooLarge { .. }
            | PutError::TopicTooLong(_)
            | PutError::PropertiesTooLong(_) => self.illegal(),
            PutError::WrongPosition { .. } => Refusal::system_error(error.to_string()),
        }
    }
}

fn busy() -> Refusal {
    Refusal::new(
        response_code::SYSTEM_BUSY,
        "[PC_SYNCHRONIZED]broker busy, start flow control for a while",
    )
}

fn plain_text(properties: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(properties).map_err(|_| {
        Refusal::new(
            response_code::MESSAGE_ILLEGAL,
            "the properties are not UTF-8",
        )
    })
}

/// After the last request of a socket read: one write for all of them, then the answers that need no more waiting. On a
/// worker of the broker's own runtime both happen at the end of its turn, for all connections it served.
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
    for (Pending { level, answer }, topic) in local.unannounced.drain(..) {
        answer_when_announced(broker, connection, level, answer, topic);
    }
    let Local { pending, ids, .. } = local;
    if turn::keep(broker, connection, pending) {
        return;
    }
    broker.store.drive();
    let mut round = Round::new(broker);
    round.answer(connection, pending.drain(..), out, ids);
    round.end();
}

/// Upstream writes a topic down and registers it before it answers the send that made it; so do we, without holding up
/// the connection.
fn answer_when_announced(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    level: Level,
    answer: SendAnswer,
    topic: Arc<Topic>,
) {
    let (broker, connection) = (Arc::clone(broker), Arc::clone(connection));
    tokio::spawn(async move {
        broker.settled().await;
        topic.set_announced();
        let reached = || broker.reached(level);
        if let Some(answer) = broker.acks.wait(level, &connection, answer, reached) {
            let mut out = BytesMut::new();
            let ids = &mut String::new();
            broker
                .acks
                .writer()
                .write(&mut out, &answer, answer.code, None, ids);
            connection.send_encoded(&out);
            broker.metrics.put_latency.record(answer.started.elapsed());
        } else if let Some(reason) = broker.store.poisoned() {
            broker.acks.fail_all(&reason);
        }
    });
}
