//! Answers to sends that wait for the log: each is queued by the position at which its message ends and given when the
//! watermark of its level has passed that position. One wake per connection and watermark, never one per message.
//!
//! Invariant: an answer is queued under the lock that the release takes after the watermark moved, and the watermark is
//! read again under that lock, so no answer is left behind.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use bytes::BytesMut;
use parking_lot::Mutex;
use remoting::Connection;
use remoting::protocol::hot::{SendResponse, encode_send_response};
use remoting::protocol::{SerializeType, response_code};

use crate::http::Metrics;

/// What must have happened to a message before its send is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It is in the page cache.
    Written,
    /// It is on disk.
    Flushed,
}

/// The answer to one send, before its position is reached.
#[derive(Debug)]
pub struct SendAnswer {
    /// Of the request.
    pub opaque: i32,
    /// Of the request.
    pub serialize_type: SerializeType,
    /// What the answer says when all went well: success, or that there is no slave.
    pub code: i32,
    /// Queue of the message.
    pub queue_id: i32,
    /// Offset of the (first) message in its queue.
    pub queue_offset: i64,
    /// Position of the (first) message in the log.
    pub phy_offset: u64,
    /// Positions of the other messages of a batch.
    pub more: Option<Box<[u64]>>,
    /// End of the last message in the log.
    pub end: u64,
    /// Bytes that count as in flight until the answer.
    pub bytes: usize,
    /// When the request was read.
    pub started: Instant,
}

#[derive(Debug)]
struct Waiting {
    connection: Arc<Connection>,
    answer: SendAnswer,
}

/// Writes the answers of sends: what is the same in all of them.
#[derive(Debug)]
pub struct AnswerWriter {
    /// Upper-case hex of host and port, as each message id begins.
    host: String,
    region: String,
    trace_on: bool,
}

impl AnswerWriter {
    /// For messages stored as of this host.
    pub fn new(store_host: SocketAddr, region: &str, trace_on: bool) -> Self {
        let mut host = String::new();
        let mut hex = |bytes: &[u8]| {
            for byte in bytes {
                host.push_str(&format!("{byte:02X}"));
            }
        };
        match store_host.ip() {
            IpAddr::V4(ip) => hex(&ip.octets()),
            IpAddr::V6(ip) => hex(&ip.octets()),
        }
        hex(&u32::from(store_host.port()).to_be_bytes());
        Self {
            host,
            region: region.to_owned(),
            trace_on,
        }
    }

    fn push_id(&self, ids: &mut String, phy_offset: u64) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        ids.push_str(&self.host);
        for shift in (0..16).rev() {
            ids.push(char::from(HEX[(phy_offset >> (shift * 4)) as usize & 15]));
        }
    }

    /// Appends the answer, with this code and remark.
    pub fn write(
        &self,
        out: &mut BytesMut,
        answer: &SendAnswer,
        code: i32,
        remark: Option<&str>,
        ids: &mut String,
    ) {
        ids.clear();
        self.push_id(ids, answer.phy_offset);
        for offset in answer.more.iter().flatten() {
            ids.push(',');
            self.push_id(ids, *offset);
        }
        encode_send_response(
            out,
            &SendResponse {
                opaque: answer.opaque,
                serialize_type: answer.serialize_type,
                code,
                remark,
                msg_id: ids,
                queue_id: answer.queue_id,
                queue_offset: answer.queue_offset,
                transaction_id: None,
                region: &self.region,
                trace_on: self.trace_on,
            },
        );
    }
}

/// All answers that wait.
#[derive(Debug)]
pub struct AckTable {
    written: Mutex<VecDeque<Waiting>>,
    flushed: Mutex<VecDeque<Waiting>>,
    bytes: AtomicI64,
    writer: AnswerWriter,
    metrics: Arc<Metrics>,
}

impl AckTable {
    /// Nothing waits yet.
    pub fn new(writer: AnswerWriter, metrics: Arc<Metrics>) -> Self {
        Self {
            written: Mutex::default(),
            flushed: Mutex::default(),
            bytes: AtomicI64::new(0),
            writer,
            metrics,
        }
    }

    /// Writes answers of sends.
    pub fn writer(&self) -> &AnswerWriter {
        &self.writer
    }

    /// Bytes of messages whose sends are not answered yet.
    pub fn bytes_in_flight(&self) -> i64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many sends wait.
    pub fn waiting(&self) -> usize {
        self.written.lock().len() + self.flushed.lock().len()
    }

    /// Keeps the answer until the level's watermark, which `reached` reads, has passed its end; gives it back when it has.
    pub fn wait(
        &self,
        level: Level,
        connection: &Arc<Connection>,
        answer: SendAnswer,
        reached: impl Fn() -> u64,
    ) -> Option<SendAnswer> {
        let mut queue = self.queue(level).lock();
        if reached() >= answer.end {
            return Some(answer);
        }
        self.bytes.fetch_add(count(answer.bytes), Ordering::Relaxed);
        let at = queue
            .iter()
            .rposition(|w| w.answer.end <= answer.end)
            .map_or(0, |at| at + 1);
        queue.insert(
            at,
            Waiting {
                connection: Arc::clone(connection),
                answer,
            },
        );
        None
    }

    /// Gives every answer whose position was passed.
    pub fn release(&self, written: u64, flushed: u64) {
        self.release_queue(Level::Written, written);
        self.release_queue(Level::Flushed, flushed);
    }

    fn release_queue(&self, level: Level, reached: u64) {
        let done: Vec<Waiting> = {
            let mut queue = self.queue(level).lock();
            let count = queue.partition_point(|w| w.answer.end <= reached);
            if count == 0 {
                return;
            }
            queue.drain(..count).collect()
        };
        self.give(done, None);
    }

    /// The log failed: nothing that waits will ever be there.
    pub fn fail_all(&self, remark: &str) {
        for level in [Level::Written, Level::Flushed] {
            let done: Vec<Waiting> = self.queue(level).lock().drain(..).collect();
            self.give(done, Some((response_code::SYSTEM_ERROR, remark)));
        }
    }

    /// Answers FLUSH_DISK_TIMEOUT to sends that were read before this time.
    pub fn expire(&self, before: Instant) {
        let mut done = Vec::new();
        let mut queue = self.flushed.lock();
        let mut at = 0;
        while at < queue.len() {
            if queue[at].answer.started <= before
                && let Some(waiting) = queue.remove(at)
            {
                done.push(waiting);
            } else {
                at += 1;
            }
        }
        drop(queue);
        self.give(
            done,
            Some((
                response_code::FLUSH_DISK_TIMEOUT,
                "the message is written but its flush takes longer than syncFlushTimeout",
            )),
        );
    }

    fn give(&self, mut done: Vec<Waiting>, failure: Option<(i32, &str)>) {
        let bytes: usize = done.iter().map(|w| w.answer.bytes).sum();
        self.bytes.fetch_sub(count(bytes), Ordering::Relaxed);
        done.sort_by_key(|w| w.connection.id());
        let mut out = BytesMut::new();
        let mut ids = String::new();
        for group in done.chunk_by(|a, b| a.connection.id() == b.connection.id()) {
            out.clear();
            for waiting in group {
                let (code, remark) = failure
                    .map_or((waiting.answer.code, None), |(code, remark)| {
                        (code, Some(remark))
                    });
                self.writer
                    .write(&mut out, &waiting.answer, code, remark, &mut ids);
                self.metrics
                    .put_latency
                    .record(waiting.answer.started.elapsed());
            }
            group[0].connection.send_encoded(&out);
        }
    }

    fn queue(&self, level: Level) -> &Mutex<VecDeque<Waiting>> {
        match level {
            Level::Written => &self.written,
            Level::Flushed => &self.flushed,
        }
    }
}

fn count(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
