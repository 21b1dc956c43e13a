//! PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361): the checks of upstream `PullMessageProcessor`, the read, the wait.
//!
//! What lies in memory is read on the connection's task; a read from disk goes to a bounded number of blocking threads.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use remoting::Connection;
use remoting::protocol::command::ReplyKey;
use remoting::protocol::hot::{PullHeader, PullResponse, encode_pull_response};
use remoting::protocol::message::java_string_hash;
use remoting::protocol::{RemotingCommand, SerializeType, request_code, response_code};
use remoting::server::Request;
use smallvec::SmallVec;
use store::{ConsumeQueue, Filter, GetOutcome, GetRequest, GetResult, GetStatus};

use super::{Local, Refusal};
use crate::broker::Broker;
use crate::longpolling::Held;
use crate::role::Role;
use crate::topic::{Topic, perm};

/// Bits of a pull's `sysFlag`.
mod flag {
    pub(super) const COMMIT_OFFSET: i32 = 1;
    pub(super) const SUSPEND: i32 = 2;
    pub(super) const SUBSCRIPTION: i32 = 4;
    pub(super) const CLASS_FILTER: i32 = 8;
}

/// Id of a group's master.
const MASTER_ID: i64 = 0;
const SUBSCRIBE_ALL: &str = "*";
const TAG: &str = "TAG";
/// Longest wait that a pull may ask for; clients ask for 15 to 20 s and give up after 30 s.
const MAX_SUSPEND: Duration = Duration::from_secs(120);
/// Tags of one expression kept without allocation.
const USUAL_TAGS: usize = 4;

/// Which messages of a queue are wanted, by the hash of their tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagFilter {
    /// Every message.
    All,
    /// Those with one of these hashes, sign-extended.
    Hashes(SmallVec<[i64; USUAL_TAGS]>),
}

impl TagFilter {
    /// `*`, nothing, or tags separated by `||`; `None` when nothing is left between the bars.
    pub fn parse(expression: &str) -> Option<Self> {
        let expression = expression.trim();
        if expression.is_empty() || expression == SUBSCRIBE_ALL {
            return Some(Self::All);
        }
        let hashes: SmallVec<_> = expression
            .split("||")
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .map(|t| java_string_hash(t).into())
            .collect();
        (!hashes.is_empty()).then_some(Self::Hashes(hashes))
    }

    /// Whether a message with this hash is wanted.
    pub fn matches(&self, tags_code: i64) -> bool {
        match self {
            Self::All => true,
            Self::Hashes(hashes) => hashes.contains(&tags_code),
        }
    }

    fn as_filter(&self) -> Filter<'_> {
        match self {
            Self::All => Filter::All,
            Self::Hashes(hashes) => Filter::Tags(hashes),
        }
    }
}

/// A pull that passed its checks; complete in itself, so that it can be run again later.
pub struct PullJob {
    opaque: i32,
    serialize_type: SerializeType,
    group: Box<str>,
    topic: Arc<Topic>,
    /// The queue to read.
    pub queue: Arc<ConsumeQueue>,
    /// Offset to begin with.
    pub offset: i64,
    max_count: u32,
    max_bytes: usize,
    /// What is wanted.
    pub filter: TagFilter,
    suspend: Option<Duration>,
    /// `(when slow, otherwise)`: broker ids to suggest.
    suggest: (i64, i64),
}

/// How a run of a pull ended.
enum Run {
    Answered,
    Wait(PullJob),
    Cold(PullJob),
}

thread_local! {
    /// Records on their way into an answer, reused.
    static BODY: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Above this an idle scratch buffer is given back.
const SCRATCH_KEPT: usize = 512 * 1024;

/// Serves one pull.
pub(super) fn pull(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    local: &mut Local,
    request: &Request<'_>,
    out: &mut BytesMut,
) {
    match check(broker, connection, local, request) {
        Err(refusal) => refusal.write(request, out),
        Ok(job) => run_and_follow(broker, connection, job, out, true),
    }
}

fn run_and_follow(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    job: PullJob,
    out: &mut BytesMut,
    may_wait: bool,
) {
    match run(broker, job, out, may_wait) {
        Run::Answered => {}
        Run::Cold(job) => read_cold(broker, connection, job),
        Run::Wait(job) => {
            let wait = job.suspend.unwrap_or_default();
            if let Some(job) = broker.held.hold(connection, job, Instant::now() + wait) {
                // A message came in between, or the connection closed: once more, without waiting.
                if let Run::Cold(job) = run(broker, job, out, false) {
                    read_cold(broker, connection, job);
                }
            }
        }
    }
}

/// Runs pulls again that waited: a message came, or their time is over.
pub(crate) fn resume(broker: &Arc<Broker>, woken: Vec<Held>) {
    let mut out = BytesMut::new();
    for held in woken {
        out.clear();
        match run(broker, held.job, &mut out, false) {
            Run::Answered | Run::Wait(_) => {
                held.connection.send_encoded(&out);
            }
            Run::Cold(job) => read_cold(broker, &held.connection, job),
        }
    }
}

fn read_cold(broker: &Arc<Broker>, connection: &Arc<Connection>, job: PullJob) {
    let busy = RemotingCommand::error(
        response_code::SYSTEM_BUSY,
        "[OVERLOAD]too many reads from disk",
    )
    .reply_to(&job.reply_key());
    let (reader, waiting) = (Arc::clone(broker), Arc::clone(connection));
    let taken = broker.cold_reads.run(move || {
        if !waiting.is_open() {
            return;
        }
        let mut body = BytesMut::new();
        let mut out = BytesMut::new();
        let result = reader.store.get_message_cold(&job.request(), &mut body);
        answer(&reader, &job, &result, &body, &mut out);
        waiting.send_encoded(&out);
    });
    if !taken {
        connection.send(&busy);
    }
}

impl PullJob {
    fn reply_key(&self) -> ReplyKey {
        ReplyKey {
            opaque: self.opaque,
            serialize_type: self.serialize_type,
            oneway: false,
        }
    }

    fn request(&self) -> GetRequest<'_> {
        GetRequest {
            topic: self.topic.name(),
            queue_id: self.queue.queue_id(),
            offset: self.offset,
            max_count: self.max_count,
            max_bytes: self.max_bytes,
            filter: self.filter.as_filter(),
        }
    }
}

fn run(broker: &Arc<Broker>, job: PullJob, out: &mut BytesMut, may_wait: bool) -> Run {
    if let Some(target) =
        broker
            .offsets
            .take_reset(&job.group, job.topic.name(), job.queue.queue_id())
    {
        let (min_offset, max_offset) = (job.queue.min_offset(), job.queue.max_offset());
        write(
            out,
            &job,
            response_code::PULL_OFFSET_MOVED,
            "OFFSET_RESET",
            job.suggest.1,
            (target, min_offset, max_offset),
            &[],
        );
        return Run::Answered;
    }
    BODY.with_borrow_mut(|body| {
        body.clear();
        let result = match broker.store.get_message(&job.request(), body) {
            GetOutcome::Cold => return Run::Cold(job),
            GetOutcome::Done(result) => result,
        };
        if may_wait
            && job.suspend.is_some()
            && verdict(broker, &job, &result).code == response_code::PULL_NOT_FOUND
        {
            broker.stats.get_missed();
            return Run::Wait(job);
        }
        answer(broker, &job, &result, body, out);
        if body.capacity() > SCRATCH_KEPT {
            *body = BytesMut::new();
        }
        Run::Answered
    })
}

/// Response code and remark of a store's status (6.1).
fn code(result: &GetResult, requested: i64) -> (i32, &'static str) {
    let empty = if requested == 0 {
        response_code::PULL_NOT_FOUND
    } else {
        response_code::PULL_OFFSET_MOVED
    };
    match result.status {
        GetStatus::Found => (response_code::SUCCESS, "FOUND"),
        GetStatus::NoMatchedMessage => {
            (response_code::PULL_RETRY_IMMEDIATELY, "NO_MATCHED_MESSAGE")
        }
        GetStatus::MessageWasRemoving => (
            response_code::PULL_RETRY_IMMEDIATELY,
            "MESSAGE_WAS_REMOVING",
        ),
        GetStatus::OffsetOverflowOne => (response_code::PULL_NOT_FOUND, "OFFSET_OVERFLOW_ONE"),
        GetStatus::OffsetFoundNull => (response_code::PULL_NOT_FOUND, "OFFSET_FOUND_NULL"),
        GetStatus::NoMessageInQueue => (empty, "NO_MESSAGE_IN_QUEUE"),
        GetStatus::NoMatchedLogicQueue => (empty, "NO_MATCHED_LOGIC_QUEUE"),
        GetStatus::OffsetTooSmall => (response_code::PULL_OFFSET_MOVED, "OFFSET_TOO_SMALL"),
        GetStatus::OffsetOverflowBadly => {
            (response_code::PULL_OFFSET_MOVED, "OFFSET_OVERFLOW_BADLY")
        }
        GetStatus::ServiceNotAvailable => (response_code::SYSTEM_ERROR, "SERVICE_NOT_AVAILABLE"),
    }
}

/// What a pull is answered, beside the records.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    code: i32,
    remark: &'static str,
    suggest: i64,
    next: i64,
}

fn verdict(broker: &Broker, job: &PullJob, result: &GetResult) -> Verdict {
    let (code, remark) = code(result, job.offset);
    let lags = result.suggest_pulling_from_slave;
    let verdict = Verdict {
        code,
        remark,
        suggest: if lags { job.suggest.0 } else { job.suggest.1 },
        next: result.next_begin_offset,
    };
    match broker.role.role() {
        Role::Slave => on_a_slave(
            verdict,
            result,
            job.offset,
            broker.slave.master_answers(),
            broker.config().offset_check_in_slave,
        ),
        _ => verdict,
    }
}

/// A slave's answer (6.1). A consumer that is not far behind belongs to the master while that one answers: it is sent back, at
/// once when there is nothing for it here. Whether an offset lies outside the queue only the master can say, so it is never
/// corrected here unless `checks`: a slave may be behind, and may have begun later (upstream `nextOffsetCorrection`).
fn on_a_slave(
    verdict: Verdict,
    result: &GetResult,
    requested: i64,
    master_answers: bool,
    checks: bool,
) -> Verdict {
    let outside = matches!(
        result.status,
        GetStatus::OffsetTooSmall
            | GetStatus::OffsetOverflowBadly
            | GetStatus::NoMessageInQueue
            | GetStatus::NoMatchedLogicQueue
    );
    let next = if outside && !checks {
        requested
    } else {
        verdict.next
    };
    if master_answers && !result.suggest_pulling_from_slave {
        let code = match result.status {
            GetStatus::Found => verdict.code,
            _ => response_code::PULL_RETRY_IMMEDIATELY,
        };
        return Verdict {
            code,
            suggest: MASTER_ID,
            next,
            ..verdict
        };
    }
    // What has not come yet may still come: wait, as at the end of a queue.
    let waits = outside && !checks && result.status != GetStatus::OffsetTooSmall;
    Verdict {
        code: if waits {
            response_code::PULL_NOT_FOUND
        } else {
            verdict.code
        },
        next,
        ..verdict
    }
}

fn answer(broker: &Broker, job: &PullJob, result: &GetResult, body: &[u8], out: &mut BytesMut) {
    let Verdict {
        code,
        remark,
        suggest,
        next,
    } = verdict(broker, job, result);
    if result.count > 0 {
        broker.stats.get(
            &job.topic.group_stats(&broker.stats, &job.group),
            u64::from(result.count),
            body.len() as u64,
        );
        broker.offsets.commit_pull_offset(
            &job.group,
            job.topic.name(),
            job.queue.queue_id(),
            result.next_begin_offset,
        );
    } else {
        broker.stats.get_missed();
    }
    write(
        out,
        job,
        code,
        remark,
        suggest,
        (next, result.min_offset, result.max_offset),
        body,
    );
}

fn write(
    out: &mut BytesMut,
    job: &PullJob,
    code: i32,
    remark: &str,
    suggest: i64,
    (next, min, max): (i64, i64, i64),
    body: &[u8],
) {
    let response = PullResponse {
        opaque: job.opaque,
        serialize_type: job.serialize_type,
        code,
        remark: Some(remark),
        suggest_which_broker_id: suggest,
        next_begin_offset: next,
        min_offset: min,
        max_offset: max,
        topic_sys_flag: job.topic.config.topic_sys_flag,
        group_sys_flag: 0,
    };
    out.reserve(body.len() + 256);
    encode_pull_response(out, &response, body.len());
    out.extend_from_slice(body);
}

/// The checks of 6.1, in upstream's order.
fn check(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    local: &mut Local,
    request: &Request<'_>,
) -> Result<PullJob, Refusal> {
    let header = PullHeader::parse(&request.header)
        .map_err(|e| Refusal::new(response_code::SYSTEM_ERROR, e.to_string()))?;
    let config = local.config(broker);
    let role = broker.role.role();
    let may_read = match role {
        Role::Master => true,
        Role::Slave => config.slave_read_enable,
        Role::Undecided => false,
    };
    if !may_read {
        let (code, remark) = match role {
            Role::Slave => (
                response_code::SYSTEM_BUSY,
                "[REJECTREQUEST]system busy, start flow control for a while: this slave serves no pulls (slaveReadEnable)"
                    .to_owned(),
            ),
            _ => broker.not_master(),
        };
        return Err(Refusal::new(code, remark));
    }
    if !perm::is_readable(config.broker_permission) {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!(
                "the broker[{}] pulling message is forbidden",
                broker.settings.advertised
            ),
        ));
    }
    if request.header.code == request_code::LITE_PULL_MESSAGE && !config.lite_pull_message_enable {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!(
                "the broker[{}] for lite pull consumer is forbidden",
                broker.settings.advertised
            ),
        ));
    }
    let group = &*header.consumer_group;
    let Some(group_config) = broker
        .groups
        .find_or_create(group, config.auto_create_subscription_group)
    else {
        return Err(Refusal::new(
            response_code::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("subscription group [{group}] does not exist"),
        ));
    };
    if !group_config.consume_enable {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!("subscription group no permission, {group}"),
        ));
    }
    let Some(topic) = broker.topics.get(&header.topic) else {
        return Err(Refusal::new(
            response_code::TOPIC_NOT_EXIST,
            format!("topic[{}] not exist, apply first please!", header.topic),
        ));
    };
    if !perm::is_readable(topic.config.perm) {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!("the topic[{}] pulling message is forbidden", header.topic),
        ));
    }
    if !(0..topic.config.read_queue_nums).contains(&header.queue_id) {
        return Err(Refusal::new(
            response_code::SYSTEM_ERROR,
            format!(
                "queueId[{}] is illegal, topic:[{}] topicConfig.readQueueNums:[{}] consumer:[{}]",
                header.queue_id,
                header.topic,
                topic.config.read_queue_nums,
                connection.peer()
            ),
        ));
    }
    let filter = subscription(
        broker,
        connection,
        &header,
        config.reject_pull_consumer_enable,
    )?;
    let queue = match topic.queue(&broker.store, header.queue_id) {
        Some(Ok(queue)) => Arc::clone(queue),
        Some(Err(error)) => {
            return Err(Refusal::new(response_code::SYSTEM_ERROR, error.to_string()));
        }
        None => return Err(Refusal::new(response_code::SYSTEM_ERROR, "no such queue")),
    };
    if header.sys_flag & flag::COMMIT_OFFSET != 0 && role == Role::Master {
        broker
            .offsets
            .commit(group, &header.topic, header.queue_id, header.commit_offset);
    }
    let suspend = (header.sys_flag & flag::SUSPEND != 0).then(|| {
        let asked = if config.long_polling_enable {
            header.suspend_timeout_millis
        } else {
            config.short_polling_time_mills
        };
        Duration::from_millis(u64::try_from(asked).unwrap_or(0)).min(MAX_SUSPEND)
    });
    let full = broker.held.len() >= usize::try_from(config.max_long_polls).unwrap_or(0);
    let suggest = if config.slave_read_enable {
        (
            group_config.which_broker_when_consume_slowly,
            group_config.broker_id,
        )
    } else {
        (0, 0)
    };
    Ok(PullJob {
        opaque: request.header.opaque,
        serialize_type: request.serialize_type,
        group: group.into(),
        queue,
        topic,
        offset: header.queue_offset,
        max_count: u32::try_from(header.max_msg_nums).unwrap_or(0),
        max_bytes: header
            .max_msg_bytes
            .and_then(|b| usize::try_from(b).ok())
            .filter(|b| *b > 0)
            .unwrap_or(usize::MAX),
        filter,
        suspend: suspend.filter(|s| !full && !s.is_zero()),
        suggest,
    })
}

fn subscription(
    broker: &Broker,
    connection: &Connection,
    header: &PullHeader<'_>,
    registered_only: bool,
) -> Result<TagFilter, Refusal> {
    let sql = |kind: &str| !kind.is_empty() && !kind.eq_ignore_ascii_case(TAG);
    let no_sql = || {
        Refusal::new(
            response_code::SYSTEM_ERROR,
            "The broker does not support consumer to filter message by SQL92",
        )
    };
    let group = &*header.consumer_group;
    if header.sys_flag & flag::SUBSCRIPTION != 0 {
        if sql(header.expression_type.as_deref().unwrap_or_default()) {
            return Err(no_sql());
        }
        if header.sys_flag & flag::CLASS_FILTER != 0 {
            return Err(Refusal::new(
                response_code::SYSTEM_ERROR,
                "class filters are not served",
            ));
        }
        let expression = header.subscription.as_deref().unwrap_or(SUBSCRIBE_ALL);
        return TagFilter::parse(expression).ok_or_else(|| {
            Refusal::new(
                response_code::SUBSCRIPTION_PARSE_FAILED,
                "parse the consumer's subscription failed",
            )
        });
    }
    let Some(members) = broker.consumers.group(group) else {
        return Err(Refusal::new(
            response_code::SUBSCRIPTION_NOT_EXIST,
            "the consumer's group info not exist",
        ));
    };
    let group_config = broker.groups.find(group);
    if members.is_broadcasting() && group_config.is_some_and(|g| !g.consume_broadcast_enable) {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!("the consumer group[{group}] can not consume by broadcast way"),
        ));
    }
    if broker
        .groups
        .is_forbidden(group, &header.topic, READ_FORBIDDEN_BIT)
    {
        return Err(Refusal::new(
            response_code::NO_PERMISSION,
            format!(
                "the consumer group[{group}] is forbidden for topic[{}]",
                header.topic
            ),
        ));
    }
    let Some(subscription) = members.subscription(&header.topic) else {
        return Err(Refusal::new(
            response_code::SUBSCRIPTION_NOT_EXIST,
            "the consumer's subscription not exist",
        ));
    };
    if subscription.sub_version < header.sub_version {
        return Err(Refusal::new(
            response_code::SUBSCRIPTION_NOT_LATEST,
            "the consumer's subscription not latest",
        ));
    }
    if sql(&subscription.expression_type) {
        return Err(no_sql());
    }
    if registered_only && members.is_pull() && !members.contains_connection(connection.id()) {
        return Err(Refusal::new(
            response_code::SUBSCRIPTION_NOT_EXIST,
            "the consumer's group info not exist",
        ));
    }
    if subscription.sub_string == SUBSCRIBE_ALL || subscription.sub_string.is_empty() {
        return Ok(TagFilter::All);
    }
    if subscription.code_set.is_empty() {
        return TagFilter::parse(&subscription.sub_string).ok_or_else(|| {
            Refusal::new(
                response_code::SUBSCRIPTION_PARSE_FAILED,
                "parse the consumer's subscription failed",
            )
        });
    }
    Ok(TagFilter::Hashes(
        subscription
            .code_set
            .iter()
            .map(|c| i64::from(*c))
            .collect(),
    ))
}

/// Bit of the forbidden table that stands for reading (upstream `PermName.INDEX_PERM_READ`).
const READ_FORBIDDEN_BIT: u32 = 2;
