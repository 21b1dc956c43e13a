//! Topics of this broker: `config/topics.json`, the system topics, and creation by a send.
//!
//! Readers take a snapshot without a lock; writers replace it. Table and data version live in one snapshot, so a
//! registration never pairs one with the other's state.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use remoting::protocol::body::{DataVersion, TopicConfig, TopicConfigSerializeWrapper};
use store::{Clock, ConsumeQueue, Store};

use crate::config::{BrokerConfig, MAX_QUEUES_PER_TOPIC};
use crate::config_file::{self, Saver};
use crate::dledger::tables::{Changes, GroupTables, Refusal, Tables};
use crate::registration::Registrar;
use crate::stats::{BrokerStatsManager, GroupStats, TopicStats};

/// Longest topic name of a user; upstream `TopicValidator.TOPIC_MAX_LENGTH`.
pub const MAX_TOPIC_BYTES: usize = 127;
/// Longest name of a retry or dead-letter topic; upstream's limit of the record format's topic length.
pub const MAX_RETRY_TOPIC_BYTES: usize = 255;

/// The template of topics that a send creates.
pub const AUTO_CREATE_TOPIC_KEY_TOPIC: &str = "TBW102";
/// Delayed messages wait here, one queue a level.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Prefix of a group's retry topic.
pub const RETRY_GROUP_TOPIC_PREFIX: &str = "%RETRY%";
/// Prefix of a group's dead-letter topic.
pub const DLQ_GROUP_TOPIC_PREFIX: &str = "%DLQ%";
const BENCHMARK_TOPIC: &str = "BenchmarkTest";
const BENCHMARK_QUEUES: i32 = 1024;
const CLUSTER_TOPIC_QUEUES: i32 = 16;
const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
const OFFSET_MOVED_EVENT: &str = "OFFSET_MOVED_EVENT";
const TRANS_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
const TRANS_OP_HALF_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
const TRANS_CHECK_MAX_TIME_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
const TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";

/// Names that are system topics on every broker.
const SYSTEM_TOPICS: &[&str] = &[
    AUTO_CREATE_TOPIC_KEY_TOPIC,
    SCHEDULE_TOPIC,
    BENCHMARK_TOPIC,
    TRANS_HALF_TOPIC,
    TRACE_TOPIC,
    TRANS_OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
];

/// Topics that nobody may send to (upstream `NOT_ALLOWED_SEND_TOPIC_SET`).
const NOT_ALLOWED_TO_SEND: &[&str] = &[
    SCHEDULE_TOPIC,
    TRANS_HALF_TOPIC,
    TRANS_OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
];

/// Bits of a topic's or broker's permission.
pub mod perm {
    /// May be consumed.
    pub const READ: i32 = 4;
    /// May be sent to.
    pub const WRITE: i32 = 2;
    /// May be the template of other topics.
    pub const INHERIT: i32 = 1;
    /// Historic.
    pub const PRIORITY: i32 = 8;

    /// Whether the read bit is set.
    pub fn is_readable(perm: i32) -> bool {
        perm & READ != 0
    }
    /// Whether the write bit is set.
    pub fn is_writable(perm: i32) -> bool {
        perm & WRITE != 0
    }
}

/// Bits of `topicSysFlag`.
const UNIT: i32 = 1;
const UNIT_SUB: i32 = 2;

/// One topic with its queues at hand.
pub struct Topic {
    /// What was configured.
    pub config: TopicConfig,
    /// Whether clients may send to it at all.
    pub may_be_sent_to: bool,
    /// Whether the name servers know it. Until then the answers of its sends wait a moment, so that whoever sends and then
    /// looks for the topic finds it.
    announced: AtomicBool,
    queues: Box<[OnceLock<Arc<ConsumeQueue>>]>,
    stats: OnceLock<TopicStats>,
    group_stats: RwLock<HashMap<Box<str>, GroupStats>>,
}

impl Topic {
    fn new(config: TopicConfig, before: Option<&Self>) -> Self {
        let count = config.read_queue_nums.max(config.write_queue_nums).max(0);
        let count = usize::try_from(count).unwrap_or(0);
        let kept = |at: usize| {
            before
                .and_then(|b| b.queues.get(at))
                .cloned()
                .unwrap_or_default()
        };
        Self {
            may_be_sent_to: may_be_sent_to(&config.topic_name),
            announced: AtomicBool::new(before.is_some_and(Self::is_announced)),
            config,
            queues: (0..count).map(kept).collect(),
            stats: OnceLock::new(),
            group_stats: RwLock::default(),
        }
    }

    /// Whether the name servers know it.
    pub fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// The name servers know it, or took too long to be waited for again.
    pub fn set_announced(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        &self.config.topic_name
    }

    /// A queue of this topic; `None` when the id is out of range. The first touch may read the queue's files.
    pub fn queue(
        &self,
        store: &Store,
        queue_id: i32,
    ) -> Option<Result<&Arc<ConsumeQueue>, store::Error>> {
        let cell = self.queues.get(usize::try_from(queue_id).ok()?)?;
        if let Some(queue) = cell.get() {
            return Some(Ok(queue));
        }
        match store.queue(&self.config.topic_name, queue_id) {
            Ok(queue) => Some(Ok(cell.get_or_init(|| queue))),
            Err(error) => Some(Err(error)),
        }
    }

    /// Counters of puts, looked up once.
    pub fn stats(&self, manager: &BrokerStatsManager) -> &TopicStats {
        self.stats
            .get_or_init(|| manager.topic(&self.config.topic_name))
    }

    /// Counters of what a group gets from this topic.
    pub fn group_stats(&self, manager: &BrokerStatsManager, group: &str) -> GroupStats {
        if let Some(stats) = self.group_stats.read().get(group) {
            return stats.clone();
        }
        let stats = manager.group(&self.config.topic_name, group);
        self.group_stats.write().insert(group.into(), stats.clone());
        stats
    }
}

/// Snapshot of all topics.
#[derive(Default)]
pub struct Table {
    topics: HashMap<Box<str>, Arc<Topic>>,
    version: DataVersion,
}

impl Table {
    /// A topic by name.
    pub fn get(&self, topic: &str) -> Option<&Arc<Topic>> {
        self.topics.get(topic)
    }

    /// All topics, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// How many topics.
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    /// Never, in practice: system topics always exist.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Counts the changes of this table.
    pub fn version(&self) -> &DataVersion {
        &self.version
    }

    /// The table as it travels and as it is stored.
    pub fn wrapper(&self) -> TopicConfigSerializeWrapper {
        TopicConfigSerializeWrapper {
            data_version: self.version,
            topic_config_table: self
                .topics
                .values()
                .map(|t| (t.config.topic_name.clone(), t.config.clone()))
                .collect(),
            ..TopicConfigSerializeWrapper::default()
        }
    }
}

/// What a send brings for the creation of its topic.
#[derive(Clone, Copy, Debug)]
pub struct CreateInSend<'a> {
    /// The topic to create.
    pub topic: &'a str,
    /// The template, normally `TBW102`.
    pub default_topic: &'a str,
    /// Queues that the producer counts on.
    pub default_queue_nums: i32,
    /// Whether the producer is in unit mode.
    pub unit_mode: bool,
}

/// The topics of this broker.
pub struct TopicConfigManager {
    table: ArcSwap<Table>,
    /// Serialises writers; readers never take it.
    writing: Mutex<()>,
    system: Box<[String]>,
    path: PathBuf,
    saver: Arc<Saver>,
    clock: Arc<dyn Clock>,
    registrar: Registrar,
    /// In a group that elects its master: changes go through its log, and it is who saves the table.
    group: Option<Arc<GroupTables>>,
}

impl TopicConfigManager {
    /// Reads `topics.json` and adds the system topics that are missing.
    pub fn load(
        path: PathBuf,
        config: &BrokerConfig,
        saver: Arc<Saver>,
        clock: Arc<dyn Clock>,
        registrar: Registrar,
        group: Option<Arc<GroupTables>>,
    ) -> Result<Self, config_file::Error> {
        let stored: Option<TopicConfigSerializeWrapper> = match &group {
            Some(group) if group.starts_empty() => None,
            _ => config_file::read(&path)?,
        };
        let stored = stored.unwrap_or_default();
        let mut topics: HashMap<Box<str>, Arc<Topic>> = HashMap::new();
        for (name, mut topic) in stored.topic_config_table {
            topic.topic_name = name.clone();
            topics.insert(name.into(), Arc::new(Topic::new(topic, None)));
        }
        let wanted = system_topics(config);
        for topic in &wanted {
            let present = topics.get(topic.topic_name.as_str());
            // Upstream `TopicConfigManager.init`: system topics are put anew at each start, whatever the file says.
            if present.is_none_or(|p| {
                p.config.perm != topic.perm || p.config.read_queue_nums != topic.read_queue_nums
            }) {
                topics.insert(
                    topic.topic_name.as_str().into(),
                    Arc::new(Topic::new(topic.clone(), None)),
                );
            }
        }
        // The first registration tells of all of them, before any client can find this broker.
        topics.values().for_each(|t| t.set_announced());
        let mut version = stored.data_version;
        version.next_version(clock.now_ms());
        Ok(Self {
            table: ArcSwap::from_pointee(Table { topics, version }),
            writing: Mutex::new(()),
            system: wanted.into_iter().map(|t| t.topic_name).collect(),
            path,
            saver,
            clock,
            registrar,
            group,
        })
    }

    /// The topics as they are now.
    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// The topics as they are now, to keep for a while.
    pub fn snapshot(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// A topic by name.
    pub fn get(&self, topic: &str) -> Option<Arc<Topic>> {
        self.table.load().get(topic).cloned()
    }

    /// Whether the name belongs to the system: such topics are neither created nor deleted by request.
    pub fn is_system_topic(&self, topic: &str) -> bool {
        SYSTEM_TOPICS.contains(&topic)
            || topic.starts_with(SYSTEM_TOPIC_PREFIX)
            || self.system.iter().any(|s| s == topic)
    }

    /// Names of the system topics of this broker.
    pub fn system_topics(&self) -> &[String] {
        &self.system
    }

    /// Creates or replaces topics, persists and registers them.
    pub fn update(&self, configs: impl IntoIterator<Item = TopicConfig>) -> Result<(), Refusal> {
        let configs: Vec<TopicConfig> = configs.into_iter().collect();
        if configs.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = configs.iter().map(|c| c.topic_name.clone()).collect();
        let _writing = self.writing.lock();
        self.propose(|| Changes::of_topics(configs.iter().cloned()))?;
        let before = self.table.load_full();
        let mut topics = before.topics.clone();
        for config in configs {
            let existing = before.get(&config.topic_name).map(|t| &**t);
            let topic = Topic::new(config, existing);
            topics.insert(topic.name().into(), Arc::new(topic));
        }
        self.publish(&before, topics);
        self.registrar.topics_changed(names);
        Ok(())
    }

    /// A change of the table goes into the group's log before it is shown, where there is one; under the lock of the writers.
    fn propose(&self, changes: impl FnOnce() -> Changes) -> Result<(), Refusal> {
        let group = self.group.as_ref();
        group.map_or(Ok(()), |group| group.propose(changes()))
    }

    /// Creates the topic of a send after the template that the producer named (5.2); `None` when it may not.
    pub fn create_in_send(
        &self,
        request: CreateInSend<'_>,
        remote: SocketAddr,
    ) -> Result<Option<Arc<Topic>>, Refusal> {
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        if let Some(topic) = before.get(request.topic) {
            return Ok(Some(Arc::clone(topic)));
        }
        let Some(template) = before.get(request.default_topic).map(|t| &t.config) else {
            return Ok(None);
        };
        if template.perm & perm::INHERIT == 0 {
            tracing::warn!(topic = request.topic, template = request.default_topic, %remote, "the template topic has no inherit permission");
            return Ok(None);
        }
        let queues = request
            .default_queue_nums
            .min(template.write_queue_nums)
            .max(0);
        let config = TopicConfig {
            topic_name: request.topic.to_owned(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            perm: template.perm & !perm::INHERIT,
            topic_filter_type: template.topic_filter_type.clone(),
            topic_sys_flag: if request.unit_mode { UNIT } else { 0 },
            ..TopicConfig::default()
        };
        tracing::info!(topic = request.topic, queues, %remote, "created by a send");
        let topic = self.insert(&before, config)?;
        self.registrar.created_by_send(topic.config.clone());
        Ok(Some(topic))
    }

    /// The retry or dead-letter topic of a group, created when it is missing; upstream `createTopicInSendMessageBackMethod`.
    pub fn create_for_group(
        &self,
        topic: &str,
        queues: i32,
        perm: i32,
        unit: bool,
    ) -> Result<Arc<Topic>, Refusal> {
        if let Some(topic) = self.get(topic) {
            return Ok(topic);
        }
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        if let Some(topic) = before.get(topic) {
            return Ok(Arc::clone(topic));
        }
        let config = TopicConfig {
            topic_name: topic.to_owned(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            perm,
            topic_sys_flag: if unit { UNIT_SUB } else { 0 },
            ..TopicConfig::default()
        };
        self.insert(&before, config)
    }

    /// Puts what a master sent (21) in place of this table, but for system topics that only this broker knows; false when it has
    /// that version already. A topic that the master deleted keeps its queues until its records are gone: their next record
    /// tells whether it was made anew.
    pub fn follow(&self, version: DataVersion, configs: BTreeMap<String, TopicConfig>) -> bool {
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        if before.version == version {
            return false;
        }
        let mut topics: HashMap<Box<str>, Arc<Topic>> = HashMap::with_capacity(configs.len());
        for (name, mut config) in configs {
            // The name becomes a folder's.
            if let Err(reason) = validate_name(&name) {
                tracing::warn!(topic = name, reason, "left out of the master's topics");
                continue;
            }
            config.topic_name.clone_from(&name);
            let topic = kept_or_new(before.get(&name), &config);
            topics.insert(name.into(), topic);
        }
        for topic in self.own(&before) {
            let name = topic.name().into();
            topics.entry(name).or_insert_with(|| Arc::clone(topic));
        }
        let table = Table { topics, version };
        self.save(&table);
        self.table.store(Arc::new(table));
        true
    }

    /// Takes back what a slave kept of this broker's own table (21). `whole`: the own one was lost, and what the slave has counts;
    /// otherwise the table that was changed more often counts. A topic that only this broker knows stays.
    pub fn take_back(
        &self,
        version: DataVersion,
        configs: BTreeMap<String, TopicConfig>,
        whole: bool,
    ) {
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        if !whole && before.version.counter >= version.counter {
            return;
        }
        let mut topics = before.topics.clone();
        for (name, mut config) in configs {
            if let Err(reason) = validate_name(&name) {
                tracing::warn!(topic = name, reason, "left out of the slave's topics");
                continue;
            }
            config.topic_name.clone_from(&name);
            let topic = Topic::new(config, before.get(&name).map(|t| &**t));
            topics.insert(name.into(), Arc::new(topic));
        }
        // Another version than the slave's: what only this broker knows has to get there.
        let mut version = version;
        version.counter = version.counter.max(before.version.counter);
        version.next_version(self.clock.now_ms());
        let table = Table { topics, version };
        self.save(&table);
        self.table.store(Arc::new(table));
    }

    /// What the group agreed on while others led, in place of what is shown of the same topics.
    pub(crate) fn agree(&self, changes: &[Changes]) {
        if !changes.iter().any(Changes::touches_topics) {
            return;
        }
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        let mut topics = before.topics.clone();
        for changes in changes {
            for config in &changes.topics {
                let topic = kept_or_new(topics.get(config.topic_name.as_str()), config);
                topics.insert(config.topic_name.as_str().into(), topic);
            }
            for name in &changes.deleted_topics {
                topics.remove(name.as_str());
            }
        }
        self.publish(&before, topics);
    }

    /// What this member's part of the group's log says, in place of what is shown; system topics of which it says nothing
    /// stay as this broker made them.
    pub(crate) fn restore(&self, group: &GroupTables) {
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        let mut topics = HashMap::new();
        for config in group.shown().topics() {
            let topic = kept_or_new(before.get(&config.topic_name), config);
            topics.insert(config.topic_name.as_str().into(), topic);
        }
        for topic in self.own(&before) {
            let name = topic.name().into();
            topics.entry(name).or_insert_with(|| Arc::clone(topic));
        }
        self.publish(&before, topics);
        self.registrar.register_all();
    }

    /// The system topics, as the table has them.
    fn own<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a Arc<Topic>> {
        self.system.iter().filter_map(|name| table.get(name))
    }

    /// All but the system topics, which each broker makes for itself.
    pub(crate) fn rows(&self) -> Vec<TopicConfig> {
        let table = self.table.load();
        let rows = table
            .iter()
            .filter(|t| !self.system.iter().any(|s| s == t.name()));
        rows.map(|t| t.config.clone()).collect()
    }

    /// What the group's tables write into the file.
    pub(crate) fn text_of(&self, agreed: &Tables) -> String {
        let table = self.table.load();
        let own = self.own(&table).map(|t| &t.config);
        let wrapper = TopicConfigSerializeWrapper {
            data_version: table.version,
            topic_config_table: own
                .chain(agreed.topics())
                .map(|config| (config.topic_name.clone(), config.clone()))
                .collect(),
            ..TopicConfigSerializeWrapper::default()
        };
        serde_json::to_string_pretty(&wrapper).unwrap_or_default()
    }

    /// Removes a topic from the table; false when it was not there. Its queues are the store's affair.
    pub fn delete(&self, topic: &str) -> Result<bool, Refusal> {
        let _writing = self.writing.lock();
        // Where a group agrees on it, whatever is left of a topic goes on every member.
        self.propose(|| Changes {
            deleted_topics: vec![topic.to_owned()],
            ..Changes::default()
        })?;
        let before = self.table.load_full();
        if before.get(topic).is_none() {
            return Ok(false);
        }
        let mut topics = before.topics.clone();
        topics.remove(topic);
        self.publish(&before, topics);
        self.registrar.register_all();
        Ok(true)
    }

    /// Sets the order flag of exactly the topics that the name servers' KV configuration names.
    pub fn update_order_topics(&self, ordered: &BTreeMap<String, String>) {
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        let mut topics = before.topics.clone();
        let mut changed = Vec::new();
        for topic in before.iter() {
            let order = ordered.contains_key(topic.name());
            if topic.config.order != order {
                let config = TopicConfig {
                    order,
                    ..topic.config.clone()
                };
                changed.push(config.clone());
                topics.insert(
                    topic.name().into(),
                    Arc::new(Topic::new(config, Some(topic))),
                );
            }
        }
        if changed.is_empty() {
            return;
        }
        let names: Vec<&str> = changed.iter().map(|c| c.topic_name.as_str()).collect();
        // Refused, they are set with the next registration.
        let proposed = self.propose(|| Changes::of_topics(changed.iter().cloned()));
        tracing::info!(?names, ?proposed, "order flags follow the name servers");
        if proposed.is_ok() {
            self.publish(&before, topics);
        }
    }

    /// Counts a change that lies outside the table (the broker's permission) and registers it.
    pub fn touch(&self) {
        let _writing = self.writing.lock();
        let before = self.table.load_full();
        self.publish(&before, before.topics.clone());
        self.registrar.register_all();
    }

    /// Writes the table whether or not it changed.
    pub fn persist(&self) {
        let _writing = self.writing.lock();
        self.save(&self.table.load());
    }

    fn insert(&self, before: &Arc<Table>, config: TopicConfig) -> Result<Arc<Topic>, Refusal> {
        self.propose(|| Changes::of_topics([config.clone()]))?;
        let name = config.topic_name.clone();
        let topic = Arc::new(Topic::new(config, None));
        let mut topics = before.topics.clone();
        topics.insert(name.as_str().into(), Arc::clone(&topic));
        self.publish(before, topics);
        self.registrar.topics_changed(vec![name]);
        Ok(topic)
    }

    fn publish(&self, before: &Table, topics: HashMap<Box<str>, Arc<Topic>>) {
        let mut version = before.version;
        version.next_version(self.clock.now_ms());
        let table = Table { topics, version };
        self.save(&table);
        self.table.store(Arc::new(table));
    }

    fn save(&self, table: &Table) {
        if self.group.is_some() {
            return;
        }
        let text = serde_json::to_string_pretty(&table.wrapper()).unwrap_or_default();
        self.saver.save(self.path.clone(), text);
    }
}

/// A topic that the name servers are told of by whoever leads.
fn kept_or_new(before: Option<&Arc<Topic>>, config: &TopicConfig) -> Arc<Topic> {
    let topic = match before {
        Some(topic) if topic.config == *config => Arc::clone(topic),
        existing => Arc::new(Topic::new(config.clone(), existing.map(|t| &**t))),
    };
    topic.set_announced();
    topic
}

fn system_topics(config: &BrokerConfig) -> Vec<TopicConfig> {
    let topic = |name: &str, queues: i32, perm: i32| TopicConfig {
        topic_name: name.to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        perm,
        ..TopicConfig::default()
    };
    let read_write = perm::READ | perm::WRITE;
    let usable = |enabled: bool| {
        if enabled {
            read_write | perm::INHERIT
        } else {
            perm::INHERIT
        }
    };
    let template = if config.auto_create_topic_enable {
        read_write | perm::INHERIT
    } else {
        read_write
    };
    let levels = crate::config::parse_delay_levels(&config.message_delay_level)
        .map_or(0, |l| i32::try_from(l.len()).unwrap_or(0));
    let mut topics = vec![
        topic(SELF_TEST_TOPIC, 1, read_write),
        topic(
            AUTO_CREATE_TOPIC_KEY_TOPIC,
            config.default_topic_queue_nums,
            template,
        ),
        topic(BENCHMARK_TOPIC, BENCHMARK_QUEUES, read_write),
        topic(
            &config.broker_cluster_name,
            CLUSTER_TOPIC_QUEUES,
            usable(config.cluster_topic_enable),
        ),
        topic(&config.broker_name, 1, usable(config.broker_topic_enable)),
        topic(OFFSET_MOVED_EVENT, 1, read_write),
        topic(SCHEDULE_TOPIC, levels.max(1), read_write),
        topic(
            &format!("{}_REPLY_TOPIC", config.broker_cluster_name),
            1,
            read_write,
        ),
    ];
    if config.trace_topic_enable {
        topics.push(topic(&config.msg_trace_topic_name, 1, read_write));
    }
    // A broker named like its cluster would otherwise put the smaller of the two topics last.
    let mut seen = std::collections::HashSet::new();
    topics.retain(|t| seen.insert(t.topic_name.clone()));
    topics
}

/// Whether anybody may send to the topic.
pub fn may_be_sent_to(topic: &str) -> bool {
    !NOT_ALLOWED_TO_SEND.contains(&topic)
}

/// The characters and the length that a topic's name may have (5.1); the sentence otherwise.
pub fn validate_name(topic: &str) -> Result<(), String> {
    if topic.trim().is_empty() {
        return Err("The specified topic is blank.".to_owned());
    }
    if !topic
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'%' | b'|' | b'_' | b'-'))
    {
        return Err(
            "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
                .to_owned(),
        );
    }
    let internal =
        topic.starts_with(RETRY_GROUP_TOPIC_PREFIX) || topic.starts_with(DLQ_GROUP_TOPIC_PREFIX);
    let limit = if internal {
        MAX_RETRY_TOPIC_BYTES
    } else {
        MAX_TOPIC_BYTES
    };
    if topic.len() > limit {
        return Err(format!(
            "The specified topic is longer than topic max length {limit}."
        ));
    }
    Ok(())
}

/// Queue counts and permission that a request may set.
pub fn validate_config(config: &TopicConfig) -> Result<(), String> {
    for (what, queues) in [
        ("readQueueNums", config.read_queue_nums),
        ("writeQueueNums", config.write_queue_nums),
    ] {
        if !(0..=MAX_QUEUES_PER_TOPIC).contains(&i64::from(queues)) {
            return Err(format!(
                "{what} must lie between 0 and {MAX_QUEUES_PER_TOPIC}, not {queues}"
            ));
        }
    }
    if !(0..=perm::PRIORITY * 2 - 1).contains(&config.perm) {
        return Err(format!("perm {} has unknown bits", config.perm));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use store::SystemClock;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        saver: Arc<Saver>,
        // Keeps the registrar's channel open.
        _pending: crate::registration::Pending,
        registrar: Registrar,
        config: BrokerConfig,
    }

    impl Fixture {
        fn new() -> Self {
            let (registrar, pending) = Registrar::new();
            Self {
                folder: tempfile::tempdir().unwrap(),
                saver: Arc::new(Saver::start().unwrap()),
                _pending: pending,
                registrar,
                config: BrokerConfig {
                    broker_name: "b".to_owned(),
                    broker_cluster_name: "c".to_owned(),
                    ..BrokerConfig::default()
                },
            }
        }

        fn load(&self) -> TopicConfigManager {
            let path = self.folder.path().join("topics.json");
            let clock = Arc::new(SystemClock);
            TopicConfigManager::load(
                path,
                &self.config,
                Arc::clone(&self.saver),
                clock,
                self.registrar.clone(),
                None,
            )
            .unwrap()
        }
    }

    fn request<'a>(
        topic: &'a str,
        default_topic: &'a str,
        default_queue_nums: i32,
    ) -> CreateInSend<'a> {
        CreateInSend {
            topic,
            default_topic,
            default_queue_nums,
            unit_mode: false,
        }
    }

    const REMOTE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[test]
    fn every_broker_has_its_system_topics() {
        let topics = Fixture::new().load();
        let shape = |name: &str| {
            topics
                .get(name)
                .map(|t| (t.config.write_queue_nums, t.config.perm))
        };
        assert_eq!(shape("TBW102"), Some((8, 7)));
        assert_eq!(shape("c"), Some((16, 7)));
        assert_eq!(shape("b"), Some((1, 7)));
        assert_eq!(shape("SCHEDULE_TOPIC_XXXX"), Some((18, 6)));
        assert_eq!(shape("BenchmarkTest"), Some((1024, 6)));
        assert_eq!(shape("c_REPLY_TOPIC"), Some((1, 6)));
        assert_eq!(
            shape("RMQ_SYS_TRACE_TOPIC"),
            None,
            "traceTopicEnable is false"
        );
        assert!(
            topics.is_system_topic("c")
                && topics.is_system_topic("rmq_sys_x")
                && !topics.is_system_topic("T")
        );
    }

    #[test]
    fn a_send_creates_after_its_template() {
        let fixture = Fixture::new();
        let topics = fixture.load();
        let before = *topics.table().version();
        let made = topics
            .create_in_send(request("T", "TBW102", 4), REMOTE)
            .unwrap()
            .unwrap();
        assert_eq!(
            (
                made.config.write_queue_nums,
                made.config.read_queue_nums,
                made.config.perm
            ),
            (4, 4, 6)
        );
        assert_eq!(topics.table().version().counter, before.counter + 1);
        let many = topics
            .create_in_send(request("Many", "TBW102", 100), REMOTE)
            .unwrap()
            .unwrap();
        assert_eq!(
            many.config.write_queue_nums, 8,
            "not more than the template has"
        );
        assert!(
            topics
                .create_in_send(request("U", "T", 4), REMOTE)
                .unwrap()
                .is_none(),
            "T may not be inherited from"
        );
        assert!(
            topics
                .create_in_send(request("U", "nowhere", 4), REMOTE)
                .unwrap()
                .is_none()
        );

        let closed = Fixture {
            config: BrokerConfig {
                auto_create_topic_enable: false,
                ..fixture.config.clone()
            },
            ..Fixture::new()
        };
        assert!(
            closed
                .load()
                .create_in_send(request("T", "TBW102", 4), REMOTE)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn topics_and_their_version_survive_a_restart() {
        let fixture = Fixture::new();
        let topics = fixture.load();
        let ordered = TopicConfig {
            order: true,
            ..TopicConfig::new("T", 3, 6)
        };
        topics.update([ordered]).unwrap();
        topics.create_for_group("%RETRY%g", 1, 6, false).unwrap();
        assert_eq!(topics.delete("%RETRY%g"), Ok(true));
        assert_eq!(topics.delete("%RETRY%g"), Ok(false));
        assert!(fixture.saver.flush());
        let counter = topics.table().version().counter;
        let again = fixture.load();
        assert_eq!(
            again.get("T").unwrap().config,
            topics.get("T").unwrap().config
        );
        assert!(again.get("%RETRY%g").is_none());
        assert!(again.table().version().counter > counter);
    }

    #[test]
    fn order_flags_follow_the_name_servers() {
        let topics = Fixture::new().load();
        let ordered = TopicConfig {
            order: true,
            ..TopicConfig::new("U", 3, 6)
        };
        topics
            .update([TopicConfig::new("T", 3, 6), ordered])
            .unwrap();
        topics.update_order_topics(&BTreeMap::from([("T".to_owned(), "b:3".to_owned())]));
        assert!(topics.get("T").unwrap().config.order);
        assert!(!topics.get("U").unwrap().config.order);
    }

    #[test]
    fn names() {
        assert!(validate_name("a%|_-9").is_ok());
        assert!(validate_name(&"x".repeat(127)).is_ok());
        assert!(validate_name(&format!("%RETRY%{}", "x".repeat(200))).is_ok());
        for bad in ["", " ", "a.b", "\u{e9}", &"x".repeat(128)] {
            assert!(validate_name(bad).is_err(), "{bad}");
        }
        assert!(!may_be_sent_to("SCHEDULE_TOPIC_XXXX") && may_be_sent_to("TBW102"));
    }
}
