//! Delivery of delayed messages (delay levels): from SCHEDULE_TOPIC_XXXX to the real topic when their time has come.
//!
//! A level is a queue whose entries fall due in their order, so the next due time of the broker is the smallest of a
//! few heads. One thread sleeps until exactly then, or until a message arrives in one of the queues; it never polls.
//! The delivered offsets live in `config/delayOffset.json`. They are written only after the messages delivered up to
//! them are on disk and can be read: a machine that goes down, or a leader that is lost, may deliver a message twice, but
//! never lose one.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use remoting::protocol::body::{DataVersion, DelayOffsetSerializeWrapper};
use remoting::protocol::message::{RecordView, property, tags_code};
use store::{Arrival, Clock, ConsumeQueue, PutError, PutMessage, Store, TagsCode};

use crate::config_file::{self, Saver};
use crate::offset::push_integer_map;
use crate::stats::BrokerStatsManager;
use crate::topic::{SCHEDULE_TOPIC, validate_name};

/// After a failed put a level rests this long (upstream `DELAY_FOR_A_PERIOD`).
const RETRY_AFTER_MS: i64 = 10_000;
/// The same while the log is only busy.
const BUSY_RETRY_AFTER_MS: i64 = 100;
/// Entries looked at, and messages delivered, in one go.
const BATCH_MESSAGES: usize = 64;
/// Bytes delivered in one go, well below the tail ring.
const BATCH_BYTES: usize = 1024 * 1024;
/// How long a stop waits for delivered messages to reach the disk before it keeps the older offsets.
const STOP_FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages on their way to the half topic are dropped (upstream `messageTimeup` of a delayed half message).
const TRANS_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";

/// The delays of the levels 1, 2, ….
#[derive(Debug, Clone)]
pub struct DelayLevels(Vec<Duration>);

impl DelayLevels {
    pub fn new(levels: Vec<Duration>) -> Self {
        Self(levels)
    }

    pub fn max(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    /// The level a message with this DELAY gets; `None` when it is not delayed at all.
    pub fn level(&self, delay: i32) -> Option<i32> {
        (delay > 0 && !self.0.is_empty()).then(|| delay.min(self.max()))
    }

    /// Milliseconds of a level; an unknown level counts as one second, as upstream computes it.
    pub fn delay_ms(&self, level: i32) -> i64 {
        let index = usize::try_from(level)
            .ok()
            .and_then(|level| level.checked_sub(1));
        let delay = index
            .and_then(|index| self.0.get(index))
            .copied()
            .unwrap_or(Duration::from_secs(1));
        i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The queue of a level in [`SCHEDULE_TOPIC`].
pub fn queue_of_level(level: i32) -> i32 {
    level - 1
}

type Offsets = BTreeMap<i32, i64>;

pub struct ScheduleMessageService {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    stats: Arc<BrokerStatsManager>,
    saver: Arc<Saver>,
    path: PathBuf,
    persist_interval_ms: i64,
    levels: DelayLevels,
    delivered: Mutex<Delivered>,
    signal: Mutex<Signal>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Delivered {
    offsets: Offsets,
    /// The same, as far as what was delivered can be read: in a group that elects, the rest may yet be lost.
    readable: Offsets,
    /// What is not readable yet: end in the log, level, offset.
    unconfirmed: VecDeque<(u64, i32, i64)>,
    /// Counts how often the offsets were replaced: a delivery that began before does not advance them.
    era: u64,
    version: DataVersion,
    /// End in the log of the newest delivered message.
    end: u64,
    dirty: bool,
}

#[derive(Debug, Default)]
struct Signal {
    arrived: bool,
    stopped: bool,
}

/// What to do next with a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing waits.
    Idle,
    /// The head falls due, or the level may be tried again, at this time.
    At(i64),
    /// A batch was delivered; there may be more.
    Again,
}

/// Why a batch was not delivered.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Flow control: the log takes messages again in a moment.
    #[error("{0}")]
    Busy(String),
    /// The store takes no writes for now.
    #[error("{0}")]
    Later(String),
    /// One of the messages can never be stored.
    #[error("{0}")]
    Unusable(String),
}

impl Failure {
    fn rest_ms(&self) -> i64 {
        match self {
            Self::Busy(_) => BUSY_RETRY_AFTER_MS,
            Self::Later(_) | Self::Unusable(_) => RETRY_AFTER_MS,
        }
    }
}

impl From<PutError> for Failure {
    fn from(error: PutError) -> Self {
        let text = error.to_string();
        match error {
            PutError::Busy(_) => Self::Busy(text),
            PutError::MessageTooLarge { .. }
            | PutError::TopicTooLong(_)
            | PutError::PropertiesTooLong(_) => Self::Unusable(text),
            PutError::NotWritable(_) | PutError::NotLeader | PutError::WrongPosition { .. } => {
                Self::Later(text)
            }
        }
    }
}

impl ScheduleMessageService {
    pub fn load(
        path: PathBuf,
        levels: DelayLevels,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        stats: Arc<BrokerStatsManager>,
        saver: Arc<Saver>,
        persist_interval_ms: i64,
    ) -> Result<Self, config_file::Error> {
        let wrapper: DelayOffsetSerializeWrapper = config_file::read(&path)?.unwrap_or_default();
        Ok(Self {
            store,
            clock,
            stats,
            saver,
            path,
            persist_interval_ms,
            levels,
            delivered: Mutex::new(Delivered {
                readable: wrapper.offset_table.clone(),
                offsets: wrapper.offset_table,
                version: wrapper.data_version.unwrap_or_default(),
                ..Delivered::default()
            }),
            signal: Mutex::default(),
            changed: Condvar::new(),
            thread: Mutex::new(None),
        })
    }

    /// Starts delivering. Only a master delivers; call [`Self::stop`] when it becomes a slave.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            *self.signal.lock() = Signal::default();
            let service = Arc::clone(self);
            *thread = Some(
                std::thread::Builder::new()
                    .name("delay-levels".to_owned())
                    .spawn(move || service.run())?,
            );
        }
        Ok(())
    }

    /// Stops delivering and writes the offsets.
    pub fn stop(&self) {
        self.signal.lock().stopped = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the delay levels panicked");
        }
        let end = self.delivered.lock().end;
        if self.store.flushed() >= end || self.store.wait_flushed(end, STOP_FLUSH_TIMEOUT) {
            self.persist();
        }
    }

    /// To be called with each batch of new records: wakes the thread when one of them is a delayed message.
    pub fn arrived(&self, arrivals: &[Arrival]) {
        if arrivals
            .iter()
            .any(|arrival| arrival.queue.topic() == SCHEDULE_TOPIC)
        {
            self.signal.lock().arrived = true;
            self.changed.notify_all();
        }
    }

    pub fn levels(&self) -> &DelayLevels {
        &self.levels
    }

    /// The answer of 45, and what the file holds.
    pub fn encode_for_slaves(&self) -> String {
        let mut delivered = self.delivered.lock();
        delivered.settle(self.store.confirm_offset());
        delivered.encode()
    }

    /// Puts what a master sent (45) in place of the current table.
    pub fn follow(&self, wrapper: DelayOffsetSerializeWrapper) {
        let mut delivered = self.delivered.lock();
        if delivered.offsets == wrapper.offset_table {
            return;
        }
        delivered.readable.clone_from(&wrapper.offset_table);
        delivered.replaced();
        delivered.offsets = wrapper.offset_table;
        delivered.version = wrapper.data_version.unwrap_or_default();
        self.saver.save(self.path.clone(), delivered.encode());
    }

    /// Takes back what a slave kept of this table (45): the larger offset counts.
    pub fn take_back(&self, wrapper: DelayOffsetSerializeWrapper) {
        let mut delivered = self.delivered.lock();
        for (level, told) in wrapper.offset_table {
            let own = delivered.offsets.entry(level).or_insert(told);
            *own = (*own).max(told);
        }
        delivered.readable = delivered.offsets.clone();
        if let Some(version) = wrapper.data_version
            && version.counter > delivered.version.counter
        {
            delivered.version = version;
        }
        self.saver.save(self.path.clone(), delivered.encode());
    }

    /// `(level, delivered offset, max offset)` of every level that was ever used, for runtime info.
    pub fn progress(&self) -> Vec<(i32, i64, i64)> {
        let offsets = self.delivered.lock().offsets.clone();
        let max = |level| self.store.max_offset(SCHEDULE_TOPIC, queue_of_level(level));
        offsets
            .into_iter()
            .map(|(level, offset)| (level, offset, max(level)))
            .collect()
    }

    fn persist(&self) {
        let mut delivered = self.delivered.lock();
        if delivered.dirty {
            delivered.settle(self.store.confirm_offset());
            delivered.dirty = !delivered.unconfirmed.is_empty();
            delivered.version.next_version(self.clock.now_ms());
            self.saver.save(self.path.clone(), delivered.encode());
        }
    }

    /// What was delivered but cannot be read yet may be lost with its leader: it is delivered again.
    pub fn roll_back(&self) {
        let mut delivered = self.delivered.lock();
        delivered.settle(self.store.confirm_offset());
        delivered.offsets = delivered.readable.clone();
        delivered.replaced();
        delivered.dirty = true;
    }

    fn run(&self) {
        tracing::debug!(levels = self.levels.max(), "delivering delayed messages");
        // While the clock is within a level's range, its head is not due or the level rests after a failure.
        let mut resting: BTreeMap<i32, Range<i64>> = BTreeMap::new();
        let mut persist_at = self.clock.now_ms() + self.persist_interval_ms;
        loop {
            let now = self.clock.now_ms();
            let mut again = false;
            for level in 1..=self.levels.max() {
                if resting
                    .get(&level)
                    .is_some_and(|range| range.contains(&now))
                {
                    continue;
                }
                resting.remove(&level);
                match self.deliver_level(level, now) {
                    Ok(Next::Idle) => {}
                    Ok(Next::At(at)) => {
                        resting.insert(level, now..at);
                    }
                    Ok(Next::Again) => again = true,
                    Err(failure) => {
                        tracing::warn!(level, %failure, "cannot deliver delayed messages; will try again");
                        resting.insert(level, now..now + failure.rest_ms());
                    }
                }
            }
            let mut next = resting.values().map(|range| range.end).min();
            if now >= persist_at {
                let (dirty, end) = {
                    let delivered = self.delivered.lock();
                    (delivered.dirty, delivered.end)
                };
                if dirty && self.store.flushed() >= end {
                    self.persist();
                }
                persist_at = now + self.persist_interval_ms;
            }
            if self.delivered.lock().dirty {
                next = Some(next.map_or(persist_at, |next| next.min(persist_at)));
            }
            if self.wait(again, next) {
                return;
            }
        }
    }

    /// Sleeps until `next`, an arrival or the stop; answers true for the stop.
    fn wait(&self, again: bool, next: Option<i64>) -> bool {
        let mut signal = self.signal.lock();
        while !again && !signal.arrived && !signal.stopped {
            match next.map(|next| next - self.clock.now_ms()) {
                Some(rest) if rest <= 0 => break,
                Some(rest) => {
                    self.changed
                        .wait_for(&mut signal, Duration::from_millis(rest.unsigned_abs()));
                }
                None => self.changed.wait(&mut signal),
            }
        }
        signal.arrived = false;
        signal.stopped
    }

    /// Delivers the messages of a level that are due, one batch at most.
    fn deliver_level(&self, level: i32, now: i64) -> Result<Next, Failure> {
        let queue_id = queue_of_level(level);
        let Some(queue) = self.store.find_queue(SCHEDULE_TOPIC, queue_id) else {
            return Ok(Next::Idle);
        };
        let (mut offset, era) = {
            let delivered = self.delivered.lock();
            let offset = delivered.offsets.get(&level).copied().unwrap_or(0);
            (offset, delivered.era)
        };
        let (min, max) = (queue.min_offset(), queue.max_offset());
        if offset < min || offset > max {
            let corrected = offset.min(max).max(min);
            tracing::warn!(
                level,
                offset,
                corrected,
                "the offset of a delay level lay outside its queue"
            );
            offset = corrected;
            self.advance(level, offset, 0, era);
        }
        let units =
            self.store
                .query_consume_queue(SCHEDULE_TOPIC, queue_id, offset, BATCH_MESSAGES);
        let mut due = Vec::new();
        let mut bytes = 0;
        let mut next = if units.is_empty() {
            Next::Idle
        } else {
            Next::Again
        };
        for (phy_offset, size, due_at) in units {
            if self.correct_deliver_timestamp(level, due_at, now) > now {
                next = Next::At(due_at);
                break;
            }
            if bytes > 0 && bytes + usize::try_from(size).unwrap_or(0) > BATCH_BYTES {
                break;
            }
            bytes += usize::try_from(size).unwrap_or(0);
            due.push(phy_offset);
        }
        if due.is_empty() {
            return Ok(next);
        }
        let count = i64::try_from(due.len()).unwrap_or(0);
        let end = self.deliver(&due)?;
        self.advance(level, offset + count, end, era);
        Ok(if matches!(next, Next::At(_)) {
            next
        } else {
            Next::Again
        })
    }

    /// A due time further ahead than the whole delay means that the clock was set back: deliver now (upstream
    /// `correctDeliverTimestamp`).
    fn correct_deliver_timestamp(&self, level: i32, due_at: i64, now: i64) -> i64 {
        if due_at > now + self.levels.delay_ms(level) {
            now
        } else {
            due_at
        }
    }

    /// Appends the messages under their real topics; answers the end of the last one.
    fn deliver(&self, positions: &[i64]) -> Result<u64, Failure> {
        let records: Vec<_> = positions
            .iter()
            .filter_map(|position| {
                let record = u64::try_from(*position)
                    .ok()
                    .and_then(|position| self.store.record_at(position));
                if record.is_none() {
                    tracing::warn!(position, "a delayed message is gone from the log");
                }
                record
            })
            .collect();
        let mut restored: Vec<Restored<'_>> = Vec::with_capacity(records.len());
        for bytes in &records {
            restored.extend(self.restore(bytes)?);
        }
        match self.append(&restored) {
            Err(Failure::Unusable(_)) => {}
            done => return done,
        }
        // One of them can never be stored: find out which, and let the others pass.
        let mut end = 0;
        for message in &restored {
            match self.append(std::slice::from_ref(message)) {
                Ok(reached) => end = end.max(reached),
                Err(Failure::Unusable(reason)) => {
                    tracing::error!(
                        topic = message.queue.topic(),
                        reason,
                        "a delayed message cannot be stored; dropped"
                    );
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(end)
    }

    fn append(&self, messages: &[Restored<'_>]) -> Result<u64, Failure> {
        if messages.is_empty() {
            return Ok(0);
        }
        let puts: Vec<PutMessage<'_>> = messages.iter().map(Restored::put).collect();
        let appended = self.store.append(&puts)?;
        self.store.drive();
        for (message, record) in messages.iter().zip(&appended.records) {
            self.stats.put(
                &self.stats.topic(message.queue.topic()),
                1,
                record.size.into(),
            );
        }
        Ok(appended.end)
    }

    /// The message as it will be stored: same body and properties, real topic and queue, tags hashed anew.
    fn restore<'a>(&self, bytes: &'a [u8]) -> Result<Option<Restored<'a>>, Failure> {
        let record = match RecordView::parse(bytes) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, "a delayed message cannot be read; dropped");
                return Ok(None);
            }
        };
        let text = |name| {
            record
                .property(name)
                .and_then(|value| std::str::from_utf8(value).ok())
                .unwrap_or_default()
        };
        let properties = Properties {
            topic: text(property::REAL_TOPIC),
            queue_id: text(property::REAL_QID).parse().unwrap_or(0).max(0),
            keys: text(property::KEYS),
            unique_key: text(property::UNIQ_KEY),
        };
        // The name becomes a folder's, so it is looked at again here.
        if properties.topic == TRANS_HALF_TOPIC || validate_name(properties.topic).is_err() {
            tracing::error!(
                topic = properties.topic,
                "a delayed message has no topic to go to; dropped"
            );
            return Ok(None);
        }
        let queue = self
            .store
            .queue(properties.topic, properties.queue_id)
            .map_err(|error| Failure::Later(error.to_string()))?;
        Ok(Some(Restored {
            queue,
            record,
            properties,
        }))
    }

    fn advance(&self, level: i32, offset: i64, end: u64, era: u64) {
        let mut delivered = self.delivered.lock();
        if delivered.era != era {
            return;
        }
        delivered.unconfirmed.push_back((end, level, offset));
        delivered.settle(self.store.confirm_offset());
        delivered.offsets.insert(level, offset);
        delivered.end = delivered.end.max(end);
        delivered.dirty = true;
    }
}

impl Delivered {
    /// What ends by here can be read.
    fn settle(&mut self, confirm: u64) {
        while let Some(&(end, level, offset)) = self.unconfirmed.front()
            && end <= confirm
        {
            self.readable.insert(level, offset);
            self.unconfirmed.pop_front();
        }
    }

    fn replaced(&mut self) {
        self.unconfirmed.clear();
        self.end = 0;
        self.era += 1;
    }

    /// The offsets up to which everything delivered can be read, so that whoever has them and the log never skips a message
    /// that he does not get.
    fn encode(&self) -> String {
        let version = serde_json::to_string(&self.version).unwrap_or_else(|_| "{}".to_owned());
        let mut out = format!("{{\"dataVersion\":{version},\"offsetTable\":");
        push_integer_map(&mut out, &self.readable);
        out.push('}');
        out
    }
}

struct Properties<'a> {
    topic: &'a str,
    queue_id: i32,
    keys: &'a str,
    unique_key: &'a str,
}

struct Restored<'a> {
    queue: Arc<ConsumeQueue>,
    record: RecordView<'a>,
    properties: Properties<'a>,
}

impl Restored<'_> {
    fn put(&self) -> PutMessage<'_> {
        let record = &self.record;
        PutMessage {
            queue: &self.queue,
            flag: record.flag,
            sys_flag: record.sys_flag,
            born_timestamp: record.born_timestamp,
            born_host: record.born_host,
            store_host: record.store_host,
            reconsume_times: record.reconsume_times,
            prepared_transaction_offset: record.prepared_transaction_offset,
            body: record.body,
            properties: record.properties,
            tags_code: TagsCode::Hash(tags_code(record.property(property::TAGS))),
            unique_key: self.properties.unique_key,
            keys: self.properties.keys,
        }
    }
}
