//! Reading by queue offset: at the head from memory, else from disk with a bounded number of readers.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use parking_lot::{Condvar, Mutex};

use crate::consume_queue::{CqUnit, UNIT};
use crate::live::Live;
use crate::record::{self, Peek};
use crate::store::Store;

/// Statuses of upstream's `GetMessageStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetStatus {
    Found,
    NoMatchedMessage,
    MessageWasRemoving,
    OffsetFoundNull,
    OffsetOverflowBadly,
    OffsetOverflowOne,
    OffsetTooSmall,
    NoMatchedLogicQueue,
    NoMessageInQueue,
    ServiceNotAvailable,
}

pub trait MessageFilter: Sync {
    /// First look, at the ConsumeQueue unit alone.
    fn by_tags_code(&self, tags_code: i64) -> bool;
    /// Second look, at the whole record.
    fn by_record(&self, _record: &[u8]) -> bool {
        true
    }
}

#[derive(Clone, Copy)]
pub enum Filter<'a> {
    All,
    /// Hashes of the wanted tags, sign-extended.
    Tags(&'a [i64]),
    Custom(&'a dyn MessageFilter),
}

#[derive(Clone, Copy)]
pub struct GetRequest<'a> {
    pub topic: &'a str,
    pub queue_id: i32,
    pub offset: i64,
    pub max_count: u32,
    /// On top of the store's own limits; `usize::MAX` for none.
    pub max_bytes: usize,
    pub filter: Filter<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetResult {
    pub status: GetStatus,
    pub next_begin_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    /// Records and bytes appended to the output.
    pub count: u32,
    pub bytes: usize,
    /// The reader is so far behind that a slave should serve it.
    pub suggest_pulling_from_slave: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetOutcome {
    Done(GetResult),
    /// The first record is not in memory: ask `get_message_cold` from a thread that may block.
    Cold,
}

/// Upstream scans at most this many bytes of the queue, or 20 per wanted message, for one read.
const MAX_FILTER_UNITS: usize = 16_000 / UNIT;
/// Units looked at in one go.
const STEP: usize = 128;
/// Reads from disk at the same time: more would only take the disk away from the writer.
const COLD_READERS: usize = 4;

/// Permits for reads from disk.
pub(crate) struct ColdReaders {
    free: Mutex<usize>,
    returned: Condvar,
}

impl Default for ColdReaders {
    fn default() -> Self {
        Self {
            free: Mutex::new(COLD_READERS),
            returned: Condvar::new(),
        }
    }
}

impl ColdReaders {
    fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        {
            let mut free = self.free.lock();
            while *free == 0 {
                self.returned.wait(&mut free);
            }
            *free -= 1;
        }
        let result = work();
        *self.free.lock() += 1;
        self.returned.notify_one();
        result
    }
}

impl Filter<'_> {
    fn by_tags_code(&self, tags_code: i64) -> bool {
        match self {
            Filter::All => true,
            Filter::Tags(wanted) => wanted.contains(&tags_code),
            Filter::Custom(filter) => filter.by_tags_code(tags_code),
        }
    }

    fn by_record(&self, record: &[u8]) -> bool {
        match self {
            Filter::Custom(filter) => filter.by_record(record),
            _ => true,
        }
    }
}

thread_local! {
    static UNITS: RefCell<Vec<CqUnit>> = const { RefCell::new(Vec::new()) };
}

impl Store {
    /// Copies whole records from memory; never reads a file.
    pub fn get_message(&self, request: &GetRequest<'_>, out: &mut BytesMut) -> GetOutcome {
        let outcome = UNITS.with_borrow_mut(|units| self.get(request, out, false, units));
        if let GetOutcome::Done(result) = &outcome {
            self.count(result);
        }
        outcome
    }

    /// The same from disk; blocks.
    pub fn get_message_cold(&self, request: &GetRequest<'_>, out: &mut BytesMut) -> GetResult {
        let outcome = self
            .cold_readers
            .with(|| self.get(request, out, true, &mut Vec::new()));
        let result = match outcome {
            GetOutcome::Done(result) => result,
            GetOutcome::Cold => GetResult::without(GetStatus::ServiceNotAvailable, 0, 0, 0),
        };
        self.count(&result);
        result
    }

    fn count(&self, result: &GetResult) {
        if result.status == GetStatus::Found {
            self.counters.get_found.fetch_add(1, Ordering::Relaxed);
            self.counters
                .get_messages
                .fetch_add(u64::from(result.count), Ordering::Relaxed);
        } else {
            self.counters.get_miss.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Upstream `DefaultMessageStore.getMessage`.
    fn get(
        &self,
        request: &GetRequest<'_>,
        out: &mut BytesMut,
        cold: bool,
        units: &mut Vec<CqUnit>,
    ) -> GetOutcome {
        use GetStatus::*;
        let offset = request.offset;
        if self.is_closed() {
            return GetOutcome::Done(GetResult::without(ServiceNotAvailable, 0, 0, 0));
        }
        let corrected = |to: i64| {
            if self.config.correct_offsets {
                to
            } else {
                offset
            }
        };
        let Some(queue) = self.find_queue(request.topic, request.queue_id) else {
            return GetOutcome::Done(GetResult::without(NoMatchedLogicQueue, corrected(0), 0, 0));
        };
        // The maximum first: retention moves the minimum only up to it.
        let max = queue.max_offset();
        let min = queue.min_offset();
        let without = |status, next| GetOutcome::Done(GetResult::without(status, next, min, max));
        if max == 0 {
            return without(NoMessageInQueue, corrected(0));
        } else if offset < min {
            return without(OffsetTooSmall, corrected(min));
        } else if offset == max {
            return without(OffsetOverflowOne, corrected(offset));
        } else if offset > max {
            return without(OffsetOverflowBadly, corrected(max));
        }

        let log_end = self.confirm_offset();
        let in_memory = (self.memory_bytes as f64 * self.live.in_memory_ratio() / 100.0) as u64;
        let limits = Limits::new(&self.live, request);
        let max_units = MAX_FILTER_UNITS.max(
            usize::try_from(request.max_count)
                .unwrap_or(usize::MAX)
                .saturating_mul(20),
        );
        let mut cursor = self.ring.cursor();
        let mut result = GetResult::without(NoMatchedMessage, offset, min, max);
        let mut next = offset;
        let mut scanned = 0;
        // After a deleted record everything up to the next log file is gone with it.
        let mut removed_below = 0;
        let (mut first_phy, mut last_phy) = (u64::MAX, 0);
        'scan: while scanned < max_units && next < max {
            units.clear();
            let want = STEP.min(max_units - scanned).min((max - next) as usize);
            if !queue.units_in_memory(next, want, units) {
                if !cold {
                    if result.count == 0 {
                        return GetOutcome::Cold;
                    }
                    break;
                }
                if let Err(error) = self.queues.units(&queue, next, want, units) {
                    tracing::error!(topic = request.topic, queue_id = request.queue_id, %error, "a consume queue cannot be read");
                    result.status = ServiceNotAvailable;
                    break;
                }
                if units.is_empty() {
                    if result.count == 0 {
                        result.status = OffsetFoundNull;
                        next = self.queues.next_file_offset(next).min(max);
                    }
                    break;
                }
            }
            for unit in units.iter() {
                let phy = unit.phy_offset as u64;
                if unit.is_filler() || !unit.is_written() || phy < removed_below {
                    next += 1;
                    scanned += 1;
                    continue;
                }
                let on_disk = log_end.saturating_sub(phy) > in_memory;
                let size = unit.size as usize;
                if limits.reached(&result, size, on_disk) {
                    break 'scan;
                }
                if request.filter.by_tags_code(unit.tags_code) {
                    let start = out.len();
                    let end = phy + unit.size as u64;
                    let mut found = cursor.read(phy, end, |piece| out.extend_from_slice(piece));
                    if !found {
                        out.truncate(start);
                        if !cold {
                            if result.count == 0 {
                                return GetOutcome::Cold;
                            }
                            break 'scan;
                        }
                        found = self.read_record(phy, size, out);
                    }
                    if !found {
                        out.truncate(start);
                        if result.count == 0 {
                            result.status = MessageWasRemoving;
                        }
                        removed_below = phy - phy % self.log.size() + self.log.size();
                    } else if request.filter.by_record(&out[start..]) {
                        result.status = Found;
                        result.count += 1;
                        result.bytes += size;
                        first_phy = first_phy.min(phy);
                        last_phy = last_phy.max(end);
                    } else {
                        out.truncate(start);
                    }
                }
                result.suggest_pulling_from_slave = on_disk;
                next += 1;
                scanned += 1;
            }
        }
        result.next_begin_offset = next;
        if cold && result.suggest_pulling_from_slave && first_phy < last_phy {
            self.let_go(first_phy, last_phy);
        }
        GetOutcome::Done(result)
    }

    /// A whole record from the files, if it is there.
    fn read_record(&self, phy_offset: u64, size: usize, out: &mut BytesMut) -> bool {
        if phy_offset < self.log.min() || size > self.log.size() as usize {
            return false;
        }
        let start = out.len();
        out.resize(start + size, 0);
        let read = self.log.read(phy_offset, &mut out[start..]);
        matches!(read, Ok(n) if n == size)
            && record::peek(&out[start..]) == (Peek::Record { size })
            && record::i64_at(&out[start..], record::PHY_OFFSET_AT) == Some(phy_offset as i64)
    }

    /// A reader far behind would push the log's end out of the page cache: what it has passed may go.
    fn let_go(&self, from: u64, to: u64) {
        let Some(segment) = self.log.at(from) else {
            return;
        };
        let to = to.min(segment.end());
        crate::platform::let_go(&segment.file, from - segment.base, to - from);
    }
}

struct Limits {
    count: u32,
    bytes: usize,
    memory: (usize, u32),
    disk: (usize, u32),
}

impl Limits {
    fn new(live: &Live, request: &GetRequest<'_>) -> Self {
        Self {
            count: request.max_count,
            bytes: request.max_bytes,
            memory: live.transfer_in_memory(),
            disk: live.transfer_on_disk(),
        }
    }

    /// The first record always goes.
    fn reached(&self, result: &GetResult, size: usize, on_disk: bool) -> bool {
        if result.count == 0 {
            return false;
        }
        let (bytes, count) = if on_disk { self.disk } else { self.memory };
        result.count >= self.count.min(count) || result.bytes + size > self.bytes.min(bytes)
    }
}

impl GetResult {
    fn without(
        status: GetStatus,
        next_begin_offset: i64,
        min_offset: i64,
        max_offset: i64,
    ) -> Self {
        Self {
            status,
            next_begin_offset,
            min_offset,
            max_offset,
            count: 0,
            bytes: 0,
            suggest_pulling_from_slave: false,
        }
    }
}
