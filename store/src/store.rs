use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::clock::Clock;
use crate::config::StoreConfig;
use crate::consume_queue::ConsumeQueue;
use crate::error::{Error, NotWritable, PutError};
use crate::get::{GetOutcome, GetRequest, GetResult};
use crate::put::{Appended, Arrival, PutMessage};

/// What makes a written record visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// As soon as it is written (single master, master and slave).
    Written,
    /// When `advance_confirm` says so (Raft).
    External,
}

/// `appended >= written >= flushed`, `written >= confirm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    pub appended: u64,
    pub written: u64,
    pub flushed: u64,
    pub confirm: u64,
    /// Poisoned: nothing above these positions will ever get there; fail the waiters.
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
    /// Whole records as stored, newest first as the index yields them.
    pub records: Vec<Bytes>,
    /// Of the newest index file: update time and last indexed position.
    pub index_last_update_timestamp: i64,
    pub index_last_update_phy_offset: i64,
}

#[derive(Clone, Debug, Default)]
pub struct RuntimeFigures {
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
}

pub struct Store {
    _private: (),
}

impl Store {
    /// Takes the lock file, refuses kinds it does not serve, recovers, starts the background threads.
    pub fn open(_config: StoreConfig, _clock: Arc<dyn Clock>) -> Result<Arc<Store>, Error> {
        Err(Error::Unsupported("not built yet".into()))
    }
    pub fn config(&self) -> &StoreConfig {
        unreachable!()
    }
    /// The queue, created on demand. The first touch of a queue after a start reads its files.
    pub fn queue(&self, _topic: &str, _queue_id: i32) -> Result<Arc<ConsumeQueue>, Error> {
        unreachable!()
    }
    /// The queue if it exists.
    pub fn find_queue(&self, _topic: &str, _queue_id: i32) -> Option<Arc<ConsumeQueue>> {
        unreachable!()
    }
    /// Every topic with the ids of its queues.
    pub fn queues(&self) -> BTreeMap<String, Vec<i32>> {
        unreachable!()
    }
    pub fn queues_of(&self, _topic: &str) -> Vec<i32> {
        unreachable!()
    }
    /// Encodes and appends consecutive records to the tail ring under one short lock; assigns physical and
    /// queue offsets and the store timestamp. No I/O: call [`Store::drive`] after it.
    pub fn append(&self, _messages: &[PutMessage<'_>]) -> Result<Appended, PutError> {
        unreachable!()
    }
    /// Bytes of another log at their own position, cut anywhere (HA stream).
    pub fn append_raw(&self, _position: u64, _bytes: &[u8]) -> Result<u64, PutError> {
        unreachable!()
    }
    /// Drops everything from `position`, a record border, on; queues included.
    pub fn truncate_to(&self, _position: u64) -> Result<(), Error> {
        unreachable!()
    }
    /// Raw log bytes from `position` up to `written`, never across a segment; returns how many.
    pub fn read_range(
        &self,
        _position: u64,
        _max: usize,
        _out: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        unreachable!()
    }
    /// If nobody writes: writes all that is pending, dispatches it and calls the listeners. Else returns at once.
    pub fn drive(&self) {}
    pub fn appended(&self) -> u64 {
        unreachable!()
    }
    pub fn written(&self) -> u64 {
        unreachable!()
    }
    pub fn flushed(&self) -> u64 {
        unreachable!()
    }
    pub fn confirm_offset(&self) -> u64 {
        unreachable!()
    }
    pub fn min_phy_offset(&self) -> u64 {
        unreachable!()
    }
    pub fn watermarks(&self) -> Watermarks {
        unreachable!()
    }
    pub fn set_confirm(&self, _confirm: Confirm) {}
    pub fn advance_confirm(&self, _offset: u64) {}
    /// Called after written, flushed or confirm advanced, or the store was poisoned; from any thread, must be short.
    pub fn on_watermark(&self, _listener: Box<dyn Fn(Watermarks) + Send + Sync>) {}
    /// Called with each batch of records that became visible, before the watermark listener.
    pub fn on_arrival(&self, _listener: Box<dyn Fn(&[Arrival]) + Send + Sync>) {}
    /// Blocks until `flushed >= position`, the store fails, or the time is over.
    pub fn wait_flushed(&self, _position: u64, _timeout: Duration) -> bool {
        unreachable!()
    }
    /// Copies whole records from memory; never touches the log's files.
    pub fn get_message(&self, _request: &GetRequest<'_>, _out: &mut BytesMut) -> GetOutcome {
        unreachable!()
    }
    /// The same from disk; blocks.
    pub fn get_message_cold(&self, _request: &GetRequest<'_>, _out: &mut BytesMut) -> GetResult {
        unreachable!()
    }
    /// The whole record that begins at `phy_offset`; None if none does.
    pub fn record_at(&self, _phy_offset: u64) -> Option<Bytes> {
        unreachable!()
    }
    /// Up to `max` records whose key or unique key hashes like `key`, stored within `begin..=end` (ms). Blocks.
    pub fn query(
        &self,
        _topic: &str,
        _key: &str,
        _max: usize,
        _begin: i64,
        _end: i64,
    ) -> QueryResult {
        unreachable!()
    }
    /// Section 6.7. 0 for an unknown or empty queue. May read from disk.
    pub fn offset_by_time(
        &self,
        _topic: &str,
        _queue_id: i32,
        _timestamp: i64,
        _boundary: Boundary,
    ) -> i64 {
        unreachable!()
    }
    /// Store timestamp of the record at a queue offset; None if it is not there.
    pub fn store_time_at(&self, _topic: &str, _queue_id: i32, _queue_offset: i64) -> Option<i64> {
        unreachable!()
    }
    /// Store timestamp of the queue's first record; -1 if there is none.
    pub fn earliest_store_time(&self, _topic: &str, _queue_id: i32) -> i64 {
        unreachable!()
    }
    /// Of the log's first record; -1 if it is empty.
    pub fn earliest_message_time(&self) -> i64 {
        unreachable!()
    }
    /// Next visible offset of a queue; 0 if unknown.
    pub fn max_offset(&self, _topic: &str, _queue_id: i32) -> i64 {
        unreachable!()
    }
    pub fn min_offset(&self, _topic: &str, _queue_id: i32) -> i64 {
        unreachable!()
    }
    /// Raw units `(phy_offset, size, tags_code)` from `offset` on (code 321).
    pub fn query_consume_queue(
        &self,
        _topic: &str,
        _queue_id: i32,
        _offset: i64,
        _count: usize,
    ) -> Vec<(i64, i32, i64)> {
        unreachable!()
    }
    /// Removes the queues of a topic; its records stay in the log until retention takes them.
    pub fn delete_topic(&self, _topic: &str) -> Result<(), Error> {
        unreachable!()
    }
    /// Queues of topics not in `keep` (cleanUnusedTopic).
    pub fn clean_unused_topics(&self, _keep: &dyn Fn(&str) -> bool) -> Vec<String> {
        unreachable!()
    }
    /// Request 329: delete expired segments at the next check, whatever the hour.
    pub fn delete_expired_now(&self) {}
    pub fn runtime_figures(&self) -> RuntimeFigures {
        unreachable!()
    }
    pub fn poisoned(&self) -> Option<String> {
        unreachable!()
    }
    pub fn writable(&self) -> Result<(), NotWritable> {
        unreachable!()
    }
    /// Drains, flushes everything, joins the threads, removes `abort`.
    pub fn shutdown(&self) {}
}
