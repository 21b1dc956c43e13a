use std::sync::atomic::{AtomicI64, Ordering};

/// One queue of a topic: 20-byte units that point into the CommitLog.
pub struct ConsumeQueue {
    topic: String,
    queue_id: i32,
    min: AtomicI64,
    max: AtomicI64,
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
        self.min.load(Ordering::Acquire)
    }
    /// Next offset to become visible.
    pub fn max_offset(&self) -> i64 {
        self.max.load(Ordering::Acquire)
    }
}
