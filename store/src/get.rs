//! Reading by queue offset.

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
