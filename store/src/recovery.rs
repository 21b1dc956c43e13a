//! From the files of the last run to a log with a known end, and queues and index that match it.
//!
//! The log is the truth. Where to begin: our own offsets if they belong to the checkpoint that is there and, for what
//! was not synced, to this run of the kernel; otherwise upstream's rules (section "checkpoint, recovery" of
//! `CommitLog.recoverNormally` and `recoverAbnormally`). The log ends at the first position that holds no valid
//! record; everything behind it is made zero.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Offsets, is_same_boot};
use crate::config::StoreConfig;
use crate::consume_queue::{ConsumeQueues, CqUnit};
use crate::error::Error;
use crate::frame::{self, FRAME_HEADER, Frame, begins_frame, frame_at};
use crate::index_file::{IndexRequest, IndexService};
use crate::put::Arrival;
use crate::queue_table;
use crate::record::{self, Peek, Record};
use crate::segment::Segments;

/// One read of the scan; longer records enlarge it.
const SCAN_BUFFER: usize = 4 << 20;
/// Units and index entries held in memory before they are written in a long rebuild.
const REBUILD_BATCH: usize = 1 << 20;

/// File name of the table of queues.
pub(crate) const QUEUE_TABLE: &str = "queues";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) end: u64,
    /// Queues and index hold everything below this: `end`, but in a log of frames only what is known to be committed.
    pub(crate) confirm: u64,
    /// Begin of the last record below `end`, as far as the scan saw one.
    pub(crate) last_phy: Option<u64>,
    pub(crate) last_store_timestamp: Option<i64>,
    pub(crate) records: u64,
    /// Queues and index are on disk below this.
    pub(crate) synced: u64,
    /// Queues and index were taken as our own offsets describe them, and nothing below them was lost.
    pub(crate) own_offsets_hold: bool,
    /// Queues were missing: nothing that was known about them on disk holds any more.
    pub(crate) queues_rebuilt: bool,
}

/// Calls `visit` with each valid record that begins within `from..to`; returns where that ends. In a log of frames only
/// the records of whole frames whose entries follow each other count; `from` may lie within a frame that is known whole.
pub(crate) fn scan(
    log: &Segments,
    from: u64,
    to: u64,
    mut visit: impl FnMut(u64, &Record<'_>, &[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut position = from;
    let mut window = Window {
        log,
        bytes: Vec::new(),
        base: from,
        filled: 0,
    };
    // The frame that `position` lies in: where it begins and ends.
    let mut within = 0..0;
    let mut before: Option<Frame> = None;
    while let Some(segment) = log.at(position).filter(|_| position < to) {
        let rest = (segment.end() - position) as usize;
        let Some(head) = window.get(position, 8)? else {
            break;
        };
        if begins_frame(head) {
            let Some(frame) = window.frame(position, rest)? else {
                break;
            };
            if before.is_some_and(|b| frame.index != b.index + 1 || frame.term < b.term) {
                break;
            }
            before = Some(frame);
            within = position..frame.end();
            position = if frame.kind == Frame::RECORDS {
                position + FRAME_HEADER as u64
            } else {
                frame.end()
            };
            continue;
        }
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
    // Never between the records of a frame.
    let torn = within.start < position && position < within.end && position < to;
    Ok(if torn { within.start } else { position })
}

/// The part of the log that a scan looks at.
struct Window<'a> {
    log: &'a Segments,
    bytes: Vec<u8>,
    base: u64,
    filled: usize,
}

impl Window<'_> {
    /// The whole frame that begins at `position`, with its body proved.
    fn frame(&mut self, position: u64, rest: usize) -> Result<Option<Frame>, Error> {
        let header = self.get(position, FRAME_HEADER)?.and_then(Frame::parse);
        let Some(frame) = header.filter(|f| f.position == position && f.len as usize <= rest)
        else {
            return Ok(None);
        };
        let bytes = self.get(position, frame.len as usize)?;
        Ok(bytes.filter(|b| frame.vouches_for(b)).map(|_| frame))
    }

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

/// Upstream's rule after an unclean stop: the newest file whose first record is not after the safe point. Unlike
/// upstream's, that record must be whole: a torn one may show any time.
fn start_by_time(log: &Segments, checkpoint: &Checkpoint) -> Result<u64, Error> {
    let safe = checkpoint.safe_timestamp();
    for segment in log.all().iter().rev() {
        let mut head = [0; record::STORE_TIMESTAMP_HEAD];
        let Some(first) = first_record(log, segment.base)? else {
            continue;
        };
        let n = log
            .read(first, &mut head)
            .map_err(|e| Error::io("read", &segment.path, e))?;
        if record::store_timestamp(&head[..n]).is_some_and(|t| t <= safe)
            && stands_at(log, segment.base)?
        {
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
        return Ok(own.last_phy != u64::MAX || own.dispatched <= log.min());
    }
    Ok(own.last_phy < own.dispatched && stands_at(log, own.last_phy)?)
}

/// A scan may begin at `position`: a whole record or frame begins there, or behind the padding that does.
fn stands_at(log: &Segments, position: u64) -> Result<bool, Error> {
    let io = |e| Error::io("read", log.dir(), e);
    let Some(segment) = log.at(position) else {
        return Ok(false);
    };
    let rest = segment.end() - position;
    let mut buffer = vec![0; 8];
    let n = log.read(position, &mut buffer).map_err(io)?;
    if begins_frame(&buffer[..n]) {
        let Some(frame) = frame_at(log, position)?.filter(|f| u64::from(f.len) <= rest) else {
            return Ok(false);
        };
        buffer.resize(frame.len as usize, 0);
        let n = log.read(position, &mut buffer).map_err(io)?;
        return Ok(frame.vouches_for(&buffer[..n]));
    }
    match record::peek(&buffer[..n]) {
        Peek::Blank { size } if size as u64 == rest => stands_at(log, segment.end()),
        Peek::Record { size } if size as u64 <= rest => {
            buffer.resize(size, 0);
            let n = log.read(position, &mut buffer).map_err(io)?;
            Ok(n == size && Record::parse(&buffer, true).is_some_and(|r| r.phy_offset == position))
        }
        _ => Ok(false),
    }
}

/// The first record at or behind the begin of a segment, in a log of frames as well.
fn first_record(log: &Segments, base: u64) -> Result<Option<u64>, Error> {
    let mut position = base;
    loop {
        match frame_at(log, position)? {
            Some(frame) if frame.kind == Frame::RECORDS => {
                return Ok(Some(position + FRAME_HEADER as u64));
            }
            Some(frame) => position = frame.end(),
            None => return Ok((position == base).then_some(position)),
        }
    }
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
        let end = log.min();
        queues.clear()?;
        queues.set_log_end(end);
        return Ok(Recovered {
            end,
            confirm: end,
            last_phy: None,
            last_store_timestamp: None,
            records: 0,
            synced: 0,
            own_offsets_hold: false,
            queues_rebuilt: false,
        });
    }
    let min = log.min();
    let mut lost_tail_from = None;
    let own = match own {
        Some(own) if stands(log, &own)? => Some(own),
        Some(own) if stands_at(log, own.synced)? => {
            lost_tail_from = Some(own.synced);
            None
        }
        _ => None,
    };
    let trusted = own
        .as_ref()
        .filter(|own| clean || is_same_boot(&own.boot_id));
    let queues_rebuilt = queues.count() == 0
        || own
            .as_ref()
            .is_some_and(|own| (queues.count() as u64) < own.queues);
    let queue_start = match (&own, trusted) {
        (Some(own), _) if (queues.count() as u64) < own.queues => {
            tracing::warn!(
                found = queues.count(),
                expected = own.queues,
                "consume queues are missing: all are rebuilt from the log"
            );
            min
        }
        (_, Some(own)) => own.dispatched,
        (Some(own), None) => own.synced,
        (None, _) if queues.count() == 0 => min,
        (None, _) => match lost_tail_from {
            Some(synced) => synced,
            None if clean => queues.highest_phy()?.max(min),
            None => start_by_time(log, checkpoint)?,
        },
    };
    let expected = match &own {
        Some(_) => queue_table::read(&config.root.join(QUEUE_TABLE)),
        None => queue_table::Expected::default(),
    };
    if let Some(index) = index
        && index.lost_files(&expected.index_files, min)
    {
        tracing::warn!("index files are missing: the index is rebuilt from the log");
        index.clear(&expected.index_files)?;
    }
    let index_start = match (index, &own) {
        (None, _) => u64::MAX,
        (Some(index), own) => match (index.last_phy(), own) {
            // Nothing was ever indexed below these offsets, or exactly what is there.
            (None, Some(own)) if own.index_last_phy == u64::MAX => own.dispatched,
            (None, _) => min,
            (Some(last), Some(own))
                if own.index_last_phy != u64::MAX
                    && last >= own.index_last_phy
                    && trusted.is_some() =>
            {
                own.dispatched.max(last)
            }
            (Some(last), _) => last,
        },
    };
    let indexed_to = index.and_then(IndexService::last_phy);
    if let Some(own) = &own
        && queue_start >= own.synced
    {
        queues.expect(expected.queues);
    }
    let index_record = |position: u64, record: &Record<'_>| -> Result<(), Error> {
        let Some(index) = index.filter(|_| indexed_to.is_none_or(|to| position >= to)) else {
            return Ok(());
        };
        let mut hashes = smallvec::SmallVec::new();
        let prefix = record::java_hash(record::java_hash(0, record.topic), "#");
        index_hashes(record, prefix, &mut hashes);
        let store_timestamp = record.store_timestamp;
        let requests = hashes.iter().map(|&hash| IndexRequest {
            hash,
            phy_offset: position,
            store_timestamp,
        });
        if index.submit(requests) >= REBUILD_BATCH {
            unless_full(index.write())?;
        }
        Ok(())
    };
    // A file may have been taken away behind our back: then begin where there surely is a record.
    let queue_start = if queue_start > log.last_end() {
        min
    } else {
        queue_start.max(min)
    };
    // The index may lag by much more than the queues. Where this part ends says nothing about the log's end.
    let index_start = index_start.max(min);
    if index_start < queue_start {
        let from = if stands_at(log, index_start)? {
            index_start
        } else {
            min
        };
        scan(log, from, queue_start, |position, record, _| {
            index_record(position, record)
        })?;
    }
    // What was dispatched was committed.
    let committed = match config.frames {
        Some(frames) => frames
            .committed
            .max(own.as_ref().map_or(0, |own| own.dispatched)),
        None => u64::MAX,
    };
    let mut last = None;
    let mut newest = None;
    let mut records = 0u64;
    let end = scan(log, queue_start, u64::MAX, |position, record, _| {
        records += 1;
        newest = Some(record.store_timestamp);
        if position >= committed {
            return Ok(());
        }
        last = Some((position, record.store_timestamp));
        // Units at or beyond this record are of a tail that is read again now.
        queues.set_log_end(position);
        if record::enters_queue(record.sys_flag) {
            if let Some(arrival) = arrival(queues, record, config)? {
                queues.push(&arrival.queue, arrival.queue_offset, unit(&arrival))?;
                queues.follow(&arrival.queue);
            }
            if queues.unwritten() >= REBUILD_BATCH {
                unless_full(queues.write_dirty(u64::MAX))?;
            }
        }
        if position >= index_start {
            index_record(position, record)
        } else {
            Ok(())
        }
    })?;
    let end = match config.frames {
        Some(_) => frame::unpadded_end(log, end)?,
        None => end,
    };
    let confirm = end.min(committed).max(min);
    queues.set_log_end(confirm);
    if config.frames.is_some() && own.is_none() {
        queues.truncate_to(confirm)?;
    }
    log.cut(end)?;
    if let Some(index) = index {
        unless_full(index.catch_up())?;
        if index.last_phy().is_some_and(|last| last >= confirm) {
            index.truncate_to(confirm)?;
        }
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
    let own_offsets_hold =
        trusted.is_some_and(|own| own.dispatched == queue_start && own.dispatched <= end);
    if !own_offsets_hold && queues.expects() {
        // The table of what must be there is about to be forgotten: what it shows to be missing comes back, and stays, now.
        queues.load_all()?;
        queues.write_dirty(u64::MAX)?;
        queues.sync()?;
    }
    let synced = match trusted {
        Some(own) if clean => own.dispatched,
        _ => own.as_ref().map_or(0, |own| own.synced),
    };
    Ok(Recovered {
        end,
        confirm,
        last_phy: last.map(|l| l.0),
        last_store_timestamp: newest.or(last.map(|l| l.1)),
        records,
        synced: synced.min(queue_start).min(confirm),
        own_offsets_hold,
        queues_rebuilt,
    })
}

/// What finds no room stays in memory: a broker with a full disk starts, to be read from and, in a group, to vote.
pub(crate) fn unless_full(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_disk_full() => {
            tracing::warn!(%error, "the disk is full");
            Ok(())
        }
        other => other,
    }
}

pub(crate) fn requests(arrival: &Arrival) -> impl Iterator<Item = IndexRequest> + '_ {
    arrival.key_hashes.iter().map(|hash| IndexRequest {
        hash: *hash,
        phy_offset: arrival.phy_offset,
        store_timestamp: arrival.store_timestamp,
    })
}
