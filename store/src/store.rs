//! The store: one append lock, one writer at a time, watermarks, background threads.
//!
//! A batch gets its offsets and is copied into the tail ring under the append lock (`append`). Whoever then finds no
//! active writer writes all that is pending (`drive`); the others go on with their work. What is written is dispatched
//! to queues and index before `written`'s listeners hear of it, so whoever waits for its own answer also finds its
//! message. See [`Watermarks`] for the order that always holds.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use smallvec::SmallVec;

use crate::checkpoint::{Checkpoint, CheckpointFiles, Offsets, boot_id};
use crate::clock::Clock;
use crate::config::{FlushDiskType, StoreConfig};
use crate::consume_queue::{ConsumeQueue, ConsumeQueues};
use crate::disk::{Disk, RealDisk};
use crate::error::{Error, NotWritable, PutError};
use crate::get::ColdReaders;
use crate::index_file::{IndexService, Stop, index_dir};
use crate::live::Live;
use crate::put::{Appended, AppendedRecord, Arrival, PutMessage, TagsCode};
use crate::queue_table;
use crate::record::{self, BLANK_MAGIC, END_FILE_MIN_BLANK, Encoded, Fields, Peek, Record};
use crate::recovery::{self, QUEUE_TABLE};
use crate::ring::{CHUNK, Ring, RingTail};
use crate::segment::Segments;

/// Used when the machine does not say how much memory it has.
const ASSUMED_MEMORY_BYTES: u64 = 4 << 30;
/// Units and index entries that may wait in memory before appends are refused.
const MAX_UNDISPATCHED: usize = 4 << 20;
/// The dispatch thread is woken before its second is over when so many index entries wait.
const INDEX_WAKE: usize = 16 << 10;
/// The same for units.
const UNITS_WAKE: usize = 64 << 10;
/// Our own offsets are written each second and each so many bytes.
const OFFSETS_INTERVAL: Duration = Duration::from_secs(1);
const OFFSETS_BYTES: u64 = 64 << 20;
/// Queues and index are synced this often at least while something changes.
const SYNC_INTERVAL: Duration = Duration::from_secs(10);
/// How far ahead of the writer segments are prepared, and in what steps.
const PREPARE_AHEAD: u64 = 64 << 20;
const PREPARE_STEP: u64 = 16 << 20;
/// A zeroing step never begins closer than this to what is written.
const PREPARE_MARGIN: u64 = 4 << 20;
/// Slices of one `pwritev`.
const MAX_SLICES: usize = 64;

/// What makes a written record visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// As soon as it is written (single master, master and slave).
    Written,
    /// When `advance_confirm` says so (Raft).
    External,
}

/// Positions in the log. Always `appended >= written >= flushed` and `written >= confirm`; `confirm <= flushed` does
/// **not** hold under ASYNC_FLUSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// End of what has offsets.
    pub appended: u64,
    /// End of what is in the files (the page cache).
    pub written: u64,
    /// End of what `fdatasync` returned for.
    pub flushed: u64,
    /// End of what consumers see.
    pub confirm: u64,
    /// Nothing above these positions will get there any more: fail the waiters.
    pub poisoned: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boundary {
    /// First offset whose store timestamp is at or after the time; max offset if all are older.
    #[default]
    Lower,
    /// Last offset whose store timestamp is at or before the time.
    Upper,
}

#[derive(Clone, Debug, Default)]
pub struct QueryResult {
    /// Whole records as stored, newest first.
    pub records: Vec<Bytes>,
    /// Store timestamp and position of the last indexed record.
    pub index_last_update_timestamp: i64,
    pub index_last_update_phy_offset: i64,
}

#[derive(Clone, Debug, Default)]
pub struct RuntimeFigures {
    /// Used fraction (0 to 1) of the file system of the commit log, and of the consume queues.
    pub commit_log_disk_ratio: f64,
    pub consume_queue_disk_ratio: f64,
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    pub dispatch_behind_bytes: u64,
    pub put_message_times: u64,
    pub put_message_bytes: u64,
    pub put_message_failed_times: u64,
    pub get_found_times: u64,
    pub get_miss_times: u64,
    pub get_transferred_messages: u64,
    pub unflushed_bytes: u64,
    pub queues: usize,
    pub ring_bytes: usize,
    pub boot_timestamp: i64,
    /// What recovery had to read.
    pub recovered_records: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) put_times: AtomicU64,
    pub(crate) put_bytes: AtomicU64,
    pub(crate) put_failed: AtomicU64,
    pub(crate) get_found: AtomicU64,
    pub(crate) get_miss: AtomicU64,
    pub(crate) get_messages: AtomicU64,
}

/// Under the append lock.
struct AppendState {
    tail: RingTail,
    segment_end: u64,
    pending: Vec<Arrival>,
    last_timestamp: i64,
}

/// Of the one who writes.
struct WriterState {
    batch: Vec<Arrival>,
    /// Written but not confirmed (`Confirm::External`).
    unconfirmed: VecDeque<Arrival>,
    last_phy: u64,
}

/// A condition with a memory: a wake-up given while nobody sleeps is not lost.
#[derive(Default)]
struct Signal {
    raised: Mutex<bool>,
    condition: Condvar,
}

impl Signal {
    fn raise(&self) {
        let mut raised = self.raised.lock();
        if !*raised {
            *raised = true;
            self.condition.notify_one();
        }
    }

    fn wait(&self, timeout: Duration) {
        let mut raised = self.raised.lock();
        if !*raised {
            self.condition.wait_for(&mut raised, timeout);
        }
        *raised = false;
    }
}

#[derive(Default)]
struct Signals {
    flush: Signal,
    dispatch: Signal,
    prepare: Signal,
    clean: Signal,
    stop: AtomicBool,
}

pub type WatermarkListener = Box<dyn Fn(Watermarks) + Send + Sync>;
pub type ArrivalListener = Box<dyn Fn(&[Arrival]) + Send + Sync>;

/// Locks `<root>/lock` against other brokers, ours and Apache's.
struct RootLock(#[expect(dead_code, reason = "held for its lock")] File);

pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) live: Live,
    pub(crate) clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    pub(crate) log: Arc<Segments>,
    pub(crate) queues: ConsumeQueues,
    pub(crate) index: Option<IndexService>,
    pub(crate) ring: Ring,
    append: Mutex<AppendState>,
    writer: Mutex<WriterState>,
    appended: AtomicU64,
    written: AtomicU64,
    flushed: AtomicU64,
    confirm: AtomicU64,
    external_confirm: AtomicBool,
    confirm_limit: AtomicU64,
    /// Raw bytes were appended: from here on arrivals are read from the log itself; else u64::MAX. Set under the append
    /// lock when everything is dispatched, moved by the writer.
    scan_from: AtomicU64,
    /// Store timestamp of the last record at or below `written`; set before `written` is.
    written_timestamp: AtomicI64,
    flushed_timestamp: AtomicI64,
    /// Where the writer's current `pwrite` ends, and where a zeroing step begins: neither enters the other's range.
    write_target: AtomicU64,
    zeroing_from: AtomicU64,
    zeroing: Mutex<()>,
    prepared: AtomicU64,
    flush_wanted: AtomicBool,
    flush_done: (Mutex<()>, Condvar),
    /// Held from reading `written` to raising `flushed`; a truncation must not come in between.
    flushing: Mutex<()>,
    arrival_listeners: RwLock<Vec<ArrivalListener>>,
    watermark_listeners: RwLock<Vec<WatermarkListener>>,
    poison: Mutex<Option<String>>,
    poisoned: AtomicBool,
    /// The disk is full by ratio (set by the cleaner) or by ENOSPC (cleared by a write that succeeds).
    pub(crate) disk_full: Mutex<Option<String>>,
    pub(crate) is_disk_full: AtomicBool,
    stalled: AtomicBool,
    closed: AtomicBool,
    pub(crate) delete_now: AtomicBool,
    last_clean: Mutex<Option<Instant>>,
    last_flush: Mutex<Instant>,
    pub(crate) cold_readers: ColdReaders,
    pub(crate) counters: Counters,
    pub(crate) memory_bytes: u64,
    boot_timestamp: i64,
    recovered_records: u64,
    checkpoint: Mutex<CheckpointState>,
    signals: Arc<Signals>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    root_lock: Mutex<Option<RootLock>>,
}

struct CheckpointState {
    files: CheckpointFiles,
    offsets: Offsets,
    last_sync: Instant,
    synced_dispatch: u64,
}

impl Store {
    /// Takes the lock file, refuses kinds it does not serve, recovers, starts the background threads.
    pub fn open(config: StoreConfig, clock: Arc<dyn Clock>) -> Result<Arc<Store>, Error> {
        Self::open_with_disk(config, clock, Arc::new(RealDisk))
    }

    /// `open` with the file operations of a test.
    pub fn open_with_disk(
        config: StoreConfig,
        clock: Arc<dyn Clock>,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Store>, Error> {
        let root = config.root.clone();
        fs::create_dir_all(&root).map_err(|e| Error::io("create", &root, e))?;
        let root_lock = lock(&root)?;
        crate::kinds::refuse_foreign(&root)?;
        let clean = !abort_file(&config).exists();
        let log = Arc::new(Segments::open(
            config.commit_log_dir(),
            config.segment_size,
            disk.clone(),
        )?);
        if log.size() < 2 * END_FILE_MIN_BLANK {
            return Err(Error::Invalid(format!(
                "commit log files of {} bytes hold no record",
                log.size()
            )));
        }
        let queues = ConsumeQueues::open(
            root.join("consumequeue"),
            config.consume_queue_file_size,
            disk.clone(),
            log.clone(),
            descriptor_limit(),
            config.delay_levels_ms.clone(),
        )?;
        let (files, checkpoint, own) = CheckpointFiles::open(&root)?;
        let stop = match &own {
            _ if clean => Stop::Clean,
            Some(own) if own.boot_id != boot_id() => Stop::PowerLost(own.synced),
            _ => Stop::Killed,
        };
        let index = if config.message_index_enable {
            let (slots, max) = (config.max_hash_slot_num, config.max_index_num);
            Some(IndexService::open(
                index_dir(&root),
                slots,
                max,
                disk.clone(),
                clock.clone(),
                stop,
            )?)
        } else {
            None
        };
        let recovered = recovery::recover(
            &log,
            &queues,
            index.as_ref(),
            &config,
            clean,
            &checkpoint,
            own,
        )?;
        let end = recovered.end;
        if !recovered.own_offsets_hold {
            // What they say of a tail or of queues that are gone must not be believed once others stand in their place.
            files
                .forget()
                .map_err(|e| Error::io("write", root.join("offsets"), e))?;
            forget_table(&config)?;
        }
        tracing::info!(
            clean,
            min = log.min(),
            end,
            records = recovered.records,
            queues = queues.count(),
            "the store is recovered"
        );
        fs::write(abort_file(&config), std::process::id().to_string())
            .map_err(|e| Error::io("create", abort_file(&config), e))?;

        let ring_bytes = config
            .tail_ring_bytes
            .max(4 * (config.max_message_size + record::RECORD_OVERHEAD) + CHUNK);
        let (ring, tail) = Ring::new(ring_bytes, end);
        let segment_end = end - end % log.size() + log.size();
        let last_timestamp = recovered.last_store_timestamp.unwrap_or(0);
        let now = clock.now_ms();
        let offsets = Offsets {
            checkpoint: Checkpoint { ..checkpoint },
            boot_id: boot_id(),
            // Never equal to the truth, so that the first round writes it.
            dispatched: u64::MAX,
            synced: recovered.synced,
            last_phy: recovered.last_phy.unwrap_or(u64::MAX),
            queues: 0,
            index_last_phy: u64::MAX,
        };
        let signals = Arc::new(Signals::default());
        let store = Arc::new(Store {
            append: Mutex::new(AppendState {
                tail,
                segment_end,
                pending: Vec::new(),
                last_timestamp,
            }),
            writer: Mutex::new(WriterState {
                batch: Vec::new(),
                unconfirmed: VecDeque::new(),
                last_phy: recovered.last_phy.unwrap_or(u64::MAX),
            }),
            appended: AtomicU64::new(end),
            written: AtomicU64::new(end),
            // After a crash the tail may be in the page cache only: the flusher's first round settles it.
            flushed: AtomicU64::new(if clean {
                end
            } else {
                end.saturating_sub(config.max_unflushed_bytes / 2)
                    .max(log.min().min(end))
            }),
            confirm: AtomicU64::new(end),
            external_confirm: AtomicBool::new(false),
            confirm_limit: AtomicU64::new(end),
            scan_from: AtomicU64::new(u64::MAX),
            written_timestamp: AtomicI64::new(last_timestamp),
            flushed_timestamp: AtomicI64::new(0),
            write_target: AtomicU64::new(end),
            zeroing_from: AtomicU64::new(u64::MAX),
            zeroing: Mutex::new(()),
            prepared: AtomicU64::new(end),
            flush_wanted: AtomicBool::new(false),
            flush_done: (Mutex::new(()), Condvar::new()),
            flushing: Mutex::new(()),
            arrival_listeners: RwLock::new(Vec::new()),
            watermark_listeners: RwLock::new(Vec::new()),
            poison: Mutex::new(None),
            poisoned: AtomicBool::new(false),
            disk_full: Mutex::new(None),
            is_disk_full: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            delete_now: AtomicBool::new(false),
            last_clean: Mutex::new(None),
            last_flush: Mutex::new(Instant::now()),
            cold_readers: ColdReaders::default(),
            counters: Counters::default(),
            memory_bytes: crate::platform::memory_bytes().unwrap_or(ASSUMED_MEMORY_BYTES),
            boot_timestamp: now,
            recovered_records: recovered.records,
            checkpoint: Mutex::new(CheckpointState {
                files,
                offsets,
                last_sync: Instant::now(),
                synced_dispatch: recovered.synced,
            }),
            signals: signals.clone(),
            threads: Mutex::new(Vec::new()),
            root_lock: Mutex::new(Some(root_lock)),
            live: Live::new(&config),
            config,
            clock,
            disk,
            log,
            queues,
            index,
            ring,
        });
        store.check_disk();
        store.start_threads()?;
        store.flush_wanted.store(true, Ordering::Release);
        store.signals.flush.raise();
        Ok(store)
    }

    fn start_threads(self: &Arc<Self>) -> Result<(), Error> {
        let interval = self.config.flush_interval.max(Duration::from_millis(1));
        self.thread("store-flush", |s| &s.flush, interval, Store::flush_round)?;
        self.thread(
            "store-dispatch",
            |s| &s.dispatch,
            OFFSETS_INTERVAL,
            Store::dispatch_round,
        )?;
        self.thread(
            "store-prepare",
            |s| &s.prepare,
            Duration::from_secs(1),
            Store::prepare_round,
        )?;
        self.thread(
            "store-clean",
            |s| &s.clean,
            self.config
                .clean_resource_interval
                .min(Duration::from_secs(1)),
            Store::clean_round,
        )
    }

    /// A thread that holds the store only while it works: a store that is let go without `shutdown` stops as if killed.
    fn thread(
        self: &Arc<Self>,
        name: &str,
        signal: fn(&Signals) -> &Signal,
        interval: Duration,
        round: fn(&Store),
    ) -> Result<(), Error> {
        let (store, signals) = (Arc::downgrade(self), self.signals.clone());
        let body = move || {
            while !signals.stop.load(Ordering::Acquire) {
                signal(&signals).wait(interval);
                let Some(store) = Weak::upgrade(&store) else {
                    return;
                };
                if signals.stop.load(Ordering::Acquire) {
                    return;
                }
                round(&store);
            }
        };
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|e| Error::io("start a thread for", &self.config.root, e))?;
        self.threads.lock().push(handle);
        Ok(())
    }

    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// The queue, created on demand. The first touch of a queue after a start reads its files.
    pub fn queue(&self, topic: &str, queue_id: i32) -> Result<Arc<ConsumeQueue>, Error> {
        self.queues.get(topic, queue_id)
    }

    /// The queue if it exists.
    pub fn find_queue(&self, topic: &str, queue_id: i32) -> Option<Arc<ConsumeQueue>> {
        self.queues.find(topic, queue_id).unwrap_or_else(|error| {
            tracing::error!(topic, queue_id, %error, "a consume queue cannot be read");
            None
        })
    }

    /// Every topic with the ids of its queues.
    pub fn queues(&self) -> BTreeMap<String, Vec<i32>> {
        self.queues.names()
    }

    pub fn queues_of(&self, topic: &str) -> Vec<i32> {
        self.queues.queues_of(topic)
    }

    // ---- append ----------------------------------------------------------------------------------------------

    /// Encodes and appends consecutive records to the tail ring under one short lock; assigns physical and queue
    /// offsets and the store timestamp. All or nothing. No I/O: call [`Store::drive`] after it.
    pub fn append(&self, messages: &[PutMessage<'_>]) -> Result<Appended, PutError> {
        self.append_inner(0, messages, |_, _| {})
    }

    /// `append` with `prefix_len` bytes in front of the records, the whole within one segment. `fill` gets the prefix
    /// to write and the frame's position, under the append lock.
    pub fn append_frame(
        &self,
        prefix_len: usize,
        messages: &[PutMessage<'_>],
        fill: impl FnOnce(&mut [u8], u64),
    ) -> Result<Appended, PutError> {
        self.append_inner(prefix_len, messages, fill)
    }

    fn append_inner(
        &self,
        prefix_len: usize,
        messages: &[PutMessage<'_>],
        fill: impl FnOnce(&mut [u8], u64),
    ) -> Result<Appended, PutError> {
        let result = self
            .encode(messages)
            .and_then(|encoded| self.append_encoded(prefix_len, messages, encoded, fill));
        match &result {
            Ok(appended) => {
                self.counters
                    .put_times
                    .fetch_add(messages.len() as u64, Ordering::Relaxed);
                self.counters
                    .put_bytes
                    .fetch_add(appended.end - appended.phy_offset, Ordering::Relaxed);
            }
            Err(_) => {
                self.counters
                    .put_failed
                    .fetch_add(messages.len() as u64, Ordering::Relaxed);
            }
        }
        result
    }

    fn encode<'a>(
        &self,
        messages: &[PutMessage<'a>],
    ) -> Result<SmallVec<[Encoded<'a>; 4]>, PutError> {
        self.writable()?;
        let limit = self.config.max_message_size + record::RECORD_OVERHEAD;
        let mut encoded = SmallVec::with_capacity(messages.len());
        for message in messages {
            let topic = message.queue.topic();
            if topic.len() > record::MAX_TOPIC {
                return Err(PutError::TopicTooLong(topic.len()));
            }
            if message.properties.len() > record::MAX_PROPERTIES {
                return Err(PutError::PropertiesTooLong(message.properties.len()));
            }
            let body_limit = self.config.max_message_size;
            if message.body.len() > body_limit {
                return Err(PutError::MessageTooLarge {
                    size: message.body.len(),
                    limit: body_limit,
                });
            }
            let fields = Fields {
                topic,
                queue_id: message.queue.queue_id(),
                flag: message.flag,
                sys_flag: message.sys_flag,
                born_timestamp: message.born_timestamp,
                born_host: message.born_host,
                store_host: message.store_host,
                reconsume_times: message.reconsume_times,
                prepared_transaction_offset: message.prepared_transaction_offset,
                body: message.body,
                properties: message.properties,
            };
            let record = Encoded::new(&fields);
            let limit = limit.min((self.log.size() - END_FILE_MIN_BLANK) as usize);
            if record.size > limit {
                return Err(PutError::MessageTooLarge {
                    size: record.size,
                    limit,
                });
            }
            encoded.push(record);
        }
        Ok(encoded)
    }

    /// Flow control, before anything is changed: does `total` more fit?
    fn room(&self, appended: u64, total: u64) -> Result<(), PutError> {
        let written = self.written.load(Ordering::Acquire);
        if appended + total - written > self.ring.capacity() {
            return Err(PutError::Busy("the tail ring is full"));
        }
        let unflushed = written.saturating_sub(self.flushed.load(Ordering::Relaxed));
        if unflushed > self.config.max_unflushed_bytes {
            return Err(PutError::Busy("too much waits to be flushed"));
        }
        let undispatched =
            self.queues.unwritten() + self.index.as_ref().map_or(0, IndexService::pending);
        if undispatched > MAX_UNDISPATCHED {
            return Err(PutError::Busy("queues and index fall behind"));
        }
        Ok(())
    }

    fn append_encoded(
        &self,
        prefix_len: usize,
        messages: &[PutMessage<'_>],
        mut encoded: SmallVec<[Encoded<'_>; 4]>,
        fill: impl FnOnce(&mut [u8], u64),
    ) -> Result<Appended, PutError> {
        let total: u64 = prefix_len as u64 + encoded.iter().map(|e| e.size as u64).sum::<u64>();
        if prefix_len > 0 && total + END_FILE_MIN_BLANK > self.log.size() {
            let limit = (self.log.size() - END_FILE_MIN_BLANK) as usize;
            return Err(PutError::MessageTooLarge {
                size: total as usize,
                limit,
            });
        }
        let largest = encoded
            .iter()
            .map(|e| e.size as u64)
            .max()
            .unwrap_or(0)
            .max(if prefix_len > 0 { total } else { 0 });
        let index = self.index.is_some();
        let mut records = SmallVec::with_capacity(messages.len());

        let mut guard = self.append.lock();
        let state = &mut *guard;
        if self.scan_from.load(Ordering::Acquire) != u64::MAX {
            // A slave became master: once all it received is dispatched, queue offsets are assigned here.
            if self.confirm_offset() < state.tail.position {
                return Err(PutError::Busy("replicated records are not dispatched yet"));
            }
            self.scan_from.store(u64::MAX, Ordering::Release);
        }
        // A blank at most as long as the largest record may come in between (several segments cannot: see `open`).
        self.room(state.tail.position, total + largest + END_FILE_MIN_BLANK)?;
        // Never behind an earlier record, whatever the clock does: searches by time rely on it.
        let store_timestamp = self.clock.now_ms().max(state.last_timestamp);
        state.last_timestamp = store_timestamp;
        if prefix_len > 0 {
            self.roll(state, total);
            let mut prefix: SmallVec<[u8; 64]> = SmallVec::from_elem(0, prefix_len);
            fill(&mut prefix, state.tail.position);
            self.ring.push(&mut state.tail, &prefix);
        }
        let mut first = None;
        for (message, record) in messages.iter().zip(&mut encoded) {
            self.roll(state, record.size as u64);
            let phy_offset = state.tail.position;
            let queue_offset = if record.in_queue {
                message.queue.take_offset()
            } else {
                0
            };
            record.write(queue_offset, phy_offset, store_timestamp, |piece| {
                self.ring.push(&mut state.tail, piece)
            });
            let size = record.size as u32;
            let mut key_hashes = SmallVec::new();
            if index && record.indexed {
                let prefix = message.queue.key_prefix();
                if !message.unique_key.is_empty() {
                    key_hashes.push(record::index_hash(prefix, message.unique_key));
                }
                if !message.keys.is_empty() {
                    let words = message.keys.split(' ').filter(|k| !k.is_empty());
                    key_hashes.extend(words.map(|k| record::index_hash(prefix, k)));
                }
            }
            state.pending.push(Arrival {
                queue: message.queue.clone(),
                queue_offset,
                phy_offset,
                size,
                tags_code: match message.tags_code {
                    TagsCode::Hash(hash) => hash,
                    TagsCode::DelayMs(delay) => store_timestamp + delay,
                },
                store_timestamp,
                in_queue: record.in_queue,
                key_hashes,
            });
            records.push(AppendedRecord {
                phy_offset,
                queue_offset,
                size,
            });
            first.get_or_insert((phy_offset, queue_offset));
        }
        let end = state.tail.position;
        self.appended.store(end, Ordering::Release);
        drop(guard);
        let (phy_offset, queue_offset) = first.unwrap_or((end, 0));
        Ok(Appended {
            phy_offset,
            queue_offset,
            store_timestamp,
            end,
            records,
        })
    }

    /// Makes sure that `size` bytes and a blank record fit the segment; else fills it up and goes to the next.
    fn roll(&self, state: &mut AppendState, size: u64) {
        let rest = state.segment_end - state.tail.position;
        if size + END_FILE_MIN_BLANK <= rest {
            return;
        }
        let mut blank = [0; END_FILE_MIN_BLANK as usize];
        blank[..4].copy_from_slice(&(rest as i32).to_be_bytes());
        blank[4..].copy_from_slice(&BLANK_MAGIC.to_be_bytes());
        self.ring.push(&mut state.tail, &blank);
        const ZEROS: [u8; 4096] = [0; 4096];
        while state.tail.position < state.segment_end {
            let n = (state.segment_end - state.tail.position).min(ZEROS.len() as u64) as usize;
            self.ring.push(&mut state.tail, &ZEROS[..n]);
        }
        state.segment_end += self.log.size();
    }

    /// Bytes of another log at their own position, cut anywhere (HA stream). An empty store may begin anywhere that is
    /// the begin of a segment. Returns the new end. From then on queues and index follow the bytes themselves.
    pub fn append_raw(&self, position: u64, bytes: &[u8]) -> Result<u64, PutError> {
        self.writable()?;
        let mut state = self.append.lock();
        let end = state.tail.position;
        if position != end {
            return Err(PutError::WrongPosition { position, end });
        }
        self.room(end, bytes.len() as u64)?;
        if self.scan_from.load(Ordering::Acquire) == u64::MAX {
            if self.confirm_offset() < end {
                return Err(PutError::Busy("local appends are not dispatched yet"));
            }
            self.scan_from.store(end, Ordering::Release);
        }
        self.ring.push(&mut state.tail, bytes);
        let end = state.tail.position;
        state.segment_end = end - end % self.log.size() + self.log.size();
        self.appended.store(end, Ordering::Release);
        Ok(end)
    }

    // ---- write and dispatch ------------------------------------------------------------------------------------

    /// If nobody writes: writes all that is pending, dispatches it and calls the listeners. Else returns at once.
    pub fn drive(&self) {
        loop {
            // Pairs with the fence below: either our caller's append is seen by who writes now, or we get the lock.
            fence(Ordering::SeqCst);
            let Some(mut writer) = self.writer.try_lock() else {
                return;
            };
            while self.write_round(&mut writer) {}
            drop(writer);
            fence(Ordering::SeqCst);
            if !self.has_work() {
                return;
            }
        }
    }

    fn has_work(&self) -> bool {
        if self.poisoned.load(Ordering::Acquire) || self.stalled.load(Ordering::Acquire) {
            return false;
        }
        let written = self.written.load(Ordering::Acquire);
        self.appended.load(Ordering::Acquire) > written
            || (self.external_confirm.load(Ordering::Acquire)
                && self.confirm_limit.load(Ordering::Acquire).min(written)
                    > self.confirm.load(Ordering::Acquire))
    }

    /// One round of the writer; false if there was nothing to do.
    fn write_round(&self, writer: &mut WriterState) -> bool {
        if !self.has_work() {
            return false;
        }
        let written = self.written.load(Ordering::Acquire);
        let (end, timestamp) = {
            let mut state = self.append.lock();
            // After ENOSPC the batch of the failed round is still there: what follows is added behind it.
            if writer.batch.is_empty() {
                std::mem::swap(&mut writer.batch, &mut state.pending);
            } else {
                writer.batch.append(&mut state.pending);
            }
            (state.tail.position, state.last_timestamp)
        };
        if end > written {
            if let Err(error) = self.write(written, end) {
                self.write_failed(error);
                return false;
            }
            self.written_timestamp.store(timestamp, Ordering::Release);
            self.written.store(end, Ordering::Release);
        }
        if let Err(error) = self.dispatch(writer) {
            self.poison(format!("dispatch: {}", chain(&error)));
            return false;
        }
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
        self.wake_background(end);
        self.tell_watermarks();
        true
    }

    /// `pwritev` of `from..to` out of the ring, segment by segment.
    fn write(&self, mut from: u64, to: u64) -> Result<(), Error> {
        while from < to {
            let segment = self.log.ensure(from)?;
            let end = to.min(segment.end());
            self.write_target.store(end, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let _zeroing =
                (self.zeroing_from.load(Ordering::Relaxed) < end).then(|| self.zeroing.lock());
            let chunks = self.ring.cursor().chunks(from, end);
            while from < end {
                let mut slices: SmallVec<[IoSlice<'_>; 8]> = SmallVec::new();
                let mut at = from;
                for chunk in chunks.iter().filter(|c| c.end() > from).take(MAX_SLICES) {
                    let piece = chunk.slice(at, end);
                    at += piece.len() as u64;
                    slices.push(IoSlice::new(piece));
                }
                match self
                    .disk
                    .write_at(&segment.file, &slices, from - segment.base)
                {
                    Ok(0) => {
                        return Err(Error::io(
                            "write",
                            &segment.path,
                            io::ErrorKind::WriteZero.into(),
                        ));
                    }
                    Ok(n) => from += n as u64,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(Error::io("write", &segment.path, e)),
                }
            }
        }
        Ok(())
    }

    /// A full disk is waited out, with the bytes kept in the ring; anything else poisons.
    fn write_failed(&self, error: Error) {
        if let Error::Io { source, .. } = &error
            && matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            *self.disk_full.lock() = Some(chain(&error));
            self.is_disk_full.store(true, Ordering::Release);
            if !self.stalled.swap(true, Ordering::AcqRel) {
                tracing::error!(
                    error = chain(&error),
                    "the disk is full: writes are refused until there is room"
                );
            }
            self.tell_watermarks();
            return;
        }
        self.poison(chain(&error));
    }

    fn dispatch(&self, writer: &mut WriterState) -> Result<(), Error> {
        let written = self.written.load(Ordering::Acquire);
        let external = self.external_confirm.load(Ordering::Acquire);
        let limit = if external {
            self.confirm_limit.load(Ordering::Acquire).min(written)
        } else {
            written
        };
        let limit = limit.max(self.confirm.load(Ordering::Acquire));
        let mut confirm = limit;
        let scan_from = self.scan_from.load(Ordering::Acquire);
        let from_log = scan_from != u64::MAX;
        if from_log {
            confirm = self.arrivals_from_log(scan_from, limit, &mut writer.batch)?;
            self.scan_from.store(confirm, Ordering::Release);
        } else if external || !writer.unconfirmed.is_empty() {
            writer.unconfirmed.extend(writer.batch.drain(..));
            while let Some(next) = writer
                .unconfirmed
                .front()
                .filter(|a| a.phy_offset + u64::from(a.size) <= limit)
            {
                writer.batch.push(next.clone());
                writer.unconfirmed.pop_front();
            }
        }
        let mut hidden = false;
        for arrival in &writer.batch {
            hidden |= !arrival.in_queue;
            if arrival.in_queue {
                self.queues.push(
                    &arrival.queue,
                    arrival.queue_offset,
                    recovery::unit(arrival),
                )?;
                if from_log {
                    self.queues.follow(&arrival.queue);
                }
            }
        }
        if let Some(last) = writer.batch.last() {
            writer.last_phy = last.phy_offset;
        }
        if let Some(index) = &self.index
            && writer.batch.iter().any(|a| !a.key_hashes.is_empty())
        {
            let pending = index.submit(writer.batch.iter().flat_map(recovery::requests));
            if pending >= INDEX_WAKE {
                self.signals.dispatch.raise();
            }
        }
        self.confirm.store(confirm, Ordering::Release);
        if hidden {
            writer.batch.retain(|a| a.in_queue);
        }
        if !writer.batch.is_empty() {
            for listener in self.arrival_listeners.read().iter() {
                listener(&writer.batch);
            }
            writer.batch.clear();
        }
        Ok(())
    }

    /// Whole records of `from..limit`, read back; returns where the last one ends.
    fn arrivals_from_log(
        &self,
        from: u64,
        limit: u64,
        out: &mut Vec<Arrival>,
    ) -> Result<u64, Error> {
        let mut position = from;
        let mut bytes = Vec::new();
        while position + END_FILE_MIN_BLANK <= limit {
            bytes.clear();
            self.read_log(position, 8, &mut bytes)?;
            let rest = self.log.size() - position % self.log.size();
            match record::peek(&bytes) {
                Peek::Blank { size } if size as u64 == rest => {
                    // The padding may still be on its way.
                    if position + rest > limit {
                        break;
                    }
                    position += rest;
                }
                Peek::Record { size } if size as u64 <= rest => {
                    if position + size as u64 > limit {
                        break;
                    }
                    bytes.clear();
                    self.read_log(position, size, &mut bytes)?;
                    let Some(record) =
                        Record::parse(&bytes, true).filter(|r| r.phy_offset == position)
                    else {
                        return Err(Error::Damaged(format!(
                            "the bytes received at {position} are no record"
                        )));
                    };
                    out.extend(recovery::arrival(&self.queues, &record, &self.config)?);
                    position += size as u64;
                }
                _ => {
                    return Err(Error::Damaged(format!(
                        "the bytes received at {position} are no record"
                    )));
                }
            }
        }
        Ok(position)
    }

    fn wake_background(&self, end: u64) {
        let flushed = self.flushed.load(Ordering::Relaxed);
        let wanted = match self.config.flush {
            FlushDiskType::SyncFlush => end > flushed,
            FlushDiskType::AsyncFlush => {
                end.saturating_sub(flushed) >= self.config.write_back_bytes
            }
        };
        if wanted && !self.flush_wanted.swap(true, Ordering::AcqRel) {
            self.signals.flush.raise();
        }
        if self.queues.unwritten() >= UNITS_WAKE {
            self.signals.dispatch.raise();
        }
        if end + PREPARE_AHEAD / 2 > self.prepared.load(Ordering::Relaxed) {
            self.signals.prepare.raise();
        }
    }

    // ---- watermarks ----------------------------------------------------------------------------------------------

    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    pub fn confirm_offset(&self) -> u64 {
        self.confirm.load(Ordering::Acquire)
    }

    pub fn min_phy_offset(&self) -> u64 {
        self.log.min()
    }

    pub fn watermarks(&self) -> Watermarks {
        // Read from the lowest to the highest: each only rises, so the order holds in what is returned.
        let confirm = self.confirm_offset();
        let flushed = self.flushed();
        let written = self.written();
        let appended = self.appended();
        Watermarks {
            appended,
            written,
            flushed,
            confirm,
            poisoned: self.poisoned.load(Ordering::Acquire),
        }
    }

    /// The order of [`Watermarks`], asserted after each round of the writer in debug builds, and by tests.
    pub fn check_invariants(&self) {
        let w = self.watermarks();
        assert!(w.appended >= w.written, "{w:?}");
        assert!(w.written >= w.flushed, "{w:?}");
        assert!(w.written >= w.confirm, "{w:?}");
    }

    pub fn set_confirm(&self, confirm: Confirm) {
        self.confirm_limit
            .store(self.confirm_offset(), Ordering::Release);
        self.external_confirm
            .store(confirm == Confirm::External, Ordering::Release);
    }

    /// Records that end at or below `offset` become visible once they are written. Never goes back.
    pub fn advance_confirm(&self, offset: u64) {
        self.confirm_limit.fetch_max(offset, Ordering::AcqRel);
        self.drive();
    }

    /// Called after written, flushed or confirm advanced, or the store was poisoned; from any thread, must be short.
    pub fn on_watermark(&self, listener: WatermarkListener) {
        self.watermark_listeners.write().push(listener);
    }

    /// Called with each batch of records that became visible, before the watermark listener.
    pub fn on_arrival(&self, listener: ArrivalListener) {
        self.arrival_listeners.write().push(listener);
    }

    fn tell_watermarks(&self) {
        let watermarks = self.watermarks();
        for listener in self.watermark_listeners.read().iter() {
            listener(watermarks);
        }
    }

    /// Blocks until `flushed >= position` (true), or the store fails or the time is over (false).
    pub fn wait_flushed(&self, position: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        if self.flushed() < position && !self.flush_wanted.swap(true, Ordering::AcqRel) {
            self.signals.flush.raise();
        }
        let mut guard = self.flush_done.0.lock();
        while self.flushed() < position {
            if self.poisoned.load(Ordering::Acquire)
                || self
                    .flush_done
                    .1
                    .wait_until(&mut guard, deadline)
                    .timed_out()
            {
                return self.flushed() >= position;
            }
        }
        true
    }

    pub(crate) fn poison(&self, reason: String) {
        {
            let mut poison = self.poison.lock();
            if poison.is_none() {
                tracing::error!(
                    reason,
                    "the store is poisoned: it takes no more writes until a restart"
                );
                *poison = Some(reason);
            }
        }
        self.poisoned.store(true, Ordering::Release);
        let _guard = self.flush_done.0.lock();
        self.flush_done.1.notify_all();
        drop(_guard);
        self.tell_watermarks();
    }

    /// Why the store takes no writes until it is restarted.
    pub fn poisoned(&self) -> Option<String> {
        self.poison.lock().clone()
    }

    pub fn writable(&self) -> Result<(), NotWritable> {
        if self.closed.load(Ordering::Acquire) {
            return Err(NotWritable::Shutdown);
        }
        if self.poisoned.load(Ordering::Acquire) {
            return Err(NotWritable::Poisoned(self.poisoned().unwrap_or_default()));
        }
        if self.is_disk_full.load(Ordering::Acquire) {
            return Err(NotWritable::DiskFull(
                self.disk_full.lock().clone().unwrap_or_default(),
            ));
        }
        Ok(())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    // ---- background ----------------------------------------------------------------------------------------------

    /// Upstream `FlushRealTimeService`: a few pages are left until the thorough interval is over.
    fn flush_round(&self) {
        let wanted = self.flush_wanted.swap(false, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let waiting = self.written().saturating_sub(self.flushed());
        if !wanted
            && self.config.flush == FlushDiskType::AsyncFlush
            && waiting < u64::from(self.config.flush_least_pages) * 4096
            && self.last_flush.lock().elapsed() < self.config.flush_thorough_interval
        {
            return;
        }
        *self.last_flush.lock() = Instant::now();
        loop {
            let (written, flushed) = (self.written(), self.flushed());
            if written <= flushed || self.poisoned.load(Ordering::Acquire) {
                return;
            }
            self.flush_to_disk();
            // Back to back as long as there is something, but under ASYNC_FLUSH only when much waits.
            let more = self.written().saturating_sub(self.flushed());
            if more == 0
                || (self.config.flush == FlushDiskType::AsyncFlush
                    && more < self.config.write_back_bytes)
            {
                return;
            }
        }
    }

    /// `fdatasync` of all that is written now. On failure the store is poisoned: the kernel may have dropped the pages.
    fn flush_to_disk(&self) {
        let flushing = self.flushing.lock();
        let timestamp = self.written_timestamp.load(Ordering::Acquire);
        let target = self.written();
        let mut from = self.flushed();
        while from < target {
            let Some(segment) = self.log.at(from) else {
                // Below the first segment: retention took it.
                from = self.log.min().max(from + 1);
                continue;
            };
            let result = self
                .disk
                .sync_data(&segment.file)
                .and_then(|()| self.log.sync_entry(&segment));
            if let Err(e) = result {
                self.poison(format!("fdatasync {}: {e}", segment.path.display()));
                return;
            }
            from = segment.end();
        }
        self.flushed_timestamp.store(timestamp, Ordering::Release);
        self.flushed.fetch_max(target, Ordering::AcqRel);
        drop(flushing);
        {
            let _guard = self.flush_done.0.lock();
            self.flush_done.1.notify_all();
        }
        self.tell_watermarks();
    }

    fn dispatch_round(&self) {
        if let Err(error) = self.save_offsets(false) {
            self.background_failed(error);
        }
    }

    /// Queues and index keep what could not be written in memory, so a full disk is waited out here too.
    pub(crate) fn background_failed(&self, error: Error) {
        if let Error::Io { source, .. } = &error
            && matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            *self.disk_full.lock() = Some(chain(&error));
            self.is_disk_full.store(true, Ordering::Release);
            return;
        }
        self.poison(chain(&error));
    }

    /// Writes queues and index, and then what is thereby known.
    fn save_offsets(&self, last: bool) -> Result<(), Error> {
        let mut state = self.checkpoint.lock();
        let (dispatched, last_phy, timestamp) = {
            let writer = self.writer.lock();
            (
                self.confirm_offset(),
                writer.last_phy,
                self.written_timestamp.load(Ordering::Acquire),
            )
        };
        // Whoever came while the lock was ours left his work to us.
        self.drive();
        self.queues.write_dirty(self.ring.oldest())?;
        if let Some(index) = &self.index {
            index.write()?;
        }
        let changed = dispatched != state.offsets.dispatched
            || state.offsets.queues != self.queues.count_on_disk() as u64;
        let behind = dispatched.saturating_sub(state.synced_dispatch);
        let sync = last
            || (behind > 0
                && (state.last_sync.elapsed() >= SYNC_INTERVAL || behind >= OFFSETS_BYTES));
        if !changed && !sync {
            return Ok(());
        }
        let mut reached = None;
        if sync {
            reached = Some(self.queues.reached());
            self.queues.sync()?;
            if let Some(index) = &self.index {
                index.sync()?;
            }
            state.last_sync = Instant::now();
            state.synced_dispatch = dispatched;
        }
        let flushed = self.flushed();
        let checkpoint = &mut state.offsets.checkpoint;
        let flushed_timestamp = self.flushed_timestamp.load(Ordering::Acquire);
        checkpoint.physic_msg_timestamp = checkpoint.physic_msg_timestamp.max(flushed_timestamp);
        if sync {
            checkpoint.logics_msg_timestamp = checkpoint.logics_msg_timestamp.max(timestamp);
        }
        if let Some(index) = &self.index {
            checkpoint.index_msg_timestamp =
                checkpoint.index_msg_timestamp.max(index.sealed_timestamp());
        }
        checkpoint.confirm_phy_offset = 0;
        state.offsets.dispatched = dispatched;
        state.offsets.synced = state.synced_dispatch.min(flushed);
        state.offsets.last_phy = last_phy;
        state.offsets.queues = self.queues.count_on_disk() as u64;
        state.offsets.index_last_phy = self
            .index
            .as_ref()
            .and_then(IndexService::last_phy)
            .unwrap_or(u64::MAX);
        let path = self.config.root.join("checkpoint");
        state
            .files
            .write(&state.offsets)
            .map_err(|e| Error::io("write", &path, e))?;
        if let Some(reached) = reached {
            let table = self.config.root.join(QUEUE_TABLE);
            queue_table::write(&table, &reached).map_err(|e| Error::io("write", table, e))?;
        }
        if sync {
            state
                .files
                .sync()
                .map_err(|e| Error::io("sync", &path, e))?;
        }
        Ok(())
    }

    /// Keeps blocks ready in front of the writer: zeroed under SYNC_FLUSH (a sync of blocks once written costs half),
    /// else allocated. Only a hint: failures are left to the writer to meet.
    fn prepare_round(&self) {
        loop {
            let written = self.written();
            let prepared = self.prepared.load(Ordering::Relaxed);
            let from = match self.config.flush {
                FlushDiskType::SyncFlush => prepared.max(written + PREPARE_MARGIN),
                FlushDiskType::AsyncFlush => prepared.max(written),
            };
            // Blocks are prepared whole, so steps keep to their own borders.
            let from = if from == prepared {
                from
            } else {
                from.next_multiple_of(4096)
            };
            if from >= written + PREPARE_AHEAD
                || self.signals.stop.load(Ordering::Acquire)
                || self.writable().is_err()
            {
                return;
            }
            let size = self.log.size();
            if from >= written - written % size + 2 * size {
                return;
            }
            let Ok(segment) = self.log.ensure(from) else {
                return;
            };
            let to = (from + PREPARE_STEP)
                .min(segment.end())
                .min(written + PREPARE_AHEAD);
            let done = match self.config.flush {
                FlushDiskType::AsyncFlush => {
                    crate::platform::reserve(&segment.file, from - segment.base, to - from)
                }
                FlushDiskType::SyncFlush => self.zero_ahead(&segment, from, to),
            };
            self.prepared.store(to, Ordering::Relaxed);
            if !done {
                return;
            }
        }
    }

    /// Writes zeros over `from..to` unless the writer is there already.
    fn zero_ahead(&self, segment: &crate::segment::Segment, from: u64, to: u64) -> bool {
        const PIECE: u64 = 1 << 20;
        let zeros = vec![0; PIECE as usize];
        let mut at = from;
        while at < to {
            let _zeroing = self.zeroing.lock();
            self.zeroing_from.store(at, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let end = to.min(at + PIECE);
            let free = self.write_target.load(Ordering::Relaxed) <= at;
            let result = if free {
                crate::disk::write_all_at(
                    &*self.disk,
                    &segment.file,
                    &zeros[..(end - at) as usize],
                    at - segment.base,
                )
            } else {
                Err(io::ErrorKind::Other.into())
            };
            self.zeroing_from.store(u64::MAX, Ordering::Release);
            if result.is_err() {
                return false;
            }
            at = end;
        }
        // Out to the disk now, in the background, rather than within somebody's group commit.
        segment.file.sync_data().is_ok()
    }

    fn clean_round(&self) {
        if self.stalled.swap(false, Ordering::AcqRel) {
            // Try what failed for want of room; if it fails again it sets both marks again.
            self.drive();
        }
        self.check_disk();
        let due = self
            .last_clean
            .lock()
            .is_none_or(|last| last.elapsed() >= self.config.clean_resource_interval);
        if due || self.delete_now.load(Ordering::Acquire) {
            self.retention_round();
            *self.last_clean.lock() = Some(Instant::now());
        }
    }

    // ---- other logs' needs -----------------------------------------------------------------------------------------

    /// Drops everything from `position`, a record border, on: log, queues, what is pending.
    pub fn truncate_to(&self, position: u64) -> Result<(), Error> {
        self.flush_all_written();
        let _flushing = self.flushing.lock();
        let mut checkpoint = self.checkpoint.lock();
        let mut writer = self.writer.lock();
        let mut state = self.append.lock();
        let end = state.tail.position;
        if position > end || position < self.log.min() {
            return Err(Error::Invalid(format!(
                "cannot truncate to {position}: the log holds {}..{end}",
                self.log.min()
            )));
        }
        if let Some(reason) = self.poisoned() {
            return Err(NotWritable::Poisoned(reason).into());
        }
        self.queues.write_dirty(self.ring.oldest())?;
        if let Some(index) = &self.index {
            index.write()?;
        }
        state.pending.clear();
        writer.batch.clear();
        writer.unconfirmed.retain(|a| a.phy_offset < position);
        // Queues first: a crash in between leaves a log that is longer than they are, which recovery mends.
        forget_table(&self.config)?;
        let last_phy = self.queues.truncate_to(position)?.unwrap_or(u64::MAX);
        if let Some(index) = &self.index {
            index.truncate_to(position)?;
        }
        for mark in [
            &self.confirm,
            &self.confirm_limit,
            &self.flushed,
            &self.written,
            &self.appended,
        ] {
            mark.fetch_min(position, Ordering::AcqRel);
        }
        if self.scan_from.load(Ordering::Acquire) != u64::MAX {
            self.scan_from.fetch_min(position, Ordering::AcqRel);
        }
        writer.last_phy = last_phy;
        state.tail = self.ring.reset(position);
        state.segment_end = position - position % self.log.size() + self.log.size();
        self.prepared.store(position, Ordering::Relaxed);
        self.write_target.store(position, Ordering::Relaxed);
        self.log.cut(position)?;
        // What was known about the log beyond `position` no longer holds.
        checkpoint.offsets.dispatched = self.confirm_offset();
        checkpoint.offsets.synced = 0;
        checkpoint.synced_dispatch = 0;
        checkpoint.offsets.last_phy = last_phy;
        checkpoint.offsets.queues = self.queues.count_on_disk() as u64;
        checkpoint.offsets.index_last_phy = self
            .index
            .as_ref()
            .and_then(IndexService::last_phy)
            .unwrap_or(u64::MAX);
        let path = self.config.root.join("checkpoint");
        checkpoint.offsets.checkpoint.logics_msg_timestamp = 0;
        checkpoint
            .files
            .write(&checkpoint.offsets)
            .map_err(|e| Error::io("write", path, e))
    }

    /// An empty store begins its log at `position`, the begin of a segment (a slave that copies from the middle).
    pub fn start_at(&self, position: u64) -> Result<(), Error> {
        let _writer = self.writer.lock();
        let mut state = self.append.lock();
        if self.log.last_end() > self.log.min() && state.tail.position != self.log.min() {
            return Err(Error::Invalid(format!(
                "the log holds {}..{}",
                self.log.min(),
                state.tail.position
            )));
        }
        if !position.is_multiple_of(self.log.size()) {
            return Err(Error::Invalid(format!(
                "{position} is not the begin of a segment of {} bytes",
                self.log.size()
            )));
        }
        self.log.clear(position)?;
        for mark in [
            &self.confirm,
            &self.confirm_limit,
            &self.flushed,
            &self.written,
            &self.appended,
            &self.prepared,
            &self.write_target,
        ] {
            mark.store(position, Ordering::Release);
        }
        self.queues.set_log_end(position);
        state.tail = self.ring.reset(position);
        state.segment_end = position + self.log.size();
        Ok(())
    }

    /// Raw log bytes from `position` up to `written`, never across a segment, padding as zeros; returns how many were
    /// appended to `out`.
    pub fn read_range(&self, position: u64, max: usize, out: &mut Vec<u8>) -> Result<usize, Error> {
        let written = self.written();
        if position < self.log.min() || position > written {
            return Err(Error::Invalid(format!(
                "{position} is not within {}..{written}",
                self.log.min()
            )));
        }
        let segment_end = position - position % self.log.size() + self.log.size();
        let len = (written.min(segment_end) - position).min(max as u64) as usize;
        self.read_log(position, len, out)?;
        Ok(len)
    }

    /// Exactly `len` bytes below `appended` from ring or file.
    pub(crate) fn read_log(
        &self,
        position: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let start = out.len();
        if self
            .ring
            .cursor()
            .read(position, position + len as u64, |piece| {
                out.extend_from_slice(piece)
            })
        {
            return Ok(());
        }
        out.truncate(start);
        out.resize(start + len, 0);
        let n = self
            .log
            .read(position, &mut out[start..])
            .map_err(|e| Error::io("read", self.log.dir(), e))?;
        if n < len {
            out.truncate(start);
            return Err(Error::Invalid(format!(
                "{len} bytes at {position} are not in the log"
            )));
        }
        Ok(())
    }

    // ---- topics, figures, end ----------------------------------------------------------------------------------------

    /// Removes the queues of a topic; its records stay in the log until retention takes them.
    pub fn delete_topic(&self, topic: &str) -> Result<(), Error> {
        // First nothing is claimed of the queues any more: a crash in between must not call them missing.
        self.save_offsets(false)?;
        let mut checkpoint = self.checkpoint.lock();
        checkpoint.offsets.queues = 0;
        let path = self.config.root.join("offsets");
        checkpoint
            .files
            .write(&checkpoint.offsets)
            .map_err(|e| Error::io("write", path, e))?;
        forget_table(&self.config)?;
        self.queues.delete_topic(topic)
    }

    /// Removes the queues of every topic that `keep` does not name; returns those topics.
    pub fn clean_unused_topics(&self, keep: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut removed = Vec::new();
        for topic in self.queues.names().into_keys().filter(|t| !keep(t)) {
            match self.delete_topic(&topic) {
                Ok(()) => removed.push(topic),
                Err(error) => tracing::warn!(topic, %error, "an unused topic could not be removed"),
            }
        }
        removed
    }

    pub fn runtime_figures(&self) -> RuntimeFigures {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let log = crate::retention::disk_usage(self.log.dir());
        let queues = crate::retention::disk_usage(&self.config.root);
        let written = self.written();
        RuntimeFigures {
            commit_log_disk_ratio: log.ratio(),
            consume_queue_disk_ratio: queues.ratio(),
            disk_total_bytes: log.total,
            disk_free_bytes: log.free,
            dispatch_behind_bytes: written - self.confirm_offset().min(written),
            put_message_times: count(&self.counters.put_times),
            put_message_bytes: count(&self.counters.put_bytes),
            put_message_failed_times: count(&self.counters.put_failed),
            get_found_times: count(&self.counters.get_found),
            get_miss_times: count(&self.counters.get_miss),
            get_transferred_messages: count(&self.counters.get_messages),
            unflushed_bytes: written - self.flushed().min(written),
            queues: self.queues.count(),
            ring_bytes: self.ring.bytes(),
            boot_timestamp: self.boot_timestamp,
            recovered_records: self.recovered_records,
        }
    }

    fn flush_all_written(&self) {
        self.drive();
        while self.flushed() < self.written() && !self.poisoned.load(Ordering::Acquire) {
            self.flush_to_disk();
        }
    }

    /// Drains, flushes everything, joins the threads, removes `abort`. Later writes are refused; calling it again does
    /// nothing.
    pub fn shutdown(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.stop_threads();
        // One who is writing finishes before the lock is ours.
        while self.has_work() {
            let mut writer = self.writer.lock();
            while self.write_round(&mut writer) {}
        }
        self.flush_all_written();
        if !self.poisoned.load(Ordering::Acquire) {
            match self.save_offsets(true) {
                Ok(()) if self.written() == self.appended() => {
                    // A Java broker then trusts what it finds.
                    if let Err(error) = fs::remove_file(abort_file(&self.config)) {
                        tracing::warn!(%error, "the abort file could not be removed");
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::error!(error = chain(&error), "the last offsets could not be saved")
                }
            }
        }
        *self.root_lock.lock() = None;
    }

    fn stop_threads(&self) {
        self.signals.stop.store(true, Ordering::Release);
        for signal in [
            &self.signals.flush,
            &self.signals.dispatch,
            &self.signals.prepare,
            &self.signals.clean,
        ] {
            signal.raise();
        }
        let current = std::thread::current().id();
        for handle in std::mem::take(&mut *self.threads.lock()) {
            if handle.thread().id() != current {
                let _ = handle.join();
            }
        }
    }
}

impl Drop for Store {
    /// Without `shutdown` before, the files stay as `kill -9` would leave them.
    fn drop(&mut self) {
        self.stop_threads();
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn forget_table(config: &StoreConfig) -> Result<(), Error> {
    let table = config.root.join(QUEUE_TABLE);
    queue_table::remove(&table).map_err(|e| Error::io("remove", table, e))
}

fn abort_file(config: &StoreConfig) -> PathBuf {
    config.root.join("abort")
}

fn lock(root: &std::path::Path) -> Result<RootLock, Error> {
    use rustix::fs::FlockOperation::NonBlockingLockExclusive;
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    // flock keeps out a second store of this process, the record lock a Java broker (FileChannel.tryLock).
    for result in [
        rustix::fs::flock(&file, NonBlockingLockExclusive),
        rustix::fs::fcntl_lock(&file, NonBlockingLockExclusive),
    ] {
        match result {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::ACCESS) => {
                return Err(Error::Locked(root.to_owned()));
            }
            Err(e) => return Err(Error::io("lock", path, e.into())),
        }
    }
    file.write_all(b"lock")
        .map_err(|e| Error::io("write", &path, e))?;
    Ok(RootLock(file))
}

/// A quarter of what the process may open is the queues' share; connections need most of the rest.
fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(65_536);
    usize::try_from(limit / 4)
        .unwrap_or(16_384)
        .clamp(64, 16_384)
}
