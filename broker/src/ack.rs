//! Answers to sends that wait for the log: each is queued by the position at which its message ends and given when the
//! watermark of its level has passed that position. One wake per connection and watermark, never one per message.
//!
//! No answer is left behind: see [`store::Waiters`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use bytes::BytesMut;
use remoting::Connection;
use remoting::protocol::hot::{SendResponse, SendResponseTemplate, encode_send_response};
use remoting::protocol::{SerializeType, response_code};
use store::{Waiters, Watermarks};

use crate::broker::Broker;
use crate::http::Metrics;

/// Answers that wait for no flush are held all the same while more than this waits to be flushed, so that senders fall back to the speed of the disk
/// instead of running into the bound at which the store refuses them (`store::StoreConfig::max_unflushed_bytes`, twice this).
const UNFLUSHED_WHEN_HELD: u64 = 128 << 20;

/// Remark of a send that is stored here and that no slave, or too few, said to have.
const NOT_REPLICATED: &str =
    "the message is stored, but too few slaves said within slaveTimeout that they have it";

/// The remark where a group lost its leader while a send waited.
const IN_DOUBT: &str =
    "the group changes its leader: it is not known whether the message will be there";

/// What must have happened to a message before its send is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It is in the page cache and in its queue: who sends and then reads finds it.
    Confirmed,
    /// It is on disk as well.
    Flushed,
    /// Confirmed, and enough slaves have it.
    Replicated,
    /// On disk, and enough slaves have it.
    FlushedReplicated,
}

impl Level {
    /// Levels that only the log itself decides.
    const LOCAL: [Self; 2] = [Self::Confirmed, Self::Flushed];
    /// Levels that slaves have a part in.
    const REPLICATED: [Self; 2] = [Self::Replicated, Self::FlushedReplicated];

    /// The position up to which this holds; `replicated` is what enough slaves have.
    pub fn reached(self, marks: &Watermarks, replicated: u64) -> u64 {
        let confirmed = marks
            .confirm
            .min(marks.flushed.saturating_add(UNFLUSHED_WHEN_HELD));
        match self {
            Self::Confirmed => confirmed,
            Self::Flushed => marks.confirm.min(marks.flushed),
            Self::Replicated => confirmed.min(replicated),
            Self::FlushedReplicated => marks.confirm.min(marks.flushed).min(replicated),
        }
    }
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
    /// [`AckTable::era`] before the message was appended.
    pub era: u64,
}

/// The answer to a send whose message is appended, and what must happen to the message before.
#[derive(Debug)]
pub struct Pending {
    /// What must have happened.
    pub level: Level,
    /// What is said then.
    pub answer: SendAnswer,
}

/// The answers right after a drive: those whose position is passed are given, the others wait.
pub struct Round<'a> {
    broker: &'a Broker,
    marks: Watermarks,
    replicated: u64,
    now: Instant,
    queued: bool,
}

impl<'a> Round<'a> {
    /// Looks at the watermarks once for all.
    pub fn new(broker: &'a Broker) -> Self {
        Self {
            broker,
            marks: broker.store.watermarks(),
            replicated: broker.ha.replicated(),
            now: Instant::now(),
            queued: false,
        }
    }

    /// Appends to `out` what this connection can be told already.
    pub fn answer(
        &mut self,
        connection: &Arc<Connection>,
        answers: impl Iterator<Item = Pending>,
        out: &mut BytesMut,
        ids: &mut String,
    ) {
        let broker = self.broker;
        for Pending { level, answer } in answers {
            let ready = if level.reached(&self.marks, self.replicated) >= answer.end {
                Some(broker.acks.still(answer))
            } else {
                let reached = || broker.reached(level);
                broker.acks.wait(level, connection, answer, reached)
            };
            match ready {
                Some(answer) => {
                    let writer = broker.acks.writer();
                    writer.write(out, &answer, answer.code, None, ids);
                    let took = self.now.saturating_duration_since(answer.started);
                    broker.metrics.put_latency.record(took);
                }
                None => self.queued = true,
            }
        }
    }

    /// A store that failed after the last look would leave the answers just queued without anybody to give them.
    pub fn end(self) {
        if self.queued
            && let Some(reason) = self.broker.store.poisoned()
        {
            self.broker.acks.fail_all(&reason);
        }
    }
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
    usual: SendResponseTemplate,
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
            usual: SendResponseTemplate::new(&host, region, trace_on),
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
        let remark = match code {
            response_code::SYSTEM_ERROR => remark.or(Some(IN_DOUBT)),
            _ => remark,
        };
        let usual = code == response_code::SUCCESS
            && answer.serialize_type == SerializeType::Json
            && answer.more.is_none()
            && remark.is_none();
        if usual {
            let SendAnswer {
                opaque,
                phy_offset,
                queue_id,
                queue_offset,
                ..
            } = *answer;
            return self
                .usual
                .encode(out, opaque, phy_offset, queue_id, queue_offset);
        }
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
    confirmed: Waiters<Waiting>,
    flushed: Waiters<Waiting>,
    replicated: Waiters<Waiting>,
    flushed_replicated: Waiters<Waiting>,
    /// Somebody ever waited for a slave; set before the watermarks are read again.
    replicates: AtomicBool,
    bytes: AtomicI64,
    era: AtomicU64,
    writer: AnswerWriter,
    metrics: Arc<Metrics>,
}

impl AckTable {
    /// Nothing waits yet.
    pub fn new(writer: AnswerWriter, metrics: Arc<Metrics>) -> Self {
        Self {
            confirmed: Waiters::default(),
            flushed: Waiters::default(),
            replicated: Waiters::default(),
            flushed_replicated: Waiters::default(),
            replicates: AtomicBool::new(false),
            bytes: AtomicI64::new(0),
            era: AtomicU64::new(0),
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
        let levels = Level::LOCAL.into_iter().chain(Level::REPLICATED);
        levels.map(|level| self.queue(level).len()).sum()
    }

    /// Keeps the answer until the level's watermark, which `reached` reads, has passed its end; gives it back when it has.
    pub fn wait(
        &self,
        level: Level,
        connection: &Arc<Connection>,
        answer: SendAnswer,
        reached: impl Fn() -> u64,
    ) -> Option<SendAnswer> {
        if Level::REPLICATED.contains(&level) {
            self.replicates.store(true, Ordering::SeqCst);
        }
        let (end, bytes, era) = (answer.end, answer.bytes, answer.era);
        let waiting = Waiting {
            connection: Arc::clone(connection),
            answer,
        };
        // Counted before somebody else may give the answer.
        self.bytes.fetch_add(count(bytes), Ordering::Relaxed);
        connection.begin_waiting(bytes);
        let current = || match self.era() == era {
            true => reached(),
            false => u64::MAX,
        };
        let back = self.queue(level).wait(end, waiting, current)?;
        self.bytes.fetch_sub(count(bytes), Ordering::Relaxed);
        connection.end_waiting(bytes);
        Some(self.still(back.answer))
    }

    /// Gives every answer whose position was passed.
    pub fn release(&self, marks: &Watermarks, replicated: u64) {
        for level in Level::LOCAL {
            self.release_queue(level, level.reached(marks, replicated));
        }
        self.release_replicated(marks, replicated);
    }

    /// The same after slaves reported: only what waits for them.
    pub fn release_replicated(&self, marks: &Watermarks, replicated: u64) {
        if !self.replicates.load(Ordering::SeqCst) {
            return;
        }
        for level in Level::REPLICATED {
            self.release_queue(level, level.reached(marks, replicated));
        }
    }

    fn release_queue(&self, level: Level, reached: u64) {
        let done = self.queue(level).release(reached);
        if !done.is_empty() {
            self.give(done, None);
        }
    }

    /// The log failed: nothing that waits will ever be there.
    pub fn fail_all(&self, remark: &str) {
        self.fail_all_with(response_code::SYSTEM_ERROR, remark);
    }

    /// Counts how often what waits came to be in doubt.
    pub fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// The group's log may lose what was appended before: everything that waits is answered so, and so is what has yet to
    /// begin to wait. Called before anything else may come to lie where those messages were.
    pub fn begin_era(&self) {
        self.era.fetch_add(1, Ordering::AcqRel);
        self.fail_all(IN_DOUBT);
    }

    /// The answer, or the word that its message is in doubt.
    fn still(&self, answer: SendAnswer) -> SendAnswer {
        if answer.era == self.era() {
            return answer;
        }
        SendAnswer {
            code: response_code::SYSTEM_ERROR,
            ..answer
        }
    }

    /// Answers everything that waits with this code.
    pub fn fail_all_with(&self, code: i32, remark: &str) {
        for level in Level::LOCAL.into_iter().chain(Level::REPLICATED) {
            let done = self.take(level, |_| true);
            self.give(done, Some((code, remark)));
        }
    }

    /// Answers FLUSH_SLAVE_TIMEOUT to sends that were read before this time and that too few slaves have.
    pub fn expire_replicated(&self, before: Instant, replicated: u64) {
        if !self.replicates.load(Ordering::SeqCst) {
            return;
        }
        for level in Level::REPLICATED {
            let done = self.take(level, |w| {
                w.answer.started <= before && w.answer.end > replicated
            });
            self.give(
                done,
                Some((response_code::FLUSH_SLAVE_TIMEOUT, NOT_REPLICATED)),
            );
        }
    }

    /// No slave will be heard any more: what still waits for one is stored here, and perhaps there.
    pub fn give_up_replicated(&self) {
        for level in Level::REPLICATED {
            let done = self.take(level, |_| true);
            self.give(
                done,
                Some((response_code::FLUSH_SLAVE_TIMEOUT, NOT_REPLICATED)),
            );
        }
    }

    /// Gives the answers of sends that were read before this time and are held only because the disk is slow: what they promise is true.
    pub fn release_held(&self, confirm: u64, replicated: u64, before: Instant) {
        for (level, reached) in [
            (Level::Confirmed, confirm),
            (Level::Replicated, confirm.min(replicated)),
        ] {
            let done = self.take(level, |w| {
                w.answer.started <= before && w.answer.end <= reached
            });
            self.give(done, None);
        }
    }

    /// Answers FLUSH_DISK_TIMEOUT to sends that were read before this time.
    pub fn expire(&self, before: Instant) {
        for level in [Level::Flushed, Level::FlushedReplicated] {
            let done = self.take(level, |w| w.answer.started <= before);
            self.give(
                done,
                Some((
                    response_code::FLUSH_DISK_TIMEOUT,
                    "the message is written but its flush takes longer than syncFlushTimeout",
                )),
            );
        }
    }

    fn take(&self, level: Level, is_done: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        self.queue(level).take(|_, waiting| is_done(waiting))
    }

    fn give(&self, mut done: Vec<Waiting>, failure: Option<(i32, &str)>) {
        let bytes: usize = done.iter().map(|w| w.answer.bytes).sum();
        self.bytes.fetch_sub(count(bytes), Ordering::Relaxed);
        done.sort_by_key(|w| w.connection.id());
        let mut out = BytesMut::new();
        let mut ids = String::new();
        for group in done.chunk_by(|a, b| a.connection.id() == b.connection.id()) {
            out.clear();
            let bytes = group.iter().map(|w| w.answer.bytes).sum();
            group[0].connection.end_waiting(bytes);
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

    fn queue(&self, level: Level) -> &Waiters<Waiting> {
        match level {
            Level::Confirmed => &self.confirmed,
            Level::Flushed => &self.flushed,
            Level::Replicated => &self.replicated,
            Level::FlushedReplicated => &self.flushed_replicated,
        }
    }
}

fn count(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use remoting::RemotingCommand;

    use super::*;

    fn table() -> AckTable {
        let writer = AnswerWriter::new("10.0.0.1:10911".parse().unwrap(), "R", true);
        AckTable::new(writer, Arc::default())
    }

    fn connection() -> Arc<Connection> {
        Connection::detached(
            "10.0.0.9:1".parse().unwrap(),
            "10.0.0.1:10911".parse().unwrap(),
        )
    }

    fn answer(opaque: i32, end: u64) -> SendAnswer {
        SendAnswer {
            opaque,
            serialize_type: SerializeType::Json,
            code: response_code::SUCCESS,
            queue_id: 3,
            queue_offset: 7,
            phy_offset: end - 100,
            more: None,
            end,
            bytes: 100,
            started: Instant::now(),
            era: 0,
        }
    }

    fn marks(confirm: u64, flushed: u64) -> Watermarks {
        Watermarks {
            appended: 1_000,
            written: confirm,
            flushed,
            confirm,
            poisoned: false,
        }
    }

    /// What a connection was sent: `(opaque, code)` in order.
    fn sent(connection: &Connection) -> Vec<(i32, i32)> {
        let frames = connection.take_sent();
        let mut rest = &frames[..];
        let mut answers = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (frame, next) = after.split_at(u32::from_be_bytes(*length) as usize);
            let command = RemotingCommand::decode(frame).unwrap();
            answers.push((command.opaque, command.code));
            rest = next;
        }
        answers
    }

    #[test]
    fn a_slow_disk_holds_answers_back_but_not_for_ever() {
        let (table, a) = (table(), connection());
        let end = UNFLUSHED_WHEN_HELD + 1_000;
        let slow = marks(end + 5_000, 0);
        let reached = || Level::Confirmed.reached(&slow, 0);
        assert!(
            table
                .wait(Level::Confirmed, &a, answer(1, end), reached)
                .is_none()
        );
        table.release(&slow, 0);
        assert_eq!(sent(&a), []);
        table.release(&marks(end + 5_000, 1_000), 0);
        assert_eq!(sent(&a), [(1, response_code::SUCCESS)]);

        assert!(
            table
                .wait(Level::Confirmed, &a, answer(2, end), reached)
                .is_none()
        );
        assert!(
            table
                .wait(Level::Confirmed, &a, answer(3, end + 9_000), reached)
                .is_none()
        );
        table.release_held(slow.confirm, 0, Instant::now());
        assert_eq!(sent(&a), [(2, response_code::SUCCESS)]);
        assert_eq!(table.waiting(), 1);
    }

    #[test]
    fn answers_are_given_in_order_of_position_when_their_level_is_reached() {
        let (table, a, b) = (table(), connection(), connection());
        for (who, opaque, end) in [(&a, 1, 200), (&b, 2, 100), (&a, 3, 300)] {
            assert!(
                table
                    .wait(Level::Confirmed, who, answer(opaque, end), || 0)
                    .is_none()
            );
        }
        assert!(
            table
                .wait(Level::Flushed, &a, answer(4, 150), || 0)
                .is_none()
        );
        assert_eq!((table.waiting(), table.bytes_in_flight()), (4, 400));
        table.release(&marks(100, 0), 0);
        assert_eq!((sent(&a), sent(&b)), (vec![], vec![(2, 0)]));
        table.release(&marks(300, 120), 0);
        assert_eq!(sent(&a), [(1, 0), (3, 0)]);
        table.release(&marks(300, 150), 0);
        assert_eq!(sent(&a), [(4, 0)]);
        assert_eq!((table.waiting(), table.bytes_in_flight()), (0, 0));
    }

    #[test]
    fn a_position_reached_meanwhile_is_not_waited_for() {
        let (table, a) = (table(), connection());
        let back = table.wait(Level::Confirmed, &a, answer(1, 200), || 200);
        assert_eq!(back.map(|a| a.opaque), Some(1));
        assert_eq!((table.waiting(), table.bytes_in_flight()), (0, 0));
    }

    #[test]
    fn a_flush_that_takes_too_long_is_said_and_a_failed_log_fails_everybody() {
        let (table, a) = (table(), connection());
        assert!(
            table
                .wait(Level::Flushed, &a, answer(1, 200), || 0)
                .is_none()
        );
        table.expire(Instant::now() - Duration::from_secs(1));
        assert_eq!(sent(&a), []);
        table.expire(Instant::now());
        assert_eq!(sent(&a), [(1, response_code::FLUSH_DISK_TIMEOUT)]);
        assert!(
            table
                .wait(Level::Confirmed, &a, answer(2, 200), || 0)
                .is_none()
        );
        table.fail_all("the disk failed");
        assert_eq!(sent(&a), [(2, response_code::SYSTEM_ERROR)]);
        assert_eq!((table.waiting(), table.bytes_in_flight()), (0, 0));
    }

    #[test]
    fn message_ids_are_those_of_upstream() {
        let table = table();
        let mut out = BytesMut::new();
        let batch = SendAnswer {
            more: Some(Box::new([0x1234])),
            ..answer(1, 100)
        };
        table
            .writer()
            .write(&mut out, &batch, 0, None, &mut String::new());
        let command = RemotingCommand::decode(&out[4..]).unwrap();
        assert_eq!(
            command.ext("msgId"),
            Some("0A00000100002A9F0000000000000000,0A00000100002A9F0000000000001234")
        );
        assert_eq!(command.ext("MSG_REGION"), Some("R"));
    }

    #[test]
    fn a_replicated_answer_waits_for_slaves_and_with_sync_flush_for_the_disk_as_well() {
        let (table, a) = (table(), connection());
        for (opaque, level) in [(1, Level::Replicated), (2, Level::FlushedReplicated)] {
            assert!(table.wait(level, &a, answer(opaque, 200), || 0).is_none());
        }
        table.release(&marks(300, 0), 199);
        assert_eq!(sent(&a), []);
        table.release_replicated(&marks(300, 100), 200);
        assert_eq!(sent(&a), [(1, response_code::SUCCESS)]);
        table.release(&marks(300, 200), 200);
        assert_eq!(sent(&a), [(2, response_code::SUCCESS)]);

        for (opaque, end) in [(3, 200), (4, 300)] {
            let answer = answer(opaque, end);
            assert!(table.wait(Level::Replicated, &a, answer, || 0).is_none());
        }
        table.expire_replicated(Instant::now() - Duration::from_secs(1), 200);
        assert_eq!(sent(&a), []);
        table.expire_replicated(Instant::now(), 200);
        assert_eq!(sent(&a), [(4, response_code::FLUSH_SLAVE_TIMEOUT)]);
        table.give_up_replicated();
        assert_eq!(sent(&a), [(3, response_code::FLUSH_SLAVE_TIMEOUT)]);
        assert_eq!((table.waiting(), table.bytes_in_flight()), (0, 0));
    }
}
