//! ConsumeQueue: per queue a row of 20-byte units that point into the CommitLog.
//!
//! Units live in memory until the background thread writes them to their sparse files of full length, and stay there
//! as long as the records they point to are in the tail ring. Files are never mapped; descriptors come from a bounded
//! cache. Folders are listed at start, but a queue's files are read only when the queue is first used.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::disk::{Disk, read_full_at, write_all_at, zero_from};
use crate::error::Error;
use crate::queue_table::{Extent, Queues};
use crate::record::{self, Peek, Record};
use crate::segment::{Segments, file_name, numbered_files};

pub(crate) const UNIT: usize = 20;
/// Size of the units that upstream puts in front of the first real one of a file (`ConsumeQueue.fillPreBlank`).
const FILLER_SIZE: i32 = i32::MAX;
/// Files whose length is looked at to learn what length they have.
const SIZE_SAMPLES: usize = 64;
/// What a disk writes in one piece, and a power cut takes or leaves.
const PAGE: usize = 4096;
/// Below this many dirty files each is synced by itself; above, one `syncfs` is far cheaper (0.37 s for 10,000).
const SYNCFS_FROM: usize = 64;

/// | physicalOffset 8 | size 4 | tagsCode 8 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CqUnit {
    pub(crate) phy_offset: i64,
    pub(crate) size: i32,
    pub(crate) tags_code: i64,
}

impl CqUnit {
    pub(crate) const FILLER: Self = Self {
        phy_offset: 0,
        size: FILLER_SIZE,
        tags_code: 0,
    };

    pub(crate) fn encode(self) -> [u8; UNIT] {
        let mut bytes = [0; UNIT];
        bytes[..8].copy_from_slice(&self.phy_offset.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_be_bytes());
        bytes[12..].copy_from_slice(&self.tags_code.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            phy_offset: record::i64_at(bytes, 0)?,
            size: record::i32_at(bytes, 8)?,
            tags_code: record::i64_at(bytes, 12)?,
        })
    }

    pub(crate) fn is_written(self) -> bool {
        self.phy_offset >= 0 && self.size > 0
    }

    pub(crate) fn is_filler(self) -> bool {
        self.size == FILLER_SIZE
    }

    fn end(self) -> u64 {
        if self.is_filler() {
            0
        } else {
            self.phy_offset.saturating_add(i64::from(self.size)).max(0) as u64
        }
    }
}

/// One queue of a topic.
pub struct ConsumeQueue {
    topic: Box<str>,
    queue_id: i32,
    /// Java hash of `topic#`, with which every index key begins.
    key_prefix: i32,
    id: u64,
    dir: PathBuf,
    /// Next offset to be assigned; only the holder of the append lock (or recovery) changes it.
    next: AtomicI64,
    min: AtomicI64,
    /// min <= max <= next.
    max: AtomicI64,
    /// Waits in the list of queues with units to write.
    dirty: AtomicBool,
    deleted: AtomicBool,
    /// Takes no records: its topic is about to be deleted.
    refused: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Units `tail_start..max`.
    tail: VecDeque<CqUnit>,
    tail_start: i64,
    /// Units below this are on file; tail_start <= written unless the queue is empty.
    written: i64,
    /// Byte positions at which the files begin, sorted.
    files: Vec<u64>,
}

impl ConsumeQueue {
    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn queue_id(&self) -> i32 {
        self.queue_id
    }

    /// First offset that can be read.
    pub fn min_offset(&self) -> i64 {
        self.min.load(Ordering::Acquire).min(self.max_offset())
    }

    /// Next offset to become visible.
    pub fn max_offset(&self) -> i64 {
        self.max.load(Ordering::Acquire)
    }

    pub(crate) fn key_prefix(&self) -> i32 {
        self.key_prefix
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Only under the append lock.
    pub(crate) fn take_offset(&self) -> i64 {
        let offset = self.next.load(Ordering::Relaxed);
        self.next.store(offset + 1, Ordering::Relaxed);
        offset
    }

    /// Copies up to `count` units from memory; false if `offset` is no longer (or not yet) there.
    pub(crate) fn units_in_memory(&self, offset: i64, count: usize, out: &mut Vec<CqUnit>) -> bool {
        let inner = self.inner.lock();
        let Some(from) = offset
            .checked_sub(inner.tail_start)
            .and_then(|n| usize::try_from(n).ok())
        else {
            return false;
        };
        if from >= inner.tail.len() {
            return false;
        }
        let to = inner.tail.len().min(from + count);
        out.extend(inner.tail.range(from..to));
        true
    }
}

/// Open files, the least recently used half of which goes when there are too many.
struct Descriptors {
    limit: usize,
    open: HashMap<(u64, u64), (Arc<File>, u64)>,
    clock: u64,
}

impl Descriptors {
    fn get(&mut self, key: (u64, u64)) -> Option<Arc<File>> {
        self.clock += 1;
        let clock = self.clock;
        self.open.get_mut(&key).map(|(file, used)| {
            *used = clock;
            file.clone()
        })
    }

    fn put(&mut self, key: (u64, u64), file: Arc<File>) {
        if self.open.len() >= self.limit {
            // The older half goes at once, so that the search is paid once in many openings.
            let mut used: Vec<u64> = self.open.values().map(|(_, used)| *used).collect();
            let middle = used.len() / 2;
            let (_, &mut border, _) = used.select_nth_unstable(middle);
            self.open.retain(|_, (_, used)| *used > border);
        }
        self.clock += 1;
        self.open.insert(key, (file, self.clock));
    }
}

enum Slot {
    /// Its folder exists; nothing was read yet.
    Listed,
    Loaded(Arc<ConsumeQueue>),
}

type Topics = HashMap<Box<str>, BTreeMap<i32, Arc<RwLock<Slot>>>>;

/// All queues of a store.
pub(crate) struct ConsumeQueues {
    root: PathBuf,
    file_size: u64,
    disk: Arc<dyn Disk>,
    log: Arc<Segments>,
    topics: RwLock<Topics>,
    next_id: AtomicU64,
    descriptors: Mutex<Descriptors>,
    dirty: Mutex<Vec<Arc<ConsumeQueue>>>,
    /// Units in memory that are not on file.
    unwritten: AtomicUsize,
    /// Units that point at or beyond this are of a lost tail: cut when their queue is loaded.
    log_end: AtomicU64,
    /// What queues not yet loaded must at least hold.
    expected: Mutex<Queues>,
    delay_levels_ms: Vec<i64>,
    /// Held while files are written, cut or deleted. Keeps what the next sync has to reach.
    files: Mutex<FileWork>,
}

#[derive(Default)]
struct FileWork {
    /// What a former life of this broker wrote and did not sync may lie in any file.
    everything_unsynced: bool,
    unsynced: HashSet<(u64, u64, PathBuf)>,
    /// Queues with written units still in memory.
    warm: Vec<Arc<ConsumeQueue>>,
    scratch: Vec<u8>,
}

impl ConsumeQueues {
    pub(crate) fn open(
        root: PathBuf,
        configured_file_size: u64,
        disk: Arc<dyn Disk>,
        log: Arc<Segments>,
        descriptor_limit: usize,
        delay_levels_ms: Vec<i64>,
    ) -> Result<Self, Error> {
        fs::create_dir_all(&root).map_err(|e| Error::io("create", &root, e))?;
        let mut file_size = configured_file_size.div_ceil(UNIT as u64) * UNIT as u64;
        let mut topics = Topics::new();
        // A file that lost its end is shorter than the others, so the longest of some counts.
        let (mut looked_at, mut longest) = (0, 0);
        let list = |dir: &Path| -> Result<Vec<(String, PathBuf)>, Error> {
            let mut names = Vec::new();
            for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
                let entry = entry.map_err(|e| Error::io("list", dir, e))?;
                let is_dir = entry
                    .file_type()
                    .map_err(|e| Error::io("list", dir, e))?
                    .is_dir();
                if let (true, Ok(name)) = (is_dir, entry.file_name().into_string()) {
                    names.push((name, entry.path()));
                }
            }
            Ok(names)
        };
        for (topic, dir) in list(&root)? {
            let mut queues = BTreeMap::new();
            for (queue, dir) in list(&dir)? {
                let Ok(queue_id) = queue.parse::<i32>() else {
                    continue;
                };
                if looked_at < SIZE_SAMPLES {
                    for base in numbered_files(&dir).map_err(|e| Error::io("list", &dir, e))? {
                        let path = dir.join(file_name(base));
                        let length = fs::metadata(&path)
                            .map_err(|e| Error::io("look at", path, e))?
                            .len();
                        looked_at += 1;
                        if length > 0 && length % UNIT as u64 == 0 && base % length == 0 {
                            longest = longest.max(length);
                        }
                    }
                }
                queues.insert(queue_id, Arc::new(RwLock::new(Slot::Listed)));
            }
            topics.insert(topic.into(), queues);
        }
        if longest > 0 && longest != file_size {
            tracing::warn!(
                longest,
                file_size,
                "consume queues keep the file size they were created with"
            );
            file_size = longest;
        }
        Ok(Self {
            root,
            file_size,
            disk,
            log,
            topics: RwLock::new(topics),
            next_id: AtomicU64::new(0),
            descriptors: Mutex::new(Descriptors {
                limit: descriptor_limit.max(16),
                open: HashMap::new(),
                clock: 0,
            }),
            dirty: Mutex::new(Vec::new()),
            unwritten: AtomicUsize::new(0),
            log_end: AtomicU64::new(u64::MAX),
            expected: Mutex::new(Queues::new()),
            delay_levels_ms,
            files: Mutex::new(FileWork::default()),
        })
    }

    pub(crate) fn set_log_end(&self, position: u64) {
        self.log_end.store(position, Ordering::Release);
    }

    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> usize {
        self.topics.read().values().map(BTreeMap::len).sum()
    }

    /// Queues that have a folder with files: so many must be found again.
    pub(crate) fn count_on_disk(&self) -> usize {
        let topics = self.topics.read();
        let slots = topics.values().flat_map(BTreeMap::values);
        slots
            .filter(|slot| match &*slot.read() {
                Slot::Listed => true,
                Slot::Loaded(queue) => !queue.inner.lock().files.is_empty(),
            })
            .count()
    }

    pub(crate) fn names(&self) -> BTreeMap<String, Vec<i32>> {
        let topics = self.topics.read();
        topics
            .iter()
            .map(|(topic, queues)| (topic.to_string(), queues.keys().copied().collect()))
            .collect()
    }

    pub(crate) fn queues_of(&self, topic: &str) -> Vec<i32> {
        self.topics
            .read()
            .get(topic)
            .map(|queues| queues.keys().copied().collect())
            .unwrap_or_default()
    }

    pub(crate) fn find(
        &self,
        topic: &str,
        queue_id: i32,
    ) -> Result<Option<Arc<ConsumeQueue>>, Error> {
        let slot = self
            .topics
            .read()
            .get(topic)
            .and_then(|queues| queues.get(&queue_id))
            .cloned();
        let Some(slot) = slot else { return Ok(None) };
        self.load(&slot, topic, queue_id).map(Some)
    }

    pub(crate) fn get(&self, topic: &str, queue_id: i32) -> Result<Arc<ConsumeQueue>, Error> {
        if let Some(queue) = self.find(topic, queue_id)? {
            return Ok(queue);
        }
        if topic.is_empty()
            || topic.len() > record::MAX_TOPIC
            || topic.contains(['/', '\0'])
            || matches!(topic, "." | "..")
        {
            return Err(Error::Invalid(format!(
                "topic {topic:?} cannot name a folder"
            )));
        }
        if queue_id < 0 {
            return Err(Error::Invalid(format!(
                "queue id {queue_id} of topic {topic} is negative"
            )));
        }
        let slot = {
            let mut topics = self.topics.write();
            let queues = match topics.get_mut(topic) {
                Some(queues) => queues,
                None => topics.entry(topic.into()).or_default(),
            };
            queues
                .entry(queue_id)
                .or_insert_with(|| {
                    Arc::new(RwLock::new(Slot::Loaded(Arc::new(
                        self.new_queue(topic, queue_id),
                    ))))
                })
                .clone()
        };
        self.load(&slot, topic, queue_id)
    }

    fn new_queue(&self, topic: &str, queue_id: i32) -> ConsumeQueue {
        ConsumeQueue {
            topic: topic.into(),
            queue_id,
            key_prefix: record::java_hash(record::java_hash(0, topic), "#"),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            dir: self.root.join(topic).join(queue_id.to_string()),
            next: AtomicI64::new(0),
            min: AtomicI64::new(0),
            max: AtomicI64::new(0),
            dirty: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            inner: Mutex::new(Inner::default()),
        }
    }

    fn load(
        &self,
        slot: &RwLock<Slot>,
        topic: &str,
        queue_id: i32,
    ) -> Result<Arc<ConsumeQueue>, Error> {
        if let Slot::Loaded(queue) = &*slot.read() {
            return Ok(queue.clone());
        }
        let mut slot = slot.write();
        if let Slot::Loaded(queue) = &*slot {
            return Ok(queue.clone());
        }
        let queue = Arc::new(self.new_queue(topic, queue_id));
        self.recover(&queue)?;
        let expected = self.expected.lock().remove(&(topic.to_owned(), queue_id));
        if self.lost_its_begin(&queue, expected.as_ref()) {
            self.rebuild_begin(&queue)?;
        }
        if expected.is_some_and(|expected| queue.max_offset() < expected.max) {
            self.rebuild(&queue)?;
        }
        *slot = Slot::Loaded(queue.clone());
        Ok(queue)
    }

    /// Finds the last unit that is true: on file, within the log, and pointing at the record that points back.
    fn recover(&self, queue: &ConsumeQueue) -> Result<(), Error> {
        let io = |e| Error::io("read", &queue.dir, e);
        let mut inner = queue.inner.lock();
        inner.files = numbered_files(&queue.dir).map_err(io)?;
        inner.files.retain(|base| base % self.file_size == 0);
        // Only the last run of adjoining files counts.
        let adjoining = inner
            .files
            .windows(2)
            .rposition(|w| w[1] != w[0] + self.file_size)
            .map_or(0, |i| i + 1);
        inner.files.drain(..adjoining);
        let mut short = 0;
        for (i, base) in inner.files.iter().enumerate() {
            // A damaged file gets its length back: upstream refuses a short one, and what is missing is rebuilt.
            let path = queue.dir.join(file_name(*base));
            if fs::metadata(&path).map_err(io)?.len() < self.file_size {
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|f| f.set_len(self.file_size))
                    .map_err(io)?;
                if i + 1 < inner.files.len() {
                    short = i + 1;
                }
            }
        }
        // One in the middle counts as missing.
        inner.files.drain(..short);
        let per_file = (self.file_size / UNIT as u64) as i64;
        let mut end = 0;
        let mut first = 0;
        if let Some(&base) = inner.files.first() {
            first = (base / UNIT as u64) as i64;
            end = first;
            for &base in inner.files.iter().rev() {
                let start = (base / UNIT as u64) as i64;
                let n = partition(0, per_file, |i| {
                    Ok(self
                        .unit_on_file(queue, start + i)?
                        .is_some_and(CqUnit::is_written))
                })
                .map_err(io)?;
                if n > 0 {
                    end = start + n;
                    break;
                }
            }
        }
        let log_end = self.log_end.load(Ordering::Acquire);
        end = partition(first, end, |i| {
            Ok(self
                .unit_on_file(queue, i)?
                .is_some_and(|u| u.end() <= log_end))
        })
        .map_err(io)?;
        // Pages that a power cut lost are holes, which the halving above may have taken for either side.
        while end > first {
            match self.unit_on_file(queue, end - 1).map_err(io)? {
                Some(unit)
                    if unit.is_written()
                        && unit.end() <= log_end
                        && self
                            .points_at_its_record(queue, end - 1, unit)
                            .map_err(io)? =>
                {
                    break;
                }
                _ => end -= 1,
            }
        }
        if end == first {
            // Nothing in them: what the log says is written to files of its own.
            for base in std::mem::take(&mut inner.files) {
                self.descriptors.lock().open.remove(&(queue.id, base));
                let path = queue.dir.join(file_name(base));
                fs::remove_file(&path).map_err(|e| Error::io("remove", path, e))?;
            }
        }
        inner.tail_start = end;
        inner.written = end;
        queue.next.store(end, Ordering::Relaxed);
        queue.max.store(end, Ordering::Release);
        let files = inner.files.clone();
        drop(inner);
        self.clear_behind(queue, end, &files)
            .map_err(|e| Error::io("cut", &queue.dir, e))?;
        self.correct_min(queue, self.log.min())
    }

    /// Nothing is left behind the end: a power cut takes pages before others, and what lies behind the gap would count again once the gap is
    /// filled and retention took the records that would tell.
    fn clear_behind(&self, queue: &ConsumeQueue, end: i64, files: &[u64]) -> io::Result<()> {
        let end = end as u64 * UNIT as u64;
        for &base in files.iter().filter(|base| **base + self.file_size > end) {
            let file = self.file(queue, base, false)?;
            let from = end.max(base) - base;
            let page = from.next_multiple_of(PAGE as u64).min(self.file_size);
            let mut rest = [0; PAGE];
            let rest = &mut rest[..(page - from) as usize];
            let n = read_full_at(&file, rest, from)?;
            if rest[..n].iter().any(|b| *b != 0)
                || page < self.file_size && crate::platform::has_data_from(&file, page)
            {
                tracing::debug!(topic = %queue.topic, queue_id = queue.queue_id, end, "cut units behind the end");
                zero_from(&*self.disk, &file, from, self.file_size)?;
            }
        }
        Ok(())
    }

    /// A damaged queue comes back from the log, from its last good unit on.
    fn rebuild(&self, queue: &Arc<ConsumeQueue>) -> Result<(), Error> {
        let from = self
            .unit(queue, queue.max_offset() - 1)
            .map_or(0, CqUnit::end)
            .max(self.log.min());
        tracing::warn!(topic = %queue.topic, queue_id = queue.queue_id, max_offset = queue.max_offset(), from, "a damaged consume queue is rebuilt");
        let log_end = self.log_end.load(Ordering::Acquire);
        crate::recovery::scan(
            &self.log,
            from,
            log_end,
            |position, record: &Record<'_>, _| {
                if record.topic != &*queue.topic
                    || record.queue_id != queue.queue_id
                    || !record::enters_queue(record.sys_flag)
                {
                    return Ok(());
                }
                let unit = CqUnit {
                    phy_offset: position as i64,
                    size: record.size as i32,
                    tags_code: record.tags_code(&self.delay_levels_ms),
                };
                self.push(queue, record.queue_offset, unit)
            },
        )?;
        self.follow(queue);
        // Our own offsets say already that all this is on disk, and retention relies on that.
        let io = |e| Error::io("write", &queue.dir, e);
        self.write_queue(&mut self.files.lock(), queue)
            .map_err(io)?;
        let files = queue.inner.lock().files.clone();
        for base in files {
            let file = self.file(queue, base, false).map_err(io)?;
            self.disk.sync_data(&file).map_err(io)?;
        }
        self.correct_min(queue, self.log.min())
    }

    /// Retention leaves the file that the minimum lies in. When a queue's first file begins with a record that lies above the log's begin, the file
    /// in front of it is missing, unless it ended just there: then the table says so.
    fn lost_its_begin(&self, queue: &ConsumeQueue, expected: Option<&Extent>) -> bool {
        let first = {
            let inner = queue.inner.lock();
            inner.files.first().map(|base| (base / UNIT as u64) as i64)
        };
        let Some(first) = first.filter(|first| *first > 0 && *first < queue.max_offset()) else {
            return false;
        };
        expected.is_none_or(|expected| expected.first < first)
            && self
                .unit(queue, first)
                .is_some_and(|unit| !unit.is_filler() && unit.phy_offset as u64 > self.log.min())
    }

    /// Enters the records that lie in the log below the queue's first file, if there are any.
    fn rebuild_begin(&self, queue: &ConsumeQueue) -> Result<(), Error> {
        let first = queue
            .inner
            .lock()
            .files
            .first()
            .map_or(0, |base| base / UNIT as u64) as i64;
        let to = self
            .unit(queue, first)
            .map_or(0, |unit| unit.phy_offset as u64);
        // Offsets without a hole up to the first that is there; a topic that was deleted begins anew.
        let (mut begin, mut units) = (first, Vec::new());
        crate::recovery::scan(&self.log, self.log.min(), to, |position, record, _| {
            if record.topic != &*queue.topic
                || record.queue_id != queue.queue_id
                || !record::enters_queue(record.sys_flag)
            {
                return Ok(());
            }
            if record.queue_offset != begin + units.len() as i64 {
                (begin, units) = (record.queue_offset, Vec::new());
            }
            units.push(CqUnit {
                phy_offset: position as i64,
                size: record.size as i32,
                tags_code: record.tags_code(&self.delay_levels_ms),
            });
            Ok(())
        })?;
        if units.is_empty() || begin < 0 || begin + units.len() as i64 != first {
            return Ok(());
        }
        tracing::warn!(topic = %queue.topic, queue_id = queue.queue_id, from = begin, to = first, "the first files of a consume queue are missing: they are rebuilt");
        let io = |e| Error::io("write", &queue.dir, e);
        let work = self.files.lock();
        // The last file first: until all is done the next start finds a begin that is missing.
        let mut to = first;
        while to > begin {
            let base = (to - 1) as u64 * UNIT as u64 / self.file_size * self.file_size;
            let from = begin.max((base / UNIT as u64) as i64);
            let mut bytes = CqUnit::FILLER
                .encode()
                .repeat(from as usize - (base / UNIT as u64) as usize);
            for unit in &units[(from - begin) as usize..(to - begin) as usize] {
                bytes.extend_from_slice(&unit.encode());
            }
            let file = self.file(queue, base, true).map_err(io)?;
            // Our own offsets say already that all this is on disk.
            write_all_at(&*self.disk, &file, &bytes, 0)
                .and_then(|()| self.disk.sync_data(&file))
                .map_err(io)?;
            queue.inner.lock().files.insert(0, base);
            to = from;
        }
        drop(work);
        self.correct_min(queue, self.log.min())
    }

    pub(crate) fn expect(&self, expected: Queues) {
        *self.expected.lock() = expected;
    }

    /// Whether there are queues that were not yet compared with what they must hold.
    pub(crate) fn expects(&self) -> bool {
        !self.expected.lock().is_empty()
    }

    /// Where each loaded queue ends now.
    pub(crate) fn ends(&self) -> HashMap<u64, i64> {
        let mut ends = HashMap::new();
        for queues in self.topics.read().values() {
            for slot in queues.values() {
                if let Slot::Loaded(queue) = &*slot.read() {
                    ends.insert(queue.id, queue.max_offset());
                }
            }
        }
        ends
    }

    /// How far every queue reaches, loaded or not: for the table, once all of it is synced. Not beyond `ends`, which were looked up before our own
    /// offsets were: what came later lies behind them, and is no loss when it is not found.
    pub(crate) fn reached(&self, ends: &HashMap<u64, i64>) -> Queues {
        let mut reached = self.expected.lock().clone();
        for (topic, queues) in self.topics.read().iter() {
            for (queue_id, slot) in queues {
                if let Slot::Loaded(queue) = &*slot.read() {
                    // `written`, not `max`: what arrived since is not synced.
                    let inner = queue.inner.lock();
                    let end = ends.get(&queue.id).map_or(0, |end| inner.written.min(*end));
                    if let Some(base) = inner.files.first().filter(|_| end > 0) {
                        let extent = Extent {
                            first: (base / UNIT as u64) as i64,
                            max: end,
                        };
                        reached.insert((topic.to_string(), *queue_id), extent);
                    }
                }
            }
        }
        reached
    }

    fn points_at_its_record(
        &self,
        queue: &ConsumeQueue,
        offset: i64,
        unit: CqUnit,
    ) -> io::Result<bool> {
        if unit.is_filler() || (unit.phy_offset as u64) < self.log.min() {
            return Ok(true);
        }
        let mut head = [0; record::PHY_OFFSET_AT + 8];
        let n = self.log.read(unit.phy_offset as u64, &mut head)?;
        Ok(n == head.len()
            && record::peek(&head)
                == (Peek::Record {
                    size: unit.size as usize,
                })
            && record::i32_at(&head, 12) == Some(queue.queue_id)
            && record::i64_at(&head, record::QUEUE_OFFSET_AT) == Some(offset)
            && record::i64_at(&head, record::PHY_OFFSET_AT) == Some(unit.phy_offset))
    }

    /// The position after the last record that any queue points to; loads every queue.
    pub(crate) fn highest_phy(&self) -> Result<u64, Error> {
        let mut highest = 0;
        for queue in self.load_all()? {
            if let Some(unit) = self.unit(&queue, queue.max_offset() - 1) {
                highest = highest.max(unit.end());
            }
        }
        Ok(highest)
    }

    pub(crate) fn load_all(&self) -> Result<Vec<Arc<ConsumeQueue>>, Error> {
        let mut all = Vec::new();
        for (topic, ids) in self.names() {
            for queue_id in ids {
                all.extend(self.find(&topic, queue_id)?);
            }
        }
        Ok(all)
    }

    /// Enters a record. Offsets rise by one; the other cases are those of recovery and replication.
    pub(crate) fn push(
        &self,
        queue: &Arc<ConsumeQueue>,
        offset: i64,
        unit: CqUnit,
    ) -> Result<(), Error> {
        let mut inner = queue.inner.lock();
        if queue.is_deleted() {
            return Ok(());
        }
        let mut max = queue.max.load(Ordering::Relaxed);
        if offset < max {
            drop(inner);
            match self.unit(queue, offset) {
                Some(known)
                    if known.phy_offset >= unit.phy_offset
                        && known.is_written()
                        && !known.is_filler() =>
                {
                    return Ok(());
                }
                // A lower offset at a higher position: the topic was deleted and created anew in between.
                _ => self.truncate_queue(queue, offset)?,
            }
            inner = queue.inner.lock();
            max = queue.max.load(Ordering::Relaxed);
        }
        if offset > max {
            let per_file = (self.file_size / UNIT as u64) as i64;
            if inner.files.is_empty() && inner.tail.is_empty() || offset - max > per_file {
                if max > 0 {
                    tracing::warn!(topic = %queue.topic, queue_id = queue.queue_id, max, offset, "the queue goes on after a gap");
                }
                self.unwritten
                    .fetch_sub((max - inner.written).max(0) as usize, Ordering::Relaxed);
                inner.tail.clear();
                inner.tail_start = offset;
                inner.written = offset;
                queue.min.store(offset, Ordering::Release);
            } else {
                for _ in max..offset {
                    inner.tail.push_back(CqUnit::FILLER);
                }
                // Nothing in front of the gap can be read any more: retention took it, and what lay in the gap.
                if queue.min.load(Ordering::Relaxed) >= max {
                    queue.min.store(offset, Ordering::Release);
                }
                self.unwritten
                    .fetch_add((offset - max) as usize, Ordering::Relaxed);
            }
        }
        inner.tail.push_back(unit);
        queue.max.store(offset + 1, Ordering::Release);
        drop(inner);
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        if !queue.dirty.load(Ordering::Relaxed) && !queue.dirty.swap(true, Ordering::AcqRel) {
            self.dirty.lock().push(queue.clone());
        }
        Ok(())
    }

    /// Offsets assigned elsewhere (recovery, a master): the next local one follows them.
    pub(crate) fn follow(&self, queue: &ConsumeQueue) {
        queue.next.store(queue.max_offset(), Ordering::Relaxed);
    }

    fn file(&self, queue: &ConsumeQueue, base: u64, create: bool) -> io::Result<Arc<File>> {
        if let Some(file) = self.descriptors.lock().get((queue.id, base)) {
            return Ok(file);
        }
        let path = queue.dir.join(file_name(base));
        if create {
            fs::create_dir_all(&queue.dir)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(path)?;
        if create && file.metadata()?.len() < self.file_size {
            file.set_len(self.file_size)?;
        }
        let file = Arc::new(file);
        self.descriptors.lock().put((queue.id, base), file.clone());
        Ok(file)
    }

    fn unit_on_file(&self, queue: &ConsumeQueue, offset: i64) -> io::Result<Option<CqUnit>> {
        let mut bytes = [0; UNIT];
        let at = offset as u64 * UNIT as u64;
        let base = at - at % self.file_size;
        let file = match self.file(queue, base, false) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let n = read_full_at(&file, &mut bytes, at - base)?;
        Ok(if n == UNIT {
            CqUnit::decode(&bytes)
        } else {
            None
        })
    }

    /// One unit from memory or file; may read from disk.
    pub(crate) fn unit(&self, queue: &ConsumeQueue, offset: i64) -> Option<CqUnit> {
        let mut one = Vec::with_capacity(1);
        self.units(queue, offset, 1, &mut one).ok()?;
        one.first().copied()
    }

    /// Up to `count` units from `offset` on, from memory or one file; none if the file is missing.
    pub(crate) fn units(
        &self,
        queue: &ConsumeQueue,
        offset: i64,
        count: usize,
        out: &mut Vec<CqUnit>,
    ) -> io::Result<()> {
        if offset < 0 || offset >= queue.max_offset() || queue.units_in_memory(offset, count, out) {
            return Ok(());
        }
        let at = offset as u64 * UNIT as u64;
        let base = at - at % self.file_size;
        let tail_start = queue.inner.lock().tail_start;
        let on_file = usize::try_from(tail_start - offset).unwrap_or(0);
        let count = count
            .min(on_file)
            .min(((base + self.file_size - at) / UNIT as u64) as usize);
        let file = match self.file(queue, base, false) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut bytes = vec![0; count * UNIT];
        let n = read_full_at(&file, &mut bytes, at - base)?;
        out.extend(bytes[..n].chunks_exact(UNIT).filter_map(CqUnit::decode));
        Ok(())
    }

    /// First offset of the file after the one that holds `offset` (upstream `rollNextFile`).
    pub(crate) fn next_file_offset(&self, offset: i64) -> i64 {
        let per_file = (self.file_size / UNIT as u64) as i64;
        offset + per_file - offset % per_file
    }

    /// The first unit that points at or above the log's beginning.
    pub(crate) fn correct_min(&self, queue: &ConsumeQueue, log_min: u64) -> Result<(), Error> {
        let max = queue.max_offset();
        let first = {
            let inner = queue.inner.lock();
            match inner.files.first() {
                Some(base) => (base / UNIT as u64) as i64,
                None => inner.tail_start,
            }
        };
        let min = partition(first, max, |i| {
            Ok(self
                .unit(queue, i)
                .is_none_or(|u| u.is_filler() || (u.phy_offset as u64) < log_min))
        })
        .map_err(|e| Error::io("read", &queue.dir, e))?;
        queue.min.store(min, Ordering::Release);
        Ok(())
    }

    /// Writes what is in memory only, and lets go of units whose records left the ring. Background thread.
    pub(crate) fn write_dirty(&self, ring_oldest: u64) -> Result<(), Error> {
        let mut work = self.files.lock();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let mut dirty = dirty.into_iter();
        let mut failed = None;
        for queue in dirty.by_ref() {
            queue.dirty.store(false, Ordering::Release);
            if let Err(e) = self.write_queue(&mut work, &queue) {
                if !queue.dirty.swap(true, Ordering::AcqRel) {
                    self.dirty.lock().push(queue.clone());
                }
                failed = Some(Error::io("write", &queue.dir, e));
                break;
            }
            work.warm.push(queue);
        }
        self.dirty.lock().extend(dirty);
        if work.warm.len() > 1 {
            work.warm.sort_unstable_by_key(|q| q.id);
            work.warm.dedup_by_key(|q| q.id);
        }
        work.warm.retain(|queue| {
            let mut inner = queue.inner.lock();
            while inner.tail_start < inner.written
                && inner
                    .tail
                    .front()
                    .is_some_and(|u| (u.phy_offset as u64) < ring_oldest)
            {
                inner.tail.pop_front();
                inner.tail_start += 1;
            }
            if inner.tail.is_empty() {
                inner.tail = VecDeque::new();
            }
            !inner.tail.is_empty()
        });
        failed.map_or(Ok(()), Err)
    }

    fn write_queue(&self, work: &mut FileWork, queue: &ConsumeQueue) -> io::Result<()> {
        if queue.is_deleted() {
            return Ok(());
        }
        loop {
            // Only the bytes of one file are taken under the lock, and written without it.
            let (at, base) = {
                let inner = queue.inner.lock();
                let end = inner.tail_start + inner.tail.len() as i64;
                if inner.written >= end {
                    return Ok(());
                }
                let at = inner.written as u64 * UNIT as u64;
                let base = at - at % self.file_size;
                let to = end.min(((base + self.file_size) / UNIT as u64) as i64);
                work.scratch.clear();
                let (from, to) = (
                    (inner.written - inner.tail_start) as usize,
                    (to - inner.tail_start) as usize,
                );
                for unit in inner.tail.range(from..to) {
                    work.scratch.extend_from_slice(&unit.encode());
                }
                (at, base)
            };
            let file = self.file(queue, base, true)?;
            let new = !queue.inner.lock().files.contains(&base);
            if new && at > base {
                let fillers = CqUnit::FILLER
                    .encode()
                    .repeat(((at - base) / UNIT as u64) as usize);
                write_all_at(&*self.disk, &file, &fillers, 0)?;
            }
            write_all_at(&*self.disk, &file, &work.scratch, at - base)?;
            work.unsynced
                .insert((queue.id, base, queue.dir.join(file_name(base))));
            let mut inner = queue.inner.lock();
            if new {
                // After a gap that no filler bridges, the files before it are out of use.
                if inner
                    .files
                    .last()
                    .is_some_and(|last| last + self.file_size != base)
                {
                    for old in std::mem::take(&mut inner.files) {
                        self.descriptors.lock().open.remove(&(queue.id, old));
                        let _ = fs::remove_file(queue.dir.join(file_name(old)));
                    }
                }
                inner.files.push(base);
            }
            let n = work.scratch.len() / UNIT;
            inner.written += n as i64;
            self.unwritten.fetch_sub(n, Ordering::Relaxed);
        }
    }

    /// The next sync reaches files that were written before this life, too.
    pub(crate) fn distrust_files(&self) {
        self.files.lock().everything_unsynced = true;
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let (mut unsynced, everything) = {
            let mut work = self.files.lock();
            let everything = std::mem::take(&mut work.everything_unsynced);
            (std::mem::take(&mut work.unsynced), everything)
        };
        let at_once = if unsynced.len() < SYNCFS_FROM && !everything {
            None
        } else {
            match File::open(&self.root) {
                Ok(folder) => self.disk.sync_everything(&folder),
                Err(e) => Some(Err(e)),
            }
        };
        let result = match at_once {
            Some(done) => done.map_err(|e| Error::io("sync", &self.root, e)),
            None => self.sync_each(&mut unsynced, everything),
        };
        if result.is_err() {
            let mut work = self.files.lock();
            work.unsynced.extend(unsynced);
            work.everything_unsynced |= everything;
        }
        result
    }

    fn sync_each(
        &self,
        unsynced: &mut HashSet<(u64, u64, PathBuf)>,
        everything: bool,
    ) -> Result<(), Error> {
        if everything {
            for queue in self.load_all()? {
                let files = queue.inner.lock().files.clone();
                unsynced.extend(
                    files
                        .into_iter()
                        .map(|base| (queue.id, base, queue.dir.join(file_name(base)))),
                );
            }
        }
        unsynced
            .iter()
            .try_for_each(|(_, _, path)| match File::open(path) {
                Ok(file) => self
                    .disk
                    .sync_data(&file)
                    .map_err(|e| Error::io("sync", path, e)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(Error::io("sync", path, e)),
            })
    }

    fn zero_units(&self, queue: &ConsumeQueue, from: i64, to: i64) -> Result<(), Error> {
        let mut at = from as u64 * UNIT as u64;
        let end = to as u64 * UNIT as u64;
        while at < end {
            let base = at - at % self.file_size;
            let n = (end.min(base + self.file_size) - at) as usize;
            match self.file(queue, base, false) {
                Ok(file) => write_all_at(&*self.disk, &file, &vec![0; n], at - base)
                    .map_err(|e| Error::io("cut", &queue.dir, e))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("open", &queue.dir, e)),
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Drops the units from `offset` on, in memory and on file.
    fn truncate_queue(&self, queue: &ConsumeQueue, offset: i64) -> Result<(), Error> {
        let _work = self.files.lock();
        let (from, to) = {
            let mut inner = queue.inner.lock();
            let max = queue.max.load(Ordering::Relaxed);
            if offset >= max {
                return Ok(());
            }
            let keep = usize::try_from(offset - inner.tail_start).unwrap_or(0);
            inner.tail.truncate(keep);
            let unwritten = |written: i64, max: i64| (max - written).max(0) as usize;
            self.unwritten
                .fetch_sub(unwritten(inner.written, max), Ordering::Relaxed);
            let was_written = inner.written;
            inner.tail_start = inner.tail_start.min(offset);
            inner.written = inner.written.min(offset);
            self.unwritten
                .fetch_add(unwritten(inner.written, offset), Ordering::Relaxed);
            queue.max.store(offset, Ordering::Release);
            queue.next.store(offset, Ordering::Relaxed);
            // A topic made anew behind a late record of its former life.
            queue.min.fetch_min(offset, Ordering::AcqRel);
            (offset, was_written)
        };
        if from < to {
            self.zero_units(queue, from, to)
        } else {
            Ok(())
        }
    }

    /// Cuts every queue at the first unit that points at or beyond `position`. Returns the begin of the last record that
    /// is still in a queue.
    pub(crate) fn truncate_to(&self, position: u64) -> Result<Option<u64>, Error> {
        let log_end = self.log_end.load(Ordering::Acquire).min(position);
        let mut last_phy = None;
        for queue in self.load_all()? {
            let (first, max) = (queue.min_offset(), queue.max_offset());
            let end = partition(first, max, |i| {
                Ok(self.unit(&queue, i).is_none_or(|u| u.end() <= position))
            })
            .map_err(|e| Error::io("read", &queue.dir, e))?;
            self.truncate_queue(&queue, end)?;
            self.follow(&queue);
            if end > first {
                let unit = self.unit(&queue, end - 1).filter(|u| !u.is_filler());
                last_phy = last_phy.max(unit.map(|u| u.phy_offset as u64));
            }
        }
        self.set_log_end(log_end);
        Ok(last_phy)
    }

    /// After segments were deleted: minimum offsets rise, files wholly below them go (never the last of a queue).
    pub(crate) fn expire(&self, log_min: u64) -> Result<(), Error> {
        for queue in self.load_all()? {
            self.correct_min(&queue, log_min)?;
            let _work = self.files.lock();
            let min = queue.min.load(Ordering::Acquire) as u64 * UNIT as u64;
            loop {
                let base = {
                    let mut inner = queue.inner.lock();
                    match inner.files[..] {
                        [first, _, ..] if first + self.file_size <= min => inner.files.remove(0),
                        _ => break,
                    }
                };
                let path = queue.dir.join(file_name(base));
                self.descriptors.lock().open.remove(&(queue.id, base));
                fs::remove_file(&path).map_err(|e| Error::io("remove", path, e))?;
            }
        }
        Ok(())
    }

    /// Whether the queues of a topic that were touched so far take no records.
    pub(crate) fn refuse_topic(&self, topic: &str, refused: bool) {
        if let Some(queues) = self.topics.read().get(topic) {
            for slot in queues.values() {
                if let Slot::Loaded(queue) = &*slot.read() {
                    queue.refused.store(refused, Ordering::Relaxed);
                }
            }
        }
    }

    /// Removes a topic's queues and their folder.
    pub(crate) fn delete_topic(&self, topic: &str) -> Result<(), Error> {
        let mut work = self.files.lock();
        let Some(queues) = self.topics.write().remove(topic) else {
            return Ok(());
        };
        for slot in queues.values() {
            if let Slot::Loaded(queue) = &*slot.read() {
                let mut inner = queue.inner.lock();
                queue.deleted.store(true, Ordering::Release);
                let unwritten = (queue.max_offset() - inner.written).max(0) as usize;
                self.unwritten.fetch_sub(unwritten, Ordering::Relaxed);
                inner.written = queue.max_offset();
                inner.tail_start = inner.written;
                inner.tail.clear();
                let id = queue.id;
                self.descriptors
                    .lock()
                    .open
                    .retain(|(queue, _), _| *queue != id);
                work.unsynced.retain(|(queue, ..)| *queue != id);
            }
        }
        let dir = self.root.join(topic);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
            _ => Ok(()),
        }
    }

    /// Throws every queue away: they are about to be rebuilt from the log.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        for topic in self.names().into_keys() {
            self.delete_topic(&topic)?;
        }
        Ok(())
    }
}

/// First index in `from..to` for which `holds` is false, given that it is true before and false after some border.
pub(crate) fn partition(
    mut from: i64,
    mut to: i64,
    mut holds: impl FnMut(i64) -> io::Result<bool>,
) -> io::Result<i64> {
    while from < to {
        let middle = from + (to - from) / 2;
        if holds(middle)? {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    Ok(from)
}
