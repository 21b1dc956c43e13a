//! From the files of the last run to a log with a known end, and queues and index that match it.
//!
//! The log is the truth. Where to begin: our own offsets if they belong to the checkpoint that is there and, for what
//! was not synced, to this run of the kernel; otherwise upstream's rules (section "checkpoint, recovery" of
//! `CommitLog.recoverNormally` and `recoverAbnormally`). The log ends at the first position that holds no valid
//! record; everything behind it is made zero.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Offsets, boot_id};
use crate::config::StoreConfig;
use crate::consume_queue::{ConsumeQueues, CqUnit};
use crate::error::Error;
use crate::index_file::{IndexRequest, IndexService};
use crate::put::Arrival;
use crate::record::{self, Peek, Record};
use crate::segment::Segments;

/// One read of the scan; longer records enlarge it.
const SCAN_BUFFER: usize = 4 << 20;
/// Units and index entries held in memory before they are written in a long rebuild.
const REBUILD_BATCH: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) end: u64,
    /// Begin of the last record below `end`, as far as the scan saw one.
    pub(crate) last_phy: Option<u64>,
    pub(crate) last_store_timestamp: Option<i64>,
    pub(crate) records: u64,
}

/// Calls `visit` with each valid record from `from` on; returns where that ends.
pub(crate) fn scan(
    log: &Segments,
    from: u64,
    mut visit: impl FnMut(u64, &Record<'_>, &[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut position = from;
    let mut window = Window {
        log,
        bytes: Vec::new(),
        base: from,
        filled: 0,
    };
    while let Some(segment) = log.at(position) {
        let rest = (segment.end() - position) as usize;
        let Some(head) = window.get(position, 8)? else {
            break;
        };
        match record::peek(head) {
            Peek::Blank { size } if size == rest => position += rest as u64,
            Peek::Record { size } if size <= rest => {
                let Some(bytes) = window.get(position, size)? else {
                    break;
                };
                let Some(record) = Record::parse(bytes, true).filter(|r| r.phy_offset == position)
                else {
                    break;
                };
                visit(position, &record, bytes)?;
                position += size as u64;
            }
            _ => break,
        }
    }
    Ok(position)
}

/// The part of the log that a scan looks at.
struct Window<'a> {
    log: &'a Segments,
    bytes: Vec<u8>,
    base: u64,
    filled: usize,
}

impl Window<'_> {
    /// `len` bytes at `position`, or None if the segment ends before.
    fn get(&mut self, position: u64, len: usize) -> Result<Option<&[u8]>, Error> {
        let held = self.base <= position && position + len as u64 <= self.base + self.filled as u64;
        if !held {
            self.bytes.resize(len.max(SCAN_BUFFER), 0);
            self.base = position;
            self.filled = self
                .log
                .read(position, &mut self.bytes)
                .map_err(|e| Error::io("read", self.log.dir(), e))?;
        }
        let at = (position - self.base) as usize;
        Ok(self.bytes[..self.filled].get(at..at + len))
    }
}

/// What a record means to its queue and to the index.
pub(crate) fn index_hashes(
    record: &Record<'_>,
    key_prefix: i32,
    out: &mut smallvec::SmallVec<[i32; 2]>,
) {
    if !record::is_indexed(record.sys_flag) {
        return;
    }
    if let Some(key) = record.property("UNIQ_KEY") {
        out.push(record::index_hash(key_prefix, &key));
    }
    if let Some(keys) = record.property("KEYS") {
        out.extend(
            keys.split(' ')
                .filter(|k| !k.is_empty())
                .map(|k| record::index_hash(key_prefix, k)),
        );
    }
}

/// Turns a record read from the log into what dispatching needs.
pub(crate) fn arrival(
    queues: &ConsumeQueues,
    record: &Record<'_>,
    config: &StoreConfig,
) -> Result<Option<Arrival>, Error> {
    let queue = match queues.get(record.topic, record.queue_id) {
        Ok(queue) => queue,
        Err(Error::Invalid(text)) => {
            tracing::warn!(
                text,
                phy_offset = record.phy_offset,
                "a record enters no queue"
            );
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let mut key_hashes = smallvec::SmallVec::new();
    if config.message_index_enable {
        index_hashes(record, queue.key_prefix(), &mut key_hashes);
    }
    Ok(Some(Arrival {
        queue_offset: record.queue_offset,
        phy_offset: record.phy_offset,
        size: record.size as u32,
        tags_code: record.tags_code(&config.delay_levels_ms),
        store_timestamp: record.store_timestamp,
        in_queue: record::enters_queue(record.sys_flag),
        queue,
        key_hashes,
    }))
}

pub(crate) fn unit(arrival: &Arrival) -> CqUnit {
    CqUnit {
        phy_offset: arrival.phy_offset as i64,
        size: arrival.size as i32,
        tags_code: arrival.tags_code,
    }
}

/// Upstream's rule after an unclean stop: the newest file whose first record is not after the safe point.
fn start_by_time(log: &Segments, checkpoint: &Checkpoint) -> Result<u64, Error> {
    let safe = checkpoint.safe_timestamp();
    for segment in log.all().iter().rev() {
        let mut head = [0; record::STORE_TIMESTAMP_HEAD];
        let n = log
            .read(segment.base, &mut head)
            .map_err(|e| Error::io("read", &segment.path, e))?;
        if record::store_timestamp(&head[..n]).is_some_and(|t| t <= safe) {
            return Ok(segment.base);
        }
    }
    Ok(log.min())
}

/// Our own offsets are believed only if the last record they speak of is there, whole.
fn stands(log: &Segments, own: &Offsets) -> Result<bool, Error> {
    if own.dispatched < log.min() || own.dispatched > log.last_end() {
        return Ok(false);
    }
    if own.last_phy == u64::MAX || own.last_phy < log.min() {
        return Ok(own.dispatched <= log.min() || own.last_phy < log.min());
    }
    let mut buffer = vec![0; 8];
    let io = |e| Error::io("read", log.dir(), e);
    log.read(own.last_phy, &mut buffer).map_err(io)?;
    let Peek::Record { size } = record::peek(&buffer) else {
        return Ok(false);
    };
    if size as u64 > log.size() {
        return Ok(false);
    }
    buffer.resize(size, 0);
    let n = log.read(own.last_phy, &mut buffer).map_err(io)?;
    Ok(n == size
        && own.last_phy + size as u64 <= own.dispatched
        && Record::parse(&buffer, true).is_some_and(|r| r.phy_offset == own.last_phy))
}

pub(crate) fn recover(
    log: &Arc<Segments>,
    queues: &ConsumeQueues,
    index: Option<&IndexService>,
    config: &StoreConfig,
    clean: bool,
    checkpoint: &Checkpoint,
    own: Option<Offsets>,
) -> Result<Recovered, Error> {
    if log.last_end() == 0 {
        queues.clear()?;
        queues.set_log_end(0);
        return Ok(Recovered {
            end: 0,
            last_phy: None,
            last_store_timestamp: None,
            records: 0,
        });
    }
    let min = log.min();
    let own = match own {
        Some(own) if stands(log, &own)? => Some(own),
        _ => None,
    };
    let same_kernel = own.as_ref().is_some_and(|own| own.boot_id == boot_id());
    let queue_start = match &own {
        Some(own) if (queues.count() as u64) < own.queues => {
            tracing::warn!(
                found = queues.count(),
                expected = own.queues,
                "consume queues are missing: all are rebuilt from the log"
            );
            min
        }
        Some(own) if clean || same_kernel => own.dispatched,
        Some(own) => own.synced,
        None if queues.count() == 0 => min,
        None if clean => queues.highest_phy()?.max(min),
        None => start_by_time(log, checkpoint)?,
    };
    let index_start = match (index, &own) {
        (None, _) => u64::MAX,
        (Some(index), own) => match (index.last_phy(), own) {
            // Nothing was ever indexed below these offsets, or exactly what is there.
            (None, Some(own)) if own.index_last_phy == u64::MAX => own.dispatched,
            (None, _) => min,
            (Some(last), Some(own))
                if own.index_last_phy != u64::MAX
                    && last >= own.index_last_phy
                    && (clean || same_kernel) =>
            {
                own.dispatched.max(last)
            }
            (Some(last), _) => last,
        },
    };
    let indexed_to = index.and_then(IndexService::last_phy);
    let mut start = queue_start.min(index_start).max(min);
    // A file may have been cut or exchanged behind our back: then begin where there surely is a record.
    if start > log.last_end() {
        start = min;
    }
    let mut last = None;
    let mut records = 0u64;
    let end = scan(log, start, |position, record, _| {
        records += 1;
        last = Some((position, record.store_timestamp));
        // Units at or beyond this record are of a tail that is read again now.
        queues.set_log_end(position.max(queue_start));
        if position >= queue_start && record::enters_queue(record.sys_flag) {
            if let Some(arrival) = arrival(queues, record, config)? {
                queues.push(&arrival.queue, arrival.queue_offset, unit(&arrival))?;
                queues.follow(&arrival.queue);
            }
            if queues.unwritten() >= REBUILD_BATCH {
                queues.write_dirty(u64::MAX)?;
            }
        }
        if let Some(index) = index
            && position >= index_start
            && indexed_to.is_none_or(|to| position >= to)
        {
            let mut hashes = smallvec::SmallVec::new();
            index_hashes(
                record,
                record::java_hash(record::java_hash(0, record.topic), "#"),
                &mut hashes,
            );
            let store_timestamp = record.store_timestamp;
            let requests = hashes.iter().map(|&hash| IndexRequest {
                hash,
                phy_offset: position,
                store_timestamp,
            });
            if index.submit(requests) >= REBUILD_BATCH {
                index.write()?;
            }
        }
        Ok(())
    })?;
    queues.set_log_end(end);
    log.cut(end)?;
    if let Some(index) = index {
        index.catch_up()?;
    }
    if let (None, Some(own)) = (last, &own)
        && own.last_phy != u64::MAX
        && own.last_phy >= min
        && own.dispatched <= end
    {
        let mut head = [0; record::STORE_TIMESTAMP_HEAD];
        log.read(own.last_phy, &mut head)
            .map_err(|e| Error::io("read", log.dir(), e))?;
        last = record::store_timestamp(&head).map(|t| (own.last_phy, t));
    }
    Ok(Recovered {
        end,
        last_phy: last.map(|l| l.0),
        last_store_timestamp: last.map(|l| l.1),
        records,
    })
}

pub(crate) fn requests(arrival: &Arrival) -> impl Iterator<Item = IndexRequest> + '_ {
    arrival.key_hashes.iter().map(|hash| IndexRequest {
        hash: *hash,
        phy_offset: arrival.phy_offset,
        store_timestamp: arrival.store_timestamp,
    })
}
