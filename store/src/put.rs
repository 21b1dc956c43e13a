//! What goes in, and what is told about it.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::consume_queue::ConsumeQueue;

/// The third field of a ConsumeQueue unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagsCode {
    /// Java's `String.hashCode` of TAGS, sign-extended; 0 without tags.
    Hash(i64),
    /// SCHEDULE_TOPIC_XXXX: the due time, that is the store timestamp plus this many milliseconds.
    DelayMs(i64),
}

/// One message to append. `properties` and `body` are final bytes.
#[derive(Clone, Copy)]
pub struct PutMessage<'a> {
    pub queue: &'a Arc<ConsumeQueue>,
    pub flag: i32,
    /// The host-width bits 0x10 and 0x20 are set by the store from the two addresses.
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    pub body: &'a [u8],
    pub properties: &'a [u8],
    pub tags_code: TagsCode,
    /// UNIQ_KEY, empty for none.
    pub unique_key: &'a str,
    /// KEYS: words separated by blanks, empty for none.
    pub keys: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendedRecord {
    pub phy_offset: u64,
    /// 0 for prepared and rollback records, which enter no queue.
    pub queue_offset: i64,
    pub size: u32,
}

/// Where an append went. It is durable, or visible, when the watermarks reach `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Of the first record.
    pub phy_offset: u64,
    /// Of the first record.
    pub queue_offset: i64,
    pub store_timestamp: i64,
    /// Position after the last record.
    pub end: u64,
    /// One per message, in order.
    pub records: SmallVec<[AppendedRecord; 4]>,
}

/// A record that became visible: it lies in its queue, below the confirm offset.
#[derive(Clone)]
pub struct Arrival {
    pub queue: Arc<ConsumeQueue>,
    pub queue_offset: i64,
    pub phy_offset: u64,
    pub size: u32,
    pub tags_code: i64,
    pub store_timestamp: i64,
    /// Prepared and rollback records are in the log but in no queue; listeners do not see them.
    pub(crate) in_queue: bool,
    pub(crate) key_hashes: SmallVec<[i32; 2]>,
}
