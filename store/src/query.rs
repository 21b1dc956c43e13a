//! Reading by position, key and time.

use bytes::Bytes;

use crate::consume_queue::{ConsumeQueue, partition};
use crate::record::{self, END_FILE_MIN_BLANK, Peek, Record};
use crate::store::{Boundary, QueryResult, Store};

/// Records that one query by key returns at most, whatever is asked (upstream `maxMsgsNumBatch`).
const MAX_QUERY: usize = 64;

impl Store {
    /// The whole record that begins at `phy_offset`; None if none does, or if it is not visible yet.
    pub fn record_at(&self, phy_offset: u64) -> Option<Bytes> {
        let end = self.confirm_offset();
        if phy_offset < self.min_phy_offset() || phy_offset.checked_add(END_FILE_MIN_BLANK)? > end {
            return None;
        }
        let mut bytes = Vec::new();
        self.read_log(phy_offset, END_FILE_MIN_BLANK as usize, &mut bytes)
            .ok()?;
        let Peek::Record { size } = record::peek(&bytes) else {
            return None;
        };
        let rest = self.log.size() - phy_offset % self.log.size();
        if size as u64 > rest || phy_offset + size as u64 > end {
            return None;
        }
        bytes.clear();
        self.read_log(phy_offset, size, &mut bytes).ok()?;
        Record::parse(&bytes, false).filter(|r| r.phy_offset == phy_offset)?;
        Some(bytes.into())
    }

    /// Up to `max` records whose key or unique key hashes like `key`, stored within `begin..=end` (ms). Blocks.
    pub fn query(&self, topic: &str, key: &str, max: usize, begin: i64, end: i64) -> QueryResult {
        let Some(index) = &self.index else {
            return QueryResult::default();
        };
        let hash = record::index_hash(record::java_hash(record::java_hash(0, topic), "#"), key);
        let max = max.min(MAX_QUERY);
        let found = index.query(hash, max, begin, end).unwrap_or_else(|error| {
            tracing::error!(topic, key, %error, "the index cannot be read");
            Vec::new()
        });
        // The index knows hashes and whole seconds; records that only collide are no one's gain.
        let wanted = |record: &Bytes| {
            Record::parse(record, false)
                .is_some_and(|r| r.topic == topic && (begin..=end).contains(&r.store_timestamp))
        };
        QueryResult {
            records: found
                .into_iter()
                .filter_map(|phy_offset| self.record_at(phy_offset))
                .filter(wanted)
                .collect(),
            index_last_update_timestamp: index.last_timestamp(),
            index_last_update_phy_offset: index.last_phy().map_or(0, |p| p as i64),
        }
    }

    fn store_time(&self, queue: &ConsumeQueue, queue_offset: i64) -> Option<i64> {
        let unit = self
            .queues
            .unit(queue, queue_offset)
            .filter(|u| !u.is_filler())?;
        self.store_time_at_phy(u64::try_from(unit.phy_offset).ok()?)
    }

    fn store_time_at_phy(&self, phy_offset: u64) -> Option<i64> {
        if phy_offset < self.min_phy_offset() || phy_offset >= self.confirm_offset() {
            return None;
        }
        let mut head = Vec::with_capacity(record::STORE_TIMESTAMP_HEAD);
        self.read_log(phy_offset, record::STORE_TIMESTAMP_HEAD, &mut head)
            .ok()?;
        record::store_timestamp(&head)
    }

    /// The queue offset that belongs to a time; 0 for an unknown or empty queue. May read from disk.
    pub fn offset_by_time(
        &self,
        topic: &str,
        queue_id: i32,
        timestamp: i64,
        boundary: Boundary,
    ) -> i64 {
        let Some(queue) = self.find_queue(topic, queue_id) else {
            return 0;
        };
        let (min, max) = (queue.min_offset(), queue.max_offset());
        if max <= min {
            return 0;
        }
        // A record that cannot be read counts as old: it lies below the log's beginning.
        let before = |limit: &dyn Fn(i64) -> bool| {
            partition(min, max, |i| {
                Ok(self.store_time(&queue, i).is_none_or(limit))
            })
            .unwrap_or(min)
        };
        match boundary {
            Boundary::Lower => before(&|time| time < timestamp),
            Boundary::Upper => (before(&|time| time <= timestamp) - 1).max(min),
        }
    }

    /// Store timestamp of the record at a queue offset; None if it is not there.
    pub fn store_time_at(&self, topic: &str, queue_id: i32, queue_offset: i64) -> Option<i64> {
        self.store_time(&*self.find_queue(topic, queue_id)?, queue_offset)
    }

    /// Store timestamp of the queue's first record; -1 if there is none.
    pub fn earliest_store_time(&self, topic: &str, queue_id: i32) -> i64 {
        let Some(queue) = self.find_queue(topic, queue_id) else {
            return -1;
        };
        self.store_time(&queue, queue.min_offset()).unwrap_or(-1)
    }

    /// Store timestamp of the log's first record; -1 if it is empty.
    pub fn earliest_message_time(&self) -> i64 {
        self.store_time_at_phy(self.min_phy_offset()).unwrap_or(-1)
    }

    /// Next visible offset of a queue; 0 if unknown.
    pub fn max_offset(&self, topic: &str, queue_id: i32) -> i64 {
        self.find_queue(topic, queue_id)
            .map_or(0, |queue| queue.max_offset())
    }

    pub fn min_offset(&self, topic: &str, queue_id: i32) -> i64 {
        self.find_queue(topic, queue_id)
            .map_or(0, |queue| queue.min_offset())
    }

    /// Raw units `(phy_offset, size, tags_code)` from `offset` on (code 321).
    pub fn query_consume_queue(
        &self,
        topic: &str,
        queue_id: i32,
        offset: i64,
        count: usize,
    ) -> Vec<(i64, i32, i64)> {
        let Some(queue) = self.find_queue(topic, queue_id) else {
            return Vec::new();
        };
        let mut units = Vec::new();
        let mut next = offset.max(queue.min_offset());
        while units.len() < count {
            let held = units.len();
            if self
                .queues
                .units(&queue, next, count - held, &mut units)
                .is_err()
                || units.len() == held
            {
                break;
            }
            next += (units.len() - held) as i64;
        }
        units
            .into_iter()
            .map(|u| (u.phy_offset, u.size, u.tags_code))
            .collect()
    }
}
