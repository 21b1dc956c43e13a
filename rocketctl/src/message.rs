//! `send` and `consume`: a small producer and consumer, enough to try a cluster and to look into a topic.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use remoting::admin::{Admin, Message};
use remoting::protocol::body::{
    ConsumeFromWhere, ConsumeType, ConsumerData, GetConsumerListByGroupResponseBody, HeartbeatData,
    MessageModel, MessageQueue, PERM_READ, PERM_WRITE, SubscriptionData, TopicRouteData,
};
use remoting::protocol::header::{
    GetConsumerListByGroupRequestHeader, PullMessageRequestHeader, PullMessageResponseHeader,
    SendMessageRequestHeader, SendMessageResponseHeader, UnregisterClientRequestHeader,
};
use remoting::protocol::message::{
    java_string_hash, property, pull_sys_flag, push_property, records, sys_flag,
};
use remoting::protocol::{RemotingCommand, request_code, response_code};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::admin::{MASTER_ID, admin, reachable, route};
use crate::output::{Format, time};

const TEMPLATE_TOPIC: &str = "TBW102";
/// What a producer asks for when its topic is made by the first send.
const DEFAULT_QUEUES: i32 = 4;
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const SUSPEND: Duration = Duration::from_secs(15);
const PULL_TIMEOUT: Duration = Duration::from_secs(30);
const PULL_BATCH: i32 = 32;
/// After a failed pull or an unknown topic.
const RETRY: Duration = Duration::from_millis(500);
const REBALANCE: Duration = Duration::from_secs(5);
/// Messages that wait to be printed.
const BUFFER: usize = 256;
/// A longer inflated body is not shown.
const MAX_INFLATED: u64 = 16 * 1024 * 1024;

#[derive(Args, Debug)]
pub(crate) struct SendArgs {
    #[arg(short = 't', long)]
    topic: String,
    /// The text to send (default: every line of standard input is a message)
    #[arg(long, visible_alias = "message", short = 'm', conflicts_with = "file")]
    body: Option<String>,
    /// Send the contents of a file
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[arg(long)]
    tag: Option<String>,
    /// Keys to find it by, parted by blanks
    #[arg(short = 'k', long)]
    key: Option<String>,
    /// Deliver later: a level from 1 (1 s) to 18 (2 h)
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=18))]
    delay: Option<u8>,
    /// Further properties
    #[arg(short = 'p', long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Send it so many times
    #[arg(short = 'c', long, default_value_t = 1)]
    count: u64,
    #[arg(short = 'g', long, default_value = "rocketctl_producer")]
    group: String,
    /// Print nothing but the number of messages
    #[arg(short = 'q', long)]
    quiet: bool,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(crate) struct ConsumeArgs {
    #[arg(short = 't', long)]
    topic: String,
    /// Consume as a member of this group: its progress is stored, and shared with its other members
    #[arg(short = 'g', long)]
    group: Option<String>,
    /// Only these tags, as `a || b`
    #[arg(long, default_value = "*")]
    tags: String,
    /// From the first message that is stored (without it: from now on; a group goes on where it was)
    #[arg(long)]
    from_first: bool,
    /// Stop after so many messages
    #[arg(short = 'c', long)]
    count: Option<u64>,
    /// Go on when the end is reached (the default unless --from-first is given on its own)
    #[arg(short = 'F', long)]
    follow: bool,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_millis()).ok())
        .unwrap_or(0)
}

pub(crate) async fn send(name_servers: &str, args: &SendArgs) -> Result<()> {
    let admin = admin(name_servers);
    let route = match admin.topic_route(&args.topic).await? {
        Some(route) => route,
        // The first send creates the topic where brokers allow it.
        None => admin.topic_route(TEMPLATE_TOPIC).await?.with_context(|| {
            format!("no broker has the topic {}, and none creates topics by itself: `rocketctl topic create {}`", args.topic, args.topic)
        })?,
    };
    let queues = publish_queues(&route, &args.topic);
    if queues.is_empty() {
        bail!(
            "no master with a writable queue is there for {}",
            args.topic
        );
    }
    let mut further = BTreeMap::new();
    for pair in &args.properties {
        let Some((name, value)) = pair.split_once('=').filter(|(n, _)| !n.is_empty()) else {
            bail!("--property {pair}: expected NAME=VALUE")
        };
        further.insert(name.to_owned(), value.to_owned());
    }

    let mut sender = Sender {
        admin,
        args,
        queues,
        further,
        sent: 0,
    };
    match (&args.body, &args.file) {
        (Some(body), _) => sender.repeat(body.as_bytes()).await?,
        (None, Some(file)) => {
            let body =
                std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            sender.repeat(&body).await?;
        }
        (None, None) => {
            if std::io::stdin().is_terminal() {
                eprintln!("every line is a message; Ctrl-D ends");
            }
            for line in std::io::stdin().lock().lines() {
                sender.repeat(line?.as_bytes()).await?;
            }
        }
    }
    if args.quiet {
        say!("{}", sender.sent);
    }
    Ok(())
}

struct Sender<'a> {
    admin: Admin,
    args: &'a SendArgs,
    queues: Vec<(MessageQueue, String)>,
    further: BTreeMap<String, String>,
    sent: u64,
}

impl Sender<'_> {
    async fn repeat(&mut self, body: &[u8]) -> Result<()> {
        for _ in 0..self.args.count {
            self.one(body).await?;
        }
        Ok(())
    }

    async fn one(&mut self, body: &[u8]) -> Result<()> {
        let args = self.args;
        let unique = unique_id(self.sent);
        let mut properties = Vec::new();
        let delay = args.delay.map(|d| d.to_string());
        let known = [
            (property::TAGS, args.tag.as_deref()),
            (property::KEYS, args.key.as_deref()),
            (property::DELAY, delay.as_deref()),
        ];
        for (name, value) in known.into_iter().filter_map(|(n, v)| Some((n, v?))) {
            push_property(&mut properties, name, value.as_bytes());
        }
        for (name, value) in &self.further {
            push_property(&mut properties, name, value.as_bytes());
        }
        push_property(&mut properties, "UNIQ_KEY", unique.as_bytes());
        push_property(&mut properties, property::WAIT, b"true");
        // Each queue in turn, from a place that differs from call to call; a broker that refuses is passed over once.
        let start = usize::try_from(now_ms())
            .unwrap_or(0)
            .wrapping_add(usize::try_from(self.sent).unwrap_or(0));
        let mut failure = None;
        for attempt in 0..self.queues.len().min(3) {
            let (queue, address) = &self.queues[(start + attempt) % self.queues.len()];
            let header = SendMessageRequestHeader {
                producer_group: args.group.clone(),
                topic: args.topic.clone(),
                default_topic: TEMPLATE_TOPIC.to_owned(),
                default_topic_queue_nums: DEFAULT_QUEUES,
                queue_id: queue.queue_id,
                born_timestamp: now_ms(),
                properties: Some(String::from_utf8_lossy(&properties).into_owned()),
                ..SendMessageRequestHeader::default()
            };
            let request = RemotingCommand::request(request_code::SEND_MESSAGE)
                .with_header(&header)
                .with_body(body.to_vec());
            let answer = match self
                .admin
                .client()
                .invoke(address, request, SEND_TIMEOUT)
                .await
            {
                Ok(answer) => answer,
                Err(e) => {
                    failure = Some(anyhow::Error::from(e));
                    continue;
                }
            };
            // Stored, though a flush or a slave was slow.
            const STORED: [i32; 4] = [
                response_code::SUCCESS,
                response_code::FLUSH_DISK_TIMEOUT,
                response_code::FLUSH_SLAVE_TIMEOUT,
                response_code::SLAVE_NOT_AVAILABLE,
            ];
            if !STORED.contains(&answer.code) {
                let name = response_code::name(answer.code);
                failure = Some(anyhow::anyhow!(
                    "{address} refused the message: {name} ({}) {}",
                    answer.code,
                    answer.remark.unwrap_or_default()
                ));
                continue;
            }
            let stored: SendMessageResponseHeader = answer.header()?;
            self.sent += 1;
            if !args.quiet {
                let status = if answer.code == 0 {
                    "SEND_OK"
                } else {
                    response_code::name(answer.code)
                };
                let value = json!({
                    "status": status, "msgId": unique, "offsetMsgId": stored.msg_id,
                    "brokerName": queue.broker_name, "queueId": stored.queue_id, "queueOffset": stored.queue_offset,
                });
                let line = || {
                    say!(
                        "{status}  {unique}  {}  queue {}  offset {}",
                        queue.broker_name,
                        stored.queue_id,
                        stored.queue_offset
                    )
                };
                args.output.show(&value, line)?;
            }
            return Ok(());
        }
        Err(failure.unwrap_or_else(|| anyhow::anyhow!("nothing was sent")))
    }
}

/// 32 hex digits as producers make them: address, process, class, time and counter. Only its uniqueness matters.
fn unique_id(counter: u64) -> String {
    let pid = std::process::id() & 0xffff;
    format!(
        "7F000001{pid:04X}{:08X}{:08X}{:04X}",
        java_string_hash("rocketctl") as u32,
        now_ms() as u32,
        counter as u16
    )
}

/// As clients compute it: writable queues of brokers that have a master.
fn publish_queues(route: &TopicRouteData, topic: &str) -> Vec<(MessageQueue, String)> {
    let mut queues = Vec::new();
    for data in route
        .queue_datas
        .iter()
        .filter(|q| q.perm & PERM_WRITE != 0)
    {
        let master = route
            .broker_datas
            .iter()
            .find(|b| b.broker_name == data.broker_name)
            .and_then(|b| b.broker_addrs.get(&MASTER_ID));
        let Some(address) = master else { continue };
        // The template has more queues than a topic made from it.
        for id in 0..data.write_queue_nums.clamp(
            0,
            if topic_of(route) {
                i32::MAX
            } else {
                DEFAULT_QUEUES
            },
        ) {
            queues.push((
                MessageQueue::new(topic, &data.broker_name, id),
                address.clone(),
            ));
        }
    }
    queues
}

/// The template's permission has the inherit bit, which no topic's own has.
fn topic_of(route: &TopicRouteData) -> bool {
    route
        .queue_datas
        .iter()
        .all(|q| q.perm & remoting::protocol::body::PERM_INHERIT == 0)
}

fn read_queues(route: &TopicRouteData, topic: &str) -> BTreeMap<MessageQueue, String> {
    let mut queues = BTreeMap::new();
    for data in route.queue_datas.iter().filter(|q| q.perm & PERM_READ != 0) {
        let Some(address) = reachable(route, &data.broker_name) else {
            continue;
        };
        for id in 0..data.read_queue_nums.max(0) {
            queues.insert(
                MessageQueue::new(topic, &data.broker_name, id),
                address.clone(),
            );
        }
    }
    queues
}

/// `AllocateMessageQueueAveragely`: the share of one member, in the order all members agree on.
fn allocate<'a>(
    queues: &'a [MessageQueue],
    members: &BTreeSet<String>,
    me: &str,
) -> &'a [MessageQueue] {
    let Some(index) = members.iter().position(|m| m == me) else {
        return &[];
    };
    let (each, rest) = (queues.len() / members.len(), queues.len() % members.len());
    let start = index * each + index.min(rest);
    &queues[start..start + each + usize::from(index < rest)]
}

/// A body as text, inflated if it has to be, cut to some letters.
pub(crate) fn shown_body(message: &Message, letters: usize) -> String {
    const ZLIB: [i32; 2] = [0, 0x300];
    let inflated;
    let bytes = if message.sys_flag & sys_flag::COMPRESSED == 0 {
        &message.body
    } else if ZLIB.contains(&(message.sys_flag & sys_flag::COMPRESSION_MASK)) {
        let mut out = Vec::new();
        if flate2::read::ZlibDecoder::new(message.body.as_slice())
            .take(MAX_INFLATED)
            .read_to_end(&mut out)
            .is_err()
        {
            return format!("<{} bytes that cannot be inflated>", message.body.len());
        }
        inflated = out;
        &inflated
    } else {
        return format!("<{} compressed bytes>", message.body.len());
    };
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().count() > letters => {
            text.chars().take(letters).chain(['…']).collect()
        }
        Ok(text) => text.to_owned(),
        Err(_) => format!("<{} bytes>", bytes.len()),
    }
}

struct Consumer {
    admin: Admin,
    topic: String,
    group: String,
    /// Only a named group has progress and members.
    named: bool,
    client_id: String,
    expression: String,
    tags: BTreeSet<String>,
    from_first: bool,
}

/// What a queue's task says.
enum Event {
    Message(MessageQueue, Box<Message>),
    /// Everything there was has been read.
    End(MessageQueue),
    Failed(MessageQueue, String),
}

pub(crate) async fn consume(name_servers: &str, args: &ConsumeArgs) -> Result<()> {
    let admin = admin(name_servers);
    let tags: BTreeSet<String> = args
        .tags
        .split("||")
        .map(|t| t.trim().to_owned())
        .filter(|t| !t.is_empty() && t != "*")
        .collect();
    let consumer = Arc::new(Consumer {
        admin,
        topic: args.topic.clone(),
        group: args
            .group
            .clone()
            .unwrap_or_else(|| "TOOLS_CONSUMER".to_owned()),
        named: args.group.is_some(),
        client_id: format!("127.0.0.1@{}#{}", std::process::id(), now_ms()),
        expression: if tags.is_empty() {
            "*".to_owned()
        } else {
            args.tags.clone()
        },
        tags,
        from_first: args.from_first,
    });
    // A topic that does not exist yet may come; without --follow that is a mistake.
    let ends = args.from_first && !args.follow && args.count.is_none();
    if ends || args.count.is_some() {
        route(&consumer.admin, &args.topic).await?;
    }
    let printing = print(&consumer, args, ends);
    let result = tokio::select! {
        result = printing => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    if consumer.named {
        consumer.leave().await;
    }
    result
}

async fn print(consumer: &Arc<Consumer>, args: &ConsumeArgs, ends: bool) -> Result<()> {
    let (events, mut received) = mpsc::channel(BUFFER);
    let mut readers: BTreeMap<MessageQueue, (String, JoinHandle<()>)> = BTreeMap::new();
    let mut ended: BTreeSet<MessageQueue> = BTreeSet::new();
    let mut rebalance = tokio::time::interval(REBALANCE);
    let mut seen = 0;
    loop {
        tokio::select! {
            _ = rebalance.tick() => {
                let mine = match consumer.assigned().await {
                    Ok(mine) => mine,
                    Err(e) if readers.is_empty() && seen == 0 && ends => return Err(e),
                    Err(e) => {
                        tracing::debug!("{e:#}");
                        continue;
                    }
                };
                readers.retain(|queue, (address, reader)| {
                    let keep = mine.get(queue) == Some(address);
                    if !keep {
                        reader.abort();
                    }
                    keep
                });
                for (queue, address) in mine {
                    readers.entry(queue).or_insert_with_key(|queue| {
                        let reader = read(consumer.clone(), queue.clone(), address.clone(), events.clone());
                        (address, tokio::spawn(reader))
                    });
                }
            }
            event = received.recv() => match event {
                Some(Event::Message(queue, message)) => {
                    show(&message, args.output)?;
                    seen += 1;
                    if consumer.named
                        && let Some((address, _)) = readers.get(&queue) {
                            consumer.admin.update_consumer_offset(address, &consumer.group, &queue.topic, queue.queue_id, message.queue_offset + 1).await?;
                        }
                    if args.count.is_some_and(|count| seen >= count) {
                        return Ok(());
                    }
                }
                Some(Event::End(queue)) => {
                    ended.insert(queue);
                    if ends && readers.keys().all(|q| ended.contains(q)) {
                        return Ok(());
                    }
                }
                Some(Event::Failed(queue, reason)) => eprintln!("{} queue {}: {reason}", queue.broker_name, queue.queue_id),
                None => return Ok(()),
            },
        }
    }
}

fn show(message: &Message, format: Format) -> Result<()> {
    let value = json!({
        "topic": message.topic, "queueId": message.queue_id, "queueOffset": message.queue_offset,
        "msgId": message.properties.get("UNIQ_KEY").unwrap_or(&message.msg_id), "offsetMsgId": message.msg_id,
        "bornTimestamp": message.born_timestamp, "storeTimestamp": message.store_timestamp,
        "properties": message.properties, "body": shown_body(message, usize::MAX),
    });
    match format {
        // A line a message, so that programs can read on.
        Format::Json => say!("{value}"),
        Format::Yaml => {
            say!("---");
            format.print(&value)?;
        }
        Format::Table => {
            let tag = message
                .properties
                .get(property::TAGS)
                .map(|t| format!("[{t}] "))
                .unwrap_or_default();
            say!(
                "{}  queue {} offset {}  {tag}{}",
                time(message.store_timestamp),
                message.queue_id,
                message.queue_offset,
                shown_body(message, usize::MAX)
            );
        }
    }
    std::io::stdout().flush()?;
    Ok(())
}

impl Consumer {
    /// The queues to read and where: all of them, or this member's share.
    async fn assigned(&self) -> Result<BTreeMap<MessageQueue, String>> {
        let route = route(&self.admin, &self.topic).await?;
        let mut queues = read_queues(&route, &self.topic);
        if !self.named {
            return Ok(queues);
        }
        let brokers: BTreeSet<String> = queues.values().cloned().collect();
        let mut members = BTreeSet::new();
        for broker in &brokers {
            let heartbeat =
                RemotingCommand::request(request_code::HEART_BEAT).json_body(&self.heartbeat());
            self.admin.call(broker, heartbeat).await?;
            let header = GetConsumerListByGroupRequestHeader {
                consumer_group: self.group.clone(),
            };
            let request = RemotingCommand::request(request_code::GET_CONSUMER_LIST_BY_GROUP)
                .with_header(&header);
            let list: GetConsumerListByGroupResponseBody =
                self.admin.call(broker, request).await?.json()?;
            members.extend(list.consumer_id_list);
        }
        members.insert(self.client_id.clone());
        let all: Vec<MessageQueue> = queues.keys().cloned().collect();
        let mine = allocate(&all, &members, &self.client_id);
        queues.retain(|queue, _| mine.contains(queue));
        Ok(queues)
    }

    fn heartbeat(&self) -> HeartbeatData {
        let subscription = SubscriptionData {
            topic: self.topic.clone(),
            sub_string: self.expression.clone(),
            tags_set: self.tags.clone(),
            code_set: self.tags.iter().map(|t| java_string_hash(t)).collect(),
            expression_type: "TAG".to_owned(),
            sub_version: now_ms(),
            ..SubscriptionData::default()
        };
        let data = ConsumerData {
            group_name: self.group.clone(),
            consume_type: ConsumeType::ConsumePassively,
            message_model: MessageModel::Clustering,
            consume_from_where: if self.from_first {
                ConsumeFromWhere::ConsumeFromFirstOffset
            } else {
                ConsumeFromWhere::ConsumeFromLastOffset
            },
            subscription_data_set: vec![subscription],
            unit_mode: false,
        };
        HeartbeatData {
            client_id: self.client_id.clone(),
            consumer_data_set: vec![data],
            ..HeartbeatData::default()
        }
    }

    async fn leave(&self) {
        let Ok(Some(route)) = self.admin.topic_route(&self.topic).await else {
            return;
        };
        let header = UnregisterClientRequestHeader {
            client_id: self.client_id.clone(),
            consumer_group: Some(self.group.clone()),
            producer_group: None,
        };
        for address in read_queues(&route, &self.topic)
            .into_values()
            .collect::<BTreeSet<_>>()
        {
            let request =
                RemotingCommand::request(request_code::UNREGISTER_CLIENT).with_header(&header);
            if let Err(e) = self.admin.call(&address, request).await {
                // It would time out there anyway.
                tracing::debug!("{e}");
            }
        }
    }

    async fn first_offset(&self, address: &str, queue: &MessageQueue) -> Result<i64> {
        if self.named
            && let Some(stored) = self
                .admin
                .consumer_offset(address, &self.group, &queue.topic, queue.queue_id)
                .await?
        {
            return Ok(stored);
        }
        let first = if self.from_first {
            self.admin
                .min_offset(address, &queue.topic, queue.queue_id)
                .await?
        } else {
            self.admin
                .max_offset(address, &queue.topic, queue.queue_id)
                .await?
        };
        if self.named {
            // The group begins here, also where it reads nothing before it leaves.
            self.admin
                .update_consumer_offset(address, &self.group, &queue.topic, queue.queue_id, first)
                .await?;
        }
        Ok(first)
    }

    async fn pull(
        &self,
        address: &str,
        queue: &MessageQueue,
        offset: i64,
    ) -> Result<(Vec<Message>, i64, bool)> {
        let header = PullMessageRequestHeader {
            consumer_group: self.group.clone(),
            topic: queue.topic.clone(),
            queue_id: queue.queue_id,
            queue_offset: offset,
            max_msg_nums: PULL_BATCH,
            sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
            suspend_timeout_millis: i64::try_from(SUSPEND.as_millis())?,
            subscription: Some(self.expression.clone()),
            expression_type: Some("TAG".to_owned()),
            ..PullMessageRequestHeader::default()
        };
        let request = RemotingCommand::request(request_code::PULL_MESSAGE).with_header(&header);
        let answer = self
            .admin
            .client()
            .invoke(address, request, PULL_TIMEOUT)
            .await?;
        match answer.code {
            response_code::SUCCESS => {
                let next: PullMessageResponseHeader = answer.header()?;
                let messages = records(&answer.body)
                    .map(|r| Ok(Message::from(&r?)))
                    .collect::<Result<Vec<_>>>()?;
                Ok((messages, next.next_begin_offset, false))
            }
            response_code::PULL_NOT_FOUND
            | response_code::PULL_RETRY_IMMEDIATELY
            | response_code::PULL_OFFSET_MOVED => {
                let next: PullMessageResponseHeader = answer.header()?;
                Ok((
                    Vec::new(),
                    next.next_begin_offset,
                    next.next_begin_offset >= next.max_offset,
                ))
            }
            code => bail!(
                "{} ({code}) {}",
                response_code::name(code),
                answer.remark.unwrap_or_default()
            ),
        }
    }
}

/// Reads one queue for ever.
async fn read(
    consumer: Arc<Consumer>,
    queue: MessageQueue,
    address: String,
    events: mpsc::Sender<Event>,
) {
    let mut offset = None;
    loop {
        let reading = async {
            let from = match offset {
                Some(offset) => offset,
                None => consumer.first_offset(&address, &queue).await?,
            };
            // Whoever only wants what is there does not wait for more.
            let max = consumer
                .admin
                .max_offset(&address, &queue.topic, queue.queue_id)
                .await?;
            if from >= max && events.send(Event::End(queue.clone())).await.is_err() {
                return Ok(None);
            }
            let (messages, next, _) = consumer.pull(&address, &queue, from).await?;
            for message in messages {
                // The broker filters by hash; the tag itself is checked here, as every client must.
                let tag = message
                    .properties
                    .get(property::TAGS)
                    .cloned()
                    .unwrap_or_default();
                let wanted = consumer.tags.is_empty() || consumer.tags.contains(&tag);
                if wanted
                    && events
                        .send(Event::Message(queue.clone(), Box::new(message)))
                        .await
                        .is_err()
                {
                    return Ok(None);
                }
            }
            anyhow::Ok(Some(next))
        };
        match reading.await {
            Ok(Some(next)) => offset = Some(next),
            Ok(None) => return,
            Err(e) => {
                if events
                    .send(Event::Failed(queue.clone(), format!("{e:#}")))
                    .await
                    .is_err()
                {
                    return;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use remoting::protocol::body::{BrokerData, QueueData};

    use super::*;

    #[test]
    fn every_queue_belongs_to_exactly_one_member() {
        let queues: Vec<_> = (0..7).map(|id| MessageQueue::new("T", "b", id)).collect();
        let members: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
        let shares: Vec<_> = members
            .iter()
            .map(|m| allocate(&queues, &members, m))
            .collect();
        assert_eq!(
            shares.iter().map(|s| s.len()).collect::<Vec<_>>(),
            vec![3, 2, 2]
        );
        assert_eq!(shares.concat(), queues);
        assert!(allocate(&queues, &members, "stranger").is_empty());
    }

    #[test]
    fn only_masters_with_the_write_bit_are_sent_to() {
        let queue = |name: &str, perm| QueueData {
            broker_name: name.to_owned(),
            perm,
            read_queue_nums: 2,
            write_queue_nums: 1,
            topic_sys_flag: 0,
        };
        let broker = |name: &str, id: i64| BrokerData {
            broker_name: name.to_owned(),
            broker_addrs: BTreeMap::from([(id, format!("{name}:{id}"))]),
            ..BrokerData::default()
        };
        let route = TopicRouteData {
            queue_datas: vec![queue("a", 6), queue("b", 4), queue("c", 6)],
            broker_datas: vec![broker("a", 0), broker("b", 0), broker("c", 1)],
            ..TopicRouteData::default()
        };
        let published: Vec<_> = publish_queues(&route, "T")
            .into_iter()
            .map(|(_, a)| a)
            .collect();
        assert_eq!(published, vec!["a:0"]);
        assert_eq!(read_queues(&route, "T").len(), 6);
    }

    #[test]
    fn unique_ids_are_32_digits_and_differ() {
        assert_eq!(unique_id(1).len(), 32);
        assert_ne!(unique_id(1), unique_id(2));
    }
}
