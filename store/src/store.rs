//! The store: one append lock, one writer at a time, watermarks, background threads.
//!
//! A batch gets its offsets and is copied into the tail ring under the append lock (`append`). Whoever then finds no
//! active writer writes all that is pending (`drive`); the others go on with their work. What is written is dispatched
//! to queues and index before `written`'s listeners hear of it, so whoever waits for its own answer also finds its
//! message. See [`Watermarks`] for the order that always holds.

mod append;
mod background;
mod framed;
mod replication;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use smallvec::SmallVec;

use crate::checkpoint::{CheckpointFiles, Offsets, boot_id, is_same_boot};
use crate::clock::Clock;
use crate::config::{FlushDiskType, StoreConfig};
use crate::consume_queue::{ConsumeQueue, ConsumeQueues};
use crate::disk::{Disk, RealDisk};
use crate::error::{Error, NotWritable, PutError};
use crate::flush_mark::FlushMark;
use crate::frame::{EntryId, FRAME_HEADER, Frame, FrameStamp, FrameTable, begins_frame};
use crate::get::ColdReaders;
use crate::handover::Handover;
use crate::index_file::{IndexService, Stop, index_dir};
use crate::live::Live;
use crate::put::{Appended, AppendedRecord, Arrival, PutMessage, TagsCode};
use crate::queue_table;
use crate::record::{self, BLANK_MAGIC, END_FILE_MIN_BLANK, Encoded, Fields, Peek, Record};
use crate::recovery::{self, QUEUE_TABLE};
use crate::ring::{CHUNK, Ring, RingTail};
use crate::segment::Segments;
use crate::signal::{Signal, Wanted};

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
/// A clock that is set back by up to this much is waited for.
const MAX_CLOCK_STEP_BACK_MS: i64 = 60_000;
/// Rounds that one caller of `drive` writes for all.
const MAX_ROUNDS: usize = 16;
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

/// How the broker that had this store before ended, as far as its files tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastStop {
    /// In an orderly way, or there was none: everything written is here.
    Clean,
    /// Its process died, the machine did not: everything written is here.
    Killed,
    /// The machine went down too, or nobody can tell: what was not flushed may be missing.
    PowerLost,
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
    /// Appends are entries of this term, while it is open (a log of frames).
    gate: Option<u64>,
    /// A frame is put together here before it enters the ring.
    frame: Vec<u8>,
}

/// Of the one who writes.
struct WriterState {
    batch: Vec<Arrival>,
    /// Written but not confirmed (`Confirm::External`).
    unconfirmed: VecDeque<Arrival>,
    last_phy: u64,
}

#[derive(Default)]
struct Signals {
    write: Signal,
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
    /// Of a log of frames.
    pub(crate) frames: Option<FrameTable>,
    /// Of a log of frames: counts the entries that `append` makes.
    frame_stamp: OnceLock<Arc<dyn FrameStamp>>,
    pub(crate) queues: ConsumeQueues,
    pub(crate) index: Option<IndexService>,
    pub(crate) ring: Ring,
    append: Mutex<AppendState>,
    writer: Handover<WriterState>,
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
    flush_wanted: Wanted,
    flush_done: (Mutex<()>, Condvar),
    /// Held from reading `written` to raising `flushed`; a truncation must not come in between.
    flushing: Mutex<()>,
    flush_mark: FlushMark,
    /// What a former life in this run of the kernel wrote ends here: below, what is not flushed is written once more
    /// before it is synced.
    inherited: AtomicU64,
    arrival_listeners: RwLock<Vec<ArrivalListener>>,
    watermark_listeners: RwLock<Vec<WatermarkListener>>,
    poison: Mutex<Option<String>>,
    poisoned: AtomicBool,
    /// The disk is full by ratio (set by the cleaner) or by ENOSPC (cleared by a write that succeeds).
    pub(crate) disk_full: Mutex<Option<String>>,
    pub(crate) is_disk_full: AtomicBool,
    stalled: AtomicBool,
    /// Only segments in front of this go. In a log of frames: where an entry that stays, whatever happens, ends.
    pub(crate) deletable: AtomicU64,
    closed: AtomicBool,
    pub(crate) delete_now: AtomicBool,
    last_clean: Mutex<Option<Instant>>,
    last_flush: Mutex<Instant>,
    pub(crate) cold_readers: ColdReaders,
    pub(crate) counters: Counters,
    pub(crate) memory_bytes: u64,
    boot_timestamp: i64,
    recovered_records: u64,
    last_stop: LastStop,
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
        crate::kinds::refuse_other_mode(&config)?;
        let (flush_mark, noted) = FlushMark::open(&root)?;
        let failed = noted.is_some_and(|noted| noted.failed);
        let clean = !abort_file(&config).exists() && !failed;
        if failed {
            // Queues and index are made anew from what is on disk, as after a power cut.
            for folder in [root.join("consumequeue"), index_dir(&root)] {
                crate::flush_mark::forget_cached(&folder, &*disk)
                    .map_err(|e| Error::io("read", folder, e))?;
            }
        }
        let log = Arc::new(Segments::open(
            config.commit_log_dir(),
            config.segment_size,
            disk.clone(),
        )?);
        let compacted = match config.frames {
            Some(_) => Some(crate::frame::prepare(&log)?),
            None => None,
        };
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
        let (files, checkpoint, mut own) = CheckpointFiles::open(&root)?;
        if let Some(own) = own.as_mut().filter(|_| failed) {
            // The machine is up, but what was not synced may be gone from the page cache just as well.
            own.boot_id = [0; 16];
        }
        let last_stop = match &own {
            _ if clean => LastStop::Clean,
            Some(own) if is_same_boot(&own.boot_id) => LastStop::Killed,
            // A process that died within its first moments wrote no offsets yet.
            _ if began_in_this_boot(&config) && !failed => LastStop::Killed,
            _ => LastStop::PowerLost,
        };
        let stop = match &own {
            _ if clean => Stop::Clean,
            Some(own) if !is_same_boot(&own.boot_id) => Stop::PowerLost(own.synced),
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
        if !clean {
            queues.distrust_files();
        }
        // After a crash the tail may be in the page cache only: the flusher's first round settles it.
        let bound = config.max_unflushed_bytes + config.tail_ring_bytes as u64;
        let flushed = match noted {
            _ if clean => end,
            // Older than a crash of ours can leave it: another broker went on with this log.
            Some(noted) if config.frames.is_none() => {
                noted.flushed.max(end.saturating_sub(bound)).min(end)
            }
            Some(noted) => noted.flushed.min(end),
            // Who counts copies must not count one that a power cut would take.
            None if config.frames.is_some() => 0,
            None => end.saturating_sub(config.max_unflushed_bytes / 2),
        };
        let flushed = flushed.max(log.min().min(end));
        flush_mark.begin(flushed)?;
        let flushed = if failed {
            log.rewrite_and_sync(flushed, end)?;
            end
        } else {
            flushed
        };
        let inherited = if clean || noted.is_none() { 0 } else { end };
        let frames = match compacted {
            Some(compacted) => Some(FrameTable::open(log.clone(), compacted, end)?),
            None => None,
        };
        let mut checkpoint = checkpoint;
        if recovered.queues_rebuilt {
            // Neither for us nor for a Java broker are queues on disk up to that time now.
            checkpoint.logics_msg_timestamp = 0;
            let offsets = Offsets {
                checkpoint,
                ..Offsets::default()
            };
            files
                .write(&offsets)
                .and_then(|()| files.sync())
                .map_err(|e| Error::io("write", root.join("checkpoint"), e))?;
        }
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
        // After a power loss nothing says so before those who count on it know: they may die as well.
        let boot = match last_stop {
            LastStop::PowerLost => None,
            LastStop::Clean | LastStop::Killed => Some(boot_id()),
        };
        note_running(&config, boot, &*disk)
            .map_err(|e| Error::io("create", abort_file(&config), e))?;

        let ring_bytes = config
            .tail_ring_bytes
            .max(4 * (config.max_message_size + record::RECORD_OVERHEAD) + CHUNK);
        let (ring, tail) = Ring::new(ring_bytes, end);
        let segment_end = end - end % log.size() + log.size();
        let last_timestamp = recovered.last_store_timestamp.unwrap_or(0);
        let now = clock.now_ms();
        let offsets = Offsets {
            checkpoint,
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
                gate: None,
                frame: Vec::new(),
            }),
            writer: Handover::new(WriterState {
                batch: Vec::new(),
                unconfirmed: VecDeque::new(),
                last_phy: recovered.last_phy.unwrap_or(u64::MAX),
            }),
            appended: AtomicU64::new(end),
            written: AtomicU64::new(end),
            flushed: AtomicU64::new(flushed),
            confirm: AtomicU64::new(recovered.confirm),
            external_confirm: AtomicBool::new(frames.is_some()),
            confirm_limit: AtomicU64::new(recovered.confirm),
            scan_from: AtomicU64::new(match frames {
                Some(_) => recovered.confirm,
                None => u64::MAX,
            }),
            written_timestamp: AtomicI64::new(last_timestamp),
            flushed_timestamp: AtomicI64::new(0),
            write_target: AtomicU64::new(end),
            zeroing_from: AtomicU64::new(u64::MAX),
            zeroing: Mutex::new(()),
            prepared: AtomicU64::new(end),
            flush_wanted: Wanted::new(),
            flush_done: (Mutex::new(()), Condvar::new()),
            flushing: Mutex::new(()),
            flush_mark,
            inherited: AtomicU64::new(inherited),
            arrival_listeners: RwLock::new(Vec::new()),
            watermark_listeners: RwLock::new(Vec::new()),
            poison: Mutex::new(None),
            poisoned: AtomicBool::new(false),
            disk_full: Mutex::new(None),
            is_disk_full: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            deletable: AtomicU64::new(if frames.is_some() { 0 } else { u64::MAX }),
            closed: AtomicBool::new(false),
            delete_now: AtomicBool::new(false),
            last_clean: Mutex::new(None),
            last_flush: Mutex::new(Instant::now()),
            cold_readers: ColdReaders::default(),
            counters: Counters::default(),
            memory_bytes: crate::platform::memory_bytes().unwrap_or(ASSUMED_MEMORY_BYTES),
            boot_timestamp: now,
            recovered_records: recovered.records,
            last_stop,
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
            frames,
            frame_stamp: OnceLock::new(),
            queues,
            index,
            ring,
        });
        store.check_disk();
        store.start_threads()?;
        store.flush_wanted.ask(&store.signals.flush);
        Ok(store)
    }

    fn start_threads(self: &Arc<Self>) -> Result<(), Error> {
        let interval = self.config.flush_interval.max(Duration::from_millis(1));
        self.thread(
            "store-write",
            |s| &s.write,
            Duration::from_secs(1),
            |store| {
                store.drive_rounds(usize::MAX);
            },
        )?;
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

    /// Debug builds assert the order of [`Watermarks`] wherever one of them moves. The caller keeps truncations away, which move them back.
    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// Asserts the order of [`Watermarks`].
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
        if self.flushed() < position {
            self.flush_wanted.ask(&self.signals.flush);
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
        self.flush_mark.failed();
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

    /// Whether appends to the queues of a topic that somebody holds are refused: of what is appended next, it is known what
    /// lies in front of it. Deleted queues are made anew as ones that take records.
    pub fn refuse_topic(&self, topic: &str, refused: bool) {
        self.queues.refuse_topic(topic, refused);
    }

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
                    self.flush_mark.synced(self.flushed());
                    // A Java broker then trusts what it finds.
                    if let Err(error) = fs::remove_file(abort_file(&self.config)) {
                        tracing::warn!(%error, "the abort file could not be removed");
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::error!(error = chain(&error), "the last offsets could not be saved");
                    self.background_failed(error);
                }
            }
        }
        *self.root_lock.lock() = None;
    }

    fn stop_threads(&self) {
        self.signals.stop.store(true, Ordering::Release);
        for signal in [
            &self.signals.write,
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
pub fn chain(error: &dyn std::error::Error) -> String {
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

/// The process, as upstream, and on a line of its own in which run of the kernel it began.
fn abort_text(boot: Option<[u8; 16]>) -> String {
    let process = std::process::id();
    match boot {
        Some(boot) => format!("{process}\n{:032x}\n", u128::from_be_bytes(boot)),
        None => process.to_string(),
    }
}

/// On disk before anything is taken: a power cut must not look like the orderly stop before it. The file is what counts;
/// where there is no room for what it says, the worst is taken for true.
fn note_running(config: &StoreConfig, boot: Option<[u8; 16]>, disk: &dyn Disk) -> io::Result<()> {
    let file = File::create(abort_file(config))?;
    match (&file).write_all(abort_text(boot).as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::StorageFull => file.set_len(0)?,
        other => other?,
    }
    disk.sync_data(&file)?;
    disk.sync_data(&File::open(&config.root)?)
}

fn began_in_this_boot(config: &StoreConfig) -> bool {
    let text = fs::read_to_string(abort_file(config)).unwrap_or_default();
    text.lines()
        .nth(1)
        .and_then(|line| u128::from_str_radix(line, 16).ok())
        .is_some_and(|boot| is_same_boot(&boot.to_be_bytes()))
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
